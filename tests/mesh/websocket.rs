//! WebSocket: an upgraded connection is a stream of bytes of its own.

use std::time::Duration;

use crate::support::{Bed, Machine, Mesh, Pods, need, report, script};

pub(crate) fn echo(bed: &dyn Bed) {
    let _server = bed.serve("chat", &["8765"], script("websocket_server.py").arg("8765"));
    let client = script("websocket_client.py").args([bed.host("chat").as_str(), "8765"]);
    report(&bed.call("guest", &["chat"], client, Duration::from_secs(90)));
}

#[test]
fn echo_without_a_mesh() {
    need!("root", "python:websockets");
    echo(&Pods::plain(&Machine::shared()));
}

#[test]
fn echo_under_weft_run() {
    need!("python:websockets");
    echo(&Mesh::start(&Machine::shared()));
}

#[test]
fn echo_as_pods() {
    need!("root", "python:websockets");
    echo(&Pods::meshed(&Machine::shared()));
}
