//! Finds a trace in Jaeger that is worth opening.

use serde::Deserialize;

use super::watch::fetch_tcp;

/// Traces that are looked through.
const TRACES_MAX: u32 = 200;

#[derive(Debug, Deserialize)]
struct Traces {
    #[serde(default)]
    data: Vec<Trace>,
}

#[derive(Debug, Deserialize)]
struct Services {
    #[serde(default)]
    data: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Trace {
    #[serde(rename = "traceID")]
    trace_id: String,
    #[serde(default)]
    spans: Vec<Span>,
}

#[derive(Debug, Deserialize)]
struct Span {
    #[serde(default)]
    tags: Vec<Field>,
    #[serde(default)]
    logs: Vec<Log>,
}

#[derive(Debug, Deserialize)]
struct Log {
    #[serde(default)]
    fields: Vec<Field>,
}

#[derive(Debug, Deserialize)]
struct Field {
    key: String,
    #[serde(default)]
    value: serde_json::Value,
}

/// The address of a trace in Jaeger's interface at `ui`, `http://HOST:PORT`: one in which a breaker
/// changed, else one with a failed attempt, else the longest. `Err` says why there is none.
pub(super) async fn find(ui: &str) -> Result<String, String> {
    let ui = ui.trim_end_matches('/');
    let host = ui.strip_prefix("http://");
    let host = host.ok_or_else(|| format!("{ui}: allowed is http://HOST:PORT"))?;
    let failed = |error: Box<dyn std::error::Error>| format!("{ui}: {error}");
    let services = fetch_tcp(host, "/api/services").await.map_err(failed)?;
    let services: Services = serde_json::from_str(&services)
        .map_err(|error| format!("{ui}/api/services: not Jaeger's answer: {error}"))?;
    let mut best: Option<(u64, String)> = None;
    for service in services.data.unwrap_or_default() {
        if !service.contains("orders") {
            continue;
        }
        let service = weft_control_plane::client::encode(&service);
        let path = format!("/api/traces?service={service}&lookback=1h&limit={TRACES_MAX}");
        let text = fetch_tcp(host, &path).await.map_err(failed)?;
        let traces: Traces = serde_json::from_str(&text)
            .map_err(|error| format!("{ui}{path}: not Jaeger's answer: {error}"))?;
        let scored = traces
            .data
            .into_iter()
            .map(|trace| (score(&trace), trace.trace_id));
        best = best.into_iter().chain(scored).max();
    }
    let (_, id) = best.ok_or_else(|| format!("{ui}: no trace of orders yet"))?;
    Ok(format!("{ui}/trace/{id}"))
}

fn score(trace: &Trace) -> u64 {
    let breaker = |log: &Log| {
        let mut fields = log.fields.iter();
        fields.any(|field| field.key.starts_with("weft.breaker"))
    };
    let failed = |tag: &Field| tag.key == "error" && tag.value == true;
    let changed = trace.spans.iter().any(|span| span.logs.iter().any(breaker));
    let failure = trace.spans.iter().any(|span| span.tags.iter().any(failed));
    u64::from(changed) * 1_000_000 + u64::from(failure) * 10_000 + trace.spans.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_with_a_breaker_is_worth_most() {
        let traces: Traces = serde_json::from_str(
            r#"{"data": [
                {"traceID": "long", "spans": [{}, {}, {}]},
                {"traceID": "failed", "spans": [{"tags": [{"key": "error", "value": true}]}]},
                {"traceID": "opened", "spans": [{"logs": [{"fields": [
                    {"key": "event", "value": "weft.breaker"},
                    {"key": "weft.breaker.to", "value": "open"}]}]}]}
            ]}"#,
        )
        .unwrap();
        let mut order: Vec<_> = traces
            .data
            .iter()
            .map(|t| (score(t), &*t.trace_id))
            .collect();
        order.sort();
        let order: Vec<_> = order.into_iter().map(|(_, id)| id).collect();
        assert_eq!(order, ["long", "failed", "opened"]);
    }
}
