//! The connections that this process has accepted: counted, bounded by kind and client
//! (`weft_core::connections`), and guarded for as long as their socket is open.

mod descriptors;
mod guarded;
mod keepalive;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use weft_core::connections::{
    Client, ConnectionBudget, ConnectionKind, ConnectionLimits, Exceeded, Ticket,
};

pub use descriptors::within_open_files;
pub use guarded::{Guarded, Patience};
pub use keepalive::keep_alive;

use crate::telemetry::metrics::{Direction, HttpKey, Metrics};
use weft_core::reason::Reason;

/// At most one line about refused connections is logged in this time.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Everything that is accepted, all workers together.
#[derive(Debug)]
pub struct Connections {
    /// Locked when a connection comes, is identified or goes.
    inner: Mutex<Inner>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Inner {
    budget: ConnectionBudget,
    /// Tells those that may be closed for others.
    evictable: HashMap<Ticket, Arc<Notify>>,
    logged: Option<Instant>,
    /// Refusals since the last line about them.
    unlogged: u64,
}

impl Connections {
    /// Nothing is open yet.
    pub fn new(limits: ConnectionLimits, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                budget: ConnectionBudget::new(limits),
                evictable: HashMap::new(),
                logged: None,
                unlogged: 0,
            }),
            metrics,
        })
    }

    /// Admits a connection from `address` that a worker serves, which counts it in `serving`; `None`
    /// when it has to be reset: then metrics and log say why.
    pub fn admit(
        self: &Arc<Self>,
        kind: ConnectionKind,
        address: IpAddr,
        serving: &Arc<AtomicUsize>,
    ) -> Option<Permit> {
        let client = match kind {
            ConnectionKind::Application => Client::Application,
            ConnectionKind::Unidentified | ConnectionKind::Plaintext | ConnectionKind::Peer => {
                Client::at(address)
            }
        };
        self.admit_client((kind, client), address, serving).ok()
    }

    /// Admits a stream of bytes within a connection in HTTP/2: each has a socket of its own on the
    /// other side, so it counts as a further connection of its client, the verified identity or, for
    /// `None`, the address outside the mesh.
    ///
    /// # Errors
    ///
    /// Names the limit when there is no room; metrics and log say so as well.
    pub fn admit_stream(
        self: &Arc<Self>,
        identity: Option<&str>,
        address: IpAddr,
        serving: &Arc<AtomicUsize>,
    ) -> Result<Permit, Exceeded> {
        self.admit_client(identified(identity, address), address, serving)
    }

    /// Admits a stream of bytes within a connection in HTTP/2 of the workload's own application.
    ///
    /// # Errors
    ///
    /// Names the limit when there is no room; metrics and log say so as well.
    pub fn admit_application_stream(
        self: &Arc<Self>,
        serving: &Arc<AtomicUsize>,
    ) -> Result<Permit, Exceeded> {
        let client = (ConnectionKind::Application, Client::Application);
        self.admit_client(client, Ipv4Addr::LOCALHOST.into(), serving)
    }

    fn admit_client(
        self: &Arc<Self>,
        (kind, client): (ConnectionKind, Client),
        address: IpAddr,
        serving: &Arc<AtomicUsize>,
    ) -> Result<Permit, Exceeded> {
        let mut inner = self.lock();
        let admission = match inner.budget.admit(kind, client) {
            Ok(admission) => admission,
            Err(exceeded) => {
                self.refused(&mut inner, exceeded, address);
                return Err(exceeded);
            }
        };
        if let Some(evicted) = admission.evicted {
            if let Some(notify) = inner.evictable.remove(&evicted) {
                notify.notify_one();
            }
            let exceeded = Exceeded {
                kind,
                name: "limits.max_unidentified_connections",
                limit: inner.budget.limits().unidentified,
            };
            self.refused(&mut inner, exceeded, address);
        }
        let evicted = Arc::<Notify>::default();
        if kind == ConnectionKind::Unidentified {
            inner
                .evictable
                .insert(admission.ticket, Arc::clone(&evicted));
        }
        drop(inner);
        serving.fetch_add(1, Ordering::Relaxed);
        Ok(Permit {
            connections: Arc::clone(self),
            ticket: admission.ticket,
            address,
            kind,
            evicted,
            serving: Arc::clone(serving),
        })
    }

    /// How many connections of others to the application are open.
    pub fn inbound(&self) -> usize {
        let inner = self.lock();
        let open = |kind| inner.budget.open(kind);
        open(ConnectionKind::Unidentified)
            + open(ConnectionKind::Plaintext)
            + open(ConnectionKind::Peer)
    }

    /// How many connections of the application to others are open.
    pub fn outbound(&self) -> usize {
        self.lock().budget.open(ConnectionKind::Application)
    }

    fn refused(&self, inner: &mut Inner, exceeded: Exceeded, client: IpAddr) {
        let totals = self.metrics.totals();
        totals.connections_refused.inc();
        let direction = match exceeded.kind {
            ConnectionKind::Application => Direction::Outbound,
            ConnectionKind::Unidentified | ConnectionKind::Plaintext | ConnectionKind::Peer => {
                Direction::Inbound
            }
        };
        let stats = self.metrics.tcp(HttpKey {
            direction,
            service: "refused".into(),
            peer: exceeded.kind.as_str().into(),
        });
        let reason = Reason::ConnectionLimit.as_str();
        stats.refused(reason);
        inner.unlogged += 1;
        let now = Instant::now();
        if inner
            .logged
            .is_some_and(|last| now.duration_since(last) < LOG_EVERY)
        {
            return;
        }
        inner.logged = Some(now);
        let count = std::mem::take(&mut inner.unlogged);
        tracing::warn!(reason, %client, count, limit = %exceeded, "connections refused");
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The budget is consistent between its calls, whatever panicked.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The client with a verified identity or, for `None`, at an address outside the mesh.
fn identified(identity: Option<&str>, address: IpAddr) -> (ConnectionKind, Client) {
    match identity {
        Some(identity) => (ConnectionKind::Peer, Client::Identity(identity.into())),
        None => (ConnectionKind::Plaintext, Client::at(address)),
    }
}

/// An accepted connection; it is open until this is dropped.
#[derive(Debug)]
pub struct Permit {
    connections: Arc<Connections>,
    ticket: Ticket,
    address: IpAddr,
    kind: ConnectionKind,
    evicted: Arc<Notify>,
    serving: Arc<AtomicUsize>,
}

impl Permit {
    /// Charges the connection to the client that it turned out to be of, a verified identity or, for
    /// `None`, its address outside the mesh. When this is `false` it has to be reset; metrics and
    /// log say why.
    #[must_use]
    pub fn identify(&mut self, identity: Option<&str>) -> bool {
        let (kind, client) = identified(identity, self.address);
        if kind == self.kind {
            return true;
        }
        let mut inner = self.connections.lock();
        inner.evictable.remove(&self.ticket);
        match inner.budget.identify(self.ticket, kind, client) {
            Ok(()) => {
                drop(inner);
                self.kind = kind;
                true
            }
            Err(exceeded) => {
                self.connections.refused(&mut inner, exceeded, self.address);
                false
            }
        }
    }

    /// Tells when the connection has to be closed for another one.
    pub fn evicted(&self) -> Arc<Notify> {
        Arc::clone(&self.evicted)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut inner = self.connections.lock();
        inner.evictable.remove(&self.ticket);
        inner.budget.release(self.ticket);
        drop(inner);
        self.serving.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ConnectionLimits = ConnectionLimits {
        total: 40,
        unidentified: 4,
        plaintext: 10,
        plaintext_per_client: 2,
        per_peer: 20,
    };

    #[tokio::test]
    async fn permits_give_back_what_they_took_and_refusals_are_counted() {
        let metrics = Metrics::new(10);
        let connections = Connections::new(LIMITS, metrics.clone());
        let serving = Arc::<AtomicUsize>::default();
        let client = [10, 0, 0, 1].into();
        let admit = |kind| connections.admit(kind, client, &serving);
        let mut held: Vec<Permit> = (0..3)
            .filter_map(|_| admit(ConnectionKind::Unidentified))
            .collect();
        assert!(held[0].identify(None) && held[1].identify(None));
        assert!(!held[2].identify(None), "two of a client");
        assert_eq!(metrics.totals().connections_refused.get(), 1);
        assert!(held[2].identify(Some("spiffe://weft.local/ns/shop/sa/web")));
        assert_eq!((connections.inbound(), connections.outbound()), (3, 0));
        assert!(metrics.encode().contains("reason=\"connection-limit\"} 1"));
        let program = admit(ConnectionKind::Application);
        assert_eq!((connections.inbound(), connections.outbound()), (3, 1));
        drop((held, program));
        assert_eq!((connections.inbound(), connections.outbound()), (0, 0));
        assert_eq!(serving.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn streams_of_bytes_count_as_connections_of_their_client() {
        let metrics = Metrics::new(10);
        let connections = Connections::new(LIMITS, metrics.clone());
        let serving = Arc::<AtomicUsize>::default();
        let client = [10, 0, 0, 1].into();
        let connection = connections.admit(ConnectionKind::Plaintext, client, &serving);
        let stream = connections.admit_stream(None, client, &serving).unwrap();
        let refused = connections.admit_stream(None, client, &serving);
        let exceeded = refused.unwrap_err();
        assert_eq!(exceeded.kind, ConnectionKind::Plaintext, "two of a client");
        assert_eq!(metrics.totals().connections_refused.get(), 1);
        let other = connections.admit_stream(None, [10, 0, 0, 2].into(), &serving);
        assert!(other.is_ok());
        drop(stream);
        assert!(connections.admit_stream(None, client, &serving).is_ok());
        let identity = Some("spiffe://weft.local/ns/shop/sa/web");
        let peer = |_| connections.admit_stream(identity, client, &serving);
        let peers: Vec<_> = (0..=LIMITS.per_peer).map(peer).collect();
        assert_eq!(
            peers.iter().filter(|peer| peer.is_ok()).count(),
            LIMITS.per_peer
        );
        let program = connections.admit_application_stream(&serving);
        assert_eq!(connections.outbound(), 1);
        drop((connection, other, peers, program));
        assert_eq!((connections.inbound(), connections.outbound()), (0, 0));
        assert_eq!(serving.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn the_oldest_unidentified_is_told_to_go() {
        let connections = Connections::new(LIMITS, Metrics::new(10));
        let serving = Arc::<AtomicUsize>::default();
        let admit = || {
            let kind = ConnectionKind::Unidentified;
            connections.admit(kind, [10, 0, 0, 1].into(), &serving)
        };
        let mut held: Vec<Permit> = (0..4).filter_map(|_| admit()).collect();
        let first = held[0].evicted();
        held.extend(admit());
        first.notified().await;
        assert!(!held[0].identify(None), "it is not counted any more");
        assert!(held[4].identify(None));
    }
}
