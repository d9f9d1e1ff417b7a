//! `weft demo`: a whole mesh on one machine, and a bad instance that nobody notices.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use weft_control_plane::app::parse_duration;
use weft_control_plane::client::ADDRESS_VARIABLE;

use crate::FAILED;

/// The demo's services: name, workload, what it calls, whether it is the bad one.
const SERVICES: [(&str, &str, Option<&str>, bool); 4] = [
    ("stock", "stock-1", None, false),
    ("stock", "stock-2", None, true),
    ("orders", "orders-1", Some("stock"), false),
    ("web", "web-1", Some("orders"), false),
];
const NAMESPACE: &str = "shop";
const PORT: u16 = 8080;
/// Everything has to be up by then.
const START_MAX: Duration = Duration::from_secs(30);
/// The children notice this and end with their parent.
pub(crate) const DIE_WITH_PARENT: &str = "WEFT_DIE_WITH_PARENT";

/// Shows a whole mesh on this machine.
///
/// Starts a control plane, three services (web calls orders, orders calls stock; one of two
/// instances of stock is slow and fails often), each with a sidecar as `weft run` gives it, and a
/// load. The mesh hides the bad instance.
///
/// Examples:
///   weft demo
///   weft demo --for 30s --output json
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct DemoArgs {
    /// Ends after this long; otherwise with Ctrl-C.
    #[arg(long = "for", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// What is printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: DemoOutput,
    /// Requests per second.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Where spans go; by default they are only counted.
    #[arg(long)]
    otlp_endpoint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum DemoOutput {
    /// A table that is renewed every second.
    #[default]
    Table,
    /// One object at the end.
    Json,
}

/// What the load has seen so far.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct LoadReport {
    requests: u64,
    failures: u64,
    p50_ms: f64,
    p99_ms: f64,
}

/// What is printed at the end.
#[derive(Debug, Serialize)]
struct Summary {
    requests: u64,
    failures: u64,
    mtls_requests: u64,
    plaintext_requests: u64,
    p50_ms: f64,
    p99_ms: f64,
    spans_exported: u64,
    bad_instance_requests: u64,
    seconds: f64,
}

/// Runs the command.
pub(crate) fn demo(args: &DemoArgs) -> ExitCode {
    match crate::block_on(show(args)) {
        Ok(result) => crate::outcome(result),
        Err(error) => {
            eprintln!("weft demo: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// The parts of the demo; everything ends when this is dropped.
struct Parts {
    dir: PathBuf,
    children: Vec<(String, Child)>,
}

impl Parts {
    fn spawn(&mut self, name: &str, arguments: &[&str], stdout: Stdio) -> Result<(), String> {
        let log = std::fs::File::create(self.dir.join(format!("{name}.log")));
        let log = log.map_err(|error| format!("{}: {error}", self.dir.display()))?;
        let child = Command::new(own_executable()?)
            .args(arguments)
            .env(
                ADDRESS_VARIABLE,
                format!("unix:{}", self.dir.join("data").display()),
            )
            .env(DIE_WITH_PARENT, "1")
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(log)
            .kill_on_drop(true)
            .spawn();
        let child = child.map_err(|error| format!("starting {name}: {error}"))?;
        self.children.push((name.to_owned(), child));
        Ok(())
    }

    /// `Err` when one of the parts has ended by itself.
    fn check(&mut self) -> Result<(), String> {
        for (name, child) in &mut self.children {
            if let Ok(Some(status)) = child.try_wait() {
                let log = std::fs::read_to_string(self.dir.join(format!("{name}.log")));
                let log = log.unwrap_or_default();
                let lines: Vec<&str> = log.lines().rev().take(5).collect();
                let tail: Vec<&str> = lines.into_iter().rev().collect();
                return Err(format!(
                    "{name} has ended ({status}):\n  {}",
                    tail.join("\n  ")
                ));
            }
        }
        Ok(())
    }

    async fn stop(&mut self) {
        // Callers first, the control plane last.
        while let Some((name, mut child)) = self.children.pop() {
            if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok())
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
            {
                let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            if tokio::time::timeout(Duration::from_secs(5), child.wait())
                .await
                .is_err()
            {
                tracing::warn!(name, "did not end; killed");
                let _gone = child.kill().await;
            }
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.dir);
    }
}

async fn show(args: &DemoArgs) -> Result<(), String> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let dir = std::env::temp_dir().join(format!("weft-demo-{}", std::process::id()));
    std::fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut parts = Parts {
        dir,
        children: Vec::new(),
    };
    let spans = Arc::new(AtomicU64::new(0));
    let collector = collect(Arc::clone(&spans))
        .await
        .map_err(|error| error.to_string())?;
    let otlp = args.otlp_endpoint.clone().unwrap_or(collector);
    let result = tokio::select! {
        result = play(args, &mut parts, &otlp, &spans) => result,
        _ = interrupt.recv() => Ok(None),
        _ = terminate.recv() => Ok(None),
    };
    parts.stop().await;
    let summary = result?;
    match (summary, args.output) {
        (Some(mut summary), output) => {
            summary.spans_exported = spans.load(Ordering::Relaxed);
            finish(&summary, output);
            Ok(())
        }
        (None, _) => Ok(()),
    }
}

async fn play(
    args: &DemoArgs,
    parts: &mut Parts,
    otlp: &str,
    spans: &Arc<AtomicU64>,
) -> Result<Option<Summary>, String> {
    start(args, parts, otlp)?;
    let (_, load) = parts.children.last_mut().ok_or("no load")?;
    let stdout = load.stdout.take().ok_or("the load has no output")?;
    let mut lines = BufReader::new(stdout).lines();
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    let waited = Instant::now();
    let mut began: Option<Instant> = None;
    let mut report = LoadReport::default();
    loop {
        tokio::select! {
            line = lines.next_line() => match line {
                Ok(Some(line)) => {
                    if let Ok(latest) = serde_json::from_str(&line) {
                        report = latest;
                        began.get_or_insert_with(Instant::now);
                        if args.output == DemoOutput::Table {
                            table(&parts.dir, &report, spans.load(Ordering::Relaxed)).await;
                        }
                    }
                }
                Ok(None) | Err(_) => {
                    parts.check()?;
                    return Err("the load has ended".to_owned());
                }
            },
            _ = tick.tick() => {
                parts.check()?;
                if began.is_none() && waited.elapsed() > START_MAX {
                    return Err(format!("not up after {START_MAX:?}"));
                }
            }
        }
        if let (Some(began), Some(limit)) = (began, args.duration)
            && began.elapsed() >= limit
        {
            let counts = counts(&parts.dir).await;
            return Ok(Some(Summary {
                requests: report.requests,
                failures: report.failures,
                mtls_requests: counts.mtls,
                plaintext_requests: counts.plaintext,
                p50_ms: report.p50_ms,
                p99_ms: report.p99_ms,
                spans_exported: 0,
                bad_instance_requests: counts.bad,
                seconds: began.elapsed().as_secs_f64(),
            }));
        }
    }
}

#[expect(clippy::too_many_lines, reason = "the command lines of five programs")]
fn start(args: &DemoArgs, parts: &mut Parts, otlp: &str) -> Result<(), String> {
    let data = parts.dir.join("data").display().to_string();
    let any = "127.0.0.1:0";
    let control = [
        "control-plane",
        "--data-dir",
        &data,
        "--listen",
        any,
        "--metrics-listen",
        any,
    ];
    parts.spawn("control-plane", &control, Stdio::null())?;
    let exe = own_executable()?.display().to_string();
    for (service, workload, upstream, bad) in SERVICES {
        let socket = socket(&parts.dir, workload).display().to_string();
        let port = format!("{PORT}:http");
        let mut arguments = vec![
            "run",
            "--name",
            workload,
            "--namespace",
            NAMESPACE,
            "--service",
            service,
            "--port",
            &port,
            "--admin-socket",
            &socket,
            "--otlp-endpoint",
            otlp,
            "--sample-ratio",
            "0.05",
        ];
        if let Some(upstream) = upstream {
            arguments.extend(["--wait-for", upstream]);
        }
        let url = upstream.map(|upstream| format!("{upstream}.{NAMESPACE}.mesh:{PORT}"));
        arguments.extend(["--", &exe, "__demo-app", "--name", workload]);
        if let Some(url) = &url {
            arguments.extend(["--upstream", url]);
        }
        if bad {
            arguments.push("--bad");
        }
        parts.spawn(workload, &arguments, Stdio::null())?;
    }
    let target = format!("web.{NAMESPACE}.mesh:{PORT}");
    let rate = args.rate.to_string();
    let socket = socket(&parts.dir, "load").display().to_string();
    let arguments = [
        "run",
        "--name",
        "load",
        "--namespace",
        NAMESPACE,
        "--wait-for",
        "web",
        "--admin-socket",
        &socket,
        "--otlp-endpoint",
        otlp,
        "--sample-ratio",
        "0.05",
        "--",
        &exe,
        "__demo-load",
        "--target",
        &target,
        "--rate",
        &rate,
    ];
    parts.spawn("load", &arguments, Stdio::piped())
}

fn socket(dir: &Path, workload: &str) -> PathBuf {
    dir.join(format!("{workload}.sock"))
}

fn own_executable() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|error| format!("own executable: {error}"))
}

#[expect(clippy::print_stdout, reason = "this is what was asked for")]
async fn table(dir: &Path, report: &LoadReport, spans: u64) {
    use std::io::IsTerminal;
    let counts = counts(dir).await;
    let share = if report.requests == 0 {
        100.0
    } else {
        100.0 * (report.requests - report.failures) as f64 / report.requests as f64
    };
    if std::io::stdout().is_terminal() {
        print!("\x1b[2J\x1b[H");
    }
    println!(
        "web.shop.mesh: {} requests, {share:.2} % successful, p50 {:.1} ms, p99 {:.1} ms",
        report.requests, report.p50_ms, report.p99_ms
    );
    println!(
        "mutual TLS {}, plaintext {}, spans {spans}",
        counts.mtls, counts.plaintext
    );
    println!("stock, as orders sees it:");
    for row in endpoints(dir, "orders-1").await {
        println!("  {row}");
    }
    println!("try next, in another terminal:");
    println!(
        "  export {ADDRESS_VARIABLE}=unix:{}",
        dir.join("data").display()
    );
    println!(
        "  weft get services; weft proxies; weft run --name me --namespace shop -- curl -si http://web:8080/"
    );
    println!();
}

#[expect(clippy::print_stdout, reason = "this is what was asked for")]
fn finish(summary: &Summary, output: DemoOutput) {
    match output {
        DemoOutput::Json => match serde_json::to_string(summary) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("weft demo: {error}"),
        },
        DemoOutput::Table => {
            println!(
                "{} requests in {:.0} s, {} failed at the caller",
                summary.requests, summary.seconds, summary.failures
            );
            println!(
                "{} requests over mutual TLS, {} in plaintext",
                summary.mtls_requests, summary.plaintext_requests
            );
            println!(
                "{} reached the bad instance of stock",
                summary.bad_instance_requests
            );
            println!(
                "p50 {:.1} ms, p99 {:.1} ms; {} spans",
                summary.p50_ms, summary.p99_ms, summary.spans_exported
            );
        }
    }
}

#[derive(Default)]
struct Counts {
    mtls: u64,
    plaintext: u64,
    bad: u64,
}

/// What the sidecars have counted: every request once, at the server's side.
async fn counts(dir: &Path) -> Counts {
    let mut counts = Counts::default();
    for (_, workload, _, bad) in SERVICES {
        let Ok(text) = fetch(&socket(dir, workload), "/metrics").await else {
            continue;
        };
        let sum = |transport: &str| -> u64 {
            let rows = text.lines().filter(|line| {
                line.starts_with("weft_transport_requests_total{")
                    && line.contains("direction=\"inbound\"")
                    && line.contains(transport)
            });
            let values = rows.filter_map(|row| row.rsplit(' ').next()?.parse::<f64>().ok());
            values.sum::<f64>() as u64
        };
        let mtls = sum("transport=\"mtls\"");
        counts.mtls += mtls;
        counts.plaintext += sum("transport=\"plaintext\"");
        if bad {
            counts.bad += mtls;
        }
    }
    counts
}

async fn endpoints(dir: &Path, workload: &str) -> Vec<String> {
    let Ok(text) = fetch(&socket(dir, workload), "/endpoints").await else {
        return Vec::new();
    };
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap_or_default();
    rows.iter()
        .map(|row| {
            let name = row["workload"].as_str().unwrap_or_default();
            let breaker = row["breaker"].as_str().unwrap_or_default();
            format!("{name}: breaker {breaker}")
        })
        .collect()
}

async fn fetch(socket: &Path, path: &str) -> Result<String, Box<dyn std::error::Error>> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(path)
        .header("host", "weft")
        .body(Empty::<Bytes>::new())?;
    let body = sender.send_request(request).await?.into_body();
    let bytes = body.collect().await?.to_bytes();
    Ok(String::from_utf8(bytes.to_vec())?)
}

/// Counts spans, for those who have no Jaeger at hand.
async fn collect(spans: Arc<AtomicU64>) -> std::io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let serving = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(Collector { spans }))
        .serve_with_incoming(incoming);
    tokio::spawn(serving);
    Ok(format!("http://{address}"))
}

struct Collector {
    spans: Arc<AtomicU64>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let resources = request.into_inner().resource_spans;
        let scopes = resources.iter().flat_map(|resource| &resource.scope_spans);
        let count: usize = scopes.map(|scope| scope.spans.len()).sum();
        self.spans.fetch_add(count as u64, Ordering::Relaxed);
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
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
    /// Slow, and failing often.
    #[arg(long)]
    bad: bool,
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
    let backend = args
        .upstream
        .clone()
        .map(|target| Arc::new(Connections::new(target)));
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (backend, name, bad) = (backend.clone(), args.name.clone(), args.bad);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (backend, name) = (backend.clone(), name.clone());
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
        tokio::time::sleep(Duration::from_millis(150)).await;
        if dice().is_multiple_of(3) {
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

/// Nothing that matters is decided by it.
fn dice() -> u32 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.subsec_micros())
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
    let mut latencies = Histogram::<u64>::new(3).map_err(|error| error.to_string())?;
    let mut report = LoadReport::default();
    loop {
        tokio::select! {
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
                report.requests += 1;
                report.failures += u64::from(!good);
                latencies += latency.as_micros() as u64;
            }
            _ = second.tick() => {
                report.p50_ms = latencies.value_at_quantile(0.5) as f64 / 1000.0;
                report.p99_ms = latencies.value_at_quantile(0.99) as f64 / 1000.0;
                let line = serde_json::to_string(&report).map_err(|error| error.to_string())?;
                println!("{line}");
            }
        }
    }
}
