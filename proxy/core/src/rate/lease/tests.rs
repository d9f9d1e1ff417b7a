use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

fn at(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * 1_000_000_000)
}

fn name(index: usize) -> Arc<str> {
    format!("i-{index}").into()
}

fn demand(base: u64, keys: &[(u64, u64)]) -> Demand {
    Demand {
        base,
        keys: keys.iter().copied().collect(),
    }
}

/// Reports and polls until nothing is to be sent; every lease is acknowledged at once.
fn settle(books: &mut Allocator, held: &mut [(Shares, Demand)], now: Instant) {
    for (index, (shares, demand)) in held.iter().enumerate() {
        books.handle_report((&name(index), 1), 0, shares.clone(), Some(demand.clone()));
    }
    for _round in 0..20 {
        let leases = books.poll(now);
        if leases.is_empty() {
            return;
        }
        for lease in leases {
            let index = (0..held.len())
                .find(|i| name(*i) == lease.instance)
                .unwrap();
            held[index].0 = lease.shares.clone();
            books.handle_report((&lease.instance, 1), lease.version, lease.shares, None);
        }
    }
    panic!("never at rest");
}

#[test]
fn shares_follow_demand_with_a_minimum() {
    let mut books = Allocator::new(false, at(0));
    let mut held = vec![
        (Shares::even(2), demand(90, &[])),
        (Shares::even(2), demand(0, &[])),
    ];
    settle(&mut books, &mut held, at(1));
    assert_eq!((held[0].0.base, held[1].0.base), (950_000, 50_000));
    held[0].1 = demand(0, &[]);
    held[1].1 = demand(900, &[]);
    for _second in 0..8 {
        settle(&mut books, &mut held, at(1));
    }
    assert!(held[1].0.base > 900_000, "{held:?}");
    let sum = held[0].0.base + held[1].0.base;
    assert!((WHOLE * 95 / 100..=WHOLE).contains(&sum), "{held:?}");
}

#[test]
fn a_share_moves_only_when_it_was_given_up() {
    let mut books = Allocator::new(false, at(0));
    let (a, b) = (name(0), name(1));
    let half = || Shares::even(2);
    books.handle_report((&a, 1), 0, half(), Some(demand(90, &[])));
    books.handle_report((&b, 1), 0, half(), Some(demand(0, &[])));
    let leases = books.poll(at(1));
    assert_eq!(leases.len(), 1, "only the loser is told: {leases:?}");
    assert_eq!(
        (&*leases[0].instance, leases[0].shares.base),
        ("i-1", 50_000)
    );
    assert!(books.poll(at(20)).is_empty(), "not acknowledged");
    // What it said before it heard of it acknowledges nothing.
    books.handle_report((&b, 1), 0, half(), Some(demand(0, &[])));
    assert!(books.poll(at(20)).is_empty());
    // Out of touch it may go on with what it had, for a while.
    books.handle_disconnect(&b, 1, at(20));
    assert!(books.poll(at(49)).is_empty());
    let leases = books.poll(at(50));
    assert_eq!(leases[0].shares, Shares::WHOLE);
    // It comes back with what it had: that is too much, and the other gives way at once.
    books.handle_report(
        (&a, 1),
        leases[0].version,
        Shares::WHOLE,
        Some(demand(90, &[])),
    );
    books.handle_report((&b, 2), 0, half(), Some(demand(0, &[])));
    books.handle_disconnect(&b, 1, at(60));
    let leases = books.poll(at(60));
    assert_eq!(leases.len(), 2, "{leases:?}");
    assert!(leases.iter().map(|lease| lease.shares.base).sum::<u32>() <= WHOLE);
}

#[test]
fn a_restarted_control_plane_learns_first() {
    let mut books = Allocator::new(false, at(10));
    books.handle_report(
        (&name(0), 1),
        0,
        Shares::base(100_000),
        Some(demand(90, &[])),
    );
    assert!(
        books.poll(at(9)).is_empty(),
        "somebody else may hold the rest"
    );
    books.handle_report(
        (&name(1), 2),
        0,
        Shares::base(900_000),
        Some(demand(1, &[])),
    );
    assert!(books.poll(at(9)).is_empty());
    let leases = books.poll(at(10));
    assert_eq!(leases.len(), 1);
    assert_eq!(&*leases[0].instance, "i-1");
}

#[test]
fn hot_keys_have_shares_of_their_own() {
    let mut books = Allocator::new(true, at(0));
    let mut held = vec![
        (Shares::even(2), demand(100, &[(7, 60)])),
        (Shares::even(2), demand(10, &[])),
    ];
    settle(&mut books, &mut held, at(1));
    assert_eq!((held[0].0.base, held[1].0.base), (500_000, 500_000));
    assert_eq!((held[0].0.of(7), held[1].0.of(7)), (950_000, 50_000));
    // It cools down: it goes by the base again, and takes no room.
    held[0].1 = demand(100, &[]);
    for _second in 0..20 {
        settle(&mut books, &mut held, at(1));
    }
    assert!(held.iter().all(|(shares, _)| shares.keys.is_empty()));
    // Far too many: so many as there is room for.
    let many: Vec<(u64, u64)> = (0..1000).map(|key| (key, 100 + key)).collect();
    held[0].1 = demand(1_000_000, &many);
    settle(&mut books, &mut held, at(1));
    assert!(held[0].0.keys.len() <= HOT_KEYS_MAX);
}

#[test]
fn invented_keys_cost_little() {
    let mut books = Allocator::new(true, at(0));
    let invented = |from: u64, share: u32| Shares {
        base: WHOLE / 2,
        keys: (from..from + 1024).map(|key| (key, share)).collect(),
    };
    // They say so again and again, and never acknowledge anything.
    for round in 0..20 {
        for sidecar in 0..4 {
            let from = 10_000 * (round * 4 + sidecar as u64);
            let asked: Vec<(u64, u64)> = (from..from + 1024).map(|key| (key, 9)).collect();
            let (holds, demand) = (invented(from, 1), demand(9, &asked));
            books.handle_report((&name(sidecar), 1), 0, holds, Some(demand));
        }
        books.poll(at(round));
        assert!(books.named.len() <= NAMED_KEYS_MAX);
        let most = books.holders.values().map(|h| h.demand.keys.len()).max();
        assert!(most <= Some(HOT_KEYS_MAX), "{most:?}");
    }
    // Keys that are in fact wanted have shares of their own nevertheless.
    let mut shares = Shares::base(0);
    for round in 20..60 {
        let wants = demand(1000, &[(7, 100_000)]);
        books.handle_report((&name(9), 1), books.version, shares.clone(), Some(wants));
        let leases = books.poll(at(round));
        let own = leases.iter().find(|lease| *lease.instance == *name(9));
        shares = own.map_or(shares, |lease| lease.shares.clone());
    }
    assert!(books.named.contains(&7), "{:?}", books.named);
    // Of a limit without keys none count.
    books.set_keyed(false);
    let wants = demand(9, &[(7, 9)]);
    books.handle_report((&name(9), 1), u64::MAX, invented(0, 1), Some(wants));
    books.poll(at(60));
    assert!(books.named.is_empty());
    assert!(books.holders.values().all(|h| h.demand.keys.is_empty()));
}

#[test]
fn what_is_held_of_too_many_keys_is_not_forgotten() {
    let mut books = Allocator::new(true, at(10));
    let keys = |share: u32| (0..100).map(|key| (key, share)).collect();
    let mut holds = Shares {
        base: WHOLE / 2,
        keys: keys(WHOLE / 4 * 3),
    };
    let (a, b) = (name(0), name(1));
    books.handle_report((&a, 1), 0, holds.clone(), None);
    books.handle_report((&b, 1), 0, Shares::even(2), None);
    let most = books.holders.values().map(|h| h.held(Some(99))).max();
    assert_eq!(most, Some(WHOLE / 4 * 3));
    // It is sent a lease without those at once, and then everything is even.
    for round in 10..20 {
        for lease in books.poll(at(round)) {
            if lease.instance == a {
                holds = lease.shares.clone();
            }
            books.handle_report((&lease.instance, 1), lease.version, lease.shares, None);
        }
    }
    assert_eq!(holds, Shares::even(2));
}

#[test]
fn versions_go_on() {
    let mut books = Allocator::new(false, at(0)).after(57);
    books.handle_report((&name(0), 1), 57, Shares::base(0), None);
    assert_eq!(books.poll(at(1))[0].version, 58);
    books.handle_report((&name(0), 1), 57, Shares::base(0), None);
    assert!(books.poll(at(2)).is_empty(), "it is not acknowledged");
    assert_eq!(books.version(), 58);
}

/// A sidecar in the simulation.
#[derive(Debug)]
struct Sidecar {
    name: Arc<str>,
    shares: Shares,
    version: u64,
    /// Its stream, and what is on its way on it in both directions.
    stream: Option<u64>,
    up: VecDeque<(u64, Shares, Option<Demand>)>,
    down: VecDeque<Lease>,
}

#[derive(Debug)]
struct World {
    books: Allocator,
    sidecars: Vec<Sidecar>,
    now: u64,
    streams: u64,
    joined: usize,
    keyed: bool,
}

const KEYS: [u64; 3] = [1, 2, 3];

fn columns() -> impl Iterator<Item = Column> {
    [None].into_iter().chain(KEYS.map(Some))
}

impl World {
    fn new(keyed: bool) -> Self {
        Self {
            books: Allocator::new(keyed, at(10)),
            sidecars: Vec::new(),
            now: 0,
            streams: 0,
            joined: 0,
            keyed,
        }
    }

    /// A new one goes by an even share among those that there are.
    fn join(&mut self) {
        let shares = Shares::even(self.sidecars.len() as u32 + 1);
        self.sidecars.push(Sidecar {
            name: name(self.joined),
            shares,
            version: 0,
            stream: None,
            up: VecDeque::new(),
            down: VecDeque::new(),
        });
        self.joined += 1;
        self.connect(self.sidecars.len() - 1);
    }

    fn connect(&mut self, index: usize) {
        self.streams += 1;
        let sidecar = &mut self.sidecars[index];
        if sidecar.stream.is_some() {
            return;
        }
        sidecar.stream = Some(self.streams);
        sidecar.version = 0;
        self.report(index, None);
    }

    /// The stream breaks; what is on its way is lost.
    fn cut(&mut self, index: usize) {
        let sidecar = &mut self.sidecars[index];
        sidecar.up.clear();
        sidecar.down.clear();
        if let Some(stream) = sidecar.stream.take() {
            let now = at(self.now);
            self.books.handle_disconnect(&sidecar.name, stream, now);
        }
    }

    fn leave(&mut self, index: usize) {
        self.cut(index);
        self.sidecars.remove(index);
    }

    fn restart(&mut self) {
        for index in 0..self.sidecars.len() {
            self.cut(index);
        }
        self.books = Allocator::new(self.keyed, at(self.now + 10));
    }

    fn report(&mut self, index: usize, demand: Option<Demand>) {
        let sidecar = &mut self.sidecars[index];
        if sidecar.stream.is_some() {
            let report = (sidecar.version, sidecar.shares.clone(), demand);
            sidecar.up.push_back(report);
        }
    }

    /// Moves one message in each direction.
    fn deliver(&mut self, index: usize) {
        let sidecar = &mut self.sidecars[index];
        let Some(stream) = sidecar.stream else { return };
        if let Some((version, holds, demand)) = sidecar.up.pop_front() {
            let from = (&sidecar.name, stream);
            self.books.handle_report(from, version, holds, demand);
        }
        if let Some(lease) = sidecar.down.pop_front() {
            sidecar.shares = lease.shares;
            sidecar.version = lease.version;
            self.report(index, None);
        }
    }

    fn poll(&mut self) {
        let before: Vec<u64> = columns().map(|column| self.held(column)).collect();
        for lease in self.books.poll(at(self.now)) {
            let mut sidecars = self.sidecars.iter_mut();
            let to = sidecars.find(|s| s.stream == Some(lease.stream)).unwrap();
            to.down.push_back(lease);
        }
        for (column, before) in columns().zip(before) {
            let most = before.max(u64::from(WHOLE));
            assert!(self.held(column) <= most, "{column:?} was raised: {self:?}");
        }
    }

    fn held(&self, column: Column) -> u64 {
        let holders = self.books.holders.values();
        holders.map(|h| u64::from(h.held(column))).sum()
    }

    /// What a sidecar uses is what the books have, or they do not have it at all: it was cut off
    /// too long ago, or the control plane has been restarted since, or has not heard of it yet.
    fn check(&self) {
        for sidecar in &self.sidecars {
            let holder = self.books.holders.get(&sidecar.name);
            let Some(holder) = holder.filter(|h| Some(h.stream) == sidecar.stream) else {
                continue;
            };
            for column in columns() {
                let uses = column.of(&sidecar.shares);
                assert!(uses <= holder.held(column), "{column:?}: {self:?}");
            }
        }
        for column in columns() {
            let uses = |sidecar: &&Sidecar| u64::from(column.of(&sidecar.shares));
            let all: u64 = self.sidecars.iter().map(|s| uses(&s)).sum();
            let unknown = self.sidecars.iter().filter(|sidecar| {
                let holder = self.books.holders.get(&sidecar.name);
                // One that is out of touch may have been sent less than it still uses; not more.
                holder.is_none_or(|h| u64::from(h.held(column)) < uses(sidecar))
            });
            let unknown: u64 = unknown.map(|s| uses(&s)).sum();
            assert!(all <= self.held(column) + unknown, "{column:?}: {self:?}");
        }
    }

    /// Everybody is in touch for a while.
    fn heal(&mut self, demand: &Demand) {
        for _round in 0..60 {
            self.now += 1;
            for index in 0..self.sidecars.len() {
                self.connect(index);
                self.report(index, Some(demand.clone()));
                for _message in 0..4 {
                    self.deliver(index);
                }
            }
            self.poll();
            self.check();
        }
    }
}

#[derive(Debug, Clone)]
enum Event {
    Join,
    Leave(prop::sample::Index),
    Cut(prop::sample::Index),
    Connect(prop::sample::Index),
    Report(prop::sample::Index, u64, usize),
    Deliver(prop::sample::Index),
    Poll,
    Pass(u64),
    Restart,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let index = any::<prop::sample::Index>;
    let event = prop_oneof![
        3 => Just(Event::Join),
        1 => index().prop_map(Event::Leave),
        1 => index().prop_map(Event::Cut),
        3 => index().prop_map(Event::Connect),
        8 => (index(), 0u64..1000, 0usize..4).prop_map(|(i, d, k)| Event::Report(i, d, k)),
        16 => index().prop_map(Event::Deliver),
        16 => Just(Event::Poll),
        8 => (0u64..8).prop_map(Event::Pass),
        1 => Just(Event::Restart),
    ];
    proptest::collection::vec(event, 0..300)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Through joins, leaves, partitions, lost messages and restarts of the control plane: nobody
    /// who is in the books uses more than they say, they are never raised above the whole, and once
    /// everybody is in touch again the shares are the whole, all of it, with something for each.
    #[test]
    fn whatever_happens(keyed: bool, events in events()) {
        let mut world = World::new(keyed);
        world.join();
        for event in events {
            let count = world.sidecars.len();
            match event {
                Event::Join if count < 6 => world.join(),
                Event::Leave(i) if count > 1 => world.leave(i.index(count)),
                Event::Join | Event::Leave(_) => {}
                Event::Cut(i) => world.cut(i.index(count)),
                Event::Connect(i) => world.connect(i.index(count)),
                Event::Report(i, asked, keys) => {
                    let keys = KEYS[..keys].iter().map(|key| (*key, asked / 2));
                    let demand = Demand { base: asked, keys: keys.collect() };
                    world.report(i.index(count), Some(demand));
                }
                Event::Deliver(i) => world.deliver(i.index(count)),
                Event::Poll => world.poll(),
                Event::Pass(seconds) => world.now += seconds,
                Event::Restart => world.restart(),
            }
            world.check();
        }
        world.heal(&demand(10, &[(1, 5)]));
        for column in columns() {
            let shares: Vec<u32> =
                world.sidecars.iter().map(|s| column.of(&s.shares)).collect();
            let sum: u64 = shares.iter().map(|share| u64::from(*share)).sum();
            prop_assert!(sum <= u64::from(WHOLE), "{column:?}: {shares:?}");
            prop_assert!(sum >= u64::from(WHOLE) * 85 / 100, "{column:?}: {shares:?}");
            let least = WHOLE / shares.len() as u32 / 20;
            prop_assert!(shares.iter().all(|share| *share >= least), "{column:?}: {shares:?}");
        }
    }

    /// The bound of the guide. One partition: some are cut off for good and go on, and know so after
    /// up to 15 s. All together use at most the limit, and once others have got what those held, an
    /// even share more for each of them. Where all are cut off, they use no more than the limit.
    #[test]
    fn leases_end_in_a_partition(
        count in 2usize..6,
        away in proptest::collection::vec(any::<bool>(), 6),
        everybody: bool,
        noticed in proptest::collection::vec(0u64..=15, 6),
        wants in proptest::collection::vec(0u64..1000, 6),
    ) {
        let mut world = World::new(false);
        for _sidecar in 0..count {
            world.join();
        }
        // Shares are as uneven as the demand.
        for _round in 0..10 {
            world.now += 1;
            for (index, wants) in wants.iter().enumerate().take(count) {
                world.report(index, Some(demand(*wants, &[])));
                for _message in 0..4 {
                    world.deliver(index);
                }
            }
            world.poll();
        }
        let uses = |world: &World| -> u64 {
            world.sidecars.iter().map(|s| u64::from(s.shares.base)).sum()
        };
        prop_assert!(uses(&world) <= u64::from(WHOLE));
        let is_away = |index: usize| everybody || away[index];
        let cut: Vec<usize> = (0..count).filter(|index| is_away(*index)).collect();
        for index in &cut {
            world.cut(*index);
        }
        let leases: Vec<Shares> = world.sidecars.iter().map(|s| s.shares.clone()).collect();
        let instances = count as u32;
        for second in 1..=120u64 {
            world.now += 1;
            for index in (0..count).filter(|index| !is_away(*index)) {
                world.report(index, Some(demand(wants[index] / 2, &[])));
                world.deliver(index);
            }
            for index in &cut {
                let known = Duration::from_secs(second.saturating_sub(noticed[*index]));
                let lapse = Lapse::after(known);
                world.sidecars[*index].shares = leases[*index].lapsed(lapse, instances);
            }
            world.poll();
            let moved = second >= LOST_AFTER.as_secs() && cut.len() < count;
            let more = if moved { u64::from(WHOLE) * cut.len() as u64 / count as u64 } else { 0 };
            prop_assert!(uses(&world) <= u64::from(WHOLE) + more, "{second} s: {}", uses(&world));
        }
        for index in &cut {
            prop_assert_eq!(&world.sidecars[*index].shares, &Shares::even(instances));
        }
    }
}
