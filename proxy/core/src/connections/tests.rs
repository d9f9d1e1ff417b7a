use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const LIMITS: ConnectionLimits = ConnectionLimits {
    total: 100,
    unidentified: 10,
    plaintext: 25,
    plaintext_per_client: 20,
    per_peer: 40,
};

fn address(text: &str) -> Client {
    Client::at(text.parse().unwrap())
}

fn peer(name: &str) -> Client {
    Client::Identity(name.into())
}

/// Admits as many as it can; how many those were, and the limit that ended it.
fn fill(budget: &mut ConnectionBudget, kind: ConnectionKind, client: &Client) -> (usize, String) {
    for count in 0.. {
        if let Err(exceeded) = budget.admit(kind, client.clone()) {
            return (count, exceeded.name.to_owned());
        }
    }
    unreachable!()
}

#[test]
fn each_limit_by_its_name() {
    use ConnectionKind::{Application, Peer, Plaintext};
    let mut budget = ConnectionBudget::new(LIMITS);
    let (one, two) = (address("10.0.0.1"), address("10.0.0.2"));
    let of_client = "limits.max_plaintext_connections_per_client".to_owned();
    assert_eq!(fill(&mut budget, Plaintext, &one), (20, of_client));
    let of_kind = "limits.max_plaintext_connections".to_owned();
    assert_eq!(fill(&mut budget, Plaintext, &two), (5, of_kind));
    let of_peer = "limits.max_connections_per_peer".to_owned();
    assert_eq!(fill(&mut budget, Peer, &peer("a")), (40, of_peer));
    // 100 less 10 for the unidentified and 25 for the application.
    let all = "limits.max_connections".to_owned();
    assert_eq!(fill(&mut budget, Peer, &peer("b")), (0, all.clone()));
    assert_eq!(
        fill(&mut budget, Application, &Client::Application),
        (25, all)
    );
}

#[test]
fn plaintext_and_the_application_leave_room_for_peers() {
    use ConnectionKind::{Application, Peer, Plaintext};
    let mut budget = ConnectionBudget::new(LIMITS);
    for host in 0..100u8 {
        fill(&mut budget, Plaintext, &Client::at([10, 0, 0, host].into()));
    }
    assert_eq!(budget.open(Plaintext), 25);
    fill(&mut budget, Application, &Client::Application);
    let peers = fill(&mut budget, Peer, &peer("a")).0;
    assert_eq!(peers, budget.reserved(Peer));
}

/// An attacker that fills the room of those that are not identified loses its own oldest.
#[test]
fn silence_is_closed_for_who_comes() {
    use ConnectionKind::{Peer, Unidentified};
    let mut budget = ConnectionBudget::new(LIMITS);
    let honest = budget.admit(Unidentified, address("10.0.0.1")).unwrap();
    let bad = address("10.0.0.66");
    let first = budget.admit(Unidentified, bad.clone()).unwrap();
    for _ in 0..8 {
        let more = budget.admit(Unidentified, bad.clone()).unwrap();
        assert_eq!(more.evicted, None);
    }
    let late = budget.admit(Unidentified, address("10.0.0.2")).unwrap();
    assert_eq!(late.evicted, Some(first.ticket));
    let evicted = budget.identify(first.ticket, Peer, peer("x")).unwrap_err();
    assert_eq!(evicted.kind, Unidentified);
    for ticket in [honest.ticket, late.ticket] {
        budget.identify(ticket, Peer, peer("a")).unwrap();
    }
    assert_eq!((budget.open(Peer), budget.open(Unidentified)), (2, 8));
}

#[test]
fn one_network_is_one_client() {
    assert_eq!(address("fd00::1"), address("fd00::ffff:1"));
    assert_ne!(address("fd00::1"), address("fd00:0:0:1::1"));
    assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
    assert_ne!(address("10.0.0.1"), address("10.0.0.2"));
}

#[test]
fn the_smallest_total_still_serves() {
    let one = ConnectionLimits { total: 1, ..LIMITS };
    let mut budget = ConnectionBudget::new(one);
    let ticket = budget.admit(ConnectionKind::Unidentified, address("10.0.0.1"));
    assert!(ticket.is_ok());
}

fn kinds() -> impl Strategy<Value = ConnectionKind> {
    prop::sample::select(ConnectionKind::ALL.to_vec())
}

proptest! {
    /// Whatever comes and goes: no limit is exceeded, what is reserved can be had, and all counts
    /// agree with what is open.
    #[test]
    fn nothing_is_exceeded_or_lost(
        total in 4usize..60,
        steps in prop::collection::vec((0u8..4, kinds(), 0u8..4), 0..300),
    ) {
        let mut budget = ConnectionBudget::new(ConnectionLimits { total, ..LIMITS });
        let mut open: BTreeMap<u64, (ConnectionKind, Client)> = BTreeMap::new();
        for (step, kind, whose) in steps {
            let client = Client::at([10, 0, 0, whose].into());
            match step {
                0 => {
                    if let Some(first) = open.keys().next().copied() {
                        open.remove(&first);
                        budget.release(Ticket(first));
                        budget.release(Ticket(first));
                    }
                }
                1 => {
                    if let Some(first) = open.keys().next().copied()
                        && budget.identify(Ticket(first), kind, client.clone()).is_ok()
                    {
                        open.insert(first, (kind, client));
                    }
                }
                _ => {
                    let reserved = budget.open(kind) < budget.reserved(kind);
                    match budget.admit(kind, client.clone()) {
                        Ok(admission) => {
                            if let Some(Ticket(evicted)) = admission.evicted {
                                let gone = open.remove(&evicted).map(|(kind, _)| kind);
                                prop_assert_eq!(gone, Some(ConnectionKind::Unidentified));
                            }
                            open.insert(admission.ticket.0, (kind, client));
                        }
                        Err(exceeded) => {
                            let own = ["limits.max_connections_per_peer",
                                "limits.max_plaintext_connections_per_client",
                                "limits.max_plaintext_connections"];
                            prop_assert!(!reserved || own.contains(&exceeded.name), "{exceeded}");
                        }
                    }
                }
            }
            prop_assert!(open.len() <= total.max(budget.limits().unidentified));
            for kind in ConnectionKind::ALL {
                let counted = open.values().filter(|(of, _)| *of == kind).count();
                prop_assert_eq!(budget.open(kind), counted);
                prop_assert!(counted <= limit_of(kind, budget.limits()).1);
            }
        }
        for ticket in open.into_keys() {
            budget.release(Ticket(ticket));
        }
        prop_assert!(budget.open.is_empty() && budget.by_client.iter().all(HashMap::is_empty));
    }
}
