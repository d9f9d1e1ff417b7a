//! Clients in HTTP/2 that stall: with requests' bodies that never come, or by not reading answers. Each
//! such stream holds a connection to an application in HTTP/1.1. Neighbours go on beside them, the
//! connections come back, and what is only slow is left alone.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::{
    Bed, Load, Machine, Pods, Program, Running, need, python_code, script, wait_for,
};

const LIMIT: Duration = Duration::from_secs(90);
/// Of the sidecar beside the application; each worker has as many connections. A neighbour that had to
/// wait for the end of the stalled ones would be refused.
const CONFIG: &str = "timeouts: {client_stall: 3s, application_pending: 1s}\n\
                      limits: {max_application_connections: 64, max_application_pending: 64}\n";
/// Far more than there are connections.
const CONNECTIONS: &str = "4";
const STREAMS: &str = "120";

/// A node with an application and neighbours whose requests go on, one in the mesh and one outside.
struct Place<'a> {
    pods: &'a Pods<'a>,
    neighbours: [Load; 2],
    _web: Running,
}

impl<'a> Place<'a> {
    fn start(pods: &'a Pods<'a>) -> Self {
        pods.add_with("web", &["8080:http"], CONFIG);
        let serve = script("h2_stalls.py").args(["serve", "8080"]);
        let web = pods.serve("web", &["8080:http"], serve);
        pods.wait_for_service("web");
        pods.add("neighbour", &[]);
        let load = |name: &str, url: &str| {
            let state = pods.dir().join(name);
            std::fs::create_dir_all(&state).expect("make a directory");
            let flags = ["--connections", "2", "--rate", "20"];
            (Load::program("http", url, &state, &flags), state)
        };
        let (program, state) = load("inside", &format!("http://{}:8080/", pods.host("web")));
        let inside = Load::watch(pods.start("neighbour", program), state);
        // From another address than those who stall.
        let [_, v6] = pods.addresses("web");
        let (program, state) = load("outside", &format!("http://[{v6}]:8080/"));
        let outside = Load::watch(pods.start_outside(program), state);
        Self {
            pods,
            neighbours: [inside, outside],
            _web: web,
        }
    }

    fn stall(&self, what: &str, host: &str) -> Program {
        script("h2_stalls.py").args([what, host, "8080", CONNECTIONS, STREAMS])
    }

    /// Demands that who stalls is told so, and that the application's connections have come back while
    /// the client is still there.
    fn told(&self, mut stalling: Running, expected: &[&str]) {
        stalling.wait_until("the streams' ends", LIMIT, |running| {
            running.stdout().contains('}')
        });
        let seen: BTreeMap<String, u32> =
            serde_json::from_str(stalling.stdout().trim()).expect("a report");
        eprintln!("{seen:?}");
        let cut = seen.get(expected[0]).copied().unwrap_or_default();
        assert!(cut >= 30, "{expected:?}: {seen:?}");
        let others: Vec<_> = seen
            .keys()
            .filter(|key| !expected.contains(&key.as_str()))
            .collect();
        assert!(others.is_empty(), "{others:?}: {seen:?}");
        wait_for("the application's connections", LIMIT, || {
            (self.open() <= 12).then_some(())
        });
        drop(stalling);
    }

    /// Connections that the application has.
    fn open(&self) -> u32 {
        let curl = format!(
            "curl -sS --max-time 5 http://{}:8080/open",
            self.pods.host("web")
        );
        let asked = self.pods.start("neighbour", Program::line(&curl));
        let open = asked.finish(LIMIT).success().stdout;
        open.trim().parse().expect("a number")
    }

    fn counted(&self, pod: &str, direction: &str, reason: &str) -> bool {
        let (direction, reason) = (
            format!("direction=\"{direction}\""),
            format!("reason=\"{reason}\""),
        );
        let metrics = self.pods.metrics(pod);
        let mut lines = metrics
            .lines()
            .filter(|line| line.starts_with("weft_requests_total"));
        lines.any(|line| line.contains(&direction) && line.contains(&reason))
    }

    fn end(self) {
        for neighbour in self.neighbours {
            neighbour.stop_without_failure();
        }
    }
}

const TIMED_OUT: &str = "408:client-timeout:whole";
const AT_ITS_SHARE: &str = "503:pending-limit:whole";
/// CANCEL (RFC 9113 section 7).
const CUT: &str = "200::reset:8";

#[test]
fn a_client_outside_that_stalls() {
    need!("root", "ip", "curl", "python:h2");
    let machine = Machine::alone();
    let pods = Pods::meshed(&machine);
    let place = Place::start(&pods);
    let [v4, _] = pods.addresses("web");
    let host = v4.to_string();
    for (what, expected) in [
        ("body", [TIMED_OUT, AT_ITS_SHARE]),
        ("early", [CUT, AT_ITS_SHARE]),
        ("read", [CUT, AT_ITS_SHARE]),
    ] {
        eprintln!("outside, {what}");
        let stalling = pods.start_outside(place.stall(what, &host));
        place.told(stalling, &expected);
    }
    assert!(place.counted("web", "inbound", "client-timeout"));
    place.end();
}

/// Through the client's own sidecar. A program in the mesh may be silent for as long as it likes, and
/// has its share of the connections as long.
#[test]
fn a_peer_that_stalls() {
    need!("root", "ip", "curl", "python:h2");
    let machine = Machine::alone();
    let pods = Pods::meshed(&machine);
    let place = Place::start(&pods);
    pods.add("bad", &[]);
    let mut stalling = pods.start("bad", place.stall("body", &pods.host("web")));
    // It tells after 30 s, ten times as long as a client outside may stall.
    stalling.wait_until("a report", LIMIT, |running| running.stdout().contains('}'));
    let seen: BTreeMap<String, u32> =
        serde_json::from_str(stalling.stdout().trim()).expect("a report");
    let kinds: Vec<_> = seen.keys().collect();
    assert_eq!(kinds, [AT_ITS_SHARE, ":open"], "{seen:?}");
    assert!(seen[":open"] >= 40, "{seen:?}");
    drop(stalling);
    wait_for("the application's connections", LIMIT, || {
        (place.open() <= 12).then_some(())
    });
    place.end();
}

/// A call that says nothing for longer than a client may stall: its application speaks HTTP/2, where
/// it holds no connection.
const CALL: &str = "
import sys, threading, time, concurrent.futures
import grpc
def count(requests, context):
    return b'%d' % sum(1 for _ in requests)
def say():
    yield b'one'
    time.sleep(6)
    yield b'two'
if sys.argv[1] == 'serve':
    server = grpc.server(concurrent.futures.ThreadPoolExecutor())
    handlers = {'Count': grpc.stream_unary_rpc_method_handler(count)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler('test.Slow', handlers)])
    server.add_insecure_port('[::]:8081')
    server.start()
    server.wait_for_termination()
with grpc.insecure_channel(sys.argv[1]) as channel:
    print(channel.stream_unary('/test.Slow/Count')(say(), timeout=60).decode())
";

#[test]
fn what_is_slow_is_left_alone() {
    need!("root", "ip", "curl", "python:h2", "python:grpc");
    let machine = Machine::shared();
    let pods = Pods::meshed(&machine);
    let place = Place::start(&pods);
    pods.add_with("calls", &["8081:grpc"], CONFIG);
    let _calls = pods.serve("calls", &["8081:grpc"], python_code(CALL).arg("serve"));
    pods.wait_for_service("calls");
    pods.add("caller", &[]);
    let [v4, _] = pods.addresses("web");
    let slow = |host: &str| script("h2_stalls.py").args(["slow", host, "8080"]);
    let outside = pods.start_outside(slow(&v4.to_string()));
    let inside = pods.start("caller", slow(&pods.host("web")));
    let call = python_code(CALL).arg(format!("{}:8081", pods.host("calls")));
    let call = pods.start("caller", call);
    let whole =
        "200: whole ['7']\n200: whole ['polled']\n200: whole ['data:', '0', 'data:', '1']\n";
    assert_eq!(outside.finish(LIMIT).success().stdout, whole);
    assert_eq!(inside.finish(LIMIT).success().stdout, whole);
    assert_eq!(call.finish(LIMIT).success().stdout, "2\n");
    place.end();
}
