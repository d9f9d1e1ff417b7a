use super::*;
use proptest::prelude::*;

type Connections = StandingConnections<u8>;

const GRACE: i64 = 10;

/// Two roots.
const OLD: AnchorId = AnchorId::new([1; 32]);
const NEW: AnchorId = AnchorId::new([2; 32]);

fn under(anchor: AnchorId, not_after: i64) -> Leaf {
    Leaf { not_after, anchor }
}

fn identity(service_account: &str) -> SpiffeId {
    let id = format!("spiffe://weft.local/ns/shop/sa/{service_account}");
    id.parse().unwrap()
}

fn shake(connections: &mut Connections, name: &str, not_after: i64, now: i64) -> ConnectionId {
    show(connections, name, under(OLD, not_after), now)
}

/// A peer shows a leaf.
fn show(connections: &mut Connections, name: &str, leaf: Leaf, now: i64) -> ConnectionId {
    let handshake = Handshake {
        identity: &identity("web"),
        instance: &name.into(),
        leaf,
        own: Some(under(OLD, i64::MAX)),
        dialled: None,
    };
    connections.handle_handshake(handshake, now)
}

fn dial(connections: &mut Connections, (own, theirs): (i64, i64), now: i64) -> ConnectionId {
    dial_with(connections, Some(under(OLD, own)), under(OLD, theirs), now)
}

/// We dial, and both show their leaves.
fn dial_with(
    connections: &mut Connections,
    own: Option<Leaf>,
    leaf: Leaf,
    now: i64,
) -> ConnectionId {
    let handshake = Handshake {
        identity: &identity("web"),
        instance: &"i-1".into(),
        leaf,
        own,
        dialled: Some(7),
    };
    connections.handle_handshake(handshake, now)
}

fn ended(connections: &Connections, now: i64) -> Vec<ConnectionId> {
    let ended = connections.poll_ended(now).into_iter();
    ended.map(|(id, _ending)| id).collect()
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
        assert_eq!(ended(&connections, now), expected, "{now}");
    }
    // An older leaf takes nothing back, as a resumed handshake shows one.
    shake(&mut connections, "i-1", 100, 60);
    assert_eq!(ended(&connections, 159), [other]);
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

#[test]
fn a_leaf_counts_until_its_root_leaves_the_bundle() {
    use Ending::{Expired, Untrusted};
    // What the peer has proved, the roots of the bundle since 40, and when and how that ends.
    let cases: [(&[Leaf], &[AnchorId], i64, Ending); 8] = [
        (&[under(OLD, 100)], &[OLD], 110, Expired),
        (&[under(OLD, 100)], &[OLD, NEW], 110, Expired),
        (&[under(OLD, 100)], &[NEW], 50, Untrusted),
        (&[under(OLD, 100), under(NEW, 90)], &[NEW], 100, Expired),
        (&[under(NEW, 90), under(OLD, 100)], &[NEW], 100, Expired),
        (
            &[under(OLD, 100), under(NEW, 90)],
            &[OLD, NEW],
            110,
            Expired,
        ),
        (&[under(OLD, 100), under(NEW, 90)], &[], 50, Untrusted),
        // It had ended before.
        (&[under(OLD, 30)], &[NEW], 40, Expired),
    ];
    for (leaves, roots, until, ending) in cases {
        let mut connections = Connections::new(GRACE);
        let first = show(&mut connections, "i-1", leaves[0], 0);
        for leaf in &leaves[1..] {
            let proof = show(&mut connections, "i-1", *leaf, 0);
            connections.handle_closed(proof);
        }
        connections.handle_bundle(|anchor| roots.contains(&anchor), 40);
        let case = format!("{leaves:?} under {roots:?}");
        assert!(connections.poll_ended(until - 1).is_empty(), "{case}");
        assert_eq!(connections.poll_ended(until), [(first, ending)], "{case}");
    }
}

/// Both roots are in the bundle until all have certificates under the new one.
#[test]
fn an_ordinary_rotation_of_the_root_ends_nothing() {
    let mut connections = Connections::new(GRACE);
    let (old, new) = (under(OLD, 100), under(NEW, 160));
    let session = dial_with(&mut connections, Some(old), old, 0);
    connections.handle_bundle(|_| true, 10);
    assert_eq!(connections.poll_proofs(75), [7], "in time as ever");
    let proof = dial_with(&mut connections, Some(new), new, 76);
    connections.handle_closed(proof);
    connections.handle_bundle(|anchor| anchor == NEW, 80);
    assert!(connections.poll_proofs(80).is_empty(), "both are proved");
    assert!(connections.poll_ended(169).is_empty());
    assert_eq!(connections.poll_ended(170), [(session, Ending::Expired)]);
}

/// Both have certificates under the new root and have not shown them to each other.
#[test]
fn who_was_dialled_under_a_root_that_leaves_is_dialled_again_at_once() {
    let (old, new) = (under(OLD, 1000), under(NEW, 1000));
    // Whichever of both sides showed a leaf under it.
    for (own, theirs) in [(old, old), (old, new), (new, old)] {
        let mut connections = Connections::new(GRACE);
        let session = dial_with(&mut connections, Some(own), theirs, 0);
        connections.handle_bundle(|anchor| anchor == NEW, 40);
        assert_eq!(connections.poll_proofs(40), [7]);
        assert!(connections.poll_proofs(44).is_empty());
        assert_eq!(connections.poll_proofs(45), [7], "until one has succeeded");
        connections.handle_bundle(|anchor| anchor == NEW, 46);
        assert!(connections.poll_proofs(46).is_empty(), "nothing has left");
        let proof = dial_with(&mut connections, Some(new), new, 47);
        connections.handle_closed(proof);
        assert!(connections.poll_proofs(500).is_empty());
        assert!(connections.poll_ended(1009).is_empty());
        connections.handle_closed(session);
        assert!(connections.is_empty() && connections.instances.is_empty());
    }
    // We have no certificate yet that anybody with our bundle believes: it is tried until we have.
    let mut connections = Connections::new(GRACE);
    dial_with(&mut connections, None, new, 0);
    assert_eq!(connections.poll_proofs(0), [7]);
    dial_with(&mut connections, None, new, 1);
    assert_eq!(connections.poll_proofs(5), [7]);
    dial_with(&mut connections, Some(new), new, 6);
    assert!(connections.poll_proofs(700).is_empty());
}

#[test]
fn a_root_that_comes_back_counts_again() {
    let mut connections = Connections::new(GRACE);
    let session = shake(&mut connections, "i-1", 100, 0);
    connections.handle_bundle(|anchor| anchor == NEW, 20);
    // Another change in between does not make it later.
    connections.handle_bundle(|_| false, 25);
    assert_eq!(connections.poll_ended(30), [(session, Ending::Untrusted)]);
    connections.handle_bundle(|_| true, 31);
    assert!(connections.poll_ended(109).is_empty());
    connections.handle_bundle(|_| false, 50);
    assert!(connections.poll_ended(59).is_empty());
    assert_eq!(connections.poll_ended(60), [(session, Ending::Untrusted)]);
}

/// The key of a root that has left may have signed for any name of an instance.
#[test]
fn an_instance_of_another_identity_vouches_for_nobody() {
    let mut connections = Connections::new(GRACE);
    let forged = shake(&mut connections, "i-1", 100, 0);
    let handshake = Handshake {
        identity: &identity("orders"),
        instance: &"i-1".into(),
        leaf: under(NEW, 100),
        own: Some(under(NEW, 100)),
        dialled: None,
    };
    let honest = connections.handle_handshake(handshake, 0);
    connections.handle_bundle(|anchor| anchor == NEW, 20);
    assert_eq!(connections.poll_ended(30), [(forged, Ending::Untrusted)]);
    let both = connections.handle_revoked(|name| name == "i-1");
    assert!(both.contains(&forged) && both.contains(&honest));
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
            let mut expired = ended(&connections, now);
            let over = |(_, name): &&(ConnectionId, u8)| newest[name] + GRACE <= now;
            let mut expected: Vec<_> = open.iter().filter(over).map(|(id, _)| *id).collect();
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

    /// Whatever roots come and go: a connection ends when none of its peer's leaves has counted for the
    /// grace, as one sees who looks at each root for itself.
    #[test]
    fn a_leaf_counts_while_its_root_is_there(
        steps in prop::collection::vec((0u8..4, 0u8..3, 0i64..100), 0..100),
    ) {
        let anchor = |root: u8| AnchorId::new([root; 32]);
        let mut connections = Connections::new(GRACE);
        let mut open = Vec::new();
        let (mut leaves, mut left) = (BTreeMap::<u8, i64>::new(), [None::<i64>; 3]);
        for (now, (step, root, life)) in (0i64..).zip(steps) {
            if step == 0 {
                // One bit each says whether a root is in the bundle.
                let has = |root: u8| life & (1 << root) != 0;
                connections.handle_bundle(|id| (0..3).any(|root| has(root) && id == anchor(root)), now);
                for (root, left) in (0u8..).zip(&mut left) {
                    *left = if has(root) { None } else { left.or(Some(now)) };
                }
            } else if left[usize::from(root)].is_none() {
                let not_after = now + life;
                open.push(show(&mut connections, "i-1", under(anchor(root), not_after), now));
                let newest = leaves.entry(root).or_insert(not_after);
                *newest = (*newest).max(not_after);
            }
            let until = leaves.iter().map(|(root, not_after)| {
                left[usize::from(*root)].map_or(*not_after, |left| left.min(*not_after))
            });
            let over = until.max().is_some_and(|until| until + GRACE <= now);
            let expected = if over { open.clone() } else { Vec::new() };
            prop_assert_eq!(ended(&connections, now), expected);
        }
    }
}
