//! The demo of `deploy/kubernetes/`, as it is but for the images' names.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Cluster;
use super::cluster::LIMIT;
use crate::support::{Machine, long, need, wait_for};

const DEMO: &str = include_str!("../../../deploy/kubernetes/demo.yaml");
/// Images of the demo, and those of the tests in their place.
const IMAGES: [(&str, &str); 3] = [
    ("localhost/weft:0.1.0", "localhost/weft:test"),
    (
        "docker.io/jaegertracing/jaeger:2.13.0",
        "localhost/jaeger:test",
    ),
    (
        "docker.io/prom/prometheus:v3.5.0",
        "localhost/prometheus:test",
    ),
];
/// The namespace that the file makes.
const NAMESPACE: &str = "weft-demo";
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

/// Where the file says how Prometheus finds the sidecars, and what comes after.
const DISCOVERY: (&str, &str) = (
    "        kubernetes_sd_configs:\n",
    "      - job_name: weft-control-plane\n",
);

/// The demo with these targets in the place of what Prometheus finds in the cluster's API: Debian's has no
/// discovery in Kubernetes.
fn demo(targets: &[String]) -> String {
    let mut demo = DEMO.to_owned();
    for (image, ours) in IMAGES {
        assert!(demo.contains(image), "{image}");
        demo = demo.replace(image, ours);
    }
    let (before, rest) = demo.split_once(DISCOVERY.0).expect("the discovery");
    let (_discovery, after) = rest.split_once(DISCOVERY.1).expect("the next job");
    let targets = serde_json::json!(targets);
    let targets = format!("        static_configs: [{{targets: {targets}}}]\n");
    [before, &targets, DISCOVERY.1, after].concat()
}

/// What the file makes, until it is dropped.
#[derive(Debug)]
struct Applied(&'static Cluster);

impl Drop for Applied {
    fn drop(&mut self) {
        self.0.try_kubectl(&format!(
            "delete namespace {NAMESPACE} --wait=false --ignore-not-found"
        ));
    }
}

/// A call of the demo is one trace in Jaeger, with the spans of all its services, each below the one
/// that made it; Prometheus has the metrics of every sidecar and of the control plane.
#[test]
fn a_call_through_the_demo_is_one_trace_in_jaeger_and_counted_in_prometheus() {
    if !long() {
        return;
    }
    need!("root", "kubernetes", "buildah", "jaeger", "prometheus");
    let _machine = Machine::shared();
    let cluster = Cluster::meshed();
    let file = cluster.file("demo.yaml");
    let apply = |targets: &[String]| {
        std::fs::write(&file, demo(targets)).expect("write the demo");
        cluster.kubectl(&format!("apply -f {}", file.display()));
    };
    let _applied = Applied(cluster);
    apply(&[]);
    for deployment in ["jaeger", "stock", "orders", "web", "load"] {
        rolled_out(cluster, deployment);
    }
    let pods = "get pods -l app!=jaeger,app!=prometheus -o jsonpath={.items[*].status.podIP}";
    let pods = cluster.kubectl(&format!("-n {NAMESPACE} {pods}")).stdout;
    let pods = pods.split_whitespace().map(|ip| format!("{ip}:15020"));
    apply(&pods.collect::<Vec<_>>());
    cluster.kubectl(&format!(
        "-n {NAMESPACE} rollout restart deployment/prometheus"
    ));
    rolled_out(cluster, "prometheus");
    has_one_trace(cluster);
    counts_requests(cluster);
}

fn rolled_out(cluster: &Cluster, deployment: &str) {
    let line = format!("-n {NAMESPACE} rollout status deployment/{deployment} --timeout=80s");
    let finished = cluster.try_kubectl(&line);
    assert!(
        finished.status.success(),
        "{finished}\n{}",
        cluster.try_kubectl(&format!("-n {NAMESPACE} get pods -o wide")),
    );
}

/// Where the API server leads to a port of a service.
fn through(service: &str) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/services/{service}/proxy")
}

fn has_one_trace(cluster: &Cluster) {
    let jaeger = through("jaeger:query") + "/api";
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

#[derive(Debug, Deserialize)]
struct Sample {
    metric: BTreeMap<String, String>,
    /// The time, and the value as a text.
    value: (f64, String),
}

fn counts_requests(cluster: &Cluster) {
    let prometheus = through("prometheus:http") + "/api/v1/query?query=";
    let query = |query: &str| -> Vec<Sample> {
        let said = cluster.try_kubectl(&format!("get --raw {prometheus}{query}"));
        let answer = serde_json::from_str::<Queried>(&said.stdout);
        answer.map_or_else(|_| Vec::new(), |answer| answer.data.result)
    };
    // Two pods of `stock`, one of each of the others; and the control plane.
    wait_for("every target to be scraped", LIMIT, || {
        let up = query("up");
        let of = |job: &str| {
            let of = up.iter().filter(|one| one.metric["job"] == job);
            of.filter(|one| one.value.1 == "1").count()
        };
        (of("weft-proxy") >= 5 && of("weft-control-plane") == 1).then_some(())
    });
    wait_for("requests over mutual TLS to be counted", LIMIT, || {
        let counted = query("weft_requests_total");
        let has = |one: &Sample| {
            let over_mtls = one.metric.values().any(|value| value == "mtls");
            over_mtls && one.value.1.parse::<f64>().is_ok_and(|count| count > 0.0)
        };
        counted.iter().any(has).then_some(())
    });
}
