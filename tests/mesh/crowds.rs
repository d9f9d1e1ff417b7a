//! One client with thousands of connections: its neighbours go on, memory is bounded and given back.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::http::nginx;
use crate::support::{
    Bed, Load, Machine, Mesh, Program, Running, Workload, free_port, need, wait_for,
};

const LIMIT: Duration = Duration::from_secs(60);
/// Connections that the crowd tries to have, where the limit on open files allows so many.
const CROWD: usize = 10_000;
/// What the sidecar may take for a crowd, and what it may keep of it afterwards, KiB.
const CROWD_KIB: u64 = 96 * 1024;
const KEPT_KIB: u64 = 24 * 1024;

/// Opens as many connections as it can, and says something on each.
fn crowd(target: SocketAddr, says: &[u8]) -> Vec<TcpStream> {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let room = files.current.map_or(CROWD, |files| {
        usize::try_from(files)
            .unwrap_or(CROWD)
            .saturating_sub(1_000)
    });
    let mut crowd = Vec::new();
    for _ in 0..CROWD.min(room) {
        let connected = TcpStream::connect_timeout(&target, Duration::from_secs(5));
        if let Ok(mut stream) = connected {
            // It may have been reset by now.
            let _refused = stream.write_all(says);
            crowd.push(stream);
        }
    }
    crowd
}

/// Memory of its own that a process has, KiB: the pages of its program come and go.
fn resident(running: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid()));
    let status = status.expect("read its status");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.expect("RssAnon")
}

/// A new caller: its sidecar makes a handshake of its own.
fn newcomer(mesh: &Mesh<'_>, name: &str) {
    let get = "curl --silent --fail --max-time 10 http://web.shop.mesh:8080/";
    let caller = Workload::new(name).wait_for("web");
    mesh.run_to_end(&caller, Program::line(get), LIMIT)
        .success();
}

/// The metric, its reason and the log say that connections were refused.
fn refusals_are_told(mesh: &Mesh<'_>, web: &Running, admin: &std::path::Path) {
    let scrape = format!(
        "curl --silent --unix-socket {} http://sidecar/metrics",
        admin.display()
    );
    let logs = mesh.scratch().dir("curl");
    let metrics = Program::line(&scrape)
        .run("metrics", &logs, LIMIT)
        .success()
        .stdout;
    let refused = metrics.lines().find_map(|line| {
        line.strip_prefix("weft_connections_refused_total ")?
            .parse::<f64>()
            .ok()
    });
    assert!(refused.expect("the metric") > 0.0, "nobody was refused");
    assert!(metrics.contains("reason=\"connection-limit\""), "{metrics}");
    assert!(
        web.stderr().contains("connection-limit"),
        "{}",
        web.stderr()
    );
}

#[test]
fn idle_connections_of_one_client_lock_nobody_out() {
    need!("nginx", "curl", "python3");
    let machine = Machine::alone();
    let mesh = Mesh::start(&machine);
    let published = free_port();
    let access = mesh.scratch().path().join("web.sock");
    let web = Workload::new("web")
        .port("8080")
        .flag("--admin-socket", &access.display().to_string())
        .flag("--publish", &format!("{published}:8080"));
    let web = mesh.run(&web, nginx(mesh.dir(), 8080));
    mesh.wait_for_service("web");
    let state = mesh.scratch().dir("load");
    let url = "http://web.shop.mesh:8080/";
    let program = Load::program("http", url, &state, &["--connections", "4", "--rate", "40"]);
    let load = Load::watch(
        mesh.run(&Workload::new("neighbour").wait_for("web"), program),
        state,
    );
    let before = resident(&web);

    let target = SocketAddr::from(([127, 0, 0, 1], published));
    let idle = crowd(target, b"");
    newcomer(&mesh, "newcomer");
    let grown = resident(&web).saturating_sub(before);
    assert!(
        grown < CROWD_KIB,
        "{grown} KiB for {} connections",
        idle.len()
    );
    refusals_are_told(&mesh, &web, &access);

    // Those that say something and no more: half of a ClientHello, half of HTTP/2's preface.
    drop(idle);
    for says in [
        &b"\x16\x03\x01\x07\x00\x01\x00\x06\xfc\x03\x03"[..],
        b"PRI * HTTP/2.0\r\n",
    ] {
        let halves = crowd(target, says);
        newcomer(&mesh, "newcomer");
        let grown = resident(&web).saturating_sub(before);
        assert!(
            grown < CROWD_KIB,
            "{grown} KiB for {} connections",
            halves.len()
        );
    }
    wait_for("memory to be given back", Duration::from_secs(60), || {
        (resident(&web).saturating_sub(before) < KEPT_KIB).then_some(())
    });
    let totals = load.stop_without_failure();
    eprintln!(
        "{} requests of a neighbour, 0 failed; {before} KiB before, {grown} KiB more beside, {} KiB after",
        totals.requests,
        resident(&web)
    );
}

/// On the port for peers: whoever is not identified gives way to who comes.
#[test]
fn silent_connections_to_the_port_for_peers_lock_nobody_out() {
    need!("nginx", "curl", "python3");
    let machine = Machine::alone();
    let mesh = Mesh::start(&machine);
    let web = Workload::new("web").port("8080");
    let web = mesh.run(&web, nginx(mesh.dir(), 8080));
    mesh.wait_for_service("web");
    let listed = mesh
        .command("get services web -n shop -o json")
        .success()
        .stdout;
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let target = address(&listed).unwrap_or_else(|| panic!("no address in {listed:#}"));
    let before = resident(&web);
    let state = mesh.scratch().dir("load");
    let url = "http://web.shop.mesh:8080/";
    let program = Load::program("http", url, &state, &["--connections", "4", "--rate", "40"]);
    let load = Load::watch(
        mesh.run(&Workload::new("neighbour").wait_for("web"), program),
        state,
    );
    for says in [&b""[..], b"\x16\x03\x01\x07\x00\x01\x00\x06\xfc\x03\x03"] {
        let silent = crowd(target, says);
        newcomer(&mesh, "newcomer");
        let grown = resident(&web).saturating_sub(before);
        assert!(
            grown < CROWD_KIB,
            "{grown} KiB for {} connections",
            silent.len()
        );
    }
    load.stop_without_failure();
}

/// Where peers dial the first endpoint.
fn address(listed: &serde_json::Value) -> Option<SocketAddr> {
    match listed {
        serde_json::Value::String(text) => {
            let address: Option<SocketAddr> = text.parse().ok();
            address.filter(|address| address.ip().is_loopback())
        }
        serde_json::Value::Array(items) => items.iter().find_map(address),
        serde_json::Value::Object(fields) => fields.values().find_map(address),
        serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::Number(_) => None,
    }
}
