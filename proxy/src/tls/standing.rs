//! The connections of this process to authenticated peers, and the signal that ends each. Core says
//! which have to end (`weft_core::standing`).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval};
use weft_core::name::ServiceName;
use weft_core::peer::VerifiedPeer;
use weft_core::reason::Reason;
use weft_core::standing::{ConnectionId, Ending, Handshake, Leaf, StandingConnections};

use super::{PeerError, Trust};

/// How often it is looked for connections whose time is over.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// States of a [`Signal`] in their order; it begins with 0, live. The last ones are those that are
/// cut, and say why.
const ENDING: u8 = 1;
const EXPIRED: u8 = 2;
const UNTRUSTED: u8 = 3;
const REVOKED: u8 = 4;

/// Where a peer was dialled: an endpoint of a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Dialled {
    /// The service.
    pub service: ServiceName,
    /// The service's port.
    pub port: u16,
    /// The endpoint's instance.
    pub instance: Arc<str>,
    /// Its address.
    pub address: SocketAddr,
}

/// The connections of this process to authenticated peers.
#[derive(Debug)]
pub struct StandingPeers {
    /// Locked when a connection comes or goes, never while it is used.
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    machine: StandingConnections<Dialled>,
    signals: HashMap<ConnectionId, Arc<Signal>>,
    /// Those whose time is over, with the moment at which they are cut.
    ending: HashMap<ConnectionId, Instant>,
    /// Whom the process believes now.
    trust: Option<Arc<Trust>>,
}

impl StandingPeers {
    /// No connection yet; one ends so long after the newest leaf of its peer has.
    pub fn new(expired_grace: Duration) -> Self {
        let grace = i64::try_from(expired_grace.as_secs()).unwrap_or(i64::MAX);
        Self {
            inner: Mutex::new(Inner {
                machine: StandingConnections::new(grace),
                signals: HashMap::new(),
                ending: HashMap::new(),
                trust: None,
            }),
        }
    }

    /// A connection to `peer` stands until what is returned is dropped.
    ///
    /// # Errors
    ///
    /// When the peer was revoked, or the root of its certificates left the trust bundle, since its
    /// certificates were checked.
    pub fn join(
        self: &Arc<Self>,
        peer: &VerifiedPeer,
        own: Option<Leaf>,
        dialled: Option<Dialled>,
    ) -> Result<StandingPeer, PeerError> {
        let mut inner = self.lock();
        if let Some(trust) = &inner.trust {
            if trust.is_revoked(peer.instance()) {
                return Err(PeerError::Revoked {
                    identity: peer.identity().clone(),
                    instance: peer.instance().to_string(),
                });
            }
            if !trust.has(peer.anchor()) {
                return Err(PeerError::Chain(webpki::Error::UnknownIssuer));
            }
        }
        // A handshake that began before our own root left proves us to nobody who has the new bundle.
        let trust = inner.trust.as_ref();
        let own = own.filter(|own| trust.is_none_or(|trust| trust.has(own.anchor)));
        let handshake = Handshake {
            identity: peer.identity(),
            instance: peer.instance(),
            leaf: Leaf {
                not_after: peer.not_after(),
                anchor: peer.anchor(),
            },
            own,
            dialled,
        };
        let now = crate::clock::unix_now();
        let id = inner.machine.handle_handshake(handshake, now);
        let signal = Arc::new(Signal::default());
        inner.signals.insert(id, Arc::clone(&signal));
        Ok(StandingPeer {
            peers: Arc::clone(self),
            id,
            signal,
        })
    }

    /// Puts a trust bundle in force: connections to peers that it revokes are cut before this
    /// returns. Those whose peers' certificates lead to a root that it does not have end like those
    /// whose certificates end now.
    pub(super) fn trust(&self, trust: Arc<Trust>) {
        let mut inner = self.lock();
        let revoked = inner.machine.handle_revoked(|name| trust.is_revoked(name));
        let now = crate::clock::unix_now();
        inner.machine.handle_bundle(|anchor| trust.has(anchor), now);
        inner.trust = Some(trust);
        for id in &revoked {
            if let Some(signal) = inner.signals.get(id) {
                signal.set(REVOKED);
            }
        }
        drop(inner);
        if !revoked.is_empty() {
            let connections = revoked.len();
            tracing::warn!(connections, "connections to revoked instances were cut");
        }
    }

    /// Whom to dial now, so that connections that stand outlive their first certificates.
    pub fn poll_proofs(&self) -> Vec<Dialled> {
        let now = crate::clock::unix_now();
        self.lock().machine.poll_proofs(now)
    }

    /// Ends connections whose peers have proved no certificate that still counts: they are told to end,
    /// and cut `drain` later. Runs until it is dropped.
    pub async fn end_expired(self: Arc<Self>, drain: Duration) {
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.lock().end(drain);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The machine is consistent between its calls, whatever panicked.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn end(&mut self, drain: Duration) {
        let ended = self.machine.poll_ended(crate::clock::unix_now());
        let ended: HashMap<ConnectionId, Ending> = ended.into_iter().collect();
        // A newer certificate that came meanwhile lets those live that have not been cut.
        self.ending.retain(|id, _| ended.contains_key(id));
        let now = Instant::now();
        let mut cut = 0;
        for (id, ending) in ended {
            let Some(signal) = self.signals.get(&id) else {
                continue;
            };
            let cut_at = *self.ending.entry(id).or_insert(now + drain);
            let state = match ending {
                _ if now < cut_at => ENDING,
                Ending::Expired => EXPIRED,
                Ending::Untrusted => UNTRUSTED,
                Ending::Revoked => REVOKED,
            };
            cut += usize::from(signal.set(state) && state != ENDING);
        }
        if cut > 0 {
            tracing::warn!(
                connections = cut,
                "connections were cut whose peers have proved no certificate that still counts"
            );
        }
    }
}

/// A connection that stands; it is forgotten when this is dropped.
#[derive(Debug)]
pub struct StandingPeer {
    peers: Arc<StandingPeers>,
    id: ConnectionId,
    signal: Arc<Signal>,
}

impl StandingPeer {
    /// What ends it.
    pub fn signal(&self) -> &Arc<Signal> {
        &self.signal
    }
}

impl Drop for StandingPeer {
    fn drop(&mut self) {
        let mut inner = self.peers.lock();
        inner.machine.handle_closed(self.id);
        inner.signals.remove(&self.id);
        inner.ending.remove(&self.id);
    }
}

/// Tells one connection to end.
#[derive(Debug, Default)]
pub struct Signal {
    state: AtomicU8,
    /// The task that reads or writes.
    io: AtomicWaker,
    changed: Notify,
}

impl Signal {
    /// Until the connection should come to an end.
    pub async fn ending(&self) {
        self.reached(ENDING).await;
    }

    /// Until the connection is cut.
    pub async fn cut(&self) {
        self.reached(EXPIRED).await;
    }

    /// Whether the connection is cut; otherwise the task is woken when that happens. For the one
    /// task that reads and writes.
    pub(crate) fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.io.register(cx.waker());
        match self.is_cut() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Whether the connection should come to an end, or is cut already.
    pub(crate) fn is_ending(&self) -> bool {
        self.state.load(Ordering::Acquire) >= ENDING
    }

    /// Whether the connection is cut.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut_reason().is_some()
    }

    /// Why the connection is cut; `None` where it is not.
    pub(crate) fn cut_reason(&self) -> Option<Reason> {
        let ending = match self.state.load(Ordering::Acquire) {
            ..EXPIRED => return None,
            EXPIRED => Ending::Expired,
            UNTRUSTED => Ending::Untrusted,
            REVOKED.. => Ending::Revoked,
        };
        Some(ending.reason())
    }

    /// Cuts the connection.
    #[cfg(test)]
    pub(crate) fn cut_now(&self) {
        self.set(REVOKED);
    }

    /// Whether the state is a new one.
    fn set(&self, state: u8) -> bool {
        let is_new = self.state.fetch_max(state, Ordering::AcqRel) < state;
        if is_new {
            self.io.wake();
            self.changed.notify_waiters();
        }
        is_new
    }

    async fn reached(&self, state: u8) {
        let mut changed = std::pin::pin!(self.changed.notified());
        loop {
            // Before the state is looked at: what changes from now on is told.
            changed.as_mut().enable();
            if self.state.load(Ordering::Acquire) >= state {
                return;
            }
            changed.as_mut().await;
            changed.set(self.changed.notified());
        }
    }
}
