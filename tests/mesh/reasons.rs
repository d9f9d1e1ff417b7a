//! Each reason that the mesh gives, provoked: what a caller is told, over HTTP and gRPC, and what stands
//! in the metrics, the access log and the sidecar's own log.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::Value;

use crate::promised::table;
use crate::support::{
    Asker, Bed, Machine, Mesh, Namespace, Place, PodSettings, Pods, Received, Running, Settings,
    ip, need, python_code, script, sum, telling, wait_for,
};

const LIMIT: Duration = Duration::from_secs(60);
/// Machines outside the mesh: one that is declared, and one that is not.
const OUTSIDE: &str = "198.51.100.7";
const UNDECLARED: &str = "198.51.100.8";
/// A virtual address that nobody has.
const NOBODY: &str = "240.240.77.77";

const DOCUMENTS: &str = "\
---
apiVersion: weft-mesh.io/v1alpha1
kind: Service
metadata: {name: empty, namespace: shop}
spec: {ports: [{port: 8080, protocol: http}]}
---
apiVersion: weft-mesh.io/v1alpha1
kind: ExternalService
metadata: {name: far, namespace: shop}
spec:
  hosts: [far.example.test]
  resolution: static
  ports: [{port: 8080, protocol: http, targetPort: 9}]
  endpoints: [{address: 198.51.100.7}]
---
apiVersion: weft-mesh.io/v1alpha1
kind: ExternalService
metadata: {name: silent, namespace: shop}
spec:
  hosts: [silent.example.test]
  resolution: static
  ports: [{port: 8080, protocol: http}]
  endpoints: [{address: 203.0.113.9}]
---
apiVersion: weft-mesh.io/v1alpha1
kind: TrafficPolicy
metadata: {name: silent, namespace: shop}
spec: {targetRef: {kind: ExternalService, name: silent}, retry: {attempts: 0}, timeouts: {connect: 500ms}}
---
apiVersion: weft-mesh.io/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: shop}
spec: {targetRef: {kind: Service, name: web}, circuitBreaker: {enabled: false}, retry: {attempts: 0}}
---
apiVersion: weft-mesh.io/v1alpha1
kind: TrafficPolicy
metadata: {name: one, namespace: shop}
spec: {targetRef: {kind: Service, name: one}, retry: {attempts: 0}, limits: {connections: 1}}
";

/// What the guide's table says of a reason: its status in HTTP and its code in gRPC.
fn guide() -> BTreeMap<String, (u16, u64)> {
    let rows = table("reasons.md", &[""]).into_iter();
    let number = |text: &str| text.trim().parse::<u64>().expect("a number");
    let rows = rows.map(|(reason, columns)| {
        let status = u16::try_from(number(&columns[0])).expect("a status");
        (reason, (status, number(&columns[1])))
    });
    rows.collect()
}

/// A mesh with a program that is asked, and one that asks.
struct Stage<'a> {
    mesh: &'a Mesh<'a>,
    guide: BTreeMap<String, (u16, u64)>,
    asker: Asker,
    _web: Running,
}

/// Where `reasons.py` is asked.
const WEB: (&str, u16) = ("web.shop.mesh", 8080);

fn request(line: &str, host: &str, fields: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")
}

fn get(path: &str) -> String {
    request(&format!("GET {path}"), WEB.0, "")
}

/// The same as a gRPC call.
fn as_grpc(request: &str) -> String {
    let fields = "\r\ncontent-type: application/grpc\r\nte: trailers\r\n";
    request.replacen("\r\n", fields, 1)
}

impl<'a> Stage<'a> {
    fn start(mesh: &'a Mesh<'a>) -> Self {
        let web = telling(mesh, "web")
            .flag("--service", "web")
            .flag("--service", "one")
            .port("8080:http")
            .port("8082:http2")
            .port("8083:http2")
            .port("8086:http2")
            .port("8084:tcp");
        let web = mesh.run(&web, script("reasons.py").arg("serve"));
        mesh.wait_for_service("web");
        let me = telling(mesh, "me").wait_for("web").wait_for("one");
        let asker = Asker::start(mesh, &me, "me");
        let file = mesh.scratch().file("reasons.yaml", DOCUMENTS);
        let apply = format!("apply --wait 10s -f {}", file.display());
        mesh.command(&apply).success();
        Self {
            mesh,
            guide: guide(),
            asker,
            _web: web,
        }
    }

    fn place(&self, name: &'a str) -> Place<'a> {
        Place {
            mesh: self.mesh,
            name,
        }
    }

    /// A request is answered with a reason, over HTTP and as a gRPC call; the sidecars at `places`
    /// count both and have a line of each.
    fn answered(&self, reason: &str, to: (&str, u16), request: &str, places: &[&'a str]) {
        let (status, _) = self.guide[reason];
        self.answered_with(reason, status, to, request, places);
    }

    fn answered_with(
        &self,
        reason: &str,
        status: u16,
        to: (&str, u16),
        request: &str,
        places: &[&'a str],
    ) {
        let (_, code) = self.guide[reason];
        let answer = self.asker.ask(to, request);
        check(&answer, reason, status, "");
        let call = self.asker.ask(to, &as_grpc(request));
        check(&call, reason, 200, &code.to_string());
        for name in places {
            let place = self.place(name);
            counted(&place, reason);
            logged(&place, reason, status, None);
            logged(&place, reason, 200, Some(code));
        }
    }
}

fn check(answer: &Received, reason: &str, status: u16, grpc_status: &str) {
    let found = (
        answer.status(),
        answer.field("weft-reason"),
        answer.field("grpc-status"),
    );
    assert_eq!(found, (status, reason, grpc_status), "{answer:?}");
}

fn label(reason: &str) -> String {
    format!("reason=\"{reason}\"")
}

/// A sidecar counts requests that ended with a reason.
fn counted(place: &Place<'_>, reason: &str) {
    place.counts("weft_requests_total", &[&label(reason)]);
}

fn logged(place: &Place<'_>, reason: &str, status: u16, grpc_status: Option<u64>) {
    let what = format!("{reason}, {status}, {grpc_status:?}");
    place.logs(&what, |line| {
        line["reason"] == reason
            && line["status"] == status
            && line["grpc_status"].as_u64() == grpc_status
    });
}

/// A sidecar counts connections that were closed for a reason, and its log says so.
fn refused(place: &Place<'_>, reason: &str, parts: &[&str]) {
    let reason_label = label(reason);
    let parts = [&[reason_label.as_str()], parts].concat();
    place.counts("weft_tcp_connections_refused_total", &parts);
    place.says(reason);
}

/// Waits until requests of a peer run at a sidecar.
fn wait_for_requests(place: &Place<'_>, peer: &str, many: f64) {
    wait_for("the requests to run", LIMIT, || {
        let peer = format!("/sa/{peer}\"");
        let running = sum(&place.metrics(), "http_server_active_requests", &[&peer]);
        (running >= many).then_some(())
    });
}

#[test]
fn each_reason_is_told() {
    need!("root", "ip", "python3", "curl");
    let machine = Machine::shared();
    let inside = Namespace::new();
    for address in [OUTSIDE, UNDECLARED] {
        ip(&format!(
            "-n {} address add {address}/32 dev lo",
            inside.name()
        ));
    }
    // One that drops every packet.
    let name = inside.name();
    ip(&format!(
        "-n {name} link add drops type veth peer name dropped"
    ));
    ip(&format!("-n {name} address add 203.0.113.1/24 dev drops"));
    for link in ["drops", "dropped"] {
        ip(&format!("-n {name} link set {link} up"));
    }
    ip(&format!(
        "-n {name} neighbour add 203.0.113.9 lladdr 02:00:00:00:00:09 dev drops nud permanent"
    ));
    let settings = Settings {
        inside: Some(&inside),
        ..Settings::default()
    };
    let mesh = Mesh::with(&machine, settings);
    let stage = Stage::start(&mesh);
    of_the_caller(&stage);
    of_the_application(&stage);
    refused_by_the_application(&stage);
    on_loopback(&stage);
    of_the_mesh(&stage);
    of_connections(&stage);
    of_plaintext(&stage, &inside);
    of_instances_that_are_revoked(&stage);
    of_a_sidecar_that_stops(&stage);
}

fn of_the_caller(stage: &Stage<'_>) {
    let (me, web) = (stage.place("me"), stage.place("web"));
    let no_host = "GET / HTTP/1.1\r\n\r\n";
    stage.answered("bad-request", WEB, no_host, &["me"]);
    let large = format!("X: {}\r\n", "x".repeat(70_000));
    let large = request("GET /", WEB.0, &large);
    stage.answered("headers-too-large", WEB, &large, &["me"]);

    // Broken within its body, when the application has it already.
    let fields = "Transfer-Encoding: chunked\r\n";
    let path = "/slow-broken";
    let head = request(&format!("POST {path}"), WEB.0, fields);
    let mut broken = stage.asker.send(WEB, &head, 0.1);
    assert_eq!(broken.received().error, "TimeoutError");
    wait_for_requests(&web, "me", 1.0);
    broken.send("no length\r\n", 20.0);
    check(&broken.received(), "bad-request", 400, "");
    me.logs("a broken body", |line| {
        line["reason"] == "bad-request" && line["path"] == path && line["status"] == 400
    });
    // To the application's sidecar the request ends early.
    web.logs("the same", |line| {
        line["path"] == path && line["reason"] == "client-gone"
    });

    let mut left = stage.asker.send(WEB, &get("/slow"), 0.5);
    let silent = left.received();
    assert_eq!(silent.error, "TimeoutError", "{silent:?}");
    wait_for_requests(&web, "me", 1.0);
    left.end();
    for place in [me, web] {
        let line = place.logs("a caller that left", |line| {
            line["reason"] == "client-gone" && line["path"] == "/slow"
        });
        assert_eq!(line["status"], Value::Null);
        counted(&place, "client-gone");
    }
}

fn of_the_application(stage: &Stage<'_>) {
    let both = ["me", "web"];
    stage.answered("upstream-reset", WEB, &get("/reset"), &both);
    stage.answered("upstream-protocol-error", WEB, &get("/garbage"), &both);
    // The application's head, not the caller's.
    stage.answered_with("headers-too-large", 502, WEB, &get("/large"), &both);
    // Within a response there is nobody to tell any more.
    let cut = stage.asker.ask(WEB, &get("/cut"));
    assert_eq!((cut.status(), cut.field("weft-reason")), (200, ""));
    for name in both {
        stage.place(name).logs("a response that was cut", |line| {
            line["reason"] == "upstream-reset" && line["path"] == "/cut"
        });
    }
    // A server in HTTP/2 that announces no extended CONNECT.
    let upgrade = "Connection: upgrade\r\nUpgrade: echo\r\n";
    let upgrade = request("GET /", WEB.0, upgrade);
    let answer = stage.asker.ask((WEB.0, 8083), &upgrade);
    check(&answer, "upgrade-failed", 502, "");
    for name in both {
        counted(&stage.place(name), "upgrade-failed");
        logged(&stage.place(name), "upgrade-failed", 502, None);
    }
}

/// REFUSED_STREAM for every request, and GOAWAY, as often as it is asked.
fn refused_by_the_application(stage: &Stage<'_>) {
    let web = stage.place("web");
    let replays = || sum(&web.metrics(), "weft_pool_replays_total", &["application"]);
    for port in [8082, 8083] {
        let before = replays();
        let to = (WEB.0, port);
        stage.answered("application-refused", to, &get("/refused"), &["me", "web"]);
        // Two requests, three repetitions each.
        assert_eq!((replays() - before) as u32, 6, "port {port}");
        // One that is not idempotent is refused no less, and not sent less often: nothing was done.
        let post = request("POST /refused", WEB.0, "Content-Length: 2\r\n") + "ok";
        let answer = stage.asker.ask(to, &post);
        check(&answer, "application-refused", 503, "");
    }
    // One that was half sent when the application ended the connection for another's sake.
    let (before, body) = (replays(), "x".repeat(1 << 20));
    let large = request("POST /large", WEB.0, "Content-Length: 1048576\r\n") + &body;
    let answer = stage.asker.ask((WEB.0, 8086), &large);
    assert_eq!((answer.status(), answer.field("weft-reason")), (200, ""));
    assert_eq!((replays() - before) as u32, 1);
}

fn on_loopback(stage: &Stage<'_>) {
    let mesh = stage.mesh;
    let lonely = telling(mesh, "lonely").port("8080:http");
    let _lonely = mesh.run(&lonely, script("reasons.py").arg("serve"));
    mesh.wait_for_service("lonely");
    let to = ("lonely.shop.mesh", 8080);
    let ask = |path: &str| request(&format!("GET {path}"), to.0, "");
    assert_eq!(stage.asker.ask(to, &ask("/loopback")).status(), 200);
    let places = ["me", "lonely"];
    wait_for("it to listen on loopback only", LIMIT, || {
        let answer = stage.asker.ask(to, &ask("/"));
        (answer.field("weft-reason") == "application-loopback-only").then_some(())
    });
    stage.answered("application-loopback-only", to, &ask("/"), &places);
}

fn of_the_mesh(stage: &Stage<'_>) {
    let empty = ("empty.shop.mesh", 8080);
    let request_empty = request("GET /", empty.0, "");
    stage.answered("no-endpoints", empty, &request_empty, &["me"]);
    let far = ("far.example.test", 8080);
    stage.answered("connect-failed", far, &request("GET /", far.0, ""), &["me"]);
    let silent = ("silent.example.test", 8080);
    let request_silent = request("GET /", silent.0, "");
    stage.answered("connect-timeout", silent, &request_silent, &["me"]);
    let me = stage.place("me");
    me.counts(
        "weft_pool_connection_failures_total",
        &["pool=\"external\""],
    );

    // A stream of bytes has the only connection there may be.
    let one = ("one.shop.mesh", 8080);
    let upgrade = "Connection: upgrade\r\nUpgrade: echo\r\n";
    let upgrade = request("GET /up", one.0, upgrade);
    let mut held = stage.asker.send(one, &upgrade, 20.0);
    assert_eq!(held.received().status(), 101);
    let answer = stage.asker.ask(one, &upgrade);
    check(&answer, "connection-limit", 503, "");
    counted(&me, "connection-limit");
    logged(&me, "connection-limit", 503, None);
    held.end();
}

fn of_connections(stage: &Stage<'_>) {
    let me = stage.place("me");
    for (reason, to, service) in [
        ("service-not-found", (NOBODY, 80), "refused"),
        ("port-not-declared", (WEB.0, 9999), "shop/web"),
        // Of the machine only what was opened (--host-port) is there.
        ("destination-refused", ("host.mesh", 9), "refused"),
        ("connect-failed", (UNDECLARED, 9), "outside"),
    ] {
        let answer = stage.asker.ask(to, "");
        assert!(answer.is_refused(), "{reason}: {answer:?}");
        let service = format!("service=\"{service}\"");
        refused(&me, reason, &["outbound", &service]);
    }
    let one = ("one.shop.mesh", 8084);
    let mut held = stage.asker.send(one, "ping", 0.5);
    assert_eq!(held.received().error, "TimeoutError", "it stands");
    let answer = stage.asker.ask(one, "ping");
    assert!(answer.is_refused(), "{answer:?}");
    let parts = ["outbound", "service=\"shop/one\""];
    refused(&me, "connection-limit", &parts);
    held.end();
}

/// A peer's own port takes mutual TLS only.
fn of_plaintext(stage: &Stage<'_>, inside: &Namespace) {
    let web = stage.place("web");
    let shown = stage.mesh.command("get services web -n shop -o json");
    let shown: Value = serde_json::from_str(&shown.success().stdout).expect("JSON");
    let address = crate::way::address_in(&shown).expect("an endpoint");
    let (host, port) = address.rsplit_once(':').expect("HOST:PORT");
    let code = format!(
        "import socket\n\
         s = socket.create_connection(('{host}', {port}), timeout=20)\n\
         s.sendall(b'GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n')\n\
         try: print('read', s.recv(99))\n\
         except OSError as e: print(type(e).__name__)\n"
    );
    let ended = python_code(&code).under(inside.enter());
    let logs = stage.mesh.scratch().dir("plaintext");
    let ended = ended.run("plaintext", &logs, LIMIT).success();
    assert_eq!(ended.stdout.trim(), "ConnectionResetError");
    let parts = ["direction=\"inbound\"", "reason=\"plaintext-refused\""];
    web.counts("weft_handshake_failures_total", &parts);
    web.says("plaintext-refused");
}

/// What is under way with an instance that is revoked, at its callers and at those whom it calls.
fn of_instances_that_are_revoked(stage: &Stage<'_>) {
    let mesh = stage.mesh;
    let outcast = telling(mesh, "outcast").port("8080:http").port("8084:tcp");
    let _outcast = mesh.run(&outcast, script("reasons.py").arg("serve"));
    mesh.wait_for_service("outcast");
    let (me, web) = (stage.place("me"), stage.place("web"));
    let host = "outcast.shop.mesh";
    // One that is not sent again.
    let slow = request("POST /slow", host, "Content-Length: 0\r\n");
    let mut waiting = stage.asker.send((host, 8080), &slow, 20.0);
    let mut calling = stage.asker.send((host, 8080), &as_grpc(&slow), 20.0);
    let mut stream = stage.asker.send((host, 8084), "ping", 0.5);
    assert_eq!(stream.received().error, "TimeoutError", "it stands");
    wait_for_requests(&stage.place("outcast"), "me", 2.0);
    crate::lifetimes::revoke(mesh, "outcast");
    let (status, code) = stage.guide["peer-revoked"];
    check(&waiting.received(), "peer-revoked", status, "");
    check(&calling.received(), "peer-revoked", 200, &code.to_string());
    counted(&me, "peer-revoked");
    logged(&me, "peer-revoked", status, None);
    logged(&me, "peer-revoked", 200, Some(code));
    refused(&me, "peer-revoked", &["outbound"]);

    let caller = telling(mesh, "caller").wait_for("web");
    let asker = Asker::start(mesh, &caller, "caller");
    let _waiting = asker.send(WEB, &get("/slow"), 20.0);
    let mut stream = asker.send(("web.shop.mesh", 8084), "ping", 0.5);
    assert_eq!(stream.received().error, "TimeoutError", "it stands");
    wait_for_requests(&web, "caller", 1.0);
    crate::lifetimes::revoke(mesh, "caller");
    let line = web.logs("a request of a caller that was revoked", |line| {
        line["reason"] == "peer-revoked" && line["path"] == "/slow"
    });
    assert_eq!(line["status"], Value::Null);
    counted(&web, "peer-revoked");
    refused(&web, "peer-revoked", &["inbound"]);
}

/// What is under way when the time for leaving is over.
fn of_a_sidecar_that_stops(stage: &Stage<'_>) {
    let mesh = stage.mesh;
    let leaver = telling(mesh, "leaver").port("8080:http").port("8084:tcp");
    let mut running = mesh.run(&leaver, script("reasons.py").arg("serve"));
    mesh.wait_for_service("leaver");
    let host = "leaver.shop.mesh";
    let slow = request("GET /slow", host, "");
    let _slow = stage.asker.send((host, 8080), &slow, 20.0);
    let mut stream = stage.asker.send((host, 8084), "ping", 0.5);
    assert_eq!(stream.received().error, "TimeoutError", "it stands");
    let place = stage.place("leaver");
    wait_for_requests(&place, "me", 1.0);
    // The second signal cuts the leaving short. The program goes on, and so does the admin interface.
    wait_for("it cuts what is left", LIMIT, || {
        running.signal(Signal::TERM);
        mesh.log("leaver").contains("draining").then_some(())
    });
    refused(&place, "draining", &["inbound"]);
    let line = place.logs("a request that was cut", |line| {
        line["reason"] == "draining" && line["path"] == "/slow"
    });
    assert_eq!(line["status"], Value::Null);
    counted(&place, "draining");
}

/// Without the control plane: what was not known before stays unknown, and a certificate that ends
/// shows nobody anything.
#[test]
fn reasons_of_a_sidecar_without_its_control_plane() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let settings = Settings {
        flags: &["--leaf-ttl", "10s"],
        ..Settings::default()
    };
    let mesh = Mesh::with(&machine, settings);
    let serve = || script("reasons.py").arg("serve");
    let _web = mesh.run(&telling(&mesh, "web").port("8080:http"), serve());
    mesh.wait_for_service("web");
    let me = telling(&mesh, "me").wait_for("web");
    let asker = Asker::start(&mesh, &me, "me");
    let place = Place {
        mesh: &mesh,
        name: "me",
    };
    // Known, and not connected to.
    mesh.kill_control_plane();
    let answer = asker.ask((NOBODY, 80), "");
    assert!(answer.is_refused(), "{answer:?}");
    refused(&place, "discovery-unavailable", &["outbound"]);

    wait_for("its certificate to end", LIMIT, || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.expect("a time after 1970").as_secs_f64();
        let end = "weft_certificate_expiry_timestamp_seconds";
        (sum(&place.metrics(), end, &[]) + 1.0 < now).then_some(())
    });
    let (status, code) = guide()["peer-not-authenticated"];
    let answer = asker.ask(WEB, &get("/"));
    check(&answer, "peer-not-authenticated", status, "");
    let call = asker.ask(WEB, &as_grpc(&get("/")));
    check(&call, "peer-not-authenticated", 200, &code.to_string());
    counted(&place, "peer-not-authenticated");
    logged(&place, "peer-not-authenticated", status, None);
    logged(&place, "peer-not-authenticated", 200, Some(code));
    let parts = [
        "direction=\"outbound\"",
        "reason=\"peer-not-authenticated\"",
    ];
    place.counts("weft_handshake_failures_total", &parts);
}

/// A client that says nothing where only a request may come.
#[test]
fn a_silent_client_of_an_http_port_is_closed() {
    need!("root", "ip", "python3", "curl");
    let machine = Machine::shared();
    let settings = PodSettings {
        flags: &[],
        config: "timeouts: {client_first: 1s}\n",
    };
    let pods = Pods::meshed_with(&machine, &settings);
    let _web = pods.serve("web", &["8080:http"], script("reasons.py").arg("serve"));
    let code = format!(
        "import socket, time\n\
         def answer():\n\
         \x20   received = b''\n\
         \x20   while not received.endswith(b'ok\\n') and (data := s.recv(4096)): received += data\n\
         \x20   return received[:12]\n\
         s = socket.create_connection(('{host}', 8080), timeout=20)\n\
         began = time.monotonic()\n\
         print(s.recv(1), time.monotonic() - began > 0.9)\n\
         s = socket.create_connection(('{host}', 8080), timeout=20)\n\
         s.sendall(b'GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n')\n\
         print(answer())\n\
         time.sleep(2)\n\
         s.sendall(b'GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n')\n\
         print(answer())\n",
        host = pods.pod_address("web"),
    );
    // In good order, as one that is not needed; between requests a client has longer.
    let ended = pods.outside(python_code(&code), LIMIT).success().stdout;
    let lines: Vec<&str> = ended.lines().collect();
    assert_eq!(lines[0], "b'' True", "{ended}");
    assert_eq!(lines[1..], ["b'HTTP/1.1 200'"; 2], "{ended}");
    let parts = [
        "direction=\"inbound\"",
        "peer=\"outside\"",
        "reason=\"client-timeout\"",
    ];
    let refused = "weft_tcp_connections_refused_total";
    assert!(sum(&pods.metrics("web"), refused, &parts) > 0.0);
}
