//! `weft demo`: a whole mesh on one machine. One instance turns bad and well again; its breaker opens
//! and closes, and the caller notices nothing.

mod app;
mod jaeger;
mod parts;
mod phases;
mod view;
mod watch;

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use clap::{Args, ValueEnum};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::ChildStdout;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;
use weft_control_plane::model::parse_duration;

use crate::FAILED;
use app::LoadReport;
pub(crate) use app::{AppArgs, LoadArgs, app, load};
use parts::{Parts, Spans};
use phases::{Phase, Schedule};
use view::{PhaseSummary, Summary};
use watch::{Breakers, counts};

const NAMESPACE: &str = "shop";
const PORT: u16 = 8080;
/// What callers of stock do about an instance that is bad.
const POLICY: &str = include_str!("policy.yaml");
/// Everything has to be up by then.
const START_MAX: Duration = Duration::from_secs(30);
/// How often phases, breakers and parts are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The children notice this and end with their parent.
pub(crate) const DIE_WITH_PARENT: &str = "WEFT_DIE_WITH_PARENT";

/// Shows a whole mesh on this machine.
///
/// Starts a control plane, three services (web calls orders, orders calls stock, which has two
/// instances), each with a sidecar as `weft run` gives it, and a load. All is well at first; then
/// one instance of stock turns slow and fails often, and later is well again. A TrafficPolicy, which
/// is printed, has the breaker of that instance open, try again, and close; the load sees no
/// failure.
///
/// Examples:
///   weft demo
///   weft demo --for 30s --output json
///   weft demo --otlp-endpoint http://127.0.0.1:4317 --jaeger http://127.0.0.1:16686
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct DemoArgs {
    /// Goes through its phases once in this time; otherwise again and again, until Ctrl-C.
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
    /// Jaeger's interface, http://HOST:PORT: every request is traced, and the address of a trace
    /// worth opening is printed.
    #[arg(long, value_name = "URL", requires = "otlp_endpoint")]
    jaeger: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum DemoOutput {
    /// A table that is renewed every second.
    #[default]
    Table,
    /// One object at the end.
    Json,
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

async fn show(args: &DemoArgs) -> Result<(), String> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let dir = std::env::temp_dir().join(format!("weft-demo-{}", std::process::id()));
    std::fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut parts = Parts::new(dir);
    let endpoint = match &args.otlp_endpoint {
        Some(endpoint) => endpoint.clone(),
        None => collect().await.map_err(|error| error.to_string())?,
    };
    let spans = Spans {
        endpoint,
        shown: args.jaeger.is_some(),
    };
    let mut play = Play::new(args);
    let ended = tokio::select! {
        result = play.run(&mut parts, &spans) => result,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    let summary = match (&ended, play.began) {
        (Ok(()), Some(_)) => Some(play.summary(&parts).await),
        _ => None,
    };
    parts.stop().await;
    ended?;
    if let Some(summary) = summary {
        view::finish(&summary, args.output);
    }
    Ok(())
}

/// The course of a demo.
struct Play<'a> {
    args: &'a DemoArgs,
    schedule: Schedule,
    /// Traces of before are another demo's.
    started: SystemTime,
    /// When the first phase began, once everything was up.
    began: Option<Instant>,
    phase: Phase,
    report: LoadReport,
    breakers: Breakers,
    phases: Vec<PhaseSummary>,
}

impl<'a> Play<'a> {
    fn new(args: &'a DemoArgs) -> Self {
        Self {
            args,
            schedule: Schedule::new(args.duration),
            started: SystemTime::now(),
            began: None,
            phase: Phase::Well,
            report: LoadReport::default(),
            breakers: Breakers::default(),
            phases: Phase::ALL.map(PhaseSummary::new).into(),
        }
    }

    /// Runs until its time is over.
    async fn run(&mut self, parts: &mut Parts, spans: &Spans) -> Result<(), String> {
        let load = parts.start(self.args.rate, spans)?;
        let mut lines = BufReader::new(load).lines();
        self.wait_until_up(parts, &mut lines).await?;
        parts.apply(POLICY).await?;
        if self.args.output == DemoOutput::Table {
            view::begin(POLICY);
        }
        let began = *self.began.insert(Instant::now());
        let mut before = counts(&parts.dir).await;
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                line = lines.next_line() => {
                    let now = counts(&parts.dir).await;
                    self.handle_report(parts, line.ok().flatten())?;
                    let phase = &mut self.phases[self.phase as usize];
                    phase.add(&self.report.second, &before, &now);
                    if self.args.output == DemoOutput::Table {
                        view::table(&self.view(parts), &before, &now);
                    }
                    before = now;
                }
                _ = look.tick() => {
                    parts.check()?;
                    let elapsed = began.elapsed();
                    let phase = self.schedule.phase(elapsed);
                    if phase != self.phase {
                        self.phase = phase;
                        parts.set_bad(phase == Phase::Bad)?;
                    }
                    self.breakers.update(&parts.dir).await;
                    if self.args.duration.is_some_and(|limit| elapsed >= limit) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Until the load has been answered.
    async fn wait_until_up(
        &mut self,
        parts: &mut Parts,
        lines: &mut tokio::io::Lines<BufReader<ChildStdout>>,
    ) -> Result<(), String> {
        let deadline = tokio::time::sleep(START_MAX);
        let mut deadline = std::pin::pin!(deadline);
        let mut look = tokio::time::interval(LOOK_EVERY);
        while self.report.total.requests == 0 {
            tokio::select! {
                line = lines.next_line() => self.handle_report(parts, line.ok().flatten())?,
                _ = look.tick() => parts.check()?,
                () = &mut deadline => return Err(format!("not up after {START_MAX:?}")),
            }
        }
        Ok(())
    }

    fn handle_report(&mut self, parts: &mut Parts, line: Option<String>) -> Result<(), String> {
        let Some(line) = line else {
            parts.check()?;
            return Err("the load has ended".to_owned());
        };
        self.report = serde_json::from_str(&line)
            .map_err(|error| format!("the load said {line:?}: {error}"))?;
        Ok(())
    }

    fn view(&self, parts: &Parts) -> view::View<'_> {
        view::View {
            phase: self.phase,
            report: &self.report,
            breakers: &self.breakers,
            address: parts.address(),
        }
    }

    /// What there is to say at the end, while the sidecars can still be asked.
    async fn summary(&mut self, parts: &Parts) -> Summary {
        self.breakers.update(&parts.dir).await;
        let counts = counts(&parts.dir).await;
        let trace = match &self.args.jaeger {
            Some(ui) => Some(jaeger::find(ui, self.started).await),
            None => None,
        };
        let total = self.report.total;
        Summary {
            requests: total.requests,
            failures: total.failures,
            mtls_requests: counts.mtls,
            plaintext_requests: counts.plaintext,
            p50_ms: total.p50_ms,
            p99_ms: total.p99_ms,
            spans_exported: counts.spans,
            bad_instance_requests: counts.bad(),
            seconds: self
                .began
                .map_or(0.0, |began| began.elapsed().as_secs_f64()),
            phases: std::mem::take(&mut self.phases),
            transitions: std::mem::take(&mut self.breakers.transitions),
            trace,
        }
    }
}

/// A collector that forgets what it is sent, for a demo without one.
async fn collect() -> std::io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let serving = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(Collector))
        .serve_with_incoming(incoming);
    tokio::spawn(serving);
    Ok(format!("http://{address}"))
}

struct Collector;

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        _request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}
