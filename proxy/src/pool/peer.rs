//! The driver of a set of connections: it makes the dials that `weft_core::dialling` decides on, and
//! hands places to the requests that wait.
//!
//! A dial goes on when the request that it was begun for leaves, and whoever has waited longest is
//! served by it.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::timeout;
use weft_core::dialling::{
    ConnectionId, ConnectionSet, Grant, NewConnection, Step, Terms, Want, own_share,
};
use weft_core::reason::Reason;

use super::carrier::Made;
use super::error::DialError;
use super::owner::{Carrier, Exclusive, Owner, Wire, Worker};
use crate::telemetry::metrics::{Active, Metrics, PoolKind, PoolStats};

/// What a waiting request is told by.
type Waiter<O> = oneshot::Sender<Result<Held<O>, DialError>>;

/// A set of connections of one owner.
pub(super) struct Peer<O: Owner> {
    kind: PoolKind,
    metrics: Metrics,
    limit: O::Limit,
    /// Connections that carry something, as a scrape sees them.
    active: Active,
    state: O::Cell,
}

/// What is behind the lock, where there is one.
pub(super) struct State<O: Owner> {
    set: ConnectionSet<O::Key, O::Carrier, Waiter<O>>,
    /// How each destination is dialled: what requests last came with.
    dials: BTreeMap<O::Key, O::Dial>,
}

impl<O: Owner> Default for State<O> {
    fn default() -> Self {
        Self {
            set: ConnectionSet::default(),
            dials: BTreeMap::new(),
        }
    }
}

impl<O: Owner> fmt::Debug for Peer<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// A place on a connection for one request, given back when dropped.
pub(super) struct Held<O: Owner> {
    peer: O::Ref<Peer<O>>,
    grant: Grant<O::Carrier>,
    /// The client's place among those that share such connections.
    share: Option<O::Share>,
}

impl<O: Owner> fmt::Debug for Held<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&self.grant).finish()
    }
}

impl<O: Owner> Held<O> {
    /// Has it hold its client's place until the connection is free again.
    pub(super) fn charge(&mut self, share: O::Share) {
        self.share = Some(share);
    }

    /// What requests are sent with.
    pub(super) fn line(&self) -> &O::Line {
        &self.grant.connection.line
    }

    /// Why its connection is cut, where it is one to another sidecar; `None` where it is not.
    pub(super) fn cut_reason(&self) -> Option<Reason> {
        self.grant.connection.signal.as_ref()?.cut_reason()
    }

    pub(super) fn is_reused(&self) -> bool {
        self.grant.is_reused
    }

    /// How long its connection had not been used when this place was given.
    pub(super) fn unused_for(&self) -> Duration {
        crate::clock::now().saturating_since(self.grant.last_used)
    }

    pub(super) fn retire(&self) {
        let id = self.grant.id;
        self.peer.state.with(|state| state.set.retire(id));
    }
}

impl<O: Owner> Drop for Held<O> {
    fn drop(&mut self) {
        let share = self.share.take();
        release::<O>(&self.peer, self.grant.id, &self.grant.connection, share);
    }
}

impl Peer<Worker> {
    /// The connections of a worker to one destination.
    pub(super) fn of_worker(kind: PoolKind, metrics: &Metrics) -> Rc<Self> {
        Rc::new(Self::new(kind, metrics, ()))
    }
}

impl<O: Owner> Peer<O> {
    pub(super) fn new(kind: PoolKind, metrics: &Metrics, limit: O::Limit) -> Self {
        Self {
            kind,
            metrics: metrics.clone(),
            limit,
            active: metrics.pool(kind).active.register(),
            state: O::Cell::default(),
        }
    }

    /// The limit that its connections share with others.
    pub(super) fn limit(&self) -> &O::Limit {
        &self.limit
    }

    pub(super) fn stats(&self) -> &PoolStats {
        self.metrics.pool(self.kind)
    }

    /// Counts a connection among those that are open, for as long as this is kept.
    fn opened(&self) -> Open {
        let stats = self.stats();
        stats.opened.inc();
        stats.connections.add(1);
        Open(self.metrics.clone(), self.kind)
    }

    /// Closes connections that carried nothing for longer than `idle` says of them, and those for
    /// one request at a time beyond `spare`; whether there is anything left.
    pub(super) fn sweep(&self, idle: impl Fn(&O::Key, bool) -> Duration, spare: usize) -> bool {
        self.state.with(|state| {
            state.set.sweep(crate::clock::now(), idle, spare);
            let State { set, dials, .. } = state;
            dials.retain(|key, _dial| set.knows(key));
            !set.is_unused()
        })
    }

    /// Nobody asks for it any more: what carries nothing is closed, the rest finishes.
    pub(super) fn close(&self) {
        self.state.with(|state| state.set.close());
    }

    /// Looks at the set.
    pub(super) fn look<R>(
        &self,
        act: impl FnOnce(&ConnectionSet<O::Key, O::Carrier, Waiter<O>>) -> R,
    ) -> R {
        self.state.with(|state| act(&state.set))
    }

    /// Closes the connection that has carried nothing for the longest time.
    pub(super) fn evict_idle(&self) -> bool {
        self.state.with(|state| state.set.evict_idle())
    }

    fn busy(&self, terms: &Terms, patience: Duration) -> DialError {
        let connections = terms.bounds.connections;
        let (open, own) = self.look(|set| (set.open(), set.own()));
        let own_most = own_share(connections);
        let is_own = matches!(terms.want, Want::Own(_)) && own >= own_most;
        let (open, most, of) = match is_own {
            true => (
                own,
                own_most,
                ", each kept by one request for itself (tunnels)",
            ),
            false => (open, connections, ""),
        };
        DialError::Busy {
            patience,
            open,
            most,
            of,
        }
    }
}

/// A place on a connection that stands.
pub(super) fn take<O: Owner>(
    peer: &O::Ref<Peer<O>>,
    key: &O::Key,
    terms: &Terms,
) -> Option<Held<O>> {
    let grant = peer.state.with(|state| {
        let grant = state.set.take(key, terms);
        peer.active.set(state.set.busy());
        grant
    })?;
    Some(held::<O>(peer, grant))
}

fn held<O: Owner>(peer: &O::Ref<Peer<O>>, grant: Grant<O::Carrier>) -> Held<O> {
    let peer = peer.clone();
    Held {
        peer,
        grant,
        share: None,
    }
}

/// A place on a connection, which is waited for. `dial` makes one.
pub(super) async fn wait<O: Owner>(
    peer: &O::Ref<Peer<O>>,
    key: &O::Key,
    terms: Terms,
    dial: O::Dial,
) -> Result<Held<O>, DialError> {
    let (sender, receiver) = oneshot::channel();
    let ticket = peer.state.with(|state| {
        let ticket = state.set.wait(key, terms, sender);
        state.dials.insert(key.clone(), dial);
        ticket
    });
    let Ok(ticket) = ticket else {
        peer.stats().overflowed.inc();
        let waiting = peer.look(|set| set.waiting());
        return Err(DialError::Full { waiting });
    };
    peer.stats().pending.add(1);
    let waiting = Waiting::<O> { peer, key, ticket };
    serve::<O>(peer);
    let arrived = arrival::<O>(peer, terms, receiver).await;
    drop(waiting);
    arrived
}

async fn arrival<O: Owner>(
    peer: &O::Ref<Peer<O>>,
    terms: Terms,
    mut receiver: oneshot::Receiver<Result<Held<O>, DialError>>,
) -> Result<Held<O>, DialError> {
    let arrived = async {
        loop {
            tokio::select! {
                biased;
                told = &mut receiver => return told,
                () = O::freed(&peer.limit) => serve::<O>(peer),
            }
        }
    };
    match timeout(terms.patience, arrived).await {
        Ok(Ok(result)) => result,
        // Nobody drops a sender unanswered but at the end of a worker.
        Ok(Err(_)) | Err(_) => {
            peer.stats().overflowed.inc();
            Err(peer.busy(&terms, terms.patience))
        }
    }
}

/// Does what there is to do: gives places to those who wait, and dials.
pub(super) fn serve<O: Owner>(peer: &O::Ref<Peer<O>>) {
    loop {
        let step = peer.state.with(|state| {
            let step = state.set.poll(|| O::place(&peer.limit))?;
            peer.active.set(state.set.busy());
            Some(match step {
                Step::Serve(waiter, grant) => Step::Serve(waiter, grant),
                Step::Dial(key, place) => {
                    let dial = state.dials.get(&key).cloned();
                    Step::Dial((key, dial), place)
                }
            })
        });
        match step {
            None => return,
            Some(Step::Serve(waiter, grant)) => {
                peer.stats().pending.add(-1);
                // Gone meanwhile: dropped, the place is another's.
                let _taken = waiter.send(Ok(held::<O>(peer, grant)));
            }
            Some(Step::Dial((key, dial), place)) => {
                let begun = Begun {
                    peer: peer.clone(),
                    key,
                    is_over: false,
                };
                if let Some(dial) = dial {
                    spawn_local(run::<O>(begun, dial, place));
                }
            }
        }
    }
}

/// A dial in flight. Dropped before it is over, its worker has ended.
struct Begun<O: Owner> {
    peer: O::Ref<Peer<O>>,
    key: O::Key,
    is_over: bool,
}

impl<O: Owner> Drop for Begun<O> {
    fn drop(&mut self) {
        if !self.is_over {
            let Self { peer, key, .. } = self;
            peer.state.with(|state| state.set.on_dial_dropped(key));
            O::pass_on(&peer.limit);
        }
    }
}

/// Makes a connection, and serves those who wait.
async fn run<O: Owner>(mut begun: Begun<O>, dial: O::Dial, place: O::Place) {
    let made = O::dial(&dial).await;
    begun.is_over = true;
    let peer = begun.peer.clone();
    match made {
        Ok(made) => add::<O>(&peer, &begun.key, (made, place)),
        Err(error) => {
            // Given back before others are told that there is no connection.
            drop(place);
            peer.stats().failed.inc();
            let told = peer
                .state
                .with(|state| state.set.on_dial_failed(&begun.key));
            let left = i64::try_from(told.len()).unwrap_or_default();
            peer.stats().pending.add(-left);
            for waiter in told {
                let _gone = waiter.send(Err(error.clone()));
            }
        }
    }
    serve::<O>(&peer);
}

fn add<O: Owner>(peer: &O::Ref<Peer<O>>, key: &O::Key, (made, place): (Made<O::Line>, O::Place)) {
    let Made {
        line,
        generation,
        streams,
        signal,
    } = made;
    let new = NewConnection {
        generation,
        is_exclusive: line.is_exclusive(),
        streams: streams.as_ref().map_or(1, |streams| streams.most()),
        connection: O::carrier(Carrier {
            line,
            signal,
            _open: peer.opened(),
            _place: place,
        }),
    };
    let id = peer.state.with(|state| {
        let now = crate::clock::now();
        state.set.on_connected(key, new, now)
    });
    if let Some(streams) = streams {
        let weak = O::downgrade(peer);
        streams.on_change(Box::new(move |streams| {
            let Some(peer) = O::upgrade(&weak) else {
                return;
            };
            peer.state.with(|state| state.set.on_streams(id, streams));
            serve::<O>(&peer);
        }));
    }
}

/// A request has left a connection. Its client's place is given back once another request may have
/// the connection.
fn release<O: Owner>(
    peer: &O::Ref<Peer<O>>,
    id: ConnectionId,
    connection: &O::Carrier,
    share: Option<O::Share>,
) {
    let (must_wait, waiting) = peer.state.with(|state| {
        let must_wait = state.set.on_released(id, crate::clock::now());
        peer.active.set(state.set.busy());
        (must_wait, state.set.waiting())
    });
    if !must_wait {
        if waiting > 0 {
            serve::<O>(peer);
        }
        return;
    }
    let (peer, connection) = (peer.clone(), connection.clone());
    spawn_local(async move {
        // In HTTP/1.1 it may still have to take the end of a request.
        connection.line.settled().await;
        drop(connection);
        serve::<O>(&peer);
        drop(share);
    });
}

/// A connection that is counted among those that are open.
#[derive(Debug)]
pub(super) struct Open(Metrics, PoolKind);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.pool(self.1).connections.add(-1);
    }
}

/// A request in the queue; it may leave at any time.
struct Waiting<'a, O: Owner> {
    peer: &'a O::Ref<Peer<O>>,
    key: &'a O::Key,
    ticket: u64,
}

impl<O: Owner> Drop for Waiting<'_, O> {
    fn drop(&mut self) {
        let left = self
            .peer
            .state
            .with(|state| state.set.leave(self.key, self.ticket));
        if left {
            self.peer.stats().pending.add(-1);
        }
    }
}
