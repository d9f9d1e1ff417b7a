//! The connections to one destination, and the requests that wait for one: the one way in which a
//! request comes to a connection.
//!
//! A request takes a place on a connection that stands, or waits. As long as requests wait, as many
//! connections are made as it takes (`weft_core::dialling`). A connection that is being made belongs
//! to the destination and not to the request that it was begun for: it goes on when that request
//! leaves, and whoever has waited longest is served by it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout};
use weft_core::dialling::{Bounds, Demand};

use super::carrier::{Carrier, Made, Slot};
use super::error::DialError;
use crate::telemetry::metrics::{Metrics, PoolKind, PoolStats};

/// Makes a connection.
pub(super) type Dial = Rc<dyn Fn() -> Dialling>;
/// A connection that is being made.
pub(super) type Dialling = Pin<Box<dyn Future<Output = Result<Made, DialError>>>>;

/// The request that a connection is made for, where there is one.
type First = oneshot::Sender<Result<Slot, DialError>>;

/// On which terms requests come to connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// Connections made under another one are not used.
    pub(super) generation: u64,
    /// Requests that a connection is given in all.
    pub(super) requests: u32,
    /// Requests that a connection is given at a time at most, whatever its server takes.
    pub(super) streams: u32,
    /// Whether connections take one request at a time, where that is known before one stands.
    pub(super) exclusive: Option<bool>,
    pub(super) bounds: Bounds,
    /// How long a request waits.
    pub(super) patience: Duration,
}

impl Terms {
    /// Whether a connection is given requests any more.
    fn keep(&self, carrier: &Carrier) -> bool {
        carrier.is_usable() && !self.is_spent(carrier)
    }

    /// Whether it has carried all that it may.
    fn is_spent(&self, carrier: &Carrier) -> bool {
        self.requests < u32::MAX && carrier.carried() >= self.requests
    }
}

/// A destination.
pub(super) struct Peer {
    kind: PoolKind,
    metrics: Metrics,
    /// Requests in the queue, those that have left not counted.
    waiting: Cell<u32>,
    /// Connections on which nothing is under way, as the metrics were last told.
    unused: Cell<i64>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// What requests last came with.
    last: Option<(Terms, Dial)>,
    /// Connections for several requests at a time.
    shared: Vec<Rc<Carrier>>,
    /// Connections for one request at a time, on which nothing is under way; the one used last is
    /// taken first, so that the others may end.
    idle: Vec<Rc<Carrier>>,
    /// Connections for one request at a time that have one.
    busy: u32,
    /// Whether connections take one request at a time, once one has shown it.
    exclusive: Option<bool>,
    dialling: u32,
    /// In the order in which they came, some of which may have left.
    queue: VecDeque<Waiter>,
}

/// A request that waits.
struct Waiter {
    sender: oneshot::Sender<Result<Slot, DialError>>,
    /// Whether it is one of those that [`Peer::waiting`] counts.
    counted: Rc<Cell<bool>>,
}

impl Waiter {
    fn has_left(&self) -> bool {
        self.sender.is_closed()
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("kind", &self.kind)
            .field("waiting", &self.waiting)
            .finish_non_exhaustive()
    }
}

impl Peer {
    pub(super) fn new(kind: PoolKind, metrics: &Metrics) -> Rc<Self> {
        Rc::new(Self {
            kind,
            metrics: metrics.clone(),
            waiting: Cell::new(0),
            unused: Cell::new(0),
            state: RefCell::default(),
        })
    }

    pub(super) fn stats(&self) -> &PoolStats {
        self.metrics.pool(self.kind)
    }

    /// Counts a connection among those that are open, for as long as this is kept.
    pub(super) fn opened(&self) -> Open {
        let stats = self.stats();
        stats.opened.inc();
        stats.connections.add(1);
        Open(self.metrics.clone(), self.kind)
    }

    /// A place on a connection that stands.
    pub(super) fn take(&self, terms: &Terms) -> Option<Slot> {
        self.state.borrow_mut().take(terms)
    }

    /// A place on a connection, which is waited for. `dial` makes one.
    pub(super) async fn wait(self: &Rc<Self>, terms: Terms, dial: Dial) -> Result<Slot, DialError> {
        let (sender, receiver) = oneshot::channel();
        let counted = Rc::new(Cell::new(false));
        {
            let mut state = self.state.borrow_mut();
            if self.waiting.get() >= terms.bounds.waiting {
                self.stats().overflowed.inc();
                return Err(DialError::Full {
                    waiting: terms.bounds.waiting,
                });
            }
            state.last = Some((terms, dial));
            state.forget_left(self.waiting.get());
            let counted = Rc::clone(&counted);
            state.queue.push_back(Waiter { sender, counted });
        }
        let _waiting = Waiting::begin(self, counted);
        self.dial();
        self.arrival(terms, receiver).await
    }

    /// A place on a connection that is made for this request: where one that stood was no good.
    pub(super) async fn fresh(
        self: &Rc<Self>,
        terms: Terms,
        dial: Dial,
    ) -> Result<Slot, DialError> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.state.borrow_mut();
            if state.open() + state.dialling >= terms.bounds.connections {
                return Err(state.busy(&terms, Duration::ZERO));
            }
            state.dialling += 1;
            state.last = Some((terms, Rc::clone(&dial)));
        }
        spawn_local(Rc::clone(self).run(dial, Some(sender)));
        self.arrival(terms, receiver).await
    }

    async fn arrival(
        &self,
        terms: Terms,
        receiver: oneshot::Receiver<Result<Slot, DialError>>,
    ) -> Result<Slot, DialError> {
        match timeout(terms.patience, receiver).await {
            Ok(Ok(result)) => result,
            // Nobody drops a sender unanswered but at the end of the worker.
            Ok(Err(_)) | Err(_) => {
                self.stats().overflowed.inc();
                Err(self.state.borrow().busy(&terms, terms.patience))
            }
        }
    }

    /// Begins to make as many connections as it takes.
    fn dial(self: &Rc<Self>) {
        let (dials, dial) = {
            let mut state = self.state.borrow_mut();
            let Some((terms, dial)) = state.last.clone() else {
                return;
            };
            state.drop_spent(&terms);
            let demand = state.demand(self.waiting.get(), &terms);
            let dials = demand.dials(&terms.bounds);
            state.dialling += dials;
            (dials, dial)
        };
        for _ in 0..dials {
            spawn_local(Rc::clone(self).run(Rc::clone(&dial), None));
        }
    }

    /// Makes a connection, and serves those who wait; first the one that it is made for.
    async fn run(self: Rc<Self>, dial: Dial, first: Option<First>) {
        let made = dial().await;
        match made {
            Ok(made) => {
                self.add(made, first);
            }
            Err(error) => {
                self.stats().failed.inc();
                self.fail(&error, first);
            }
        }
        self.serve();
    }

    fn add(self: &Rc<Self>, made: Made, first: Option<First>) {
        let slot = {
            let mut state = self.state.borrow_mut();
            state.dialling -= 1;
            let Some((terms, _dial)) = &state.last else {
                return;
            };
            let terms = *terms;
            let generation = made.generation;
            let carrier = Carrier::new(made, self);
            state.exclusive = Some(carrier.is_exclusive());
            if generation == terms.generation {
                state.renew(generation);
            }
            match (carrier.is_exclusive(), first.is_some()) {
                (true, true) => {
                    state.busy += 1;
                    Some(carrier.place())
                }
                (true, false) => {
                    state.idle.push(carrier);
                    None
                }
                (false, special) => {
                    state.shared.push(Rc::clone(&carrier));
                    special.then(|| carrier.place())
                }
            }
        };
        if let (Some(first), Some(slot)) = (first, slot) {
            // Gone meanwhile: the place is another's.
            let _taken = first.send(Ok(slot));
        }
    }

    /// Tells those whom the connection would have served.
    fn fail(&self, error: &DialError, first: Option<First>) {
        let told = {
            let mut state = self.state.borrow_mut();
            state.dialling -= 1;
            if let Some(first) = first {
                let _gone = first.send(Err(error.clone()));
                return;
            }
            let each = match &state.last {
                Some((terms, _dial)) => state.per_connection(terms),
                None => 1,
            };
            let queue = &mut state.queue;
            let mut told = Vec::new();
            while (told.len() as u64) < u64::from(each)
                && let Some(waiter) = queue.pop_front()
            {
                if !waiter.has_left() {
                    told.push(waiter);
                }
            }
            told
        };
        for waiter in told {
            self.uncount(&waiter.counted);
            let _gone = waiter.sender.send(Err(error.clone()));
        }
    }

    /// Gives places to those who wait, as far as there are any, and has more made where need be.
    pub(super) fn serve(self: &Rc<Self>) {
        while self.waiting.get() > 0 {
            let next = self.state.borrow_mut().next();
            let Some((waiter, slot)) = next else {
                break;
            };
            self.uncount(&waiter.counted);
            // It is there: it was asked a moment ago, on this very thread.
            let _taken = waiter.sender.send(Ok(slot));
        }
        if self.waiting.get() > 0 {
            self.dial();
        }
    }

    /// A request waits no longer.
    fn uncount(&self, counted: &Cell<bool>) {
        if counted.replace(false) {
            self.waiting.set(self.waiting.get() - 1);
            self.stats().pending.add(-1);
        }
    }

    /// A request has left a connection.
    pub(super) fn on_left(self: &Rc<Self>, carrier: &Rc<Carrier>) {
        if carrier.is_exclusive() {
            let mut state = self.state.borrow_mut();
            state.busy = state.busy.saturating_sub(1);
            if carrier.is_usable() {
                state.idle.push(Rc::clone(carrier));
            }
        }
        if self.waiting.get() == 0 {
            return;
        }
        if !carrier.is_exclusive() || carrier.is_ready() || !carrier.is_usable() {
            return self.serve();
        }
        let (peer, carrier) = (Rc::clone(self), Rc::clone(carrier));
        spawn_local(async move {
            carrier.ready().await;
            peer.serve();
        });
    }

    /// Forgets connections that were idle for longer than `idle` says of them, and those for one
    /// request at a time beyond `spare`; whether there is anything left.
    pub(super) fn sweep(&self, idle: impl Fn(&Carrier) -> Duration, spare: usize) -> bool {
        let now = Instant::now();
        let mut state = self.state.borrow_mut();
        let stays = |carrier: &Rc<Carrier>| {
            let used =
                carrier.in_flight() > 0 || now.duration_since(carrier.last_used()) < idle(carrier);
            used && carrier.is_usable()
        };
        state.shared.retain(stays);
        state.idle.retain(stays);
        let surplus = state.idle.len().saturating_sub(spare);
        // The one used last is at the end.
        drop(state.idle.drain(..surplus));
        let shared = state.shared.iter();
        let unused = shared.filter(|carrier| carrier.in_flight() == 0).count() + state.idle.len();
        self.tell_unused(i64::try_from(unused).unwrap_or(i64::MAX));
        state.open() > 0 || state.dialling > 0 || self.waiting.get() > 0
    }

    /// Connections that stand.
    pub(super) fn open(&self) -> usize {
        self.state.borrow().open() as usize
    }

    /// Not with each request: the gauge is shared by all workers.
    fn tell_unused(&self, unused: i64) {
        let before = self.unused.replace(unused);
        self.stats().idle.add(unused - before);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.tell_unused(0);
    }
}

impl State {
    fn take(&mut self, terms: &Terms) -> Option<Slot> {
        if let Some(slot) = self.take_idle(terms) {
            return Some(slot);
        }
        self.shared.retain(|carrier| terms.keep(carrier));
        let fits = |carrier: &&Rc<Carrier>| {
            carrier.generation() == terms.generation && carrier.has_room(terms.streams)
        };
        self.shared.iter().find(fits).map(Carrier::place)
    }

    /// The one used last that takes a request at once. Others may still be at the end of an answer.
    fn take_idle(&mut self, terms: &Terms) -> Option<Slot> {
        for index in (0..self.idle.len()).rev() {
            let carrier = &self.idle[index];
            let fits = carrier.generation() == terms.generation && !terms.is_spent(carrier);
            if fits && carrier.is_ready() {
                let carrier = self.idle.remove(index);
                self.busy += 1;
                return Some(carrier.place());
            }
            if !fits || !carrier.is_usable() {
                self.idle.remove(index);
            }
        }
        None
    }

    /// Forgets connections that are closed, that have carried all that they may, or that were made
    /// under other terms: what is under way on them finishes.
    fn drop_spent(&mut self, terms: &Terms) {
        self.shared.retain(|carrier| terms.keep(carrier));
        let now = terms.generation;
        self.idle
            .retain(|carrier| terms.keep(carrier) && carrier.generation() == now);
    }

    /// A connection of a generation stands: those of others finish what they carry.
    fn renew(&mut self, generation: u64) {
        self.shared
            .retain(|carrier| carrier.generation() == generation);
    }

    /// Who has waited longest, with a place for it.
    fn next(&mut self) -> Option<(Waiter, Slot)> {
        let (terms, _dial) = self.last.clone()?;
        while self.queue.front().is_some_and(Waiter::has_left) {
            self.queue.pop_front();
        }
        self.queue.front()?;
        let slot = self.take(&terms)?;
        let waiter = self.queue.pop_front()?;
        Some((waiter, slot))
    }

    /// Forgets those who have left, where they are most of the queue.
    fn forget_left(&mut self, waiting: u32) {
        if self.queue.len() > 2 * waiting as usize + 16 {
            self.queue.retain(|waiter| !waiter.has_left());
        }
    }

    fn open(&self) -> u32 {
        let standing = self.shared.len() + self.idle.len();
        u32::try_from(standing).unwrap_or(u32::MAX) + self.busy
    }

    /// How many requests a connection that is made now will take at a time, as far as is known.
    fn per_connection(&self, terms: &Terms) -> u32 {
        match self.exclusive.or(terms.exclusive) {
            Some(true) => 1,
            // The first one shows it.
            None => u32::MAX,
            Some(false) => {
                let last = self.shared.last().map(|carrier| carrier.streams());
                let streams = last.unwrap_or(terms.streams).min(terms.streams);
                streams.min(terms.requests).max(1)
            }
        }
    }

    fn demand(&self, waiting: u32, terms: &Terms) -> Demand {
        Demand {
            waiting,
            dialling: self.dialling,
            open: self.open(),
            per_connection: self.per_connection(terms),
        }
    }

    fn busy(&self, terms: &Terms, patience: Duration) -> DialError {
        DialError::Busy {
            patience,
            open: self.open(),
            most: terms.bounds.connections,
        }
    }
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
struct Waiting<'a> {
    peer: &'a Rc<Peer>,
    counted: Rc<Cell<bool>>,
}

impl<'a> Waiting<'a> {
    fn begin(peer: &'a Rc<Peer>, counted: Rc<Cell<bool>>) -> Self {
        counted.set(true);
        peer.waiting.set(peer.waiting.get() + 1);
        peer.stats().pending.add(1);
        Self { peer, counted }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.peer.uncount(&self.counted);
    }
}
