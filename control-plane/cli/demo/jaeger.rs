//! Finds a trace in Jaeger that is worth opening.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::watch::fetch_tcp;

/// The service whose sidecar has the breaker.
const SERVICE: &str = "orders";
/// Traces that are chosen among.
const TRACES_MAX: u32 = 20;
/// What is asked for, the best first: tags as Jaeger's API takes them. It looks for them in the
/// attributes of spans and of their events.
const WANTED: [&str; 3] = [r#"{"weft.breaker.to":"open"}"#, r#"{"error":"true"}"#, "{}"];

#[derive(Debug, Deserialize)]
struct Traces {
    data: Option<Vec<Trace>>,
}

#[derive(Debug, Deserialize)]
struct Trace {
    #[serde(rename = "traceID")]
    trace_id: String,
    #[serde(default)]
    spans: Vec<IgnoredAny>,
}

/// The address of a trace in Jaeger's interface at `ui`, `http://HOST:PORT`, that began after
/// `since`: one in which a breaker opened, else one with a failed attempt, else any; of those the
/// one with the most spans. `Err` says why there is none.
pub(super) async fn find(ui: &str, since: SystemTime) -> Result<String, String> {
    let ui = ui.trim_end_matches('/');
    let host = ui.strip_prefix("http://");
    let host = host.ok_or_else(|| format!("{ui}: allowed is http://HOST:PORT"))?;
    let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = since.as_micros();
    for tags in WANTED {
        let tags = weft_api::client::encode(tags);
        let path =
            format!("/api/traces?service={SERVICE}&tags={tags}&start={since}&limit={TRACES_MAX}");
        let text = fetch_tcp(host, &path).await;
        let text = text.map_err(|error| format!("{ui}: {error}"))?;
        if let Some(id) = longest(&text).map_err(|error| format!("{ui}{path}: {error}"))? {
            return Ok(format!("{ui}/trace/{id}"));
        }
    }
    Err(format!("{ui}: no trace of {SERVICE} yet"))
}

/// The trace with the most spans of an answer.
fn longest(answer: &str) -> Result<Option<String>, String> {
    let traces: Traces =
        serde_json::from_str(answer).map_err(|error| format!("not Jaeger's answer: {error}"))?;
    let traces = traces.data.unwrap_or_default().into_iter();
    let longest = traces.max_by_key(|trace| trace.spans.len());
    Ok(longest.map(|trace| trace.trace_id))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn the_longest_of_an_answer() {
        let answer = r#"{"data": [
            {"traceID": "a", "spans": [{}, {}], "processes": {}},
            {"traceID": "b", "spans": [{}, {}, {}]},
            {"traceID": "c", "spans": [{}]}
        ], "errors": null}"#;
        assert_eq!(longest(answer), Ok(Some("b".to_owned())));
        for none in [r#"{"data": null}"#, r#"{"data": []}"#] {
            assert_eq!(longest(none), Ok(None));
        }
        assert!(longest("<html>").is_err());
    }

    /// Answers as Jaeger does: with a trace where `tags` are asked for, else with none. Returns what
    /// was asked.
    async fn jaeger(listener: TcpListener, tags: &'static str) -> Vec<String> {
        let mut asked = Vec::new();
        for _ in WANTED {
            let Ok((mut stream, _)) = listener.accept().await else {
                break;
            };
            let mut request = [0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            let request = String::from_utf8_lossy(&request[..read]).into_owned();
            let line = request.lines().next().unwrap_or_default().to_owned();
            let found = line.contains(&weft_api::client::encode(tags));
            let body = match found {
                true => r#"{"data": [{"traceID": "abc", "spans": [{}]}]}"#,
                false => r#"{"data": []}"#,
            };
            let length = body.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.unwrap();
            asked.push(line);
            if found {
                break;
            }
        }
        asked
    }

    #[tokio::test]
    async fn the_best_that_there_is_since_the_start() {
        let cases = [
            (r#"{"weft.breaker.to":"open"}"#, 1, Some("abc")),
            (r#"{"error":"true"}"#, 2, Some("abc")),
            ("{}", 3, Some("abc")),
            ("none of them", 3, None),
        ];
        for (tags, questions, expected) in cases {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let ui = format!("http://{}", listener.local_addr().unwrap());
            let since = UNIX_EPOCH + std::time::Duration::from_secs(7);
            let (found, asked) = tokio::join!(find(&ui, since), jaeger(listener, tags));
            let expected = expected.map(|id| format!("{ui}/trace/{id}"));
            assert_eq!(found.ok(), expected, "{tags}");
            assert_eq!(asked.len(), questions, "{asked:?}");
            assert!(asked.iter().all(|line| line.contains("start=7000000&")));
        }
    }
}
