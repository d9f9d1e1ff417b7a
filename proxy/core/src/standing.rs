//! How long a connection that has been authenticated may stand.
//!
//! A connection lives no longer than what vouches for it. Revoking an instance cuts all of its
//! connections at once. The end of the leaf certificate that a connection began with does not: the
//! connection lives on while the same instance has proved a newer leaf by another handshake, and
//! ends a grace after the newest leaf has. A leaf counts until it ends or until the root that it leads
//! to leaves the trust bundle, whichever is first.
//!
//! Times are seconds since the Unix epoch, as certificates have them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use crate::name::SpiffeId;
use crate::peer::AnchorId;
use crate::reason::Reason;

/// Share of the time that two certificates are still valid together after which the side that
/// dialled proves its identity again. Certificates are renewed at half of their life, so that both
/// sides hold a newer one by then.
const PROVE_AFTER_SHARE: (i64, i64) = (3, 4);
/// Seconds after which a proof that has not succeeded is tried again.
const PROVE_AGAIN_SECONDS: i64 = 5;

/// A connection of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

/// Why a connection has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its peer's instance was revoked: it is cut.
    Revoked,
    /// No certificate of its peer's instance is valid any more: it comes to an end.
    Expired,
    /// No certificate of its peer's instance leads to a root of the trust bundle any more: it comes to
    /// an end.
    Untrusted,
}

impl Ending {
    /// The reason that is told of what ends with the connection.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Revoked => Reason::PeerRevoked,
            Self::Expired => Reason::PeerExpired,
            Self::Untrusted => Reason::PeerUntrusted,
        }
    }
}

/// A handshake that has succeeded.
#[derive(Debug, Clone)]
pub struct Handshake<'a, D> {
    /// Who the peer is.
    pub identity: &'a SpiffeId,
    /// The peer's instance.
    pub instance: &'a Arc<str>,
    /// The peer's leaf.
    pub leaf: Leaf,
    /// Our own leaf; `None` where it leads to no root of our own trust bundle.
    pub own: Option<Leaf>,
    /// Whom we dialled; `None` for a connection that was accepted.
    pub dialled: Option<D>,
}

/// What of a leaf certificate says for how long it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// The end of its validity.
    pub not_after: i64,
    /// The root that it leads to.
    pub anchor: AnchorId,
}

/// The connections of a process to authenticated peers. `D` says whom to dial for a new proof.
#[derive(Debug)]
pub struct StandingConnections<D> {
    grace: i64,
    next: u64,
    instances: BTreeMap<Party, Instance<D>>,
    connections: HashMap<ConnectionId, Party>,
    /// Roots that have left the trust bundle, and when: those that a leaf in use leads to.
    gone: BTreeMap<AnchorId, i64>,
}

/// Whose leaves vouch for each other's connections. One with another identity does not, although the
/// instance has the same name: who has the key of a root that has left can have given it any.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Party {
    instance: Arc<str>,
    identity: SpiffeId,
}

#[derive(Debug)]
struct Instance<D> {
    /// The end of the newest leaf that it has proved, for each root.
    leaves: BTreeMap<AnchorId, i64>,
    connections: BTreeSet<ConnectionId>,
    proofs: HashMap<D, Proof>,
}

/// When one that we dialled has to be dialled again for a proof.
#[derive(Debug)]
struct Proof {
    due: i64,
    /// The roots that both sides' leaves of the last handshake lead to.
    anchors: [Option<AnchorId>; 2],
    connections: BTreeSet<ConnectionId>,
}

impl<D: Eq + Hash + Clone> StandingConnections<D> {
    /// No connection yet; each ends `grace_seconds` after the newest leaf of its peer.
    pub fn new(grace_seconds: i64) -> Self {
        Self {
            grace: grace_seconds.max(0),
            next: 0,
            instances: BTreeMap::new(),
            connections: HashMap::new(),
            gone: BTreeMap::new(),
        }
    }

    /// A handshake has proved who the peer is: its connection stands from now on, and every other
    /// one of the same instance lives as long as this proof lets it.
    pub fn handle_handshake(&mut self, handshake: Handshake<'_, D>, now: i64) -> ConnectionId {
        let id = ConnectionId(self.next);
        self.next += 1;
        let party = Party {
            instance: Arc::clone(handshake.instance),
            identity: handshake.identity.clone(),
        };
        self.connections.insert(id, party.clone());
        let Leaf { not_after, anchor } = handshake.leaf;
        let instance = self.instances.entry(party).or_insert_with(Instance::new);
        let newest = instance.leaves.entry(anchor).or_insert(not_after);
        *newest = (*newest).max(not_after);
        instance.connections.insert(id);
        if let Some(dialled) = handshake.dialled {
            let own = handshake.own;
            // A leaf of ours that leads to no root proves nothing to anybody who has the same bundle.
            let until = own.map_or(now, |own| not_after.min(own.not_after));
            let due = due_after(now, until);
            let anchors = [Some(anchor), own.map(|own| own.anchor)];
            let proof = instance.proofs.entry(dialled).or_insert_with(|| Proof {
                due,
                anchors,
                connections: BTreeSet::new(),
            });
            // A resumed handshake shows the certificates of the first one: it proves nothing newer.
            proof.due = proof.due.max(due);
            proof.anchors = anchors;
            proof.connections.insert(id);
        }
        id
    }

    /// A connection has ended.
    pub fn handle_closed(&mut self, id: ConnectionId) {
        let Some(party) = self.connections.remove(&id) else {
            return;
        };
        let Some(instance) = self.instances.get_mut(&party) else {
            return;
        };
        instance.connections.remove(&id);
        instance.proofs.retain(|_dialled, proof| {
            proof.connections.remove(&id);
            !proof.connections.is_empty()
        });
        if instance.connections.is_empty() {
            self.instances.remove(&party);
        }
    }

    /// Other instances are revoked now: the connections that have to be cut.
    pub fn handle_revoked(&self, is_revoked: impl Fn(&str) -> bool) -> Vec<ConnectionId> {
        let instances = self.instances.iter();
        let revoked = instances.filter(|(party, _)| is_revoked(&party.instance));
        revoked
            .flat_map(|(_, instance)| instance.connections.iter().copied())
            .collect()
    }

    /// Another trust bundle is in force. A leaf that leads to a root that has left counts as one that
    /// ends now, until the root comes back; who was dialled with it is to be dialled for a new proof.
    pub fn handle_bundle(&mut self, is_trusted: impl Fn(AnchorId) -> bool, now: i64) {
        let before = std::mem::take(&mut self.gone);
        let instances = self.instances.values();
        let relied_on = instances.flat_map(|instance| {
            let leaves = instance.leaves.keys().copied();
            let proofs = instance.proofs.values();
            leaves.chain(proofs.flat_map(|proof| proof.anchors.into_iter().flatten()))
        });
        let gone = relied_on.filter(|anchor| !is_trusted(*anchor));
        self.gone = gone
            .map(|anchor| (anchor, before.get(&anchor).copied().unwrap_or(now)))
            .collect();
        let left =
            |anchor: &AnchorId| self.gone.contains_key(anchor) && !before.contains_key(anchor);
        for instance in self.instances.values_mut() {
            for proof in instance.proofs.values_mut() {
                if proof.anchors.iter().flatten().any(left) {
                    proof.due = proof.due.min(now);
                }
            }
        }
    }

    /// The connections whose time is over, and why. They are named until they are closed.
    pub fn poll_ended(&self, now: i64) -> Vec<(ConnectionId, Ending)> {
        let mut ended = Vec::new();
        for instance in self.instances.values() {
            let (until, ending) = instance.counts_until(&self.gone);
            if until.saturating_add(self.grace) <= now {
                ended.extend(instance.connections.iter().map(|id| (*id, ending)));
            }
        }
        ended
    }

    /// Whom to dial now, so that both sides see a newer certificate. Each is named again after a
    /// while, until a handshake has succeeded.
    pub fn poll_proofs(&mut self, now: i64) -> Vec<D> {
        let mut due = Vec::new();
        for instance in self.instances.values_mut() {
            for (dialled, proof) in &mut instance.proofs {
                if proof.due <= now {
                    proof.due = now.saturating_add(PROVE_AGAIN_SECONDS);
                    due.push(dialled.clone());
                }
            }
        }
        due
    }

    /// How many connections stand.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether none stands.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }
}

impl<D> Instance<D> {
    fn new() -> Self {
        Self {
            leaves: BTreeMap::new(),
            connections: BTreeSet::new(),
            proofs: HashMap::new(),
        }
    }

    /// Until when one of its leaves counts, and why none does after that. `gone` are the roots that
    /// have left the trust bundle, and when.
    fn counts_until(&self, gone: &BTreeMap<AnchorId, i64>) -> (i64, Ending) {
        let leaves = self.leaves.iter();
        let ends = leaves.map(|(anchor, not_after)| match gone.get(anchor) {
            Some(left) if left < not_after => (*left, Ending::Untrusted),
            Some(_) | None => (*not_after, Ending::Expired),
        });
        // Each has proved a leaf.
        ends.max_by_key(|(until, _)| *until)
            .unwrap_or((i64::MIN, Ending::Expired))
    }
}

fn due_after(now: i64, until: i64) -> i64 {
    let (part, of) = PROVE_AFTER_SHARE;
    let left = until.saturating_sub(now).max(0);
    now.saturating_add(left / of * part + left % of * part / of)
}

#[cfg(test)]
mod tests;
