//! What the control plane is told of the workload: a port is announced when the application accepts
//! connections on it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use weft_core::model::Registration;
use weft_core::name::WorkloadName;
use weft_core::reason::Reason;
use weft_core::unready::Unready;

use super::AppError;
use super::plan::{Plan, own_address};
use crate::application::{Application, dial};
use crate::config::ProxyConfig;
use crate::shared::Shared;

/// How often ports that are not ready yet are tried: soon after the start, and later.
const PROBE_EVERY: Duration = Duration::from_millis(20);
const PROBE_LATER: Duration = Duration::from_millis(500);
/// How long one try may take.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

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
    let waiting = applications.into_iter();
    let mut waiting: Vec<_> = waiting.map(|a| (a, Unready::default())).collect();
    while !waiting.is_empty() {
        let mut still = Vec::new();
        for (application, mut unready) in waiting {
            let port = application.port;
            let Err((reason, detail)) = accepts(&shared, &application).await else {
                tracing::info!(port, "the application accepts connections");
                registration.send_modify(|now| {
                    for registered in now.ports.iter_mut().filter(|p| p.port == port) {
                        registered.ready = true;
                    }
                });
                continue;
            };
            if unready.on_failed(reason, crate::clock::now()) {
                let (why, advice) = (reason.description(), reason.advice());
                tracing::warn!(
                    port,
                    %reason,
                    why,
                    found = detail,
                    advice,
                    "a declared port is not announced: callers are answered with no-endpoints"
                );
            }
            still.push((application, unready));
        }
        waiting = still;
        let quick = began.elapsed() < Duration::from_secs(10);
        sleep(if quick { PROBE_EVERY } else { PROBE_LATER }).await;
    }
    // The sender has to stay: the registrar follows it.
    std::future::pending::<()>().await;
}

/// Whether the application accepts connections, else why not, with what was found.
async fn accepts(shared: &Arc<Shared>, application: &Application) -> Result<(), (Reason, String)> {
    match timeout(PROBE_LIMIT, dial(shared, application)).await {
        Ok(dialled) => dialled.map(drop),
        Err(_elapsed) => {
            let found = format!("no answer in {PROBE_LIMIT:?}");
            Err((Reason::ApplicationUnreachable, found))
        }
    }
}
