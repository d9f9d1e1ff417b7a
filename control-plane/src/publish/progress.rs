//! How far a revision of the store has come: who has applied it, who has not, who rejects it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_core::slices;
use weft_proto::replicas::{REJECTED_MAX, RevisionSpan};
use weft_proto::resource::Kind;

use super::times::PublishTimes;
use super::{Name, Publication, Publisher, SidecarStanding, State, StreamId, Subscriber, view_of};
use crate::compile::ChangedNames;
use crate::peer::PeerIdentity;
use crate::store::Revision;

/// Publications of which it is kept whom they concern, and which names they changed.
const RECENT_MAX: usize = 256;
/// Names of resources that all of them together may have changed; beyond, the oldest publications
/// are forgotten. The newest one is kept whatever its size.
pub(super) const NAMES_MAX: usize = 262_144;

/// A sidecar that lacks a revision for longer than this, from when the revision was published, is overdue
/// with it: a time that one on a machine that stands still for some seconds does not need. It does not
/// begin anew with a sidecar's stream, so one that connects again and again gains nothing.
pub const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(60);

/// How far a revision of the store has come.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// The newest revision that sidecars are told.
    pub published: Revision,
    /// Whether it is remembered which names the revision changed. Where it is not, those are waited for,
    /// too, who have not had everything yet since they connected, and rejections are not told.
    pub is_known: bool,
    /// Sidecars that have applied it, or whom it does not concern.
    pub applied: Vec<PeerIdentity>,
    /// Sidecars that have not applied it.
    pub waiting: Vec<Waiting>,
    /// Resources that it changed and that sidecars rejected.
    pub rejected: Vec<RejectedBy>,
    /// Resources that those who have applied it reject as well, although it has not changed them, or it
    /// is not remembered that it has, by KIND/NAME: what is new in them is not in force.
    pub rejected_otherwise: RejectedOtherwise,
    /// Other control planes that have not been heard: of their sidecars nothing is known.
    pub unknown: Vec<String>,
}

/// A sidecar that has not applied a revision.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// The sidecar.
    pub peer: PeerIdentity,
    /// Whether it has had [`ACKNOWLEDGED_WITHIN`] for that.
    pub is_overdue: bool,
}

/// Whether what was published then is to be acknowledged by now; what was not published is not.
pub fn is_overdue(published: Option<Instant>, now: Instant) -> bool {
    published.is_some_and(|at| now.saturating_duration_since(at) >= ACKNOWLEDGED_WITHIN)
}

/// A document that another control plane refuses, so that its sidecars do not have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedBy {
    /// Which control plane.
    pub control_plane: String,
    /// Why; `None` where it refuses more than it tells of, and this may be among it.
    pub why: Option<String>,
}

/// A resource that a sidecar rejected.
#[derive(Debug, Clone)]
pub struct RejectedBy {
    /// The sidecar.
    pub peer: PeerIdentity,
    /// KIND/NAME of the resource.
    pub resource: String,
    /// Why.
    pub reason: String,
}

/// Resources that are kept of those that a namespace's sidecars reject, in [`RejectedOtherwise`], which is
/// made for each revision that is looked at.
const REJECTED_RESOURCES_MAX: usize = 64;
/// Sidecars that are kept of each.
const REJECTED_BY_MAX: usize = 4;
/// Where rejections of what is the whole mesh's are kept: no namespace's name.
const WHOLE_MESH: &str = "";

/// Rejections by the sidecars' namespace and by resource, KIND/NAME: the first ones by name, of the first
/// sidecars by instance, in whichever order they are added. Those of other namespaces than a document's are
/// not its concern: they may reject whatever they please.
#[derive(Debug, Clone, Default)]
pub struct RejectedOtherwise(BTreeMap<String, BTreeMap<String, Vec<RejectedBy>>>);

impl RejectedOtherwise {
    /// What concerns documents of a namespace, by resource, KIND/NAME.
    pub fn of(&self, namespace: &str) -> impl Iterator<Item = (&String, &Vec<RejectedBy>)> {
        let both = [self.0.get(WHOLE_MESH), self.0.get(namespace)];
        both.into_iter().flatten().flatten()
    }

    /// Adds a rejection, as far as there is room.
    pub(crate) fn add(&mut self, peer: &PeerIdentity, resource: &str, reason: &dyn fmt::Display) {
        let kind = resource.split('/').next();
        let of_no_document = [Kind::EndpointSlice, Kind::Workload, Kind::TrustBundle];
        if of_no_document
            .iter()
            .any(|other| kind == Some(other.as_str()))
        {
            return;
        }
        let namespace = match kind == Some(Kind::MeshConfig.as_str()) {
            true => WHOLE_MESH,
            false => peer.identity.namespace(),
        };
        if !self.0.contains_key(namespace) {
            self.0.insert(namespace.to_owned(), BTreeMap::new());
        }
        let Some(of_namespace) = self.0.get_mut(namespace) else {
            return;
        };
        if !of_namespace.contains_key(resource) {
            of_namespace.insert(resource.to_owned(), Vec::new());
            if of_namespace.len() > REJECTED_RESOURCES_MAX {
                of_namespace.pop_last();
            }
        }
        let Some(of_resource) = of_namespace.get_mut(resource) else {
            return;
        };
        let place = of_resource.partition_point(|one| one.peer.instance <= peer.instance);
        if place < REJECTED_BY_MAX {
            let added = RejectedBy {
                peer: peer.clone(),
                resource: resource.to_owned(),
                reason: reason.to_string(),
            };
            of_resource.insert(place, added);
            of_resource.truncate(REJECTED_BY_MAX);
        }
    }
}

impl Progress {
    /// Whether nothing is waited for: everybody has applied the revision, or somebody rejects it.
    pub fn is_settled(&self, revision: Revision) -> bool {
        let all_told = self.waiting.is_empty() && self.unknown.is_empty();
        !self.rejected.is_empty() || (self.published >= revision && all_told)
    }

    /// Adds what a sidecar that has applied it rejects; `changed` says what the revision has changed.
    pub(crate) fn add_rejected<R: fmt::Display>(
        &mut self,
        peer: &PeerIdentity,
        rejected: &BTreeMap<String, R>,
        changed: impl Fn(&str) -> bool,
    ) {
        for (resource, reason) in rejected {
            if changed(resource) {
                self.rejected.push(RejectedBy {
                    peer: peer.clone(),
                    resource: resource.clone(),
                    reason: reason.to_string(),
                });
            } else {
                self.rejected_otherwise.add(peer, resource, reason);
            }
        }
    }
}

/// The newest publications of revisions of the store.
#[derive(Debug, Default)]
pub(super) struct Recent {
    by_revision: BTreeMap<Revision, Published>,
    /// Names in all of them.
    names: usize,
    /// From the first to the last of them that changed a name. Of a kind of which everything comes to
    /// everyone the name is empty, and slices are under the name of their service.
    changes: HashMap<Name, RevisionSpan>,
    /// Up to here it is not remembered whom a revision concerned.
    forgotten: Revision,
    times: PublishTimes,
    /// Whether anything was published.
    begun: bool,
}

#[derive(Debug)]
struct Published {
    publication: Publication,
    names: ChangedNames,
    /// Instances with a stream that ended before it had applied the publication.
    left: BTreeSet<Arc<str>>,
}

impl Recent {
    /// Remembers a publication, and forgets the oldest where there are too many. Of the first one
    /// it is not known what is new in it: sidecars may hold all of it from before.
    pub(super) fn insert(
        &mut self,
        span: RevisionSpan,
        publication: Publication,
        names: &ChangedNames,
        now: Instant,
    ) {
        let revision = span.until;
        self.times.note(revision, now);
        if !std::mem::replace(&mut self.begun, true) {
            self.forgotten = revision;
            return;
        }
        self.names += count(names);
        for name in changed_names(names) {
            let changes = self.changes.entry(name).or_insert(span);
            changes.until = revision;
        }
        let published = Published {
            publication,
            names: names.clone(),
            left: BTreeSet::new(),
        };
        self.by_revision.insert(revision, published);
        while self.by_revision.len() > RECENT_MAX
            || (self.names > NAMES_MAX && self.by_revision.len() > 1)
        {
            let Some((revision, oldest)) = self.by_revision.pop_first() else {
                return;
            };
            self.names -= count(&oldest.names);
            self.forgotten = revision;
            for name in changed_names(&oldest.names) {
                if self
                    .changes
                    .get(&name)
                    .is_some_and(|of| of.until <= revision)
                {
                    self.changes.remove(&name);
                }
            }
        }
    }

    /// The revisions from the first to the last that changed what is found under a name, of those that
    /// are remembered.
    pub(super) fn changes_of(&self, kind: Kind, name: &Arc<str>) -> Option<RevisionSpan> {
        self.changes.get(&index_name(kind, name)).copied()
    }

    /// The revisions that are not remembered.
    fn forgotten(&self) -> RevisionSpan {
        RevisionSpan {
            after: 0,
            until: self.forgotten,
        }
    }

    /// Whether nothing was published yet.
    pub(super) fn is_empty(&self) -> bool {
        !self.begun
    }

    /// A stream ends that has applied everything before `generation`.
    pub(super) fn leave(&mut self, stream: StreamId, instance: &Arc<str>, generation: u64) {
        let unapplied = self.by_revision.values_mut().rev();
        for published in unapplied.take_while(|p| p.publication.generation > generation) {
            if published.publication.concerned.contains(&stream) {
                published.left.insert(Arc::clone(instance));
            }
        }
    }

    /// An instance has everything that it asks for.
    pub(super) fn settle(&mut self, instance: &Arc<str>) {
        for published in self.by_revision.values_mut() {
            published.left.remove(instance);
        }
    }

    /// The publication that a revision is in. Several commits may have been published together.
    fn find(&self, revision: Revision) -> Option<&Published> {
        let known = revision > self.forgotten;
        let mut published = self.by_revision.range(revision..).filter(|_| known);
        published.next().map(|(_, published)| published)
    }
}

fn changed_names(names: &ChangedNames) -> impl Iterator<Item = Name> {
    let all = names.iter();
    all.flat_map(|(kind, names)| names.iter().map(|name| index_name(*kind, name)))
}

/// Under which name it is kept that a name has changed.
fn index_name(kind: Kind, name: &Arc<str>) -> Name {
    match kind {
        Kind::MeshConfig | Kind::TrustBundle => (kind, "".into()),
        Kind::EndpointSlice => {
            let service = slices::service_of(name).map(Arc::from);
            (Kind::Service, service.unwrap_or_else(|| Arc::clone(name)))
        }
        Kind::Service | Kind::Workload | Kind::Namespace | Kind::ServerPolicy => {
            (kind, Arc::clone(name))
        }
    }
}

fn count(names: &ChangedNames) -> usize {
    names.values().map(BTreeSet::len).sum()
}

impl Published {
    /// Whether it changed a resource, KIND/NAME.
    fn changed(&self, resource: &str) -> bool {
        let Some((kind, name)) = resource.split_once('/') else {
            return false;
        };
        let mut kinds = self.names.iter();
        kinds.any(|(of, names)| of.as_str() == kind && names.contains(name))
    }
}

impl Publisher {
    /// The newest revision that sidecars are told, and of each instance how its newest stream stands.
    pub fn standings(&self) -> (Revision, Vec<SidecarStanding>) {
        let state = self.state();
        let newest = state.newest_streams().into_values();
        let standings = newest.filter_map(|stream| {
            let subscriber = state.streams.get(&stream)?;
            Some(SidecarStanding {
                view: view_of(subscriber, state.newest),
                behind: subscriber.behind.map(|behind| behind.revision),
                begins: subscriber.begins(),
                lacks: state.lacks(subscriber),
            })
        });
        (state.newest.revision, standings.collect())
    }

    /// Whether the publication of a revision changed a resource, KIND/NAME, as far as it is remembered.
    pub fn has_changed(&self, revision: Revision, resource: &str) -> bool {
        let state = self.state();
        let published = state.recent.find(revision);
        published.is_some_and(|published| published.changed(resource))
    }

    /// When a revision was published, to the second; `None` where it was not.
    pub fn published_at(&self, revision: Revision) -> Option<Instant> {
        self.state().recent.times.of(revision)
    }

    /// How far a revision of the store has come. Of each instance its newest stream counts: one
    /// that connects and asks for what the revision changed, or whose older stream lacks it, has applied
    /// it when it has everything that it asks for now.
    pub fn progress(&self, revision: Revision, now: Instant) -> Progress {
        let state = self.state();
        let is_overdue = is_overdue(state.recent.times.of(revision), now);
        let published = state.recent.find(revision);
        let mut progress = Progress {
            published: state.newest.revision,
            is_known: published.is_some() || revision > state.newest.revision,
            ..Progress::default()
        };
        let newest = state.newest_streams();
        let lacking = published.map(|published| state.lacking(published, &newest));
        for (instance, stream) in newest {
            let Some(subscriber) = state.streams.get(&stream) else {
                continue;
            };
            let lacks = subscriber.lacking.contains(revision);
            let waits = match &lacking {
                Some(lacking) => lacks || (lacking.contains(instance) && !subscriber.settled),
                None => lacks || revision > state.newest.revision || subscriber.begins(),
            };
            let peer = subscriber.view.peer.clone();
            if waits {
                progress.waiting.push(Waiting { peer, is_overdue });
                continue;
            }
            // What one that waits rejected is what it held before.
            let changed = |name: &str| published.is_some_and(|p| p.changed(name));
            progress.add_rejected(&peer, &subscriber.view.rejected, changed);
            progress.applied.push(peer);
        }
        progress
    }
}

impl State {
    /// Of each instance its newest stream.
    pub(super) fn newest_streams(&self) -> HashMap<&Arc<str>, StreamId> {
        let mut newest = HashMap::new();
        for (stream, subscriber) in &self.streams {
            let held = newest
                .entry(&subscriber.view.peer.instance)
                .or_insert(*stream);
            *held = (*held).max(*stream);
        }
        newest
    }

    /// Instances of which a stream that is not their newest has not applied a publication, or ended
    /// before it had.
    fn lacking<'a>(
        &'a self,
        published: &'a Published,
        newest: &HashMap<&Arc<str>, StreamId>,
    ) -> HashSet<&'a Arc<str>> {
        let concerned = published.publication.concerned.iter();
        let standing = concerned.filter_map(|stream| {
            let subscriber = self.streams.get(stream)?;
            let instance = &subscriber.view.peer.instance;
            let is_older = newest.get(instance) != Some(stream);
            let lacks = !subscriber.has_applied(published.publication.generation);
            (is_older && lacks).then_some(instance)
        });
        standing.chain(&published.left).collect()
    }
}

impl Subscriber {
    /// Whether it has not had everything yet that it asked for since it connected.
    pub(super) fn begins(&self) -> bool {
        !self.settled && !self.names.is_empty()
    }

    /// It asks for a name that was changed before: it has applied that when it has had everything.
    pub(super) fn lack_changes_of(&mut self, recent: &Recent, kind: Kind, name: &Arc<str>) {
        if !self.settled
            && let Some(changes) = recent.changes_of(kind, name)
        {
            self.lacking.add(changes);
        }
    }
}

impl State {
    /// The revisions that a sidecar lacks something of, as others are told: what is not remembered, or
    /// not told of its rejections, counts as lacking.
    pub(super) fn lacks(&self, subscriber: &Subscriber) -> Vec<RevisionSpan> {
        let mut lacking = subscriber.lacking.clone();
        if subscriber.begins() {
            lacking.add(self.recent.forgotten());
        }
        for resource in subscriber.view.rejected.keys().skip(REJECTED_MAX) {
            let (kind, name) = resource.split_once('/').unwrap_or_default();
            let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind);
            let changes = kind.and_then(|kind| self.recent.changes_of(kind, &name.into()));
            lacking.add(changes.unwrap_or_else(|| self.recent.forgotten()));
        }
        lacking.into_spans()
    }
}
