//! A workload that leaves: its callers lose nothing, and it still reaches others while it ends.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::http::nginx;
use crate::support::{Bed, Machine, Mesh, Pods, Workload, need, python_code, script};

const LIMIT: Duration = Duration::from_secs(60);

/// Holds a connection to another service, and asks it once more when it is told to end.
const NEEDS_OTHERS: &str = "
import http.client, signal, socket, sys
held = http.client.HTTPConnection('web.shop.mesh', 8080, timeout=20)
held.request('GET', '/')
held.getresponse().read()
def end(*_):
    new = http.client.HTTPConnection('web.shop.mesh', 8080, timeout=20)
    new.request('GET', '/')
    held.request('GET', '/')
    print('at the end', new.getresponse().status, held.getresponse().status, flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
listener = socket.create_server(('', 9000))
print('up', flush=True)
while True:
    listener.accept()
";

#[test]
fn a_program_reaches_others_while_it_ends() {
    need!("nginx", "python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], nginx(mesh.dir(), 8080));
    let workload = Workload::new("worker").port("9000:tcp").wait_for("web");
    let mut worker = mesh.run(&workload, python_code(NEEDS_OTHERS));
    worker.wait_until("it runs", LIMIT, |run| run.stdout().contains("up"));
    mesh.wait_for_service("worker");
    let began = Instant::now();
    worker.signal(Signal::TERM);
    let ended = worker.finish(LIMIT).success();
    assert!(ended.stdout.contains("at the end 200 200"), "{ended}");
    // Its own connections are nothing to wait for: far less than the 30 s of a drain.
    let took = began.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
}

#[test]
fn an_upgraded_stream_is_waited_for() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let workload = Workload::new("web").port("8080").flag("--drain", "20s");
    let mut web = mesh.run(&workload, script("standing_server.py").arg("8080"));
    mesh.wait_for_service("web");
    let target = format!("upgrade={}:8080", mesh.host("web"));
    let caller = Workload::new("caller").wait_for("web");
    let mut caller = mesh.run(&caller, script("standing_client.py").arg(target));
    caller.wait_until("the stream stands", LIMIT, |run| {
        run.stdout().contains("up")
    });
    web.signal(Signal::TERM);
    // Listeners are closed within a second; the stream goes on for longer.
    let since = caller.stdout().len();
    caller.wait_until("the stream goes on", LIMIT, |run| {
        run.stdout()[since..].matches("upgrade alive").count() >= 12
    });
    assert!(web.ended().is_none(), "it has not waited for the stream");
    caller.kill();
    // With its last stream it is over at once.
    let began = Instant::now();
    web.finish(LIMIT);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
}

/// Connects and says nothing, as the server does.
const SILENT_CLIENT: &str = "
import socket, sys, time
one = socket.create_connection((sys.argv[1], 9000), timeout=20)
print('up', flush=True)
time.sleep(1000)
";
const SILENT_SERVER: &str = "
import socket
listener = socket.create_server(('', 9000))
held = []
while True:
    held.append(listener.accept())
    print('accepted', flush=True)
";

/// A connection of the program on which neither side has spoken is no reason to stay.
#[test]
fn a_silent_connection_is_not_waited_for() {
    need!("root", "python3");
    let machine = Machine::shared();
    let pods = Pods::meshed(&machine);
    let mut server = pods.serve("quiet", &["9000"], python_code(SILENT_SERVER));
    pods.wait_for_service("quiet");
    // What asks whether the port listens has been accepted too.
    let before = server.stdout().matches("accepted").count();
    pods.add("caller", &[]);
    let client = python_code(SILENT_CLIENT).arg(pods.host("quiet"));
    let _client = pods.start("caller", client);
    server.wait_until("its connection", LIMIT, |run| {
        run.stdout().matches("accepted").count() > before
    });
    // Far less than the 30 s of a drain.
    let took = pods.leave("caller", LIMIT);
    assert!(took < Duration::from_secs(12), "{took:?}");
}
