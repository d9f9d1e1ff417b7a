//! The sidecar's own listeners, and what they show.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::AppError;
use super::plan::own_address;
use crate::admin::{self, AdminServer, AdminState, Readiness, Serves, bind_tcp, bind_unix};
use crate::clock::now;
use crate::config::ListenerConfig;
use crate::identity::Manager;
use crate::local_application::LocalApplication;
use crate::observe;
use crate::probes::Probes;
use crate::scrape::MergedMetrics;
use crate::shared::Shared;
use crate::telemetry::log::LogHandle;
use crate::telemetry::metrics::Metrics;

/// The sidecar's own listeners, open and not served yet.
pub(super) struct AdminListeners(Vec<(admin::Listener, Serves)>);

impl AdminListeners {
    /// Opens all that are configured.
    pub(super) fn open(config: &ListenerConfig) -> Result<Self, AppError> {
        let failed = |address: String| move |source| AppError::Listen { address, source };
        let tcp = [
            (config.admin, Serves::Everything),
            (config.metrics, Serves::Metrics),
        ];
        let mut listeners = Vec::new();
        for (address, serves) in tcp {
            let Some(address) = address else { continue };
            let listener = bind_tcp(address).map_err(failed(address.to_string()))?;
            listeners.push((listener, serves));
        }
        if let Some(path) = &config.admin_socket {
            let listener = bind_unix(path).map_err(failed(path.display().to_string()))?;
            listeners.push((listener, Serves::Everything));
        }
        Ok(Self(listeners))
    }

    /// Where metrics are read.
    pub(super) fn metrics_address(&self) -> Option<SocketAddr> {
        let metrics = self.0.iter().find(|(_, serves)| *serves == Serves::Metrics);
        metrics.and_then(|(listener, _)| listener.local_addr())
    }

    /// Serves all of them until the token is cancelled.
    pub(super) fn serve(self, server: &Arc<AdminServer>) -> CancellationToken {
        let stop = CancellationToken::new();
        for (listener, serves) in self.0 {
            tokio::spawn(Arc::clone(server).serve(listener, serves, stop.clone()));
        }
        stop
    }
}

/// What they serve.
pub(super) fn server(
    state: Arc<State>,
    metrics: Metrics,
    log: Option<LogHandle>,
) -> Arc<AdminServer> {
    let config = &state.shared.config;
    let application = LocalApplication::new(config, own_address(config));
    let probes = Probes::new(application.clone(), config.kubernetes.probes.clone(), now);
    let target = config.kubernetes.metrics.clone();
    let target = target.map(|target| (application, target));
    let merged = MergedMetrics::new(metrics.clone(), target);
    AdminServer::new(state, metrics, log, probes, merged)
}

/// What the admin interface shows.
pub(super) struct State {
    pub(super) shared: Arc<Shared>,
    pub(super) identity: Arc<Manager>,
    pub(super) readiness: Readiness,
    pub(super) drain: Arc<tokio::sync::Notify>,
}

impl AdminState for State {
    fn config(&self) -> Value {
        let snapshot = self.shared.mesh.snapshot();
        let services: Vec<String> = snapshot.services.keys().map(ToString::to_string).collect();
        let workloads: Vec<String> = snapshot.workloads.keys().map(ToString::to_string).collect();
        json!({
            "bootstrap": serde_json::to_value(&*self.shared.config).unwrap_or_default(),
            "mesh": snapshot.config.as_ref().map(|config| json!({
                "trustDomain": config.trust_domain,
                "virtualRanges": config.virtual_ranges.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "workloadRanges": config.workload_ranges.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "unknownDestinations": config.unknown_destinations,
            })),
            "services": services,
            "workloads": workloads,
        })
    }

    fn certs(&self) -> Value {
        let current = self.identity.subscribe();
        let current = current.borrow();
        let Some(identity) = current.as_ref() else {
            return Value::Null;
        };
        json!({
            "identity": identity.credentials.identity,
            "instance": &*identity.credentials.instance,
            "workload": identity.workload,
            "issued": identity.issued,
            "notAfter": identity.credentials.not_after,
            "trustDomain": identity.bundle.trust_domain,
            "roots": identity.bundle.roots.iter().map(|der| crate::tls::sha256_hex(der)).collect::<Vec<_>>(),
            "revokedInstances": identity.bundle.revoked_instances,
        })
    }

    fn endpoints(&self) -> Value {
        let now = now();
        let snapshot = self.shared.mesh.snapshot();
        let rows = snapshot.ports().flat_map(|port| {
            port.endpoints.iter().map(move |endpoint| {
                json!({
                    "service": port.service,
                    "port": port.port,
                    "protocol": port.protocol,
                    "workload": endpoint.model.workload,
                    "instance": &*endpoint.key.instance,
                    "address": endpoint.key.address,
                    "identity": endpoint.model.identity,
                    "breaker": endpoint.live.breaker(now).map(|view| view.state.as_str()),
                    "changes": observe::changes(endpoint.live.breaker_changes(), now),
                    "score": endpoint.live.score(now),
                })
            })
        });
        Value::Array(rows.collect())
    }

    fn ready(&self) -> Result<(), Vec<String>> {
        self.readiness.check()
    }

    fn drain(&self) {
        self.drain.notify_one();
    }
}
