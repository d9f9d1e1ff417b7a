//! Tables and properties of the budgets.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

fn prefix(text: &str) -> SourcePrefix {
    text.parse::<IpAddr>().unwrap().into()
}

fn small() -> Limits {
    Limits {
        connections: 10,
        connections_per_instance: 4,
        calls_per_instance: 2,
        call_rate: Rate::new(1, 3),
        message_rate: Rate::new(10, 5),
        names: 100,
        names_per_instance: 40,
        unanswered_bytes_per_instance: 1000,
        anonymous: 6,
        anonymous_per_address: 4,
        handshake_rate: Rate::new(1000, 1000),
        ..Limits::default()
    }
}

#[test]
fn a_bucket_holds_its_burst_and_fills_at_its_rate() {
    let (rate, now) = (Rate::new(10, 5), Instant::now());
    let mut bucket = Bucket::full(now);
    for _ in 0..5 {
        assert_eq!(bucket.take(rate, 1, now), Ok(()));
    }
    assert_eq!(bucket.take(rate, 1, now), Err(Duration::from_millis(100)));
    let later = now + Duration::from_millis(100);
    assert_eq!(bucket.take(rate, 1, later), Ok(()));
    assert_eq!(bucket.charge(rate, 10, later), Duration::from_secs(1));
    let paid = later + Duration::from_secs(1);
    assert_eq!(bucket.debt(rate, paid), Duration::ZERO);
    assert!(bucket.take(rate, 1, paid).is_err(), "empty, not in debt");
    assert!(!bucket.is_full(paid));
    assert!(bucket.is_full(paid + Duration::from_millis(500)));
}

proptest! {
    /// Whatever is asked for and when: never more than the burst and what the time has brought.
    #[test]
    fn a_bucket_gives_no_more_than_its_rate(
        per_second in 1_u64..1000,
        burst in 1_u64..1000,
        asked in proptest::collection::vec((0_u64..50, 0_u64..400), 1..100),
    ) {
        let (rate, begin) = (Rate::new(per_second, burst), Instant::now());
        let (mut bucket, mut now, mut given) = (Bucket::full(begin), begin, 0);
        for (units, pause) in asked {
            now += Duration::from_millis(pause);
            if bucket.take(rate, units, now).is_ok() {
                given += units;
            }
            let brought = now.duration_since(begin).as_secs_f64() * per_second as f64;
            prop_assert!(given as f64 <= burst as f64 + brought + 1.0);
        }
    }
}

#[test]
fn sources_are_addresses_of_v4_and_64_bits_of_v6() {
    let same = [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1", "::ffff:192.0.2.1"),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::9"),
    ];
    for (a, b) in same {
        assert_eq!(prefix(a), prefix(b), "{a} {b}");
    }
    let different = [
        ("192.0.2.1", "192.0.2.2"),
        ("2001:db8:0:1::1", "2001:db8:0:2::1"),
        ("0.0.0.0", "::"),
    ];
    for (a, b) in different {
        assert_ne!(prefix(a), prefix(b), "{a} {b}");
    }
}

#[test]
fn the_oldest_idle_connection_of_a_source_gives_up_its_place() {
    let (limits, now) = (small(), Instant::now());
    let mut all = AnonymousConnections::default();
    let admit = |all: &mut AnonymousConnections| all.admit(prefix("192.0.2.1"), &limits, now);
    let ids: Vec<_> = (0..4).map(|_| admit(&mut all).unwrap().id).collect();
    all.set_busy(ids[0], true);
    assert_eq!(
        admit(&mut all).unwrap().evicted,
        Some(ids[1]),
        "not the busy one"
    );
    all.set_busy(ids[0], false);
    assert_eq!(admit(&mut all).unwrap().evicted, Some(ids[0]));
    assert_eq!(all.len(), 4);
}

#[test]
fn where_all_places_are_taken_the_source_with_the_most_gives_one_up() {
    let (limits, now) = (small(), Instant::now());
    let mut all = AnonymousConnections::default();
    let few = all.admit(prefix("192.0.2.1"), &limits, now).unwrap();
    let mut many = Vec::new();
    for source in [
        "192.0.2.2",
        "192.0.2.2",
        "192.0.2.2",
        "192.0.2.3",
        "192.0.2.3",
    ] {
        many.push(all.admit(prefix(source), &limits, now).unwrap().id);
    }
    let next = all.admit(prefix("192.0.2.9"), &limits, now).unwrap();
    assert_eq!(next.evicted, Some(many[0]));
    for id in [few.id, next.id].iter().chain(&many[1..]) {
        all.set_busy(*id, true);
    }
    let last = all.admit(prefix("192.0.2.8"), &limits, now).unwrap();
    assert!(
        last.evicted.is_some_and(|id| many[1..].contains(&id)),
        "calls that do not end keep nobody out: {last:?}"
    );
}

#[test]
fn a_source_that_connects_too_fast_is_refused_alone() {
    let limits = Limits {
        handshake_rate: Rate::new(1, 2),
        ..small()
    };
    let now = Instant::now();
    let mut all = AnonymousConnections::default();
    for _ in 0..2 {
        let id = all.admit(prefix("192.0.2.1"), &limits, now).unwrap().id;
        all.remove(id);
    }
    let refused = all.admit(prefix("192.0.2.1"), &limits, now).unwrap_err();
    assert_eq!(refused.reason(), Reason::Handshakes);
    all.forget(now);
    assert!(
        all.admit(prefix("192.0.2.1"), &limits, now).is_err(),
        "not forgotten"
    );
    all.admit(prefix("192.0.2.2"), &limits, now).unwrap();
    let later = now + Duration::from_secs(3);
    all.forget(later);
    all.admit(prefix("192.0.2.1"), &limits, later).unwrap();
}

proptest! {
    /// Counts agree with what was admitted, evicted and removed, and no limit is ever exceeded.
    #[test]
    fn places_are_counted(steps in proptest::collection::vec((0_u8..4, 0_u8..5, any::<bool>()), 1..200)) {
        let (limits, now) = (small(), Instant::now());
        let mut all = AnonymousConnections::default();
        let mut live: BTreeMap<AnonymousId, u8> = BTreeMap::new();
        for (step, source, flag) in steps {
            let any = live.keys().nth(usize::from(source)).copied();
            match (step, any) {
                (0, Some(id)) => {
                    all.remove(id);
                    live.remove(&id);
                }
                (1, Some(id)) => all.set_busy(id, flag),
                _ => {
                    let from = IpAddr::from([192, 0, 2, source]);
                    if let Ok(admission) = all.admit(from.into(), &limits, now) {
                        live.insert(admission.id, source);
                        if let Some(evicted) = admission.evicted {
                            prop_assert!(live.remove(&evicted).is_some());
                        }
                    }
                }
            }
            prop_assert_eq!(all.len(), live.len());
            prop_assert!(live.len() <= limits.anonymous);
            for source in 0..5 {
                let of_source = live.values().filter(|other| **other == source).count();
                prop_assert!(of_source <= limits.anonymous_per_address);
            }
        }
    }
}

#[test]
fn an_instance_is_refused_beyond_its_limits() {
    let (limits, now) = (small(), Instant::now());
    let (mut all, mut account) = (Accounts::default(), Account::new(now));
    all.begin_instance();
    for _ in 0..4 {
        account.begin_connection(&mut all, &limits).unwrap();
    }
    let refused = account.begin_connection(&mut all, &limits).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "connections: found 5; allowed: 4 per instance; close connections that are not needed \
         any more"
    );
    account.end_connection(&mut all);
    account.begin_connection(&mut all, &limits).unwrap();

    for _ in 0..2 {
        account.begin_call(&limits, now).unwrap();
    }
    let refused = account.begin_call(&limits, now).unwrap_err();
    assert_eq!(refused.reason(), Reason::Calls);
    account.end_call();
    account.begin_call(&limits, now).unwrap();
    account.end_call();
    let refused = account.begin_call(&limits, now).unwrap_err();
    assert_eq!(refused.reason(), Reason::CallRate);
    account
        .begin_call(&limits, now + Duration::from_secs(1))
        .unwrap();
}

#[test]
fn names_are_counted_over_streams_and_shared_when_half_is_used() {
    let (limits, now) = (small(), Instant::now());
    let mut all = Accounts::default();
    let mut accounts: Vec<_> = (0..4).map(|_| Account::new(now)).collect();
    accounts.iter().for_each(|_| all.begin_instance());
    let set = |account: &mut Account, all: &mut Accounts, before, after| {
        account.set_names(before, after, all, &limits)
    };
    set(&mut accounts[0], &mut all, 0, 30).unwrap();
    let refused = set(&mut accounts[0], &mut all, 0, 11).unwrap_err();
    assert_eq!(refused.reason(), Reason::Names);
    set(&mut accounts[1], &mut all, 0, 25).unwrap();
    // 55 of 100 are used by 4 instances: 25 for each from now on.
    assert!(set(&mut accounts[1], &mut all, 25, 26).is_err());
    set(&mut accounts[2], &mut all, 0, 25).unwrap();
    assert!(set(&mut accounts[0], &mut all, 30, 31).is_err());
    set(&mut accounts[0], &mut all, 30, 10).unwrap();
    set(&mut accounts[3], &mut all, 0, 20).unwrap();
    assert_eq!(all.names(), 80);
    assert_eq!(accounts[0].names(), 10);
}

#[test]
fn when_all_of_something_is_used_nobody_gets_more() {
    let (limits, now) = (small(), Instant::now());
    let mut all = Accounts::default();
    let mut accounts: Vec<_> = (0..20).map(|_| Account::new(now)).collect();
    accounts.iter().for_each(|_| all.begin_instance());
    let (first, others) = accounts.split_at_mut(10);
    for account in first.iter_mut() {
        account.begin_connection(&mut all, &limits).unwrap();
    }
    for account in others.iter_mut() {
        let refused = account.begin_connection(&mut all, &limits).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "connections: found 11 of all instances; allowed: 10 of all instances together; \
             connect again later; an operator may raise the limit of open files (ulimit -Hn)"
        );
    }
    assert_eq!(all.connections(), 10);
    first[0].end_connection(&mut all);
    others[0].begin_connection(&mut all, &limits).unwrap();

    for account in accounts.iter_mut() {
        account.set_names(0, 5, &mut all, &limits).unwrap();
    }
    let mut late = Account::new(now);
    all.begin_instance();
    let refused = late.set_names(0, 1, &mut all, &limits).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "names: found 101 of all instances; allowed: 100 of all instances together; ask again \
         later, for fewer names"
    );
    accounts[0].set_names(5, 4, &mut all, &limits).unwrap();
    late.set_names(0, 1, &mut all, &limits).unwrap();
    assert_eq!(all.names(), 100);
}

proptest! {
    /// However many instances there are, and whatever each takes and gives back: the totals are the
    /// sums of what they have, and no limit is ever exceeded.
    #[test]
    fn totals_stay_within_their_limits(
        steps in proptest::collection::vec((0_usize..30, 0_u8..4, 0_usize..60), 1..300),
    ) {
        let (limits, now) = (small(), Instant::now());
        let mut all = Accounts::default();
        let mut accounts: Vec<_> = (0..30).map(|_| (Account::new(now), 0, 0)).collect();
        accounts.iter().for_each(|_| all.begin_instance());
        for (instance, step, wanted) in steps {
            let (account, connections, names) = &mut accounts[instance];
            match step {
                0 if *connections > 0 => {
                    account.end_connection(&mut all);
                    *connections -= 1;
                }
                0 | 1 => {
                    if account.begin_connection(&mut all, &limits).is_ok() {
                        *connections += 1;
                    }
                }
                _ => {
                    if account.set_names(*names, wanted, &mut all, &limits).is_ok() {
                        *names = wanted;
                    }
                }
            }
            prop_assert!(*connections <= limits.connections_per_instance);
            prop_assert!(*names <= limits.names_per_instance);
            let connections: usize = accounts.iter().map(|(_, connections, _)| connections).sum();
            let names: usize = accounts.iter().map(|(_, _, names)| names).sum();
            prop_assert_eq!((all.connections(), all.names()), (connections, names));
            prop_assert!(connections <= limits.connections && names <= limits.names);
        }
    }
}

#[test]
fn messages_are_slowed_down_and_then_refused() {
    let (limits, begin) = (small(), Instant::now());
    let mut account = Account::new(begin);
    for _ in 0..5 {
        assert_eq!(account.charge_message(&limits, begin), Ok(Duration::ZERO));
    }
    // As fast as it may: it waits as it is told, and never has a pause.
    let (mut now, mut taken) = (begin, 0);
    let refused = loop {
        match account.charge_message(&limits, now) {
            Ok(wait) => now += wait,
            Err(refused) => break refused,
        }
        taken += 1;
    };
    assert_eq!(refused.reason(), Reason::Messages);
    assert!((105..=115).contains(&taken), "{taken}");
    assert!(now.duration_since(begin) >= THROTTLED_MAX);
    // One that pauses is never refused.
    let mut account = Account::new(begin);
    let mut now = begin;
    for _ in 0..1000 {
        let wait = account.charge_message(&limits, now).unwrap();
        now += wait + Duration::from_millis(101);
    }
}

#[test]
fn a_push_to_a_stream_with_nothing_unanswered_always_goes() {
    let limits = small();
    let mut account = Account::new(Instant::now());
    assert!(account.may_push(0, &limits));
    account.set_unanswered(0, 5000);
    assert!(!account.may_push(5000, &limits));
    assert!(account.may_push(0, &limits), "another stream");
    account.set_unanswered(5000, 0);
    assert!(account.may_push(1, &limits));
}

#[test]
fn an_account_is_unused_only_when_its_buckets_are_full() {
    let (limits, now) = (small(), Instant::now());
    let mut account = Account::new(now);
    assert!(account.is_unused(now));
    account.begin_call(&limits, now).unwrap();
    account.end_call();
    assert!(!account.is_unused(now), "or coming back would refill it");
    assert!(account.is_unused(now + Duration::from_secs(4)));
}

#[test]
fn a_certificate_stands_while_a_newer_one_is_proved() {
    let grace = Duration::from_secs(5);
    let cases = [
        (99, 100, CertificateState::Valid),
        (100, 100, CertificateState::Ended),
        (104, 100, CertificateState::Ended),
        (105, 100, CertificateState::Over),
        (105, 200, CertificateState::Ended),
        (204, 200, CertificateState::Ended),
        (205, 200, CertificateState::Over),
        (99, 50, CertificateState::Valid),
    ];
    for (now, proved_until, expected) in cases {
        let found = standing(100, proved_until, now, grace);
        assert_eq!(found, expected, "{now} {proved_until}");
    }
}

#[test]
fn limits_fit_into_the_descriptors() {
    for descriptors in [0, 256, 1024, 20_000, 1_000_000] {
        let limits = Limits::for_descriptors(descriptors);
        assert!(
            limits.anonymous >= 8 && limits.connections >= 32,
            "{limits:?}"
        );
        if descriptors >= 1024 {
            assert!(((limits.anonymous + limits.connections) as u64) < descriptors);
        }
    }
}

#[test]
fn a_connection_without_a_certificate_has_deadlines() {
    let begin = Instant::now();
    let after = |seconds| begin + Duration::from_secs(seconds);
    let mut life = AnonymousLife::new(begin);
    assert_eq!(life.closes(), after(5), "no call");
    life.begin_call().unwrap();
    life.begin_call().unwrap();
    assert_eq!(life.closes(), after(60), "calls under way");
    assert!(!life.end_call(after(2)));
    assert!(life.end_call(after(3)));
    assert_eq!(life.closes(), after(13), "idle");
    for call in 3..=ANONYMOUS_CALLS_MAX {
        life.begin_call().unwrap();
        assert!(life.end_call(after(50 + call)));
    }
    assert_eq!(life.closes(), after(60), "whatever it does");
    assert!(life.begin_call().is_err());
}
