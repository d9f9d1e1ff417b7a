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
        .args(["demo", "--for", "5s", "--output", "json"])
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
    eprintln!("{last}");
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
