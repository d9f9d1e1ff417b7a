//! The programs inside the demo's workloads: a service, and the load.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

use super::PORT;
use crate::FAILED;

/// How slow the bad instance is.
const BAD_DELAY: Duration = Duration::from_millis(150);
/// One of so many of the bad instance's requests fails.
const BAD_ONE_OF: u32 = 3;

/// What the load has seen so far.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct LoadReport {
    /// Since it began.
    #[serde(flatten)]
    pub(super) total: Seen,
    /// Since the last report, about a second.
    pub(super) second: Seen,
}

/// Requests that ended, as their caller saw them.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) requests: u64,
    pub(super) failures: u64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

impl Seen {
    /// Share of requests that were answered well, in percent; 100 where there was none.
    pub(super) fn success_percent(&self) -> f64 {
        if self.requests == 0 {
            return 100.0;
        }
        100.0 * (self.requests - self.failures) as f64 / self.requests as f64
    }
}

/// One of the demo's services.
#[derive(Debug, Args)]
pub(crate) struct AppArgs {
    /// Its name.
    #[arg(long)]
    name: String,
    /// What it calls.
    #[arg(long)]
    upstream: Option<String>,
    /// Slow, and failing often, as long as this file is there.
    #[arg(long)]
    bad_while: Option<PathBuf>,
}

/// Runs a service of the demo.
pub(crate) fn app(args: &AppArgs) -> ExitCode {
    match crate::block_on(serve(args)) {
        Ok(result) => crate::outcome(result),
        Err(error) => {
            eprintln!("{}: {error}", args.name);
            ExitCode::from(FAILED)
        }
    }
}

async fn serve(args: &AppArgs) -> std::io::Result<()> {
    let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], PORT))).await?;
    // As the first process of a container nothing ends it that it does not ask for.
    let mut stop = signal(SignalKind::terminate())?;
    let backend = args
        .upstream
        .clone()
        .map(|target| Arc::new(Connections::new(target)));
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => accepted?,
            _ = stop.recv() => return Ok(()),
        };
        stream.set_nodelay(true)?;
        let (backend, name) = (backend.clone(), args.name.clone());
        let switch: Option<Arc<Path>> = args.bad_while.as_deref().map(Into::into);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (backend, name) = (backend.clone(), name.clone());
                let bad = switch.as_ref().is_some_and(|switch| switch.exists());
                async move { Ok::<_, Infallible>(respond(&request, backend, &name, bad).await) }
            });
            let builder = hyper::server::conn::http1::Builder::new();
            if let Err(error) = builder
                .serve_connection(TokioIo::new(stream), service)
                .await
            {
                tracing::debug!(%error, "connection");
            }
        });
    }
}

/// Trace context is the application's to pass on: no sidecar can know which request belongs to
/// which.
const PASSED_ON: [&str; 2] = ["traceparent", "tracestate"];

async fn respond(
    request: &Request<Incoming>,
    backend: Option<Arc<Connections>>,
    name: &str,
    bad: bool,
) -> Response<Full<Bytes>> {
    let text = |status: StatusCode, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
    };
    if bad {
        tokio::time::sleep(BAD_DELAY).await;
        if fastrand::u32(..).is_multiple_of(BAD_ONE_OF) {
            return text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("{name}: not today\n"),
            );
        }
    }
    let Some(backend) = backend else {
        return text(StatusCode::OK, format!("{name}: 42 in stock\n"));
    };
    let passed = PASSED_ON.iter().filter_map(|name| {
        let value = request.headers().get(*name)?;
        Some((*name, value.clone()))
    });
    match backend.get("/", &passed.collect::<Vec<_>>()).await {
        Ok((status, body)) => text(
            status,
            format!("{name}: {}", String::from_utf8_lossy(&body)),
        ),
        Err(error) => text(StatusCode::BAD_GATEWAY, format!("{name}: {error}\n")),
    }
}

/// A handful of kept connections to one target.
struct Connections {
    target: String,
    idle: std::sync::Mutex<Vec<SendRequest<Empty<Bytes>>>>,
}

type Answer = Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>>;

impl Connections {
    fn new(target: String) -> Self {
        Self {
            target,
            idle: std::sync::Mutex::default(),
        }
    }

    fn take(&self) -> Option<SendRequest<Empty<Bytes>>> {
        let mut idle = self
            .idle
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        idle.retain(|sender| !sender.is_closed());
        idle.pop()
    }

    async fn get(&self, path: &str, headers: &[(&str, http::HeaderValue)]) -> Answer {
        let mut sender = match self.take() {
            Some(sender) => sender,
            None => {
                let stream = TcpStream::connect(&self.target).await?;
                stream.set_nodelay(true)?;
                let io = TokioIo::new(stream);
                let (sender, connection) = hyper::client::conn::http1::handshake(io).await?;
                tokio::spawn(connection);
                sender
            }
        };
        let mut request = Request::get(path).header("host", &self.target);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        sender.ready().await?;
        let response = sender.send_request(request.body(Empty::new())?).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        let mut idle = self
            .idle
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        idle.push(sender);
        Ok((status, body))
    }
}

/// The demo's load.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// HOST:PORT.
    #[arg(long)]
    target: String,
    /// Requests per second.
    #[arg(long)]
    rate: u32,
}

/// Runs the load of the demo: a line of JSON every second.
pub(crate) fn load(args: &LoadArgs) -> ExitCode {
    match crate::block_on(push(args)) {
        Ok(result) => crate::outcome(result),
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::from(FAILED)
        }
    }
}

#[expect(clippy::print_stdout, reason = "the demo reads it")]
async fn push(args: &LoadArgs) -> Result<(), String> {
    let connections = Arc::new(Connections::new(args.target.clone()));
    let every = Duration::from_secs(1) / args.rate.clamp(1, 10_000);
    let mut tick = tokio::time::interval(every);
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.tick().await;
    let (done, mut results) = tokio::sync::mpsc::channel(1024);
    let mut total = Window::new()?;
    let mut second_window = Window::new()?;
    let mut stop = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    loop {
        tokio::select! {
            _ = stop.recv() => return Ok(()),
            _ = tick.tick() => {
                let (connections, done) = (Arc::clone(&connections), done.clone());
                tokio::spawn(async move {
                    let began = Instant::now();
                    let result = connections.get("/", &[]).await;
                    let good = matches!(result, Ok((status, _)) if status.is_success());
                    if let Err(error) = result {
                        eprintln!("load: {error}");
                    }
                    let _stopping = done.send((began.elapsed(), good)).await;
                });
            }
            Some((latency, good)) = results.recv() => {
                total.record(latency, good);
                second_window.record(latency, good);
            }
            _ = second.tick() => {
                let report = LoadReport {
                    total: total.seen(),
                    second: std::mem::replace(&mut second_window, Window::new()?).seen(),
                };
                let line = serde_json::to_string(&report).map_err(|error| error.to_string())?;
                println!("{line}");
            }
        }
    }
}

/// Requests of some time.
struct Window {
    seen: Seen,
    latencies: Histogram<u64>,
}

impl Window {
    fn new() -> Result<Self, String> {
        Ok(Self {
            seen: Seen::default(),
            latencies: Histogram::new(3).map_err(|error| error.to_string())?,
        })
    }

    fn record(&mut self, latency: Duration, good: bool) {
        self.seen.requests += 1;
        self.seen.failures += u64::from(!good);
        self.latencies += latency.as_micros() as u64;
    }

    fn seen(&self) -> Seen {
        let quantile = |share| self.latencies.value_at_quantile(share) as f64 / 1000.0;
        Seen {
            p50_ms: quantile(0.5),
            p99_ms: quantile(0.99),
            ..self.seen
        }
    }
}
