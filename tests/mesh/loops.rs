//! Connections that would come back to the sidecar that makes them are refused and named.

use std::time::Duration;

use crate::http::nginx;
use crate::support::{
    Bed, Machine, Mesh, Namespace, Pods, Program, Settings, Workload, ip, need, python_code,
};

const LIMIT: Duration = Duration::from_secs(60);

/// The value of a metric's first line that has all of this.
fn value(metrics: &str, all: &[&str]) -> u64 {
    let line = metrics
        .lines()
        .find(|line| all.iter().all(|part| line.contains(part)));
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.unwrap_or(0)
}

/// Connects and says how it ended.
fn connects(host: &str, port: u16) -> Program {
    python_code(&format!(
        "import socket\n\
         try:\n\
         \x20s = socket.create_connection(('{host}', {port}), timeout=10)\n\
         \x20s.sendall(b'GET / HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n')\n\
         \x20print(s.recv(999))\n\
         except OSError as e:\n print(type(e).__name__)\n"
    ))
}

/// A sidecar's own listeners, dialled from outside and by its own program.
#[test]
fn a_sidecar_does_not_dial_itself() {
    need!("root", "ip", "curl", "nginx", "python3");
    let machine = Machine::shared();
    let pods = Pods::meshed(&machine);
    let _web = pods.serve("web", &["8080"], nginx(pods.dir(), 8080));
    let address = pods.pod_address("web").to_string();
    for port in [15006, 15001] {
        let before = pods.metrics("web");
        let ended = pods
            .outside(connects(&address, port), LIMIT)
            .success()
            .stdout;
        assert_eq!(ended.trim(), "ConnectionResetError", "{port}");
        let own = pods.start("web", connects(&address, port)).finish(LIMIT);
        assert_eq!(
            own.success().stdout.trim(),
            "ConnectionResetError",
            "{port}"
        );
        let after = pods.metrics("web");
        let refused = [
            "weft_tcp_connections_refused_total",
            "reason=\"loop-detected\"",
        ];
        let direction = if port == 15006 { "inbound" } else { "outbound" };
        let refused = [&refused[..], &[direction]].concat();
        assert_eq!(
            value(&after, &refused),
            value(&before, &refused) + 2,
            "{after}"
        );
    }
    // The neighbour is served.
    let plain = Program::line(&format!(
        "curl -sS --fail --max-time 20 http://{address}:8080/"
    ));
    assert_eq!(
        pods.outside(plain, LIMIT).success().stdout,
        "hello from nginx\n"
    );
}

/// A reverse proxy that points to its own service.
#[test]
fn a_request_that_goes_round_is_refused() {
    need!("root", "ip", "curl", "node");
    let machine = Machine::shared();
    let pods = Pods::meshed(&machine);
    let host = pods.host("web");
    let server = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/programs/identity/server.js"
    );
    let server = Program::new("node").args([server, "8080", &host]);
    let web = pods.serve("web", &["8080"], server);
    let curl = format!("curl -sS -i --max-time 30 http://{host}:8080/round");
    let asked = pods.call("caller", &["web"], Program::line(&curl), LIMIT);
    let answer = asked.success().stdout;
    assert!(answer.starts_with("HTTP/1.1 508"), "{answer}");
    assert!(answer.contains("loop-detected: "), "{answer}");
    assert_eq!(web.stdout().matches("/round").count(), 64);
}

/// A local listener that leads to a service whose endpoint is that listener.
#[test]
fn a_listener_that_leads_to_itself() {
    need!("root", "ip", "python3");
    let machine = Machine::shared();
    let inside = Namespace::new();
    let own = "198.51.100.7";
    ip(&format!("-n {} address add {own}/32 dev lo", inside.name()));
    let settings = Settings {
        inside: Some(&inside),
        ..Settings::default()
    };
    let mesh = Mesh::with(&machine, settings);
    let external = format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: ExternalService\n\
         metadata: {{name: round, namespace: shop}}\n\
         spec: {{hosts: [round.example.com], resolution: static, \
         ports: [{{port: 80, protocol: tcp, targetPort: 9001}}], \
         endpoints: [{{address: {own}}}]}}\n"
    );
    let external = mesh.scratch().file("round.yaml", external);
    let apply = format!("apply -f {}", external.display());
    mesh.command(&apply).success();
    let workload = Workload::new("caller")
        .flag("--capture", "none")
        .flag("--log-level", "info")
        .flag("--upstream", &format!("round={own}:9001"));
    let called = mesh.run_to_end(&workload, connects(own, 9001), LIMIT);
    assert_eq!(called.stdout.trim(), "ConnectionResetError", "{called}");
    assert!(called.stderr.contains("loop-detected"), "{called}");
}
