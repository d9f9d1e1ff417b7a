//! Who is told what: subscriptions by name, who has to be woken, and how far each has come.
//!
//! A change wakes the streams that asked for a name under which something else is found now, and
//! nobody else. Acknowledgements are counted where they arrive; nobody asks round.

mod lacking;
mod progress;
mod times;
mod waiting;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, watch};
use weft_core::slices;
use weft_proto::replicas::RevisionSpan;
use weft_proto::resource::Kind;

use crate::compile::{ChangedNames, Compiled};
use crate::peer::PeerIdentity;
use crate::store::Revision;

use lacking::Lacking;
use progress::Recent;
use waiting::Waiter;

pub use progress::{
    ACKNOWLEDGED_WITHIN, Progress, RefusedBy, RejectedBy, RejectedOtherwise, Waiting, is_overdue,
};

/// The number of a discovery stream; a later stream has a higher one.
pub type StreamId = u64;

/// How far a sidecar has come: every change up to here is in force there, or was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Applied {
    /// The compilation.
    pub generation: u64,
    /// The store's revision in it.
    pub revision: Revision,
}

/// A sidecar's discovery stream, as others see it.
#[derive(Debug, Clone)]
pub struct ProxyView {
    /// The control plane that it is connected to, where that is another one.
    pub replica: Option<Arc<str>>,
    /// Who it is.
    pub peer: PeerIdentity,
    /// Its version.
    pub version: String,
    /// When the stream began, milliseconds since the Unix epoch.
    pub since: i64,
    /// How far it has come.
    pub applied: Applied,
    /// Resources that it holds.
    pub holds: usize,
    /// Resources that it rejected, with the reason.
    pub rejected: BTreeMap<String, Arc<str>>,
}

/// What is told of a sidecar to other control planes.
#[derive(Debug, Clone)]
pub struct SidecarStanding {
    /// What is seen of it.
    pub view: ProxyView,
    /// Everything up to this revision is in force there; `None` where everything that is published is.
    pub behind: Option<Revision>,
    /// Whether it has not had everything yet that it asked for since it connected.
    pub begins: bool,
    /// Revisions with something that concerns it and is not in force there.
    pub lacks: Vec<RevisionSpan>,
}

/// A change that was published, and whom it concerns.
#[derive(Debug, Clone)]
pub struct Publication {
    /// Its compilation.
    pub generation: u64,
    /// Streams that were told.
    pub concerned: Arc<BTreeSet<StreamId>>,
}

/// What is counted.
#[derive(Debug, Default)]
pub struct Counters {
    /// Resources made, whether they came out different or not.
    pub compiled: AtomicU64,
    /// Resources that came, changed or went.
    pub changed: AtomicU64,
    /// Streams woken.
    pub woken: AtomicU64,
    /// Responses sent.
    pub pushes: AtomicU64,
    /// Bytes of resources in them.
    pub bytes: AtomicU64,
    /// Responses acknowledged.
    pub acks: AtomicU64,
    /// Responses rejected.
    pub nacks: AtomicU64,
}

/// Subscriptions and progress of every stream.
#[derive(Debug, Default)]
pub struct Publisher {
    state: Mutex<State>,
    moved: watch::Sender<()>,
    /// The same, of this control plane's own sidecars alone.
    moved_here: watch::Sender<()>,
    /// Counters for metrics.
    pub counters: Counters,
}

/// A name of a resource, or another name that it goes by.
pub type Name = (Kind, Arc<str>);

#[derive(Debug, Default)]
struct State {
    next: StreamId,
    newest: Applied,
    streams: HashMap<StreamId, Subscriber>,
    /// Streams by the names that they asked for.
    by_name: HashMap<Name, BTreeSet<StreamId>>,
    /// Streams by kinds of which everything comes to everyone.
    by_kind: BTreeMap<Kind, BTreeSet<StreamId>>,
    recent: Recent,
}

#[derive(Debug)]
struct Subscriber {
    names: BTreeSet<Name>,
    /// Names that have to be looked up.
    due: BTreeSet<Name>,
    wake: Arc<Notify>,
    /// How far it has come; `None` while there is nothing that it was not told.
    behind: Option<Applied>,
    /// Revisions with something that it asked for and has not applied.
    lacking: Lacking,
    /// Whether it has had everything that it asked for, at any time since it began.
    settled: bool,
    waiters: Vec<(u64, Arc<Waiter>)>,
    view: ProxyView,
}

impl Subscriber {
    fn mark(&mut self, name: Name, before: Applied, changed: Option<RevisionSpan>) {
        self.due.insert(name);
        self.behind.get_or_insert(before);
        if let Some(changed) = changed {
            self.lacking.add(changed);
        }
    }

    fn has_applied(&self, generation: u64) -> bool {
        self.behind
            .is_none_or(|behind| behind.generation >= generation)
    }

    /// Tells those who wait for what it has applied.
    fn tell_waiters(&mut self) {
        let behind = self.behind;
        let applied = |goal: u64| behind.is_none_or(|behind: Applied| behind.generation >= goal);
        self.waiters.retain(|(goal, waiter)| {
            let done = applied(*goal);
            if done {
                waiter.arrive();
            }
            !done && !waiter.is_abandoned()
        });
    }
}

impl Publisher {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a stream. It is forgotten when what is returned is dropped.
    pub fn open(self: &Arc<Self>, peer: PeerIdentity, since: i64) -> Subscription {
        let wake = Arc::new(Notify::new());
        let view = ProxyView {
            replica: None,
            peer,
            version: String::new(),
            since,
            applied: Applied::default(),
            holds: 0,
            rejected: BTreeMap::new(),
        };
        let mut state = self.state();
        state.next += 1;
        let stream = state.next;
        let subscriber = Subscriber {
            names: BTreeSet::new(),
            due: BTreeSet::new(),
            wake: Arc::clone(&wake),
            behind: None,
            lacking: Lacking::default(),
            settled: false,
            waiters: Vec::new(),
            view,
        };
        state.streams.insert(stream, subscriber);
        Subscription {
            publisher: Arc::clone(self),
            stream,
            wake,
        }
    }

    /// Wakes everybody whom a change concerns. What was compiled has to be what readers see
    /// already: a stream that subscribes meanwhile sees the change by itself.
    pub fn publish(&self, compiled: &Compiled, names: &ChangedNames) -> Publication {
        let mut guard = self.state();
        let state = &mut *guard;
        let before = state.newest;
        state.newest = Applied {
            generation: compiled.generation,
            revision: compiled.revision,
        };
        let mut concerned = BTreeSet::new();
        for (kind, names) in names {
            for name in names {
                state.mark((*kind, name), compiled, before, &mut concerned);
            }
        }
        for stream in &concerned {
            if let Some(subscriber) = state.streams.get(stream) {
                subscriber.wake.notify_one();
            }
        }
        let woken = u64::try_from(concerned.len()).unwrap_or(u64::MAX);
        self.counters.woken.fetch_add(woken, Ordering::Relaxed);
        let publication = Publication {
            generation: compiled.generation,
            concerned: Arc::new(concerned),
        };
        let recent = &mut state.recent;
        if compiled.revision != before.revision || recent.is_empty() {
            let span = span_of(compiled, before);
            recent.insert(span, publication.clone(), names, Instant::now());
        }
        drop(guard);
        self.moved_here();
        publication
    }

    /// Changes whenever [`progress`](Self::progress) may say something else. Subscribe before
    /// asking for that.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.moved.subscribe()
    }

    /// The same, without what other control planes tell.
    pub fn watch_here(&self) -> watch::Receiver<()> {
        self.moved_here.subscribe()
    }

    /// To be called after what other control planes tell was changed.
    pub fn tell_moved(&self) {
        self.moved.send_replace(());
    }

    /// To be called after the state was changed and unlocked.
    fn moved_here(&self) {
        self.moved_here.send_replace(());
        self.tell_moved();
    }

    /// Every connected sidecar: of each instance its newest stream, in the order of instances.
    pub fn proxies(&self) -> Vec<ProxyView> {
        let state = self.state();
        let mut newest: BTreeMap<&str, (StreamId, &Subscriber)> = BTreeMap::new();
        for (stream, subscriber) in &state.streams {
            let instance = &*subscriber.view.peer.instance;
            let held = newest.entry(instance).or_insert((*stream, subscriber));
            if held.0 < *stream {
                *held = (*stream, subscriber);
            }
        }
        let newest = newest.into_values();
        newest
            .map(|(_, subscriber)| view_of(subscriber, state.newest))
            .collect()
    }

    /// How many streams there are.
    pub fn len(&self) -> usize {
        self.state().streams.len()
    }

    /// Whether there is no stream.
    pub fn is_empty(&self) -> bool {
        self.state().streams.is_empty()
    }

    /// Streams that asked for any of these names.
    pub fn subscribers(&self, names: &BTreeSet<Name>) -> BTreeSet<StreamId> {
        let state = self.state();
        let streams = names.iter().filter_map(|name| state.by_name.get(name));
        streams.flatten().copied().collect()
    }
}

/// The revisions of the store that a publication has beyond the one before.
fn span_of(compiled: &Compiled, before: Applied) -> RevisionSpan {
    RevisionSpan {
        after: before.revision,
        until: compiled.revision,
    }
}

fn view_of(subscriber: &Subscriber, newest: Applied) -> ProxyView {
    ProxyView {
        applied: subscriber.behind.unwrap_or(newest),
        ..subscriber.view.clone()
    }
}

impl State {
    /// Something else is found under a name.
    fn mark(
        &mut self,
        (kind, name): (Kind, &Arc<str>),
        compiled: &Compiled,
        before: Applied,
        concerned: &mut BTreeSet<StreamId>,
    ) {
        let Self {
            streams,
            by_name,
            by_kind,
            ..
        } = self;
        let changed = (compiled.revision != before.revision).then(|| span_of(compiled, before));
        let mut tell = |asked_for: Option<&BTreeSet<StreamId>>| {
            for stream in asked_for.into_iter().flatten() {
                if let Some(subscriber) = streams.get_mut(stream) {
                    subscriber.mark((kind, Arc::clone(name)), before, changed);
                    concerned.insert(*stream);
                }
            }
        };
        match kind {
            Kind::MeshConfig | Kind::TrustBundle => tell(by_kind.get(&kind)),
            // Who asked for a service asked for its slices.
            Kind::EndpointSlice => {
                let service = slices::service_of(name);
                let service = service.and_then(|service| compiled.find(Kind::Service, service));
                let Some(service) = service else {
                    return;
                };
                for name in service.aliases.iter().chain([&service.name]) {
                    tell(by_name.get(&(Kind::Service, Arc::clone(name))));
                }
            }
            Kind::Service | Kind::Workload | Kind::Namespace | Kind::ServerPolicy => {
                tell(by_name.get(&(kind, Arc::clone(name))));
            }
        }
    }
}

/// A stream's place among the subscriptions.
#[derive(Debug)]
pub struct Subscription {
    publisher: Arc<Publisher>,
    stream: StreamId,
    wake: Arc<Notify>,
}

impl Subscription {
    /// Waits until something that the stream asked for may be different.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// The stream receives everything of a kind that comes to everyone.
    pub fn subscribe_kind(&self, kind: Kind) {
        let mut state = self.publisher.state();
        let state = &mut *state;
        state.by_kind.entry(kind).or_default().insert(self.stream);
        if let Some(subscriber) = state.streams.get_mut(&self.stream) {
            subscriber.lack_changes_of(&state.recent, kind, &"".into());
        }
    }

    /// The stream asked for names. To be called before the newest compilation is read.
    pub fn subscribe(&self, kind: Kind, names: &[Arc<str>]) {
        let mut state = self.publisher.state();
        let state = &mut *state;
        let Some(subscriber) = state.streams.get_mut(&self.stream) else {
            return;
        };
        for name in names {
            let name = (kind, Arc::clone(name));
            let streams = state.by_name.entry(name.clone()).or_default();
            streams.insert(self.stream);
            subscriber.lack_changes_of(&state.recent, kind, &name.1);
            subscriber.names.insert(name);
        }
    }

    /// The stream wants names no more.
    pub fn unsubscribe(&self, kind: Kind, names: &[Arc<str>]) {
        let mut state = self.publisher.state();
        let state = &mut *state;
        for name in names {
            let name = (kind, Arc::clone(name));
            if let Some(subscriber) = state.streams.get_mut(&self.stream) {
                subscriber.names.remove(&name);
            }
            remove(&mut state.by_name, &name, self.stream);
        }
    }

    /// Names that have to be looked up.
    pub fn take_due(&self) -> BTreeSet<Name> {
        let mut state = self.publisher.state();
        let subscriber = state.streams.get_mut(&self.stream);
        subscriber.map_or_else(BTreeSet::new, |subscriber| {
            std::mem::take(&mut subscriber.due)
        })
    }

    /// The stream has come so far: everything that was due is answered, or all up to `applied` is.
    pub fn report(&self, is_idle: bool, applied: Option<Applied>) {
        let mut guard = self.publisher.state();
        let state = &mut *guard;
        let newest = state.newest;
        let Some(subscriber) = state.streams.get_mut(&self.stream) else {
            return;
        };
        if is_idle && subscriber.due.is_empty() {
            subscriber.behind = None;
            subscriber.lacking.clear();
            if !std::mem::replace(&mut subscriber.settled, true) {
                state.recent.settle(&subscriber.view.peer.instance);
            }
        } else {
            // A kind that had nothing to do for long knows of an old compilation only.
            let before = subscriber.behind.unwrap_or(newest);
            // What is due may be in what it has read: of that it was told nothing.
            let applied = applied.filter(|_| subscriber.due.is_empty());
            let applied = applied.map_or(before, |applied| applied.max(before));
            subscriber.behind = Some(applied);
            if subscriber.settled {
                subscriber.lacking.apply(applied.revision);
            }
        }
        subscriber.tell_waiters();
        drop(guard);
        self.publisher.moved_here();
    }

    /// What others are to see of the stream.
    pub fn show(&self, change: impl FnOnce(&mut ProxyView)) {
        let mut state = self.publisher.state();
        if let Some(subscriber) = state.streams.get_mut(&self.stream) {
            change(&mut subscriber.view);
        }
    }
}

fn remove(by_name: &mut HashMap<Name, BTreeSet<StreamId>>, name: &Name, stream: StreamId) {
    if let Some(streams) = by_name.get_mut(name) {
        streams.remove(&stream);
        if streams.is_empty() {
            by_name.remove(name);
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut guard = self.publisher.state();
        let state = &mut *guard;
        let Some(subscriber) = state.streams.remove(&self.stream) else {
            return;
        };
        let instance = &subscriber.view.peer.instance;
        if let Some(behind) = subscriber.behind {
            state.recent.leave(self.stream, instance, behind.generation);
        }
        for name in &subscriber.names {
            remove(&mut state.by_name, name, self.stream);
        }
        for streams in state.by_kind.values_mut() {
            streams.remove(&self.stream);
        }
        // One that is gone has nothing left to apply.
        for (_, waiter) in subscriber.waiters {
            waiter.arrive();
        }
        drop(guard);
        self.publisher.moved_here();
    }
}

#[cfg(test)]
mod tests;
