//! The metrics that stay at 0, or away, as long as all is well: each is counted when its trouble comes.

use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::promised::{labels, mislabelled};
use crate::support::{
    Asker, Machine, Mesh, Place, Program, Running, free_port, need, script, sum, telling, wait_for,
    weft_binary,
};

const LIMIT: Duration = Duration::from_secs(60);

/// Metrics of trouble that [`each_metric_of_trouble_is_counted`] finds counted.
pub(crate) const METRICS: &[&str] = &[
    "weft_tcp_connections_refused_total",
    "weft_connections_refused_total",
    "weft_handshake_failures_total",
    "weft_detection_timeouts_total",
    "weft_pool_pending_requests",
    "weft_pool_connection_failures_total",
    "weft_pool_overflows_total",
    "weft_pool_replays_total",
    "weft_breaker_state",
    "weft_breaker_opened_total",
    "weft_concurrency_refused_total",
    "weft_log_lines_dropped_total",
];

const POLICIES: &str = "\
---
apiVersion: weft-mesh.io/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRef: {kind: Service, name: web}
  retry: {attempts: 0}
  circuitBreaker: {consecutiveFailures: 1, openTime: 300s}
  adaptiveConcurrency: {server: {initial: 1, min: 1, max: 1}}
";

/// A sidecar by itself, with a configuration of its own.
struct Alone<'a> {
    place: Place<'a>,
    running: Running,
}

impl<'a> Alone<'a> {
    /// `workload` and `more` are parts of its configuration; `before` is what the shell does first.
    fn start(
        mesh: &'a Mesh<'a>,
        name: &'a str,
        (port, workload): (Option<u16>, &str),
        more: &str,
        before: &str,
    ) -> Self {
        let place = Place { mesh, name };
        let port = port.map_or(String::new(), |port| format!(" --port {port}"));
        let create =
            format!("token create --workload shop/{name} --service {name} --ttl 10m{port}");
        let token = mesh.command(&create).success().stdout;
        let token = mesh.scratch().file(&format!("{name}.token"), token);
        let state: PathBuf = mesh.scratch().dir(&format!("{name}-state"));
        let config = format!(
            "workload: {{name: {name}, namespace: shop{workload}}}\n\
             control_plane: {{address: \"127.0.0.1:{}\", token_file: {}}}\n\
             state_dir: {}\nworkers: 1\naccess_log: {}\n\
             listeners: {{outbound: null, inbound: null, dns: null, admin: null, metrics: null, \
             admin_socket: {}}}\n{more}",
            mesh.port(),
            token.display(),
            state.display(),
            place.file("json").display(),
            place.file("sock").display(),
        );
        let file = mesh.scratch().file(&format!("{name}.yaml"), config);
        let line = format!(
            "{before} exec {} proxy --config {}",
            weft_binary().display(),
            file.display()
        );
        let mut running = Program::shell(line).start(name, &mesh.scratch().dir("logs"));
        let socket = place.file("sock");
        running.wait_until("it tells of itself", LIMIT, |_| socket.exists());
        Self { place, running }
    }
}

/// Beside an application with room for one request at a time.
fn narrow<'a>(mesh: &'a Mesh<'a>, application: u16) -> Alone<'a> {
    let ports = format!(
        ", services: [narrow], ports: [{{port: {application}, protocol: http, \
         listen: \"127.0.0.1:0\", loopback: true}}]"
    );
    let more = "limits: {max_application_connections: 1, max_application_pending: 1}\n\
                timeouts: {application_pending: 20s}\n";
    let narrow = Alone::start(mesh, "narrow", (Some(application), &ports), more, "");
    mesh.wait_for_service("narrow");
    narrow
}

#[test]
fn each_metric_of_trouble_is_counted() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let serve = || script("reasons.py").arg("serve");
    let web = telling(&mesh, "web").port("8080:http").port("8083:http2");
    let _web = mesh.run(&web.port("8085"), serve());
    mesh.wait_for_service("web");
    let asker = Asker::start(&mesh, &telling(&mesh, "me").wait_for("web"), "me");
    let file = mesh.scratch().file("policies.yaml", POLICIES);
    let apply = format!("apply --wait 10s -f {}", file.display());
    mesh.command(&apply).success();

    let mut scrapes = with_a_program(&mesh, &asker);
    scrapes.push_str(&with_limits(&mesh));
    scrapes.push_str(&with_a_log_that_nobody_reads(&mesh));
    let labels = labels();
    let missing: Vec<&&str> = METRICS
        .iter()
        .filter(|name| **name != "weft_pool_pending_requests" && sum(&scrapes, name, &[]) <= 0.0)
        .collect();
    assert!(missing.is_empty(), "not counted: {missing:?}");
    let wrong = mislabelled(&scrapes, &labels);
    assert!(wrong.is_empty(), "labels that the guide lacks: {wrong:?}");
}

/// What the program of a workload and its server come to.
fn with_a_program(mesh: &Mesh<'_>, asker: &Asker) -> String {
    let (me, web) = (Place { mesh, name: "me" }, Place { mesh, name: "web" });
    let host = "web.shop.mesh";
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    // Two at a time are one too many for its own sidecar.
    let mut first = asker.send((host, 8080), &get("/pause"), 20.0);
    web.counts("weft_concurrency_in_flight", &[]);
    let second = asker.ask((host, 8080), &get("/"));
    assert_eq!(
        (second.status(), second.field("weft-reason")),
        (503, "load-shed")
    );
    assert_eq!(first.received().status(), 200);
    let refused = "weft_concurrency_refused_total";
    web.counts(refused, &["direction=\"inbound\"", "priority=\"default\""]);

    // Half of a TLS record's head: nothing, as yet.
    let mut undecided = asker.send((host, 8085), "\u{16}", 1.0);
    me.counts("weft_detection_timeouts_total", &[]);
    undecided.received();
    undecided.end();
    asker.ask((host, 9999), "");
    me.counts(
        "weft_tcp_connections_refused_total",
        &["reason=\"port-not-declared\""],
    );
    // Refused by the application, and asked again.
    asker.ask((host, 8083), &get("/"));
    web.counts("weft_pool_replays_total", &["pool=\"application\""]);

    // A failure opens the breaker of the endpoint.
    assert_eq!(asker.ask((host, 8080), &get("/503")).status(), 503);
    me.counts("weft_breaker_opened_total", &["service=\"shop/web\""]);
    let open = me.metrics();
    let open = open
        .lines()
        .filter(|line| line.starts_with("weft_breaker_state{"));
    let open: Vec<&str> = open.filter(|line| line.ends_with(" 2")).collect();
    assert!(!open.is_empty(), "no breaker is open");
    me.metrics() + &web.metrics()
}

/// What sidecars with low limits come to.
fn with_limits(mesh: &Mesh<'_>) -> String {
    let application = free_port();
    let backend = format!(
        "import http.server, time\n\
         class Handler(http.server.BaseHTTPRequestHandler):\n\
         \x20   protocol_version = 'HTTP/1.1'\n\
         \x20   def do_GET(self):\n\
         \x20       time.sleep(3)\n\
         \x20       self.send_response(200); self.send_header('Content-Length', '0'); self.end_headers()\n\
         http.server.ThreadingHTTPServer(('127.0.0.1', {application}), Handler).serve_forever()\n"
    );
    let logs = mesh.scratch().dir("application");
    let mut backend = crate::support::python_code(&backend).start("backend", &logs);
    backend.wait_until("it listens", LIMIT, |_| {
        TcpStream::connect(("127.0.0.1", application)).is_ok()
    });
    let narrow = narrow(mesh, application);
    let port = free_port();
    let more = format!(
        "upstreams: [{{service: narrow, listen: \"127.0.0.1:{port}\"}}]\n\
         limits: {{max_connections: 20}}\ntimeouts: {{client_head: 300ms}}\n"
    );
    let caller = Alone::start(mesh, "caller", (None, ""), &more, "");
    wait_for("the caller's sidecar", LIMIT, || {
        TcpStream::connect(("127.0.0.1", port)).ok()
    });
    let asker = Asker::Test(([127, 0, 0, 1], port).into());
    let to = ("", 0);

    late(&asker, &caller.place);
    let get = "GET / HTTP/1.1\r\nHost: narrow\r\nConnection: close\r\n\r\n";
    let served = asker.ask(to, get);
    assert_eq!(served.status(), 200, "{served:?}");
    // One is served, one waits, and others find it waiting.
    let mut asked: Vec<_> = (0..4).map(|_| asker.send(to, get, 20.0)).collect();
    let pending = ["pool=\"application\""];
    narrow.place.counts("weft_pool_pending_requests", &pending);
    let answers = asked.iter_mut().map(|sent| sent.received());
    let answers: Vec<_> = answers
        .map(|answer| answer.field("weft-reason").to_owned())
        .collect();
    assert!(
        answers.iter().any(|reason| reason == "pending-limit"),
        "{answers:?}"
    );
    narrow.place.counts("weft_pool_overflows_total", &pending);
    drop(asked);

    // More connections than there may be.
    let many: Vec<_> = (0..25)
        .map(|_| TcpStream::connect(("127.0.0.1", port)))
        .collect();
    caller.place.counts("weft_connections_refused_total", &[]);
    let parts = ["reason=\"connection-limit\"", "peer=\"application\""];
    let refused = "weft_tcp_connections_refused_total";
    caller.place.counts(refused, &parts);
    caller.place.says("connection-limit");
    drop(many);

    drop(backend);
    let unreachable = asker.ask(to, get);
    assert_eq!(unreachable.field("weft-reason"), "application-unreachable");
    let failed = "weft_pool_connection_failures_total";
    narrow.place.counts(failed, &pending);
    // The port of a sidecar takes TLS only.
    let shown = mesh
        .command("get services narrow -n shop -o json")
        .success();
    let shown = serde_json::from_str(&shown.stdout).expect("JSON");
    let address = crate::way::address_in(&shown).expect("an endpoint");
    let own = Asker::Test(address.parse().expect("an address"));
    own.ask(to, "not TLS");
    narrow
        .place
        .counts("weft_handshake_failures_total", &["inbound"]);
    narrow.place.metrics() + &caller.place.metrics()
}

/// A request whose head does not go on (`client-timeout`).
fn late(asker: &Asker, place: &Place<'_>) {
    let half = "GET /late HTTP/1.1\r\nHost: narrow\r\n";
    let answer = asker.ask(("", 0), half);
    assert_eq!(
        (answer.status(), answer.field("weft-reason")),
        (408, "client-timeout")
    );
    let call = asker.ask(
        ("", 0),
        &format!("{half}Content-Type: application/grpc\r\n"),
    );
    assert_eq!(
        (
            call.status(),
            call.field("weft-reason"),
            call.field("grpc-status")
        ),
        (200, "client-timeout", "4")
    );
    place.counts("weft_requests_total", &["reason=\"client-timeout\""]);
    place.logs("a late head", |line| {
        line["reason"] == "client-timeout" && line["status"] == 408
    });
    place.logs("a late head of a call", |line| {
        line["reason"] == "client-timeout" && line["grpc_status"] == 4
    });
}

/// Standard error is a pipe that is full.
fn with_a_log_that_nobody_reads(mesh: &Mesh<'_>) -> String {
    let port = free_port();
    let more = format!(
        "upstreams: [{{service: nobody, listen: \"127.0.0.1:{port}\"}}]\n\
         limits: {{log_queue: 1}}\nlog: {{level: info}}\n"
    );
    let pipe = mesh.scratch().path().join("stderr");
    // It holds the other end itself, and never reads.
    let before = format!(
        "mkfifo {pipe}; exec 3<>{pipe} 2>{pipe};",
        pipe = pipe.display()
    );
    let mut unread = Alone::start(mesh, "unread", (None, ""), &more, &before);
    wait_for("lines to be dropped", LIMIT, || {
        for _ in 0..100 {
            // Each is a line: the service does not exist.
            drop(TcpStream::connect(("127.0.0.1", port)));
        }
        assert!(unread.running.ended().is_none(), "it has ended");
        let dropped = "weft_log_lines_dropped_total";
        (sum(&unread.place.metrics(), dropped, &[]) > 0.0).then_some(())
    });
    unread.place.metrics()
}
