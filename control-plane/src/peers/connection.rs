//! Connections, and the calls on them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::{Instance, Peers, lock};
use crate::budget::{AnonymousId, DRAIN_MAX, Refusal};

/// What others can do to a connection of an instance.
#[derive(Debug)]
pub(super) struct Ends {
    not_after: i64,
    drain: CancellationToken,
    revoke: CancellationToken,
    cut: CancellationToken,
    calls: Arc<Calls>,
}

impl Ends {
    /// When the certificate that it was made with ends, seconds since the Unix epoch.
    pub(super) fn not_after(&self) -> i64 {
        self.not_after
    }

    /// Nothing begins on it any more, what stands goes on.
    pub(super) fn drain(&self) {
        self.drain.cancel();
    }

    /// It ends as soon as its streams were told why they do.
    pub(super) fn revoke(&self) {
        self.drain.cancel();
        self.revoke.cancel();
    }

    /// Cuts it if its peer does not read the end of a stream; whether that is so.
    pub(super) fn cut_unread(&self, now: Instant) -> bool {
        let unread = !self.cut.is_cancelled() && self.calls.are_unread(now);
        if unread {
            self.cut.cancel();
        }
        unread
    }
}

/// A connection of an instance, with its place.
#[derive(Debug)]
pub struct PeerConnection {
    peers: Arc<Peers>,
    instance: Arc<Instance>,
    number: u64,
    ends: Arc<Ends>,
}

impl Peers {
    /// Gives a connection of an instance a place, proved with a certificate that ends at
    /// `not_after`.
    pub fn begin_connection(
        self: &Arc<Self>,
        instance: &Arc<str>,
        not_after: i64,
    ) -> Result<PeerConnection, Refusal> {
        let number = self.next_number();
        let instance = self.instance(instance);
        {
            let mut all = lock(&self.accounts);
            let begun = lock(&instance.account).begin_connection(&mut all, &self.limits);
            drop(all);
            begun.inspect_err(|refusal| self.note_refused(&instance.name, refusal))?;
        }
        let ends = Arc::new(Ends {
            not_after,
            drain: CancellationToken::new(),
            revoke: CancellationToken::new(),
            cut: CancellationToken::new(),
            calls: Arc::default(),
        });
        let mut standing = lock(&instance.standing);
        standing.proved_until = standing.proved_until.max(not_after);
        standing.connections.insert(number, Arc::clone(&ends));
        drop(standing);
        Ok(PeerConnection {
            peers: Arc::clone(self),
            instance,
            number,
            ends,
        })
    }
}

impl PeerConnection {
    /// Fires when nothing may begin on it any more.
    pub fn drain(&self) -> &CancellationToken {
        &self.ends.drain
    }

    /// Fires when it has to end in a moment.
    pub fn revoked(&self) -> &CancellationToken {
        &self.ends.revoke
    }

    /// Fires when it has to be cut.
    pub fn cut(&self) -> &CancellationToken {
        &self.ends.cut
    }

    /// Begins a call; it counts until the guard is dropped, which is when its answer has ended.
    pub fn begin_call(&self) -> Result<Arc<CallGuard>, Refusal> {
        let now = Instant::now();
        let begun = lock(&self.instance.account).begin_call(&self.peers.limits, now);
        begun.inspect_err(|refusal| self.peers.note_refused(&self.instance.name, refusal))?;
        let number = self.peers.next_number();
        lock(&self.ends.calls.by_number).insert(number, None);
        Ok(Arc::new(CallGuard {
            calls: Arc::clone(&self.ends.calls),
            instance: Arc::clone(&self.instance),
            number,
        }))
    }

    /// Charges bytes that were received; how long nothing more may be read.
    pub fn charge_received(&self, bytes: u64) -> Duration {
        let mut account = lock(&self.instance.account);
        account.charge_received(bytes, &self.peers.limits, Instant::now())
    }
}

impl Drop for PeerConnection {
    fn drop(&mut self) {
        lock(&self.instance.standing)
            .connections
            .remove(&self.number);
        let mut all = lock(&self.peers.accounts);
        lock(&self.instance.account).end_connection(&mut all);
    }
}

/// Calls of one connection whose answers have not ended.
#[derive(Debug, Default)]
pub struct Calls {
    /// Since when there is only the end of the answer to be sent.
    by_number: Mutex<BTreeMap<u64, Option<Instant>>>,
}

impl Calls {
    /// How many there are.
    pub fn len(&self) -> usize {
        lock(&self.by_number).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn are_unread(&self, now: Instant) -> bool {
        let calls = lock(&self.by_number);
        let mut since = calls.values().flatten();
        since.any(|since| now.saturating_duration_since(*since) > DRAIN_MAX)
    }
}

/// A call whose answer has not ended.
#[derive(Debug)]
pub struct CallGuard {
    calls: Arc<Calls>,
    instance: Arc<Instance>,
    number: u64,
}

impl CallGuard {
    /// Its stream is over; what is left of it is to be read by the peer.
    pub fn finishing(&self) {
        if let Some(since) = lock(&self.calls.by_number).get_mut(&self.number) {
            *since = Some(Instant::now());
        }
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        lock(&self.calls.by_number).remove(&self.number);
        lock(&self.instance.account).end_call();
    }
}

/// The place of a connection that has not proved who it is.
#[derive(Debug)]
pub struct AnonymousPlace {
    peers: Arc<Peers>,
    id: AnonymousId,
    cut: CancellationToken,
}

impl Peers {
    /// Gives a connection a place that was just accepted; the one that has to go for it is cut.
    pub fn admit_anonymous(
        self: &Arc<Self>,
        address: SocketAddr,
    ) -> Result<AnonymousPlace, Refusal> {
        let mut anonymous = lock(&self.anonymous);
        let prefix = address.ip().into();
        let admitted = anonymous
            .connections
            .admit(prefix, &self.limits, Instant::now());
        let admitted = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => {
                drop(anonymous);
                self.note_refused(&address, &refusal);
                return Err(refusal);
            }
        };
        let cut = CancellationToken::new();
        anonymous.cuts.insert(admitted.id, cut.clone());
        let evicted = admitted.evicted.and_then(|id| anonymous.cuts.remove(&id));
        drop(anonymous);
        if let Some(evicted) = evicted {
            evicted.cancel();
            self.count(
                crate::budget::Reason::AnonymousConnections,
                &address,
                &"too many without a certificate: the oldest idle one was cut for this one",
            );
        }
        Ok(AnonymousPlace {
            peers: Arc::clone(self),
            id: admitted.id,
            cut,
        })
    }
}

impl AnonymousPlace {
    /// Fires when it has to be cut.
    pub fn cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// Notes whether a call is under way.
    pub fn set_busy(&self, busy: bool) {
        lock(&self.peers.anonymous)
            .connections
            .set_busy(self.id, busy);
    }
}

impl Drop for AnonymousPlace {
    fn drop(&mut self) {
        let mut anonymous = lock(&self.peers.anonymous);
        anonymous.connections.remove(self.id);
        anonymous.cuts.remove(&self.id);
    }
}
