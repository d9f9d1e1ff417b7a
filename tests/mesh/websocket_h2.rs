//! WebSocket over HTTP/2 (RFC 8441): clients and applications that speak it, in every combination
//! with those that speak HTTP/1.1.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{Bed, Machine, Mesh, Pods, Program, need, python_code, report, script};

const LIMIT: Duration = Duration::from_secs(120);
const PORT: &str = "8765";

/// Asks for WebSocket in HTTP/2, beside ordinary requests on the same connection.
fn http2_client(bed: &dyn Bed, server: &str) {
    let client = script("websocket_h2_client.py");
    let client = client.args([bed.host("chat").as_str(), PORT, server]);
    report(&bed.call("guest", &["chat"], client, LIMIT));
}

/// PyPI `websockets`, in HTTP/1.1.
fn http1_client(bed: &dyn Bed) {
    let client = script("websocket_client.py").args([bed.host("chat").as_str(), PORT]);
    report(&bed.call("guest", &["chat"], client, LIMIT));
}

fn http1_server() -> Program {
    script("websocket_server.py").arg(PORT)
}

fn http2_server() -> Program {
    script("websocket_h2_server.py").arg(PORT)
}

fn node() -> Program {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/programs")
        .join("websocket_h2_server.js");
    Program::new("node").arg(file).arg(PORT)
}

/// curl's request for WebSocket in HTTP/1.1; prints status, reason and body.
fn curl(host: &str, more: &[&str]) -> Program {
    let program = Program::line(
        "curl --silent --show-error --http1.1 --max-time 20 \
         -H Connection:Upgrade -H Upgrade:websocket -H Sec-WebSocket-Version:13",
    );
    program
        .args(["-w", "\n%{http_code} %header{weft-reason}\n"])
        .args(more.iter().copied())
        .arg(format!("http://{host}:{PORT}/chat"))
}

#[test]
fn clients_in_http2_reach_servers_in_http1() {
    need!("python:websockets", "python:h2");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _server = mesh.serve("chat", &["8765:http"], http1_server());
    http2_client(&mesh, "http1");
}

#[test]
fn clients_in_http2_reach_applications_in_http2() {
    need!("python:websockets", "python:h2");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _server = mesh.serve("chat", &["8765:http2"], http2_server());
    http2_client(&mesh, "http2");
    http1_client(&mesh);
}

/// The application is spoken to in what its caller speaks, where nothing is declared.
#[test]
fn a_detected_port_is_spoken_to_in_the_callers_version() {
    need!("root", "python:websockets", "python:h2");
    let machine = Machine::shared();
    let pods = Pods::meshed(&machine);
    let _server = pods.serve("chat", &["8765"], http2_server());
    http2_client(&pods, "http2");
}

#[test]
fn clients_in_http1_reach_nodes_http2_server() {
    need!("node", "python:websockets");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _server = mesh.serve("chat", &["8765:http2"], node());
    http1_client(&mesh);
}

/// What cannot be translated is refused, and the answer says why.
#[test]
fn refusals_say_why() {
    need!("curl", "python:websockets", "python:h2");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let silent = http2_server().arg("unannounced");
    let _silent = mesh.serve("silent", &["8765:grpc"], silent);
    let _server = mesh.serve("chat", &["8765:http2"], http2_server());
    let refused = |service: &str, more: &[&str], expected: &str, detail: &str| {
        let program = curl(&mesh.host(service), more);
        let printed = mesh.call("guest", &[service], program, LIMIT).stdout;
        let last = printed.lines().last().unwrap_or_default();
        assert_eq!(last, expected, "{printed}");
        assert!(printed.contains(detail), "{printed}");
    };
    const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let failed = "502 upgrade-failed";
    let setting = "SETTINGS_ENABLE_CONNECT_PROTOCOL";
    refused("silent", &["-H", KEY], failed, setting);
    let short = "Sec-WebSocket-Key: AAAA";
    refused("chat", &["-H", short], "400 bad-request", "16 bytes");
    refused("chat", &[], "400 bad-request", "16 bytes");
    let post = ["-H", KEY, "-X", "POST"];
    refused("chat", &post, failed, "asked for with GET");
    let content = ["-H", KEY, "-X", "GET", "-d", "x"];
    refused("chat", &content, failed, "content");
    // An application's own answer is the caller's.
    let program = curl(&mesh.host("chat"), &["-H", KEY]);
    let forbidden = program.arg(format!("http://{}:{PORT}/forbidden", mesh.host("chat")));
    let printed = mesh.call("guest", &["chat"], forbidden, LIMIT).stdout;
    assert!(printed.contains("not here"), "{printed}");
}

/// A server whose answer does not belong to the key is not believed.
#[test]
fn a_wrong_accept_opens_no_stream() {
    need!("python:websockets", "python:h2");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let server = python_code(
        "import socket\n\
         listener = socket.create_server(('', 8765), family=socket.AF_INET6, dualstack_ipv6=True)\n\
         while True:\n\
         \x20   client, _ = listener.accept()\n\
         \x20   if client.recv(65536):\n\
         \x20       client.sendall(b'HTTP/1.1 101 Switching\\r\\nConnection: Upgrade\\r\\n'\n\
         \x20           b'Upgrade: websocket\\r\\nSec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\\r\\n\\r\\n')\n",
    );
    let _server = mesh.serve("chat", &["8765:http"], server);
    let programs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
    let host = mesh.host("chat");
    let client = python_code(&format!(
        "import sys\n\
         sys.path.insert(0, '{}')\n\
         from websocket_h2 import Bytes, Client\n\
         client = Client('{host}', 8765)\n\
         _, stream = client.connect('/', stream=Bytes())\n\
         client.wait(lambda: stream.over)\n\
         print(stream.head[':status'], stream.head['weft-reason'], stream.data.decode())\n",
        programs.display(),
    ));
    let printed = mesh.call("guest", &["chat"], client, LIMIT).stdout;
    assert!(
        printed.starts_with("502 upgrade-failed") && printed.contains("Sec-WebSocket-Accept is"),
        "{printed}"
    );
}
