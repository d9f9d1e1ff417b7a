//! What a person sees of the demo, and the summary.

use std::io::IsTerminal;

use serde::Serialize;
use weft_api::client::ADDRESS_VARIABLE;

use super::DemoOutput;
use super::app::{LoadReport, Seen};
use super::phases::Phase;
use super::watch::{Breakers, Counts, Transition};

/// Transitions that the table shows: the last ones.
const TRANSITIONS_SHOWN: usize = 8;

/// What is printed at the end.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) requests: u64,
    pub(super) failures: u64,
    pub(super) mtls_requests: u64,
    pub(super) plaintext_requests: u64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) spans_exported: u64,
    pub(super) bad_instance_requests: u64,
    pub(super) seconds: f64,
    pub(super) phases: Vec<PhaseSummary>,
    pub(super) transitions: Vec<Transition>,
    /// The address of a trace worth opening; `Err` says why there is none.
    #[serde(serialize_with = "trace", skip_serializing_if = "Option::is_none")]
    pub(super) trace: Option<Result<String, String>>,
}

fn trace<S: serde::Serializer>(
    trace: &Option<Result<String, String>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let found = trace.as_ref().and_then(|trace| trace.as_ref().ok());
    found.serialize(serializer)
}

/// One phase, all its rounds together.
#[derive(Debug, Serialize)]
pub(super) struct PhaseSummary {
    phase: Phase,
    requests: u64,
    failures: u64,
    /// Of its worst second.
    p99_ms: f64,
    /// Requests that the bad instance was sent, of all that stock was.
    bad_instance_requests: u64,
    stock_requests: u64,
}

impl PhaseSummary {
    pub(super) fn new(phase: Phase) -> Self {
        Self {
            phase,
            requests: 0,
            failures: 0,
            p99_ms: 0.0,
            bad_instance_requests: 0,
            stock_requests: 0,
        }
    }

    /// Adds a second: what the load saw in it, and what the sidecars had counted before and after.
    pub(super) fn add(&mut self, second: &Seen, before: &Counts, after: &Counts) {
        self.requests += second.requests;
        self.failures += second.failures;
        self.p99_ms = self.p99_ms.max(second.p99_ms);
        self.bad_instance_requests += after.bad().saturating_sub(before.bad());
        let all: u64 = rates(before, after).map(|(_, requests)| requests).sum();
        self.stock_requests += all;
    }
}

/// Requests to each instance of stock between two looks.
fn rates<'a>(
    before: &'a Counts,
    after: &'a Counts,
) -> impl Iterator<Item = (&'static str, u64)> + 'a {
    after.stock.iter().map(|(workload, now)| {
        let then = before.stock.iter().find(|(name, _)| name == workload);
        let then = then.map_or(0, |(_, count)| *count);
        (*workload, now.saturating_sub(then))
    })
}

/// What the table shows.
pub(super) struct View<'a> {
    pub(super) phase: Phase,
    pub(super) report: &'a LoadReport,
    pub(super) breakers: &'a Breakers,
    /// The control plane's.
    pub(super) address: String,
}

/// Says what the demo does, before it begins.
#[expect(clippy::print_stdout, reason = "this is what was asked for")]
pub(super) fn begin(policy: &str) {
    println!("weft apply -f policy.yaml:\n\n{policy}");
}

/// Shows the last second.
#[expect(clippy::print_stdout, reason = "this is what was asked for")]
pub(super) fn table(view: &View<'_>, before: &Counts, now: &Counts) {
    let (total, second) = (&view.report.total, &view.report.second);
    if std::io::stdout().is_terminal() {
        print!("\x1b[2J\x1b[H");
    }
    println!("now: {}", view.phase.description());
    println!(
        "web.shop.mesh, last second: {} requests, {:.2} % successful, p50 {:.1} ms, p99 {:.1} ms",
        second.requests,
        second.success_percent(),
        second.p50_ms,
        second.p99_ms
    );
    println!(
        "since the start: {} requests, {} failed; mutual TLS {}, plaintext {}, spans {}",
        total.requests, total.failures, now.mtls, now.plaintext, now.spans
    );
    println!("stock, as orders sees it:");
    for (workload, requests) in rates(before, now) {
        let of_workload = |(name, _): &&(String, String)| name.ends_with(workload);
        let state = view.breakers.states.iter().find(of_workload);
        let state = state.map_or("unknown", |(_, state)| state);
        println!("  {workload}: {requests:>4} requests/s, breaker {state}");
    }
    let transitions = &view.breakers.transitions;
    let shown = transitions.len().saturating_sub(TRANSITIONS_SHOWN);
    for transition in &transitions[shown..] {
        println!("  {}", line(transition));
    }
    println!("try next, in another terminal:");
    println!("  export {ADDRESS_VARIABLE}={}", view.address);
    println!(
        "  weft breakers; weft proxies; weft run --name me --namespace shop -- curl -si http://web:8080/"
    );
    println!();
}

fn line(transition: &Transition) -> String {
    let Transition {
        at,
        caller,
        endpoint,
        from,
        to,
        cause,
    } = transition;
    let time = jiff::Timestamp::from_millisecond(*at).unwrap_or_default();
    let cause = cause.as_ref();
    let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{time:.3} {caller} to {endpoint}: {from} → {to}{cause}")
}

/// Prints the summary.
#[expect(clippy::print_stdout, reason = "this is what was asked for")]
pub(super) fn finish(summary: &Summary, output: DemoOutput) {
    if output == DemoOutput::Json {
        match serde_json::to_string(summary) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("weft demo: {error}"),
        }
    } else {
        println!(
            "{} requests in {:.0} s, {} failed at the caller; p50 {:.1} ms, p99 {:.1} ms",
            summary.requests, summary.seconds, summary.failures, summary.p50_ms, summary.p99_ms
        );
        println!(
            "{} requests over mutual TLS, {} in plaintext; {} spans exported",
            summary.mtls_requests, summary.plaintext_requests, summary.spans_exported
        );
        for phase in &summary.phases {
            println!(
                "{}: {} requests, {} failed, worst second's p99 {:.1} ms; stock-2 got {} of {}",
                phase.phase.description(),
                phase.requests,
                phase.failures,
                phase.p99_ms,
                phase.bad_instance_requests,
                phase.stock_requests
            );
        }
        for transition in &summary.transitions {
            println!("{}", line(transition));
        }
    }
    match (&summary.trace, output) {
        (Some(Ok(address)), DemoOutput::Table) => println!("a trace worth opening: {address}"),
        (Some(Err(reason)), _) => eprintln!("weft demo: no trace to open: {reason}"),
        (Some(Ok(_)) | None, _) => {}
    }
}
