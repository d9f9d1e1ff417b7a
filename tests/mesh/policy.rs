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

/// Connections of a sidecar to endpoints at these ports.
fn connections(sidecar: u32, ports: &[String]) -> usize {
    let output = std::process::Command::new("ss")
        .args(["-Htnp", "state", "established"])
        .output()
        .expect("run ss");
    let sockets = String::from_utf8_lossy(&output.stdout);
    let of_sidecar = format!("pid={sidecar},");
    let theirs = |line: &&str| {
        let peer = line.split_whitespace().nth(3).unwrap_or_default();
        let port = peer.rsplit(':').next().unwrap_or_default();
        line.contains(&of_sidecar) && ports.iter().any(|wanted| wanted == port)
    };
    sockets.lines().filter(theirs).count()
}

#[test]
fn connections_are_counted_over_all_workers() {
    need!("root", "python3", "curl", "ss");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _instances = [instance(&mesh, "one", 200), instance(&mesh, "two", 200)];
    let shown = mesh.command("get services web -n shop -o json").success();
    let shown = shown.stdout;
    let ports: Vec<String> = shown
        .split("127.0.0.1:")
        .skip(1)
        .map(|rest| rest.chars().take_while(char::is_ascii_digit).collect())
        .collect();
    assert_eq!(ports.len(), 2, "{shown}");
    // Everything at once, from connections that four workers share out among them; then it stays.
    let storm = |number: usize| {
        let url = "http://web.shop.mesh:8080/slow/0.3?[1-40]";
        let program = format!(
            "curl --silent --parallel --parallel-immediate --parallel-max 40 \
             --write-out '%{{http_code}}:%header{{weft-reason}}\n' {url}; echo done; exec sleep 1000"
        );
        let caller = Workload::new(&format!("caller-{number}"))
            .wait_for("web")
            .flag("--workers", "4");
        let mut running = mesh.run(&caller, Program::shell(program));
        running.wait_until("its answers", LIMIT, |running| {
            running.stdout().contains("done")
        });
        let printed = running.stdout();
        let answered = printed.lines().filter(|line| *line == "200:").count();
        assert_eq!(answered, 40, "{printed}");
        connections(running.pid(), &ports)
    };
    let unlimited = storm(0);
    assert!(unlimited > 3, "only {unlimited} connections");
    for limit in [1, 2, 3] {
        put(
            &mesh,
            &format!("loadBalancer: {{type: roundRobin}}, limits: {{connections: {limit}}}"),
        );
        let stand = storm(limit);
        assert!((1..=limit).contains(&stand), "{stand} beyond {limit}");
    }
    // Each opens another after so many requests; nothing fails, and the limit holds.
    put(&mesh, "limits: {connections: 1, requestsPerConnection: 7}");
    assert_eq!(storm(4), 1);
}

/// `STATUS:REASON:BODY` of one answer.
fn shown(mesh: &Mesh<'_>, more: &str) -> String {
    let shown = "--write-out %{http_code}:%header{weft-reason}";
    curl(mesh, &format!("{shown} {more}"))
}

#[test]
fn who_waits_in_our_own_queue_is_nobodys_failure() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], backend("8080 web"));
    put(
        &mesh,
        "limits: {concurrentRequests: 1, pendingRequests: 9}, timeouts: {request: 300ms}, \
         circuitBreaker: {enabled: false, service: {consecutiveFailures: 3, openTime: 60s}}",
    );
    // Whoever asks for something slow may take longer than the others wait.
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
                 metadata: {name: web, namespace: shop}\n\
                 spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [\
                 {matches: [{path: {value: /slow}}], timeouts: {request: 20s}, backendRefs: [{name: web, port: 8080}]}, \
                 {backendRefs: [{name: web, port: 8080}]}]}\n";
    let file = mesh.scratch().file("route.yaml", route);
    let apply = format!("apply --wait 10s -f {}", file.display());
    mesh.command(&apply).success();
    let shown = "--silent --output /dev/null --write-out '%{http_code}:%header{weft-reason}|'";
    let url = "http://web.shop.mesh:8080";
    let held = mesh.scratch().file("held", "");
    let held = held.display();
    // From when on one waits in vain, the place is taken.
    let program = format!(
        "curl {shown} {url}/slow/4 >{held} & until curl {shown} {url}/ | grep -q 504; do :; done; \
         curl --parallel --parallel-immediate {shown} '{url}/[1-5]'; echo; wait; cat {held}; \
         curl {shown} {url}/"
    );
    let called = mesh.call("me", &["web"], Program::shell(program), LIMIT);
    let printed = called.success().stdout;
    let (waited, after) = printed.split_once('\n').expect("two lines");
    assert_eq!(waited, "504:request-timeout|".repeat(5), "{printed}");
    assert_eq!(after, "200:|200:|", "{printed}");
}

#[test]
fn requests_that_wait_come_in_their_turn() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], backend("8080 web"));
    put(&mesh, "limits: {concurrentRequests: 1, pendingRequests: 3}");
    let shown = "--output /dev/null --write-out %{http_code}:%header{weft-reason}|";
    let range = "http://web.shop.mesh:8080/slow/0.3?[1-6]";
    let answered = curl(
        &mesh,
        &format!("--parallel --parallel-immediate {shown} {range}"),
    );
    let count = |wanted: &str| answered.split('|').filter(|one| *one == wanted).count();
    assert_eq!(
        (count("200:"), count("503:pending-limit")),
        (4, 2),
        "{answered}"
    );
}

#[test]
fn a_port_may_have_a_breaker_of_its_own_and_a_fallback() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _bad = instance(&mesh, "bad", 500);
    let _other = mesh.serve("other", &["8080"], backend("8080 other"));
    let url = "http://web.shop.mesh:8080/";
    let ask = |count: usize| shown(&mesh, &format!("{url}[1-{count}]"));
    let service = "service: {consecutiveFailures: 3, openTime: 60s}";

    // Observed only: everything goes through.
    let observe = format!("circuitBreaker: {{mode: observe, {service}}}");
    put(&mesh, &observe);
    assert_eq!(ask(6), "bad\n500:".repeat(6));

    // The last endpoint is never ejected, but the whole may be closed. What was counted stays.
    let enforce = format!("circuitBreaker: {{{service}}}");
    put(&mesh, &enforce);
    let answered = ask(6);
    let refused = answered.matches("503:circuit-open").count();
    assert!((3..=6).contains(&refused), "{answered}");
    let after = curl(&mesh, &format!("--include {url}[1-4]"));
    assert!(after.to_lowercase().contains("retry-after: "), "{after}");

    let fallback = "fallback: {response: {status: 203, body: cached}}";
    put(
        &mesh,
        &format!("circuitBreaker: {{mode: forceOpen, {fallback}}}"),
    );
    assert_eq!(ask(1), "cached203:circuit-open");
    let fallback = "fallback: {backend: {name: other, port: 8080}}";
    put(
        &mesh,
        &format!("circuitBreaker: {{mode: forceOpen, {fallback}}}"),
    );
    assert_eq!(ask(1), "other\n200:");
    put(&mesh, "circuitBreaker: {mode: forceOpen}");
    assert!(ask(1).ends_with("503:circuit-open"));
}

#[test]
fn what_counts_as_a_failure_is_the_policys() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _good = instance(&mesh, "good", 200);
    let _missing = instance(&mesh, "missing", 404);
    let by_turns =
        "loadBalancer: {type: roundRobin}, circuitBreaker: {consecutiveFailures: 2, openTime: 60s";
    put(&mesh, &format!("{by_turns}}}"));
    assert_eq!(count(&answers(&mesh, 20), "missing"), 10);
    put(
        &mesh,
        &format!("{by_turns}, failures: {{statuses: [404]}}}}"),
    );
    assert_eq!(count(&answers(&mesh, 20), "missing"), 2);
}

/// An endpoint that hangs is found out by the timeout of the whole request too.
#[test]
fn an_endpoint_that_never_answers_is_left_out() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _good = instance(&mesh, "good", 200);
    let _hung = instance(&mesh, "hung", 0);
    put(
        &mesh,
        "loadBalancer: {type: roundRobin}, timeouts: {request: 300ms}, retry: {attempts: 0}, \
         circuitBreaker: {consecutiveFailures: 2, openTime: 60s}",
    );
    let answered = shown(&mesh, "--output /dev/null http://web.shop.mesh:8080/[1-20]");
    assert_eq!(
        answered.matches("504:request-timeout").count(),
        2,
        "{answered}"
    );
    assert_eq!(answered.matches("200:").count(), 18, "{answered}");
}

#[test]
fn equal_keys_meet_the_same_endpoint() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let names = ["a", "b", "c"];
    let _instances = names.map(|name| instance(&mesh, name, 200));
    let url = "http://web.shop.mesh:8080/";
    for kind in ["maglev", "ringHash"] {
        put(
            &mesh,
            &format!("loadBalancer: {{type: {kind}, hashOn: {{header: x-user}}}}"),
        );
        // The same from every worker and every sidecar.
        let of = |user: &str| {
            let answered = curl(&mesh, &format!("--header x-user:{user} {url}[1-12]"));
            let names: std::collections::BTreeSet<&str> = answered.lines().collect();
            assert_eq!(names.len(), 1, "{kind} {user}: {answered}");
            answered.lines().next().expect("an answer").to_owned()
        };
        let first: Vec<String> = ["1", "2", "3", "4", "5", "6"].map(of).into();
        let again: Vec<String> = ["1", "2", "3", "4", "5", "6"].map(of).into();
        assert_eq!(first, again, "{kind}");
        let different: std::collections::BTreeSet<&String> = first.iter().collect();
        assert!(different.len() > 1, "{kind}: {first:?}");
    }
    // Whoever has no cookie gets one, and stays where it led.
    put(
        &mesh,
        "loadBalancer: {type: maglev, hashOn: {cookie: {name: stick, ttl: 1h}}}",
    );
    let jar = mesh.scratch().dir("jar").join("cookies");
    let jar = jar.display();
    let answered = curl(
        &mesh,
        &format!("--cookie-jar {jar} --cookie {jar} {url}[1-12]"),
    );
    let names: std::collections::BTreeSet<&str> = answered.lines().collect();
    assert_eq!(names.len(), 1, "{answered}");
}

#[test]
fn what_is_left_of_a_deadline_travels_with_the_request() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], script("echo.py").args(["8080", "web"]));
    let slow = mesh.serve("slow", &["8080"], backend("8080 slow"));
    let ask = |url: &str, more: &str| shown(&mesh, &format!("{more} {url}"));
    let seen = |answer: &str| -> u64 {
        let (_, rest) = answer.split_once("\"weft-deadline\": \"").expect(answer);
        let (millis, _) = rest.split_once('"').expect(answer);
        millis.parse().expect("milliseconds")
    };
    // What the application says is passed on, less the time that has gone.
    let web = "http://web.shop.mesh:8080/";
    let answer = ask(web, "--header weft-deadline:5000");
    assert!((1..5000).contains(&seen(&answer)), "{answer}");
    // The policy's own timeout is a deadline too, and the shorter one counts.
    put(&mesh, "timeouts: {request: 2s}");
    assert!((1..2000).contains(&seen(&ask(web, "--header weft-deadline:5000"))));
    assert!((1..700).contains(&seen(&ask(web, "--header weft-deadline:700"))));
    // Nobody waits any more: the application is not asked.
    let late = ask(web, "--header weft-deadline:0");
    assert!(late.ends_with("504:deadline-exceeded"), "{late}");
    let late = ask(
        "http://slow.shop.mesh:8080/slow/5",
        "--header weft-deadline:300",
    );
    assert!(late.ends_with("504:deadline-exceeded"), "{late}");
    drop(slow);
}
