//! What the guide promises is there: each metric of its tables is counted by a sidecar, and each
//! reason is provoked by a test of this directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{Machine, Mesh, Program, Workload, need, script, wait_for};

const LIMIT: Duration = Duration::from_secs(60);
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Metrics that stay away, or at 0, as long as nothing of their kind goes wrong.
const OF_TROUBLE: &[&str] = &[
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

/// Reasons that no test of this directory has to provoke: each has to be given by the sidecar's code.
const UNPROVOKED: &[&str] = &[
    "no-endpoints",
    "no-healthy-endpoint",
    "service-not-found",
    "port-not-declared",
    "discovery-unavailable",
    "connection-limit",
    "connect-failed",
    "peer-not-authenticated",
    "plaintext-refused",
    "upstream-reset",
    "upstream-protocol-error",
    "headers-too-large",
    "bad-request",
    "client-gone",
    "client-timeout",
    "body-too-large",
    "application-loopback-only",
    "application-refused",
    "destination-refused",
    "draining",
    "upgrade-failed",
];

/// The words in the first column of the tables of a page, those that begin with one of `prefixes`.
fn words(page: &str, prefixes: &[&str]) -> BTreeSet<String> {
    let path = format!("{ROOT}/deploy/guide/{page}");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let words = rows.filter_map(|row| row.split('`').next());
    let words = words.filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix)));
    words.map(str::to_owned).collect()
}

/// All Rust files below a directory but one, joined.
fn sources(directory: &Path, except: &str) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(directory).expect("read a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            text.push_str(&sources(&path, except));
        } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with(except) {
            text.push_str(&std::fs::read_to_string(&path).expect("read a file"));
        }
    }
    text
}

#[test]
fn each_reason_of_the_guide_is_provoked() {
    let root = Path::new(ROOT);
    let tests = sources(&root.join("tests/mesh"), "promised.rs");
    let proxy = sources(&root.join("proxy/src"), "tests.rs");
    let core = sources(&root.join("proxy/core/src"), "reason.rs");
    let all = words("reasons.md", &[""]);
    assert!(all.len() > 30, "{all:?}");
    let mut problems = Vec::new();
    for word in &all {
        let provoked = tests.contains(word.as_str());
        let listed = UNPROVOKED.contains(&word.as_str());
        let name: String = word.split('-').map(capitalised).collect();
        let given = format!("Reason::{name}");
        if !proxy.contains(&given) && !core.contains(&given) {
            problems.push(format!("{word}: nothing gives it"));
        }
        if !provoked && !listed {
            problems.push(format!("{word}: no test provokes it"));
        }
    }
    let gone = UNPROVOKED.iter().filter(|word| !all.contains(**word));
    problems.extend(gone.map(|word| format!("{word}: listed, and not in the guide")));
    assert!(problems.is_empty(), "{problems:#?}");
}

fn capitalised(part: &str) -> String {
    let (first, rest) = part.split_at(1);
    first.to_uppercase() + rest
}

/// The largest sample of each family of a scrape.
fn families(scrape: &str) -> BTreeMap<String, f64> {
    let mut families = BTreeMap::new();
    for line in scrape.lines().filter(|line| !line.starts_with('#')) {
        let Some((sample, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let name = sample.split('{').next().unwrap_or_default();
        let name = name.strip_suffix("_count").unwrap_or(name);
        let value: f64 = value.parse().expect("a number");
        let largest: &mut f64 = families.entry(name.to_owned()).or_insert(value);
        *largest = largest.max(value);
    }
    families
}

/// The admin interface of a workload's sidecar.
fn admin(mesh: &Mesh<'_>, workload: &str) -> String {
    let socket = mesh.scratch().path().join(format!("{workload}.sock"));
    socket.display().to_string()
}

/// What the sidecars of `workloads` tell, all together.
fn scrape(mesh: &Mesh<'_>, workloads: &[&str]) -> String {
    let logs = mesh.scratch().dir("scrapes");
    let all = workloads.iter().map(|workload| {
        let socket = admin(mesh, workload);
        let line = format!("curl --silent --fail --unix-socket {socket} http://localhost/metrics");
        Program::line(&line)
            .run("curl", &logs, LIMIT)
            .success()
            .stdout
    });
    all.collect()
}

const POLICIES: &str = "\
---
apiVersion: weft-mesh.io/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRef: {kind: Service, name: web}
  loadBalancer: {type: roundRobin}
  hedge: {delay: 50ms}
  healthCheck: {tcp: {}, interval: 1s}
  adaptiveConcurrency: {client: {}, server: {}}
---
apiVersion: weft-mesh.io/v1alpha1
kind: RateLimitPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRef: {kind: Service, name: web}
  rules: [{requests: 1, per: 24h, matches: [{path: {type: Exact, value: /limited}}]}]
";

#[test]
fn each_metric_of_the_guide_is_counted() {
    need!("root", "python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let telling = |name: &str| {
        let log = mesh.scratch().path().join(format!("{name}.log"));
        Workload::new(name)
            .flag("--access-log", &log.display().to_string())
            .flag("--admin-socket", &admin(&mesh, name))
            // Nobody is there: spans are made, and not taken.
            .flag("--otlp-endpoint", "http://127.0.0.1:9")
            .flag("--sample-ratio", "1")
    };
    let server = |name: &str, hedge: &str| {
        let web = telling(name).flag("--service", "web");
        let web = web.port("8080:http").port("8081:tcp");
        mesh.run(&web, script("promised.py").args(["serve", hedge]))
    };
    let _servers = [server("web-1", "0.5"), server("web-2", "0")];
    mesh.wait_for_service("web");
    let file = mesh.scratch().file("policies.yaml", POLICIES);
    let apply = format!("apply --wait 10s -f {}", file.display());
    mesh.command(&apply).success();
    let (ready, go) = (
        mesh.scratch().path().join("ready"),
        mesh.scratch().path().join("go"),
    );
    let asking = script("promised.py").arg("ask").arg(&ready).arg(&go);
    let _me = mesh.run(&telling("me").wait_for("web"), asking);
    wait_for("everything was asked for", LIMIT, || {
        ready.exists().then_some(())
    });

    let all = words("metrics.md", &["weft_", "http_", "process_"]);
    assert!(all.len() > 40, "{all:?}");
    let end = Instant::now() + LIMIT;
    let missing = wait_for("an answer about every metric", 2 * LIMIT, || {
        let found = families(&scrape(&mesh, &["me", "web-1", "web-2"]));
        let counts = |name: &&String| found.get(name.as_str()).is_some_and(|value| *value > 0.0);
        let usual = all
            .iter()
            .filter(|name| !OF_TROUBLE.contains(&name.as_str()));
        let missing: Vec<&String> = usual.filter(|name| !counts(name)).collect();
        (missing.is_empty() || Instant::now() > end).then_some(missing)
    });
    assert!(missing.is_empty(), "not counted: {missing:?}");
    std::fs::write(&go, "").expect("say that it is over");
}
