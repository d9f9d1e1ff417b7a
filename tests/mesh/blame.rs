//! Requests that fail because of what their caller sent, or because a server does not agree to an
//! upgrade, say nothing against the server: they open no breaker.

use serde_json::Value;

use crate::support::{Asker, Machine, Mesh, need, script, telling};

/// One failure that were counted would open a breaker.
const POLICY: &str = "\
apiVersion: weft-mesh.io/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRef: {kind: Service, name: web}
  retry: {attempts: 0}
  circuitBreaker:
    consecutiveFailures: 1
    service: {window: {time: 10s}, minimumCalls: 1, failureRate: 0.1, consecutiveFailures: 1}
";
const HOST: &str = "web.shop.mesh";
const UPGRADE: &str = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[test]
fn callers_and_upgrades_open_no_breaker() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let web = telling(&mesh, "web").port("8080:http").port("8083:http2");
    let _web = mesh.run(&web, script("reasons.py").arg("serve"));
    mesh.wait_for_service("web");
    let asker = Asker::start(&mesh, &telling(&mesh, "me").wait_for("web"), "me");
    let file = mesh.scratch().file("policy.yaml", POLICY);
    let apply = format!("apply --wait 10s -f {}", file.display());
    mesh.command(&apply).success();

    let http1 = (HOST, 8080);
    let post = |length: &str| {
        format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\nabc")
    };
    let get = |fields: &str| format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n");
    let connect = format!("CONNECT {HOST}:8080 HTTP/1.1\r\nHost: {HOST}:8080\r\n\r\n");
    let zeros = "0000000000000000000000003";
    let cases = [
        ("zeros before a length", http1, post(zeros), 200, ""),
        (
            "2^64 - 1",
            http1,
            post("18446744073709551615"),
            400,
            "bad-request",
        ),
        (
            "10^19",
            http1,
            post("10000000000000000000"),
            400,
            "bad-request",
        ),
        (
            "no extended CONNECT",
            (HOST, 8083),
            get(UPGRADE),
            502,
            "upgrade-failed",
        ),
        (
            "CONNECT to a server without it",
            http1,
            connect,
            502,
            "upgrade-failed",
        ),
    ];
    for (what, to, request, status, reason) in cases {
        let answer = asker.ask(to, &request);
        let found = (answer.status(), answer.field("weft-reason"));
        assert_eq!(found, (status, reason), "{what}: {answer:?}");
    }
    assert_eq!(asker.ask(http1, &get("")).status(), 200);
    let breakers = mesh.command("breakers shop/web -o json").success().stdout;
    let breakers: Value = serde_json::from_str(&breakers).expect("JSON");
    assert_eq!(
        breakers["items"].as_array().map(Vec::len),
        Some(0),
        "{breakers}"
    );
}
