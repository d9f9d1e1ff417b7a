//! `weft run`: a program as a workload of the mesh, with its sidecar in this process.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};
use weft_api::client::{Client, ClientError, default_data_dir, operator_file};
use weft_api::types::{JoinAnswer, JoinRequest};
use weft_control_plane::model::parse_duration;
use weft_core::model::AppProtocol;
use weft_core::name::{NameError, ServiceName, WorkloadName};
use weft_proxy::app::{Inside, Publish, Sidecar};
use weft_proxy::config::{PortConfig, ProxyConfig, Secret, UpstreamConfig};
use weft_proxy::nest::{self, Nest, NestConfig, Privilege};

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
    /// Nothing is redirected: the program uses local ports (--upstream).
    None,
}

/// What the arguments say, checked.
struct Plan {
    workload: WorkloadName,
    services: Vec<ServiceName>,
    ports: Vec<PortConfig>,
    publish: Vec<Publish>,
    wait_for: Vec<ServiceName>,
    upstreams: Vec<UpstreamConfig>,
    user: Option<nest::User>,
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
    let privilege = match args.capture {
        Capture::None => None,
        Capture::Netns => match nest::enter() {
            Ok(privilege) => Some(privilege),
            Err(error) => {
                eprintln!("weft run: {error}");
                eprintln!("weft run: without a namespace use --capture none and --upstream");
                return ExitCode::from(FAILED);
            }
        },
    };
    let result = crate::block_on(beside(args, plan, privilege));
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

async fn beside(args: RunArgs, plan: Plan, privilege: Option<Privilege>) -> Result<u8, Failure> {
    let dir = RunDir::make(&args)?;
    let (config, offline) = configure(&args, &plan, &dir).await?;
    let kept = Kept::of(&args, &config);
    let log = weft_proxy::telemetry::log::init(&config.log)?;
    let mut inside = None;
    let mut nest = None;
    if let Some(privilege) = privilege {
        let mut nest_config = NestConfig::new(args.command.clone());
        nest_config.user = plan.user.clone();
        nest_config.hide = dir.hidden(&args);
        nest_config.search_domains = vec![
            format!("{}.mesh", plan.workload.namespace()),
            "mesh".to_owned(),
        ];
        let mut opened = Nest::open(&nest_config, privilege, config.worker_count())?;
        inside = Some(Inside {
            listeners: opened.take_listeners(),
            sockets: opened.sockets(),
            addresses: nest_config.addresses,
            host_ports: args.host_port.clone(),
        });
        nest = Some((opened, nest_config));
    }
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
            let program = match &mut nest {
                Some((nest, config)) => Running::Nested(nest.spawn(config)?),
                None => Running::Bare(nest::Bare::spawn(&args.command)?),
            };
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

/// The program, in its nest or without one.
enum Running {
    Nested(nest::Child),
    Bare(nest::Bare),
}

impl Running {
    async fn wait(&mut self) -> std::io::Result<std::process::ExitStatus> {
        match self {
            Self::Nested(child) => child.wait().await,
            Self::Bare(child) => child.wait().await,
        }
    }

    fn signal(&self, signal: i32) -> std::io::Result<()> {
        match self {
            Self::Nested(child) => child.signal(signal),
            Self::Bare(child) => child.signal(signal),
        }
    }
}

/// Follows the program to its end; the first SIGTERM reaches it after the leaving sequence.
async fn follow(
    sidecar: &mut Sidecar,
    signals: &mut Signals,
    mut program: Running,
) -> Result<u8, Failure> {
    let mut leaving = false;
    let vital = sidecar.vital().clone();
    loop {
        let asked = tokio::select! {
            status = program.wait() => return Ok(nest::exit_code(status?)),
            asked = signals.any() => asked,
            part = vital.lost() => {
                // A program that is served in part only is better started anew.
                program.signal(libc::SIGTERM)?;
                return Err(Failure(format!("the sidecar lost a part of itself: {part}"), FAILED));
            }
        };
        if asked == libc::SIGTERM && !leaving {
            leaving = true;
            // A second signal cuts the leaving short.
            tokio::select! {
                () = sidecar.leave() => {}
                _ = signals.any() => sidecar.cut(),
            }
        }
        program.signal(asked)?;
    }
}

/// Signals that are passed on.
struct Signals {
    streams: Vec<(i32, Signal)>,
}

impl Signals {
    fn register() -> Result<Self, Failure> {
        let kinds = [
            libc::SIGTERM,
            libc::SIGINT,
            libc::SIGQUIT,
            libc::SIGHUP,
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGWINCH,
        ];
        let stream = |raw: i32| Ok((raw, signal(SignalKind::from_raw(raw))?));
        let streams: Result<Vec<_>, std::io::Error> = kinds.into_iter().map(stream).collect();
        Ok(Self { streams: streams? })
    }

    async fn any(&mut self) -> i32 {
        std::future::poll_fn(|cx| {
            for (raw, stream) in &mut self.streams {
                if stream.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*raw);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// The sidecar's state and sockets, for as long as it runs.
struct RunDir {
    path: PathBuf,
    data: PathBuf,
}

impl RunDir {
    fn make(args: &RunArgs) -> Result<Self, Failure> {
        use std::os::unix::fs::DirBuilderExt;
        let data = match &args.join {
            Some(_) => default_data_dir(),
            None => Client::from_env()?.dir()?.to_owned(),
        };
        let name = format!("{}.{}.{}", args.namespace, args.name, std::process::id());
        let path = data.join("run").join(name);
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path);
        made.map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path, data })
    }

    /// Nothing of Weft's is there for the program.
    fn hidden(&self, args: &RunArgs) -> Vec<PathBuf> {
        let state = args.state_dir.iter().cloned();
        // A program is no operator because it runs as one's user.
        let operator = Some(operator_file()).filter(|file| file.exists());
        // Nor is it one of another control plane of this machine, where that is in the usual place.
        let usual = Some(default_data_dir()).filter(|dir| *dir != self.data && dir.exists());
        std::iter::once(self.data.clone())
            .chain(state)
            .chain(operator)
            .chain(usual)
            .collect()
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "not removed");
        }
    }
}

/// What `--state-dir` keeps beside the sidecar's own state: where the control plane is, and which
/// port of this machine stands for which of the program's, so that peers find it again.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    #[serde(skip)]
    file: PathBuf,
    control_plane: String,
    ports: BTreeMap<u16, SocketAddr>,
}

impl Kept {
    fn of(args: &RunArgs, config: &ProxyConfig) -> Option<Self> {
        Some(Self {
            file: args.state_dir.as_ref()?.join("run.json"),
            control_plane: config.control_plane.address.clone(),
            ports: BTreeMap::new(),
        })
    }

    fn read(args: &RunArgs) -> Option<Self> {
        let file = args.state_dir.as_ref()?.join("run.json");
        serde_json::from_slice(&std::fs::read(file).ok()?).ok()
    }

    fn write(mut self, sidecar: &Sidecar) -> Result<(), Failure> {
        self.ports = sidecar.ports();
        let failed = |error: std::io::Error| format!("{}: {error}", self.file.display());
        let content = serde_json::to_vec(&self)?;
        Ok(std::fs::write(&self.file, content).map_err(failed)?)
    }
}

/// The sidecar's configuration, and whether it starts without its control plane.
async fn configure(
    args: &RunArgs,
    plan: &Plan,
    dir: &RunDir,
) -> Result<(ProxyConfig, bool), Failure> {
    let mut config = ProxyConfig::default();
    config.workload.name = plan.workload.name().to_owned();
    config.workload.namespace = plan.workload.namespace().to_owned();
    config.workload.ports = plan.ports.clone();
    let services = plan
        .services
        .iter()
        .map(|service| service.to_string().parse());
    config.workload.services = services.collect::<Result<_, NameError>>()?;
    config.upstreams = plan.upstreams.clone();
    config.workers = args.workers;
    config.listeners.outbound = None;
    config.listeners.inbound = None;
    config.listeners.dns = None;
    config.listeners.admin = None;
    // A free port, which Prometheus learns from the control plane's list of targets.
    let metrics = match args.advertise {
        Some(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        None => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    config.listeners.metrics = Some(SocketAddr::new(metrics, 0));
    let socket = args.admin_socket.clone();
    config.listeners.admin_socket = Some(socket.unwrap_or_else(|| dir.path.join("admin.sock")));
    let state = args.state_dir.clone();
    config.state_dir = state.unwrap_or_else(|| dir.path.join("state"));
    let kept = Kept::read(args);
    if let Some(kept) = &kept {
        for port in &mut config.workload.ports {
            port.listen = kept.ports.get(&port.port).copied().or(port.listen);
        }
    }
    config.timeouts.drain = args.drain;
    config.tracing.otlp_endpoint = args.otlp_endpoint.clone();
    if let Some(ratio) = args.sample_ratio {
        config.tracing.sample_ratio = ratio;
    }
    config.log.level = args.log_level.clone();
    config.access_log = args.access_log.parse()?;
    match (&args.join, &args.token_file) {
        (Some(address), Some(file)) => {
            config.control_plane.address = address.clone();
            config.control_plane.token_file = Some(file.clone());
        }
        _ => {
            // What was kept is enough to start with; without it, the control plane is waited for.
            let wait = match &kept {
                Some(_) => Duration::ZERO,
                None => CONTROL_PLANE_WAIT,
            };
            match (join(plan, wait).await, kept) {
                (Ok(joined), _) => {
                    config.control_plane.address = joined.address;
                    config.control_plane.token = Some(Secret::new(joined.token));
                }
                (Err(ClientError::Connect { .. }), Some(kept)) => {
                    config.control_plane.address = kept.control_plane;
                    return Ok((config, true));
                }
                (Err(error), _) => return Err(error.into()),
            }
        }
    }
    Ok((config, false))
}

/// Asks the control plane of this machine for a token; it may still be starting.
async fn join(plan: &Plan, wait: Duration) -> Result<JoinAnswer, ClientError> {
    let client = Client::from_env()?;
    let request = JoinRequest {
        workload: plan.workload.clone(),
        services: plan.services.clone(),
        ports: plan.ports.iter().map(|port| port.port).collect(),
    };
    let began = Instant::now();
    loop {
        match client.join(&request).await {
            Ok(answer) => return Ok(answer),
            Err(error @ ClientError::Connect { .. }) => {
                if began.elapsed() >= wait {
                    return Err(error);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

fn plan(args: &RunArgs) -> Result<Plan, String> {
    let workload = WorkloadName::new(&args.namespace, &args.name).map_err(|e| e.to_string())?;
    let listen = IpAddr::V4(match args.advertise {
        Some(_) => Ipv4Addr::UNSPECIFIED,
        None => Ipv4Addr::LOCALHOST,
    });
    let plain = args.capture == Capture::None;
    let mut ports = Vec::new();
    for text in &args.ports {
        let mut port = parse_port(text)?;
        port.listen = Some(SocketAddr::new(listen, 0));
        port.advertise = args.advertise.map(|address| SocketAddr::new(address, 0));
        // Without a namespace the program is on this machine's loopback.
        port.loopback |= plain;
        ports.push(port);
    }
    let resolve = |text: &String| match text.contains('/') {
        true => text.parse::<ServiceName>(),
        false => ServiceName::new(&args.namespace, text),
    };
    let all = |texts: &[String]| {
        let resolved = texts.iter().map(resolve);
        resolved
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| e.to_string())
    };
    let mut services = all(&args.service)?;
    if services.is_empty() && !ports.is_empty() {
        services = all(std::slice::from_ref(&args.name))?;
    }
    let user = args.user.as_deref().map(find_user).transpose()?;
    let publish = args.publish.iter().map(|text| parse_publish(text));
    let upstreams = args.upstream.iter().map(|text| parse_upstream(text));
    Ok(Plan {
        services,
        publish: publish.collect::<Result<_, _>>()?,
        wait_for: all(&args.wait_for)?,
        upstreams: upstreams.collect::<Result<_, _>>()?,
        workload,
        ports,
        user,
    })
}

/// `PORT[:PROTOCOL][@loopback]`
fn parse_port(text: &str) -> Result<PortConfig, String> {
    let bad =
        |found: &str, allowed: &str| format!("--port {text}: found {found:?}; allowed: {allowed}");
    let (rest, loopback) = match text.split_once('@') {
        Some((rest, "loopback")) => (rest, true),
        Some((_, other)) => return Err(bad(other, "@loopback")),
        None => (text, false),
    };
    let (port, protocol) = match rest.split_once(':') {
        Some((port, protocol)) => {
            let parsed = AppProtocol::parse(protocol);
            (
                port,
                parsed.ok_or_else(|| bad(protocol, AppProtocol::ALLOWED))?,
            )
        }
        None => (rest, AppProtocol::Detect),
    };
    let parsed = port.parse::<u16>().ok().filter(|port| *port != 0);
    Ok(PortConfig {
        port: parsed.ok_or_else(|| bad(port, "1 to 65535"))?,
        protocol,
        advertise: None,
        listen: None,
        loopback,
    })
}

/// `[ADDRESS:]HOST-PORT:PORT`
fn parse_publish(text: &str) -> Result<Publish, String> {
    let bad = || format!("--publish {text}: allowed: [ADDRESS:]HOST-PORT:PORT");
    let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
    let listen = match host.parse::<u16>() {
        Ok(port) => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        Err(_not_a_port) => host.parse().map_err(|_| bad())?,
    };
    Ok(Publish {
        listen,
        port: port.parse().map_err(|_| bad())?,
    })
}

/// `NAME[:PORT]=ADDRESS:PORT`
fn parse_upstream(text: &str) -> Result<UpstreamConfig, String> {
    let bad = || {
        format!("--upstream {text}: allowed: NAME[:PORT]=ADDRESS:PORT, as in orders=127.0.0.1:9001")
    };
    let (service, listen) = text.split_once('=').ok_or_else(bad)?;
    let (service, port) = match service.split_once(':') {
        Some((service, port)) => (service, Some(port.parse().map_err(|_| bad())?)),
        None => (service, None),
    };
    Ok(UpstreamConfig {
        service: service.parse().map_err(|_| bad())?,
        port,
        listen: listen.parse().map_err(|_| bad())?,
    })
}

/// A user by name or number, from /etc/passwd and /etc/group.
fn find_user(text: &str) -> Result<nest::User, String> {
    let passwd = std::fs::read_to_string("/etc/passwd").map_err(|e| format!("/etc/passwd: {e}"))?;
    let mut rows = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    let row = rows.find(|row| row.first() == Some(&text) || row.get(2) == Some(&text));
    let row = row.ok_or_else(|| format!("--user {text}: no such user"))?;
    let number = |index: usize| row.get(index).and_then(|field| field.parse::<u32>().ok());
    let (Some(uid), Some(gid)) = (number(2), number(3)) else {
        return Err(format!("--user {text}: /etc/passwd is malformed"));
    };
    let group = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let name = row.first().copied().unwrap_or_default();
    let groups = group.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let member = fields.get(3)?.split(',').any(|member| member == name);
        member.then(|| fields.get(2)?.parse().ok()).flatten()
    });
    Ok(nest::User {
        uid,
        gid,
        groups: groups.collect(),
    })
}
