//! Tables and simulations of a [`ConnectionSet`].

use std::cell::Cell;
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// A connection whose state the test sets: whether it is closed, whether it is ready, and how often it
/// was told to rest.
#[derive(Debug, Clone)]
struct Wire(Rc<(Cell<bool>, Cell<bool>, Cell<u32>)>);

impl Wire {
    fn new() -> Self {
        Self(Rc::new((Cell::new(false), Cell::new(true), Cell::new(0))))
    }

    fn close(&self) {
        self.0.0.set(true);
    }

    fn rested(&self) -> u32 {
        self.0.2.get()
    }

    fn set_ready(&self, is_ready: bool) {
        self.0.1.set(is_ready);
    }
}

impl Connection for Wire {
    fn is_closed(&self) -> bool {
        self.0.0.get()
    }

    fn is_ready(&self) -> bool {
        self.0.1.get()
    }

    fn rest(&self) {
        self.0.2.set(self.0.2.get() + 1);
    }
}

type Set = ConnectionSet<char, Wire, u32>;

fn terms(connections: u32) -> Terms {
    Terms {
        want: Want::Any,
        generation: 1,
        requests: u32::MAX,
        streams: u32::MAX,
        exclusive: Some(false),
        bounds: Bounds {
            connections,
            dials: 8,
            waiting: 100,
        },
        patience: Duration::from_secs(1),
    }
}

fn at(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * 1_000_000_000)
}

fn shared(generation: u64, streams: u32) -> NewConnection<Wire> {
    NewConnection {
        connection: Wire::new(),
        generation,
        is_exclusive: false,
        streams,
    }
}

fn exclusive() -> NewConnection<Wire> {
    NewConnection {
        is_exclusive: true,
        ..shared(1, 1)
    }
}

fn free() -> Option<()> {
    Some(())
}

/// Everything that is to be done now: who is served, and which destinations are dialled.
fn work(set: &mut Set) -> (Vec<(u32, Grant<Wire>)>, String) {
    let (mut served, mut dialled) = (Vec::new(), String::new());
    while let Some(step) = set.poll(free) {
        match step {
            Step::Serve(waiter, grant) => served.push((waiter, grant)),
            Step::Dial(key, ()) => dialled.push(key),
        }
    }
    (served, dialled)
}

fn names(served: &[(u32, Grant<Wire>)]) -> Vec<u32> {
    served.iter().map(|(waiter, _grant)| *waiter).collect()
}

#[test]
fn who_comes_first_is_served_first() {
    let mut set = Set::default();
    for waiter in 1..=5 {
        set.wait(&'a', terms(1), waiter).unwrap();
    }
    let (served, dialled) = work(&mut set);
    assert_eq!((served.len(), &*dialled), (0, "a"));
    set.on_connected(&'a', shared(1, 2), at(0));
    let (served, dialled) = work(&mut set);
    assert_eq!((&*names(&served), &*dialled), (&[1, 2][..], ""));
    // Room goes to who waits, not to who comes now.
    set.on_released(served[0].1.id, at(0));
    assert!(set.take(&'a', &terms(1)).is_none());
    assert_eq!(names(&work(&mut set).0), [3]);
    assert_eq!((set.waiting(), set.open()), (2, 1));
}

#[test]
fn who_leaves_the_queue_gives_its_place_back() {
    let mut set = Set::default();
    let mut bounded = terms(1);
    bounded.bounds.waiting = 2;
    let first = set.wait(&'a', bounded, 1).unwrap();
    set.wait(&'a', bounded, 2).unwrap();
    assert_eq!(set.wait(&'a', bounded, 3), Err(QueueFull));
    assert_eq!(work(&mut set).1, "a");
    assert!(set.leave(&'a', first));
    assert!(!set.leave(&'a', first));
    set.wait(&'a', bounded, 4).unwrap();
    set.on_connected(&'a', exclusive(), at(0));
    let (served, _) = work(&mut set);
    assert_eq!(names(&served), [2]);
}

#[test]
fn the_stream_limit_of_the_peer_is_learned() {
    let mut set = Set::default();
    for waiter in 0..6 {
        set.wait(&'a', terms(10), waiter).unwrap();
    }
    // Nobody knows yet how many one takes: one is dialled.
    assert_eq!(work(&mut set).1, "a");
    let id = set.on_connected(&'a', shared(1, 100), at(0));
    set.on_streams(id, 2);
    let (served, dialled) = work(&mut set);
    assert_eq!((served.len(), &*dialled), (2, "aa"));
    // A server that takes more later has room at once.
    set.on_streams(id, 4);
    assert_eq!(names(&work(&mut set).0), [2, 3]);
}

#[test]
fn a_place_that_comes_free_goes_to_who_waits_longest_for_any_destination() {
    let mut set = Set::default();
    set.wait(&'b', terms(1), 0).unwrap();
    assert_eq!(work(&mut set).1, "b");
    set.on_connected(&'b', exclusive(), at(0));
    let (held, _) = work(&mut set);
    for (waiter, key) in [(1, 'c'), (2, 'a'), (3, 'c')] {
        set.wait(&key, terms(1), waiter).unwrap();
    }
    assert_eq!(work(&mut set).1, "");
    // Idle, it makes room for another destination.
    set.on_released(held[0].1.id, at(1));
    assert_eq!(work(&mut set).1, "c");
    assert_eq!(set.open(), 0);
    set.on_connected(&'c', exclusive(), at(1));
    let (held, dialled) = work(&mut set);
    assert_eq!((&*names(&held), &*dialled), (&[1][..], ""));
    // The next request of the same destination goes over it although another waits for room.
    set.on_released(held[0].1.id, at(2));
    let (held, dialled) = work(&mut set);
    assert_eq!((&*names(&held), &*dialled), (&[3][..], ""));
    set.on_released(held[0].1.id, at(2));
    assert_eq!(work(&mut set).1, "a");
}

#[test]
fn a_place_within_a_limit_of_others_is_waited_for() {
    let mut set = Set::default();
    set.wait(&'a', terms(3), 1).unwrap();
    assert!(set.poll(|| None::<()>).is_none());
    assert!(matches!(set.poll(free), Some(Step::Dial('a', ()))));
}

#[test]
fn another_generation_serves_only_where_the_limit_leaves_no_other() {
    let mut set = Set::default();
    let newer = |connections| Terms {
        generation: 2,
        ..terms(connections)
    };
    set.wait(&'a', terms(1), 0).unwrap();
    work(&mut set);
    set.on_connected(&'a', shared(1, 10), at(0));
    let (held, _) = work(&mut set);
    assert!(set.take(&'a', &newer(1)).is_none());
    set.wait(&'a', newer(1), 1).unwrap();
    assert_eq!(names(&work(&mut set).0), [1]);
    // With room for another one it is dialled, and the old one finishes what it carries.
    set.wait(&'a', newer(2), 2).unwrap();
    let (served, dialled) = work(&mut set);
    assert_eq!((served.len(), &*dialled), (0, "a"));
    set.on_connected(&'a', shared(2, 10), at(0));
    let (served, _) = work(&mut set);
    assert_eq!((&*names(&served), set.open()), (&[2][..], 2));
    set.on_released(held[0].1.id, at(0));
    assert_eq!(set.open(), 2);
}

#[test]
fn a_connection_that_has_carried_all_it_may_makes_room() {
    let once = Terms {
        requests: 1,
        ..terms(1)
    };
    let mut set = Set::default();
    for waiter in 0..3 {
        set.wait(&'a', once, waiter).unwrap();
    }
    for waiter in 0..3 {
        assert_eq!(work(&mut set).1, "a");
        set.on_connected(&'a', shared(1, 10), at(0));
        let (served, dialled) = work(&mut set);
        assert_eq!((&*names(&served), &*dialled), (&[waiter][..], ""));
        set.on_released(served[0].1.id, at(0));
    }
}

#[test]
fn the_connection_used_last_is_taken_first() {
    let one = Terms {
        exclusive: Some(true),
        ..terms(9)
    };
    let mut set = Set::default();
    for waiter in 0..3 {
        set.wait(&'a', one, waiter).unwrap();
    }
    assert_eq!(work(&mut set).1, "aaa");
    for _ in 0..3 {
        set.on_connected(&'a', exclusive(), at(0));
    }
    let (served, _) = work(&mut set);
    for (waiter, grant) in &served {
        set.on_released(grant.id, at(u64::from(*waiter)));
    }
    let ids: Vec<_> = served.iter().map(|(_, grant)| grant.id).collect();
    // Not one that is at the end of a request.
    served[2].1.connection.set_ready(false);
    let taken = set.take(&'a', &terms(9)).unwrap();
    assert_eq!((taken.id, taken.is_reused), (ids[1], true));
    assert_eq!(taken.last_used, at(1));
    // Two carry nothing, and one of them is too old.
    set.sweep(at(11), |_, _| Duration::from_secs(10), 9);
    assert_eq!((set.open(), set.busy()), (2, 1));
    // The other gives back what it needs only for requests.
    let rested: Vec<u32> = served
        .iter()
        .map(|(_, grant)| grant.connection.rested())
        .collect();
    assert_eq!(rested, [0, 0, 1]);
    set.sweep(at(11), |_, _| Duration::from_secs(10), 0);
    assert_eq!((set.open(), set.busy()), (1, 1));
    // Closed meanwhile, it is not taken again.
    taken.connection.close();
    set.on_released(taken.id, at(12));
    assert!(set.take(&'a', &terms(9)).is_none());
    assert_eq!(set.open(), 0);
}

#[test]
fn a_failed_dial_is_told_to_those_it_would_have_served() {
    let one = Terms {
        exclusive: Some(true),
        ..terms(2)
    };
    let mut set = Set::default();
    for waiter in 0..3 {
        set.wait(&'a', one, waiter).unwrap();
    }
    assert_eq!(work(&mut set).1, "aa");
    assert_eq!(set.on_dial_failed(&'a'), [0]);
    assert_eq!(work(&mut set).1, "a");
    set.on_dial_dropped(&'a');
    assert_eq!(work(&mut set).1, "a");
    assert_eq!((set.waiting(), set.open()), (2, 0));
}

fn wants(want: Want, connections: u32) -> Terms {
    Terms {
        want,
        ..terms(connections)
    }
}

#[test]
fn a_connection_of_its_own_is_nobody_elses_and_counts_until_its_request_has_left() {
    let mut set = Set::default();
    let own = wants(Want::Own(at(5)), 2);
    set.wait(&'a', terms(2), 0).unwrap();
    work(&mut set);
    set.on_connected(&'a', shared(1, 2), at(0));
    let (first, _) = work(&mut set);
    // Room on one that stands is not what it wants, and it holds up nobody who can use that.
    set.wait(&'a', own, 1).unwrap();
    let (served, dialled) = work(&mut set);
    assert_eq!((served.len(), &*dialled), (0, "a"));
    let second = set.take(&'a', &terms(2)).unwrap();
    assert_eq!(second.id, first[0].1.id);
    set.wait(&'a', terms(2), 2).unwrap();
    let id = set.on_connected(&'a', shared(1, 100), at(5));
    let (served, _) = work(&mut set);
    assert_eq!(names(&served), [1]);
    assert_eq!((served[0].1.id, served[0].1.is_reused), (id, false));
    assert!(set.take(&'a', &terms(2)).is_none());
    // At the limit it waits like all others, until its time is over.
    set.wait(&'a', own, 3).unwrap();
    assert_eq!((set.open(), work(&mut set).1), (2, String::new()));
    set.sweep(at(6), |_, _| Duration::from_secs(100), 9);
    assert_eq!(set.open(), 2);
    set.on_released(id, at(7));
    let (served, dialled) = work(&mut set);
    // Who waits for any connection came first; the dial for it is also the other's.
    assert_eq!((served.len(), &*dialled, set.open()), (0, "a", 1));
}

/// Requests that keep their connections leave others some, also in the queue.
#[test]
fn requests_with_connections_of_their_own_do_not_take_all() {
    let shares = [(0, 0), (1, 1), (2, 1), (3, 2), (4, 3), (10, 8)];
    for (most, expected) in shares.into_iter().chain([(u32::MAX, 3 << 30)]) {
        assert_eq!(own_share(most), expected, "{most}");
    }
    let mut set = Set::default();
    let own = |now| Terms {
        exclusive: Some(true),
        ..wants(Want::Own(at(now)), 4)
    };
    for waiter in 0..6 {
        set.wait(&'a', own(0), waiter).unwrap();
    }
    assert_eq!(work(&mut set).1, "aaa");
    for _ in 0..3 {
        set.on_connected(&'a', exclusive(), at(0));
    }
    let (held, dialled) = work(&mut set);
    assert_eq!((names(&held), &*dialled), (vec![0, 1, 2], ""));
    assert_eq!((set.open(), set.own()), (3, 3));
    // An ordinary request does not wait for those.
    let any = Terms {
        exclusive: Some(true),
        ..terms(4)
    };
    set.wait(&'a', any, 6).unwrap();
    assert_eq!(work(&mut set).1, "a");
    set.on_connected(&'a', exclusive(), at(1));
    let (served, _) = work(&mut set);
    assert_eq!(names(&served), [6]);
    set.on_released(served[0].1.id, at(1));
    assert!(work(&mut set).0.is_empty());
    // The next one has a connection when one of its kind has left.
    set.on_released(held[0].1.id, at(2));
    assert_eq!((work(&mut set).1.as_str(), set.own()), ("a", 2));
    assert_eq!(set.on_dial_failed(&'a'), [3]);
    let mut short = own(3);
    short.bounds.waiting = 4;
    assert_eq!(set.waiting(), 2);
    set.wait(&'a', short, 7).unwrap();
    assert_eq!(set.wait(&'a', short, 8), Err(QueueFull));
    short.want = Want::Any;
    assert!(set.wait(&'a', short, 8).is_ok());
}

/// Where each connection that comes free has somebody waiting for it, one that has to be made is made
/// in its turn.
#[test]
fn who_needs_a_new_connection_is_not_overtaken_for_ever() {
    let one = |want| Terms {
        exclusive: Some(true),
        ..wants(want, 2)
    };
    for want in [Want::Own(at(1)), Want::MadeSince(at(1))] {
        let mut set = Set::default();
        for waiter in 0..3 {
            set.wait(&'a', one(Want::Any), waiter).unwrap();
        }
        assert_eq!(work(&mut set).1, "aa");
        for _ in 0..2 {
            set.on_connected(&'a', exclusive(), at(0));
        }
        let (held, _) = work(&mut set);
        set.wait(&'a', one(want), 3).unwrap();
        for waiter in 4..6 {
            set.wait(&'a', one(Want::Any), waiter).unwrap();
        }
        set.on_released(held[0].1.id, at(2));
        let (served, dialled) = work(&mut set);
        assert_eq!((names(&served), &*dialled), (vec![2], ""), "{want:?}");
        set.on_released(served[0].1.id, at(3));
        let (served, dialled) = work(&mut set);
        assert_eq!((names(&served), &*dialled), (vec![], "a"), "{want:?}");
        // While it is made, others go on.
        set.on_released(held[1].1.id, at(3));
        let (served, dialled) = work(&mut set);
        assert_eq!((names(&served), &*dialled), (vec![4], ""), "{want:?}");
        set.on_connected(&'a', exclusive(), at(4));
        assert_eq!(names(&work(&mut set).0), [3], "{want:?}");
    }
}

#[test]
fn a_connection_of_its_own_takes_the_place_of_an_idle_one() {
    let mut set = Set::default();
    set.wait(&'a', terms(1), 0).unwrap();
    work(&mut set);
    let id = set.on_connected(&'a', shared(1, 2), at(0));
    work(&mut set);
    set.wait(&'a', wants(Want::Own(at(1)), 1), 1).unwrap();
    assert_eq!(work(&mut set).1, "");
    set.on_released(id, at(2));
    assert_eq!((work(&mut set).1.as_str(), set.open()), ("a", 0));
}

#[test]
fn those_that_want_new_connections_keep_to_the_bound_of_dials_and_of_waiting() {
    for want in [
        Want::Own(at(1)),
        Want::MadeSince(at(1)),
        Want::UsedSince(at(1)),
    ] {
        let mut set = Set::default();
        let mut new = wants(want, 1000);
        new.exclusive = Some(true);
        if matches!(want, Want::Own(_)) {
            // Of which 100 are theirs.
            new.bounds.waiting = 133;
        }
        for waiter in 0..100 {
            set.wait(&'a', new, waiter).unwrap();
        }
        assert_eq!(set.wait(&'a', new, 100), Err(QueueFull));
        assert_eq!(work(&mut set).1.len(), 8, "{want:?}");
        set.on_connected(&'a', exclusive(), at(1));
        let (served, dialled) = work(&mut set);
        assert_eq!((names(&served), &*dialled), (vec![0], "a"), "{want:?}");
        assert_eq!(set.on_dial_failed(&'a'), [1], "{want:?}");
        assert_eq!(set.waiting(), 98);
    }
}

#[test]
fn each_connection_of_its_own_is_dialled_and_the_others_share_one() {
    let mut set = Set::default();
    for waiter in 0..6 {
        let want = match waiter % 2 {
            0 => Want::Any,
            _ => Want::Own(at(1)),
        };
        set.wait(&'a', wants(want, 100), waiter).unwrap();
    }
    assert_eq!(work(&mut set).1, "aaaa");
    for _ in 0..4 {
        set.on_connected(&'a', shared(1, 100), at(1));
    }
    let (served, dialled) = work(&mut set);
    assert_eq!((served.len(), &*dialled), (6, ""));
    let shared = served[0].1.id;
    for (waiter, grant) in &served {
        assert_eq!(grant.id == shared, waiter % 2 == 0, "{waiter}");
    }
}

#[test]
fn a_connection_that_was_not_used_for_long_is_replaced_also_if_it_never_was() {
    let mut set = Set::default();
    let left = set.wait(&'a', terms(9), 0).unwrap();
    work(&mut set);
    set.leave(&'a', left);
    set.on_connected(&'a', exclusive(), at(0));
    let since = |seconds| wants(Want::UsedSince(at(seconds)), 9);
    assert!(set.take(&'a', &since(1)).is_none());
    assert_eq!(set.open(), 0);
    set.wait(&'a', since(1), 1).unwrap();
    assert_eq!(work(&mut set).1, "a");
    set.on_connected(&'a', exclusive(), at(2));
    let (served, _) = work(&mut set);
    set.on_released(served[0].1.id, at(3));
    assert!(set.take(&'a', &since(3)).is_some());
}

#[test]
fn what_is_retired_or_closed_finishes_what_it_carries() {
    let mut set = Set::default();
    set.wait(&'a', terms(9), 0).unwrap();
    work(&mut set);
    let id = set.on_connected(&'a', shared(1, 10), at(0));
    work(&mut set);
    let second = set.take(&'a', &terms(9)).unwrap();
    assert_eq!(second.id, id);
    set.retire(id);
    assert!(set.take(&'a', &terms(9)).is_none());
    set.on_released(id, at(0));
    assert_eq!(set.open(), 1);
    set.on_released(id, at(0));
    assert_eq!(set.open(), 0);
    // Its number is another's now.
    set.wait(&'a', terms(9), 1).unwrap();
    work(&mut set);
    let other = set.on_connected(&'a', exclusive(), at(0));
    set.on_released(id, at(0));
    set.on_streams(id, 7);
    set.retire(id);
    assert_eq!(names(&work(&mut set).0), [1]);
    set.close();
    assert!(set.is_busy());
    set.on_released(other, at(0));
    assert!(set.is_unused());
}

/// What a simulated request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Any,
    Used,
    New,
    Own,
}

impl Kind {
    fn want(self, now: Instant) -> Want {
        match self {
            Self::Any => Want::Any,
            Self::Used => Want::UsedSince(now),
            Self::New => Want::MadeSince(now),
            Self::Own => Want::Own(now),
        }
    }
}

/// What a simulated mesh does next.
#[derive(Debug, Clone, Copy)]
enum Event {
    Ask(char, u64, Kind),
    Leave(usize),
    Connect(usize, u32),
    Fail(usize),
    Release(usize),
    Close(usize),
    Streams(usize, u32),
    Sweep,
}

fn event() -> impl Strategy<Value = Event> {
    let key = prop_oneof![Just('a'), Just('b'), Just('c')];
    let number = 0usize..16;
    let kind = prop_oneof![
        4 => Just(Kind::Any),
        1 => Just(Kind::Used),
        1 => Just(Kind::New),
        1 => Just(Kind::Own),
    ];
    prop_oneof![
        4 => (key, 1u64..3, kind).prop_map(|(key, generation, kind)| Event::Ask(key, generation, kind)),
        1 => number.clone().prop_map(Event::Leave),
        3 => (number.clone(), 1u32..4).prop_map(|(at, streams)| Event::Connect(at, streams)),
        1 => number.clone().prop_map(Event::Fail),
        3 => number.clone().prop_map(Event::Release),
        1 => number.clone().prop_map(Event::Close),
        1 => (number, 0u32..4).prop_map(|(at, streams)| Event::Streams(at, streams)),
        1 => Just(Event::Sweep),
    ]
}

/// A set with everything that is under way around it.
#[derive(Default)]
struct Simulation {
    set: Set,
    /// Requests that wait: destination, ticket, number, and what they want.
    waiting: Vec<(char, u64, u32, Kind)>,
    dials: Vec<char>,
    held: Vec<Grant<Wire>>,
    /// Connections that are one request's own.
    own: Vec<ConnectionId>,
    next: u32,
    now: u64,
}

const MOST: u32 = 4;

impl Simulation {
    fn terms(generation: u64) -> Terms {
        let mut terms = Terms {
            generation,
            requests: 5,
            streams: 3,
            ..terms(MOST)
        };
        terms.bounds.waiting = 6;
        terms
    }

    fn handle(&mut self, event: Event) {
        self.now += 1;
        let now = at(self.now);
        match event {
            Event::Ask(key, generation, kind) => {
                let mut terms = Self::terms(generation);
                terms.want = kind.want(now);
                if let Some(grant) = self.set.take(&key, &terms) {
                    let mut waiting = self.waiting.iter();
                    let passed =
                        waiting.any(|one| one.0 == key && matches!(one.3, Kind::Any | Kind::Used));
                    assert!(!passed);
                    self.hold(grant, kind);
                } else if let Ok(ticket) = self.set.wait(&key, terms, self.next) {
                    self.waiting.push((key, ticket, self.next, kind));
                    self.next += 1;
                } else {
                    let own = self.waiting.iter().filter(|one| one.3 == Kind::Own);
                    let is_full = kind == Kind::Own && own.count() == 5;
                    assert!(is_full || self.waiting.len() == 6);
                }
            }
            Event::Leave(at) if at < self.waiting.len() => {
                let (key, ticket, ..) = self.waiting.remove(at);
                assert!(self.set.leave(&key, ticket));
            }
            Event::Connect(at, streams) if at < self.dials.len() => {
                let key = self.dials.swap_remove(at);
                let new = shared(2, streams);
                self.set.on_connected(&key, new, now);
            }
            Event::Fail(at) if at < self.dials.len() => {
                let key = self.dials.swap_remove(at);
                for told in self.set.on_dial_failed(&key) {
                    self.waiting.retain(|one| one.2 != told);
                }
            }
            Event::Release(at) if at < self.held.len() => {
                let grant = self.held.swap_remove(at);
                self.set.on_released(grant.id, now);
            }
            Event::Close(at) if at < self.held.len() => self.held[at].connection.close(),
            Event::Streams(at, streams) if at < self.held.len() => {
                self.set.on_streams(self.held[at].id, streams);
            }
            Event::Sweep => {
                self.set.sweep(now, |_, _| Duration::from_secs(3), 1);
            }
            Event::Leave(_)
            | Event::Connect(..)
            | Event::Fail(_)
            | Event::Release(_)
            | Event::Close(_)
            | Event::Streams(..) => {}
        }
    }

    fn hold(&mut self, grant: Grant<Wire>, kind: Kind) {
        assert!(!self.own.contains(&grant.id), "on another's own connection");
        assert!(matches!(kind, Kind::Any | Kind::Used) || !grant.is_reused);
        if kind == Kind::Own {
            self.own.push(grant.id);
        }
        self.held.push(grant);
    }

    fn settle(&mut self) {
        let (served, dialled) = work(&mut self.set);
        for (number, grant) in served {
            let first = self.waiting.iter().position(|one| one.2 == number);
            let (key, _, _, kind) = self.waiting.remove(first.expect("it waits"));
            assert!(
                !self
                    .waiting
                    .iter()
                    .any(|one| one.0 == key && one.2 < number && one.3 == kind),
                "{number} before {:?}",
                self.waiting
            );
            assert!(!grant.connection.is_closed());
            self.hold(grant, kind);
        }
        self.dials.extend(dialled.chars());
        let standing = self.set.open() + u32::try_from(self.dials.len()).unwrap();
        assert!(standing <= MOST, "{standing} connections and dials");
        let own = self.held.iter().filter(|held| self.own.contains(&held.id));
        let own = u32::try_from(own.count()).unwrap();
        assert!(own <= own_share(MOST), "{own} connections of their own");
        assert_eq!(self.set.own(), own);
        assert_eq!(self.set.waiting() as usize, self.waiting.len());
        let carrying: BTreeSet<String> = self
            .held
            .iter()
            .map(|held| format!("{:?}", held.id))
            .collect();
        assert_eq!(self.set.busy() as usize, carrying.len());
        assert!(self.set.busy() <= self.set.open());
    }
}

proptest! {
    /// Whatever happens in whatever order: never more connections than may stand, requests of one
    /// destination in their order, and nobody waits while nothing is under way.
    #[test]
    fn within_its_limits_and_in_order(events in proptest::collection::vec(event(), 0..150)) {
        let mut simulation = Simulation::default();
        for event in events {
            simulation.handle(event);
            simulation.settle();
            let stuck = simulation.dials.is_empty() && simulation.held.is_empty();
            prop_assert!(!stuck || simulation.waiting.is_empty());
        }
        for grant in std::mem::take(&mut simulation.held) {
            simulation.set.on_released(grant.id, at(simulation.now));
        }
        prop_assert!(!simulation.set.is_busy() || simulation.set.waiting() > 0);
    }
}
