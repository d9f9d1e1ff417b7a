//! What a third party sees between two sidecars: TLS 1.3 with a post-quantum key share, and
//! nothing of the applications.

use std::time::Duration;

use crate::http::nginx;
use crate::support::{
    Bed, Capture, Machine, Mesh, Namespace, Pods, Program, Settings, need, python_code, script,
};

/// Said by the applications; must not be seen by anyone else.
const REQUEST_MARK: &str = "MARK-OF-THE-REQUEST-7f3a";
const RESPONSE_MARK: &str = "hello from nginx";
const OPAQUE_MARK: &str = "MARK-OF-OPAQUE-BYTES-91c2";

const LIMIT: Duration = Duration::from_secs(60);

/// HTTP/1, gRPC and opaque bytes, each with its mark.
fn talk(bed: &dyn Bed) {
    let _web = bed.serve("web", &["8080"], nginx(bed.dir(), 8080));
    let _echo = bed.serve(
        "echo",
        &["50051:grpc"],
        script("grpc_server.py").arg("50051"),
    );
    let opaque = format!(
        "import socket; l = socket.create_server(('', 7000))\nwhile True:\n c = l.accept()[0]; c.sendall(b'{OPAQUE_MARK}'); c.close()"
    );
    let _opaque = bed.serve("opaque", &["7000:tcp"], python_code(&opaque));
    let script = format!(
        "set -e\n\
         curl -sS --fail --max-time 20 -H 'x-mark: {REQUEST_MARK}' http://{}:8080/ | grep '{RESPONSE_MARK}'\n\
         {} {} {}:50051 unary metadata_both_ways\n\
         python3 -c \"import socket; print(socket.create_connection(('{}', 7000)).recv(99).decode())\" | grep {OPAQUE_MARK}\n",
        bed.host("web"),
        crate::support::python(),
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/grpc_client.py"),
        bed.host("echo"),
        bed.host("opaque"),
    );
    bed.call(
        "caller",
        &["web", "echo", "opaque"],
        Program::shell(script),
        LIMIT,
    )
    .success();
}

const MARKS: &[&str] = &[
    REQUEST_MARK,
    RESPONSE_MARK,
    OPAQUE_MARK,
    "weft.test.Echo",
    "x-trailing",
];

/// The control: without a mesh every mark is seen, so the analysis sees what it should.
#[test]
fn plaintext_without_a_mesh() {
    need!("root", "dumpcap", "tshark", "curl", "nginx", "python:grpc");
    let machine = Machine::shared();
    let pods = Pods::plain(&machine);
    pods.add("caller", &[]);
    let capture = pods.capture("caller");
    talk(&pods);
    let contents = capture.stop(MARKS);
    assert_eq!(contents.connections, 3);
    assert_eq!(contents.not_tls.len(), 3);
    assert_eq!(contents.marks, MARKS);
}

/// Another control: TLS 1.3 without the post-quantum group is told apart, and TLS 1.2 as well.
#[test]
fn classical_key_shares_without_a_mesh() {
    need!("root", "dumpcap", "tshark", "openssl");
    let machine = Machine::shared();
    let pods = Pods::plain(&machine);
    let dir = pods.dir().display().to_string();
    let make = format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x -keyout {dir}/key -out {dir}/crt"
    );
    let serve = format!("openssl s_server -accept 4433 -key {dir}/key -cert {dir}/crt -quiet");
    let _server = pods.serve(
        "server",
        &["4433"],
        Program::shell(format!("{make} && exec {serve}")),
    );
    pods.add("caller", &[]);
    let capture = pods.capture("caller");
    for version in ["-tls1_3 -groups X25519", "-tls1_2"] {
        let connect = format!(
            "openssl s_client -connect {}:4433 {version} </dev/null",
            pods.host("server")
        );
        pods.call("caller", &["server"], Program::shell(connect), LIMIT)
            .success();
    }
    let contents = capture.stop(&[]);
    assert!(contents.not_tls.is_empty(), "{contents:?}");
    let hellos =
        [("0x0304", "29"), ("", "")].map(|(version, group)| (version.to_owned(), group.to_owned()));
    assert_eq!(contents.server_hellos, hellos);
}

#[test]
fn only_tls13_between_pods() {
    need!("root", "dumpcap", "tshark", "curl", "nginx", "python:grpc");
    let machine = Machine::shared();
    let pods = Pods::meshed(&machine);
    pods.add("caller", &[]);
    let capture = pods.capture("caller");
    talk(&pods);
    capture.stop(MARKS).is_all_encrypted();
}

/// Sidecars under `weft run` talk over the loopback of the machine, here of a namespace that
/// stands for it; so do sidecars and control plane.
#[test]
fn only_tls13_between_programs_under_weft_run() {
    need!("root", "dumpcap", "tshark", "curl", "nginx", "python:grpc");
    let machine = Machine::shared();
    let namespace = Namespace::new();
    let settings = Settings {
        inside: Some(&namespace),
        ..Settings::default()
    };
    let mesh = Mesh::with(&machine, settings);
    let capture = Capture::start(
        namespace.enter(),
        "lo",
        "tcp",
        namespace.name(),
        mesh.scratch().path(),
    );
    talk(&mesh);
    capture.stop(MARKS).is_all_encrypted();
}
