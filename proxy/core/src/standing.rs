//! How long a connection that has been authenticated may stand.
//!
//! A connection lives no longer than what vouches for it. Revoking an instance cuts all of its
//! connections at once. The end of the leaf certificate that a connection began with does not: the
//! connection lives on while the same instance has proved a newer leaf by another handshake, and
//! ends a grace after the newest leaf has.
//!
//! Times are seconds since the Unix epoch, as certificates have them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

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
}

/// A handshake that has succeeded.
#[derive(Debug, Clone)]
pub struct Handshake<'a, D> {
    /// The peer's instance.
    pub instance: &'a Arc<str>,
    /// The end of the peer's leaf.
    pub not_after: i64,
    /// The end of our own leaf.
    pub own_not_after: i64,
    /// Whom we dialled; `None` for a connection that was accepted.
    pub dialled: Option<D>,
}

/// The connections of a process to authenticated peers. `D` says whom to dial for a new proof.
#[derive(Debug)]
pub struct StandingConnections<D> {
    grace: i64,
    next: u64,
    instances: BTreeMap<Arc<str>, Instance<D>>,
    connections: HashMap<ConnectionId, Arc<str>>,
}

#[derive(Debug)]
struct Instance<D> {
    /// The end of the newest leaf that it has proved.
    not_after: i64,
    connections: BTreeSet<ConnectionId>,
    proofs: HashMap<D, Proof>,
}

/// When one that we dialled has to be dialled again for a proof.
#[derive(Debug)]
struct Proof {
    due: i64,
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
        }
    }

    /// A handshake has proved who the peer is: its connection stands from now on, and every other
    /// one of the same instance lives as long as this proof lets it.
    pub fn handle_handshake(&mut self, handshake: Handshake<'_, D>, now: i64) -> ConnectionId {
        let id = ConnectionId(self.next);
        self.next += 1;
        let shared = Arc::clone(handshake.instance);
        self.connections.insert(id, Arc::clone(&shared));
        let instance = self.instances.entry(shared).or_insert_with(|| Instance {
            not_after: handshake.not_after,
            connections: BTreeSet::new(),
            proofs: HashMap::new(),
        });
        instance.not_after = instance.not_after.max(handshake.not_after);
        instance.connections.insert(id);
        if let Some(dialled) = handshake.dialled {
            let until = handshake.not_after.min(handshake.own_not_after);
            let due = due_after(now, until);
            let proof = instance.proofs.entry(dialled).or_insert_with(|| Proof {
                due,
                connections: BTreeSet::new(),
            });
            // A resumed handshake shows the certificates of the first one: it proves nothing newer.
            proof.due = proof.due.max(due);
            proof.connections.insert(id);
        }
        id
    }

    /// A connection has ended.
    pub fn handle_closed(&mut self, id: ConnectionId) {
        let Some(name) = self.connections.remove(&id) else {
            return;
        };
        let Some(instance) = self.instances.get_mut(&name) else {
            return;
        };
        instance.connections.remove(&id);
        instance.proofs.retain(|_dialled, proof| {
            proof.connections.remove(&id);
            !proof.connections.is_empty()
        });
        if instance.connections.is_empty() {
            self.instances.remove(&name);
        }
    }

    /// Other instances are revoked now: the connections that have to be cut.
    pub fn handle_revoked(&self, is_revoked: impl Fn(&str) -> bool) -> Vec<ConnectionId> {
        let revoked = self.instances.iter().filter(|(name, _)| is_revoked(name));
        revoked
            .flat_map(|(_, instance)| instance.connections.iter().copied())
            .collect()
    }

    /// The connections whose time is over. They are named until they are closed.
    pub fn poll_expired(&self, now: i64) -> Vec<ConnectionId> {
        let instances = self.instances.values();
        let expired = instances.filter(|instance| instance.ends(self.grace) <= now);
        expired
            .flat_map(|instance| instance.connections.iter().copied())
            .collect()
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
    fn ends(&self, grace: i64) -> i64 {
        self.not_after.saturating_add(grace)
    }
}

fn due_after(now: i64, until: i64) -> i64 {
    let (part, of) = PROVE_AFTER_SHARE;
    let left = until.saturating_sub(now).max(0);
    now.saturating_add(left / of * part + left % of * part / of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Connections = StandingConnections<u8>;

    const GRACE: i64 = 10;

    fn shake(connections: &mut Connections, name: &str, not_after: i64, now: i64) -> ConnectionId {
        let handshake = Handshake {
            instance: &name.into(),
            not_after,
            own_not_after: i64::MAX,
            dialled: None,
        };
        connections.handle_handshake(handshake, now)
    }

    fn dial(connections: &mut Connections, (own, theirs): (i64, i64), now: i64) -> ConnectionId {
        let handshake = Handshake {
            instance: &"i-1".into(),
            not_after: theirs,
            own_not_after: own,
            dialled: Some(7),
        };
        connections.handle_handshake(handshake, now)
    }

    #[test]
    fn revocation_names_every_connection_of_the_instance_and_no_other() {
        let mut connections = Connections::new(GRACE);
        let (one, two) = (
            shake(&mut connections, "i-1", 100, 0),
            shake(&mut connections, "i-1", 200, 0),
        );
        let other = shake(&mut connections, "i-2", 100, 0);
        assert_eq!(connections.handle_revoked(|name| name == "i-1"), [one, two]);
        connections.handle_closed(one);
        assert_eq!(connections.handle_revoked(|name| name == "i-1"), [two]);
        assert_eq!(
            connections.handle_revoked(|_| true),
            [two, other],
            "all that stand"
        );
    }

    #[test]
    fn a_newer_leaf_of_the_same_instance_keeps_older_connections() {
        let mut connections = Connections::new(GRACE);
        let old = shake(&mut connections, "i-1", 100, 0);
        let other = shake(&mut connections, "i-2", 100, 0);
        let proof = shake(&mut connections, "i-1", 150, 60);
        connections.handle_closed(proof);
        let cases = [
            (109, vec![]),
            (110, vec![other]),
            (159, vec![other]),
            (160, vec![old, other]),
        ];
        for (now, expected) in cases {
            assert_eq!(connections.poll_expired(now), expected, "{now}");
        }
        // An older leaf takes nothing back, as a resumed handshake shows one.
        shake(&mut connections, "i-1", 100, 60);
        assert_eq!(connections.poll_expired(159), [other]);
    }

    #[test]
    fn one_that_was_dialled_is_dialled_again_in_time() {
        let mut connections = Connections::new(GRACE);
        let first = dial(&mut connections, (200, 100), 20);
        // Three quarters of the 80 s in which both are valid.
        assert!(connections.poll_proofs(79).is_empty());
        assert_eq!(connections.poll_proofs(80), [7]);
        assert!(connections.poll_proofs(81).is_empty());
        assert_eq!(connections.poll_proofs(85), [7], "until one has succeeded");
        let proof = dial(&mut connections, (200, 180), 86);
        connections.handle_closed(proof);
        assert!(connections.poll_proofs(100).is_empty());
        assert_eq!(connections.poll_proofs(157), [7]);
        connections.handle_closed(first);
        assert!(connections.poll_proofs(1000).is_empty());
        assert!(connections.is_empty() && connections.instances.is_empty());
    }

    proptest! {
        /// Whatever comes and goes: nothing is left behind, and a connection ends exactly when the
        /// newest leaf of its instance has been over for the grace.
        #[test]
        fn only_the_newest_leaf_counts(steps in prop::collection::vec((0u8..4, 0u8..3, 0i64..100), 0..200)) {
            let mut connections = Connections::new(GRACE);
            let mut open: Vec<(ConnectionId, u8)> = Vec::new();
            let mut newest: BTreeMap<u8, i64> = BTreeMap::new();
            for (step, name, not_after) in steps {
                if step == 0 && !open.is_empty() {
                    let (id, name) = open.swap_remove(not_after as usize % open.len());
                    connections.handle_closed(id);
                    if open.iter().all(|(_, other)| *other != name) {
                        newest.remove(&name);
                    }
                } else {
                    let id = shake(&mut connections, &format!("i-{name}"), not_after, 0);
                    open.push((id, name));
                    let known = newest.entry(name).or_insert(not_after);
                    *known = (*known).max(not_after);
                }
                let now = not_after;
                let mut expired = connections.poll_expired(now);
                let ended = |(_, name): &&(ConnectionId, u8)| newest[name] + GRACE <= now;
                let mut expected: Vec<_> = open.iter().filter(ended).map(|(id, _)| *id).collect();
                expired.sort_unstable();
                expected.sort_unstable();
                prop_assert_eq!(expired, expected);
                prop_assert_eq!(connections.len(), open.len());
            }
            for (id, _) in open {
                connections.handle_closed(id);
            }
            prop_assert!(connections.is_empty() && connections.instances.is_empty());
        }
    }
}
