//! Connections live no longer than what vouches for their peers: revocation cuts them, and neither a
//! certificate that ends nor a root that leaves does, while the same instance proves another one.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    Bed, Machine, Mesh, Place, PodSettings, Pods, Program, Running, Workload, need, script, sum,
    telling, wait_for,
};

const LIMIT: Duration = Duration::from_secs(60);
/// How long a revocation may take until a program sees it. The sidecars act on it as soon as it
/// arrives; a machine with all tests at once may take this long to run them.
const CUT: Duration = Duration::from_secs(20);

const KINDS: [&str; 3] = ["http", "upgrade", "redis"];

fn redis(bed: &dyn Bed) -> Program {
    let serve = "redis-server --port 6379 --bind '*' '-::*' --protected-mode no --save \"\" --appendonly no";
    Program::shell(format!("cd {} && exec {serve}", bed.dir().display()))
}

/// A workload with a connection of each kind that stands. Its sidecar tells of them.
fn standing(mesh: &Mesh<'_>, name: &str) -> Running {
    let (web, redis) = (mesh.host("web"), mesh.host("redis"));
    let targets = [
        format!("http={web}:8080"),
        format!("upgrade={web}:8080"),
        format!("redis={redis}:6379"),
    ];
    let workload = telling(mesh, name).wait_for("web").wait_for("redis");
    standing_to(mesh, &workload, &targets)
}

/// A workload with connections that stand, `KIND=HOST:PORT`.
fn standing_to(mesh: &Mesh<'_>, workload: &Workload, targets: &[String]) -> Running {
    let client = script("standing_client.py").args(targets);
    let mut running = mesh.run(workload, client);
    running.wait_until("all connections stand", LIMIT, |run| {
        run.stdout().lines().any(|line| line == "up")
    });
    running
}

/// Revokes the instance of a workload.
pub(crate) fn revoke(mesh: &Mesh<'_>, workload: &str) {
    let certs = mesh.command("certs list -o json").success().stdout;
    let certs: Value = serde_json::from_str(&certs).expect("JSON");
    let of_workload = certs["items"].as_array().into_iter().flatten();
    let instance = of_workload
        .filter(|cert| cert["workload"] == format!("shop/{workload}"))
        .find_map(|cert| cert["instance"].as_str())
        .unwrap_or_else(|| panic!("no instance of {workload} in {certs:#}"));
    mesh.command(&format!("certs revoke {instance}")).success();
}

fn closed(running: &Running, kind: &str) -> bool {
    let end = format!("{kind} closed");
    running.stdout().lines().any(|line| line == end)
}

/// Whether a connection has been used since so much was printed.
fn alive(running: &Running, kind: &str, since: usize) -> bool {
    let used = format!("{kind} alive");
    running.stdout()[since..].lines().any(|line| line == used)
}

/// A sidecar says that requests over connections that it has cut ended so.
fn tells_of_requests(place: &Place<'_>, reason: &str, paths: &[&str]) {
    for path in paths {
        place.logs(&format!("{path}, {reason}"), |line| {
            line["reason"] == reason && line["path"] == *path
        });
    }
}

/// A sidecar says that a relay was cut so.
fn tells_of_relays(place: &Place<'_>, reason: &str) {
    let label = format!("reason=\"{reason}\"");
    place.counts("weft_tcp_connections_refused_total", &[&label]);
    place.says(reason);
}

fn all_alive(running: &mut Running, kinds: &[&str]) {
    let since = running.stdout().len();
    running.wait_until("its connections go on", LIMIT, |run| {
        kinds.iter().all(|kind| alive(run, kind, since))
    });
}

#[test]
fn revocation_cuts_standing_connections_in_and_out() {
    need!("redis-server", "python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let server = script("standing_server.py").arg("8080");
    let _web = mesh.run(&telling(&mesh, "web").port("8080"), server);
    let _redis = mesh.run(&telling(&mesh, "redis").port("6379:tcp"), redis(&mesh));
    let place = |name| Place { mesh: &mesh, name };
    let (mut revoked, mut neighbour) = (standing(&mesh, "revoked"), standing(&mesh, "neighbour"));

    // A caller: the servers' sidecars cut what it has.
    revoke(&mesh, "revoked");
    revoked.wait_until("all of its connections are cut", CUT, |run| {
        KINDS.iter().all(|kind| closed(run, kind))
    });
    tells_of_requests(&place("web"), "peer-revoked", &["/stream", "/echo"]);
    place("web").counts("weft_requests_total", &["reason=\"peer-revoked\""]);
    tells_of_relays(&place("redis"), "peer-revoked");
    all_alive(&mut neighbour, &KINDS);

    // A server: its callers' sidecars cut what they have to it, and nothing else.
    revoke(&mesh, "redis");
    neighbour.wait_until("the connection to it is cut", CUT, |run| {
        closed(run, "redis")
    });
    tells_of_relays(&place("neighbour"), "peer-revoked");
    all_alive(&mut neighbour, &["http", "upgrade"]);
    revoke(&mesh, "web");
    neighbour.wait_until("all of its connections are cut", CUT, |run| {
        KINDS.iter().all(|kind| closed(run, kind))
    });
    tells_of_requests(&place("neighbour"), "peer-revoked", &["/stream", "/echo"]);
}

/// A sidecar does not read from a peer while it cannot write to the other side, and is told of the cut
/// nevertheless.
#[test]
fn revocation_cuts_upgraded_streams_that_nobody_reads() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let server = script("standing_server.py").arg("8080");
    let mut web = mesh.serve("web", &["8080"], server);
    let targets = |kinds: &[&str]| -> Vec<String> {
        let host = mesh.host("web");
        let target = |kind: &&str| format!("{kind}={host}:8080");
        kinds.iter().map(target).collect()
    };
    let workload = |name| Workload::new(name).wait_for("web");
    let kinds = ["unread", "upgrade"];
    let mut revoked = standing_to(&mesh, &workload("revoked"), &targets(&kinds));
    let mut neighbour = standing_to(&mesh, &workload("neighbour"), &targets(&kinds));

    // A caller: the server's sidecar cannot write to its application.
    revoke(&mesh, "revoked");
    revoked.wait_until("its streams are cut", CUT, |run| {
        kinds.iter().all(|kind| closed(run, kind))
    });
    all_alive(&mut neighbour, &["upgrade"]);
    assert!(
        !closed(&neighbour, "unread"),
        "a neighbour's stream was cut"
    );

    // A server: its caller's sidecar cannot write to the program.
    let _reader = standing_to(&mesh, &workload("reader"), &targets(&["flood"]));
    web.wait_until("nobody reads what it writes", LIMIT, |run| {
        run.stdout().lines().any(|line| line == "flood full")
    });
    revoke(&mesh, "web");
    web.wait_until("that stream is cut", CUT, |run| closed(run, "flood"));
    neighbour.wait_until("its streams to it are cut", CUT, |run| {
        kinds.iter().all(|kind| closed(run, kind))
    });
}

#[test]
fn a_session_outlives_certificates_but_not_the_proof_of_a_newer_one() {
    need!("root", "redis-server", "python3", "curl");
    let machine = Machine::shared();
    let settings = PodSettings {
        flags: &["--leaf-ttl", "10s"],
        config: "timeouts: {expired_grace: 2s, drain: 1s}\n",
    };
    let pods = Pods::meshed_with(&machine, &settings);
    let _redis = pods.serve("redis", &["6379:tcp"], redis(&pods));
    pods.add("app", &[]);
    pods.wait_for_service("redis");
    let session = format!("redis={}:6379", pods.host("redis"));
    let mut session = pods.start("app", script("standing_client.py").arg(session));
    // Nothing but this connection: no request of another makes a handshake. Both certificates end
    // twice in this time.
    let end = Instant::now() + Duration::from_secs(26);
    session.wait_until("two certificates have ended", LIMIT, |run| {
        assert!(!closed(run, "redis"), "an honest session was cut");
        Instant::now() >= end
    });
    all_alive(&mut session, &["redis"]);
    // Nobody can renew: nothing vouches for the peer when the last certificate has ended.
    pods.kill_control_plane();
    session.wait_until("the session ends", LIMIT, |run| closed(run, "redis"));
    wait_for("one of both sidecars to say why", LIMIT, || {
        let told = ["app", "redis"].map(|pod| relays_cut(&pods, pod, "peer-expired") > 0.0);
        told.contains(&true).then_some(())
    });
}

/// Relays that a pod's sidecar has cut for a reason.
fn relays_cut(pods: &Pods<'_>, pod: &str, reason: &str) -> f64 {
    let label = format!("reason=\"{reason}\"");
    let metric = "weft_tcp_connections_refused_total";
    sum(&pods.metrics(pod), metric, &[&label])
}

/// Requests that ended at a pod's sidecar for a reason.
fn requests_cut(pods: &Pods<'_>, pod: &str, reason: &str) -> f64 {
    let label = format!("reason=\"{reason}\"");
    sum(&pods.metrics(pod), "weft_requests_total", &[&label])
}

/// A root that leaves the trust bundle ends what it vouches for and nobody else does: in both directions,
/// relays and requests. Sessions of those who have proved certificates under the new one go on.
#[test]
fn a_root_that_leaves_ends_connections_of_those_who_renew_no_more() {
    need!("root", "redis-server", "python3", "curl");
    let machine = Machine::shared();
    let settings = PodSettings {
        // Renewals are due after half of it, and find the old certificate refused.
        flags: &["--leaf-ttl", "60s"],
        config: "timeouts: {expired_grace: 20s, drain: 1s, peer_keepalive: 0s}\n",
    };
    let pods = Pods::meshed_with(&machine, &settings);
    let server = || script("standing_server.py").arg("8080");
    let _redis = pods.serve("redis", &["6379:tcp"], redis(&pods));
    let _web = pods.serve("web", &["8080"], server());
    pods.add("app", &[]);
    let _stale = pods.serve("stale", &["6379:tcp", "8080"], redis(&pods));
    let _stale_web = pods.start("stale", server());
    pods.add("frozen", &[]);
    for service in ["redis", "web", "stale"] {
        pods.wait_for_service(service);
    }
    let start = |pod: &str, targets: &[(&str, &str, u16)]| {
        let targets = targets.iter();
        let targets =
            targets.map(|(kind, service, port)| format!("{kind}={}:{port}", pods.host(service)));
        let mut running = pods.start(pod, script("standing_client.py").args(targets));
        running.wait_until("all connections stand", LIMIT, |run| {
            run.stdout().lines().any(|line| line == "up")
        });
        running
    };
    let (relay, request) = ("redis", "http");
    let honest = [
        (relay, "redis", 6379),
        (request, "web", 8080),
        ("upgrade", "web", 8080),
    ];
    let mut honest = start("app", &honest);
    let mut to_stale = start("app", &[(relay, "stale", 6379), (request, "stale", 8080)]);
    let _of_frozen = start("frozen", &[(relay, "redis", 6379), (request, "web", 8080)]);

    pods.signal_sidecar("stale", Signal::STOP);
    pods.signal_sidecar("frozen", Signal::STOP);
    pods.restart_control_plane(|data| replace_root(&data.join("ca")));

    // A server, whose caller's sidecar ends what it has to it.
    let limit = LIMIT * 2;
    to_stale.wait_until("the connections to the stale one end", limit, |run| {
        [relay, request].iter().all(|kind| closed(run, kind))
    });
    wait_for("the caller's sidecar to say why", LIMIT, || {
        let requests = requests_cut(&pods, "app", "peer-untrusted");
        (requests > 0.0 && relays_cut(&pods, "app", "peer-untrusted") > 0.0).then_some(())
    });
    // A caller, whose servers' sidecars do.
    wait_for("the servers' sidecars to cut the frozen one", LIMIT, || {
        let relays = relays_cut(&pods, "redis", "peer-untrusted");
        (relays > 0.0 && requests_cut(&pods, "web", "peer-untrusted") > 0.0).then_some(())
    });
    // The others are counted nowhere else.
    all_alive(&mut honest, &["redis", "http", "upgrade"]);
    let cut = |pod: &str| {
        let all = ["peer-untrusted", "peer-expired", "peer-revoked"];
        let cut =
            all.map(|reason| relays_cut(&pods, pod, reason) + requests_cut(&pods, pod, reason));
        cut.iter().sum::<f64>() as u32
    };
    assert_eq!(["app", "redis", "web"].map(cut), [2, 1, 1]);
    assert!(KINDS.iter().all(|kind| !closed(&honest, kind)));
}

/// Puts a new root in the place of a control plane's. It is signed by the old one, so that sidecars that
/// know no other believe the control plane and come for new certificates; their trust bundle has the
/// new one alone from then on.
fn replace_root(ca: &Path) {
    let read = |name: &str| fs::read_to_string(ca.join(name)).expect("read a file");
    let old = KeyPair::from_pem(&read("root.key")).expect("a key");
    let old = Issuer::from_ca_cert_pem(&read("root.pem"), old).expect("a root");
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let name = &mut params.distinguished_name;
    name.push(DnType::OrganizationName, "Weft");
    name.push(DnType::CommonName, "weft.local root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().expect("a key");
    let root = params.signed_by(&key, &old).expect("a root");
    fs::write(ca.join("root.key"), key.serialize_pem()).expect("write a key");
    fs::write(ca.join("root.pem"), root.pem()).expect("write a root");
    for file in ["intermediate.pem", "intermediate.key"] {
        fs::remove_file(ca.join(file)).expect("remove what the old one has signed");
    }
}

/// A relay that waits for one side to read does not look at the other: that it is cut is told to it.
#[test]
fn revocation_cuts_relays_that_are_stuck() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let mut deaf = mesh.serve("deaf", &["9000:tcp"], script("deaf_server.py").arg("9000"));
    let stuck = |name: &str| {
        let client = script("stuck_client.py").args([&mesh.host("deaf"), "9000", name]);
        let mut running = mesh.run(&Workload::new(name).wait_for("deaf"), client);
        running.wait_until("nothing more can be written", LIMIT, |run| {
            run.stdout().lines().any(|line| line == "stuck")
        });
        running
    };
    let (_revoked, mut neighbour) = (stuck("revoked"), stuck("neighbour"));

    // A caller: the server's sidecar cuts it, although the application reads nothing.
    revoke(&mesh, "revoked");
    deaf.wait_until("the application is told", CUT, |run| closed(run, "revoked"));
    assert!(!closed(&deaf, "neighbour"));

    // A server: the caller's sidecar cuts what it cannot write to.
    revoke(&mesh, "deaf");
    neighbour.wait_until("the caller is told", CUT, |run| closed(run, "neighbour"));
}

/// A peer that stalls in its handshake delays nobody else's proof.
#[test]
fn a_frozen_peer_costs_no_other_session() {
    need!("root", "redis-server", "python3", "curl");
    let machine = Machine::shared();
    let settings = PodSettings {
        flags: &["--leaf-ttl", "10s"],
        config: "timeouts: {expired_grace: 2s, drain: 1s, connect: 60s}\n",
    };
    let pods = Pods::meshed_with(&machine, &settings);
    let _redis = pods.serve("redis", &["6379:tcp"], redis(&pods));
    let _frozen = pods.serve("frozen", &["6379:tcp"], redis(&pods));
    pods.add("app", &[]);
    let session = |service: &str| {
        pods.wait_for_service(service);
        let session = format!("redis={}:6379", pods.host(service));
        let mut session = pods.start("app", script("standing_client.py").arg(session));
        session.wait_until("it stands", LIMIT, |run| {
            run.stdout().lines().any(|line| line == "up")
        });
        session
    };
    let _hanging = session("frozen");
    let mut session = session("redis");
    pods.signal_sidecar("frozen", Signal::STOP);
    // Both certificates end twice in this time.
    let end = Instant::now() + Duration::from_secs(26);
    session.wait_until("two certificates have ended", LIMIT, |run| {
        assert!(!closed(run, "redis"), "an honest session was cut");
        Instant::now() >= end
    });
    all_alive(&mut session, &["redis"]);
}
