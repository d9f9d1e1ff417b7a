//! Who may use which share of a limit that holds for all sidecars of a service together. The allocator
//! is core's; here it meets streams, a clock, and other control planes.
//!
//! One control plane keeps the books for the whole mesh (`books.rs`); to it the others relay what their
//! sidecars say (`desk.rs`, `outbox.rs`), all of that pure. Who it is, [`KeeperElection`] says; where it is
//! reached, and how, is not known here: somebody who reaches it begins a [`LinkToKeeper`].
//!
//! Nothing of the books is stored: when a process begins to keep them, sidecars say what they use, and
//! until the grace is over nothing is raised.

mod books;
mod desk;
pub mod grpc;
mod limits;
mod outbox;
mod relaying;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant as Clock};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use weft_core::rate::lease::{Grant, Report};
use weft_core::time::Instant;
use weft_proto::relays::{RelayedReport, StreamGrants};

use crate::peer::PeerIdentity;
use books::{LIMITS_MAX, NAMESPACE_LIMITS_MAX, POLLED_EVERY};
use desk::{Desk, Effect, Elected};

pub use books::Excess;
pub use desk::{SILENT_AFTER, Whereabouts};
pub use limits::{KnownLimits, MeshLimits, Shared};
pub use relaying::{LinkOfRelay, LinkToKeeper};

/// How often it is looked for who has been out of touch for too long, and for limits that have ended.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The term in which this process keeps the books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeeperTerm {
    /// That of a later term, of whichever process, is greater.
    pub number: u64,
    /// When this process asked last for the term, and got it, by the monotonic clock; `None` where nobody
    /// else can keep the books.
    pub asked_at: Option<Clock>,
}

/// Whether this process is the one that keeps the books of the mesh: by whatever elects one of several.
pub trait KeeperElection: fmt::Debug + Send + Sync {
    /// The term in which it does, if it does now. Asked again before anything is granted.
    fn term(&self) -> Option<KeeperTerm>;
}

/// There is one process only.
#[derive(Debug, Clone, Copy)]
pub struct Alone;

impl KeeperElection for Alone {
    fn term(&self) -> Option<KeeperTerm> {
        Some(KeeperTerm {
            number: 0,
            asked_at: None,
        })
    }
}

/// The shared limits, as far as they concern the sidecars of this control plane, and their books where
/// it keeps them.
#[derive(Debug)]
pub struct Leases {
    limits: Arc<dyn KnownLimits>,
    election: Arc<dyn KeeperElection>,
    /// Whether sidecars and other control planes can come: before, no grace begins.
    listens: AtomicBool,
    began: Clock,
    state: Mutex<State>,
    /// The term in which the books are kept here.
    term: watch::Sender<Option<u64>>,
}

#[derive(Debug)]
struct State {
    desk: Desk,
    streams: HashMap<u64, Stream>,
    links: HashMap<u64, Link>,
    /// When it was looked at everything last.
    looked: Option<Instant>,
    /// Whether there was no room for further limits then.
    is_full: bool,
}

/// Where leases of one stream go.
#[derive(Debug)]
struct Stream {
    grants: mpsc::Sender<Vec<Grant>>,
    /// Ends it.
    end: oneshot::Sender<Ended>,
}

/// Why a sidecar has to begin its stream anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// It takes nothing.
    Unread,
    /// The books are elsewhere, or are not reached.
    Moved,
}

/// A stream between this control plane and another one.
#[derive(Debug)]
struct Link {
    /// Where grants for the other's sidecars go, if the books are here.
    grants: Option<mpsc::Sender<Vec<StreamGrants>>>,
    end: CancellationToken,
}

impl Leases {
    /// Nobody is known. `grace` is how long nothing is raised once this process keeps the books.
    pub fn new(
        limits: Arc<dyn KnownLimits>,
        election: Arc<dyn KeeperElection>,
        grace: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            limits,
            election,
            listens: AtomicBool::new(false),
            began: Clock::now(),
            state: Mutex::new(State {
                desk: Desk::new(grace),
                streams: HashMap::new(),
                links: HashMap::new(),
                looked: None,
                is_full: false,
            }),
            term: watch::channel(None).0,
        })
    }

    /// From now on sidecars and other control planes can come.
    pub fn listen(&self) {
        self.listens.store(true, Ordering::Release);
        self.with(|_desk, _now| {});
    }

    /// Moves on what only time moves. Runs until the task is dropped.
    pub async fn keep(self: Arc<Self>) {
        let mut look = tokio::time::interval(POLLED_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            self.look();
        }
    }

    fn look(&self) {
        let mut state = self.elected();
        let now = self.now();
        state.desk.look_again(now);
        if state
            .looked
            .is_none_or(|looked| now.saturating_since(looked) >= LOOK_EVERY)
        {
            state.looked = Some(now);
            state.desk.look(&*self.limits, now);
            let is_full = state.desk.is_full();
            if is_full && !state.is_full {
                tracing::warn!(
                    max = LIMITS_MAX,
                    max_of_namespace = NAMESPACE_LIMITS_MAX,
                    "too many global limits, of one namespace or in all: sidecars hold those beyond by \
                     their first shares"
                );
            }
            state.is_full = is_full;
        }
        self.act(state);
    }

    /// Where the books are.
    pub fn whereabouts(&self) -> Whereabouts {
        self.state().desk.whereabouts()
    }

    /// The term in which the books are kept here, as it changes.
    pub fn watch_term(&self) -> watch::Receiver<Option<u64>> {
        self.term.subscribe()
    }

    /// Another control plane says that it keeps the books.
    pub fn hear(&self, term: u64) {
        self.with(|desk, now| desk.hear(term, now));
    }

    /// A stream of a sidecar begins; what is to be sent on it goes to `grants`. Nothing where the books
    /// are not reached.
    fn open(
        &self,
        peer: &PeerIdentity,
        stream: u64,
        grants: mpsc::Sender<Vec<Grant>>,
    ) -> Option<oneshot::Receiver<Ended>> {
        let (end, ended) = oneshot::channel();
        let mut state = self.elected();
        let is_open = state.desk.open(stream, &peer.instance);
        if is_open {
            state.streams.insert(stream, Stream { grants, end });
        }
        self.act(state);
        is_open.then_some(ended)
    }

    /// A stream of a sidecar has ended.
    fn close(&self, stream: u64) {
        let mut state = self.elected();
        state.streams.remove(&stream);
        let now = self.now();
        state.desk.close(stream, now);
        self.act(state);
    }

    /// Takes what a sidecar says, of limits of services that it may serve.
    fn handle(&self, peer: &PeerIdentity, stream: u64, reports: Vec<Report>) -> Result<(), Excess> {
        let own = self.limits.of_sidecar(peer);
        let reports = reports.into_iter().filter_map(|report| {
            let service = own.get(&report.rule)?.clone();
            Some(RelayedReport { report, service })
        });
        let reports = reports.collect();
        self.with(|desk, now| desk.report(stream, reports, &*self.limits, now))
    }

    /// Does something at the desk.
    fn with<T>(&self, act: impl FnOnce(&mut Desk, Instant) -> T) -> T {
        let mut state = self.elected();
        let done = act(&mut state.desk, self.now());
        self.act(state);
        done
    }

    /// The state, after it was asked who keeps the books.
    fn elected(&self) -> MutexGuard<'_, State> {
        let listens = self.listens.load(Ordering::Acquire);
        let mut state = self.state();
        let term = listens.then(|| self.election.term()).flatten();
        let now = self.now();
        let elected = term.map(|term| Elected {
            term: term.number,
            asked_at: term.asked_at.map(|asked_at| self.at(asked_at)),
        });
        state.desk.elect(elected, now);
        state
    }

    /// Does what the desk wants done.
    fn act(&self, mut state: MutexGuard<'_, State>) {
        for effect in state.desk.effects() {
            state.act(effect);
        }
        let term = state.desk.term();
        self.term.send_if_modified(|before| {
            if *before != term {
                match term {
                    Some(_) => tracing::info!("keeps the books of global limits"),
                    None => tracing::info!("keeps the books of global limits no longer"),
                }
            }
            std::mem::replace(before, term) != term
        });
    }

    fn now(&self) -> Instant {
        self.at(Clock::now())
    }

    fn at(&self, time: Clock) -> Instant {
        let elapsed = time.saturating_duration_since(self.began).as_nanos();
        Instant::from_nanos(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Grant(stream, grants) => {
                let unread = |of: &Stream| of.grants.try_send(grants).is_err();
                if self.streams.get(&stream).is_some_and(unread) {
                    self.end(stream, Ended::Unread);
                }
            }
            Effect::EndStream(stream) => self.end(stream, Ended::Moved),
            Effect::Relay(link, streams) => {
                let Some(link) = self.links.get(&link) else {
                    return;
                };
                let sent = link.grants.as_ref().map(|grants| grants.try_send(streams));
                if sent.is_some_and(|sent| sent.is_err()) {
                    link.end.cancel();
                }
            }
            Effect::EndLink(link) => {
                if let Some(link) = self.links.remove(&link) {
                    link.end.cancel();
                }
            }
        }
    }

    fn end(&mut self, stream: u64, why: Ended) {
        if let Some(stream) = self.streams.remove(&stream) {
            let _has_ended_by_itself = stream.end.send(why);
        }
    }
}
