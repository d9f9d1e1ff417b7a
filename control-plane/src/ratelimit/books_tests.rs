use std::sync::Mutex;

use weft_core::rate::lease::{Demand, LOST_AFTER, Report, Shares};

use super::*;
use crate::peer::PeerIdentity;

/// Limits in force, as pairs of a service and a policy, where a star is every service.
#[derive(Debug, Default)]
struct InForce(Vec<(&'static str, &'static str)>, Mutex<Vec<String>>);

impl KnownLimits for InForce {
    fn of_service(&self, service: &ServiceName) -> Shared {
        let service = service.to_string();
        let of_service = self.0.iter().filter(|(of, _)| *of == "*" || *of == service);
        let shared = of_service
            .map(|(_, policy)| (rule(policy), false))
            .collect();
        self.1.lock().unwrap().push(service);
        shared
    }

    fn of_sidecar(&self, _peer: &PeerIdentity) -> BTreeMap<RuleName, ServiceName> {
        BTreeMap::new()
    }
}

fn at(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * 1_000_000_000)
}

fn rule(policy: &str) -> RuleName {
    RuleName {
        namespace: "shop".into(),
        policy: policy.into(),
        rule: 0,
    }
}

fn id(link: u64, stream: u64) -> StreamId {
    StreamId { link, stream }
}

fn report(policy: &str, service: &str, asked: u64) -> RelayedReport {
    RelayedReport {
        report: Report {
            rule: rule(policy),
            version: 0,
            holds: Shares::even(2),
            demand: Some(Demand {
                base: asked,
                ..Demand::default()
            }),
        },
        service: service.parse().unwrap(),
    }
}

fn all(policies: &'static str) -> InForce {
    let policies = policies.split_whitespace();
    InForce(policies.map(|p| ("*", p)).collect(), Mutex::default())
}

/// A stream that has told of a limit at 0 s.
fn tell(books: &mut Books, id: StreamId, policy: &str, service: &str) {
    let instance = format!("i-{}-{}", id.link, id.stream).into();
    books.open(id, &instance).unwrap();
    let told = vec![report(policy, service, id.stream)];
    books.handle(id, told, &all("p q r"), at(0));
}

#[test]
fn only_services_with_books_are_looked_at() {
    let mut books = Books::new(at(0));
    tell(&mut books, id(OWN, 1), "p", "shop/web");
    tell(&mut books, id(OWN, 1), "q", "shop/web");
    tell(&mut books, id(OWN, 1), "r", "shop/db");
    let sweep = |books: &mut Books, in_force: &[(&'static str, &'static str)]| {
        let known = InForce(in_force.to_vec(), Mutex::default());
        books.sweep(&known, at(1));
        let kept: Vec<String> = books.limits.keys().map(|r| r.policy.to_string()).collect();
        (kept.concat(), known.1.lock().unwrap().join(" "))
    };
    let text = |kept: &str, looked_at: &str| (kept.to_owned(), looked_at.to_owned());
    let in_force = [("shop/db", "r"), ("shop/web", "p"), ("shop/web", "q")];
    assert_eq!(
        sweep(&mut books, &in_force),
        text("pqr", "shop/db shop/web")
    );
    assert_eq!(
        sweep(&mut books, &in_force[1..2]),
        text("p", "shop/db shop/web")
    );
    // Its policy is for another service now.
    tell(&mut books, id(OWN, 1), "p", "shop/api");
    assert_eq!(
        sweep(&mut books, &[("shop/api", "p")]),
        text("p", "shop/api")
    );
    assert_eq!(sweep(&mut books, &[]), text("", "shop/api"));
    assert_eq!(sweep(&mut books, &[]), text("", ""));
}

#[test]
fn a_stream_that_ends_gives_up_what_it_told_of() {
    let mut books = Books::new(at(0));
    tell(&mut books, id(1, 1), "p", "shop/web");
    tell(&mut books, id(1, 2), "p", "shop/web");
    tell(&mut books, id(2, 1), "q", "shop/web");
    let empty = |books: &mut Books, now: u64| -> Vec<bool> {
        let names = books.names();
        let _sent_to_nobody = books.poll(&names, at(now));
        let limits = books.limits.values();
        limits.map(|limit| limit.allocator.is_empty()).collect()
    };
    books.close(id(1, 1), at(0));
    books.close_link(1, at(10));
    let lost = LOST_AFTER.as_secs();
    assert_eq!(empty(&mut books, 9 + lost), [false, false]);
    assert_eq!(empty(&mut books, 10 + lost), [true, false]);
    assert_eq!((books.streams.len(), books.by_number.len()), (1, 1));
}

#[test]
fn nothing_is_granted_before_a_policy_is_known_and_others_were_heard() {
    let mut books = Books::new(at(0));
    let none = all("");
    let open = |books: &mut Books, stream: u64| {
        let instance = format!("i-{stream}").into();
        books.open(id(1, stream), &instance).unwrap();
    };
    // Another control plane has seen the policy already.
    for stream in [1, 2] {
        open(&mut books, stream);
        let told = vec![report("p", "shop/web", 90 * (2 - stream))];
        let names = books.handle(id(1, stream), told, &none, at(20));
        assert!(books.poll(&names, at(20 + stream)).is_empty());
    }
    books.sweep(&none, at(79));
    assert_eq!(books.names(), [rule("p")]);
    books.sweep(&all("p"), at(79));
    let due = books.poll(&[rule("p")], at(79));
    assert_eq!(due.keys().collect::<Vec<_>>(), [&id(1, 2)], "it gives up");
    // What no policy gets to have is forgotten.
    let told = vec![report("q", "shop/web", 1)];
    books.handle(id(1, 1), told, &none, at(100));
    books.sweep(&all("p"), at(159));
    assert_eq!(books.names().len(), 2);
    books.sweep(&all("p"), at(160));
    assert_eq!(books.names(), [rule("p")]);
    // A new limit: the first to report is not given what the others hold.
    let told = vec![report("r", "shop/web", 90)];
    let names = books.handle(id(1, 1), told, &all("p r"), at(200));
    assert!(books.poll(&names, at(202)).is_empty());
    assert_eq!(books.poll(&names, at(203)).len(), 1);
}

#[test]
fn a_newer_stream_of_an_instance_counts_wherever_it_is() {
    let mut books = Books::new(at(0));
    let instance: Arc<str> = "i".into();
    for id in [id(1, 9), id(2, 3)] {
        books.open(id, &instance).unwrap();
        let told = vec![report("p", "shop/web", 1)];
        books.handle(id, told, &all("p"), at(0));
    }
    books.close(id(1, 9), at(1));
    let due = books.poll(&[rule("p")], at(3));
    assert_eq!(due.keys().collect::<Vec<_>>(), [&id(2, 3)]);
}

#[test]
fn what_a_control_plane_sends_is_bounded() {
    let mut books = Books::new(at(0));
    let instance: Arc<str> = "i".into();
    let other: Arc<str> = "j".into();
    books.open(id(1, 1), &instance).unwrap();
    books.open(id(1, 1), &instance).unwrap();
    assert_eq!(books.open(id(1, 1), &other), Err(Excess::Instance(1)));
    for stream in 2..=STREAMS_MAX as u64 {
        books.open(id(1, stream), &instance).unwrap();
    }
    assert_eq!(books.open(id(1, 0), &instance), Err(Excess::Streams));
    books.open(id(2, 0), &instance).unwrap();
    books.close(id(1, 7), at(0));
    books.open(id(1, 0), &instance).unwrap();
    let none = all("");
    let many = |namespace: &str, count: usize| -> Vec<RelayedReport> {
        let reports = (0..count).map(|n| report(&format!("p-{n}"), "shop/web", 1));
        let reports = reports.map(|mut relayed| {
            relayed.report.rule.namespace = namespace.into();
            relayed
        });
        reports.collect()
    };
    // Limits of one namespace.
    let told = books.handle(id(1, 1), many("a", TOLD_MAX), &none, at(0));
    assert_eq!(told.len(), NAMESPACE_LIMITS_MAX);
    assert!(books.is_full());
    // Of one stream: what is beyond does not count, also of limits that there are.
    let told = books.handle(id(1, 1), many("b", TOLD_MAX), &none, at(0));
    assert_eq!(told.len(), TOLD_MAX - NAMESPACE_LIMITS_MAX);
    // Limits of all streams together.
    for stream in 2..20 {
        let namespace = format!("n-{stream}");
        books.handle(id(1, stream), many(&namespace, TOLD_MAX), &none, at(0));
    }
    assert_eq!(books.names().len(), LIMITS_MAX);
    // There is room again when they are forgotten.
    books.sweep(&none, at(100));
    assert!(!books.is_full());
    let told = books.handle(id(1, 1), many("a", 10), &none, at(100));
    assert_eq!(told.len(), 10);
}

#[test]
fn a_limit_is_looked_at_now_and_then() {
    let mut books = Books::new(at(0));
    tell(&mut books, id(1, 1), "p", "shop/web");
    assert_eq!(books.poll(&[rule("p")], at(5)).len(), 1);
    tell(&mut books, id(1, 2), "p", "shop/web");
    let before = at(5) + POLLED_EVERY.saturating_sub(Duration::from_millis(1));
    assert!(books.poll(&[rule("p")], before).is_empty());
    let due = books.take_due();
    assert_eq!(due, BTreeSet::from([rule("p")]));
    books.poll(&due, at(5) + POLLED_EVERY);
    assert!(books.take_due().is_empty());
}

/// Its policy was away for a moment: a lease that was on its way then acknowledges nothing.
#[test]
fn a_limit_that_begins_again_goes_on_with_versions() {
    let mut books = Books::new(at(0));
    let said = |version: u64, share: u32| {
        let mut said = report("p", "shop/web", 90);
        said.report.version = version;
        said.report.holds.base = share;
        vec![said]
    };
    books.open(id(1, 1), &"i".into()).unwrap();
    books.handle(id(1, 1), said(0, 0), &all("p"), at(0));
    let mut version = 0;
    for round in 0..9 {
        let due = books.poll(&[rule("p")], at(3 + round));
        version = due[&id(1, 1)][0].version;
        books.handle(id(1, 1), said(version, 0), &all("p"), at(3 + round));
    }
    books.sweep(&all(""), at(20));
    assert!(books.names().is_empty());
    books.handle(id(1, 1), said(version, 0), &all("p"), at(20));
    let due = books.poll(&[rule("p")], at(23));
    let next = &due[&id(1, 1)][0];
    assert!(next.version > version, "{due:?}");
    // It has not heard of it.
    books.handle(id(1, 1), said(version, 0), &all("p"), at(24));
    assert_eq!(books.held(&rule("p"), "i"), Some(next.shares.base));
}
