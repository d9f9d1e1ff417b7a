//! Continuous load that counts every failure (`tests/programs/load.py`), held from the test.

use std::path::PathBuf;
use std::time::Duration;

use super::{Finished, Program, Running, scaled, script};

/// What the load has seen so far.
#[derive(Debug, Default, serde::Deserialize)]
pub(crate) struct Totals {
    /// Requests that have ended.
    pub(crate) requests: u64,
    /// Those that failed.
    pub(crate) failures: u64,
    /// The first few failures.
    pub(crate) errors: Vec<String>,
}

/// A running load.
#[derive(Debug)]
pub(crate) struct Load {
    state: PathBuf,
    running: Running,
}

impl Load {
    /// The program of a load of `kind` (`http`, `grpc`) on `target`; `state` is a directory of its own.
    pub(crate) fn program(
        kind: &str,
        target: &str,
        state: &std::path::Path,
        flags: &[&str],
    ) -> Program {
        script("load.py")
            .args([kind, target])
            .arg(state)
            .args(flags.iter().copied())
    }

    /// Takes over a load that has just been started, and waits until its first requests went well.
    pub(crate) fn watch(running: Running, state: PathBuf) -> Self {
        let mut load = Self { state, running };
        let state = load.state.clone();
        load.running
            .wait_until("first requests", Duration::from_secs(60), |_| {
                totals(&state).requests > 20
            });
        assert_eq!(
            load.totals().failures,
            0,
            "before anything was disturbed: {:?}",
            load.totals().errors
        );
        load
    }

    /// What it has seen so far.
    pub(crate) fn totals(&self) -> Totals {
        totals(&self.state)
    }

    /// Seconds since its start and milliseconds taken, of every request so far.
    pub(crate) fn latencies(&self) -> Vec<(f64, f64)> {
        let text = std::fs::read_to_string(self.state.join("latencies")).unwrap_or_default();
        text.lines()
            .filter_map(|line| {
                let (when, took) = line.split_once(' ')?;
                Some((when.parse().ok()?, took.parse().ok()?))
            })
            .collect()
    }

    /// Ends it and demands that nothing failed.
    pub(crate) fn stop_without_failure(self) -> Totals {
        std::fs::write(self.state.join("stop"), "").expect("write the stop file");
        let finished: Finished = self
            .running
            .finish(scaled(Duration::from_secs(60), Duration::from_secs(90)));
        let line = finished.stdout.lines().last().unwrap_or_default();
        let totals: Totals =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}\n{finished}"));
        let Totals {
            requests,
            failures,
            errors,
        } = &totals;
        assert_eq!(
            *failures, 0,
            "of {requests} requests {failures} failed: {errors:#?}"
        );
        totals
    }
}

fn totals(state: &std::path::Path) -> Totals {
    let text = std::fs::read_to_string(state.join("status.json")).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}
