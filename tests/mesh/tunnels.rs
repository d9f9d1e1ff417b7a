//! Tunnels (`CONNECT`, `Upgrade`): their connections to the application count with all others, one that
//! is given up is charged to its client, and where they lead. In attacks a neighbour's requests go on.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use weft_core::resets::ResetPolicy;

use crate::appconns::Pair;
use crate::external::{mesh_in, outside, start};
use crate::resets::{CALM, Watched, neighbour};
use crate::support::{
    Bed, Load, Machine, Mesh, Program, Running, Workload, free_port, need, script, wait_for,
};

const LIMIT: Duration = Duration::from_secs(90);

/// What `tunnel_app.py` has seen.
#[derive(Debug, Deserialize)]
struct Seen {
    most_open: u32,
    tunnels: u32,
}

/// A round of `tunnels.py`.
#[derive(Debug, Deserialize)]
struct Round {
    answers: BTreeMap<String, u32>,
    carried: u32,
}

/// An application on this machine's loopback.
fn application(mesh: &Mesh<'_>, program: Program) -> (Running, u16) {
    let port = free_port();
    let program = program.arg(port.to_string());
    let mut running = program.start("application", &mesh.scratch().dir("application"));
    running.wait_until("it listens", LIMIT, |_| {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    (running, port)
}

/// Beyond the limit on connections to the application tunnels wait, and are refused as requests are;
/// they leave the requests of others some, and each gives its place back however it ends.
fn within_the_limit(mesh: &Mesh<'_>, application: u16, protocol: &str) {
    let few = "limits: {max_application_connections: 4}\ntimeouts: {application_pending: 1s}\n";
    let pair = Pair::start(mesh, application, protocol, few);
    let state = mesh.scratch().dir("neighbour");
    let url = format!("http://127.0.0.1:{}/", pair.port);
    let flags = ["--connections", "2", "--rate", "20"];
    let load = Load::program("http", &url, &state, &flags);
    let load = Load::watch(load.start("neighbour", &mesh.scratch().dir("load")), state);
    let arguments = ["127.0.0.1", &pair.port.to_string(), "8", "3"].map(ToOwned::to_owned);
    let finished = pair.run(script("tunnels.py").args(arguments)).success();
    let printed = finished.stdout;
    let expected = [("101", 3), ("503 pending-limit", 5)];
    let expected = expected.map(|(answer, count)| (answer.to_owned(), count));
    for line in printed.lines() {
        let round: Round = serde_json::from_str(line).expect("a round");
        assert_eq!(round.answers, expected.clone().into(), "{printed}");
        assert_eq!(round.carried, 3, "{printed}");
    }
    assert_eq!(printed.lines().count(), 3, "{printed}");
    load.stop_without_failure();
    let refused = pair.metric("weft_pool_overflows_total{pool=\"application\"}");
    assert!(refused >= 15.0, "{refused}");
    wait_for("the places to be given back", LIMIT, || {
        let pending = pair.metric("weft_pool_pending_requests{pool=\"application\"}");
        let active = pair.metric("weft_pool_connections{pool=\"application\",state=\"active\"}");
        (pending < 0.5 && active < 0.5).then_some(())
    });
}

#[test]
fn tunnels_count_among_the_connections_to_the_application() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let (_application, port) = application(&mesh, script("tunnel_app.py"));
    within_the_limit(&mesh, port, "http");
    let curl = Program::line("curl --silent --max-time 20");
    let curl = curl.arg(format!("http://127.0.0.1:{port}/seen"));
    let seen = curl
        .run("seen", &mesh.scratch().dir("seen"), LIMIT)
        .success();
    let seen: Seen = serde_json::from_str(&seen.stdout).expect("what it has seen");
    assert_eq!(seen.tunnels, 9, "{seen:?}");
    // It may see three end after the next three have come; and this one is not the sidecar's.
    assert!(seen.most_open <= 8, "{seen:?}");
}

#[test]
fn tunnels_count_among_the_connections_to_an_application_in_http2() {
    need!("python:h2", "python:websockets", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let (_application, port) = application(&mesh, script("websocket_h2_server.py"));
    within_the_limit(&mesh, port, "http2");
}

/// What `tunnel_storm.py` has done.
#[derive(Debug, Deserialize)]
struct Storm {
    opened: u64,
    connections: u64,
    codes: Vec<u32>,
}

/// A workload with tunnels that is published on the host, and the port.
fn published(mesh: &Mesh<'_>) -> (Running, u16) {
    let port = free_port();
    let web = Workload::new("web")
        .port("8080:http")
        .flag("--publish", &format!("{port}:8080"));
    (mesh.run(&web, script("tunnel_app.py").arg("8080")), port)
}

fn storm(mesh: &Mesh<'_>, kind: &str, port: u16, seconds: &str) -> Storm {
    let program = script("tunnel_storm.py").args([kind, "127.0.0.1", &port.to_string(), seconds]);
    let finished = program.run("storm", &mesh.scratch().dir("storm"), LIMIT);
    let printed = finished.success().stdout;
    let storm: Storm = serde_json::from_str(&printed).expect("a report");
    eprintln!("{kind}: {storm:?}");
    storm
}

/// Tunnels that are given up as soon as they are open are in the budget of resets of their client,
/// whatever it speaks; the next tunnel of an honest one waits until the debt is paid, and no longer.
fn a_storm(kind: &str) {
    let machine = Machine::alone();
    let mesh = Mesh::start(&machine);
    let (web, port) = published(&mesh);
    let load = neighbour(&mesh);
    let watched = Watched::begin(web.pid());
    let began = Instant::now();
    let storm = storm(&mesh, kind, port, "5");
    // 32 are under way at a time.
    let ResetPolicy {
        burst, per_second, ..
    } = ResetPolicy::OUTSIDE;
    let seconds = began.elapsed().as_secs() + 1;
    let most = u64::from(burst) + u64::from(per_second) * seconds + 32 * (1 + seconds);
    assert!(storm.opened > u64::from(burst), "no storm: {storm:?}");
    assert!(storm.opened <= most, "{most}: {storm:?}");
    let codes: &[u32] = match kind {
        "http2" => &[CALM],
        _ => &[],
    };
    assert_eq!(storm.codes, codes, "{storm:?}");
    assert!(storm.connections > 1, "{storm:?}");
    let arguments = ["127.0.0.1", &port.to_string(), "1", "1"].map(ToOwned::to_owned);
    let honest = script("tunnels.py").args(arguments);
    let honest = honest.run("honest", &mesh.scratch().dir("honest"), LIMIT);
    let honest: Round = serde_json::from_str(&honest.success().stdout).expect("a round");
    assert_eq!(
        (honest.answers["101"], honest.carried),
        (1, 1),
        "{honest:?}"
    );
    watched.demand_bounded();
    load.stop_without_failure();
}

#[test]
fn streams_that_are_given_up_are_charged() {
    need!("python3", "curl");
    a_storm("http2");
}

#[test]
fn connections_that_are_given_up_as_tunnels_are_charged() {
    need!("python3", "curl");
    a_storm("http1");
}

/// A tunnel that was answered may end with a reset at any time: browsers and proxies end all so.
#[test]
fn tunnels_that_are_used_are_not_charged() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let (_web, port) = published(&mesh);
    mesh.wait_for_service("web");
    let storm = storm(&mesh, "used", port, "60");
    assert!(storm.opened >= 800, "{storm:?}");
    assert_eq!(
        (storm.connections, &*storm.codes),
        (1, &[][..]),
        "{storm:?}"
    );
}

/// Neither a client outside nor a program says what the application is to be spoken to in.
#[test]
fn the_field_for_the_applications_protocol_is_the_meshs_own() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let port = free_port();
    // Nothing is declared: it is spoken to in what its caller speaks.
    let web = Workload::new("web")
        .port("8080")
        .flag("--publish", &format!("{port}:8080"));
    let _web = mesh.run(&web, script("tunnel_app.py").arg("8080"));
    mesh.wait_for_service("web");
    let expected = "200 GET /head HTTP/1.1 False\n101\n".repeat(3);
    let outside = script("tunnel_fields.py").args(["127.0.0.1", &port.to_string()]);
    let outside = outside.run("outside", &mesh.scratch().dir("outside"), LIMIT);
    assert_eq!(outside.success().stdout, expected);
    let program = script("tunnel_fields.py").args(["web.shop.mesh", "8080"]);
    let program = mesh.call("caller", &["web"], program, LIMIT);
    assert_eq!(program.success().stdout, expected);
}

const PROXY: &str = "198.51.100.7";
const SERVER: &str = "198.51.100.8";

/// tinyproxy, which logs what it is asked for.
fn tinyproxy(dir: &Path) -> Program {
    let file = dir.join("tinyproxy-outside.conf");
    let config = "Port 3128\nTimeout 60\nMaxClients 100\nLogLevel Connect\n";
    std::fs::write(&file, config).expect("write tinyproxy.conf");
    Program::new("tinyproxy").arg("-d").arg("-c").arg(file)
}

/// A program in the mesh uses a forward proxy outside: one that nothing is declared of gets its bytes
/// as they are, one that is declared gets its requests. A server that answers `CONNECT` with 101 opens
/// no tunnel.
#[test]
fn connect_leaves_the_mesh() {
    need!("root", "ip", "curl", "tinyproxy", "python3");
    let machine = Machine::shared();
    let inside = outside(&[PROXY, SERVER]);
    let mesh = mesh_in(&machine, &inside);
    let proxy = tinyproxy(mesh.scratch().path());
    let _proxy = start(&inside, &mesh, "proxy", 3128, proxy);
    let server = script("target_echo.py").arg("9000");
    let _server = start(&inside, &mesh, "server", 9000, server);
    let application = script("tunnel_app.py").arg("9001");
    let _application = start(&inside, &mesh, "application", 9001, application);
    let declared = format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: ExternalService\n\
         metadata: {{name: proxy, namespace: shop}}\n\
         spec: {{hosts: [proxy.example.test], resolution: static, endpoints: [{{address: {PROXY}}}], \
         ports: [{{port: 80, protocol: http, targetPort: 3128}}, \
         {{port: 81, protocol: http, targetPort: 9001}}]}}\n"
    );
    mesh.apply(&declared).success();
    let asked = [
        format!("--proxy http://{PROXY}:3128 http://{SERVER}:9000/a"),
        format!("--proxy http://proxy.example.test:80 http://{SERVER}:9000/b"),
        "--proxy http://proxy.example.test:81 http://switch:9000/c".to_owned(),
    ];
    let curl = "curl --silent --show-error --http1.1 --max-time 20 --proxytunnel \
                --write-out '%{http_connect}\\n'";
    let asked = asked.map(|asked| format!("{curl} {asked}; "));
    let run = mesh.run_to_end(&Workload::new("me"), Program::shell(asked.concat()), LIMIT);
    let lines: Vec<&str> = run.stdout.lines().collect();
    let seen = |path: &str| format!("GET {path} HTTP/1.1 | Host: {SERVER}:9000");
    let expected = [&seen("/a"), "200", &seen("/b"), "200", "502"];
    assert_eq!(lines, expected, "{run}");
}
