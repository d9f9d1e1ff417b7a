//! What Jaeger and Prometheus say of the demos that have them.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Whom a call of the demos goes through.
pub(crate) const CALLS: [&str; 4] = ["load", "web", "orders", "stock"];

/// An answer of Jaeger's query API.
#[derive(Debug, Deserialize)]
struct Answer {
    data: Vec<Trace>,
}

#[derive(Debug, Deserialize)]
struct Trace {
    spans: Vec<Span>,
    processes: BTreeMap<String, Process>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    service_name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Span {
    #[serde(rename = "spanID")]
    id: String,
    #[serde(rename = "processID")]
    process: String,
    references: Vec<Reference>,
    tags: Vec<Tag>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    ref_type: String,
    #[serde(rename = "spanID")]
    span: String,
}

#[derive(Debug, Deserialize)]
struct Tag {
    key: String,
    value: serde_json::Value,
}

impl Trace {
    fn service(&self, span: &Span) -> &str {
        &self.processes[&span.process].service_name
    }

    /// A span and those above it, the lowest first; none where a parent is not in the trace.
    fn ancestry<'a>(&'a self, span: &'a Span) -> Option<Vec<&'a Span>> {
        let mut all = vec![span];
        while let Some(reference) = all[all.len() - 1].references.first() {
            assert_eq!(reference.ref_type, "CHILD_OF", "{self:?}");
            assert!(all.len() <= self.spans.len(), "a circle: {self:?}");
            all.push(self.spans.iter().find(|one| one.id == reference.span)?);
        }
        Some(all)
    }

    /// Service and kind of the spans from the first caller to the last server, where it is all there.
    fn call(&self) -> Option<Call> {
        let mut lowest = self.spans.iter();
        let lowest =
            lowest.find(|span| self.service(span) == "stock" && span.kind() == "server")?;
        let ancestry = self.ancestry(lowest)?;
        let spans = ancestry.into_iter().rev();
        Some(Call(
            spans
                .map(|span| (self.service(span).to_owned(), span.kind()))
                .collect(),
        ))
    }
}

impl Span {
    fn kind(&self) -> &'static str {
        let tag = self.tags.iter().find(|tag| tag.key == "span.kind");
        match tag.and_then(|tag| tag.value.as_str()) {
            Some("server") => "server",
            Some("client") => "client",
            Some(_) | None => "other",
        }
    }
}

/// A call of a demo: service and kind of its spans, each below the one before.
#[derive(Debug)]
pub(crate) struct Call(Vec<(String, &'static str)>);

impl Call {
    fn goes_through(&self, name: &str) -> bool {
        self.0.iter().any(|(service, _)| service == name)
    }

    fn kinds(&self, service: &str) -> Vec<&str> {
        let of = self.0.iter().filter(|(of, _)| of == service);
        of.map(|(_, kind)| *kind).collect()
    }

    /// Demands that what the application of each service asks for is a client's span below the server's.
    pub(crate) fn is_whole(&self) {
        let mut services: Vec<&str> = self.0.iter().map(|(of, _)| of.as_str()).collect();
        services.dedup();
        assert_eq!(services, CALLS, "{self:?}");
        for service in ["web", "orders"] {
            let kinds = self.kinds(service);
            assert_eq!(kinds.first(), Some(&"server"), "{self:?}");
            assert_eq!(kinds.last(), Some(&"client"), "{self:?}");
        }
        assert_eq!(self.kinds("load").last(), Some(&"client"), "{self:?}");
        assert_eq!(self.kinds("stock"), ["server"], "{self:?}");
    }
}

/// The first call with all services in an answer of Jaeger's query API, JSON: the first calls of a demo
/// may be older than a sidecar's knowledge of a service.
pub(crate) fn call(answer: &str) -> Option<Call> {
    let answer: Answer = serde_json::from_str(answer).ok()?;
    let has_all = |call: &Call| CALLS.iter().all(|name| call.goes_through(name));
    answer.data.iter().filter_map(Trace::call).find(has_all)
}

/// An answer of Prometheus' query API.
#[derive(Debug, Deserialize)]
struct Queried {
    data: Vector,
}

#[derive(Debug, Deserialize)]
struct Vector {
    result: Vec<Sample>,
}

/// A sample of an instant vector.
#[derive(Debug, Deserialize)]
pub(crate) struct Sample {
    /// Its labels.
    pub(crate) metric: BTreeMap<String, String>,
    /// The time, and the value as a text.
    value: (f64, String),
}

impl Sample {
    /// Its value.
    pub(crate) fn value(&self) -> f64 {
        self.value.1.parse().expect("a number")
    }
}

/// The instant vector of an answer of Prometheus' query API, JSON; empty where it is no answer.
pub(crate) fn samples(answer: &str) -> Vec<Sample> {
    serde_json::from_str::<Queried>(answer).map_or_else(|_| Vec::new(), |answer| answer.data.result)
}
