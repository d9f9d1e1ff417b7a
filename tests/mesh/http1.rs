//! The ends of HTTP/1 messages and connections, through two sidecars: callers that go away, uploads
//! that break, answers that come early, large heads, expectations, HTTP/1.0.

use std::time::Duration;

use crate::http::{host_in_url, nginx};
use crate::support::{Bed, Machine, Mesh, Pods, Program, need, report, script};

/// A breaker that opens when a few calls of an endpoint fail one after the other: more than the attempts
/// of the one request that the application answers with too large a head, which is its own fault.
const BREAKER: &str = "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
     metadata: {name: edges, namespace: shop}\n\
     spec: {targetRef: {kind: Service, name: edges}, \
     circuitBreaker: {consecutiveFailures: 5, openTime: 60s}}\n";

fn edges(bed: &dyn Bed, prepare: impl FnOnce()) {
    let _server = bed.serve("edges", &["8085"], script("edges_server.py").arg("8085"));
    prepare();
    let mut client = script("edges_client.py").args([bed.host("edges").as_str(), "8085"]);
    if !bed.meshed() {
        client = client.arg("--direct");
    }
    let finished = bed.call("edgy", &["edges"], client, Duration::from_secs(120));
    report(&finished);
}

/// ApacheBench keeps connections in HTTP/1.0, and counts each that it has to make anew.
fn apache_bench(bed: &dyn Bed) {
    let _web = bed.serve("bench-web", &["8086"], nginx(bed.dir(), 8086));
    let url = format!("http://{}:8086/", host_in_url(&bed.host("bench-web")));
    let program = Program::line(&format!("ab -k -n 2000 -c 8 {url}"));
    let limit = Duration::from_secs(60);
    let out = bed
        .call("bencher", &["bench-web"], program, limit)
        .success()
        .stdout;
    let number = |name: &str| {
        let line = out.lines().find_map(|line| line.strip_prefix(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in {out}"));
        line.trim()
            .parse::<u32>()
            .unwrap_or_else(|_| panic!("{name}{line}"))
    };
    assert_eq!(number("Complete requests:"), 2000, "{out}");
    assert_eq!(number("Failed requests:"), 0, "{out}");
    // nginx itself ends a connection after 1000 requests; sidecars have no such number.
    assert!(number("Keep-Alive requests:") > 1900, "{out}");
}

#[test]
fn edges_without_a_mesh() {
    need!("root", "python3");
    edges(&Pods::plain(&Machine::shared()), || {});
}

#[test]
fn edges_under_weft_run() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    edges(&mesh, || {
        let file = mesh.scratch().file("policy.yaml", BREAKER);
        let apply = format!("apply --wait 10s -f {}", file.display());
        mesh.command(&apply).success();
    });
    // Uploads that broke were their callers' fault, and callers that went away nobody's.
    let breakers = mesh.command("breakers shop/edges -o json").success().stdout;
    let breakers: serde_json::Value = serde_json::from_str(&breakers).expect("JSON");
    assert_eq!(
        breakers["items"].as_array().map(Vec::len),
        Some(0),
        "{breakers}"
    );
}

#[test]
fn edges_as_pods() {
    need!("root", "python3");
    edges(&Pods::meshed(&Machine::shared()), || {});
}

#[test]
fn apache_bench_as_pods() {
    need!("root", "ab", "nginx");
    apache_bench(&Pods::meshed(&Machine::shared()));
}
