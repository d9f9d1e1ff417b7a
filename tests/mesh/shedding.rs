//! Adaptive concurrency through real sidecars: an application that is asked for more than it can do,
//! what is refused, and what comes of that for callers.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::support::{
    Bed, Load, Machine, Mesh, Program, Running, Workload, need, script, wait_for,
};

const LIMIT: Duration = Duration::from_secs(60);

/// The application does so many requests at a time,
const WORKERS: u32 = 8;
/// each of them in so many seconds,
const TAKES: f64 = 0.16;
/// and is asked for five times as many as that.
const RATE: f64 = 5.0 * WORKERS as f64 / TAKES;
const SECONDS: u32 = 5;
/// One of so many requests is critical.
const EVERY: usize = 100;

fn put(mesh: &Mesh<'_>, spec: &str) {
    let policy = format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {{name: web, namespace: shop}}\n\
         spec: {{targetRef: {{kind: Service, name: web}}, {spec}}}\n"
    );
    let file = mesh.scratch().file("policy.yaml", policy);
    let apply = format!("apply --wait 10s -f {}", file.display());
    mesh.command(&apply).success();
}

fn curl(mesh: &Mesh<'_>, arguments: &str) -> String {
    let program = Program::line(&format!("curl --silent --max-time 30 {arguments}"));
    let called = mesh.call("me", &["web"], program, LIMIT);
    called.success().stdout
}

pub(crate) fn application(port: &str, name: &str) -> Program {
    let arguments = [port, name, &WORKERS.to_string(), &TAKES.to_string()];
    script("capacity.py").args(arguments.map(ToOwned::to_owned))
}

/// What `overload.py` has seen.
#[derive(Debug, Deserialize)]
struct Seen {
    default: BTreeMap<String, u32>,
    critical: BTreeMap<String, u32>,
    /// Milliseconds at the percentiles 50 and 99.
    answered: [f64; 2],
    refused: [f64; 2],
}

impl Seen {
    fn answers(&self, what: &str) -> u32 {
        let of = |counts: &BTreeMap<String, u32>| counts.get(what).copied().unwrap_or_default();
        of(&self.default) + of(&self.critical)
    }

    /// Everything that is not an answer of the application's.
    fn reasons(&self) -> Vec<&str> {
        let all = self.default.keys().chain(self.critical.keys());
        let mut reasons: Vec<&str> = all.map(|word| &**word).collect();
        reasons.retain(|word| *word != "200:");
        reasons.sort_unstable();
        reasons.dedup();
        reasons
    }
}

fn overload(mesh: &Mesh<'_>, label: &str) -> Seen {
    let url = "http://web.shop.mesh:8080";
    let program = script("overload.py").args([
        url.to_owned(),
        RATE.to_string(),
        SECONDS.to_string(),
        EVERY.to_string(),
    ]);
    let printed = mesh.call("me", &["web"], program, LIMIT).success().stdout;
    let seen = serde_json::from_str(&printed);
    let seen: Seen = seen.unwrap_or_else(|error| panic!("{error}: {printed}"));
    eprintln!("{label}: {seen:?}");
    seen
}

/// How many requests the application has begun.
fn begun(mesh: &Mesh<'_>) -> u32 {
    let count = curl(mesh, "http://web.shop.mesh:8080/count");
    count.trim().parse().expect("a number")
}

#[test]
fn an_overloaded_application_does_what_it_can_and_refuses_the_rest() {
    need!("python3", "curl");
    let machine = Machine::alone();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], application("8080", "web"));
    // A breaker that a few failures would open, for the port and for its endpoint.
    let breakers = "circuitBreaker: {consecutiveFailures: 3, service: {consecutiveFailures: 3}}";
    let capacity = f64::from(WORKERS) / TAKES * f64::from(SECONDS);

    put(&mesh, breakers);
    let without = overload(&mesh, "without");
    assert_eq!(without.reasons(), <[&str; 0]>::default(), "{without:?}");

    let server = "server: {criticalShare: 0.25, critical: [{path: /critical}]}";
    put(
        &mesh,
        &format!("{breakers}, adaptiveConcurrency: {{{server}}}"),
    );
    let before = begun(&mesh);
    let with = overload(&mesh, "server");
    let came = begun(&mesh) - before;
    // Nothing but that reason: no breaker has opened, neither for the answers nor for their
    // Retry-After.
    assert_eq!(with.reasons(), ["503:load-shed"], "{with:?}");
    // What is refused the application has not seen, and nobody asks it again.
    assert_eq!(came, with.answers("200:"), "{with:?}");
    // It does about as much as without, in far less time, and the others hear of it at once.
    let (did, could) = (with.answers("200:"), without.answers("200:"));
    assert!(
        f64::from(did) > 0.6 * capacity,
        "{did} of {capacity}, {could} without"
    );
    assert!(with.answers("503:load-shed") > did, "{with:?}");
    assert!(
        with.answered[0] < without.answered[0] / 2.0,
        "{with:?} {without:?}"
    );
    assert!(with.refused[0] < with.answered[0] / 2.0, "{with:?}");
    // What is critical gets through, nearly always.
    let of = |counts: &BTreeMap<String, u32>| {
        let all: u32 = counts.values().sum();
        let good = counts.get("200:").copied().unwrap_or_default();
        f64::from(good) / f64::from(all)
    };
    assert!(of(&with.critical) > 0.85, "{with:?}");
    assert!(of(&with.default) < 0.5, "{with:?}");

    put(
        &mesh,
        &format!("{breakers}, adaptiveConcurrency: {{client: {{}}}}"),
    );
    let before = begun(&mesh);
    let client = overload(&mesh, "client");
    let came = begun(&mesh) - before;
    assert_eq!(client.reasons(), ["503:concurrency-limit"], "{client:?}");
    assert_eq!(came, client.answers("200:"), "{client:?}");
    assert!(client.answered[0] < without.answered[0] / 2.0, "{client:?}");
    assert!(f64::from(came) > 0.6 * capacity, "{came} of {capacity}");
}

/// An instance of `web`, ready.
fn instance(mesh: &Mesh<'_>, name: &str) -> Running {
    let workload = Workload::new(name).port("9090").flag("--service", "web");
    let running = mesh.run(&workload, application("9090", name));
    wait_for(name, LIMIT, || {
        let shown = mesh.command("get services -o json").success().stdout;
        shown.contains(&format!("shop/{name}")).then_some(())
    });
    running
}

/// Requests at the same time, with the same key, that may not be repeated unless nobody has seen
/// them: what each was answered with.
pub(crate) fn at_once(mesh: &Mesh<'_>, requests: usize, more: &str) -> Vec<String> {
    let shown = "--write-out %{http_code}:%header{weft-reason}:%header{retry-after}|";
    let answered = curl(
        mesh,
        &format!(
            "--parallel --parallel-immediate --output /dev/null {shown} {more} --data x \
             --header x-user:7 http://web.shop.mesh:8080/slow/1?[1-{requests}]"
        ),
    );
    let mut answers: Vec<String> = answered.split_terminator('|').map(Into::into).collect();
    answers.sort_unstable();
    answers
}

const BY_KEY: &str = "loadBalancer: {type: maglev, hashOn: {header: x-user}}, \
                      circuitBreaker: {consecutiveFailures: 1, openTime: 60s}";

#[test]
fn what_one_endpoint_refuses_another_takes() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    // What holds for a port of the service is enforced at the application's.
    let service = "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\n\
                   metadata: {name: web, namespace: shop}\n\
                   spec: {ports: [{port: 8080, targetPort: 9090, protocol: http}]}\n";
    mesh.apply(service).success();
    let _instances = ["a", "b"].map(|name| instance(&mesh, name));
    let one_each = "adaptiveConcurrency: {server: {initial: 1, min: 1, max: 1}}";
    put(&mesh, &format!("{BY_KEY}, {one_each}"));
    let owner = || curl(&mesh, "--header x-user:7 http://web.shop.mesh:8080/");
    let first = owner();
    // All of them go to the same one, which has room for one; the other one has room for another.
    for _round in 0..2 {
        assert_eq!(at_once(&mesh, 3, ""), ["200::", "200::", "503:load-shed:1"]);
    }
    // A single failure, or a Retry-After that is heeded, would keep requests away for a minute.
    assert_eq!(owner(), first);
    // No budget, no second attempt.
    let spent = "retry: {budget: {ratio: 0, minimumPerSecond: 0}}";
    put(&mesh, &format!("{BY_KEY}, {one_each}, {spent}"));
    assert_eq!(
        at_once(&mesh, 3, ""),
        ["200::", "503:load-shed:1", "503:load-shed:1"]
    );
}

/// What a workload's sidecar tells Prometheus; `None` while it is not known.
pub(crate) fn metrics(mesh: &Mesh<'_>, workload: &str) -> Option<String> {
    let logs = mesh.scratch().dir("prometheus");
    let fetch = |url: &str| {
        let program = Program::line(&format!("curl --silent --fail --max-time 30 {url}"));
        program.run("curl", &logs, LIMIT).success().stdout
    };
    let read = |text: String| -> serde_json::Value { serde_json::from_str(&text).expect("JSON") };
    let status = read(mesh.command("status -o json").success().stdout);
    let address = status["metricsAddress"].as_str().expect("an address");
    let targets = read(fetch(&format!("http://{address}/targets")));
    let mut all = targets.as_array().into_iter().flatten();
    let target = all.find(|target| target["labels"]["workload"] == workload)?;
    let host = target["targets"][0].as_str().expect("HOST:PORT");
    let path = target["labels"]["__metrics_path__"].as_str();
    Some(fetch(&format!("http://{host}{}", path.expect("a path"))))
}

#[test]
fn limits_are_those_of_the_policy_and_refusals_are_counted() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], application("8080", "web"));
    put(
        &mesh,
        "adaptiveConcurrency: {client: {initial: 3, min: 3, max: 3}}",
    );
    let answers = at_once(&mesh, 8, "");
    let count = |wanted: &str| answers.iter().filter(|one| *one == wanted).count();
    assert_eq!(
        (count("200::"), count("503:concurrency-limit:")),
        (3, 5),
        "{answers:?}"
    );
    // Two of four places are kept for what callers in the mesh say is urgent.
    put(
        &mesh,
        "adaptiveConcurrency: {server: {initial: 4, min: 4, max: 4, criticalShare: 0.5, \
         critical: [{headers: [{name: priority, value: u=0}]}, {callers: [shop/boss]}]}}",
    );
    let ok = |answers: Vec<String>| answers.iter().filter(|one| *one == "200::").count();
    assert_eq!(ok(at_once(&mesh, 6, "")), 2);
    assert_eq!(ok(at_once(&mesh, 6, "--header priority:u=0")), 4);

    // To a gRPC caller it is RESOURCE_EXHAUSTED, with when to come back.
    let grpc = "--header content-type:application/grpc \
                --write-out %header{grpc-status}:%header{grpc-retry-pushback-ms}|";
    let answers = at_once(&mesh, 3, grpc);
    assert_eq!(
        answers.iter().filter(|one| *one == "8:1000").count(),
        1,
        "{answers:?}"
    );

    let metrics = metrics(&mesh, "web").expect("a target");
    for (name, value) in [
        ("weft_concurrency_limit{", "4.0"),
        ("weft_concurrency_in_flight{", "0.0"),
        ("weft_concurrency_refused_total{", "5"),
        ("priority=\"critical\"}", "2"),
    ] {
        let line = metrics.lines().find(|line| line.contains(name));
        let found = line.and_then(|line| line.rsplit(' ').next());
        assert_eq!(found, Some(value), "{name}: {metrics}");
    }

    let effective = mesh
        .command("get --effective shop/web -o json")
        .success()
        .stdout;
    let effective: serde_json::Value = serde_json::from_str(&effective).expect("JSON");
    let server = &effective["items"][0]["spec"]["adaptiveConcurrency"]["server"];
    assert_eq!(server["criticalShare"], 0.5, "{effective}");
    assert_eq!(server["tolerance"], 1.5, "{effective}");
    assert_eq!(
        server["critical"][1]["callers"][0], "shop/boss",
        "{effective}"
    );
    let explain = "explain --from shop/me GET http://web.shop.mesh:8080/";
    let explained = mesh.command(explain).success().stdout;
    for part in ["load-shed", "50 % are kept", "priority", "default"] {
        assert!(explained.contains(part), "{part}: {explained}");
    }
    let urgent = format!("{explain} -H priority:u=0");
    let explained = mesh.command(&urgent).success().stdout;
    assert!(explained.contains("critical"), "{explained}");
}

/// The time of answers is known, from requests with bodies too, in both sidecars.
#[test]
fn answers_are_measured_on_both_sides() {
    need!("python3", "curl", "python:grpc");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], application("8080", "web"));
    let server = script("grpc_server.py").arg("50051");
    let _rpc = mesh.serve("rpc", &["50051:grpc"], server);
    let both = "adaptiveConcurrency: {client: {}, server: {}}";
    put(&mesh, both);
    let rpc = format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {{name: rpc, namespace: shop}}\n\
         spec: {{targetRef: {{kind: Service, name: rpc}}, {both}}}\n"
    );
    mesh.apply(&rpc).success();
    let state = mesh.scratch().dir("calls");
    let calls = Load::program("grpc", "rpc.shop.mesh:50051", &state, &[]);
    let caller = Workload::new("calls").wait_for("rpc");
    let calls = mesh.run(&caller, calls);
    // Only who serves something has its sidecar listed for Prometheus.
    let posts = "python3 -m http.server 9000 >/dev/null 2>&1 & \
                 while :; do curl --silent --max-time 30 --data x http://web.shop.mesh:8080/; done";
    let caller = Workload::new("posts").port("9000").wait_for("web");
    let _posts = mesh.run(&caller, Program::shell(posts));
    for (workload, direction) in [
        ("web", "inbound"),
        ("posts", "outbound"),
        ("rpc", "inbound"),
    ] {
        let name = format!("weft_concurrency_normal_latency_seconds{{direction=\"{direction}\"");
        let what = format!("answers to be measured by the sidecar of {workload}");
        wait_for(&what, LIMIT, || {
            let metrics = metrics(&mesh, workload)?;
            let line = metrics.lines().find(|line| line.starts_with(&name))?;
            let seconds: f64 = line.rsplit(' ').next()?.parse().ok()?;
            let expected = match workload {
                // As long as one takes.
                "web" | "posts" => TAKES,
                _ => 0.0,
            };
            (seconds > expected).then_some(())
        });
    }
    Load::watch(calls, state).stop_without_failure();
}
