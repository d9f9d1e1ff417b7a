//! Real clients and real servers in pairs (`tests/programs/pairs`): what each pair does without a mesh
//! it does through two sidecars.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use crate::http::host_in_url;
use crate::support::{Bed, Machine, Mesh, Pods, Program, Running, need, report, script};

const LIMIT: Duration = Duration::from_secs(240);
/// The service of all servers.
const PAIRS: &str = "pairs";
/// Opens when all servers listen.
const READY: u16 = 8100;

/// A server of the pairs: its port, what the mesh is told about it, and whether clients speak HTTP/1
/// and HTTP/2 to it.
struct Server {
    name: &'static str,
    port: &'static str,
    http1: bool,
    http2: bool,
}

const fn server(name: &'static str, port: &'static str, http1: bool, http2: bool) -> Server {
    Server {
        name,
        port,
        http1,
        http2,
    }
}

/// Each of them twice: undeclared, and declared.
const SERVERS: &[Server] = &[
    server("Node", "8101", true, false),
    server("Node", "8111:http", true, false),
    server("Node http2", "8102", false, true),
    server("Node http2", "8112:http2", false, true),
    server("Go", "8103", true, true),
    server("Go", "8113:http", true, true),
    server("Go", "8123:http2", true, true),
    server("Java", "8104", true, false),
    server("Java", "8114:http", true, false),
    server("Python", "8105", true, false),
    server("Python", "8115:http", true, false),
    server("nginx", "8106", true, false),
    server("nginx", "8116:http", true, false),
    server("nginx http2", "8107", false, true),
    server("nginx http2", "8117:http2", false, true),
];

/// Servers that close connections after 1.2 s without a request.
const IMPATIENT: &[&str] = &["8121:http", "8122:http"];

fn number(port: &str) -> &str {
    port.split(':').next().unwrap_or(port)
}

fn pairs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/programs/pairs")
        .join(name)
}

/// The compiled programs, built once for all tests and kept for the next run.
struct Built {
    go: PathBuf,
    java: PathBuf,
}

fn built() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pairs");
        let (go, java) = (dir.join("pairs-go"), dir.join("java"));
        std::fs::create_dir_all(&java).expect("make a directory");
        // Modules come from the Go proxy the first time; go.sum says what they have to be.
        let build = Program::line("go build -C").arg(pairs("go"));
        let build = build.args(["-mod=readonly", "-o"]).arg(&go).arg(".");
        let minutes = Duration::from_secs(600);
        let logs = tempfile::tempdir().expect("a directory");
        build.run("go-build", logs.path(), minutes).success();
        let compile = Program::line("javac -d").arg(&java);
        let compile = compile.args([pairs("Server.java"), pairs("Client.java")]);
        compile.run("javac", logs.path(), minutes).success();
        Built { go, java }
    })
}

/// A client, the server's port and a scenario.
type Key = (String, String, String);

/// What clients saw.
type Seen = BTreeMap<Key, String>;

fn serve(bed: &dyn Bed) -> Running {
    let ports: Vec<&str> = SERVERS
        .iter()
        .map(|server| server.port)
        .chain(IMPATIENT.iter().copied())
        .collect();
    let ready = READY.to_string();
    let ports: Vec<&str> = std::iter::once(ready.as_str()).chain(ports).collect();
    let dir = bed.dir().join(PAIRS);
    std::fs::create_dir_all(&dir).expect("make a directory");
    let program = script("pairs/serve.py").args([&dir, &built().go, &built().java]);
    let running = bed.serve(PAIRS, &ports, program);
    let url = format!("http://{}:{READY}/", host_in_url(&bed.host(PAIRS)));
    let ask = format!(
        "until [ \"$(curl --silent --output /dev/null --write-out %{{http_code}} {url})\" = 501 ]; \
         do sleep 0.1; done"
    );
    bed.call("ready", &[PAIRS], Program::shell(ask), LIMIT)
        .success();
    running
}

/// Which servers a client is for.
type Wanted = fn(&Server) -> bool;

/// `MODE:PORT` of all servers that a mode of a client speaks to.
fn asked(modes: &[(&str, Wanted)]) -> Vec<String> {
    let of_mode = |(mode, wanted): &(&str, Wanted)| {
        let servers = SERVERS.iter().filter(|server| wanted(server));
        servers
            .map(|server| format!("{mode}:{}", number(server.port)))
            .collect::<Vec<_>>()
    };
    modes.iter().flat_map(of_mode).collect()
}

/// The clients' command lines, without the host and the ports.
fn clients() -> Vec<(&'static str, Program, Vec<String>)> {
    // Only some clients speak both versions, which a port of HTTP/2 makes one.
    let http1: Wanted = |server| server.http1 && !server.port.ends_with("http2");
    let both: Wanted = |server| server.http1;
    let http2: Wanted = |server| server.http2;
    let undeclared: Wanted = |server| server.http1 && !server.port.contains(':');
    let declared: Wanted = |server| server.http1 && server.port.contains(':');
    let node = Program::new("node").arg(pairs("client.js"));
    let java = Program::line("java -XX:TieredStopAtLevel=1 -cp").arg(&built().java);
    let go = Program::new(&built().go).arg("client");
    let mut raw = asked(&[("py", http1), ("raw", http1)]);
    raw.extend(
        IMPATIENT
            .iter()
            .map(|port| format!("fresh:{}", number(port))),
    );
    vec![
        ("node", node, asked(&[("h1", both), ("h2", http2)])),
        ("go", go, asked(&[("h1", both), ("h2", http2)])),
        (
            "java",
            java.arg("Client"),
            asked(&[("h1", http1), ("h2", http1)]),
        ),
        ("python", script("pairs/client.py"), raw),
        (
            "curl",
            script("pairs/client.py"),
            asked(&[
                ("curl-1.0", undeclared),
                ("curl-1.1", declared),
                ("curl-2", http2),
            ]),
        ),
    ]
}

/// Asks every server by every client for every scenario.
fn observe<B: Bed + Sync>(bed: &B) -> Seen {
    let _servers = serve(bed);
    let host = bed.host(PAIRS);
    thread::scope(|scope| {
        let running: Vec<_> = clients()
            .into_iter()
            .map(|(name, program, ports)| {
                let program = program.arg(&host).arg(pairs("scenarios.txt")).args(ports);
                scope.spawn(move || bed.call(name, &[PAIRS], program, LIMIT).success().stdout)
            })
            .collect();
        running
            .into_iter()
            .flat_map(|client| {
                let printed = client.join().expect("the client's thread");
                printed.lines().map(cell).collect::<Vec<_>>()
            })
            .collect()
    })
}

fn cell(line: &str) -> (Key, String) {
    let fields: Vec<&str> = line.splitn(4, '\t').collect();
    let [client, port, scenario, seen] = fields[..] else {
        panic!("not four fields: {line}");
    };
    let seen = serde_json::from_str(seen).unwrap_or_else(|error| panic!("{error}: {line}"));
    (
        (client.to_owned(), port.to_owned(), scenario.to_owned()),
        seen,
    )
}

/// What differs between what was seen without a mesh and with it, if anything does.
fn difference(scenario: &str, direct: &str, meshed: &str) -> Option<String> {
    if scenario.starts_with("truncated") {
        // It must not look whole; where the head had not been handed on, it may be an answer of the mesh.
        let allowed = meshed == "error" || meshed.starts_with("status 502 ") || meshed == direct;
        return (!allowed).then(|| format!("  looks whole: {meshed}"));
    }
    let (direct, connections) = lines(direct);
    let (meshed, more) = lines(meshed);
    if more > connections {
        return Some(format!("  {connections} connections became {more}"));
    }
    if direct == meshed || better(&direct, &meshed) {
        return None;
    }
    let only = |sign: &str, of: &[&str], other: &[&str]| {
        let lines = of.iter().filter(|line| !other.contains(line));
        lines.fold(String::new(), |mut all, line| {
            let _ = writeln!(all, "  {sign} {line}");
            all
        })
    };
    let (lost, added) = (only("-", &direct, &meshed), only("+", &meshed, &direct));
    Some(format!(
        "  the same lines in another order, or:\n{lost}{added}"
    ))
}

/// Whether a server ended the connection and the mesh gives the answers that were missing: it keeps its
/// caller's connection.
fn better(direct: &[&str], meshed: &[&str]) -> bool {
    match direct.split_last() {
        Some((&"end", answers)) => meshed.starts_with(answers),
        _ => false,
    }
}

/// The lines of an observation, and the connections that it took. What a server reports has its length
/// and hash left out: the length of its own name is in it.
fn lines(seen: &str) -> (Vec<&str>, u32) {
    let mut count = 0;
    let mut lines: Vec<&str> = seen.lines().collect();
    lines.retain(|line| {
        let number = line.strip_prefix("connections ");
        count = number
            .and_then(|number| number.parse().ok())
            .unwrap_or(count);
        number.is_none()
    });
    if let Some(report) = lines.iter().position(|line| line.starts_with("method ")) {
        let mut position = 0;
        lines.retain(|line| {
            position += 1;
            let of_report = line.starts_with("body ") || line.starts_with("field content-length: ");
            position > report || !of_report
        });
    }
    (lines, count)
}

/// What differs as `deploy/guide/http.md` says.
fn documented((client, port, scenario): &Key) -> bool {
    let http2 = |server: &Server| {
        number(server.port) == port
            && (server.name.ends_with("http2") || server.port.ends_with("http2"))
    };
    match scenario.as_str() {
        // An absolute target becomes a path and Host.
        "absolute" => true,
        // Trailers that are not announced do not reach an application in HTTP/2.
        "sent-trailers" => client == "node-h2" && SERVERS.iter().any(http2),
        // Not every client tells of interim responses in the version that the other side has: `early.rs` compares.
        "hints" => {
            let other = ["curl-1.0", "curl-2"].contains(&client.as_str());
            other || client.ends_with("-h2") || SERVERS.iter().any(http2)
        }
        // Go says the length of this answer in HTTP/2, and HTTP/1.1 has no trailers after a length.
        "trailers" => SERVERS.iter().any(http2),
        // Node says no length to HTTP/1.0.
        "slow" => client == "curl-1.0",
        _ => false,
    }
}

/// The observations that are as good as each other: the client's own, and its in the other version of
/// HTTP, since a sidecar speaks to the application what its port declares.
fn references(direct: &Seen, key: &Key) -> Vec<String> {
    let (client, port, scenario) = key;
    let pairs = [
        ("node-h1", "node-h2"),
        ("go-h1", "go-h2"),
        ("curl-1.1", "curl-2"),
    ];
    let twin = pairs.iter().find_map(|(old, new)| match client.as_str() {
        name if name == *old => Some((*new, "HTTP/2\n", "HTTP/1\n")),
        name if name == *new => Some((*old, "HTTP/1\n", "HTTP/2\n")),
        _ => None,
    });
    let twins = twin.and_then(|(name, from, to)| {
        let key = (name.to_owned(), port.clone(), scenario.clone());
        Some(direct.get(&key)?.replace(from, to))
    });
    direct.get(key).cloned().into_iter().chain(twins).collect()
}

fn name_of(port: &str) -> &'static str {
    let found = SERVERS.iter().find(|server| number(server.port) == port);
    found.map_or("an impatient server", |server| server.name)
}

#[test]
fn pairs_do_with_a_mesh_what_they_do_without() {
    need!(
        "root", "curl", "go", "java", "javac", "nginx", "node", "python3"
    );
    // Clients give up on a scenario after 30 s, and there are thousands of them.
    let machine = Machine::alone();
    let direct = observe(&Pods::plain(&machine));
    let meshed = observe(&Mesh::start(&machine));
    let (mut compared, mut failing) = (0, Vec::new());
    for (key, without) in &direct {
        let (client, port, scenario) = key;
        if documented(key) || without == "error" && !scenario.starts_with("truncated") {
            // Or the pair does not do it.
            continue;
        }
        compared += 1;
        let with = meshed.get(key).map_or("nothing", String::as_str);
        let differences: Option<Vec<_>> = references(&direct, key)
            .iter()
            .map(|reference| difference(scenario, reference, with))
            .collect();
        if let Some(difference) = differences.and_then(|all| all.into_iter().next()) {
            let server = name_of(port);
            failing.push(format!(
                "{client} and {server} ({port}): {scenario}\n{difference}"
            ));
        }
    }
    eprintln!("{compared} of {} compared", direct.len());
    assert!(compared > 3000, "{compared} of {} compared", direct.len());
    assert!(
        failing.is_empty(),
        "{} of {compared} differ\n{}",
        failing.len(),
        failing.join("\n")
    );
}

/// Load generators keep connections as clients do that count.
#[test]
fn load_generators_lose_no_request() {
    need!(
        "root", "ab", "h2load", "wrk", "go", "java", "javac", "nginx", "node", "python3"
    );
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _servers = serve(&mesh);
    let host = mesh.host(PAIRS);
    let run = |name: &str, line: String| {
        let program = Program::line(&line);
        mesh.call(name, &[PAIRS], program, LIMIT).success().stdout
    };
    for port in [8101, 8103, 8106, 8116] {
        let out = run(
            "ab",
            format!("ab -k -q -n 1500 -c 8 http://{host}:{port}/bytes?n=1000"),
        );
        assert!(out.contains("Failed requests:        0\n"), "{port}: {out}");
        assert!(!out.contains("Non-2xx"), "{port}: {out}");
        let out = run(
            "wrk",
            format!("wrk -t 1 -c 8 -d 1s http://{host}:{port}/bytes?n=1000"),
        );
        assert!(!out.contains("Non-2xx"), "{port}: {out}");
        assert!(!out.contains("Socket errors"), "{port}: {out}");
    }
    for (flags, port) in [
        ("--h1", 8103),
        ("--h1", 8116),
        ("", 8102),
        ("", 8103),
        ("", 8113),
        ("", 8107),
        ("", 8117),
    ] {
        // nginx in HTTP/2 ends a connection after 1000 requests.
        let url = format!("http://{host}:{port}/bytes?n=1000");
        let out = run("h2load", format!("h2load {flags} -n 2500 -c 4 -m 8 {url}"));
        let all = "2500 done, 2500 succeeded, 0 failed, 0 errored, 0 timeout";
        assert!(out.contains(all), "{port} {flags}: {out}");
        assert!(out.contains("2500 2xx"), "{port} {flags}: {out}");
    }
}

/// grpcio and grpc-go call each other in every kind of call.
fn every_kind_of_call<B: Bed + Sync>(bed: &B) {
    let (python, go) = ("grpc-python", "grpc-go");
    let _python = bed.serve(
        python,
        &["50051:grpc"],
        script("grpc_server.py").arg("50051"),
    );
    let server = Program::new(&built().go).args(["grpc-server", "50052"]);
    let _go = bed.serve(go, &["50052"], server);
    let target = |service: &str, port: u16| format!("{}:{port}", host_in_url(&bed.host(service)));
    let call = |name: &'static str, service: &'static str, program: Program| {
        report(&bed.call(name, &[service], program, LIMIT));
    };
    thread::scope(|scope| {
        let client = script("grpc_client.py").arg(target(go, 50052));
        scope.spawn(move || call("python-to-go", go, client));
        for (name, service, port) in [("go-to-go", go, 50052), ("go-to-python", python, 50051)] {
            let client = Program::new(&built().go).arg("grpc-client");
            let client = client.arg(target(service, port));
            scope.spawn(move || call(name, service, client));
        }
    });
}

#[test]
fn grpc_go_and_grpcio_without_a_mesh() {
    need!("root", "go", "javac", "python:grpc");
    every_kind_of_call(&Pods::plain(&Machine::shared()));
}

#[test]
fn grpc_go_and_grpcio_under_weft_run() {
    need!("go", "javac", "python:grpc");
    every_kind_of_call(&Mesh::start(&Machine::shared()));
}
