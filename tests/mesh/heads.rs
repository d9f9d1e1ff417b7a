//! Heads in HTTP/1.1 byte by byte: names as they are spelled, in their order, and the reason phrase.

use std::path::Path;
use std::time::Duration;

use crate::http::host_in_url;
use crate::support::{Bed, Machine, Mesh, Pods, Program, need, report, script};

const LIMIT: Duration = Duration::from_secs(60);

/// What raw sockets see through this bed is what they see without one.
fn heads(bed: &dyn Bed) {
    let _app = bed.serve(
        "heads",
        &["8087"],
        script("heads.py").args(["serve", "8087"]),
    );
    let client = script("heads.py").args(["ask", bed.host("heads").as_str(), "8087"]);
    report(&bed.call("reader", &["heads"], client, LIMIT));
}

#[test]
fn heads_under_weft_run() {
    need!("python3");
    heads(&Mesh::start(&Machine::shared()));
}

#[test]
fn heads_as_pods() {
    need!("root", "python3");
    heads(&Pods::meshed(&Machine::shared()));
}

/// What an end in HTTP/2 sends in the place of the form is not believed, and none is sent to it.
#[test]
fn the_form_stays_in_the_mesh() {
    need!("python3", "node", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/heads_app.js");
    let node = Program::new("node").arg(file).arg("8088");
    let _http2 = mesh.serve("heads-http2", &["8088:http2"], node);
    let _http1 = mesh.serve(
        "heads",
        &["8087:http"],
        script("heads.py").args(["serve", "8087"]),
    );
    let client = script("heads.py").args(["ask2", mesh.host("heads-http2").as_str(), "8088"]);
    report(&mesh.call("reader", &["heads-http2"], client, LIMIT));

    let curl = |service: &str, port: u16, target: &str| {
        let url = format!("http://{}:{port}{target}", host_in_url(&mesh.host(service)));
        let own = "weft-http1-form:t:USER-AGENT";
        let line = format!(
            "curl --silent --include --max-time 20 --http2-prior-knowledge --header {own} {url}"
        );
        let finished = mesh.call("curler", &[service], Program::line(&line), LIMIT);
        finished.success().stdout
    };
    for (service, port) in [("heads", 8087), ("heads-http2", 8088)] {
        let said = curl(service, port, "/cookies").to_ascii_lowercase();
        assert!(said.contains("http/2 200"), "{said}");
        assert!(!said.contains("http1-form"), "{said}");
    }
    // Names come to the application as those of HTTP/2 are.
    let said = curl("heads", 8087, "/plain");
    assert!(said.contains("\"user-agent: curl"), "{said}");
}
