//! The client of the cluster's API.

use kube::{Client, Config};

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
    client_with(infer().await?)
}

/// The configuration of [`connect`].
pub(crate) async fn infer() -> Result<Config, ClientError> {
    let config = Config::infer().await;
    config.map_err(|error| ClientError::Configuration(Box::new(error)))
}

/// A client with a configuration. Nothing is asked yet.
pub(crate) fn client_with(config: Config) -> Result<Client, ClientError> {
    Client::try_from(config).map_err(|error| ClientError::Client(Box::new(error)))
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
