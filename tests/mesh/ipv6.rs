//! The same over IPv6, where nothing falls back to IPv4.

use std::time::Duration;

use crate::support::{Bed, Machine, Mesh, Pods, Program, need, python_code, script};

const LIMIT: Duration = Duration::from_secs(60);

fn torture_server() -> Program {
    script("http_torture_server.py").args(["::", "8081"])
}

/// A name resolves to its IPv6 address and curl is told to use no other.
#[test]
fn a_mesh_name_over_ipv6_under_weft_run() {
    need!("curl", "python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _server = mesh.serve("six", &["8081"], torture_server());
    let curl = format!(
        "curl -6 -sS --fail --max-time 20 http://{}:8081/plain",
        mesh.host("six")
    );
    assert_eq!(
        mesh.call("caller", &["six"], Program::line(&curl), LIMIT)
            .success()
            .stdout,
        "plain"
    );
}

/// The server listens on nothing but IPv6.
#[test]
fn an_application_that_only_listens_on_ipv6() {
    need!("curl", "python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let serve = "import http.server,socket\n\
        class S(http.server.ThreadingHTTPServer):\n\
        \x20address_family = socket.AF_INET6\n\
        \x20def server_bind(self):\n\
        \x20\x20self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1); super().server_bind()\n\
        S(('::', 8080), http.server.SimpleHTTPRequestHandler).serve_forever()\n";
    let _server = mesh.serve("only-six", &["8080"], python_code(serve));
    let curl = format!(
        "curl -sS --fail --max-time 20 -o /dev/null http://{}:8080/",
        mesh.host("only-six")
    );
    mesh.call("caller", &["only-six"], Program::line(&curl), LIMIT)
        .success();
}

/// Pods dial each other's IPv6 address; an address in the mesh is the workload it belongs to.
#[test]
fn pod_addresses_over_ipv6() {
    need!("root", "curl", "python3");
    let machine = Machine::shared();
    for pods in [
        Pods::plain(&machine).by_ipv6(),
        Pods::meshed(&machine).by_ipv6(),
    ] {
        let _server = pods.serve("six", &["8081"], torture_server());
        let curl = format!(
            "curl -sS --fail --max-time 20 http://[{}]:8081/plain",
            pods.host("six")
        );
        assert_eq!(
            pods.call("caller", &["six"], Program::line(&curl), LIMIT)
                .success()
                .stdout,
            "plain"
        );
    }
}
