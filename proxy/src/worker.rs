//! The state of one worker. Nothing is handed between workers while a request is served, but for
//! connections to ports that limit them (`pool/owner.rs`).

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::interval;

use crate::application::Applications;
use crate::buffers;
use crate::drain::Cutting;
use crate::pool::{Kept, Pool};
use crate::shared::Shared;

/// How often idle connections are looked for. Policies have times from a second on.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Every so many times it is also asked which endpoints are gone, which means to look at them all.
const SWEEPS_WHOLE: u64 = 5;

/// The state of one worker.
#[derive(Debug)]
pub struct Worker {
    /// What all share.
    pub shared: Arc<Shared>,
    /// Connections to peers.
    pub pool: Pool,
    /// Connections to the application.
    pub applications: Applications,
    /// Copies of requests that are under way.
    pub copying: Cell<usize>,
    /// Whether requests that end now were cut by the sidecar.
    pub(crate) cutting: Cutting,
    /// Connections being served here, upgraded ones included.
    pub(crate) serving: Arc<AtomicUsize>,
}

impl Worker {
    /// Nothing is served yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            pool: Pool::new(
                Arc::clone(&shared.limited),
                Arc::clone(&shared.tls),
                Arc::clone(&shared.config),
                shared.metrics.clone(),
            ),
            applications: Applications::new(Arc::clone(&shared)),
            copying: Cell::new(0),
            cutting: shared.drain.cutting(),
            serving: Arc::default(),
            shared,
        }
    }

    /// Ends connections that have been idle for too long, or whose endpoint is gone, and frees buffers
    /// that nobody needs, until it is dropped.
    pub(crate) async fn sweep(self: Rc<Self>) {
        let mut tick = interval(SWEEP_EVERY);
        let timeouts = &self.shared.config.timeouts;
        for number in 0u64.. {
            tick.tick().await;
            buffers::sweep();
            let whole = number.is_multiple_of(SWEEPS_WHOLE);
            let snapshot = self.shared.mesh.snapshot();
            self.pool.sweep(|key| {
                let policy = snapshot.port_of(key).map(|port| &port.policy);
                let idle = match policy.and_then(|policy| policy.idle_timeout) {
                    // One that is in no hurry is left alone until all are looked at.
                    None if !whole => Some(Duration::MAX),
                    _ if whole && !snapshot.holds(key) => None,
                    own => Some(own.unwrap_or(timeouts.peer_idle)),
                };
                let is_limited = policy.is_some_and(|policy| policy.max_connections.is_some());
                Kept { idle, is_limited }
            });
            if whole {
                self.applications.sweep(timeouts.application_idle);
            }
        }
    }

    /// Until every connection has ended, or the time for it is over.
    pub(crate) async fn drained(&self) {
        let cut = self.shared.drain.cut();
        let mut cut = std::pin::pin!(cut);
        let mut tick = interval(Duration::from_millis(20));
        // Other workers' requests may be under way over connections that this one drives.
        while self.serving.load(Ordering::Relaxed) > 0 || self.shared.limited.is_busy() {
            tokio::select! {
                () = &mut cut => return,
                _ = tick.tick() => {}
            }
        }
    }
}

/// Where a redirected connection was meant to go, by the kernel's record of it. One that nobody
/// redirected is reset.
pub fn redirected(stream: &TcpStream, client: SocketAddr) -> Option<SocketAddr> {
    match original_destination(stream) {
        Ok(Some(destination)) => return Some(destination),
        Ok(None) => tracing::debug!(%client, "a connection that nobody redirected: refused"),
        Err(error) => tracing::warn!(%client, %error, "original destination unknown"),
    }
    crate::abort::reset(stream);
    None
}

/// Whether a connection was made to the listener itself and not redirected there. Connection tracking
/// then records the listener's own address, and dialling that leads back here.
pub fn is_direct(stream: &TcpStream, destination: SocketAddr) -> bool {
    let canonical = |address: SocketAddr| (address.ip().to_canonical(), address.port());
    stream.local_addr().map(canonical).ok() == Some(canonical(destination))
}

fn original_destination(stream: &TcpStream) -> io::Result<Option<SocketAddr>> {
    let local = stream.local_addr()?;
    let mapped = match local.ip() {
        IpAddr::V6(address) => address.to_ipv4_mapped().is_some(),
        IpAddr::V4(_) => true,
    };
    crate::intercept::original_dst(stream, mapped)
}
