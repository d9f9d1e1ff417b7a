//! Attests pods by the tokens of their service accounts.
//!
//! The cluster says what a token proves (TokenReview), and what the pod is that the token is bound
//! to. The pod's instance is `pod-UID`. Nothing of it is stored: each certificate needs the token
//! again, so that a pod that is deleted gets none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use weft_core::model::Cidr;
use weft_core::name::{RESERVED_NAMESPACE, WorkloadName};

use super::attest::{Attested, Attestor, Credential, ProveError};
use super::records::Records;
use super::token::{Binding, InstanceRecord, TokenError};
use crate::kubernetes::names::{PROXY_CONTAINER, TOKEN_AUDIENCE};
use crate::kubernetes::{PodFacts, Review, TokenReviews, TokenUser};
use crate::sha256_hex;

/// What the instances of pods begin with.
const INSTANCE_PREFIX: &str = "pod-";
/// A token is not longer; those of Kubernetes have about 1 KiB.
const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// The API server is asked about so many tokens at a time; more wait.
const REVIEWS_AT_ONCE_MAX: usize = 64;
/// How long an answer of the API server may take, the wait for its turn included.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// A token that the API server has refused is refused for so long without asking again.
const REFUSED_KEPT: Duration = Duration::from_secs(10);
/// So many refused tokens are remembered, by their hashes.
const REFUSED_MAX: usize = 4096;
/// Addresses of one pod that are taken from its status.
const ADDRESSES_MAX: usize = 16;

/// The keys under which a TokenReview says which pod a token is bound to (KEP-1205, KEP-4193).
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Whether an instance is a pod's.
pub fn is_pod(instance: &str) -> bool {
    instance.starts_with(INSTANCE_PREFIX)
}

/// The instance of a pod.
pub fn instance_of(uid: &str) -> String {
    format!("{INSTANCE_PREFIX}{uid}")
}

/// The uid in the instance of a pod, 36 characters as in RFC 9562; `None` where it is none.
pub(super) fn uid_of(instance: &str) -> Option<&str> {
    let uid = instance.strip_prefix(INSTANCE_PREFIX)?;
    let is_uid = uid.len() == 36 && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    is_uid.then_some(uid)
}

/// A pod that has proved itself.
#[derive(Debug, Clone)]
pub struct ProvedPod {
    instance: String,
    binding: Binding,
}

/// Attests by tokens of service accounts that are bound to pods.
#[derive(Debug)]
pub struct ServiceAccounts {
    cluster: Arc<dyn TokenReviews>,
    turns: Semaphore,
    refused: Mutex<RefusedTokens>,
}

impl ServiceAccounts {
    /// Asks this cluster.
    pub fn new(cluster: Arc<dyn TokenReviews>) -> Self {
        Self {
            cluster,
            turns: Semaphore::new(REVIEWS_AT_ONCE_MAX),
            refused: Mutex::default(),
        }
    }

    async fn proved(&self, token: &str) -> Result<ProvedPod, ProveError> {
        if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
            let found = token.len();
            let text = format!("found {found} bytes; allowed: 1 to {TOKEN_BYTES_MAX}");
            return Err(refused(text));
        }
        let hash = sha256_hex(token.as_bytes());
        if let Some(why) = self.refused().get(&hash, Instant::now()) {
            return Err(refused(why));
        }
        let asked = timeout(REVIEW_TIMEOUT, self.ask(token, hash)).await;
        asked.unwrap_or_else(|_elapsed| {
            let text = format!("no answer within {REVIEW_TIMEOUT:?}");
            Err(ProveError::Unavailable(text))
        })
    }

    async fn ask(&self, token: &str, hash: String) -> Result<ProvedPod, ProveError> {
        // The semaphore is never closed.
        let _turn = self.turns.acquire().await;
        let review = self.cluster.review(token, TOKEN_AUDIENCE).await;
        let user = match review.map_err(ProveError::Unavailable)? {
            Review::Authenticated(user) => user,
            Review::Refused(why) => {
                self.refused().put(hash, why.clone(), Instant::now());
                return Err(refused(why));
            }
        };
        let bound = BoundToken::of(&user).map_err(refused)?;
        let pod = self.cluster.pod(&bound.namespace, &bound.pod).await;
        let pod = pod.map_err(ProveError::Unavailable)?;
        let binding = bound.binding(pod.as_ref()).map_err(refused)?;
        Ok(ProvedPod {
            instance: instance_of(&bound.uid),
            binding,
        })
    }

    fn refused(&self) -> std::sync::MutexGuard<'_, RefusedTokens> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(why: String) -> ProveError {
    ProveError::Refused(TokenError::ServiceAccount(why))
}

impl Attestor for ServiceAccounts {
    fn prove(&self, credential: Credential) -> BoxFuture<'_, Result<Credential, ProveError>> {
        Box::pin(async move {
            match credential {
                Credential::ServiceAccountToken(token) => {
                    self.proved(&token).await.map(Credential::Pod)
                }
                Credential::JoinToken(_)
                | Credential::InstanceKey(_)
                | Credential::Certificate(_)
                | Credential::Pod(_) => Ok(credential),
            }
        })
    }

    fn authenticate(
        &self,
        records: &Records,
        credential: &Credential,
        now: i64,
    ) -> Option<Result<String, TokenError>> {
        let attested = self.attest(records, credential, "", now)?;
        Some(attested.map(|attested| attested.instance.instance))
    }

    fn attest(
        &self,
        records: &Records,
        credential: &Credential,
        _key_hash: &str,
        now: i64,
    ) -> Option<Result<Attested, TokenError>> {
        match credential {
            Credential::Pod(pod) => Some(instance(records, pod, now)),
            Credential::ServiceAccountToken(_)
            | Credential::JoinToken(_)
            | Credential::InstanceKey(_)
            | Credential::Certificate(_) => None,
        }
    }
}

fn instance(records: &Records, pod: &ProvedPod, now: i64) -> Result<Attested, TokenError> {
    let before = records.instance(&pod.instance);
    // It was gone for us before the cluster was asked.
    if records.has_departed(&pod.instance) {
        return Err(TokenError::Revoked(pod.instance.clone()));
    }
    if before.is_some_and(|before| before.revoked.is_some()) {
        return Err(TokenError::Revoked(pod.instance.clone()));
    }
    Ok(Attested {
        instance: InstanceRecord {
            instance: pod.instance.clone(),
            key_hash: String::new(),
            binding: pod.binding.clone(),
            created: before.map_or(now, |before| before.created),
            last_used: now,
            last_not_after: before.map_or(0, |before| before.last_not_after),
            revoked: None,
        },
        redeemed: None,
        instance_key: None,
    })
}

/// What a token says that is bound to a pod.
#[derive(Debug, PartialEq, Eq)]
struct BoundToken {
    namespace: String,
    service_account: String,
    pod: String,
    uid: String,
}

impl BoundToken {
    /// Reads what the API server says of a token; the error says what is missing.
    fn of(user: &TokenUser) -> Result<Self, String> {
        if !user.audiences.iter().any(|a| a == TOKEN_AUDIENCE) {
            return Err(format!(
                "its audiences are {:?}; allowed: {TOKEN_AUDIENCE:?} among them",
                user.audiences
            ));
        }
        let account = user.username.strip_prefix("system:serviceaccount:");
        let account = account.and_then(|rest| rest.split_once(':'));
        let (namespace, service_account) = account.ok_or_else(|| {
            format!(
                "it is the token of {:?}, which is no service account",
                user.username
            )
        })?;
        let one = |key: &str| match user.extra.get(key).map(Vec::as_slice) {
            Some([value]) if !value.is_empty() => Ok(value.clone()),
            Some(_) | None => Err(format!(
                "it is bound to no pod ({key} is missing): mount it in the pod as a projected volume"
            )),
        };
        Ok(Self {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod: one(POD_NAME)?,
            uid: one(POD_UID)?,
        })
    }

    /// What the pod may do that the token is bound to; the error says why it gets no identity.
    fn binding(&self, pod: Option<&PodFacts>) -> Result<Binding, String> {
        let name = format!("{}/{}", self.namespace, self.pod);
        if self.namespace == RESERVED_NAMESPACE {
            return Err(format!(
                "pod {name} is in the namespace {RESERVED_NAMESPACE}, which is the mesh's own"
            ));
        }
        let pod = pod.ok_or_else(|| format!("there is no pod {name} any more"))?;
        if pod.uid != self.uid {
            return Err(format!(
                "it is bound to an earlier pod {name}, with uid {}",
                self.uid
            ));
        }
        if pod.service_account != self.service_account {
            return Err(format!(
                "pod {name} has the service account {:?}, not {:?}",
                pod.service_account, self.service_account
            ));
        }
        if pod.finished {
            return Err(format!("pod {name} has finished"));
        }
        if !pod.containers.iter().any(|c| c == PROXY_CONTAINER) {
            return Err(format!(
                "pod {name} is not in the mesh: none of its containers is called {PROXY_CONTAINER}"
            ));
        }
        let addresses = pod.addresses.iter().take(ADDRESSES_MAX);
        let addresses = addresses.map(|address| Cidr {
            address: *address,
            prefix: if address.is_ipv4() { 32 } else { 128 },
        });
        let workload = WorkloadName::new(&self.namespace, &self.pod);
        Ok(Binding {
            workload: workload.map_err(|error| error.to_string())?,
            service_account: self.service_account.clone(),
            services: Vec::new(),
            ports: Vec::new(),
            addresses: addresses.collect(),
        })
    }
}

/// Tokens that were refused lately, by their hashes, with the reason.
#[derive(Debug, Default)]
struct RefusedTokens(HashMap<String, (String, Instant)>);

impl RefusedTokens {
    fn get(&self, hash: &str, now: Instant) -> Option<String> {
        let (why, until) = self.0.get(hash)?;
        (now < *until).then(|| why.clone())
    }

    fn put(&mut self, hash: String, why: String, now: Instant) {
        if self.0.len() >= REFUSED_MAX {
            self.0.retain(|_hash, (_, until)| now < *until);
        }
        // What there is no room for is asked about again.
        if self.0.len() < REFUSED_MAX {
            self.0.insert(hash, (why, now + REFUSED_KEPT));
        }
    }
}

#[cfg(test)]
mod tests;
