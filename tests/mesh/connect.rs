//! `CONNECT` to an application, in HTTP/1.1 and HTTP/2: what opens a tunnel, and what does not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{Bed, Machine, Mesh, Program, need, report, script};

const LIMIT: Duration = Duration::from_secs(120);

/// A server of Go's `net/http`, which reads on after an answer that it takes for an ordinary one.
fn server(dir: &Path) -> Program {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/programs/connect/server.go");
    let server = dir.join("connect-server");
    let build = Program::new("go").args(["build", "-o"]).arg(&server);
    build.arg(source).run("go-build", dir, LIMIT).success();
    Program::new(server).arg("8080")
}

#[test]
fn only_200_without_content_opens_a_tunnel() {
    need!("go", "python:h2", "python:websockets");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let web = mesh.serve("web", &["8080:http"], server(mesh.dir()));
    let host = mesh.host("web");
    let client = script("connect_client.py").args([host.as_str(), "8080"]);
    report(&mesh.call("caller", &["web"], client, LIMIT));
    let seen = web.stdout();
    assert!(seen.contains("CONNECT empty:80"), "{seen}");
    assert!(!seen.contains("identity=forged"), "{seen}");
}
