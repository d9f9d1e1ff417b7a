//! The client of the cluster's API.

use std::fmt;

use kube::{Client, Config};
use weft_core::model::Cidr;

use crate::injector;

/// Why the cluster's API cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is neither a service account nor a kubeconfig.
    #[error(
        "kubernetes: no cluster is configured: {0}; run in a pod with a service account, or set KUBECONFIG"
    )]
    Configuration(#[source] Box<kube::config::InferConfigError>),
    /// The configuration cannot be used.
    #[error("kubernetes: the configuration of the cluster cannot be used: {0}")]
    Client(#[source] Box<kube::Error>),
}

/// A client as `kubectl` would be one: `KUBECONFIG` or the user's kubeconfig, else the service
/// account of the pod. Nothing is asked yet.
pub async fn connect() -> Result<Client, ClientError> {
    client(infer().await?)
}

async fn infer() -> Result<Config, ClientError> {
    let config = Config::infer().await;
    config.map_err(|error| ClientError::Configuration(Box::new(error)))
}

fn client(config: Config) -> Result<Client, ClientError> {
    Client::try_from(config).map_err(|error| ClientError::Client(Box::new(error)))
}

/// What is asked for of the cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterSettings {
    /// The namespace that the control plane is installed in.
    pub namespace: String,
    /// The domain of the cluster's DNS names: `cluster.local`.
    pub domain: String,
    /// Ranges of the addresses of its Services; none where its API is to be asked.
    pub service_ranges: Vec<Cidr>,
    /// What pods are injected with and which are: the one source for the webhook and for whoever looks after
    /// pods that exist. The cluster's version is asked for later.
    pub injector: injector::Settings,
}

/// The cluster that the control plane runs in.
#[derive(Clone)]
pub struct Cluster {
    /// The client of its API.
    pub client: Client,
    /// What was asked for.
    pub settings: ClusterSettings,
    /// Whether it reaches the API as a pod of the cluster, by its service account.
    pub runs_in_pod: bool,
}

impl Cluster {
    /// The namespace that the control plane is installed in.
    pub fn namespace(&self) -> &str {
        &self.settings.namespace
    }
}

impl Cluster {
    /// The cluster that [`connect`] finds.
    pub async fn connect(settings: ClusterSettings) -> Result<Self, ClientError> {
        let config = infer().await?;
        // Only then the file of the pod's token is there, and no kubeconfig was taken instead of it.
        let own = Config::incluster();
        let runs_in_pod = own.is_ok_and(|own| own.cluster_url == config.cluster_url);
        Ok(Self {
            client: client(config)?,
            settings,
            runs_in_pod,
        })
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cluster").field(&self.settings).finish()
    }
}

/// What the API said, or why it could not be asked, with every cause.
pub(crate) fn told(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return status.message.clone();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}
