//! The admission webhook: the API server asks what becomes of a pod before it makes it.
//!
//! Whoever reaches the port may ask, because an API server shows no certificate unless it is set up to.
//! An answer tells nothing that the question did not, so what has to be bounded is work: connections
//! and reviews, each in all and by source.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use http::StatusCode;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Namespace, Outcome, Settings, inject};
use crate::kubernetes::names::WEBHOOK_PATH;
use crate::tls::ServerTls;

/// Largest review, bytes: what an API server takes of its own clients.
pub const REVIEW_MAX_BYTES: usize = 3 * 1024 * 1024;
/// How long a review may take to arrive, its wait for a place included. The webhook's configuration
/// gives the whole answer 10 s.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// Reviews that are read and decided at the same time; others wait.
const REVIEWS_MAX: usize = 32;
/// Connections at the same time; those beyond are closed at once.
const CONNECTIONS_MAX: usize = 1024;
/// Those from one address. An API server keeps one or two.
const CONNECTIONS_PER_SOURCE_MAX: usize = 32;
/// Requests at the same time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 32;
/// For the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// For the head of a request in HTTP/1.1, and until a silent HTTP/2 connection is asked whether
/// somebody is there.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// All fields of a request's head, bytes.
const HEADERS_MAX_BYTES: u32 = 16 * 1024;
/// Reviews under way at the end have this long.
const DRAIN: Duration = Duration::from_secs(5);
/// After accept failed, as when descriptors are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What became of reviews.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    reviews: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Counters {
    /// Adds them to what Prometheus reads.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "weft_injector_reviews",
            "Pods that the API server asked about, by what became of them",
            self.reviews.clone(),
        );
    }

    fn count(&self, outcome: &'static str) {
        self.reviews.get_or_create(&[("outcome", outcome)]).inc();
    }
}

/// What the webhook answers with.
#[derive(Debug)]
pub struct Webhook {
    settings: Settings,
    counters: Counters,
    places: Semaphore,
}

/// A review that is not answered with a review.
struct Unreadable {
    status: StatusCode,
    reason: String,
}

impl Webhook {
    /// With these settings for every pod.
    pub fn new(settings: Settings, counters: Counters) -> Self {
        Self {
            settings,
            counters,
            places: Semaphore::new(REVIEWS_MAX),
        }
    }

    async fn answer(&self, body: Body) -> Result<AdmissionReview<DynamicObject>, Unreadable> {
        // A body that does not come keeps nobody's place.
        let reading = async {
            let bytes = to_bytes(body, REVIEW_MAX_BYTES).await;
            let place = self.places.acquire().await;
            (place, bytes)
        };
        let Ok((_place, bytes)) = timeout(REVIEW_TIMEOUT, reading).await else {
            let reason = format!("the review did not arrive within {REVIEW_TIMEOUT:?}");
            let status = StatusCode::REQUEST_TIMEOUT;
            return Err(Unreadable { status, reason });
        };
        let bytes = bytes.map_err(|error| Unreadable {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            reason: format!(
                "the review cannot be read: {error}; allowed: {REVIEW_MAX_BYTES} bytes"
            ),
        })?;
        let review = serde_json::from_slice(&bytes).map_err(|error| error.to_string());
        let decided = review.and_then(|review| self.decide(review));
        decided.map_err(|reason| Unreadable {
            status: StatusCode::BAD_REQUEST,
            reason: format!("{reason}; allowed: an AdmissionReview of admission.k8s.io/v1"),
        })
    }

    /// The answer to a review.
    fn decide(&self, mut review: Value) -> Result<AdmissionReview<DynamicObject>, String> {
        // A pod that is none is to be refused, and not to make the whole review unreadable.
        let pod = review.pointer_mut("/request/object").map(Value::take);
        if let Some(request) = review.get_mut("request").and_then(Value::as_object_mut) {
            request.remove("oldObject");
        }
        let review: AdmissionReview<DynamicObject> =
            serde_json::from_value(review).map_err(|error| error.to_string())?;
        if review.types.api_version != "admission.k8s.io/v1"
            || review.types.kind != "AdmissionReview"
        {
            let types = review.types;
            return Err(format!("found {} {}", types.api_version, types.kind));
        }
        let request: AdmissionRequest<DynamicObject> =
            review.try_into().map_err(|_none| "no request".to_owned())?;
        let response = AdmissionResponse::from(&request);
        Ok(self
            .respond(response, &request, &pod.unwrap_or_default())
            .into_review())
    }

    fn respond(
        &self,
        response: AdmissionResponse,
        request: &AdmissionRequest<DynamicObject>,
        pod: &Value,
    ) -> AdmissionResponse {
        let kind = &request.kind;
        let is_pod = (&*kind.group, &*kind.version, &*kind.kind) == ("", "v1", "Pod");
        // Containers are added when a pod is made, or never.
        if !is_pod || request.operation != Operation::Create || request.sub_resource.is_some() {
            self.counters.count("not-asked");
            return response;
        }
        let name = request.namespace.as_deref();
        let namespace = Namespace {
            name,
            // A review has none: the selectors of the webhook's configuration decide. Those of a watch
            // may be older than the review, and would leave a pod without the sidecar that it needs.
            labels: None,
        };
        let message = match inject(pod, namespace, &self.settings) {
            Outcome::Skip(reason) => {
                self.counters.count(reason.as_str());
                return response;
            }
            Outcome::Patch(patch) => match response.clone().with_patch(patch) {
                Ok(response) => {
                    self.counters.count("injected");
                    return response;
                }
                Err(error) => error.to_string(),
            },
            Outcome::Refuse(refusal) => refusal.to_string(),
        };
        self.counters.count("refused");
        tracing::info!(uid = request.uid, %message, "a pod is refused");
        response.deny(message)
    }
}

/// `POST /inject`.
pub fn router(webhook: Arc<Webhook>) -> Router {
    Router::new()
        .route(WEBHOOK_PATH, post(review))
        .with_state(webhook)
}

async fn review(State(webhook): State<Arc<Webhook>>, request: Request) -> Response {
    match webhook.answer(request.into_body()).await {
        Ok(review) => Json(review).into_response(),
        Err(Unreadable { status, reason }) => {
            webhook.counters.count("unreadable");
            (status, format!("weft: {reason}\n")).into_response()
        }
    }
}

/// Serves the router over TLS, HTTP/1.1 and HTTP/2, until `stop`. Each connection has the certificate of
/// the moment when it was accepted.
pub async fn serve(router: Router, listener: TcpListener, tls: ServerTls, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    let sources = Arc::<Sources>::default();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection of the API server failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = sources.admit(address) else {
            tracing::debug!(%address, "too many connections to the webhook: closed");
            continue;
        };
        let (acceptor, router) = (TlsAcceptor::from(tls.load_full()), router.clone());
        let stop = stop.clone();
        tasks.spawn(async move {
            serve_connection(stream, acceptor, router, stop).await;
            drop(place);
        });
    }
    drop(listener);
    tasks.close();
    let _late_ones_are_cut = timeout(DRAIN, tasks.wait()).await;
}

async fn serve_connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    stop: CancellationToken,
) {
    let _best_effort = stream.set_nodelay(true);
    let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            // An API server whose caBundle is another mesh's ends up here.
            tracing::warn!(%error, "a TLS handshake with the webhook failed");
            return;
        }
        Err(_elapsed) => return,
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(SILENCE_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(SILENCE_MAX)
        .keep_alive_timeout(SILENCE_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX_BYTES);
    let service = TowerToHyperService::new(router);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection to the webhook ended");
    }
}

/// Connections by source.
#[derive(Debug, Default)]
struct Sources {
    connections: Mutex<HashMap<IpAddr, usize>>,
}

impl Sources {
    /// A place for a connection, unless all are taken.
    fn admit(self: &Arc<Self>, address: SocketAddr) -> Option<Place> {
        let source = address.ip().to_canonical();
        let mut connections = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let total: usize = connections.values().sum();
        let count = connections.entry(source).or_default();
        if total >= CONNECTIONS_MAX || *count >= CONNECTIONS_PER_SOURCE_MAX {
            if *count == 0 {
                connections.remove(&source);
            }
            return None;
        }
        *count += 1;
        let sources = Arc::clone(self);
        Some(Place { sources, source })
    }
}

/// A connection's place, which it gives back.
#[derive(Debug)]
struct Place {
    sources: Arc<Sources>,
    source: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connections = self
            .sources
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = connections.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests;
