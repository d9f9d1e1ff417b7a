//! One client with thousands of connections: its neighbours go on, memory is bounded and given back.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::http::nginx;
use crate::support::{
    Bed, Load, Machine, Mesh, Program, Running, Workload, free_port, need, python_code, wait_for,
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

/// Idle connections with which memory is looked at, and with which again.
const FEW: usize = 64;
const MANY: usize = 320;
/// What an idle connection may take in a sidecar, KiB: more than in a build for release, where it is
/// 9.
const IDLE_HTTP_KIB: u64 = 14;
/// The same of opaque bytes through mutual TLS, where it is 14 to 16.
const IDLE_TCP_KIB: u64 = 24;

/// What it takes at least, KiB: less was not measured well.
const LEAST_KIB: u64 = 2;

/// Opens so many connections, each of which has said something and has been answered.
fn answered(count: usize, target: SocketAddr, says: &[u8], ends: &[u8]) -> Vec<TcpStream> {
    let open = || {
        let mut stream = TcpStream::connect_timeout(&target, LIMIT).expect("connect");
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        stream.write_all(says).expect("say something");
        let (mut answer, mut room) = (Vec::new(), [0; 4096]);
        while !answer.ends_with(ends) {
            let read = stream.read(&mut room).expect("an answer");
            assert!(read > 0, "closed after {:?}", answer.escape_ascii());
            answer.extend_from_slice(&room[..read]);
        }
        stream
    };
    (0..count).map(|_| open()).collect()
}

/// What an idle connection takes in each of these sidecars, KiB, and that it is given back.
fn idle_takes(sidecars: &[&Running], target: SocketAddr, says: &[u8], ends: &[u8]) -> Vec<u64> {
    let settled = || {
        std::thread::sleep(Duration::from_secs(2));
        let all = sidecars.iter().map(|sidecar| resident(sidecar));
        all.collect::<Vec<u64>>()
    };
    let mut open = answered(FEW, target, says, ends);
    let few = settled();
    open.extend(answered(MANY - FEW, target, says, ends));
    let many = settled();
    drop(open);
    let grown = |(many, few): (&u64, &u64)| many.saturating_sub(*few);
    let grown: Vec<u64> = many.iter().zip(&few).map(grown).collect();
    wait_for("memory to be given back", LIMIT, || {
        let mut sides = sidecars.iter().zip(many.iter().zip(&grown));
        let returned = sides.all(|(sidecar, (many, grown))| {
            // Where there was little, there is nothing to see.
            *grown < 1024 || resident(sidecar) < many - grown / 2
        });
        returned.then_some(())
    });
    let each = (MANY - FEW) as u64;
    grown.iter().map(|grown| grown.div_ceil(each)).collect()
}

#[test]
fn idle_connections_hold_no_buffers() {
    need!("nginx", "python3");
    let machine = Machine::alone();
    let mesh = Mesh::start(&machine);
    let echo = "import socket,sys,threading\n\
        def echo(c):\n\
        \x20while d := c.recv(1 << 16): c.sendall(d)\n\
        l = socket.create_server(('127.0.0.1', int(sys.argv[1])), backlog=512)\n\
        while True: threading.Thread(target=echo, args=(l.accept()[0],), daemon=True).start()\n";
    let [http, tcp, to_http, to_tcp] = [(); 4].map(|()| free_port());
    let workload = |name| Workload::new(name).flag("--capture", "none");
    let web = workload("web").port(&format!("{http}:http@loopback"));
    let web = mesh.run(&web, nginx(mesh.dir(), http));
    let pipe = workload("pipe").port(&format!("{tcp}:tcp@loopback"));
    let pipe = mesh.run(&pipe, python_code(echo).arg(tcp.to_string()));
    let caller = workload("caller").wait_for("web").wait_for("pipe");
    let caller = caller
        .flag("--upstream", &format!("web:{http}=127.0.0.1:{to_http}"))
        .flag("--upstream", &format!("pipe:{tcp}=127.0.0.1:{to_tcp}"));
    let up = Program::shell("echo up; exec sleep 600");
    let mut caller = mesh.run(&caller, up);
    caller.wait_until("the program runs", LIMIT, |run| run.stdout().contains("up"));

    let target = SocketAddr::from(([127, 0, 0, 1], to_http));
    let says = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n";
    let http = idle_takes(&[&caller, &web], target, says, b"hello from nginx\n");
    eprintln!("an idle connection in HTTP/1.1: {http:?} KiB");
    assert!(http.iter().all(|kib| *kib <= IDLE_HTTP_KIB), "{http:?}");
    // The server's sidecar has none of them.
    assert!(http[0] >= LEAST_KIB, "{http:?}");

    let target = SocketAddr::from(([127, 0, 0, 1], to_tcp));
    let tcp = idle_takes(&[&caller, &pipe], target, &[b'x'; 5000], &[b'x'; 5000]);
    eprintln!("an idle connection of opaque bytes: {tcp:?} KiB");
    let expected = LEAST_KIB..=IDLE_TCP_KIB;
    assert!(tcp.iter().all(|kib| expected.contains(kib)), "{tcp:?}");
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
