//! What the sidecars of the demo say: counters, spans, and what their breakers did.

use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, UnixStream};

use super::NAMESPACE;
use super::parts::{INSTANCES, socket};

/// The caller whose breakers are watched.
const CALLER: &str = "orders-1";
/// Sidecars of callers only, which serve nothing.
const LOAD: &str = "load";

/// What the sidecars have counted since they started.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    /// Requests that arrived over mutual TLS, each once, at the server's side.
    pub(super) mtls: u64,
    /// Requests that arrived in plaintext.
    pub(super) plaintext: u64,
    /// Spans that a collector has taken.
    pub(super) spans: u64,
    /// Requests that each instance of stock was sent, in the order of [`INSTANCES`].
    pub(super) stock: Vec<(&'static str, u64)>,
}

impl Counts {
    /// Requests that the bad instance was sent.
    pub(super) fn bad(&self) -> u64 {
        let bad = INSTANCES.iter().find(|instance| instance.bad);
        let is_bad = |(name, _): &&(&str, u64)| bad.is_some_and(|bad| bad.workload == *name);
        self.stock
            .iter()
            .find(is_bad)
            .map_or(0, |(_, count)| *count)
    }
}

/// Asks all sidecars for what they have counted; one that does not answer counts nothing.
pub(super) async fn counts(dir: &Path) -> Counts {
    let mut counts = Counts::default();
    for instance in &INSTANCES {
        let workload = instance.workload;
        let text = fetch(&socket(dir, workload), "/metrics").await;
        let text = text.unwrap_or_default();
        let inbound = |transport: &str| {
            let labels = ["direction=\"inbound\"", transport];
            sum(&text, "weft_transport_requests_total", &labels)
        };
        let mtls = inbound("transport=\"mtls\"");
        counts.mtls += mtls;
        counts.plaintext += inbound("transport=\"plaintext\"");
        counts.spans += spans(&text);
        if instance.service == "stock" {
            counts.stock.push((workload, mtls));
        }
    }
    let load = fetch(&socket(dir, LOAD), "/metrics").await;
    counts.spans += spans(&load.unwrap_or_default());
    counts
}

fn spans(metrics: &str) -> u64 {
    sum(metrics, "weft_spans_total", &["result=\"exported\""])
}

/// The sum of the samples of a metric that have all these labels.
fn sum(metrics: &str, name: &str, labels: &[&str]) -> u64 {
    let rows = metrics.lines().filter(|line| {
        let named = line.strip_prefix(name);
        named.is_some_and(|rest| rest.starts_with('{'))
            && labels.iter().all(|label| line.contains(label))
    });
    let values = rows.filter_map(|row| row.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum::<f64>() as u64
}

/// An endpoint of stock, as its caller's sidecar sees it.
#[derive(Debug, Clone, Deserialize)]
struct EndpointRow {
    workload: String,
    #[serde(default)]
    breaker: Option<String>,
    #[serde(default)]
    changes: Vec<ChangeRow>,
}

#[derive(Debug, Clone, Deserialize)]
struct ChangeRow {
    at: i64,
    from: String,
    to: String,
    cause: Option<String>,
}

/// A breaker that changed its state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Transition {
    /// When, in milliseconds since the Unix epoch.
    #[serde(rename = "at_ms")]
    pub(super) at: i64,
    /// In which workload's sidecar.
    pub(super) caller: String,
    /// Which workload's endpoint it is for.
    pub(super) endpoint: String,
    /// The state before.
    pub(super) from: String,
    /// The state after.
    pub(super) to: String,
    /// Why it opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cause: Option<String>,
}

/// What the caller's breakers are and did.
#[derive(Debug, Default)]
pub(super) struct Breakers {
    /// The state of each endpoint's breaker now.
    pub(super) states: Vec<(String, String)>,
    /// Every change since the demo began, oldest first.
    pub(super) transitions: Vec<Transition>,
}

impl Breakers {
    /// Asks the caller's sidecar; what it does not answer stays as it was. To be asked more often
    /// than a breaker can change 16 times: so many changes a sidecar remembers.
    pub(super) async fn update(&mut self, dir: &Path) {
        let Ok(text) = fetch(&socket(dir, CALLER), "/endpoints").await else {
            return;
        };
        let Ok(rows) = serde_json::from_str::<Vec<EndpointRow>>(&text) else {
            return;
        };
        self.handle_rows(rows);
    }

    fn handle_rows(&mut self, rows: Vec<EndpointRow>) {
        self.states.clear();
        for row in rows {
            let state = row.breaker.unwrap_or_default();
            for change in row.changes {
                let transition = Transition {
                    at: change.at,
                    caller: format!("{NAMESPACE}/{CALLER}"),
                    endpoint: row.workload.clone(),
                    from: change.from,
                    to: change.to,
                    cause: change.cause,
                };
                if !self.transitions.iter().any(|old| is_same(old, &transition)) {
                    self.transitions.push(transition);
                }
            }
            self.states.push((row.workload, state));
        }
        self.transitions.sort();
    }
}

/// Times are told from two clocks: the same change is a millisecond or two apart.
fn is_same(a: &Transition, b: &Transition) -> bool {
    let named = |one: &Transition| (one.endpoint.clone(), one.from.clone(), one.to.clone());
    a.at.abs_diff(b.at) <= 5 && named(a) == named(b)
}

/// GET over a sidecar's admin socket.
async fn fetch(socket: &Path, path: &str) -> Result<String, Box<dyn std::error::Error>> {
    get(UnixStream::connect(socket).await?, "weft", path).await
}

/// GET over TCP from `HOST:PORT`.
pub(super) async fn fetch_tcp(
    host: &str,
    path: &str,
) -> Result<String, Box<dyn std::error::Error>> {
    get(TcpStream::connect(host).await?, host, path).await
}

async fn get<IO>(io: IO, host: &str, path: &str) -> Result<String, Box<dyn std::error::Error>>
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    tokio::spawn(connection);
    let request = Request::get(path)
        .header("host", host)
        .body(Empty::<Bytes>::new())?;
    let body = sender.send_request(request).await?.into_body();
    let bytes = body.collect().await?.to_bytes();
    Ok(String::from_utf8(bytes.to_vec())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_by_label() {
        let text = "weft_spans_total{result=\"exported\"} 5\n\
                    weft_spans_total{result=\"dropped\"} 7\n\
                    weft_spans_total_created{result=\"exported\"} 9\n";
        assert_eq!(spans(text), 5);
    }

    #[test]
    fn a_change_is_noted_once() {
        let rows = |at: i64| {
            let text = format!(
                r#"[{{"workload": "shop/stock-2", "breaker": "open", "changes": [
                    {{"at": {at}, "from": "closed", "to": "open", "cause": "5 failures in a row"}},
                    {{"at": {}, "from": "open", "to": "half-open", "cause": null}}]}}]"#,
                at + 1000
            );
            serde_json::from_str::<Vec<EndpointRow>>(&text).unwrap()
        };
        let mut breakers = Breakers::default();
        breakers.handle_rows(rows(70_000));
        breakers.handle_rows(rows(70_001));
        let seen: Vec<_> = breakers.transitions.iter().map(|t| t.to.as_str()).collect();
        assert_eq!(seen, ["open", "half-open"]);
        assert_eq!(
            breakers.states,
            [("shop/stock-2".to_owned(), "open".to_owned())]
        );
        breakers.handle_rows(rows(80_000));
        assert_eq!(breakers.transitions.len(), 4);
    }
}
