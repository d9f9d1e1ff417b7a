//! Several control planes' words together.

use std::time::Duration;

use weft_core::name::ServiceName;
use weft_core::rate::RuleName;
use weft_proto::refusals::{Refusals, RefusedDocument};
use weft_proto::replicas::PublishedReport;

use super::*;
use crate::ratelimit::{Alone, KnownLimits, Shared};
use crate::store::MemoryStore;

fn sidecar(instance: &str, since: i64) -> SidecarReport {
    SidecarReport {
        instance: instance.into(),
        identity: "spiffe://weft.local/ns/shop/sa/web".parse().unwrap(),
        not_after: 9,
        version: String::new(),
        since,
        holds: 3,
        behind: None,
        begins: false,
        lacks: Vec::new(),
        rejected: BTreeMap::new(),
        observed: None,
    }
}

/// No limit is shared.
#[derive(Debug)]
struct NoLimits;

impl KnownLimits for NoLimits {
    fn of_service(&self, _service: &ServiceName) -> Shared {
        Shared::new()
    }

    fn of_sidecar(&self, _peer: &PeerIdentity) -> BTreeMap<RuleName, ServiceName> {
        BTreeMap::new()
    }
}

fn replicas() -> Arc<Replicas> {
    let leases = Leases::new(Arc::new(NoLimits), Arc::new(Alone), Duration::ZERO);
    let store = Arc::<MemoryStore>::default();
    Replicas::new(Arc::default(), Arc::default(), store, leases)
}

fn tell(replicas: &Replicas, name: &str, process: &str, sidecars: &[(&str, i64)]) -> bool {
    replicas.begin(name);
    let sidecars = sidecars.iter();
    let report = ReplicaReport {
        replica: process.into(),
        sidecars: sidecars
            .map(|(name, since)| sidecar(name, *since))
            .collect(),
        gone: Vec::new(),
        refused: BTreeMap::new(),
        whole: Some(whole()),
    };
    replicas.take(name, report).unwrap()
}

fn whole() -> PublishedReport {
    PublishedReport {
        tells_refused: true,
        ..PublishedReport::default()
    }
}

fn found(names: &[&str]) -> ControlPlanes {
    let names = names.iter();
    let address = "192.0.2.1:1".parse().unwrap();
    names.map(|name| ((*name).to_owned(), address)).collect()
}

#[test]
fn one_that_was_not_heard_is_unknown_and_one_that_is_gone_is_not() {
    let replicas = replicas();
    let own = Arc::clone(replicas.name());
    replicas.retain(&found(&["a", "b", "c"]), Instant::now());
    assert_eq!(replicas.unknown(), ["a", "b", "c"]);
    assert!(!tell(&replicas, "a", "one", &[("x", 1)]));
    assert!(
        tell(&replicas, "b", &own, &[("y", 1)]),
        "it is this process"
    );
    assert_eq!(replicas.unknown(), ["c"]);
    let mut progress = Progress::default();
    replicas.add_progress(0, &mut progress, Instant::now());
    assert_eq!(progress.unknown, ["c"]);
    assert_eq!(
        progress.waiting.len(),
        1,
        "it is not known what it has seen"
    );
    assert!(!progress.is_settled(0));
    let now = Instant::now();
    tell(&replicas, "c", "three", &[]);
    replicas.retain(&found(&["a", "b"]), now);
    assert!(replicas.unknown().is_empty(), "it had no sidecars");
    replicas.retain(&found(&["b"]), now);
    assert!(replicas.connected(&[]).is_empty());
    // Its sidecar comes to another one, after a while.
    let end = now + RECONNECTED_WITHIN;
    assert_eq!(replicas.next_expiry(now), Some(end));
    for (at, is_settled) in [(now, false), (end, true)] {
        let mut progress = Progress::default();
        replicas.add_progress(0, &mut progress, at);
        assert_eq!(progress.is_settled(0), is_settled);
    }
    // Words of one that is not there any more count for nothing.
    tell(&replicas, "a", "one", &[("x", 1)]);
    assert!(replicas.connected(&[]).is_empty());
}

/// Nothing is settled before it is known who there is.
#[test]
fn until_a_process_has_found_itself_where_it_is_to_be_there_may_be_others() {
    let is_settled = |replicas: &Replicas| {
        let mut progress = Progress::default();
        replicas.add_progress(0, &mut progress, Instant::now());
        assert_eq!(progress.unknown, replicas.unknown());
        progress.is_settled(0)
    };
    assert!(is_settled(&replicas()), "outside a cluster it is alone");
    for in_pod in [false, true] {
        let replicas = replicas();
        let own = Arc::clone(replicas.name());
        let begun = Instant::now() - RECONNECTED_WITHIN;
        replicas.await_list(in_pod, begun);
        assert_eq!(replicas.unknown(), [NOT_LISTED]);
        assert!(!is_settled(&replicas));
        // No slice yet, or none for a moment.
        replicas.retain(&found(&[]), Instant::now());
        assert_eq!(is_settled(&replicas), !in_pod);
        // Another one is there and is heard, and this one is not there yet.
        replicas.retain(&found(&["a"]), Instant::now());
        tell(&replicas, "a", "one", &[]);
        assert_eq!(is_settled(&replicas), !in_pod);
        assert_eq!(replicas.unknown().is_empty(), !in_pod);
        replicas.retain(&found(&["a", "b"]), Instant::now());
        assert_eq!(replicas.unknown(), ["b"]);
        tell(&replicas, "b", &own, &[]);
        assert!(is_settled(&replicas));
        // It runs alone, and is not on the list for a moment.
        replicas.retain(&found(&["b"]), Instant::now());
        assert!(is_settled(&replicas));
        replicas.retain(&found(&[]), Instant::now());
        assert_eq!(is_settled(&replicas), !in_pod);
    }
}

/// Of a process that begins, sidecars of the one before may not be back.
#[test]
fn a_process_that_begins_waits_for_sidecars_to_connect_again() {
    let replicas = replicas();
    let now = Instant::now();
    replicas.await_list(false, now);
    replicas.retain(&found(&[]), now);
    assert_eq!(replicas.unknown(), [ENDED]);
    let mut progress = Progress::default();
    replicas.add_progress(0, &mut progress, now + RECONNECTED_WITHIN);
    assert!(progress.is_settled(0));
}

/// The name is that of the pod, in which a container may start anew.
#[test]
fn sidecars_of_one_that_was_restarted_or_never_heard_are_waited_for() {
    let replicas = replicas();
    replicas.retain(&found(&["a", "b", "c"]), Instant::now());
    for (name, process) in [("a", "one"), ("b", "two"), ("b", "three")] {
        let sidecars = [("x", 1)];
        let of_a = name == "a";
        tell(&replicas, name, process, if of_a { &sidecars } else { &[] });
    }
    assert_eq!(replicas.unknown(), ["c"], "b had no sidecars");
    replicas.retain(&found(&["a", "b"]), Instant::now());
    assert_eq!(replicas.unknown(), [ENDED]);
    let replicas = self::replicas();
    replicas.retain(&found(&["a"]), Instant::now());
    tell(&replicas, "a", "one", &[("x", 1)]);
    assert!(replicas.unknown().is_empty());
    tell(&replicas, "a", "four", &[]);
    assert_eq!(replicas.unknown(), [ENDED]);
}

/// What one tells is not told on by those that hear it: they would wake each other without end.
#[test]
fn what_others_tell_is_no_news_for_others() {
    let replicas = replicas();
    let mut all = replicas.publisher.watch();
    let here = replicas.publisher.watch_here();
    replicas.retain(&found(&["a"]), Instant::now());
    all.borrow_and_update();
    tell(&replicas, "a", "one", &[("x", 1)]);
    assert!(all.has_changed().unwrap() && !here.has_changed().unwrap());
}

#[test]
fn a_sidecar_counts_once_where_it_is_now() {
    let replicas = replicas();
    replicas.retain(&found(&["a", "b"]), Instant::now());
    tell(&replicas, "a", "one", &[("x", 1), ("y", 5)]);
    tell(&replicas, "b", "two", &[("x", 3), ("y", 2), ("z", 1)]);
    let connected = |here: &[ProxyView]| -> Vec<String> {
        let views = replicas.connected(here).into_iter();
        let views = views.map(|view| {
            let replica = view.replica.unwrap_or_default();
            format!("{}@{replica}", view.peer.instance)
        });
        views.collect()
    };
    assert_eq!(connected(&[]), ["x@b", "y@a", "z@b"]);
    let here = ProxyView {
        replica: None,
        peer: peer_of(&sidecar("y", 9)),
        version: String::new(),
        since: 9,
        applied: Applied::default(),
        holds: 0,
        rejected: BTreeMap::new(),
    };
    assert_eq!(connected(&[here]), ["x@b", "z@b"]);
}

#[test]
fn those_that_are_not_followed_are_unknown() {
    let replicas = replicas();
    let names: Vec<String> = (0..OTHERS_MAX + 3).map(|n| format!("cp-{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    replicas.retain(&found(&names), Instant::now());
    let (followed, beyond) = names.split_at(OTHERS_MAX + 1);
    let own = Arc::clone(replicas.name());
    for name in followed {
        tell(
            &replicas,
            name,
            if *name == "cp-05" { &own } else { name },
            &[],
        );
    }
    assert_eq!(replicas.unknown(), beyond);
    let mut progress = Progress::default();
    replicas.add_progress(0, &mut progress, Instant::now());
    assert!(!progress.is_settled(0));
}

#[test]
fn lost_interception_of_other_replicas_sidecars_is_known_and_news() {
    let replicas = replicas();
    replicas.retain(&found(&["a"]), Instant::now());
    let mut news = replicas.watch_interception();
    let mut tell = |standing: Option<InterceptionReport>| {
        let mut told = sidecar("x", 1);
        told.observed = standing.map(|standing| ObservedReport {
            told: 1,
            breakers: Vec::new(),
            interception: Some(standing),
        });
        let report = ReplicaReport {
            replica: "one".into(),
            sidecars: vec![told],
            gone: Vec::new(),
            refused: BTreeMap::new(),
            whole: Some(whole()),
        };
        news.borrow_and_update();
        replicas.take("a", report).unwrap();
        let standings = replicas.interception(&[]).into_iter();
        let standings: Vec<_> = standings.map(|(_, standing)| standing).collect();
        (standings, news.has_changed().unwrap())
    };
    let lapsed = InterceptionReport::Lapsed;
    assert_eq!(tell(None), (vec![], false));
    assert_eq!(tell(Some(lapsed)), (vec![lapsed], true));
    assert_eq!(tell(Some(lapsed)), (vec![lapsed], false));
    assert!(tell(Some(InterceptionReport::InForce)).1);
    // One that has come to this control plane is its own to tell of.
    let here = [(peer_of(&sidecar("x", 1)), InterceptionReport::InForce)];
    assert!(replicas.interception(&here).is_empty());
}

/// What one refuses is known while it is there, and one that says so comes before one that may.
#[test]
fn a_document_that_another_one_refuses_is_known_by_its_generation() {
    let replicas = replicas();
    let own = Arc::clone(replicas.name());
    replicas.retain(&found(&["a", "b", "c"]), Instant::now());
    let key = ResourceKey {
        kind: "HTTPRoute".to_owned(),
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
    };
    let tell = |name: &str, process: &str, refuses_more, generation| {
        let mut refusals = Refusals::default();
        if let Some(generation) = generation {
            refusals.add(
                "shop",
                RefusedDocument {
                    kind: "HTTPRoute".into(),
                    name: "web".into(),
                    generation,
                    word: "Invalid".into(),
                    reason: "odd".into(),
                },
            );
        }
        replicas.begin(name);
        let report = ReplicaReport {
            replica: process.into(),
            sidecars: Vec::new(),
            gone: Vec::new(),
            refused: refusals.namespaces,
            whole: Some(PublishedReport {
                refuses_more,
                ..whole()
            }),
        };
        replicas.take(name, report).unwrap();
    };
    let refused = |generation| {
        let refused = replicas.refused(&key, generation, Instant::now())?;
        Some((refused.control_plane, refused.why))
    };
    tell("a", "one", true, None);
    assert_eq!(refused(2), Some(("a".to_owned(), None)));
    tell("b", "two", false, Some(2));
    let why = Some("Invalid: odd".to_owned());
    assert_eq!(refused(2), Some(("b".to_owned(), why)));
    assert_eq!(refused(3), Some(("a".to_owned(), None)));
    tell("a", "one", false, None);
    assert_eq!(refused(3), None);
    // What this process refuses it knows without the others.
    tell("c", &own, false, Some(3));
    assert_eq!(refused(3), None);
    replicas.retain(&found(&["a"]), Instant::now());
    assert_eq!(refused(2), None);
}
