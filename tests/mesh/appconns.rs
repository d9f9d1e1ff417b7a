//! Connections from a sidecar to its application: how many, for how long, and what is asked again.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::support::{
    Bed, Finished, Machine, Mesh, Program, Running, Workload, free_port, need, python_code, scaled,
    script, wait_for, weft_binary,
};

const LIMIT: Duration = Duration::from_secs(90);

/// What an application says that it has seen (`h2_app.py`, `crashing.py`).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Seen {
    pub(crate) connections: u64,
    most: u32,
    most_open: u32,
    pings: u32,
    requests: u32,
    crashes: u32,
}

/// nginx that speaks HTTP/2 and answers everything, in its default settings otherwise: after 1000
/// requests it takes no more on a connection (`keepalive_requests`).
pub(crate) fn h2_nginx(dir: &Path, port: u16) -> Program {
    h2_nginx_with(dir, port, "")
}

/// The same with more settings.
fn h2_nginx_with(dir: &Path, port: u16, settings: &str) -> Program {
    let dir = dir.join(format!("h2-nginx-{port}"));
    std::fs::create_dir_all(&dir).expect("make a directory");
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o777)).expect("open it to all");
    let config = format!(
        "daemon off; master_process off; pid {dir}/nginx.pid; error_log stderr warn;\n\
         events {{ worker_connections 2000; }}\n\
         http {{ access_log off; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; \
         fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n\
         server {{ listen {port} http2; listen [::]:{port} http2; {settings} \
         location /large {{ root {dir}; }} location / {{ add_header grpc-status 0; return 200 ok; }} }} }}\n",
        dir = dir.display(),
    );
    std::fs::write(dir.join("large"), vec![b'x'; 8 << 20]).expect("write a file");
    let file = dir.join("nginx.conf");
    std::fs::write(&file, config).expect("write nginx.conf");
    Program::new("nginx")
        .arg("-c")
        .arg(file)
        .arg("-e")
        .arg("stderr")
}

/// What `h2_many.py` has seen.
#[derive(Debug, Deserialize)]
struct Many {
    answers: BTreeMap<String, u32>,
    seconds: f64,
}

impl Many {
    fn of(finished: &Finished) -> Self {
        let line = finished.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {finished}"))
    }

    fn only(&self, answer: &str) -> u32 {
        assert_eq!(self.answers.len(), 1, "{self:?}");
        self.answers.get(answer).copied().unwrap_or_default()
    }
}

/// An application that ends its connections after some requests loses none of them.
#[test]
fn a_connection_that_ends_costs_no_request() {
    need!("nginx", "python:h2");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080:http2"], h2_nginx(mesh.dir(), 8080));
    let brief = h2_nginx_with(mesh.dir(), 8081, "keepalive_requests 100;");
    let _brief = mesh.serve("brief", &["8081:http2"], brief);
    let by_default = scaled(2500, 20_000);
    for (service, port, count) in [("web", "8080", by_default), ("brief", "8081", 2500)] {
        for (kind, answer) in [("post", "200:0:"), ("grpc", "200:0:")] {
            let host = mesh.host(service);
            let arguments = [&host, port, &count.to_string(), "20", kind];
            let program = script("h2_many.py").args(arguments.map(ToOwned::to_owned));
            let finished = mesh.call("caller", &[service], program, scaled(LIMIT, 4 * LIMIT));
            let many = Many::of(&finished.success());
            eprintln!("{service}, {kind}: {many:?}");
            assert_eq!(many.only(answer), count, "{service}, {kind}: {many:?}");
        }
    }
}

/// Two sidecars beside each other on this machine, as `weft proxy` runs them with a configuration of
/// its own: one beside the application, one that leads there.
pub(crate) struct Pair<'a> {
    mesh: &'a Mesh<'a>,
    _server: Running,
    client: Running,
    metrics: u16,
    /// Where the caller's sidecar listens.
    pub(crate) port: u16,
}

impl<'a> Pair<'a> {
    pub(crate) fn start(mesh: &'a Mesh<'a>, application: u16, protocol: &str, more: &str) -> Self {
        let (metrics, port) = (free_port(), free_port());
        let listen = format!(
            "  ports: [{{port: {application}, protocol: {protocol}, listen: \"127.0.0.1:0\", loopback: true}}]\n"
        );
        let server = sidecar(mesh, "web", &listen, metrics, more, application);
        mesh.wait_for_service("web");
        let upstream =
            format!("upstreams: [{{service: web, listen: \"127.0.0.1:{port}\"}}]\n{more}");
        let client = sidecar(mesh, "caller", "", free_port(), &upstream, application);
        wait_for("the caller's sidecar", LIMIT, || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Self {
            mesh,
            _server: server,
            client,
            metrics,
            port,
        }
    }

    pub(crate) fn run(&self, program: Program) -> Finished {
        program.run("caller", &self.mesh.scratch().dir("caller"), LIMIT)
    }

    /// What the caller's sidecar has logged.
    pub(crate) fn caller_log(&self) -> String {
        self.client.stdout() + &self.client.stderr()
    }

    fn many(&self, count: u32, at_once: u32, kind: &str) -> Many {
        let port = self.port.to_string();
        let (count, at_once) = (count.to_string(), at_once.to_string());
        let arguments = ["127.0.0.1", &port, &count, &at_once, kind, "web.shop.mesh"];
        let program = script("h2_many.py").args(arguments.map(ToOwned::to_owned));
        Many::of(&self.run(program).success())
    }

    /// A number of the application's sidecar.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let url = format!("http://127.0.0.1:{}/metrics", self.metrics);
        let text = self.run(Program::line("curl --silent --max-time 20").arg(url));
        let line = text.stdout.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        value.unwrap_or_else(|| panic!("no {name}: {text}"))
    }
}

fn sidecar(
    mesh: &Mesh<'_>,
    name: &str,
    ports: &str,
    metrics: u16,
    more: &str,
    application: u16,
) -> Running {
    let port = match ports {
        "" => String::new(),
        _ => format!(" --port {application}"),
    };
    let create = format!("token create --workload shop/{name} --service {name} --ttl 10m{port}");
    let token = mesh.command(&create).success().stdout;
    let token = mesh.scratch().file(&format!("{name}.token"), token);
    let state: PathBuf = mesh.scratch().dir(&format!("{name}-state"));
    let services = match ports {
        "" => String::new(),
        _ => format!("  services: [{name}]\n"),
    };
    let config = format!(
        "workload:\n  name: {name}\n  namespace: shop\n{services}{ports}\
         control_plane:\n  address: \"127.0.0.1:{}\"\n  token_file: {}\nstate_dir: {}\nworkers: 1\n\
         listeners: {{outbound: null, inbound: null, dns: null, admin: null, metrics: \"127.0.0.1:{metrics}\"}}\n{more}",
        mesh.port(),
        token.display(),
        state.display(),
    );
    let file = mesh.scratch().file(&format!("{name}.yaml"), config);
    let program = Program::new(weft_binary()).args(["proxy", "--config"]);
    program
        .arg(file)
        .start(&format!("{name}-proxy"), &mesh.scratch().dir("proxies"))
}

/// An application of ours in HTTP/2.
fn h2_app(mesh: &Mesh<'_>, port: u16, streams: u32, delay: &str) -> Running {
    let arguments = [port.to_string(), streams.to_string(), delay.to_owned()];
    let mut running = script("h2_app.py")
        .args(arguments)
        .start("application", &mesh.scratch().dir("application"));
    running.wait_until("it listens", LIMIT, |_| {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    running
}

fn seen(port: u16) -> Seen {
    let code = format!(
        "import h2.config, h2.connection, h2.events, socket\n\
         s = socket.create_connection((\"127.0.0.1\", {port}), timeout=20)\n\
         c = h2.connection.H2Connection(); c.initiate_connection()\n\
         c.send_headers(1, [(\":method\", \"GET\"), (\":scheme\", \"http\"), (\":path\", \"/seen\"), (\":authority\", \"a\")], end_stream=True)\n\
         s.sendall(c.data_to_send()); ended = False\n\
         while not ended:\n\
         \x20   for e in c.receive_data(s.recv(65536)):\n\
         \x20       if isinstance(e, h2.events.DataReceived): print(e.data.decode())\n\
         \x20       ended |= isinstance(e, h2.events.StreamEnded)\n"
    );
    let dir = tempfile::tempdir().expect("a directory");
    let finished = python_code(&code).run("seen", dir.path(), LIMIT).success();
    serde_json::from_str(finished.stdout.trim()).expect("what it has seen")
}

/// Where the application takes few requests at a time on a connection, there are as many connections
/// as it takes, within the limit; what does not fit waits, and is refused with its reason.
#[test]
fn as_many_connections_as_the_requests_take() {
    need!("python:h2", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let port = free_port();
    let _application = h2_app(&mesh, port, 2, "1.5");
    let pair = Pair::start(&mesh, port, "http2", "");
    let many = pair.many(8, 8, "get");
    assert_eq!(many.only("200:0:"), 8, "{many:?}");
    let seen = seen(port);
    assert_eq!((seen.requests, seen.most), (8, 2), "{seen:?}");
    assert!(many.seconds < 4.5, "one after the other: {many:?}");
    drop(pair);

    let few = "limits: {max_application_connections: 1, max_application_pending: 3}\n\
               timeouts: {application_pending: 1s}\n";
    let other = Mesh::start(&machine);
    let port = free_port();
    let _application = h2_app(&other, port, 2, "3");
    let pair = Pair::start(&other, port, "http2", few);
    // Nobody repeats them: they are not idempotent.
    let many = pair.many(8, 8, "post");
    eprintln!("{many:?}");
    // Two are under way; three wait in vain, three are refused at once.
    assert_eq!(many.answers.get("200:0:"), Some(&2), "{many:?}");
    assert_eq!(many.answers.get("503::pending-limit"), Some(&6), "{many:?}");
    let refused = pair.metric("weft_pool_overflows_total{pool=\"application\"}");
    assert!(refused >= 6.0, "{refused}");
    let pending = pair.metric("weft_pool_pending_requests{pool=\"application\"}");
    assert!(pending.abs() < 0.5, "{pending}");
}

/// A server that counts PINGs as an offence (as servers of gRPC do by default: gRFC A8), and a call
/// that is silent for longer than it takes.
const STRICT_SERVER: &str = "
import concurrent.futures, sys, time
import grpc
def slow(request, context):
    time.sleep(4)
    return request
handlers = {'Slow': grpc.unary_unary_rpc_method_handler(slow)}
server = grpc.server(concurrent.futures.ThreadPoolExecutor(), options=[
    ('grpc.http2.min_ping_interval_without_data_ms', 60000), ('grpc.http2.max_ping_strikes', 1)])
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler('test.Slow', handlers)])
server.add_insecure_port(sys.argv[1])
server.start()
server.wait_for_termination()
";

const SILENT_CALL: &str = "
import sys
import grpc
with grpc.insecure_channel(sys.argv[1], options=[('grpc.enable_retries', 0)]) as channel:
    print(channel.unary_unary('/test.Slow/Slow')(b'quiet', timeout=30).decode())
";

#[test]
fn no_pings_to_applications() {
    need!("python:h2", "python:grpc");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let mut server = python_code(STRICT_SERVER)
        .arg(&address)
        .start("application", &mesh.scratch().dir("application"));
    server.wait_until("it listens", LIMIT, |_| {
        std::net::TcpStream::connect(&address).is_ok()
    });
    let often = "timeouts: {peer_keepalive: 200ms}\n";
    let pair = Pair::start(&mesh, port, "grpc", often);
    let call = python_code(SILENT_CALL).arg(format!("127.0.0.1:{}", pair.port));
    assert_eq!(pair.run(call).success().stdout, "quiet\n");
    drop(pair);

    // One that counts them sees none at all.
    let other = Mesh::start(&machine);
    let port = free_port();
    let _application = h2_app(&other, port, 100, "2");
    let pair = Pair::start(&other, port, "http2", often);
    assert_eq!(pair.many(1, 1, "get").only("200:0:"), 1);
    assert_eq!(seen(port).pings, 0);
}

/// A request that ends the application's worker meets one connection that was kept and a fresh one,
/// and not every connection in turn.
#[test]
fn a_request_that_crashes_a_worker_is_not_sent_to_all() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let socket = mesh.scratch().path().join("admin.sock");
    let workload = Workload::new("web")
        .port("8080:http")
        .flag("--admin-socket", &socket.display().to_string());
    let _web = mesh.run(&workload, script("crashing.py").arg("8080"));
    mesh.wait_for_service("web");
    mesh.apply(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {name: web, namespace: shop}\n\
         spec: {targetRef: {kind: Service, name: web}, retry: {attempts: 0}}\n",
    )
    .success();
    let url = "http://web.shop.mesh:8080";
    let slow = (0..10).map(|_| format!("curl --silent --max-time 20 {url}/slow >/dev/null & "));
    let all: String = slow.collect();
    let ask = format!(
        "{all} wait; curl --silent --max-time 20 --output /dev/null --write-out '%{{http_code}} ' {url}/crash; \
         curl --silent --max-time 20 {url}/seen"
    );
    let finished = mesh.call("caller", &["web"], Program::shell(ask), LIMIT);
    let stdout = finished.success().stdout;
    let (code, seen) = stdout.split_once(' ').expect("a status and what was seen");
    let seen: Seen = serde_json::from_str(seen.trim()).expect("what it has seen");
    assert_eq!(code, "502", "{stdout}");
    assert!(seen.connections >= 5, "no connections were kept: {stdout}");
    assert_eq!(seen.crashes, 2, "{stdout}");
    let metrics = Program::line("curl --silent --unix-socket")
        .arg(&socket)
        .arg("http://sidecar/metrics")
        .run("metrics", &mesh.scratch().dir("metrics"), LIMIT)
        .success();
    let replays = "weft_pool_replays_total{pool=\"application\"} 1";
    assert!(metrics.stdout.contains(replays), "{metrics}");
}

/// Requests that announce trailers have a connection each, within the limit on connections, and wait for
/// one like all others.
#[test]
fn requests_with_trailers_wait_for_connections_of_their_own() {
    need!("python:h2", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let port = free_port();
    let _application = h2_app(&mesh, port, 100, "1");
    let few = "limits: {max_application_connections: 3}\n";
    let pair = Pair::start(&mesh, port, "http2", few);
    let many = pair.many(8, 8, "trailers");
    eprintln!("{many:?}");
    assert_eq!(many.only("200:0:"), 8, "{many:?}");
    // Asked over one more.
    let seen = seen(port);
    assert_eq!((seen.requests, seen.most), (8, 1), "{seen:?}");
    // The application may see three end after the next three have come.
    assert!(seen.connections > 8 && seen.most_open <= 7, "{seen:?}");
}

/// nginx ends a connection in HTTP/2 on which a request has trailers: whoever sends some, nobody else's
/// request ends with it.
#[test]
fn trailers_of_one_request_end_no_other() {
    need!("nginx", "python:h2");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080:http2"], h2_nginx(mesh.dir(), 8080));
    let program = script("h2_trailers.py").args(["web.shop.mesh", "8080"]);
    let finished = mesh.call("caller", &["web"], program, LIMIT).success();
    assert_eq!(finished.stdout, "whole\n", "{finished}");
}
