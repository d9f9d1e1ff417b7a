//! Limits that follow how long answers take, as a scrape sees them.

use std::fmt;

use weft_core::adaptive::{Priority, View};

use super::encode::{Labels, Out};
use super::{Direction, Inner};

/// One limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConcurrencySample {
    /// Inbound: on requests to the application; outbound: on its requests to a service.
    pub direction: Direction,
    /// Whose requests: `NAMESPACE/NAME` of the service, inbound of the workload.
    pub service: String,
    /// The service's port, inbound the application's.
    pub port: String,
    /// The limit now.
    pub view: View,
}

/// Asks every limit how it stands; called at each scrape.
pub type ConcurrencySource = Box<dyn Fn() -> Vec<ConcurrencySample> + Send + Sync>;

pub(super) fn encode(out: &mut Out<'_>, inner: &Inner) -> fmt::Result {
    let Some(source) = inner.concurrency.get() else {
        return Ok(());
    };
    let mut samples = source();
    samples.truncate(inner.series_max);
    let gauge = |value: fn(&View) -> f64| {
        let samples = samples.iter();
        samples.map(move |sample| (labels(sample), value(&sample.view)))
    };
    out.gauge(
        "weft_concurrency_limit",
        "Requests at a time that are let through",
        gauge(|view| view.limit.into()).collect(),
    )?;
    out.gauge(
        "weft_concurrency_in_flight",
        "Requests within the limit whose answer has not begun",
        gauge(|view| view.in_flight.into()).collect(),
    )?;
    let normal = |view: &View| view.normal.map_or(0.0, |time| time.as_secs_f64());
    out.gauge(
        "weft_concurrency_normal_latency_seconds",
        "What an answer normally takes to begin; 0 before the first",
        gauge(normal).collect(),
    )?;
    let refused = samples.iter().flat_map(|sample| {
        Priority::ALL.map(|priority| {
            let mut labels = labels(sample);
            labels.push(("priority", priority.as_str()));
            (labels, sample.view.refused[priority as usize])
        })
    });
    out.counter(
        "weft_concurrency_refused",
        "Requests beyond the limit",
        refused.collect(),
    )
}

fn labels(sample: &ConcurrencySample) -> Labels<'_> {
    vec![
        ("direction", sample.direction.as_str()),
        ("service", &*sample.service),
        ("port", &*sample.port),
    ]
}
