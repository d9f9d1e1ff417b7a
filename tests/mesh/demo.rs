//! README command 1, short.

use std::time::Duration;

use serde_json::Value;

use crate::support::{Machine, Program, Scratch, root, weft_binary};

/// Keys that the summary promises.
const KEYS: &[&str] = &[
    "requests",
    "failures",
    "mtls_requests",
    "plaintext_requests",
    "p50_ms",
    "p99_ms",
    "spans_exported",
];

fn demo(scratch: &Scratch, user: Option<&str>) {
    let mut program = Program::new(weft_binary())
        .args(["demo", "--for", "8s", "--output", "json"])
        .env("HOME", scratch.path())
        .env("TMPDIR", scratch.dir("tmp"));
    if let Some(user) = user {
        program = program.user(user);
    }
    let finished = program
        .run("demo", &scratch.dir("logs"), Duration::from_secs(90))
        .success();
    let last = finished.stdout.lines().last().unwrap_or_default();
    let Ok(Value::Object(summary)) = serde_json::from_str::<Value>(last) else {
        panic!("no JSON object at the end:\n{finished}");
    };
    let number = |key: &str| {
        let value = summary.get(key).and_then(Value::as_f64);
        value.unwrap_or_else(|| panic!("no number {key:?} in {last}"))
    };
    let numbers: Vec<f64> = KEYS.iter().map(|key| number(key)).collect();
    assert!(numbers[0] > 100.0, "hardly any requests: {last}");
    assert_eq!(number("failures"), 0.0, "{last}");
    assert_eq!(number("plaintext_requests"), 0.0, "{last}");
    assert!(number("mtls_requests") >= number("requests"), "{last}");
    assert!(number("spans_exported") > 0.0, "{last}");
    breaker_opened_and_closed(&summary, last);
    eprintln!("{last}");
}

/// One instance turns bad and is well again: its breaker opens, tries again, and closes.
fn breaker_opened_and_closed(summary: &serde_json::Map<String, Value>, last: &str) {
    let list = |key: &str| summary.get(key).and_then(Value::as_array).cloned();
    let transitions = list("transitions").unwrap_or_default();
    let mut states = Vec::new();
    for transition in &transitions {
        let text = |key: &str| transition[key].as_str().unwrap_or_default();
        assert_eq!(text("caller"), "shop/orders-1", "{last}");
        if text("endpoint") == "shop/stock-2" {
            assert!(transition["at_ms"].as_u64() > Some(0), "{last}");
            states.push((text("from"), text("to")));
            assert_eq!(text("to") == "open", !text("cause").is_empty(), "{last}");
        }
    }
    assert_eq!(states.first(), Some(&("closed", "open")), "{last}");
    assert!(states.contains(&("open", "half-open")), "{last}");
    assert_eq!(states.last(), Some(&("half-open", "closed")), "{last}");
    let phases = list("phases").unwrap_or_default();
    let names: Vec<_> = phases.iter().map(|phase| phase["phase"].as_str()).collect();
    assert_eq!(
        names,
        [Some("well"), Some("bad"), Some("well-again")],
        "{last}"
    );
    for phase in &phases {
        assert_eq!(phase["failures"].as_u64(), Some(0), "{last}");
    }
    // In turns while it is well, and left out once it is not.
    let share = |index: usize| {
        let count = |key: &str| phases[index][key].as_f64().unwrap_or_default();
        count("bad_instance_requests") / count("stock_requests").max(1.0)
    };
    assert!(share(0) > 0.4 && share(1) < 0.3, "{last}");
}

#[test]
fn the_demo_runs_and_nothing_fails() {
    let _machine = Machine::alone();
    demo(&Scratch::new(), None);
}

/// Nothing but user namespaces is needed.
#[test]
fn the_demo_runs_without_root() {
    if !root() {
        return; // then the test above has done it
    }
    let _machine = Machine::alone();
    let scratch = Scratch::new();
    let owner = Some(12_345);
    std::os::unix::fs::chown(scratch.path(), owner, owner).expect("give the directory away");
    demo(&scratch, Some("12345"));
}
