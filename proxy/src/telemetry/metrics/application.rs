//! What becomes of the application's own metrics, where the sidecar tells them beside its own.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::encode::Out;
use super::{Counter, Inner};

/// What asking the application for its metrics came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScrapeResult {
    /// They are there.
    Success,
    /// No connection, or no answer in HTTP.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// Another status than 200.
    Status,
    /// Another media type than that of metrics in text.
    Format,
    /// More bytes than are taken.
    TooLarge,
}

impl ScrapeResult {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Success,
        Self::Unreachable,
        Self::Timeout,
        Self::Status,
        Self::Format,
        Self::TooLarge,
    ];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Status => "status",
            Self::Format => "format",
            Self::TooLarge => "too-large",
        }
    }
}

/// Counters of [`ScrapeResult`]s; shown once there was one.
#[derive(Debug, Default)]
pub struct ApplicationScrapes {
    asked: AtomicBool,
    up: AtomicBool,
    results: [Counter; ScrapeResult::ALL.len()],
    dropped: Counter,
}

impl ApplicationScrapes {
    /// The application was asked.
    pub fn record(&self, result: ScrapeResult) {
        self.asked.store(true, Relaxed);
        self.up.store(result == ScrapeResult::Success, Relaxed);
        self.results[result as usize].inc();
    }

    /// Lines of its answer were left out.
    pub fn dropped(&self, lines: u64) {
        self.dropped.add(lines);
    }
}

pub(super) fn encode(out: &mut Out<'_>, inner: &Inner) -> fmt::Result {
    let scrapes = &inner.application_scrapes;
    if !scrapes.asked.load(Relaxed) {
        return Ok(());
    }
    out.gauge(
        "weft_application_metrics_up",
        "Whether the application's metrics could be read the last time",
        vec![(vec![], i64::from(scrapes.up.load(Relaxed)))],
    )?;
    let results = ScrapeResult::ALL.map(|result| {
        let labels = vec![("result", result.as_str())];
        (labels, scrapes.results[result as usize].get())
    });
    out.counter(
        "weft_application_scrapes",
        "Times that the application was asked for its metrics",
        results.into(),
    )?;
    out.counter(
        "weft_application_metrics_lines_dropped",
        "Lines of the application's metrics that were left out",
        vec![(vec![], scrapes.dropped.get())],
    )
}
