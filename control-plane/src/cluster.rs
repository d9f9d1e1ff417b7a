//! The cluster that a control plane works in: what is asked for of it, and the client of its API.

use std::fmt;
use std::sync::Arc;

use kube::{Client, Config};
use weft_core::model::Cidr;

use crate::injector;
use crate::kubernetes::watches::Watches;
use crate::kubernetes::{self, ClientError};

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
    /// How each watch of its API fares.
    pub watches: Arc<Watches>,
}

impl Cluster {
    /// The namespace that the control plane is installed in.
    pub fn namespace(&self) -> &str {
        &self.settings.namespace
    }

    /// The cluster that [`kubernetes::connect`] finds.
    pub async fn connect(settings: ClusterSettings) -> Result<Self, ClientError> {
        let config = kubernetes::infer().await?;
        // Only the pod's own configuration has its file of the token.
        let own = Config::incluster();
        let runs_in_pod = own.is_ok_and(|own| {
            own.cluster_url == config.cluster_url
                && own.auth_info.token_file == config.auth_info.token_file
        });
        Ok(Self {
            client: kubernetes::client_with(config)?,
            settings,
            runs_in_pod,
            watches: Arc::default(),
        })
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cluster").field(&self.settings).finish()
    }
}
