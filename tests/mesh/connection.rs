//! A sidecar has one connection to its control plane, whatever happens: after the start, after
//! renewals of its certificate and after the control plane was away, and all that goes over it works
//! each time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{
    Machine, Mesh, Program, Running, Settings, Workload, descendants, need, script, wait_for,
};

const LIMIT: Duration = Duration::from_secs(60);
/// Two servers and two callers.
const SIDECARS: [&str; 4] = ["one", "two", "me", "other"];

/// The sockets of a sidecar that are connected to the control plane's port.
fn connections(mesh: &Mesh<'_>, sidecar: &Running) -> BTreeSet<u64> {
    let to_port = format!(":{:04X}", mesh.port());
    let table = std::fs::read_to_string("/proc/net/tcp").expect("read /proc/net/tcp");
    let rows = table.lines().skip(1).filter_map(|line| {
        let cells: Vec<&str> = line.split_whitespace().collect();
        // Established, from any port to that one.
        let connected = cells[3] == "01" && cells[2].ends_with(&to_port);
        connected.then(|| cells[9].parse::<u64>().expect("an inode"))
    });
    let connected: BTreeSet<u64> = rows.collect();
    let mut own = BTreeSet::new();
    for pid in descendants(sidecar.pid()) {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"));
        for descriptor in descriptors.into_iter().flatten().flatten() {
            let target = std::fs::read_link(descriptor.path()).unwrap_or_default();
            let inode = target.to_string_lossy();
            let inode = inode.strip_prefix("socket:[");
            let inode = inode.and_then(|inode| inode.strip_suffix(']')?.parse::<u64>().ok());
            own.extend(inode);
        }
    }
    connected.intersection(&own).copied().collect()
}

/// Waits until each sidecar has exactly one; which.
fn one_each(mesh: &Mesh<'_>, sidecars: &[&Running]) -> Vec<u64> {
    wait_for("one connection for each sidecar", LIMIT, || {
        let all = sidecars.iter().map(|sidecar| connections(mesh, sidecar));
        let ones = all.map(|all| (all.len() == 1).then(|| all.first().copied())?);
        ones.collect::<Option<Vec<u64>>>()
    })
}

fn json(mesh: &Mesh<'_>, command: &str) -> Value {
    let shown = mesh.command(command).success().stdout;
    serde_json::from_str(&shown).unwrap_or_else(|error| panic!("{error}: {shown}"))
}

fn socket(mesh: &Mesh<'_>, workload: &str) -> String {
    let path = mesh.scratch().path().join(format!("{workload}.sock"));
    path.display().to_string()
}

/// The value of a sample of a sidecar's metrics.
fn sample(mesh: &Mesh<'_>, workload: &str, sample: &str) -> Option<f64> {
    let socket = socket(mesh, workload);
    let line = format!("curl --silent --fail --unix-socket {socket} http://localhost/metrics");
    let scraped = Program::line(&line).run("curl", &mesh.scratch().dir("scrapes"), LIMIT);
    let scraped = scraped.success().stdout;
    let mut lines = scraped.lines();
    let value = lines.find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    value.map(|value| value.parse().expect("a number"))
}

/// How often each workload is among the connected sidecars.
fn proxies(mesh: &Mesh<'_>, workload: &str) -> usize {
    let shown = json(mesh, "proxies -o json");
    let items = shown["items"].as_array().expect("a list").clone();
    let name = format!("shop/{workload}");
    items
        .iter()
        .filter(|proxy| proxy["workload"] == name)
        .count()
}

/// Whether the control plane is told that the breaker of `two` has opened.
fn breaker_is_seen(mesh: &Mesh<'_>) -> bool {
    let shown = json(mesh, "breakers -o json");
    let items = shown["items"].as_array().expect("a list").clone();
    items.iter().any(|breaker| breaker["service"] == "shop/two")
}

/// Everything that goes over the connection works: a policy of this name comes to be in force, and
/// more than half of its limit is leased to the one of two servers that is asked; all sidecars are
/// seen, once; registrations and what a sidecar observes stand.
fn all_works(mesh: &Mesh<'_>, policy: &str) {
    let document = format!(
        "---\napiVersion: weft-mesh.io/v1alpha1\nkind: RateLimitPolicy\n\
         metadata: {{name: {policy}, namespace: shop}}\n\
         spec: {{targetRef: {{kind: Service, name: web}}, scope: global, \
         rules: [{{requests: 1000, per: 1s}}]}}\n"
    );
    let file = mesh.scratch().file("limit.yaml", document);
    let apply = format!("apply --wait 10s -f {}", file.display());
    mesh.command(&apply).success();
    let share = format!("weft_rate_limit_share{{policy=\"shop/{policy}\",rule=\"0\"}}");
    wait_for("a lease of most of the limit", LIMIT, || {
        (sample(mesh, "one", &share)? > 0.6).then_some(())
    });
    wait_for("all sidecars to be seen, once", LIMIT, || {
        let once = |workload: &&str| proxies(mesh, workload) == 1;
        SIDECARS.iter().all(once).then_some(())
    });
    wait_for("the breaker to be seen", LIMIT, || {
        breaker_is_seen(mesh).then_some(())
    });
    let service = &json(mesh, "get services web -n shop -o json")["items"][0];
    let endpoints = service["status"]["endpoints"].to_string();
    for workload in ["one", "two"] {
        assert!(endpoints.contains(workload), "{service:#}");
    }
    for workload in SIDECARS {
        let connected = sample(mesh, workload, "weft_control_plane_connected");
        assert_eq!(connected, Some(1.0), "{workload}");
    }
}

/// Waits until all know that they are not connected, and these sidecars have no connection.
fn all_are_lost(mesh: &Mesh<'_>, sidecars: &[&Running]) {
    wait_for("the loss to be noticed", LIMIT, || {
        let connected = "weft_control_plane_connected";
        let lost = |name: &&str| sample(mesh, name, connected) == Some(0.0);
        let gone = sidecars.iter().all(|one| connections(mesh, one).is_empty());
        (gone && SIDECARS.iter().all(lost)).then_some(())
    });
}

/// When the certificate of a workload's sidecar ends.
fn certificate_ends(mesh: &Mesh<'_>, workload: &str) -> i64 {
    let socket = socket(mesh, workload);
    let line = format!("curl --silent --fail --unix-socket {socket} http://localhost/certs");
    let shown = Program::line(&line).run("curl", &mesh.scratch().dir("scrapes"), LIMIT);
    let shown: Value = serde_json::from_str(&shown.success().stdout).expect("JSON");
    shown["notAfter"].as_i64().expect("a time")
}

#[test]
fn a_sidecar_has_one_connection_to_the_control_plane() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let settings = Settings {
        // The shortest life; a grace of more than twice the 3 s in which sidecars reconnect.
        flags: &["--leaf-ttl", "10s", "--grace", "7s"],
        ..Settings::default()
    };
    let mesh = Mesh::with(&machine, settings);
    let workload = |name: &str| Workload::new(name).flag("--admin-socket", &socket(&mesh, name));
    let server = |name: &str, status: &str| {
        let server = workload(name).port("8080");
        let server = server.flag("--service", "web").flag("--service", name);
        mesh.run(&server, script("backend.py").args(["8080", name, status]))
    };
    let (one, two) = (server("one", "200"), server("two", "503"));
    for service in ["one", "two"] {
        mesh.wait_for_service(service);
    }
    let breaker = "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
                   metadata: {name: two, namespace: shop}\n\
                   spec: {targetRef: {kind: Service, name: two}, \
                   circuitBreaker: {service: {consecutiveFailures: 2}}}\n";
    mesh.apply(breaker).success();
    let caller = |name: &str, of: &str| {
        let url = format!("http://{of}.shop.mesh:8080/");
        let asking = script("rates.py").args([&*url, "5", "600"]);
        mesh.run(&workload(name).wait_for(of), asking)
    };
    let (me, other) = (caller("me", "one"), caller("other", "two"));
    let sidecars = [&one, &two, &me, &other];

    let first = one_each(&mesh, &sidecars);
    all_works(&mesh, "first");

    // Another certificate is another connection, and nothing of what goes over it is away for a
    // moment. Longer than the 10 s after which the control plane ends calls that do not answer.
    let ends = certificate_ends(&mesh, "one");
    let logged = SIDECARS.map(|workload| mesh.log(workload).len());
    let began = Instant::now();
    wait_for("two renewals", LIMIT, || {
        for workload in SIDECARS {
            assert_eq!(proxies(&mesh, workload), 1, "{workload}");
        }
        assert!(breaker_is_seen(&mesh), "what is observed stands");
        let renewed = certificate_ends(&mesh, "one") >= ends + 8;
        (renewed && began.elapsed() > Duration::from_secs(12)).then_some(())
    });
    let second = one_each(&mesh, &sidecars);
    for (workload, before) in SIDECARS.into_iter().zip(logged) {
        let log = mesh.log(workload);
        let since = log.get(before..).unwrap_or_default();
        assert!(!since.contains("stream ended"), "{workload}: {since}");
    }
    let (mut before, mut after) = (first.iter(), second.iter());
    assert!(before.all(|one| !second.contains(one)) && after.all(|one| !first.contains(one)));
    all_works(&mesh, "second");

    mesh.kill_control_plane();
    all_are_lost(&mesh, &sidecars);
    mesh.start_control_plane();
    one_each(&mesh, &sidecars);
    all_works(&mesh, "third");

    // One that says nothing any more is noticed as well, though its connections stand.
    let pid = i32::try_from(mesh.control_plane_pid()).ok();
    let control_plane = pid.and_then(Pid::from_raw).expect("a process");
    kill_process(control_plane, Signal::STOP).expect("stop it");
    all_are_lost(&mesh, &[]);
    kill_process(control_plane, Signal::CONT).expect("let it go on");
    one_each(&mesh, &sidecars);
    all_works(&mesh, "fourth");
    let log = mesh.log("one");
    let lost = "connection to the control plane lost";
    assert!(log.contains(lost), "{log}");
}
