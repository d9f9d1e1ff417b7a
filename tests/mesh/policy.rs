//! TrafficPolicy through real sidecars: what is applied is what callers get, at once.

use std::time::Duration;

use crate::support::{Bed, Machine, Mesh, Program, Running, Workload, need, script, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

/// A TrafficPolicy for `web`.
fn policy(spec: &str) -> String {
    format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {{name: web, namespace: shop}}\n\
         spec: {{targetRef: {{kind: Service, name: web}}, {spec}}}\n"
    )
}

/// Applies a policy; returns when the control plane tells it to whoever asks.
fn put(mesh: &Mesh<'_>, spec: &str) {
    let file = mesh.scratch().file("policy.yaml", policy(spec));
    let apply = format!("apply --wait 10s -f {}", file.display());
    mesh.command(&apply).success();
}

fn backend(arguments: &str) -> Program {
    script("backend.py").args(arguments.split(' '))
}

/// An instance of `web`, ready.
fn instance(mesh: &Mesh<'_>, name: &str, status: u16) -> Running {
    let workload = Workload::new(name).port("8080").flag("--service", "web");
    let running = mesh.run(&workload, backend(&format!("8080 {name} {status}")));
    wait_for(name, LIMIT, || {
        let shown = mesh.command("get services -o json").success().stdout;
        shown.contains(&format!("shop/{name}")).then_some(())
    });
    running
}

fn curl(mesh: &Mesh<'_>, arguments: &str) -> String {
    let program = Program::line(&format!("curl --silent --max-time 30 {arguments}"));
    let called = mesh.call("me", &["web"], program, LIMIT);
    called.success().stdout
}

/// What one caller's requests in a row were answered by.
fn answers(mesh: &Mesh<'_>, requests: usize) -> Vec<String> {
    let range = format!("http://web.shop.mesh:8080/[1-{requests}]");
    let answered = curl(mesh, &range);
    answered.lines().map(ToOwned::to_owned).collect()
}

fn count(answers: &[String], name: &str) -> usize {
    answers.iter().filter(|answer| *answer == name).count()
}

#[test]
fn timeouts_and_retries_are_those_of_the_policy() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], backend("8080 web"));
    let url = "http://web.shop.mesh:8080";
    let reached = || -> usize {
        let count = curl(&mesh, &format!("{url}/count"));
        count.trim().parse().expect("a number")
    };
    let slow = |more: &str| {
        let shown = "--output /dev/null --write-out %{http_code}:%header{weft-reason}";
        curl(&mesh, &format!("{shown} {more} {url}/slow/1"))
    };
    assert_eq!(slow(""), "200:");

    put(&mesh, "timeouts: {request: 200ms}");
    assert_eq!(slow(""), "504:request-timeout");

    // Refused whole: what was applied before stays in force.
    let refused = mesh.apply(&policy(
        "timeouts: {request: 2s, perTry: 3s}, retry: {x: 1}",
    ));
    assert_eq!(refused.code(), 2, "{refused}");
    for part in ["spec.timeouts.perTry", "3s", "spec.retry", "unknown"] {
        assert!(refused.stderr.contains(part), "{part}: {refused}");
    }
    assert_eq!(slow(""), "504:request-timeout");

    // Each attempt has its own time, and only a harmless request is repeated.
    put(&mesh, "timeouts: {perTry: 200ms}, retry: {attempts: 2}");
    let before = reached();
    assert_eq!(slow(""), "504:per-try-timeout");
    assert_eq!(reached() - before, 3);
    assert_eq!(slow("--data x"), "504:per-try-timeout");
    assert_eq!(reached() - before, 4);

    // The budget is spent: no attempt is repeated.
    let spent = "timeouts: {perTry: 200ms}, retry: {budget: {ratio: 0, minimumPerSecond: 0}}";
    put(&mesh, spent);
    assert_eq!(slow(""), "504:per-try-timeout");
    assert_eq!(reached() - before, 5);

    mesh.command("delete TrafficPolicy web -n shop").success();
    wait_for("the default to be back", LIMIT, || {
        (slow("") == "200:").then_some(())
    });
}

#[test]
fn balancing_and_breaking_are_those_of_the_policy() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _good = instance(&mesh, "good", 200);
    let _bad = instance(&mesh, "bad", 500);

    let without = "loadBalancer: {type: roundRobin}, circuitBreaker: {enabled: false}";
    put(&mesh, without);
    let answered = answers(&mesh, 40);
    assert_eq!(count(&answered, "bad"), 20, "{answered:?}");
    assert_eq!(count(&answered, "good"), 20, "{answered:?}");

    let with = "loadBalancer: {type: roundRobin}, \
                circuitBreaker: {consecutiveFailures: 2, openTime: 60s}";
    put(&mesh, with);
    let answered = answers(&mesh, 40);
    assert_eq!(count(&answered, "bad"), 2, "{answered:?}");
    assert_eq!(count(&answered, "good"), 38, "{answered:?}");

    // Ejecting one of two would be more than this policy allows.
    let guarded = "loadBalancer: {type: roundRobin}, \
                   circuitBreaker: {consecutiveFailures: 2, openTime: 60s, maxEjectedShare: 0.4}";
    put(&mesh, guarded);
    let answered = answers(&mesh, 40);
    assert_eq!(count(&answered, "bad"), 20, "{answered:?}");
}

#[test]
fn a_limit_lets_exactly_so_many_through() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], backend("8080 web"));
    // All at once; each takes a second.
    let storm = || {
        let shown = "--output /dev/null --write-out %{http_code}:%header{weft-reason}|";
        let range = "http://web.shop.mesh:8080/slow/1?[1-8]";
        let answered = curl(
            &mesh,
            &format!("--parallel --parallel-immediate {shown} {range}"),
        );
        let count = |wanted: &str| answered.split('|').filter(|one| *one == wanted).count();
        (count("200:"), count("503:concurrency-limit"))
    };
    assert_eq!(storm(), (8, 0));
    for limit in [1, 3] {
        mesh.apply(&policy(&format!("limits: {{concurrentRequests: {limit}}}")))
            .success();
        assert_eq!(storm(), (limit, 8 - limit));
    }
}
