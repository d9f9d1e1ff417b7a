//! The application's metrics, which a sidecar in a pod tells beside its own: under strict mutual TLS
//! Prometheus could not read them from the application.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::Full;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;
use weft_core::exposition::{ACCEPT, Format, merge};
use weft_core::hold::Hold;

use crate::clock::now;
use crate::config::MetricsTarget;
use crate::local_application::{LocalApplication, Read};
use crate::telemetry::metrics::{Metrics, ScrapeResult};

/// Most bytes of the application's answer.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long the application may take: Prometheus itself waits for 10 s unless it is told otherwise.
const TIMEOUT: Duration = Duration::from_secs(8);
/// A merged answer holds for this long, for whoever asks: several scrapers do not add up, and others
/// who reach the port cannot load the application.
const ANSWER_HOLDS: Duration = Duration::from_secs(1);

/// The metrics of sidecar and application as one answer.
#[derive(Debug)]
pub struct MergedMetrics {
    metrics: Metrics,
    /// Whom to ask; `None` where no application is to be asked.
    target: Option<Arc<(LocalApplication, MetricsTarget)>>,
    /// The application is asked once at a time, however many ask here.
    last: Arc<Mutex<Hold<Bytes>>>,
}

impl MergedMetrics {
    /// Of this sidecar and the application's target.
    pub fn new(metrics: Metrics, target: Option<(LocalApplication, MetricsTarget)>) -> Self {
        let last = Arc::new(Mutex::new(Hold::new(ANSWER_HOLDS)));
        Self {
            metrics,
            target: target.map(Arc::new),
            last,
        }
    }

    /// The answer, with the media type [`weft_core::exposition::CONTENT_TYPE`]. The sidecar's own
    /// metrics are in it whatever the application does.
    pub async fn encode(&self) -> Bytes {
        let last = Arc::clone(&self.last).lock_owned().await;
        if let Some(answer) = last.get(now()) {
            return answer;
        }
        // Asked to the end, whoever goes away meanwhile: the answer holds for the next one.
        let asking = tokio::spawn(ask_and_keep(
            self.metrics.clone(),
            self.target.clone(),
            Arc::downgrade(&self.last),
            last,
        ));
        let own = || Bytes::from(merge(&self.metrics.encode(), None).text);
        asking.await.unwrap_or_else(|_panic| own())
    }
}

/// Asks the application, and leaves the answer where the next one finds it.
async fn ask_and_keep(
    metrics: Metrics,
    target: Option<Arc<(LocalApplication, MetricsTarget)>>,
    kept: Weak<Mutex<Hold<Bytes>>>,
    mut last: OwnedMutexGuard<Hold<Bytes>>,
) -> Bytes {
    let application = match &target {
        Some(target) => Some(ask(&metrics, &target.0, &target.1).await),
        None => None,
    };
    let own = metrics.encode();
    let merging = tokio::task::spawn_blocking(move || {
        let application = application.as_ref().and_then(|asked| asked.as_ref().ok());
        let application = application.map(|(format, body)| (*format, body.as_slice()));
        merge(&own, application)
    });
    let Ok(merged) = merging.await else {
        return Bytes::from(merge(&metrics.encode(), None).text);
    };
    metrics.application_scrapes().dropped(merged.dropped);
    let answer = Bytes::from(merged.text);
    last.put(now(), answer.clone());
    drop(last);
    // Its memory is given back when it does not hold any more.
    tokio::spawn(async move {
        tokio::time::sleep(ANSWER_HOLDS).await;
        if let Some(last) = kept.upgrade() {
            last.lock().await.expire(now());
        }
    });
    answer
}

async fn ask(
    metrics: &Metrics,
    application: &LocalApplication,
    target: &MetricsTarget,
) -> Result<(Format, Vec<u8>), ScrapeResult> {
    let asked = timeout(TIMEOUT, Box::pin(fetch(application, target))).await;
    let asked = asked.unwrap_or(Err(ScrapeResult::Timeout));
    let result = asked.as_ref().err().copied();
    let scrapes = metrics.application_scrapes();
    scrapes.record(result.unwrap_or(ScrapeResult::Success));
    asked
}

async fn fetch(
    application: &LocalApplication,
    target: &MetricsTarget,
) -> Result<(Format, Vec<u8>), ScrapeResult> {
    let unreachable = |error: &dyn std::fmt::Display| {
        tracing::debug!(%error, "the application's metrics cannot be read");
        ScrapeResult::Unreachable
    };
    let MetricsTarget { port, path, scheme } = target;
    let host = application.socket_address(*port).to_string();
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::ACCEPT, HeaderValue::from_static(ACCEPT))
        .header(header::ACCEPT_ENCODING, "identity")
        .header(header::USER_AGENT, "weft-proxy")
        .header(header::CONNECTION, "close")
        .body(Full::default())
        .map_err(|error| unreachable(&error))?;
    let answered = application.send(*port, *scheme, request).await;
    let mut answered = answered.map_err(|error| unreachable(&error))?;
    let response = &answered.response;
    if response.status() != StatusCode::OK {
        return Err(ScrapeResult::Status);
    }
    let content_type = response.headers().get(header::CONTENT_TYPE);
    let content_type = content_type.map(|value| value.to_str().unwrap_or_default());
    let encoded = response.headers().get(header::CONTENT_ENCODING);
    let format = Format::of(content_type).filter(|_format| encoded.is_none_or(|e| e == "identity"));
    let format = format.ok_or(ScrapeResult::Format)?;
    match answered.read(BODY_BYTES_MAX).await {
        Read::All(body) => Ok((format, body)),
        Read::Cut(_body) => Err(ScrapeResult::TooLarge),
        Read::Broken(_body, error) => Err(unreachable(&error)),
    }
}

#[cfg(test)]
mod tests;
