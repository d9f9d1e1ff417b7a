//! What the cluster's API says of tokens and of the pods that they are bound to.
//!
//! Permissions: `create` on `tokenreviews` (authentication.k8s.io), `get` on `pods`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt as _};

use super::told;

/// What the API server says of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Review {
    /// It is one, for these audiences, of this user.
    Authenticated(TokenUser),
    /// It is none; why.
    Refused(String),
}

/// Whom a token is of, as a TokenReview says it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenUser {
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub username: String,
    /// The audiences that were asked for and that it has.
    pub audiences: Vec<String>,
    /// What else is known of it.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// A pod, as far as its identity depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Tells it from an earlier one of its name.
    pub uid: String,
    /// Its service account.
    pub service_account: String,
    /// Whether all of its containers have ended for good.
    pub finished: bool,
    /// The names of its containers and init containers.
    pub containers: Vec<String>,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
}

/// What is asked of the cluster. The error says why there is no answer.
pub trait TokenReviews: fmt::Debug + Send + Sync {
    /// Whom a token is of that is good for an audience.
    fn review<'a>(
        &'a self,
        token: &'a str,
        audience: &'a str,
    ) -> BoxFuture<'a, Result<Review, String>>;

    /// The pod of a name, if there is one.
    fn pod<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<PodFacts>, String>>;
}

/// Asks the cluster's API server about tokens.
#[derive(Clone)]
pub struct ClusterTokens {
    client: Client,
}

impl fmt::Debug for ClusterTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterTokens").finish_non_exhaustive()
    }
}

impl ClusterTokens {
    /// Asks with this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

impl TokenReviews for ClusterTokens {
    fn review<'a>(
        &'a self,
        token: &'a str,
        audience: &'a str,
    ) -> BoxFuture<'a, Result<Review, String>> {
        Box::pin(async move {
            let review = TokenReview {
                spec: TokenReviewSpec {
                    token: Some(token.to_owned()),
                    audiences: Some(vec![audience.to_owned()]),
                },
                ..TokenReview::default()
            };
            let api: Api<TokenReview> = Api::all(self.client.clone());
            let answer = api.create(&PostParams::default(), &review).await;
            let answer =
                answer.map_err(|error| format!("reviewing the token: {}", told(&error)))?;
            Ok(review_of(answer.status.unwrap_or_default()))
        })
    }

    fn pod<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<PodFacts>, String>> {
        Box::pin(async move {
            let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
            let pod = api.get_opt(name).await;
            let pod = pod
                .map_err(|error| format!("looking up pod {namespace}/{name}: {}", told(&error)))?;
            Ok(pod.map(facts_of))
        })
    }
}

fn review_of(status: TokenReviewStatus) -> Review {
    if status.authenticated != Some(true) {
        let why = status.error.filter(|error| !error.is_empty());
        return Review::Refused(why.unwrap_or_else(|| "the cluster does not know it".to_owned()));
    }
    let user = status.user.unwrap_or_default();
    Review::Authenticated(TokenUser {
        username: user.username.unwrap_or_default(),
        audiences: status.audiences.unwrap_or_default(),
        extra: user.extra.unwrap_or_default(),
    })
}

fn facts_of(pod: Pod) -> PodFacts {
    let uid = pod.uid().unwrap_or_default();
    let spec = pod.spec.unwrap_or_default();
    let status = pod.status.unwrap_or_default();
    let init = spec.init_containers.unwrap_or_default().into_iter();
    let containers = init.chain(spec.containers);
    let addresses = status.pod_ips.unwrap_or_default();
    let addresses = addresses.iter().filter_map(|ip| ip.ip.parse().ok());
    PodFacts {
        uid,
        service_account: spec.service_account_name.unwrap_or_default(),
        finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        containers: containers.map(|container| container.name).collect(),
        addresses: addresses.collect::<Vec<IpAddr>>(),
    }
}
