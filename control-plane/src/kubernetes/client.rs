//! The client of the cluster's API.

use std::time::Duration;

use kube::{Client, Config};

/// A connection on which nothing comes for this long is not used any more, longer than a watch is silent.
const SILENT_MAX: Duration = Duration::from_secs(300);

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

/// A client with a configuration. Nothing is asked yet. Each question is asked once: whoever asks tries
/// again or says that there was no answer, and learns of a 503 that is one.
pub(crate) fn client_with(mut config: Config) -> Result<Client, ClientError> {
    config.default_retry = false;
    config.read_timeout = Some(SILENT_MAX);
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::Router;
    use http::StatusCode;

    use super::*;

    /// The answer of a pod that is not ready, through the API server.
    #[tokio::test]
    async fn a_503_is_an_answer() {
        let asked = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&asked);
        let answer = move || {
            count.fetch_add(1, Ordering::Relaxed);
            std::future::ready((StatusCode::SERVICE_UNAVAILABLE, "not redirected"))
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let serve = axum::serve(listener, Router::new().fallback(answer));
        let serving = tokio::spawn(serve.into_future());
        let client = client_with(Config::new(url.parse().unwrap())).unwrap();
        let request = http::Request::get("/readyz").body(kube::client::Body::empty());
        let response = client.send(request.unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        serving.abort();
    }
}
