//! Storms of requests that are reset as soon as they are made ("Rapid Reset"): from outside the mesh,
//! by a workload with its own certificate, and by the workload's own program. In each a neighbour's
//! requests go on.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Deserialize;
use weft_core::resets::ResetPolicy;

use crate::appconns::{Seen, h2_nginx};
use crate::http::nginx;
use crate::support::{
    Bed, Load, Machine, Mesh, Program, Running, Workload, free_port, need, python, script, wait_for,
};

const LIMIT: Duration = Duration::from_secs(90);
/// How long a storm lasts.
const SECONDS: &str = "3";
/// What a sidecar may grow by during a storm, in MiB, and how much of it may be left a minute later.
const GROWTH_MAX: u64 = 64;
const GROWTH_LEFT: u64 = 24;
/// ENHANCE_YOUR_CALM (RFC 9113 section 7).
pub(crate) const CALM: u32 = 11;

/// What `h2_storm.py` has done.
#[derive(Debug, Deserialize)]
struct Storm {
    sent: u64,
    /// Resets that the sidecar has read.
    taken: u64,
    connections: u64,
    codes: Vec<u32>,
}

impl Storm {
    fn of(stdout: &str) -> Self {
        let line = stdout.lines().find(|line| line.contains("\"codes\""));
        let line = line.unwrap_or_else(|| panic!("no report of the storm: {stdout}"));
        serde_json::from_str(line).expect("a report")
    }
}

/// What a process has allocated, in MiB: pages of its program come and go as they are used.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    let kib = number.and_then(|number| number.parse::<u64>().ok());
    kib.unwrap_or_else(|| panic!("{pid} has ended")) / 1024
}

/// Looks at a sidecar's memory all the time.
pub(crate) struct Watched {
    pid: u32,
    before: u64,
    over: Arc<AtomicBool>,
    peak: JoinHandle<u64>,
}

impl Watched {
    pub(crate) fn begin(pid: u32) -> Self {
        let over = Arc::<AtomicBool>::default();
        let stop = Arc::clone(&over);
        let peak = std::thread::spawn(move || {
            let mut peak = 0;
            while !stop.load(Ordering::Relaxed) {
                peak = peak.max(memory(pid));
                std::thread::sleep(Duration::from_millis(5));
            }
            peak
        });
        let before = memory(pid);
        Self {
            pid,
            before,
            over,
            peak,
        }
    }

    /// Demands that a storm cost no more memory than it may, and that it is given back.
    pub(crate) fn demand_bounded(self) {
        let Self {
            pid,
            before,
            over,
            peak,
        } = self;
        over.store(true, Ordering::Relaxed);
        let peak = peak.join().expect("it looked");
        let after = memory(pid);
        eprintln!("{before} MiB before, {peak} MiB during, {after} MiB after");
        assert!(peak <= before + GROWTH_MAX, "{before} MiB, then {peak} MiB");
        wait_for(
            "the memory to be given back",
            Duration::from_secs(60),
            || (memory(pid) <= before + GROWTH_LEFT).then_some(()),
        );
    }
}

/// A neighbour: a modest load of another workload.
pub(crate) fn neighbour(mesh: &Mesh<'_>) -> Load {
    let state = mesh.scratch().dir("neighbour");
    let url = "http://web.shop.mesh:8080/";
    let flags = ["--connections", "2", "--rate", "20"];
    let program = Load::program("http", url, &state, &flags);
    let running = mesh.run(&Workload::new("neighbour").wait_for("web"), program);
    Load::watch(running, state)
}

/// The application, published on a port of the host, and its neighbour.
fn published(mesh: &Mesh<'_>) -> (Running, String, Load) {
    let port = free_port().to_string();
    let web = Workload::new("web")
        .port("8080")
        .flag("--publish", &format!("{port}:8080"));
    let web = mesh.run(&web, script("crashing.py").arg("8080"));
    let load = neighbour(mesh);
    (web, port, load)
}

fn storm(mesh: &Mesh<'_>, host: &str, port: &str, identity: Option<&Path>) -> Storm {
    spread_storm(mesh, (host, port), identity, 1)
}

/// A storm over so many connections at a time.
fn spread_storm(
    mesh: &Mesh<'_>,
    (host, port): (&str, &str),
    identity: Option<&Path>,
    connections: u64,
) -> Storm {
    let identity = identity.unwrap_or_else(|| Path::new("-"));
    let program = script("h2_storm.py")
        .args([host, port, SECONDS])
        .arg(identity);
    let program = program.arg(connections.to_string());
    let finished = program.run("storm", &mesh.scratch().dir("storm"), LIMIT);
    Storm::of(&finished.success().stdout)
}

/// How many connections the application was asked for, the one that asks included.
fn connections(mesh: &Mesh<'_>) -> u64 {
    let ask = Program::line("curl --silent --max-time 20 http://web.shop.mesh:8080/seen");
    let seen = mesh.call("counter", &["web"], ask, LIMIT).success().stdout;
    serde_json::from_str::<Seen>(&seen)
        .expect("what it has seen")
        .connections
}

#[test]
fn a_client_outside_is_calmed_down() {
    need!("curl", "python3");
    let machine = Machine::alone();
    let mesh = Mesh::start(&machine);
    let (web, port, load) = published(&mesh);
    let (watched, asked) = (Watched::begin(web.pid()), connections(&mesh));
    let storm = storm(&mesh, "127.0.0.1", &port, None);
    eprintln!("outside: {storm:?}");
    assert_eq!(storm.codes, [CALM], "{storm:?}");
    assert!(storm.sent > 1000 && storm.connections > 1, "{storm:?}");
    // Not one connection for each request that nobody waits for.
    let asked = connections(&mesh) - asked;
    assert!(asked < 100 + 33 * storm.connections, "{asked}: {storm:?}");
    watched.demand_bounded();
    load.stop_without_failure();
}

/// The file with the identity of a workload, once it has one.
fn identity(state: &Path) -> std::path::PathBuf {
    let file = state.join("identity.json");
    wait_for("an identity", LIMIT, || file.is_file().then_some(()));
    file
}

/// Where the sidecar of `web` takes mutual TLS.
fn endpoint(mesh: &Mesh<'_>) -> String {
    let listed = mesh.command("get services web -n shop -o json").success();
    let at = listed.stdout.find("127.0.0.1:").expect("an endpoint");
    let port = &listed.stdout[at + "127.0.0.1:".len()..];
    port.chars().take_while(char::is_ascii_digit).collect()
}

fn a_peer(machine: &Machine, protocol: &str, program: impl Fn(&Mesh<'_>) -> Program) {
    let mesh = Mesh::start(machine);
    let web = Workload::new("web").port(&format!("8080{protocol}"));
    let web = mesh.run(&web, program(&mesh));
    let load = neighbour(&mesh);
    let state = mesh.scratch().dir("bad-state");
    let bad = Workload::new("bad").flag("--state-dir", &state.display().to_string());
    let _bad = mesh.run(&bad, Program::line("sleep infinity"));
    let identity = identity(&state);
    let watched = Watched::begin(web.pid());
    let storm = storm(&mesh, "127.0.0.1", &endpoint(&mesh), Some(&identity));
    eprintln!("a peer: {storm:?}");
    // Many callers may share the connection: it is slowed, and stays.
    assert_eq!(
        (storm.connections, &*storm.codes),
        (1, &[][..]),
        "{storm:?}"
    );
    assert!(storm.sent > 1000, "{storm:?}");
    watched.demand_bounded();
    load.stop_without_failure();
}

#[test]
fn a_peer_is_slowed_down() {
    need!("nginx", "python3");
    a_peer(&Machine::alone(), "", |mesh| nginx(mesh.dir(), 8080));
}

/// What is reset before it was sent does not wait for the application's streams.
#[test]
fn a_peer_is_slowed_down_before_an_application_in_http2() {
    need!("nginx", "python3");
    a_peer(&Machine::alone(), ":http2", |mesh| {
        h2_nginx(mesh.dir(), 8080)
    });
}

/// The storm is stopped where it begins, and the program's other connections do not notice it.
#[test]
fn the_own_program_is_slowed_down() {
    need!("nginx", "python3");
    let machine = Machine::alone();
    let mesh = Mesh::start(&machine);
    let web = mesh.serve("web", &["8080"], nginx(mesh.dir(), 8080));
    let state = mesh.scratch().dir("household");
    let go = mesh.scratch().path().join("go");
    let programs = python();
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs");
    let household = format!(
        "{programs} {here}/load.py http http://web.shop.mesh:8080/ {} --connections 2 --rate 20 & \
         while [ ! -e {go} ]; do sleep 0.1; done; \
         {programs} {here}/h2_storm.py web.shop.mesh 8080 {SECONDS} > {go}.out; \
         mv {go}.out {go}.done; wait",
        state.display(),
        go = go.display(),
    );
    let household = mesh.run(
        &Workload::new("household").wait_for("web"),
        Program::shell(household),
    );
    let pid = household.pid();
    let load = Load::watch(household, state);
    let own = Watched::begin(pid);
    let others = neighbour(&mesh);
    let of_web = Watched::begin(web.pid());
    std::fs::write(&go, "").expect("let it go");
    let done = go.with_extension("done");
    wait_for("the storm's end", LIMIT, || done.is_file().then_some(()));
    let storm = Storm::of(&std::fs::read_to_string(&done).expect("its report"));
    eprintln!("the own program: {storm:?}");
    assert_eq!(
        (storm.connections, &*storm.codes),
        (1, &[][..]),
        "{storm:?}"
    );
    own.demand_bounded();
    of_web.demand_bounded();
    load.stop_without_failure();
    others.stop_without_failure();
}

/// What `h2_cancels.py` has done.
#[derive(Debug, Deserialize)]
struct Honest {
    asked: u64,
    answered: u64,
    cancelled: u64,
    ended: bool,
}

/// A client that cancels 20 requests a second while a storm is under way, and is told nothing.
fn honest(mesh: &Mesh<'_>, port: &str, more: [&str; 2]) -> Running {
    let program = script("h2_cancels.py").args(["127.0.0.1", port, "10"]);
    program
        .args(more)
        .start("honest", &mesh.scratch().dir("honest"))
}

fn demand_untouched(honest: Running) {
    let printed = honest.finish(LIMIT).success().stdout;
    let honest: Honest = serde_json::from_str(&printed).expect("a report");
    eprintln!("{honest:?}");
    assert!(!honest.ended && honest.cancelled > 20, "{honest:?}");
    assert_eq!(honest.answered, honest.asked, "{honest:?}");
}

/// Connections of a storm that is spread.
const SPREAD: u64 = 50;
/// Requests of the smallest size that a connection may have sent before it is known what its client
/// owes: what is read of it in a turn, and a batch of the storm, by which what was read is counted.
const UNSEEN: u64 = 150 + 500;

/// Resets that a client with this budget may make during a storm, and what is not seen in time.
fn allowance(policy: ResetPolicy, took: Duration) -> u64 {
    let seconds = took.as_secs() + 1;
    u64::from(policy.burst) + u64::from(policy.per_second) * seconds + SPREAD * UNSEEN
}

/// All connections from one address share a budget; those from another have their own.
#[test]
fn a_client_outside_has_one_budget_for_all_its_connections() {
    need!("curl", "python3");
    let machine = Machine::alone();
    let mesh = Mesh::start(&machine);
    let (_web, port, load) = published(&mesh);
    connections(&mesh);
    let honest = honest(&mesh, &port, ["-", "127.0.0.2"]);
    let began = Instant::now();
    let storm = spread_storm(&mesh, ("127.0.0.1", &port), None, SPREAD);
    eprintln!("outside, spread: {storm:?}");
    assert_eq!(storm.codes, [CALM], "{storm:?}");
    let most = allowance(ResetPolicy::OUTSIDE, began.elapsed());
    assert!(storm.taken <= most, "{most}: {storm:?}");
    demand_untouched(honest);
    load.stop_without_failure();
}

/// All connections of one instance share a budget; other instances have their own.
#[test]
fn a_peer_has_one_budget_for_all_its_connections() {
    need!("nginx", "python3");
    let machine = Machine::alone();
    let mesh = Mesh::start(&machine);
    let web = mesh.run(&Workload::new("web").port("8080"), nginx(mesh.dir(), 8080));
    let load = neighbour(&mesh);
    let peer = |name: &str| {
        let state = mesh.scratch().dir(name);
        let workload = Workload::new(name).flag("--state-dir", &state.display().to_string());
        let running = mesh.run(&workload, Program::line("sleep infinity"));
        (running, identity(&state))
    };
    let ((_bad, bad), (_good, good)) = (peer("bad"), peer("good"));
    let watched = Watched::begin(web.pid());
    let endpoint = endpoint(&mesh);
    let honest = honest(&mesh, &endpoint, [&good.display().to_string(), "127.0.0.1"]);
    let began = Instant::now();
    let storm = spread_storm(&mesh, ("127.0.0.1", &endpoint), Some(&bad), SPREAD);
    eprintln!("a peer, spread: {storm:?}");
    // Many callers may share its connections: they are slowed, and stay.
    assert_eq!(
        (storm.connections, &*storm.codes),
        (SPREAD, &[][..]),
        "{storm:?}"
    );
    let most = allowance(ResetPolicy::PEER, began.elapsed());
    assert!(storm.taken <= most, "{most}: {storm:?}");
    demand_untouched(honest);
    watched.demand_bounded();
    load.stop_without_failure();
}
