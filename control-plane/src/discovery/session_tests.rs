use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use weft_core::model::{Transport, Workload};
use weft_proto::resource::{Kind, Resource};

use super::*;
use crate::compile::Compiled;

const KIND: Kind = Kind::Workload;

/// `n` stands for the content; the aliases are what it goes by.
fn resource(name: &str, n: u32, aliases: &[&str]) -> (Resource, Vec<String>) {
    let workload = Workload {
        place: Default::default(),
        services: Vec::new(),
        name: name.parse().unwrap(),
        instance: n.to_string().into(),
        identity: "spiffe://weft.local/ns/shop/sa/web".parse().unwrap(),
        addresses: Vec::new(),
        ports: Vec::new(),
        transport: Transport::Mesh,
    };
    let aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
    (Resource::Workload(workload), aliases)
}

fn ask(names: &[&str]) -> Request {
    Request {
        subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Request::default()
    }
}

fn drop(names: &[&str]) -> Request {
    Request {
        unsubscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Request::default()
    }
}

fn answer(push: &Push, error: Option<&str>) -> Request {
    Request {
        answer: Some(Answer {
            nonce: push.nonce.clone(),
            error: error.map(str::to_owned),
        }),
        ..Request::default()
    }
}

/// `+name … -name …`
fn rendered(push: &Push) -> String {
    let resources = push.resources.iter().map(|r| format!("+{}", r.name));
    let removed = push.removed.iter().map(|name| format!("-{name}"));
    resources.chain(removed).collect::<Vec<_>>().join(" ")
}

/// A stream to which every world is news: every name that it asked for may be different.
struct Stream(Session);

impl Stream {
    fn send(&mut self, request: Request) -> Answered {
        self.0.handle_request(KIND, request).unwrap().answered
    }

    fn push(&mut self, world: &Compiled) -> Option<Push> {
        self.mark(world);
        self.0.poll_push(world)
    }

    fn mark(&mut self, world: &Compiled) {
        for kind in Kind::ALL {
            let asked: Vec<Arc<str>> = self.0.asked(kind).map(Arc::from).collect();
            let there = world.of_kind(kind).map(|found| Arc::clone(&found.name));
            for name in asked.into_iter().chain(there) {
                self.0.mark(kind, name);
            }
        }
    }

    /// Pushes and acknowledges until there is nothing left to say.
    fn settle(&mut self, world: &Compiled) -> Vec<String> {
        let mut said = Vec::new();
        while let Some(push) = self.push(world) {
            assert!(said.len() < 100, "never done: {said:?}");
            said.push(rendered(&push));
            self.send(answer(&push, None));
        }
        said
    }

    fn standing(&self, name: &str) -> Option<HeldState> {
        let mut held = self.0.held(KIND);
        held.find(|(n, _)| *n == name)
            .map(|(_, held)| held.standing.clone())
    }
}

fn opened() -> Stream {
    let mut stream = Stream(Session::default());
    stream.send(Request::default());
    stream
}

fn world(serial: u64, resources: &[(&str, u32, &[&str])]) -> Compiled {
    let resources = resources
        .iter()
        .map(|(name, n, aliases)| resource(name, *n, aliases));
    Compiled::of(serial, resources.collect())
}

#[test]
fn on_demand_by_name_and_alias() {
    let mut stream = opened();
    let world = world(1, &[("shop/web", 1, &["10.0.0.1"]), ("shop/db", 1, &[])]);
    assert!(stream.settle(&world).is_empty(), "nothing asked for");
    stream.send(ask(&["10.0.0.1", "10.0.0.9"]));
    assert_eq!(stream.settle(&world), ["+shop/web -10.0.0.9"]);
    stream.send(ask(&["10.0.0.9"]));
    assert_eq!(
        stream.settle(&world),
        ["-10.0.0.9"],
        "asked again, told again"
    );
    stream.send(ask(&["shop/web"]));
    assert_eq!(
        stream.settle(&world),
        ["+shop/web"],
        "asked again, told again"
    );
    stream.send(drop(&["10.0.0.1"]));
    assert!(stream.settle(&world).is_empty());
    stream.send(drop(&["shop/web"]));
    assert!(
        stream.settle(&world).is_empty(),
        "the sidecar drops it by itself"
    );
    assert_eq!(stream.standing("shop/web"), None);
}

#[test]
fn what_concerns_everyone_comes_to_everyone() {
    let mut session = Session::default();
    let bundle = Resource::TrustBundle(weft_core::model::TrustBundle {
        trust_domain: "weft.local".parse().unwrap(),
        roots: vec![vec![1]],
        revoked_instances: BTreeSet::new(),
    });
    let world = Compiled::of(1, vec![(bundle, Vec::new())]);
    assert!(session.poll_push(&world).is_none(), "not asked at all");
    let asked = session.handle_request(Kind::TrustBundle, Request::default());
    assert_eq!(asked.map(|handled| handled.answered), Ok(Answered::No));
    let push = session.poll_push(&world).unwrap();
    assert_eq!(rendered(&push), "+weft.local");
}

#[test]
fn what_comes_into_being_is_sent_to_who_asked() {
    let mut stream = opened();
    stream.send(ask(&["10.0.0.1"]));
    assert_eq!(stream.settle(&world(1, &[])), ["-10.0.0.1"]);
    assert!(stream.settle(&world(2, &[])).is_empty(), "said once");
    let there = world(3, &[("shop/web", 1, &["10.0.0.1"])]);
    assert_eq!(stream.settle(&there), ["+shop/web"]);
    assert_eq!(stream.settle(&world(4, &[])), ["-10.0.0.1 -shop/web"]);
}

#[test]
fn a_name_that_moves_leaves_first() {
    let mut stream = opened();
    stream.send(ask(&["10.0.0.1"]));
    stream.settle(&world(1, &[("shop/b", 1, &["10.0.0.1"])]));
    let moved = world(2, &[("shop/a", 1, &["10.0.0.1"]), ("shop/b", 1, &[])]);
    assert_eq!(stream.settle(&moved), ["+shop/a -shop/b"]);

    let mut stream = opened();
    stream.send(ask(&["10.0.0.1", "shop/b"]));
    stream.settle(&world(1, &[("shop/b", 1, &["10.0.0.1"])]));
    assert_eq!(
        stream.settle(&moved),
        ["+shop/b +shop/a"],
        "the loser first"
    );
}

#[test]
fn one_response_on_its_way() {
    let mut stream = opened();
    stream.send(ask(&["shop/web"]));
    let first = stream.push(&world(1, &[("shop/web", 1, &[])])).unwrap();
    for n in 2..5 {
        let world = world(n.into(), &[("shop/web", n, &[])]);
        assert!(stream.push(&world).is_none(), "{n}");
    }
    stream.send(Request {
        answer: Some(Answer {
            nonce: "stale".to_owned(),
            error: None,
        }),
        ..Request::default()
    });
    let last = world(5, &[("shop/web", 5, &[])]);
    assert!(stream.push(&last).is_none(), "not its answer");
    assert_eq!(stream.send(answer(&first, None)), Answered::Acknowledged);
    assert_eq!(stream.0.applied().map(|a| a.generation), Some(1));
    assert_eq!(stream.settle(&last), ["+shop/web"]);
    assert_eq!(stream.0.applied().map(|a| a.generation), Some(5));
}

#[test]
fn rejections_are_kept_by_resource() {
    let two: [(&str, u32, &[&str]); 2] = [("shop/a", 1, &[]), ("shop/b", 1, &[])];
    let cut = "shop/a: no\n".to_owned() + &"x".repeat(8 * 1024);
    let cases: [(&str, Option<&str>, Option<&str>); 6] = [
        ("shop/a: no", Some("no"), None),
        ("shop/a: no\nshop/b: never", Some("no"), Some("never")),
        (
            "*: unknown type",
            Some("unknown type"),
            Some("unknown type"),
        ),
        ("what?", Some("what?"), Some("what?")),
        ("shop/zzz: no", Some("shop/zzz: no"), Some("shop/zzz: no")),
        (
            &cut,
            Some("no"),
            Some("not named, but the list of reasons was cut"),
        ),
    ];
    for (error, a, b) in cases {
        let mut stream = opened();
        stream.send(ask(&["shop/a", "shop/b"]));
        let push = stream.push(&world(1, &two)).unwrap();
        assert_eq!(stream.send(answer(&push, Some(error))), Answered::Rejected);
        for (name, reason) in [("shop/a", a), ("shop/b", b)] {
            let expected = reason.map_or("acknowledged", |reason| reason);
            let found = match stream.standing(name).unwrap() {
                HeldState::Rejected { reason } => reason.to_string(),
                HeldState::Acknowledged => "acknowledged".to_owned(),
                HeldState::Sent => "sent".to_owned(),
            };
            assert_eq!(found, expected, "{error} {name}");
        }
        assert!(stream.settle(&world(2, &two)).is_empty(), "not again");
        let better = world(3, &[("shop/a", 2, &[]), ("shop/b", 1, &[])]);
        assert_eq!(stream.settle(&better), ["+shop/a"]);
        assert_eq!(stream.standing("shop/a"), Some(HeldState::Acknowledged));
    }
}

/// However much is held: what is shown of a stream is not gone through with every answer.
#[test]
fn only_rejections_that_are_news_are_told() {
    let mut stream = opened();
    let names: Vec<String> = (0..1_000).map(|n| format!("shop/s{n}")).collect();
    let all = |serial: u64, first: u32| {
        let resources = names.iter().map(|name| match name.as_str() {
            "shop/s0" => resource(name, first, &[]),
            _ => resource(name, 1, &[]),
        });
        Compiled::of(serial, resources.collect())
    };
    let news = |stream: &mut Stream| {
        let rejections = stream.0.take_rejections().into_iter();
        let news = rejections.map(|news| {
            let reason = news.reason.map(|reason| reason.to_string());
            (news.name.to_string(), reason)
        });
        news.collect::<Vec<_>>()
    };
    let first = "shop/s0".to_owned();
    stream.send(ask(&names.iter().map(String::as_str).collect::<Vec<_>>()));
    let push = stream.push(&all(1, 1)).unwrap();
    stream.send(answer(&push, Some("shop/s0: no\nshop/s1: never")));
    let two = [
        (first.clone(), Some("no".to_owned())),
        ("shop/s1".to_owned(), Some("never".to_owned())),
    ];
    assert_eq!(news(&mut stream), two);
    // It is rejected again: once sent, it is not known whether it is.
    let push = stream.push(&all(2, 2)).unwrap();
    assert_eq!(news(&mut stream), [(first.clone(), None)]);
    stream.send(answer(&push, Some("shop/s0: still no")));
    assert_eq!(
        news(&mut stream),
        [(first.clone(), Some("still no".to_owned()))]
    );
    let push = stream.push(&all(3, 3)).unwrap();
    stream.send(answer(&push, None));
    assert_eq!(news(&mut stream), [(first, None)]);
    stream.send(drop(&["shop/s1", "shop/s2"]));
    assert_eq!(news(&mut stream), [("shop/s1".to_owned(), None)]);
    assert!(news(&mut stream).is_empty());
}

/// Rejections of a stream that goes on keep no more than their budget, and give it back.
#[test]
fn reasons_are_bounded_over_all_answers_of_a_stream() {
    let mut stream = opened();
    let names: Vec<String> = (0..200).map(|n| format!("shop/s{n}")).collect();
    let all = names.iter().map(|name| resource(name, 1, &[]));
    let all = Compiled::of(1, all.collect());
    for name in &names {
        stream.send(ask(&[name]));
        let push = stream.push(&all).unwrap();
        let text = format!("{name}: {}", "x".repeat(1_000));
        assert_eq!(stream.send(answer(&push, Some(&text))), Answered::Rejected);
        drop_all(stream.0.take_rejections());
    }
    let kept = stream.0.reasons.used();
    assert_eq!(kept, crate::discovery::reasons::REASONS_MAX_BYTES);
    for name in &names {
        stream.send(drop(&[name]));
    }
    drop_all(stream.0.take_rejections());
    assert_eq!(stream.0.reasons.used(), 0);
}

fn drop_all(rejections: Vec<Rejection>) {
    assert!(!rejections.is_empty());
}

#[test]
fn after_a_reconnect_only_the_difference() {
    let known = world(1, &[("shop/a", 1, &["x"]), ("shop/b", 1, &[])]);
    let version = |name: &str| known.find(KIND, name).unwrap().version.to_string();
    let held = ["shop/a", "shop/b"].map(|name| (name.to_owned(), version(name)));
    let gone = ("shop/gone".to_owned(), "1".to_owned());
    let mut stream = Stream(Session::default());
    stream.send(Request {
        initial_versions: held.into_iter().chain([gone]).collect(),
        ..ask(&["x", "shop/b", "shop/gone", "nobody"])
    });
    let changed = world(2, &[("shop/a", 1, &["x"]), ("shop/b", 2, &[])]);
    assert_eq!(stream.settle(&changed), ["+shop/b -nobody -shop/gone"]);
    assert_eq!(stream.standing("shop/a"), Some(HeldState::Acknowledged));
    stream.send(drop(&["x"]));
    assert!(stream.settle(&changed).is_empty());
}

#[test]
fn dropped_while_on_its_way() {
    let mut stream = opened();
    let world = world(1, &[("shop/a", 1, &[])]);
    stream.send(ask(&["shop/a"]));
    let push = stream.push(&world).unwrap();
    stream.send(drop(&["shop/a"]));
    stream.send(answer(&push, None));
    assert_eq!(stream.settle(&world), ["-shop/a"]);
}

#[test]
fn large_answers_are_split() {
    let mut stream = opened();
    let names: Vec<String> = (0..5).map(|n| format!("shop/s{n}")).collect();
    let big = "x".repeat(1_500_000);
    let resources = names.iter().map(|name| {
        let (mut resource, aliases) = resource(name, 1, &[]);
        if let Resource::Workload(workload) = &mut resource {
            workload.instance = big.as_str().into();
        }
        (resource, aliases)
    });
    let world = Compiled::of(1, resources.collect());
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    stream.send(ask(&names));
    let first = stream.push(&world).unwrap();
    assert_eq!(first.resources.len(), 2);
    stream.send(answer(&first, None));
    assert_eq!(stream.0.applied(), None, "there is more");
    assert_eq!(stream.settle(&world).len(), 2);
    assert_eq!(stream.0.applied().map(|a| a.generation), Some(1));
}

#[test]
fn asking_is_bounded() {
    let mut session = Session::default();
    let long = "x".repeat(513);
    let error = session.handle_request(KIND, ask(&[&long])).unwrap_err();
    assert_eq!(error, SessionError::NameTooLong { found: 513 });
    let names = (0..20_001).map(|n| n.to_string());
    let request = Request {
        subscribe: names.collect(),
        ..Request::default()
    };
    let error = session.handle_request(KIND, request).unwrap_err();
    assert!(matches!(error, SessionError::TooManyNames { .. }));
}

#[test]
fn what_is_held_from_before_is_bounded_and_never_cut() {
    let open = |versions: usize| {
        let versions = (0..versions).map(|n| (n.to_string(), "1".to_owned()));
        let request = Request {
            initial_versions: versions.collect(),
            ..Request::default()
        };
        let mut stream = Stream(Session::default());
        let opened = stream.0.handle_request(KIND, request);
        opened.map(|_| stream)
    };
    let error = open(VERSIONS_MAX + 1).err();
    let (kind, found) = (KIND, VERSIONS_MAX + 1);
    assert_eq!(error, Some(SessionError::TooManyVersions { kind, found }));
    let mut stream = open(VERSIONS_MAX).unwrap();
    let removed = stream.push(&world(1, &[])).unwrap().removed;
    assert_eq!(removed.len(), VERSIONS_MAX, "nobody asked for any of it");
}

/// A sidecar as ours is, at the far end of two queues.
#[derive(Debug, Default)]
struct Sidecar {
    held: BTreeMap<String, (String, Vec<String>)>,
    subscribed: BTreeSet<String>,
    absent: BTreeSet<String>,
    requests: VecDeque<Request>,
    responses: VecDeque<Push>,
}

impl Sidecar {
    fn open(&mut self) {
        self.requests.clear();
        self.responses.clear();
        let held = self.held.iter();
        self.requests.push_back(Request {
            subscribe: self.subscribed.iter().cloned().collect(),
            initial_versions: held.map(|(n, (v, _))| (n.clone(), v.clone())).collect(),
            ..Request::default()
        });
    }

    fn ask(&mut self, name: String) {
        if self.subscribed.insert(name.clone()) {
            self.requests.push_back(ask(&[&name]));
        }
    }

    fn release(&mut self, name: &str) {
        let mut names = vec![name.to_owned()];
        if let Some((_, aliases)) = self.held.remove(name) {
            names.extend(aliases);
        }
        names.retain(|name| {
            self.absent.remove(name);
            self.subscribed.remove(name)
        });
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.requests.push_back(drop(&names));
    }

    fn receive(&mut self) {
        let Some(push) = self.responses.pop_front() else {
            return;
        };
        for name in &push.removed {
            self.held.remove(name);
            if self.subscribed.contains(name) {
                self.absent.insert(name.clone());
            }
        }
        for resource in &push.resources {
            self.absent.remove(&*resource.name);
            for alias in resource.aliases.iter() {
                self.absent.remove(&**alias);
            }
            let aliases = resource.aliases.iter().map(ToString::to_string);
            let content = (resource.version.to_string(), aliases.collect());
            self.held.insert(resource.name.to_string(), content);
        }
        self.requests.push_back(answer(&push, None));
    }

    fn resolve(&self, name: &str) -> Vec<(String, String)> {
        let goes_by = |(n, (_, aliases)): &(&String, &(String, Vec<String>))| {
            *n == name || aliases.iter().any(|alias| alias == name)
        };
        let found = self.held.iter().filter(goes_by);
        found
            .map(|(n, (version, _))| (n.clone(), version.clone()))
            .collect()
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Which workloads exist, with which content; every alias points at one of them.
    World(Vec<Option<u32>>, Vec<usize>),
    Ask(usize),
    Release(usize),
    ToServer,
    ToSidecar,
    Reconnect,
}

const NAMES: [&str; 4] = ["shop/a", "shop/b", "shop/c", "shop/d"];
const ALIASES: [&str; 4] = ["w", "x", "y", "z"];

fn step() -> impl Strategy<Value = Step> {
    let contents = prop::collection::vec(prop::option::of(0u32..3), 4);
    let owners = prop::collection::vec(0usize..5, 4);
    prop_oneof![
        2 => (contents, owners).prop_map(|(c, o)| Step::World(c, o)),
        3 => (0usize..8).prop_map(Step::Ask),
        1 => (0usize..4).prop_map(Step::Release),
        5 => Just(Step::ToServer),
        5 => Just(Step::ToSidecar),
        1 => Just(Step::Reconnect),
    ]
}

fn make_world(serial: u64, contents: &[Option<u32>], owners: &[usize]) -> Compiled {
    let there = contents
        .iter()
        .enumerate()
        .filter_map(|(i, n)| Some((i, (*n)?)));
    let resources = there.map(|(index, n)| {
        let own = ALIASES
            .iter()
            .zip(owners)
            .filter(|(_, owner)| **owner == index);
        let own: Vec<&str> = own.map(|(alias, _)| *alias).collect();
        resource(NAMES[index], n, &own)
    });
    Compiled::of(serial, resources.collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever happens in whatever order: once everything has been delivered, the sidecar knows
    /// of every name it asked for what the world says of it, and holds nothing else.
    #[test]
    fn the_sidecar_comes_to_know_the_world(steps in prop::collection::vec(step(), 1..80)) {
        let mut serial = 1;
        let mut world = make_world(serial, &[Some(0); 4], &[0, 1, 2, 3]);
        let mut session = Session::default();
        let mut sidecar = Sidecar::default();
        sidecar.open();
        let drain = (0..60).flat_map(|_| [Step::ToServer, Step::ToSidecar]);
        for step in steps.into_iter().chain(drain) {
            match step {
                Step::World(contents, owners) => {
                    serial += 1;
                    let before = std::mem::replace(&mut world, make_world(serial, &contents, &owners));
                    // Exactly the names under which something else is found.
                    for name in NAMES.iter().chain(&ALIASES) {
                        let version = |world: &Compiled| {
                            let found = world.find(KIND, name);
                            found.map(|found| (Arc::clone(&found.name), Arc::clone(&found.version)))
                        };
                        if version(&before) != version(&world) {
                            session.mark(KIND, (*name).into());
                        }
                    }
                }
                Step::Ask(n) => sidecar.ask(NAMES.iter().chain(&ALIASES).nth(n).unwrap().to_string()),
                Step::Release(n) => sidecar.release(NAMES[n]),
                Step::ToServer => {
                    if let Some(request) = sidecar.requests.pop_front() {
                        session.handle_request(KIND, request).unwrap();
                    }
                }
                Step::ToSidecar => sidecar.receive(),
                Step::Reconnect => {
                    session = Session::default();
                    sidecar.open();
                }
            }
            while let Some(push) = session.poll_push(&world) {
                sidecar.responses.push_back(push);
                prop_assert_eq!(sidecar.responses.len(), 1, "one on its way");
            }
        }
        prop_assert!(sidecar.requests.is_empty() && sidecar.responses.is_empty());
        for name in &sidecar.subscribed {
            let expected: Vec<_> = world.find(KIND, name).into_iter()
                .map(|found| (found.name.to_string(), found.version.to_string())).collect();
            prop_assert_eq!(sidecar.resolve(name), expected.clone(), "{}", name);
            prop_assert_eq!(sidecar.absent.contains(name), expected.is_empty(), "{}", name);
        }
        for (name, (_, aliases)) in &sidecar.held {
            let mut names = aliases.iter().chain([name]);
            prop_assert!(names.any(|n| sidecar.subscribed.contains(n)), "stale {}", name);
        }
        prop_assert_eq!(session.applied().map(|a| a.generation), Some(serial));
    }
}
