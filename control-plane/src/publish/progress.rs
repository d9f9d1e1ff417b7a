//! How far a revision of the store has come: who has applied it, who has not, who rejects it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::{Publication, Publisher, State, StreamId, Subscriber};
use crate::compile::ChangedNames;
use crate::peer::PeerIdentity;
use crate::store::Revision;

/// Publications of which it is kept whom they concern, and which names they changed.
const RECENT_MAX: usize = 256;
/// Names of resources that all of them together may have changed; beyond, the oldest publications
/// are forgotten. The newest one is kept whatever its size.
pub(super) const NAMES_MAX: usize = 262_144;

/// How far a revision of the store has come.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// The newest revision that sidecars are told.
    pub published: Revision,
    /// Whether it is remembered whom the revision concerned. Where it is not, those are waited for
    /// who lack anything up to it, and rejections are not told.
    pub is_known: bool,
    /// Sidecars that have applied it, or whom it does not concern.
    pub applied: Vec<PeerIdentity>,
    /// Sidecars that have not applied it.
    pub waiting: Vec<PeerIdentity>,
    /// Resources that it changed and that sidecars rejected.
    pub rejected: Vec<RejectedBy>,
    /// Other control planes that have not been heard: of their sidecars nothing is known.
    pub unknown: Vec<String>,
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

impl Progress {
    /// Whether nothing is waited for: everybody has applied the revision, or somebody rejects it.
    pub fn is_settled(&self, revision: Revision) -> bool {
        let all_told = self.waiting.is_empty() && self.unknown.is_empty();
        !self.rejected.is_empty() || (self.published >= revision && all_told)
    }
}

/// The newest publications of revisions of the store.
#[derive(Debug, Default)]
pub(super) struct Recent {
    by_revision: BTreeMap<Revision, Published>,
    /// Names in all of them.
    names: usize,
    /// Up to here it is not remembered whom a revision concerned.
    forgotten: Revision,
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
        revision: Revision,
        publication: Publication,
        names: &ChangedNames,
    ) {
        if !std::mem::replace(&mut self.begun, true) {
            self.forgotten = revision;
            return;
        }
        self.names += count(names);
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

fn count(names: &ChangedNames) -> usize {
    names.values().map(BTreeSet::len).sum()
}

impl Published {
    fn concerns(&self, stream: StreamId) -> bool {
        self.publication.concerned.contains(&stream)
    }

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
    /// Whether the publication of a revision changed a resource, KIND/NAME, as far as it is remembered.
    pub fn has_changed(&self, revision: Revision, resource: &str) -> bool {
        let state = self.state();
        let published = state.recent.find(revision);
        published.is_some_and(|published| published.changed(resource))
    }

    /// How far a revision of the store has come. Of each instance its newest stream counts: one
    /// that connects again while its older stream lacks the revision has applied it when it has
    /// everything that it asks for now.
    pub fn progress(&self, revision: Revision) -> Progress {
        let state = self.state();
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
            let waits = match (published, &lacking) {
                (Some(published), Some(lacking)) => {
                    let generation = published.publication.generation;
                    (published.concerns(stream) && !subscriber.has_applied(generation))
                        || (lacking.contains(instance) && !subscriber.settled)
                }
                (None, _) | (_, None) => {
                    revision > state.newest.revision || subscriber.lacks(revision)
                }
            };
            let peer = subscriber.view.peer.clone();
            if waits {
                progress.waiting.push(peer);
                continue;
            }
            // What one that waits rejected is what it held before.
            let of_it = subscriber.view.rejected.iter();
            let of_it = of_it.filter(|(name, _)| published.is_some_and(|p| p.changed(name)));
            progress
                .rejected
                .extend(of_it.map(|(resource, reason)| RejectedBy {
                    peer: peer.clone(),
                    resource: resource.clone(),
                    reason: reason.to_string(),
                }));
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

    /// Whether it was not told yet of everything up to a revision that it asked for.
    fn lacks(&self, revision: Revision) -> bool {
        self.begins() || self.behind.is_some_and(|behind| behind.revision < revision)
    }
}
