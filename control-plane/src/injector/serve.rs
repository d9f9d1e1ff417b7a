//! The admission webhook: the API server asks what becomes of a pod before it makes it.
//!
//! Whoever reaches the port may ask, because an API server shows no certificate unless it is set up to.
//! An answer tells nothing that the question did not, so what has to be bounded is work: connections
//! and reviews, each in all and by source.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
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
use weft_core::connections::Client;
use weft_core::slots::{Admission, Slots};

use super::{Namespace, Outcome, Settings, inject, shown};
use crate::kubernetes::names::WEBHOOK_PATH;
use crate::tls::ServerTls;

/// Largest review, bytes: what an API server takes of its own clients.
pub const REVIEW_MAX_BYTES: usize = 3 * 1024 * 1024;
/// How long a review may take to arrive, its wait for a place included. The webhook's configuration
/// gives the whole answer 10 s.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// Reviews whose bodies are held at the same time; others wait, unread.
const REVIEWS_MAX: usize = 64;
/// Those of one address. An API server has a few at a time.
const REVIEWS_PER_SOURCE_MAX: usize = 16;
/// Reviews that are decided at the same time: each is a tree of many times its bytes.
const DECISIONS_MAX: usize = 4;
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
    bodies: Semaphore,
    decisions: Arc<Semaphore>,
}

/// The places for reviews of one address.
#[derive(Debug, Clone)]
struct SourceReviews(Arc<Semaphore>);

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
            bodies: Semaphore::new(REVIEWS_MAX),
            decisions: Arc::new(Semaphore::new(DECISIONS_MAX)),
        }
    }

    async fn answer(
        self: Arc<Self>,
        body: Body,
        source: Option<SourceReviews>,
    ) -> Result<AdmissionReview<DynamicObject>, Unreadable> {
        // A body that does not come keeps a place of its own source, and for this long.
        let reading = async {
            let own = match &source {
                Some(SourceReviews(places)) => places.acquire().await.ok(),
                None => None,
            };
            let place = self.bodies.acquire().await;
            let bytes = to_bytes(body, REVIEW_MAX_BYTES).await;
            let turn = Arc::clone(&self.decisions).acquire_owned().await;
            (own, place, turn, bytes)
        };
        let Ok((_own, _place, turn, bytes)) = timeout(REVIEW_TIMEOUT, reading).await else {
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
        let webhook = Arc::clone(&self);
        let deciding = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let review = serde_json::from_slice(&bytes).map_err(|error| error.to_string());
            review.and_then(|review| webhook.decide(review))
        });
        let decided = deciding.await.map_err(|error| Unreadable {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            reason: format!("the review could not be decided: {error}"),
        })?;
        decided.map_err(|reason| Unreadable {
            status: StatusCode::BAD_REQUEST,
            reason: format!(
                "{}; allowed: an AdmissionReview of admission.k8s.io/v1",
                shown(&reason)
            ),
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
                Err(error) => shown(&error.to_string()),
            },
            Outcome::Refuse(refusal) => refusal.to_string(),
        };
        self.counters.count("refused");
        tracing::info!(uid = shown(&request.uid), %message, "a pod is refused");
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
    let source = request.extensions().get::<SourceReviews>().cloned();
    match Arc::clone(&webhook)
        .answer(request.into_body(), source)
        .await
    {
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
    let sources = Sources::new();
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
            tracing::debug!(%address, "too many connections of one source to the webhook: closed");
            continue;
        };
        let acceptor = TlsAcceptor::from(tls.load_full());
        let router = router.clone().layer(Extension(place.reviews.clone()));
        let stop = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = place.evicted.cancelled() => {}
                () = serve_connection(stream, acceptor, router, stop) => {}
            }
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

/// What sources have.
#[derive(Debug)]
struct Sources(Mutex<Open>);

/// Connections that are open.
#[derive(Debug)]
struct Open {
    slots: Slots,
    /// Ends a connection for another one.
    evictions: HashMap<u64, CancellationToken>,
    /// How many connections a source has, and their places for reviews.
    reviews: HashMap<IpAddr, (usize, SourceReviews)>,
}

impl Sources {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Open {
            slots: Slots::new(CONNECTIONS_MAX, CONNECTIONS_PER_SOURCE_MAX),
            evictions: HashMap::new(),
            reviews: HashMap::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection, unless its source has too many. Where all are taken, the oldest
    /// connection of the source with the most gives way: many sources together keep nobody out.
    fn admit(self: &Arc<Self>, address: SocketAddr) -> Option<Place> {
        let source = address.ip().to_canonical();
        let mut open = self.lock();
        let Admission::Admitted { ticket, evicted } = open.slots.admit(Client::Address(source))
        else {
            return None;
        };
        if let Some(other) = evicted.and_then(|ticket| open.evictions.remove(&ticket)) {
            other.cancel();
        }
        let evicted = CancellationToken::new();
        open.evictions.insert(ticket, evicted.clone());
        let (connections, reviews) = open.reviews.entry(source).or_insert_with(|| {
            let places = Semaphore::new(REVIEWS_PER_SOURCE_MAX);
            (0, SourceReviews(Arc::new(places)))
        });
        *connections += 1;
        Some(Place {
            sources: Arc::clone(self),
            source,
            ticket,
            evicted,
            reviews: reviews.clone(),
        })
    }
}

/// A connection's place, which it gives back.
#[derive(Debug)]
struct Place {
    sources: Arc<Sources>,
    source: IpAddr,
    ticket: u64,
    /// The connection has to end.
    evicted: CancellationToken,
    /// The places for reviews that all connections of the source share.
    reviews: SourceReviews,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.sources.lock();
        open.slots.remove(self.ticket);
        open.evictions.remove(&self.ticket);
        if let Some((connections, _reviews)) = open.reviews.get_mut(&self.source) {
            *connections -= 1;
            if *connections == 0 {
                open.reviews.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests;
