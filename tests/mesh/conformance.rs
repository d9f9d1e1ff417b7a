//! HTTP/2 and gRPC by those who say what they are: h2spec at every place where a sidecar takes HTTP/2, the
//! interoperability tests of grpc-go through two sidecars, and many calls to an application that ends its
//! connections.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use serde::Deserialize;

use crate::http::{host_in_url, nginx};
use crate::support::{Bed, Finished, Machine, Mesh, Pods, Program, need, report, scaled, script};

/// Long enough for every case to fail.
const LIMIT: Duration = Duration::from_secs(300);

/// Cases of h2spec, as the wrapper names them, with the reason for which a place does otherwise.
type Allowed = &'static [(&'static str, &'static str)];

/// The application's side and the outside.
const PLAINTEXT: Allowed = &[];
/// Between sidecars.
const CARRIER: Allowed = &[];

/// The Go programs, built once for all tests and kept for the next run.
struct Built {
    h2spec: PathBuf,
    grpc: PathBuf,
}

fn built() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/conformance");
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("conformance");
        std::fs::create_dir_all(&dir).expect("make a directory");
        // Modules come from the Go proxy the first time; go.sum says what they have to be.
        let build = Program::line("go build -C").arg(source);
        let build = build.args(["-mod=readonly", "-o"]).arg(&dir);
        let logs = tempfile::tempdir().expect("a directory");
        let minutes = Duration::from_secs(600);
        let build = build.args([".", "tool"]);
        build.run("go-build", logs.path(), minutes).success();
        Built {
            h2spec: dir.join("h2spec"),
            grpc: dir.join("conformance"),
        }
    })
}

fn h2spec(host: &str, port: &str) -> Program {
    script("h2spec.py").arg(&built().h2spec).args([host, port])
}

/// Demands that all cases are well but those that are allowed to fail, and that these do.
fn judge(place: &str, finished: Finished, allowed: Allowed) -> Result<(), String> {
    let printed = finished.success().stdout;
    let results: BTreeMap<String, String> =
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"));
    let mut wrong = String::new();
    let expects_failure = |case: &str| allowed.iter().any(|(name, _)| *name == case);
    for (case, result) in &results {
        if (result == "ok") == expects_failure(case) {
            let _ = writeln!(wrong, "{place}: {case}: {result}");
        }
    }
    if results.len() < 146 {
        let _ = writeln!(wrong, "{place}: only {} cases", results.len());
    }
    for (case, _) in allowed
        .iter()
        .filter(|(case, _)| !results.contains_key(*case))
    {
        let _ = writeln!(wrong, "{place}: there is no {case}");
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// A program of the mesh, a client outside, and a peer with a certificate ask the same application.
#[test]
fn h2spec_at_every_place() {
    need!("root", "ip", "ss", "curl", "go", "nginx", "python3");
    built();
    let machine = Machine::shared();
    let pods = Pods::meshed(&machine);
    let _web = pods.serve("web", &["8080:http"], nginx(pods.dir(), 8080));
    pods.add("peer", &[]);
    let address = pods.pod_address("web").to_string();
    let relay = script("identity/relay.py").arg("9000");
    let relay = relay.arg(pods.identity("peer"));
    let relay = relay.args(["weft-h2", &address, "8080", "web.shop.mesh"]);
    let _relay = pods.start_outside(relay);
    let asked = Program::shell("until ss -Hltn 'sport = 9000' | grep -q .; do sleep 0.05; done");
    pods.outside(asked, LIMIT).success();
    let results = thread::scope(|scope| {
        let program = || {
            let host = pods.host("web");
            let called = pods.call("caller", &["web"], h2spec(&host, "8080"), LIMIT);
            judge("program", called, PLAINTEXT)
        };
        let outside = || {
            let called = pods.outside(h2spec(&address, "8080"), LIMIT);
            judge("outside", called, PLAINTEXT)
        };
        let carrier = || {
            let called = pods.outside(h2spec("127.0.0.1", "9000"), LIMIT);
            judge("carrier", called, CARRIER)
        };
        let running = [
            scope.spawn(program),
            scope.spawn(outside),
            scope.spawn(carrier),
        ];
        running.map(|place| place.join().expect("a place's thread"))
    });
    let wrong: Vec<String> = results.into_iter().filter_map(Result::err).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.concat());
}

/// All of grpc-go that need neither credentials nor a cloud.
const CASES: &[&str] = &[
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "pick_first_unary",
    "orca_per_rpc",
    "rpc_soak",
    "channel_soak",
];

fn interoperability(bed: &dyn Bed, port: &str) {
    let server = Program::new(&built().grpc).args(["interop-server", "50060"]);
    let _server = bed.serve("interop", &[port], server);
    let target = format!("{}:50060", host_in_url(&bed.host("interop")));
    let client = script("interop.py").arg(&built().grpc).arg(target);
    let client = client.args(CASES.iter().copied());
    report(&bed.call("caller", &["interop"], client, LIMIT));
}

#[test]
fn interoperability_of_grpc_without_a_mesh() {
    need!("root", "go", "python3");
    interoperability(&Pods::plain(&Machine::shared()), "50060");
}

#[test]
fn interoperability_of_grpc_under_weft_run() {
    need!("go", "python3");
    interoperability(&Mesh::start(&Machine::shared()), "50060:grpc");
}

#[test]
fn interoperability_of_grpc_as_pods() {
    need!("root", "go", "python3");
    interoperability(&Pods::meshed(&Machine::shared()), "50060");
}

/// What the program of many calls counted.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Calls {
    statuses: BTreeMap<String, u64>,
    #[expect(dead_code, reason = "shown when the test fails")]
    messages: BTreeMap<String, String>,
    wrong: u64,
    slowest: f64,
    seconds: f64,
}

/// Calls through two sidecars, and how the application ends its connections.
fn many_calls(mesh: &Mesh<'_>, how: &str, every: u32, total: u64) -> Calls {
    let server = Program::new(&built().grpc).args(["turning-server", "50061", how]);
    let name = format!("many-{how}");
    let _server = mesh.serve(&name, &["50061:grpc"], server.arg(every.to_string()));
    let client = Program::new(&built().grpc).arg("calls");
    let client = client.args([
        format!("{}:50061", mesh.host(&name)),
        total.to_string(),
        "32".to_owned(),
    ]);
    let limit = scaled(Duration::from_secs(300), Duration::from_secs(7200));
    let printed = mesh
        .call(&format!("calls-{how}"), &[&name], client, limit)
        .success()
        .stdout;
    let calls: Calls =
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"));
    eprintln!("{how}: {calls:?}");
    // Every call has a status, and its own answer.
    assert_eq!(calls.statuses.values().sum::<u64>(), total, "{calls:?}");
    assert_eq!(calls.wrong, 0, "{calls:?}");
    assert!(calls.slowest < 30.0 && calls.seconds > 0.0, "{calls:?}");
    calls
}

/// Connections that end in order (GOAWAY, then what was begun is finished) cost no call.
#[test]
fn an_application_that_ends_its_connections_in_order_loses_no_call() {
    need!("go");
    built();
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    for (how, every, total) in [
        ("graceful", 1000, scaled(20_000, 1_000_000)),
        ("aged", 200, scaled(5_000, 100_000)),
    ] {
        let calls = many_calls(&mesh, how, every, total);
        assert_eq!(calls.statuses.get("OK"), Some(&total), "{how}: {calls:?}");
    }
}

/// Connections that break with calls under way cost those calls, which are told so.
#[test]
fn an_application_that_breaks_its_connections_loses_what_is_under_way() {
    need!("go");
    built();
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let (every, total) = (200, scaled(5_000, 100_000));
    let calls = many_calls(&mesh, "abrupt", every, total);
    let count = |status| calls.statuses.get(status).copied().unwrap_or(0);
    // An answer that had begun is reset, which grpc-go calls Internal.
    let told = count("Unavailable") + count("Internal");
    assert_eq!(count("OK") + told, total, "{calls:?}");
    // As many as were under way, at most, each time.
    let most = 32 * (total / u64::from(every) + 1);
    assert!(told <= most, "{calls:?}");
}
