//! All sidecars, and the board on which they note what they hear.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustls::ClientConfig;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::grpc::{Failed, Meter};
use crate::sidecar::{Held, Sidecar};
use crate::world::World;

/// Nothing takes longer, unless it is broken.
const DEADLINE: Duration = Duration::from_secs(120);

/// Who has heard of what, and how long it took.
#[derive(Default)]
pub(crate) struct Board {
    /// By service: since when a change is awaited, and by whom.
    awaited: RefCell<HashMap<usize, (Instant, HashSet<usize>)>>,
    heard: Notify,
    /// Sidecars that had not heard of a change when its service changed again.
    overtaken: Cell<usize>,
    /// How long after a change each of its subscribers has taken it, microseconds.
    lags: RefCell<Vec<u64>>,
    round: Cell<u64>,
    settled: RefCell<HashSet<usize>>,
    pushes: Cell<u64>,
    resources: Cell<u64>,
    bytes: Cell<u64>,
    lost: Cell<usize>,
    refused: Cell<usize>,
    reasons: RefCell<HashMap<String, usize>>,
}

impl Board {
    /// A sidecar has taken something about a service; its acknowledgment is on its way.
    pub(crate) fn heard(&self, service: usize, sidecar: usize) {
        let mut awaited = self.awaited.borrow_mut();
        let Some((since, waiting)) = awaited.get_mut(&service) else {
            return;
        };
        if waiting.remove(&sidecar) {
            let lag = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.lags.borrow_mut().push(lag);
            if waiting.is_empty() {
                awaited.remove(&service);
                self.heard.notify_one();
            }
        }
    }

    pub(crate) fn pushed(&self, bytes: usize, resources: usize) {
        self.pushes.set(self.pushes.get() + 1);
        self.resources.set(self.resources.get() + resources as u64);
        self.bytes.set(self.bytes.get() + bytes as u64);
    }

    /// Everything that a sidecar asked for is answered.
    pub(crate) fn settle(&self, round: u64, sidecar: usize) {
        if round == self.round.get() {
            self.settled.borrow_mut().insert(sidecar);
            self.heard.notify_one();
        }
    }

    pub(crate) fn is_settled(&self, round: u64, sidecar: usize) -> bool {
        round != self.round.get() || self.settled.borrow().contains(&sidecar)
    }

    /// A connection has ended that stood.
    pub(crate) fn lost(&self, failed: &Failed) {
        self.lost.set(self.lost.get() + 1);
        self.note(failed);
    }

    /// A connection did not come to stand.
    pub(crate) fn refused(&self, failed: &Failed) {
        self.refused.set(self.refused.get() + 1);
        self.note(failed);
    }

    fn note(&self, failed: &Failed) {
        *self
            .reasons
            .borrow_mut()
            .entry(failed.to_string())
            .or_default() += 1;
    }
}

/// What was received so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Received {
    /// Messages of discovery.
    pub(crate) pushes: u64,
    /// Resources in them.
    pub(crate) resources: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// All bytes of all connections.
    pub(crate) wire: u64,
}

impl std::ops::Sub for Received {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            pushes: self.pushes - before.pushes,
            resources: self.resources - before.resources,
            bytes: self.bytes - before.bytes,
            wire: self.wire - before.wire,
        }
    }
}

/// All sidecars of a world.
pub(crate) struct Fleet {
    world: World,
    board: Rc<Board>,
    meter: Meter,
    ready: Vec<watch::Sender<bool>>,
    rounds: watch::Sender<u64>,
    renewals: watch::Sender<u64>,
}

impl Fleet {
    /// Sidecars with these certificates; none is connected yet.
    pub(crate) fn new(world: World, port: u16, configs: &[Arc<ClientConfig>]) -> Self {
        let fleet = Self {
            world,
            board: Rc::new(Board::default()),
            meter: Rc::new(Cell::new(0)),
            ready: configs.iter().map(|_| watch::Sender::new(true)).collect(),
            rounds: watch::Sender::new(0),
            renewals: watch::Sender::new(0),
        };
        for (number, config) in configs.iter().enumerate() {
            let sidecar = Sidecar {
                number,
                world,
                port,
                tls: Arc::clone(config),
                board: Rc::clone(&fleet.board),
                meter: Rc::clone(&fleet.meter),
                ready: fleet.ready[number].subscribe(),
                round: fleet.rounds.subscribe(),
                renewal: fleet.renewals.subscribe(),
                held: Held::new(),
            };
            tokio::task::spawn_local(sidecar.run());
        }
        fleet
    }

    /// Has all of them connect at once; how long until all of them have what they asked for.
    pub(crate) async fn connect(&self) -> Duration {
        let began = Instant::now();
        self.board.settled.borrow_mut().clear();
        self.board.round.set(self.board.round.get() + 1);
        self.rounds.send_replace(self.board.round.get());
        self.all_settled().await;
        began.elapsed()
    }

    /// Has all of them ask for a new certificate at once; how long until all have one.
    pub(crate) async fn renew(&self) -> Duration {
        let began = Instant::now();
        self.board.settled.borrow_mut().clear();
        self.renewals.send_modify(|count| *count += 1);
        self.all_settled().await;
        began.elapsed()
    }

    async fn all_settled(&self) {
        let wanted = self.world.proxies;
        let settled = || self.board.settled.borrow().len();
        while settled() < wanted {
            let more = timeout(DEADLINE, self.board.heard.notified()).await;
            assert!(
                more.is_ok(),
                "{} of {wanted} sidecars have what they asked for; {:?}",
                settled(),
                self.reasons()
            );
        }
    }

    /// From now on the callers of a service shall hear of a change of it.
    pub(crate) fn expect(&self, service: usize, callers: &[usize]) {
        let waiting = callers.iter().copied().collect();
        let entry = (Instant::now(), waiting);
        let before = self.board.awaited.borrow_mut().insert(service, entry);
        let late = before.map_or(0, |(_, waiting)| waiting.len());
        let overtaken = &self.board.overtaken;
        overtaken.set(overtaken.get() + late);
    }

    /// Waits until everything expected was heard; how often it was not, or not before the next change
    /// of the same service.
    pub(crate) async fn all_heard(&self, limit: Duration) -> usize {
        let waiting = || -> usize {
            let awaited = self.board.awaited.borrow();
            awaited.values().map(|(_, waiting)| waiting.len()).sum()
        };
        let heard = async {
            while waiting() > 0 {
                self.board.heard.notified().await;
            }
        };
        // What is missing is counted.
        let _in_time = timeout(limit, heard).await;
        let missing = waiting();
        self.board.awaited.borrow_mut().clear();
        missing + self.board.overtaken.take()
    }

    /// How long it took to be heard since the last time this was asked, microseconds.
    pub(crate) fn take_lags(&self) -> Histogram<u64> {
        let lags = std::mem::take(&mut *self.board.lags.borrow_mut());
        histogram(&lags)
    }

    /// The longest of it.
    pub(crate) fn take_longest(&self) -> u64 {
        let lags = std::mem::take(&mut *self.board.lags.borrow_mut());
        lags.into_iter().max().unwrap_or_default()
    }

    /// Makes a sidecar's workload ready, or not.
    pub(crate) fn set_ready(&self, sidecar: usize, ready: bool) {
        self.ready[sidecar].send_replace(ready);
    }

    pub(crate) fn is_ready(&self, sidecar: usize) -> bool {
        *self.ready[sidecar].borrow()
    }

    pub(crate) fn received(&self) -> Received {
        Received {
            pushes: self.board.pushes.get(),
            resources: self.board.resources.get(),
            bytes: self.board.bytes.get(),
            wire: self.meter.get(),
        }
    }

    /// Connections that were lost, and that were refused, so far.
    pub(crate) fn failures(&self) -> (usize, usize) {
        (self.board.lost.get(), self.board.refused.get())
    }

    /// Why, with how often.
    pub(crate) fn reasons(&self) -> HashMap<String, usize> {
        self.board.reasons.borrow().clone()
    }
}

/// Values, microseconds, for percentiles.
pub(crate) fn histogram(values: &[u64]) -> Histogram<u64> {
    let mut histogram = empty_histogram();
    for value in values {
        histogram.saturating_record(*value);
    }
    histogram
}

/// For microseconds up to an hour.
pub(crate) fn empty_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("bounds that are possible")
}
