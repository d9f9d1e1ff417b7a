//! Documents: what is accepted is accepted again, and the same, as it is stored and shown, in JSON and in
//! YAML. What is compiled from it is accepted by sidecars, is the same in whatever order the documents
//! come, and nothing of it stays when they go.

use std::collections::{BTreeMap, BTreeSet};

use weft_control_plane::compile::{Compiled, Snapshot};
use weft_control_plane::model::{Document, Placed, Problem, read};
use weft_control_plane::world::addresses::VirtualAddresses;
use weft_control_plane::world::facts::Stated;
use weft_control_plane::world::{Delta, World};
use weft_core::model::{MeshConfig, TrustBundle, UnknownDestinations};
use weft_core::name::TrustDomain;
use weft_proto::resource::{Kind, Resource};

/// Larger inputs take longer than they are worth here.
const TEXT_MAX: usize = 32 * 1024;

fn world() -> World {
    let trust_domain: Result<TrustDomain, _> = "weft.test".parse();
    let trust_domain = trust_domain.unwrap_or_else(|error| panic!("{error}"));
    let settings = MeshConfig {
        trust_domain: trust_domain.clone(),
        virtual_ranges: Vec::new(),
        workload_ranges: Vec::new(),
        unknown_destinations: UnknownDestinations::default(),
        external_hosts: Vec::new(),
        external_addresses: Vec::new(),
    };
    let bundle = TrustBundle {
        trust_domain,
        roots: vec![vec![1]],
        revoked_instances: BTreeSet::new(),
    };
    World::new(settings, bundle, VirtualAddresses::default())
}

/// Name, version and other names of every resource, by kind.
fn resources(compiled: &Compiled) -> BTreeMap<(Kind, String), (String, Vec<String>)> {
    let all = Kind::ALL.into_iter().flat_map(|kind| {
        let of_kind = compiled.of_kind(kind);
        of_kind.map(move |found| {
            let aliases = found.aliases.iter().map(ToString::to_string).collect();
            let (name, version) = (found.name.to_string(), found.version.to_string());
            ((kind, name), (version, aliases))
        })
    });
    all.collect()
}

fn check_problems(problems: &[Problem]) {
    assert!(!problems.is_empty());
    for problem in problems {
        assert!(
            !problem.path.is_empty() && !problem.allowed.is_empty(),
            "{problem:?}"
        );
        assert!(problem.to_string().len() < 16 * 1024, "{problem}");
    }
}

/// A document as it is shown is read as the same.
fn check_shown(placed: &Placed) {
    let value = placed.to_value();
    let json = value.to_string();
    let yaml = serde_saphyr::to_string(&value).unwrap_or_else(|error| panic!("{error}"));
    for text in [&json, &yaml] {
        let again = read("-", text);
        let again = again.unwrap_or_else(|problems| panic!("{text} is refused: {problems:?}"));
        let [again] = &again[..] else {
            panic!("{text} is {} documents", again.len());
        };
        assert_eq!(again.value, placed.value, "{text}");
        assert_eq!(again.labels, placed.labels, "{text}");
        assert_eq!(again.to_value(), value);
    }
    let stored = Document::from_value(placed.value.to_value());
    let stored = stored.unwrap_or_else(|problems| panic!("{json} is not stored: {problems:?}"));
    assert_eq!(stored, placed.value);
}

fn delta(number: usize, placed: &Placed) -> Delta {
    Delta::Document(Box::new(Stated {
        created: number as i64,
        generation: 1,
        document: placed.value.clone(),
    }))
}

/// What sidecars are told, they accept.
fn check_encoded(compiled: &Compiled) {
    for kind in Kind::ALL {
        for found in compiled.of_kind(kind) {
            let encoded = found.resource.encode();
            let decoded = Resource::decode(&encoded);
            let decoded = decoded.unwrap_or_else(|rejection| {
                panic!(
                    "{kind:?} {} is refused by sidecars: {rejection}",
                    found.name
                )
            });
            assert_eq!(decoded.encode(), encoded, "{kind:?} {}", found.name);
            assert_eq!(decoded.name(), *found.name);
        }
    }
}

fn check_compiled(documents: &[Placed]) {
    let deltas = || {
        documents
            .iter()
            .enumerate()
            .map(|(n, placed)| delta(n, placed))
    };
    let mut together = Snapshot::new(world());
    let nothing = resources(&together.compiled);
    together.apply(deltas(), 0);
    check_encoded(&together.compiled);
    for placed in documents {
        for dangling in together.dangling(&placed.value) {
            assert!(
                !dangling.path.is_empty() && !dangling.allowed.is_empty(),
                "{dangling:?}"
            );
        }
    }
    let mut one_by_one = Snapshot::new(world());
    for delta in deltas() {
        one_by_one.apply([delta], 0);
    }
    let expected = resources(&together.compiled);
    assert_eq!(resources(&one_by_one.compiled), expected);
    // Virtual addresses are given in the order in which names come, so that only what has none is the
    // same in another order. Putting everything again changes nothing.
    let all: Vec<Delta> = deltas().collect();
    let (changes, _) = one_by_one.apply(all.into_iter().rev(), 0);
    assert_eq!(changes.changed, 0);
    let keys = documents.iter().map(|placed| placed.value.key());
    one_by_one.apply(keys.map(Delta::DocumentGone), 0);
    assert_eq!(resources(&one_by_one.compiled), nothing);
}

/// Runs the target.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if text.len() > TEXT_MAX {
        return;
    }
    let documents = match read("-", text) {
        Ok(documents) => documents,
        Err(problems) => return check_problems(&problems),
    };
    for placed in &documents {
        check_shown(placed);
    }
    check_compiled(&documents);
}
