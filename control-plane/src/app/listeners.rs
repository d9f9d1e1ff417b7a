//! What is listened on, and what is served there.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use weft_proto::identity::identity_server::IdentityServer;
use weft_proto::ratelimit::rate_limits_server::RateLimitsServer;
use weft_proto::registry::registry_server::RegistryServer;
use weft_proto::replica::replicas_server::ReplicasServer;

use super::AppError;
use super::assemble::Parts;
use crate::api::{self, Status, Who};
use crate::budget::{MESSAGE_MAX_BYTES, SIGN_MESSAGE_MAX_BYTES};
use crate::discovery::DiscoveryServer;
use crate::discovery::grpc::DiscoveryService;
use crate::health::{self, Health};
use crate::identity::ca::{Authority, CaError};
use crate::identity::grpc::IdentityService;
use crate::injector::serve::Counters;
use crate::metrics::{self, Measured};
use crate::ratelimit::grpc::RateLimitService;
use crate::registry::Departures;
use crate::registry::grpc::RegistryService;
use crate::replicas;
use crate::replicas::grpc::ReplicaService;
use crate::supervise::Supervisor;
use crate::tls::{self, Purpose};
use crate::transport::{self, Sidecars};

/// What every listener is served with.
pub(super) struct Listeners {
    pub(super) parts: Parts,
    pub(super) own: OwnCertificate,
    pub(super) health: Arc<Health>,
    pub(super) stop: CancellationToken,
    /// What became of pods that the API server asked about, in a cluster.
    pub(super) injector: Option<Counters>,
}

impl Listeners {
    /// The admin API on its socket, the first, and, where operators are listened for, over TLS; and
    /// the join socket.
    pub(super) fn serve_api(
        &self,
        tasks: &mut Supervisor,
        [admin_socket, join_socket]: [api::Socket; 2],
        status: &Status,
        operators: Option<TcpListener>,
    ) -> Result<(), AppError> {
        let (parts, stop) = (&self.parts, &self.stop);
        let backend = parts.backend();
        let certificates = Arc::clone(&backend.operators);
        let join = api::join_router(Arc::clone(&backend.credentials), status.advertised.clone());
        let admin = api::admin_router(backend, status.clone());
        let admin = admin.merge(health::router(&self.health));
        if let Some(listener) = operators {
            let tls = self.own.tls(tasks, Purpose::Operators)?;
            let operators = api::Operators {
                router: admin.clone(),
                certificates,
                trust_domain: self.own.authority.trust_domain().clone(),
                peers: Arc::clone(&parts.peers),
            };
            let ends = stop.clone();
            let serve = move |connection| operators.clone().serve(connection, ends.clone());
            let peers = Arc::clone(&parts.peers);
            let accepting = transport::accept(listener, tls, peers, stop.clone(), serve);
            tasks.spawn("operators", accepting);
        }
        let serving = api::serve_unix(admin, admin_socket, Who::OwnerOnly, stop.clone());
        tasks.spawn("admin socket", serving);
        let serving = api::serve_unix(join, join_socket, Who::AnyPeer, stop.clone());
        tasks.spawn("join socket", serving);
        Ok(())
    }

    /// What other control planes of a cluster are told.
    fn replicas(&self) -> Option<ReplicaService> {
        self.parts.cluster.as_ref()?;
        let identity = replicas::identity(self.own.authority.trust_domain()).ok()?;
        Some(ReplicaService::new(
            Arc::clone(&self.parts.replicas),
            identity,
        ))
    }

    pub(super) fn serve_metrics(&self, tasks: &mut Supervisor, listener: TcpListener) {
        let parts = &self.parts;
        let measured = Measured {
            store: Arc::clone(&parts.store),
            identities: Arc::clone(&parts.identities),
            peers: Arc::clone(&parts.peers),
            registrations: Arc::clone(&parts.registrations),
            pipeline: Arc::clone(&parts.pipeline),
            publisher: Arc::clone(&parts.publisher),
            cluster: parts.cluster.clone(),
            injector: self.injector.clone(),
            pods: parts.cluster.as_ref().map(|_| parts.pod_counters.clone()),
            leases: Arc::clone(&parts.leases),
        };
        let health = Arc::clone(&self.health);
        let serving = metrics::serve(listener, measured, health, self.stop.clone());
        tasks.spawn("metrics", serving);
    }

    pub(super) async fn serve_sidecars(
        &self,
        tasks: &mut Supervisor,
        listener: TcpListener,
    ) -> Result<(), AppError> {
        let tls = self.own.tls(tasks, Purpose::Sidecars)?;
        let peers = Arc::clone(&self.parts.peers);
        let sidecars = Sidecars {
            routes: services(&self.parts, self.replicas()).await,
            peers: Arc::clone(&peers),
            identities: Arc::clone(&self.parts.identities),
        };
        let ends = self.stop.clone();
        let serve = move |connection| transport::serve(connection, sidecars.clone(), ends.clone());
        let accepting = transport::accept(listener, tls, peers, self.stop.clone(), serve);
        let (pipeline, stop) = (Arc::clone(&self.parts.pipeline), self.stop.clone());
        let leases = Arc::clone(&self.parts.leases);
        tasks.spawn("sidecars", async move {
            tokio::select! {
                () = pipeline.complete() => {}
                () = stop.cancelled() => return,
            }
            leases.listen();
            accepting.await;
        });
        Ok(())
    }
}

/// What sidecars may call, and other control planes where there may be some.
async fn services(parts: &Parts, replicas: Option<ReplicaService>) -> Routes {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<DiscoveryServer>().await;
    let identity = IdentityServer::new(IdentityService {
        identities: Arc::clone(&parts.identities),
    });
    let registry = RegistryServer::new(RegistryService {
        registrations: Arc::clone(&parts.registrations),
        identities: Arc::clone(&parts.identities),
        observations: Arc::clone(&parts.observations),
        departures: Arc::clone(&parts.pipeline) as Arc<dyn Departures>,
    });
    let rate_limits = RateLimitsServer::new(RateLimitService {
        peers: Arc::clone(&parts.peers),
        identities: Arc::clone(&parts.identities),
        leases: Arc::clone(&parts.leases),
    });
    let discovery = DiscoveryServer::new(DiscoveryService {
        pipeline: Arc::clone(&parts.pipeline),
        publisher: Arc::clone(&parts.publisher),
        peers: Arc::clone(&parts.peers),
        identities: Arc::clone(&parts.identities),
    });
    let routes = Routes::new(health_service)
        .add_service(identity.max_decoding_message_size(SIGN_MESSAGE_MAX_BYTES))
        .add_service(registry.max_decoding_message_size(MESSAGE_MAX_BYTES))
        .add_service(rate_limits.max_decoding_message_size(MESSAGE_MAX_BYTES))
        .add_service(discovery);
    let routes = match replicas {
        Some(replicas) => {
            let replicas = ReplicasServer::new(replicas);
            routes.add_service(replicas.max_decoding_message_size(MESSAGE_MAX_BYTES))
        }
        None => routes,
    };
    routes.prepare()
}

/// How often it is looked whether our own certificate has to be renewed.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What our own certificates come from.
pub(super) struct OwnCertificate {
    pub(super) authority: Arc<Authority>,
    pub(super) ttl: Duration,
}

impl OwnCertificate {
    /// Our own certificate, renewed at half life without a restart. The wall clock says when: sleep
    /// stands still while a machine is suspended, and a certificate does not.
    fn tls(&self, tasks: &mut Supervisor, purpose: Purpose) -> Result<tls::ServerTls, AppError> {
        // The intermediate, too, by one of the listeners.
        let renews = purpose == Purpose::Sidecars;
        let config = move |authority: &Authority, ttl| tls::server_config(authority, purpose, ttl);
        self.kept(tasks, renews, config)
    }

    /// That of the webhook, which the API server reaches at these DNS names.
    pub(super) fn webhook_tls(
        &self,
        tasks: &mut Supervisor,
        names: Vec<String>,
    ) -> Result<tls::ServerTls, AppError> {
        self.kept(tasks, false, move |authority, ttl| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            tls::webhook_config(authority, &names, ttl)
        })
    }

    fn kept<F>(
        &self,
        tasks: &mut Supervisor,
        renews_intermediate: bool,
        config: F,
    ) -> Result<tls::ServerTls, AppError>
    where
        F: Fn(&Authority, Duration) -> Result<ServerConfig, CaError> + Send + 'static,
    {
        let ttl = self.ttl;
        let current = config(&self.authority, ttl)?;
        let current: tls::ServerTls = Arc::new(ArcSwap::from_pointee(current));
        let (authority, renewed) = (Arc::clone(&self.authority), Arc::clone(&current));
        let mut issued = SystemTime::now();
        tasks.spawn("own certificate", async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let now = SystemTime::now();
                if !is_renewal_due(issued, ttl, now) {
                    continue;
                }
                if renews_intermediate && let Err(error) = authority.renew(now) {
                    tracing::error!(%error, "intermediate not renewed");
                }
                match config(&authority, ttl) {
                    Ok(fresh) => {
                        renewed.store(Arc::new(fresh));
                        issued = now;
                    }
                    Err(error) => tracing::error!(%error, "own certificate not renewed"),
                }
            }
        });
        Ok(current)
    }
}

/// Whether half of a certificate's life is over, or the clock was set back to before it was issued.
fn is_renewal_due(issued: SystemTime, ttl: Duration, now: SystemTime) -> bool {
    now.duration_since(issued)
        .map_or(true, |age| age >= ttl / 2)
}

pub(super) fn bind(path: &Path) -> Result<api::Socket, AppError> {
    api::bind_unix(path).map_err(|source| AppError::Listen {
        address: path.display().to_string(),
        source,
    })
}

pub(super) async fn listen(address: SocketAddr) -> Result<TcpListener, AppError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| AppError::Listen {
            address: address.to_string(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_a_life_or_a_step_of_the_clock_is_due() {
        let issued = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let ttl = Duration::from_secs(3600);
        let later = |seconds| issued + Duration::from_secs(seconds);
        for (now, due) in [
            (issued, false),
            (later(1799), false),
            (later(1800), true),
            // Suspended for days.
            (later(500_000), true),
            (issued - Duration::from_secs(1), true),
        ] {
            assert_eq!(is_renewal_due(issued, ttl, now), due, "{now:?}");
        }
    }
}
