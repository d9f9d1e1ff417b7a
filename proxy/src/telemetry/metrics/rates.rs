//! Limits on the rate of requests.

use std::fmt;

use weft_core::rate::{RuleName, WHOLE};

use super::Inner;
use super::encode::{Labels, Out};

/// One limit, as a scrape sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateSample {
    /// Which.
    pub name: RuleName,
    /// Requests that it was asked about and that went on.
    pub allowed: u64,
    /// Requests that it refused.
    pub refused: u64,
    /// Keys with a bucket of their own.
    pub keys: usize,
    /// The share of the limit that this sidecar may use, in parts of [`WHOLE`].
    pub share: u32,
}

/// Asks every limit; called at each scrape.
pub type RateSource = Box<dyn Fn() -> Vec<RateSample> + Send + Sync>;

pub(super) fn encode(out: &mut Out<'_>, inner: &Inner) -> fmt::Result {
    let Some(source) = inner.rates.get() else {
        return Ok(());
    };
    let mut samples = source();
    samples.truncate(inner.series_max);
    let named: Vec<(String, String, RateSample)> = samples
        .into_iter()
        .map(|sample| {
            let name = &sample.name;
            let policy = format!("{}/{}", name.namespace, name.policy);
            (policy, name.rule.to_string(), sample)
        })
        .collect();
    let (mut requests, mut keys, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for (policy, rule, sample) in &named {
        let labels: Labels<'_> = vec![("policy", policy), ("rule", rule)];
        for (result, count) in [("allowed", sample.allowed), ("refused", sample.refused)] {
            let mut labels = labels.clone();
            labels.push(("result", result));
            requests.push((labels, count));
        }
        keys.push((
            labels.clone(),
            i64::try_from(sample.keys).unwrap_or(i64::MAX),
        ));
        shares.push((labels, f64::from(sample.share) / f64::from(WHOLE)));
    }
    out.counter(
        "weft_rate_limit_requests",
        "Requests that a limit was asked about",
        requests,
    )?;
    out.gauge(
        "weft_rate_limit_keys",
        "Keys with a bucket of their own",
        keys,
    )?;
    out.gauge(
        "weft_rate_limit_share",
        "The share of the limit that this sidecar may use",
        shares,
    )
}
