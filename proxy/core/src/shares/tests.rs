use super::*;
use proptest::prelude::*;

fn outside(id: u64) -> ClientKey {
    let kind = ClientKind::Outside;
    ClientKey { kind, id }
}

fn peer(id: u64) -> ClientKey {
    let kind = ClientKind::Peer;
    ClientKey { kind, id }
}

/// Has the clients take places in turns until none of them gets another; what each has.
fn fill(shares: &mut Shares<()>, clients: &[ClientKey]) -> Vec<u32> {
    loop {
        let mut any = false;
        for client in clients {
            any |= shares.take(*client);
        }
        if !any {
            return clients.iter().map(|one| shares.held_by(*one)).collect();
        }
    }
}

#[test]
fn what_clients_get_that_want_everything() {
    let two_peers: &[_] = &[peer(1), peer(2)];
    // (places, clients) → what each gets
    for (places, clients, expected) in [
        (4096, &[peer(1)][..], &[3072][..]),
        (4096, &[outside(1)], &[2304]),
        (4096, &[outside(1), outside(2)], &[1317, 1317]),
        (4096, two_peers, &[1756, 1755]),
        (4096, &[peer(1), outside(1)], &[1756, 1755]),
        (4, &[peer(1).tunnels(), peer(1)], &[2, 2]),
        (100, &[peer(1)], &[75]),
        (100, &[outside(1)], &[57]),
        // Few places: nothing is kept where a quarter of them is less than one.
        (1, &[peer(1)], &[1]),
        (1, &[outside(1)], &[1]),
        (2, &[peer(1)], &[2]),
        (3, &[peer(1)], &[3]),
        (3, &[outside(1)], &[3]),
        (4, &[peer(1)], &[3]),
        (4, &[outside(1)], &[3]),
        (8, &[peer(1)], &[6]),
        (0, &[peer(1)], &[0]),
    ] {
        let found = fill(&mut Shares::new(places, 10), clients);
        assert_eq!(found, expected, "{places} places, {clients:?}");
    }
}

#[test]
fn all_outside_together_leave_a_quarter() {
    let mut shares = Shares::new(4096, 10);
    let crowd: Vec<_> = (0..5000).map(outside).collect();
    let held: u32 = fill(&mut shares, &crowd).iter().sum();
    assert_eq!(held, 3072);
    assert_eq!(fill(&mut shares, &[peer(1)]), [768]);
    assert!(shares.take(peer(2)));
}

/// However many peers want everything, another one still gets places.
#[test]
fn a_newcomer_has_room_beside_many() {
    for greedy in [1, 2, 5, 20, 100] {
        let mut shares = Shares::new(4096, 10);
        let all: Vec<_> = (0..greedy).map(peer).collect();
        fill(&mut shares, &all);
        let newcomer = fill(&mut shares, &[peer(1_000_000)]);
        assert!(newcomer[0] >= 10, "{newcomer:?} beside {greedy}");
        assert!(shares.take(outside(1)), "beside {greedy}");
    }
}

#[test]
fn clients_take_turns_and_wait_in_order() {
    let mut shares = Shares::new(4, 100);
    assert_eq!(fill(&mut Shares::new(4, 1), &[peer(1)]), [3]);
    for _ in 0..3 {
        assert!(shares.take(peer(1)));
    }
    assert!(!shares.take(peer(1)));
    for waiter in ["a", "b", "c", "d"] {
        shares.wait(peer(1), waiter).unwrap();
    }
    // Nobody is served before something is given back, and others are not held up.
    assert_eq!(shares.serve(), None);
    assert!(shares.take(peer(2)));
    for waiter in ["x", "y"] {
        shares.wait(peer(2), waiter).unwrap();
    }
    assert_eq!(shares.serve(), None);
    let mut order = Vec::new();
    for _ in 0..3 {
        shares.release(peer(1));
        while let Some((client, waiter)) = shares.serve() {
            order.push((client.id, waiter));
        }
    }
    assert_eq!(order, [(1, "a"), (2, "x"), (1, "b")]);
}

#[test]
fn one_client_cannot_fill_the_queue() {
    let mut shares = Shares::new(1, 8);
    assert!(shares.take(outside(1)));
    let mut waiting = 0;
    let full = loop {
        match shares.wait(outside(1), ()) {
            Ok(_ticket) => waiting += 1,
            Err(full) => break full,
        }
    };
    assert_eq!((waiting, full), (5, WaitingFull { waiting: 5 }));
    assert!(shares.wait(outside(2), ()).is_ok());
    assert!(shares.wait(peer(1), ()).is_ok());
}

#[test]
fn who_leaves_is_not_served() {
    let mut shares = Shares::new(1, 8);
    assert!(shares.take(peer(1)));
    let first = shares.wait(peer(2), "first").unwrap();
    let second = shares.wait(peer(2), "second").unwrap();
    assert!(shares.leave(peer(2), first));
    assert!(!shares.leave(peer(2), first) && !shares.leave(peer(3), second));
    shares.release(peer(1));
    assert_eq!(shares.serve(), Some((peer(2), "second")));
    assert!(!shares.leave(peer(2), second));
    // A second time changes nothing.
    shares.release(peer(2));
    shares.release(peer(2));
    assert!(shares.is_unused());
}

proptest! {
    /// Never more than there are places; nobody waits whose client may have one; all is given back.
    #[test]
    fn shares_are_kept(
        places in 0u32..40,
        steps in proptest::collection::vec((0u8..4, 0u64..6, any::<bool>()), 0..400),
    ) {
        let mut shares = Shares::new(places, 16);
        let (mut held, mut waiting) = (Vec::new(), Vec::new());
        for (step, id, is_outside) in steps {
            let client = match is_outside {
                true => outside(id),
                false => peer(id),
            };
            match step {
                0 | 1 => match shares.take(client) {
                    true => held.push(client),
                    false => waiting.extend(shares.wait(client, ()).map(|ticket| (client, ticket))),
                },
                2 => {
                    if let Some(at) = held.iter().position(|one| *one == client) {
                        shares.release(held.swap_remove(at));
                    }
                }
                _ => {
                    if let Some(at) = waiting.iter().position(|(one, _)| *one == client) {
                        let (client, ticket) = waiting.remove(at);
                        prop_assert!(shares.leave(client, ticket));
                    }
                }
            }
            while let Some((client, ())) = shares.serve() {
                let at = waiting.iter().position(|(one, _)| *one == client);
                prop_assert!(at.is_some());
                waiting.remove(at.unwrap_or_default());
                held.push(client);
            }
            prop_assert!(held.len() <= places as usize);
            prop_assert_eq!(shares.held.total as usize, held.len());
            prop_assert_eq!(shares.waiting.total as usize, waiting.len());
            for (client, _) in &waiting {
                prop_assert!(!shares.held.has_room(*client));
            }
        }
        for client in held {
            shares.release(client);
            while let Some((client, ())) = shares.serve() {
                shares.release(client);
            }
        }
        // With no place at all they wait in vain.
        prop_assert!(shares.is_unused() || places == 0);
    }
}
