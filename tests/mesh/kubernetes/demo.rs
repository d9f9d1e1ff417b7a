//! The demo of `deploy/kubernetes/`, as it is but for the images' names.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Cluster;
use super::cluster::LIMIT;
use crate::support::{Machine, long, need, wait_for};

const DEMO: &str = include_str!("../../../deploy/kubernetes/demo.yaml");
/// Images of the demo, and those of the tests in their place.
const IMAGES: [(&str, &str); 2] = [
    ("localhost/weft:0.1.0", "localhost/weft:test"),
    (
        "docker.io/jaegertracing/jaeger:2.13.0",
        "localhost/jaeger:test",
    ),
];
/// What a call of the demo goes through.
const CHAIN: [&str; 4] = ["load", "web", "orders", "stock"];

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
    fn chain(&self) -> Option<Vec<(String, &'static str)>> {
        let mut lowest = self.spans.iter();
        let lowest =
            lowest.find(|span| self.service(span) == "stock" && span.kind() == "server")?;
        let ancestry = self.ancestry(lowest)?;
        let chain = ancestry.into_iter().rev();
        Some(
            chain
                .map(|span| (self.service(span).to_owned(), span.kind()))
                .collect(),
        )
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

/// A call of the demo is one trace in Jaeger, with the spans of all its services, each below the one
/// that made it.
#[test]
fn a_call_through_the_demo_is_one_trace_in_jaeger() {
    if !long() {
        return;
    }
    need!("root", "kubernetes", "buildah", "jaeger");
    let _machine = Machine::shared();
    let cluster = Cluster::meshed();
    let mut demo = DEMO.to_owned();
    for (image, ours) in IMAGES {
        assert!(demo.contains(image), "{image}");
        demo = demo.replace(image, ours);
    }
    let file = cluster.file("demo.yaml");
    std::fs::write(&file, demo).expect("write the demo");
    cluster.kubectl(&format!("apply -f {}", file.display()));
    for deployment in ["jaeger", "stock", "orders", "web", "load"] {
        let line = format!("-n weft-demo rollout status deployment/{deployment} --timeout=80s");
        let finished = cluster.try_kubectl(&line);
        assert!(
            finished.status.success(),
            "{finished}\n{}",
            cluster.try_kubectl("-n weft-demo get pods,events -o wide"),
        );
    }
    let jaeger = "/api/v1/namespaces/weft-demo/services/jaeger:query/proxy/api";
    let mut last = String::new();
    let chain = wait_for("a trace with all services", LIMIT, || {
        let asked = format!("get --raw {jaeger}/traces?service=stock&limit=20");
        last = cluster.try_kubectl(&asked).stdout;
        let answer: Answer = serde_json::from_str(&last).ok()?;
        // The first calls may be older than a sidecar's knowledge of a service.
        let has_all = |chain: &Vec<(String, &str)>| {
            let has = |name: &&str| chain.iter().any(|(service, _)| service == name);
            CHAIN.iter().all(has)
        };
        answer.data.iter().filter_map(Trace::chain).find(has_all)
    });
    // What the application of each asks for is a client's span below the server's.
    let kinds = |service: &str| -> Vec<&str> {
        let of = chain.iter().filter(|(of, _)| of == service);
        of.map(|(_, kind)| *kind).collect()
    };
    let mut services: Vec<&str> = chain.iter().map(|(service, _)| service.as_str()).collect();
    services.dedup();
    assert_eq!(services, CHAIN, "{chain:?}");
    for service in ["web", "orders"] {
        let kinds = kinds(service);
        assert_eq!(kinds.first(), Some(&"server"), "{chain:?}");
        assert_eq!(kinds.last(), Some(&"client"), "{chain:?}");
    }
    assert_eq!(kinds("load").last(), Some(&"client"), "{chain:?}");
    assert_eq!(kinds("stock"), ["server"], "{chain:?}");
    // Services have their own names there, and not those of pods.
    let asked = format!("get --raw {jaeger}/services");
    let services = cluster.kubectl(&asked).stdout;
    assert!(
        CHAIN
            .iter()
            .all(|name| services.contains(&format!("{name:?}"))),
        "{services}"
    );
    cluster.kubectl("delete namespace weft-demo --wait=false");
}
