//! A grpcio client and server: every kind of call and every way that a call ends.

use std::time::Duration;

use crate::http::host_in_url;
use crate::support::{Bed, Machine, Mesh, Pods, need, report, script};

pub(crate) fn every_kind_of_call(bed: &dyn Bed) {
    let _server = bed.serve(
        "echo",
        &["50051:grpc"],
        script("grpc_server.py").arg("50051"),
    );
    let target = format!("{}:50051", host_in_url(&bed.host("echo")));
    let client = script("grpc_client.py").arg(target);
    report(&bed.call("caller", &["echo"], client, Duration::from_secs(120)));
}

/// The port's protocol is not declared: the mesh finds out by itself.
fn undeclared(bed: &dyn Bed) {
    let _server = bed.serve("echo", &["50051"], script("grpc_server.py").arg("50051"));
    let target = format!("{}:50051", host_in_url(&bed.host("echo")));
    let client = script("grpc_client.py").args([
        target.as_str(),
        "unary",
        "bidi_in_lock_step",
        "large_messages",
    ]);
    report(&bed.call("caller", &["echo"], client, Duration::from_secs(60)));
}

#[test]
fn every_kind_of_call_without_a_mesh() {
    need!("root", "python:grpc");
    every_kind_of_call(&Pods::plain(&Machine::shared()));
}

#[test]
fn every_kind_of_call_under_weft_run() {
    need!("python:grpc");
    every_kind_of_call(&Mesh::start(&Machine::shared()));
}

#[test]
fn every_kind_of_call_as_pods() {
    need!("root", "python:grpc");
    every_kind_of_call(&Pods::meshed(&Machine::shared()));
}

#[test]
fn a_port_without_a_declared_protocol_carries_grpc() {
    need!("python:grpc");
    undeclared(&Mesh::start(&Machine::shared()));
}
