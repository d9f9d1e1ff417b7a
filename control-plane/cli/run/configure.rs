//! The sidecar's configuration: from the arguments, from what was kept, and from the control plane.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use weft_api::client::{Client, ClientError};
use weft_api::types::{JoinAnswer, JoinRequest};
use weft_core::name::NameError;
use weft_proxy::app::Sidecar;
use weft_proxy::config::{ProxyConfig, Secret};

use super::dir::RunDir;
use super::plan::Plan;
use super::{CONTROL_PLANE_WAIT, Failure, RunArgs};

/// What `--state-dir` keeps beside the sidecar's own state: where the control plane is, and which
/// port of this machine stands for which of the program's, so that peers find it again.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Kept {
    #[serde(skip)]
    file: PathBuf,
    control_plane: String,
    ports: BTreeMap<u16, SocketAddr>,
}

impl Kept {
    pub(super) fn of(args: &RunArgs, config: &ProxyConfig) -> Option<Self> {
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

    pub(super) fn write(mut self, sidecar: &Sidecar) -> Result<(), Failure> {
        self.ports = sidecar.ports();
        let failed = |error: std::io::Error| format!("{}: {error}", self.file.display());
        let content = serde_json::to_vec(&self)?;
        Ok(std::fs::write(&self.file, content).map_err(failed)?)
    }
}

/// The sidecar's configuration, and whether it starts without its control plane.
pub(super) async fn configure(
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
