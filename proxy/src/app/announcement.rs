//! What the control plane is told of the workload: a port is announced when the application accepts
//! connections on it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use weft_core::model::Registration;
use weft_core::name::WorkloadName;

use super::AppError;
use super::plan::{Plan, own_address};
use crate::application::{Application, dial};
use crate::config::ProxyConfig;
use crate::shared::Shared;

/// How often ports that are not ready yet are tried: soon after the start, and later.
const PROBE_EVERY: Duration = Duration::from_millis(20);
const PROBE_LATER: Duration = Duration::from_millis(500);

pub(super) fn first_registration(
    shared: &Shared,
    plan: &Plan,
    metrics: Option<SocketAddr>,
) -> Result<Registration, AppError> {
    let workload = &shared.config.workload;
    let services = workload.services.iter();
    let services = services.map(|service| service.resolve(&workload.namespace));
    Ok(Registration {
        workload: WorkloadName::new(&workload.namespace, &workload.name)?,
        services: services.collect::<Result<_, _>>()?,
        addresses: plan
            .own_addresses
            .iter()
            .copied()
            .filter(|a| !a.is_loopback())
            .collect(),
        ports: plan.declared.iter().map(|(port, _)| port.clone()).collect(),
        labels: workload.labels.clone(),
        zone: workload.zone.clone(),
        weight: workload.weight,
        metrics_target: metrics_target(&shared.config, metrics),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// Where Prometheus reads; empty where it cannot. `listening` is where the metrics listener is.
fn metrics_target(config: &ProxyConfig, listening: Option<SocketAddr>) -> String {
    let Some(mut address) = listening else {
        return String::new();
    };
    if address.ip().is_unspecified() {
        address.set_ip(own_address(config));
    }
    format!("http://{address}/metrics")
}

/// Announces each declared port as soon as the application accepts connections on it.
pub(super) async fn probe_ports(
    shared: Arc<Shared>,
    applications: Vec<Application>,
    registration: watch::Sender<Registration>,
) {
    let began = Instant::now();
    let mut waiting = applications;
    while !waiting.is_empty() {
        let mut still = Vec::new();
        for application in waiting {
            if accepts(&shared, &application).await {
                let port = application.port;
                tracing::info!(port, "the application accepts connections");
                registration.send_modify(|now| {
                    for registered in now.ports.iter_mut().filter(|p| p.port == port) {
                        registered.ready = true;
                    }
                });
            } else {
                still.push(application);
            }
        }
        waiting = still;
        let quick = began.elapsed() < Duration::from_secs(10);
        sleep(if quick { PROBE_EVERY } else { PROBE_LATER }).await;
    }
    // The sender has to stay: the registrar follows it.
    std::future::pending::<()>().await;
}

async fn accepts(shared: &Arc<Shared>, application: &Application) -> bool {
    let dialled = dial(shared, application);
    matches!(timeout(Duration::from_secs(1), dialled).await, Ok(Ok(_)))
}
