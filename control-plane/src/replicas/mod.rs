//! What the control planes of a mesh tell each other of the sidecars that are connected to them, so that
//! any of them answers for all: `weft proxies`, `weft apply --wait`, breakers, and the condition
//! `Programmed`.
//!
//! Each follows each of the others over mutual TLS (`client.rs`, `grpc.rs`): `reporter.rs` says what is
//! told next, `told.rs` what follows from what was told, both pure. To the one that keeps the books of
//! global limits the others relay what their sidecars say of these (`relay.rs`). How the others are
//! found is not known here: somebody keeps a list of them. Revisions are each process's own; what was
//! seen of the documents (`store::Position`) says which of them have the same.

mod client;
pub mod grpc;
mod relay;
mod reporter;
mod told;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use weft_core::interception::InterceptionReport;
use weft_core::name::{
    CONTROL_PLANE_ACCOUNT, NameError, RESERVED_NAMESPACE, SpiffeId, TrustDomain,
};
use weft_proto::refusals::Refusal;
use weft_proto::replicas::{ObservedReport, ReplicaReport, SidecarReport};

use crate::kubernetes::endpoints::ControlPlanes;
use crate::model::ResourceKey;
use crate::peer::PeerIdentity;
use crate::publish::{
    Applied, Progress, ProxyView, Publisher, RefusedBy, SidecarStanding, Waiting, is_overdue,
};
use crate::ratelimit::Leases;
use crate::registry::{Observations, ObservedView};
use crate::store::{Revision, Store};
use told::{Reached, ReplicaState, TooMany};

pub use client::Dialling;
pub use told::{EXPIRES, SIDECARS_MAX};

/// Other control planes that are followed; there are few. Those beyond are unknown.
pub const OTHERS_MAX: usize = 16;

/// Stands for the others before it is known who they are.
const NOT_LISTED: &str =
    "(any: the EndpointSlices of the Service weft-control-plane are not read yet)";
/// Stands for those that may be missing from a list that this process is missing from.
const NOT_AMONG_THEM: &str = "(any: this control plane has not reached itself by the EndpointSlices of the Service weft-control-plane, port grpc-xds)";

/// Stands for those that have ended.
const ENDED: &str =
    "(any that have ended or were restarted: their sidecars may not have connected again yet)";
/// For how long sidecars may be connected to nobody when their control plane has ended: a pause of 3.75 s and an
/// attempt of 5 s, twice; and the time in which a process that begins becomes ready.
const RECONNECTED_WITHIN: Duration = Duration::from_secs(25);

/// The identity of every control plane of a mesh. Nobody else is given it.
pub fn identity(trust_domain: &TrustDomain) -> Result<SpiffeId, NameError> {
    SpiffeId::new(trust_domain, RESERVED_NAMESPACE, CONTROL_PLANE_ACCOUNT)
}

/// What the other control planes tell, and what they are told.
#[derive(Debug)]
pub struct Replicas {
    /// Names this process to the others.
    name: Arc<str>,
    publisher: Arc<Publisher>,
    observations: Arc<Observations>,
    store: Arc<dyn Store>,
    leases: Arc<Leases>,
    others: Mutex<Others>,
    /// Changes when another control plane has told something else of interception.
    interception: watch::Sender<()>,
}

/// Those that were found.
#[derive(Debug, Default)]
struct Others {
    by_name: BTreeMap<String, Other>,
    /// A list of them is to come, and was not read yet.
    awaits_list: bool,
    /// This process is one of them: as long as none of them has proved to be it, there may be more.
    expects_itself: bool,
    /// Until then sidecars of one that has ended, perhaps before this process began, may not have connected
    /// to another one.
    reconnect_until: Option<Instant>,
}

#[derive(Debug, Default)]
struct Other {
    told: ReplicaState,
    /// It is this process.
    is_own: bool,
}

impl Replicas {
    /// Nobody else is known.
    pub fn new(
        publisher: Arc<Publisher>,
        observations: Arc<Observations>,
        store: Arc<dyn Store>,
        leases: Arc<Leases>,
    ) -> Arc<Self> {
        let name = format!("control-plane-{}", crate::hex(&crate::random::<8>()));
        Arc::new(Self {
            name: name.into(),
            publisher,
            observations,
            store,
            leases,
            others: Mutex::default(),
            interception: watch::Sender::default(),
        })
    }

    /// What names this process to the others.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Every sidecar that is connected to another control plane and not to this one.
    pub fn connected(&self, here: &[ProxyView]) -> Vec<ProxyView> {
        let positions = self.store.positions();
        let newest = positions.last().map(|position| position.revision);
        let others = self.others();
        let elsewhere = elsewhere(&others, here.iter().map(|view| &view.peer), Instant::now());
        let views = elsewhere.into_iter().map(|(name, other, sidecar)| {
            let revision = other.told.applied(sidecar, &positions);
            // Of a state that is the newest here the generation is the newest, too.
            let is_current = sidecar.behind.is_none() && Some(revision) == newest;
            ProxyView {
                replica: Some(name.as_str().into()),
                peer: peer_of(sidecar),
                version: sidecar.version.clone(),
                since: sidecar.since,
                applied: Applied {
                    generation: if is_current { u64::MAX } else { 0 },
                    revision,
                },
                holds: sidecar.holds,
                rejected: sidecar.rejected.clone(),
            }
        });
        views.collect()
    }

    /// How many sidecars are connected to other control planes.
    pub fn count(&self) -> usize {
        let now = Instant::now();
        let others = self.others();
        let told = others.by_name.values().filter(|other| !other.is_own);
        let told = told.filter_map(|other| other.told.sidecars(now));
        told.map(BTreeMap::len).sum()
    }

    /// Other control planes that have not been heard for too long, or not at all yet.
    pub fn unknown(&self) -> Vec<String> {
        unknown(&self.others(), Instant::now())
    }

    /// Adds how far sidecars of other control planes have come to how far those of this one have.
    pub fn add_progress(&self, revision: Revision, progress: &mut Progress, now: Instant) {
        let others = self.others();
        progress.unknown = unknown(&others, now);
        if others.by_name.values().all(|other| other.is_own) {
            return;
        }
        let positions = self.store.positions();
        let ours = positions.iter().find(|ours| ours.revision >= revision);
        // What is not remembered by itself has come with newer changes to the others, as far as is known.
        let is_old = { positions.first() }.is_some_and(|oldest| revision < oldest.revision);
        let here_at = self.publisher.published_at(revision);
        let here: Vec<PeerIdentity> = { progress.applied.iter() }
            .chain(progress.waiting.iter().map(|waiting| &waiting.peer))
            .cloned()
            .collect();
        let reached: HashMap<&String, Reached> = { others.by_name.iter() }
            .filter_map(|(name, other)| Some((name, other.told.reached(ours?)?)))
            .collect();
        for (name, other, sidecar) in elsewhere(&others, here.iter(), now) {
            let peer = peer_of(sidecar);
            let reached = reached.get(name).copied();
            if !other.told.has_applied(sidecar, reached) {
                let published = reached.and_then(|reached| reached.published);
                let published = published.and_then(|heard| match is_old {
                    true => here_at,
                    false => Some(heard),
                });
                let is_overdue = is_overdue(published, now);
                progress.waiting.push(Waiting { peer, is_overdue });
                continue;
            }
            let changed = |name: &str| self.publisher.has_changed(revision, name);
            progress.add_rejected(&peer, &sidecar.rejected, changed);
            progress.applied.push(peer);
        }
    }

    /// Another control plane that refuses a generation of a document; one that says so before one that may.
    pub fn refused(&self, key: &ResourceKey, generation: u64, now: Instant) -> Option<RefusedBy> {
        let others = self.others();
        let all = others.by_name.iter().filter(|(_, other)| !other.is_own);
        let refusals = all.filter_map(|(name, other)| {
            let why = match other.told.refusal(key, generation, now)? {
                Refusal::Refused(found) => Some(format!("{}: {}", found.word, found.reason)),
                Refusal::Untold => None,
            };
            let control_plane = name.clone();
            Some(RefusedBy { control_plane, why })
        });
        refusals.min_by_key(|refused| refused.why.is_none())
    }

    /// What sidecars of other control planes have told of their breakers.
    pub fn observed(&self, here: &[ObservedView]) -> Vec<ObservedView> {
        let others = self.others();
        let elsewhere = elsewhere(&others, here.iter().map(|view| &view.peer), Instant::now());
        let views = elsewhere.into_iter().filter_map(|(_, _, sidecar)| {
            let observed = sidecar.observed.clone()?;
            Some(ObservedView::elsewhere(peer_of(sidecar), observed))
        });
        views.collect()
    }

    /// Whether interception is in force, by the sidecars of other control planes that prove it and are not
    /// among those of this one.
    pub fn interception(
        &self,
        here: &[(PeerIdentity, InterceptionReport)],
    ) -> Vec<(PeerIdentity, InterceptionReport)> {
        let others = self.others();
        let here = here.iter().map(|(peer, _)| peer);
        let elsewhere = elsewhere(&others, here, Instant::now()).into_iter();
        let told = elsewhere.filter_map(|(_, _, sidecar)| {
            let standing = sidecar.observed.as_ref()?.interception?;
            Some((peer_of(sidecar), standing))
        });
        told.collect()
    }

    /// Changes when another control plane has told something else of interception.
    pub fn watch_interception(&self) -> watch::Receiver<()> {
        self.interception.subscribe()
    }

    fn others(&self) -> MutexGuard<'_, Others> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This process begins, and a list of other control planes is to come; this process is on it where it runs
    /// in a pod of their Service. Until then not all of them are known.
    pub fn await_list(&self, expects_itself: bool, now: Instant) {
        let mut others = self.others();
        others.reconnect_until = Some(now + RECONNECTED_WITHIN);
        others.awaits_list = true;
        others.expects_itself = expects_itself;
    }

    /// Only these are there: what others have told is forgotten.
    fn retain(&self, found: &ControlPlanes, now: Instant) {
        let mut others = self.others();
        others.awaits_list = false;
        let mut had_sidecars = false;
        others.by_name.retain(|name, other| {
            let stays = found.contains_key(name);
            had_sidecars |= !stays && !other.is_own && other.told.may_have_sidecars();
            stays
        });
        if had_sidecars {
            others.reconnect_until = Some(now + RECONNECTED_WITHIN);
        }
        for name in found.keys() {
            others.by_name.entry(name.clone()).or_default();
        }
        drop(others);
        self.publisher.tell_moved();
    }

    /// A stream of another control plane begins.
    fn begin(&self, name: &str) {
        if let Some(other) = self.others().by_name.get_mut(name) {
            other.told.begin();
        }
    }

    /// A message of it; whether it is this process that tells it.
    fn take(&self, name: &str, report: ReplicaReport) -> Result<bool, TooMany> {
        let is_own = report.replica == self.name;
        let mut held = self.others();
        let others = &mut *held;
        let (mut is_news, mut is_of_interception) = (false, false);
        let now = Instant::now();
        if let Some(other) = others.by_name.get_mut(name) {
            is_news = other.is_own != is_own;
            // A container that starts again in its pod has the name of the one before.
            if !is_own && other.told.is_another(&report.replica) && other.told.may_have_sidecars() {
                others.reconnect_until = Some(now + RECONNECTED_WITHIN);
            }
            other.is_own = is_own;
            is_of_interception = !is_own && other.told.interception_changes(&report);
            match is_own {
                true => other.told = ReplicaState::default(),
                false => is_news |= other.told.take(report, now)?,
            }
        }
        drop(held);
        // What everybody waits for is looked at again, which is not to happen for each sign of life.
        if is_news {
            self.publisher.tell_moved();
        }
        if is_of_interception {
            self.interception.send_replace(());
        }
        Ok(is_own)
    }

    /// Whether this process is to be among those that are found, and is not.
    fn lacks_itself(&self) -> bool {
        lacks_itself(&self.others())
    }

    /// When the first of the others is known no longer, or those of one that has ended are waited for no longer.
    fn next_expiry(&self, now: Instant) -> Option<Instant> {
        let others = self.others();
        let ends = others
            .by_name
            .values()
            .filter_map(|other| other.told.expires());
        let ends = ends.chain(others.reconnect_until);
        ends.filter(|end| *end > now).min()
    }

    /// What the sidecars of this control plane are said to be.
    fn reports(&self) -> (Revision, Vec<SidecarReport>) {
        let observed = self.observations.newest().into_iter();
        let mut observed: HashMap<Arc<str>, ObservedView> = observed
            .map(|view| (Arc::clone(&view.peer.instance), view))
            .collect();
        let (published, standings) = self.publisher.standings();
        let reports = standings.into_iter().map(|standing| {
            let observed = observed.remove(&standing.view.peer.instance);
            report_of(standing, observed)
        });
        (published, reports.collect())
    }
}

fn report_of(standing: SidecarStanding, observed: Option<ObservedView>) -> SidecarReport {
    let SidecarStanding {
        view,
        behind,
        begins,
        lacks,
    } = standing;
    SidecarReport {
        instance: view.peer.instance,
        identity: view.peer.identity,
        not_after: view.peer.not_after,
        version: view.version,
        since: view.since,
        holds: view.holds,
        behind,
        begins,
        lacks,
        rejected: view.rejected,
        observed: observed.map(|view| ObservedReport {
            told: view.told,
            breakers: view.breakers,
            interception: view.interception,
        }),
    }
}

fn peer_of(sidecar: &SidecarReport) -> PeerIdentity {
    PeerIdentity {
        identity: sidecar.identity.clone(),
        instance: Arc::clone(&sidecar.instance),
        not_after: sidecar.not_after,
    }
}

/// Who is not heard. Where it is not known yet who there is, that is one of them.
fn unknown(others: &Others, now: Instant) -> Vec<String> {
    let unheard = { others.by_name.iter() }
        .filter(|(_, other)| !other.is_own && other.told.sidecars(now).is_none());
    let mut unknown: Vec<String> = unheard.map(|(name, _)| name.clone()).collect();
    if others.awaits_list {
        unknown.push(NOT_LISTED.to_owned());
    } else if unknown.is_empty() && lacks_itself(others) {
        unknown.push(NOT_AMONG_THEM.to_owned());
    }
    if others.reconnect_until.is_some_and(|until| now < until) {
        unknown.push(ENDED.to_owned());
    }
    unknown
}

/// Whether this process is to be on a list, and has not been found there.
fn lacks_itself(others: &Others) -> bool {
    others.expects_itself && !others.by_name.values().any(|other| other.is_own)
}

/// Sidecars of control planes that are known, without those that are connected here: of each instance
/// the newest stream. In the order of instances.
fn elsewhere<'a, 'b>(
    others: &'a Others,
    here: impl Iterator<Item = &'b PeerIdentity>,
    now: Instant,
) -> Vec<(&'a String, &'a Other, &'a SidecarReport)> {
    let here: std::collections::HashSet<&str> = here.map(|peer| &*peer.instance).collect();
    let mut newest: BTreeMap<&str, (&String, &Other, &SidecarReport)> = BTreeMap::new();
    let all = others.by_name.iter().filter(|(_, other)| !other.is_own);
    for (name, other) in all {
        let told = other.told.sidecars(now).into_iter().flatten();
        for (instance, sidecar) in told.filter(|(instance, _)| !here.contains(&***instance)) {
            let held = newest.entry(instance).or_insert((name, other, sidecar));
            if held.2.since < sidecar.since {
                *held = (name, other, sidecar);
            }
        }
    }
    newest.into_values().collect()
}

#[cfg(test)]
mod tests;
