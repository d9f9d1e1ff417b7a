//! The demo of `deploy/kubernetes/`, as it is but for the images' names.

use super::Cluster;
use super::cluster::LIMIT;
use crate::support::{CALLS, Machine, Sample, call, long, need, samples, wait_for};

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
    wait_for("a trace with all services", LIMIT, || {
        let asked = format!("get --raw {jaeger}/traces?service=stock&limit=20");
        call(&cluster.try_kubectl(&asked).stdout)
    })
    .is_whole();
    // Services have their own names there, and not those of pods.
    let asked = format!("get --raw {jaeger}/services");
    let services = cluster.kubectl(&asked).stdout;
    assert!(
        CALLS
            .iter()
            .all(|name| services.contains(&format!("{name:?}"))),
        "{services}"
    );
}

fn counts_requests(cluster: &Cluster) {
    let prometheus = through("prometheus:http") + "/api/v1/query?query=";
    let query = |query: &str| -> Vec<Sample> {
        let said = cluster.try_kubectl(&format!("get --raw {prometheus}{query}"));
        samples(&said.stdout)
    };
    // Two pods of `stock`, one of each of the others; and the control plane.
    wait_for("every target to be scraped", LIMIT, || {
        let up = query("up");
        let of = |job: &str| {
            let of = up.iter().filter(|one| one.metric["job"] == job);
            of.filter(|one| one.value() == 1.0).count()
        };
        (of("weft-proxy") >= 5 && of("weft-control-plane") == 1).then_some(())
    });
    wait_for("requests over mutual TLS to be counted", LIMIT, || {
        let counted = query("weft_requests_total");
        let has = |one: &Sample| {
            let over_mtls = one.metric.values().any(|value| value == "mtls");
            over_mtls && one.value() > 0.0
        };
        counted.iter().any(has).then_some(())
    });
}
