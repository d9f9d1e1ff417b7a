//! Administration, metrics and health over HTTP/1.1, on TCP and on a Unix socket.
//!
//! Runs on the control thread; it never touches the request path. There is no authentication: the
//! administration's TCP socket belongs on loopback, and pages in a browser are refused.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_core::exposition::CONTENT_TYPE as MERGED_CONTENT_TYPE;

use crate::probes::Probes;
use crate::scrape::MergedMetrics;
use crate::telemetry::log::LogHandle;
use crate::telemetry::metrics::{CONTENT_TYPE, Metrics};

mod listen;
mod open;
mod readiness;

pub use listen::{Listener, bind_tcp, bind_unix};
use open::Open;

pub use readiness::{BlockReady, Readiness};

/// Connections at a time, per listener. A newcomer beyond them finds a place: the oldest connection of
/// the address with the most is closed.
const CONNECTIONS_MAX: usize = 64;

/// Those of one address that is not this machine's; more are closed at once. A kubelet or a Prometheus
/// has a few.
const CONNECTIONS_PER_ADDRESS_MAX: usize = 16;

/// For a request's head to arrive; also how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// For running responses to end after the shutdown signal.
const FINISH: Duration = Duration::from_secs(5);

/// A request's head.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// What the server shows and does.
pub trait AdminState: Send + Sync {
    /// The bootstrap configuration and what the control plane has sent.
    fn config(&self) -> Value;
    /// The certificate in use and the trust bundle; no key.
    fn certs(&self) -> Value;
    /// Services in use with their endpoints and the live state of each.
    fn endpoints(&self) -> Value;
    /// Whether traffic may come; if not, what is missing.
    fn ready(&self) -> Result<(), Vec<String>>;
    /// Begins the leaving sequence; returns at once.
    fn drain(&self);
}

/// What a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serves {
    /// Administration, metrics and health.
    Everything,
    /// Metrics and health.
    Metrics,
}

/// The server; one for all its listeners.
pub struct AdminServer {
    state: Arc<dyn AdminState>,
    metrics: Metrics,
    log: Option<LogHandle>,
    probes: Probes,
    merged: MergedMetrics,
}

impl std::fmt::Debug for AdminServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminServer").finish_non_exhaustive()
    }
}

impl AdminServer {
    /// Without a `log`, its level cannot be changed.
    pub fn new(
        state: Arc<dyn AdminState>,
        metrics: Metrics,
        log: Option<LogHandle>,
        probes: Probes,
        merged: MergedMetrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            state,
            metrics,
            log,
            probes,
            merged,
        })
    }

    /// Serves `listener` until `shutdown`; then finishes what runs, which is short.
    pub async fn serve(
        self: Arc<Self>,
        listener: Listener,
        serves: Serves,
        shutdown: CancellationToken,
    ) {
        let open = Open::new(CONNECTIONS_MAX, CONNECTIONS_PER_ADDRESS_MAX);
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "admin: accept failed");
                    // Out of descriptors: wait for some to come back.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(place) = open.admit(address) else {
                tracing::debug!(?address, "admin: too many connections of one address");
                continue;
            };
            let server = Arc::clone(&self);
            let shutdown = shutdown.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = place.evicted.cancelled() => {}
                    () = server.serve_connection(stream, serves, shutdown) => {}
                }
            });
        }
        tasks.close();
        // What a slow client keeps longer ends with the process.
        tokio::time::timeout(FINISH, tasks.wait()).await.ok();
    }

    async fn serve_connection(
        self: Arc<Self>,
        stream: listen::Stream,
        serves: Serves,
        shutdown: CancellationToken,
    ) {
        let service = service_fn(|request: Request<Incoming>| {
            let server = Arc::clone(&self);
            async move {
                let response = match server.probe(&request).await {
                    Some(probed) => probed,
                    None => server.answer(serves, &request).await,
                };
                Ok::<_, Infallible>(response)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "admin: connection failed");
        }
    }

    /// The answer to one of the kubelet's probes of the application.
    async fn probe(&self, request: &Request<Incoming>) -> Option<Response<Full<Bytes>>> {
        let reads = request.method() == Method::GET || request.method() == Method::HEAD;
        if !reads || from_a_page(request) {
            return None;
        }
        let (status, body) = self.probes.answer(request.uri().path()).await?;
        Some(text(status, body))
    }

    /// The answer to a request, whose body is not looked at.
    async fn answer(&self, serves: Serves, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if from_a_page(request) {
            return text(
                StatusCode::FORBIDDEN,
                "requests of web pages are refused; open the address itself, or use curl\n",
            );
        }
        let path = request.uri().path();
        let Some(endpoint) = Endpoint::find(path, serves) else {
            let paths = help(serves);
            let message = format!("there is no {path:?} here; there is:\n{paths}");
            return text(StatusCode::NOT_FOUND, message);
        };
        if !endpoint.allows(request.method(), request.uri().query()) {
            let allowed = endpoint.methods();
            let message = format!("{} {path}: use {allowed}\n", request.method());
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, message);
            let headers = response.headers_mut();
            headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
            return response;
        }
        match endpoint {
            Endpoint::Help => text(StatusCode::OK, help(serves)),
            Endpoint::Config => json_response(&self.state.config()),
            Endpoint::Certs => json_response(&self.state.certs()),
            Endpoint::Endpoints => json_response(&self.state.endpoints()),
            Endpoint::Log => self.log(request.uri().query()),
            Endpoint::Drain => {
                self.state.drain();
                text(StatusCode::ACCEPTED, "draining\n")
            }
            Endpoint::Metrics => exposition(CONTENT_TYPE, self.metrics.encode()),
            Endpoint::MergedMetrics => exposition(MERGED_CONTENT_TYPE, self.merged.encode().await),
            Endpoint::Healthz => text(StatusCode::OK, "live\n"),
            Endpoint::Readyz => match self.state.ready() {
                Ok(()) => text(StatusCode::OK, "ready\n"),
                Err(missing) => {
                    let missing = missing.join("\n");
                    let message = format!("not ready, waiting for:\n{missing}\n");
                    text(StatusCode::SERVICE_UNAVAILABLE, message)
                }
            },
        }
    }

    fn log(&self, query: Option<&str>) -> Response<Full<Bytes>> {
        let Some(log) = &self.log else {
            return text(
                StatusCode::NOT_FOUND,
                "the log of this process cannot be changed\n",
            );
        };
        let Some(level) = level(query) else {
            return json_response(&json!({"level": log.level()}));
        };
        match log.set_level(&level) {
            Ok(()) => {
                tracing::info!(level, "log level changed");
                json_response(&json!({"level": level}))
            }
            Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        }
    }
}

/// Everything there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    Help,
    Config,
    Certs,
    Endpoints,
    Log,
    Drain,
    Metrics,
    MergedMetrics,
    Healthz,
    Readyz,
}

/// Path, what is there, its help, and whether it is administration.
const ENDPOINTS: [(&str, Endpoint, &str, bool); 11] = [
    ("/", Endpoint::Help, "this page", false),
    ("/help", Endpoint::Help, "this page", false),
    (
        "/config",
        Endpoint::Config,
        "configuration in force, secrets hidden",
        true,
    ),
    (
        "/certs",
        Endpoint::Certs,
        "certificate in use and trust bundle",
        true,
    ),
    (
        "/endpoints",
        Endpoint::Endpoints,
        "services in use and their endpoints",
        true,
    ),
    (
        "/log",
        Endpoint::Log,
        "log level; POST /log?level=debug changes it",
        true,
    ),
    (
        "/drain",
        Endpoint::Drain,
        "POST: begin to leave the mesh",
        true,
    ),
    (
        "/metrics",
        Endpoint::Metrics,
        "metrics for Prometheus",
        false,
    ),
    (
        "/metrics/merged",
        Endpoint::MergedMetrics,
        "the same, and those of the application in a pod",
        false,
    ),
    (
        "/healthz",
        Endpoint::Healthz,
        "200 while the process lives",
        false,
    ),
    (
        "/readyz",
        Endpoint::Readyz,
        "200 when ready, else 503 and what is missing",
        false,
    ),
];

impl Endpoint {
    fn find(path: &str, serves: Serves) -> Option<Self> {
        let mut known = ENDPOINTS.into_iter();
        let found = known.find(|(known, ..)| *known == path);
        let (_, endpoint, _, admin) = found?;
        (!admin || serves == Serves::Everything).then_some(endpoint)
    }

    const fn methods(self) -> &'static str {
        match self {
            Self::Drain => "POST",
            Self::Log => "GET, HEAD, POST, PUT",
            Self::Help
            | Self::Config
            | Self::Certs
            | Self::Endpoints
            | Self::Metrics
            | Self::MergedMetrics
            | Self::Healthz
            | Self::Readyz => "GET, HEAD",
        }
    }

    /// A change needs a method that says so.
    fn allows(self, method: &Method, query: Option<&str>) -> bool {
        let reads = method == Method::GET || method == Method::HEAD;
        let writes = method == Method::POST || method == Method::PUT;
        match self {
            Self::Drain => method == Method::POST,
            Self::Log => writes || (reads && level(query).is_none()),
            Self::Help
            | Self::Config
            | Self::Certs
            | Self::Endpoints
            | Self::Metrics
            | Self::MergedMetrics
            | Self::Healthz
            | Self::Readyz => reads,
        }
    }
}

fn help(serves: Serves) -> String {
    ENDPOINTS
        .into_iter()
        .filter(|(_, _, _, admin)| !admin || serves == Serves::Everything)
        .map(|(path, _, help, _)| format!("{path:<15} {help}\n"))
        .collect()
}

/// The value of `level` in a query; commas and `=` of directives may be percent-encoded.
fn level(query: Option<&str>) -> Option<String> {
    let mut pairs = query?.split('&');
    let value = pairs.find_map(|pair| pair.strip_prefix("level="))?;
    let plain = [
        ("%2C", ","),
        ("%2c", ","),
        ("%3D", "="),
        ("%3d", "="),
        ("%3A", ":"),
        ("%3a", ":"),
    ];
    let decode = |text: String, (from, to): (&str, &str)| text.replace(from, to);
    Some(plain.into_iter().fold(value.to_owned(), decode))
}

/// Whether a script or form of a page sent this: browsers then say so (Fetch Metadata, and `Origin`
/// for whatever may change something). Such a page may come from anywhere, also through a name that
/// it made resolve to loopback.
fn from_a_page<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    let site = headers.get("sec-fetch-site");
    headers.contains_key(header::ORIGIN) || site.is_some_and(|site| site != "none")
}

fn json_response(value: &Value) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::OK, format!("{value:#}\n"));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

fn exposition(content_type: &'static str, metrics: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::OK, metrics);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, plain);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
