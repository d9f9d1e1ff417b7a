//! `weft run`: a program as a workload of the mesh, with its sidecar in this process.

mod configure;
mod dir;
mod isolation;
mod plan;
mod program;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use weft_control_plane::model::parse_duration;
use weft_proxy::app::Sidecar;

use self::configure::{Kept, configure};
use self::dir::RunDir;
use self::isolation::Isolation;
use self::plan::{Plan, plan};
use self::program::{Signals, follow};
use crate::{FAILED, INVALID};

/// How long the control plane is waited for.
const CONTROL_PLANE_WAIT: Duration = Duration::from_secs(10);
/// How long other services are waited for.
const SERVICE_WAIT: Duration = Duration::from_secs(60);
/// Limits of a sidecar's own memory: most workloads are small.
const WORKERS_DEFAULT: usize = 1;

/// Runs a program as a workload of the mesh.
///
/// The program gets a network namespace of its own with nothing in it but loopback, its own address
/// and rules that send its traffic to the sidecar, which is this process. No root is needed where
/// user namespaces are allowed.
///
/// Examples:
///   weft run --name web --namespace shop --port 8080 -- python3 -m http.server 8080
///   weft run --name me --namespace shop --wait-for web -- curl http://web.shop.mesh:8080/
///   weft run --name db --port 5432:tcp@loopback -- postgres -D data
///   weft run --name web --port 8080 --capture none --upstream orders=127.0.0.1:9001 -- ./web
///
/// The program finds Weft's secrets covered: the control plane's data directory, the sidecar's state,
/// sockets and tokens. With --capture none, too, which is why that needs namespaces; --no-isolation
/// does without.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct RunArgs {
    /// The workload's name.
    #[arg(long)]
    name: String,
    /// Its namespace.
    #[arg(long, default_value = "default")]
    namespace: String,
    /// The service it serves, NAME or NAMESPACE/NAME [default: its own name, if it has ports].
    #[arg(long)]
    service: Vec<String>,
    /// A port it serves: PORT[:PROTOCOL][@loopback].
    #[arg(long = "port")]
    ports: Vec<String>,
    /// Opens a port of it on this machine: [ADDRESS:]HOST-PORT:PORT.
    #[arg(long)]
    publish: Vec<String>,
    /// Starts the program only when somebody serves this service.
    #[arg(long)]
    wait_for: Vec<String>,
    /// A port of this machine's loopback that the program reaches as host.mesh:PORT.
    #[arg(long)]
    host_port: Vec<u16>,
    /// Whom the program runs as; only root can name another.
    #[arg(long)]
    user: Option<String>,
    /// A control plane elsewhere, HOST:PORT.
    #[arg(long, requires = "token_file")]
    join: Option<String>,
    /// The join token for it.
    #[arg(long, requires = "join")]
    token_file: Option<PathBuf>,
    /// The address that others' sidecars are told to dial [default: 127.0.0.1].
    #[arg(long)]
    advertise: Option<IpAddr>,
    /// How the program's traffic comes to the sidecar.
    #[arg(long, value_enum, default_value_t = Capture::Netns)]
    capture: Capture,
    /// With --capture none: no namespace at all, for machines that refuse them. The program then
    /// reads whatever its user may read, the sidecar's keys included if it runs as the same user.
    #[arg(long)]
    no_isolation: bool,
    /// With --capture none: a local port that leads to a service, NAME[:PORT]=ADDRESS:PORT.
    #[arg(long)]
    upstream: Vec<String>,
    /// Where spans go, http://HOST:PORT of an OTLP/gRPC collector.
    #[arg(long, env = "WEFT_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// The share of new traces that are recorded.
    #[arg(long, env = "WEFT_SAMPLE_RATIO")]
    sample_ratio: Option<f64>,
    /// Where one line per request goes: off, stdout, or a file.
    #[arg(long, default_value = "off")]
    access_log: String,
    /// The sidecar's admin interface, a Unix socket.
    #[arg(long)]
    admin_socket: Option<PathBuf>,
    /// Keeps the sidecar's certificate, configuration and ports here, so that it comes back serving
    /// while the control plane is away [default: nothing is kept].
    #[arg(long)]
    state_dir: Option<PathBuf>,
    /// The sidecar's worker threads.
    #[arg(long, default_value_t = WORKERS_DEFAULT)]
    workers: usize,
    /// What the sidecar logs.
    #[arg(long, default_value = "warn", env = "WEFT_LOG")]
    log_level: String,
    /// How long running requests may take to end when the program is stopped.
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    drain: Duration,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// How the program's traffic comes to the sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Capture {
    /// The program has a network namespace of its own; everything is redirected.
    Netns,
    /// Nothing is redirected: the program uses local ports (--upstream). Mount and PID namespaces
    /// of its own it has all the same.
    None,
}

/// What went wrong, with its exit code.
struct Failure(String, u8);

impl<E: std::fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string(), FAILED)
    }
}

/// Runs the command.
pub(crate) fn run(args: RunArgs) -> ExitCode {
    let plan = match plan(&args) {
        Ok(plan) => plan,
        Err(reason) => {
            eprintln!("weft run: {reason}");
            return ExitCode::from(INVALID);
        }
    };
    // First of all, while there is one thread.
    let isolation = match Isolation::enter(&args) {
        Ok(isolation) => isolation,
        Err(reason) => {
            eprintln!("weft run: {reason}");
            return ExitCode::from(FAILED);
        }
    };
    let result = crate::block_on(beside(args, plan, isolation));
    match result {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err(Failure(reason, code))) => {
            eprintln!("weft run: {reason}");
            ExitCode::from(code)
        }
        Err(error) => {
            eprintln!("weft run: {error}");
            ExitCode::from(FAILED)
        }
    }
}

async fn beside(args: RunArgs, plan: Plan, isolation: Isolation) -> Result<u8, Failure> {
    let dir = RunDir::make(&args)?;
    let (config, offline) = configure(&args, &plan, &dir).await?;
    let kept = Kept::of(&args, &config);
    let log = weft_proxy::telemetry::log::init(&config.log)?;
    let mut shelter = isolation.shelter(&args, &plan, config.worker_count())?;
    let inside = shelter.take_inside(&args);
    let mut signals = Signals::register()?;
    let mut sidecar = tokio::select! {
        started = Sidecar::start(config, inside, &plan.publish, Some(log)) => started?,
        () = tokio::time::sleep(CONTROL_PLANE_WAIT) => {
            return Err(Failure(format!("no certificate within {CONTROL_PLANE_WAIT:?}: is the control plane there?"), FAILED));
        }
        _ = signals.any() => return Ok(130),
    };
    if let Some(kept) = kept {
        kept.write(&sidecar)?;
    }
    let prepared = prepare(&sidecar, &plan, offline).await;
    let code = match prepared {
        Err(failure) => Err(failure),
        Ok(()) => {
            // Now everything that is to be hidden exists.
            let program = shelter.start(dir.secrets(&args, &plan))?;
            follow(&mut sidecar, &mut signals, program).await
        }
    };
    sidecar.leave_briefly().await;
    sidecar.stop().await;
    code
}

async fn prepare(sidecar: &Sidecar, plan: &Plan, offline: bool) -> Result<(), Failure> {
    sidecar.ready(CONTROL_PLANE_WAIT).await.map_err(|missing| {
        format!(
            "not ready within {CONTROL_PLANE_WAIT:?}: {}",
            missing.join(", ")
        )
    })?;
    if !offline {
        sidecar
            .accepted(CONTROL_PLANE_WAIT)
            .await
            .map_err(|reason| format!("registration: {reason}"))?;
    }
    for service in &plan.wait_for {
        if !sidecar.wait_for(service, SERVICE_WAIT).await {
            return Err(format!("nobody serves {service} after {SERVICE_WAIT:?}").into());
        }
    }
    Ok(())
}
