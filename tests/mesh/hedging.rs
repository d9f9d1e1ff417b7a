//! Requests that are made a second time while the first is slow: what callers wait, what the
//! endpoints have to do for it, and what is never made twice.

use std::time::Duration;

use serde_json::Value;

use crate::support::{Machine, Mesh, Program, Running, Workload, need, script, wait_for};

const LIMIT: Duration = Duration::from_secs(60);
const URL: &str = "http://web.shop.mesh:8080";

/// Puts a policy for `web` in force; round robin, so that every endpoint gets its share.
pub(crate) fn put(mesh: &Mesh<'_>, spec: &str) {
    let text = format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {{name: web, namespace: shop}}\n\
         spec: {{targetRef: {{kind: Service, name: web}}, loadBalancer: {{type: roundRobin}}, {spec}}}\n"
    );
    let file = mesh.scratch().file("policy.yaml", text);
    let apply = format!("apply --wait 10s -f {}", file.display());
    mesh.command(&apply).success();
}

/// An instance of `web`, ready; it is also a service of its own.
pub(crate) fn instance(mesh: &Mesh<'_>, name: &str, program: Program) -> Running {
    let workload = Workload::new(name)
        .port("8080")
        .flag("--service", "web")
        .flag("--service", name);
    let running = mesh.run(&workload, program);
    wait_for(name, LIMIT, || {
        let shown = mesh.command("get services -o json").success().stdout;
        shown.contains(&format!("shop/{name}")).then_some(())
    });
    running
}

/// `paced.py` on port 8080.
pub(crate) fn paced(arguments: &str) -> Program {
    script("paced.py").arg("8080").args(arguments.split(' '))
}

/// What a caller is answered: seconds and `STATUS:REASON` of each request.
struct Answers {
    seconds: Vec<f64>,
    answers: Vec<String>,
    /// What the caller's access log says, a line for each.
    log: Vec<Value>,
}

impl Answers {
    fn all_well(&self) {
        let well = self.answers.iter().all(|answer| answer == "200:");
        assert!(well, "{:?}", self.answers);
    }

    /// The time within which so many percent of the requests were answered.
    fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[(sorted.len() * percent).div_ceil(100) - 1]
    }

    /// How many attempts were hedges, as the caller's access log has it.
    fn hedges(&self) -> u64 {
        let hedges = self.log.iter().filter_map(|line| line["hedges"].as_u64());
        hedges.sum()
    }
}

/// One caller's requests in a row, with what `more` tells curl.
fn ask(mesh: &Mesh<'_>, requests: usize, more: &str) -> Answers {
    let shown = "--output /dev/null --write-out %{time_total}=%{http_code}:%header{weft-reason}|";
    let line = format!("curl --silent --max-time 30 {shown} {more} {URL}/?[1-{requests}]");
    let log = mesh.scratch().dir("access").join("log.json");
    drop(std::fs::remove_file(&log));
    let me = Workload::new("me")
        .wait_for("web")
        .flag("--access-log", &log.display().to_string());
    let finished = mesh.run_to_end(&me, Program::line(&line), LIMIT).success();
    let parts = finished.stdout.split('|').filter(|part| !part.is_empty());
    let (seconds, answers) = parts
        .map(|part| {
            let (seconds, answer) = part.split_once('=').expect("both");
            (seconds.parse::<f64>().expect("seconds"), answer.to_owned())
        })
        .unzip();
    let log = std::fs::read_to_string(&log).expect("an access log");
    let log = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    Answers {
        seconds,
        answers,
        log: log.collect(),
    }
}

/// How many requests of a method came to an instance.
fn came(mesh: &Mesh<'_>, instance: &str, method: &str) -> u64 {
    let me = Workload::new("counting").wait_for(instance);
    let line = format!("curl --silent http://{instance}.shop.mesh:8080/counts");
    let counts = mesh.run_to_end(&me, Program::line(&line), LIMIT).success();
    let counts: Value = serde_json::from_str(&counts.stdout).expect("JSON");
    counts[method].as_u64().unwrap_or_default()
}

/// How many came to both since the last time, by method.
struct Counting<'a> {
    mesh: &'a Mesh<'a>,
    seen: u64,
    method: &'static str,
}

impl Counting<'_> {
    fn since(&mut self) -> u64 {
        let now = came(self.mesh, "slow", self.method) + came(self.mesh, "fast", self.method);
        now - std::mem::replace(&mut self.seen, now)
    }
}

#[test]
fn a_slow_endpoint_no_longer_shows_and_costs_no_more_than_the_budget() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _slow = instance(&mesh, "slow", paced("slow 0.4"));
    let _fast = instance(&mesh, "fast", paced("fast 0"));
    let mut gets = Counting {
        mesh: &mesh,
        seen: 0,
        method: "GET",
    };

    put(&mesh, "limits: {connections: 100}");
    let without = ask(&mesh, 10, "");
    without.all_well();
    assert!(without.percentile(99) >= 0.4, "{:?}", without.seconds);
    assert_eq!((without.hedges(), gets.since()), (0, 10));

    // One of two is slow, and the breaker that counts single failures does not hear of it.
    let hedged = "hedge: {delay: 60ms}, circuitBreaker: {consecutiveFailures: 1, openTime: 60s}";
    put(&mesh, &format!("{hedged}, retry: {{budget: {{ratio: 1}}}}"));
    let before = came(&mesh, "slow", "GET");
    let with = ask(&mesh, 60, "");
    with.all_well();
    assert!(with.percentile(99) < 0.3, "{:?}", with.seconds);
    let extra = gets.since() - 60;
    assert!((30..=45).contains(&extra), "{extra}");
    assert_eq!(with.hedges(), extra);
    // It was given up thirty times, and still gets its share.
    let slow = came(&mesh, "slow", "GET") - before;
    assert!((30..=45).contains(&slow), "{slow}");
    let breakers = mesh.command("breakers -o json").success().stdout;
    assert!(!breakers.contains("\"open\""), "{breakers}");

    // A tenth of thirty requests may be made twice.
    let budget = "retry: {budget: {ratio: 0.1, minimumPerSecond: 0}}";
    put(&mesh, &format!("{hedged}, {budget}"));
    let within = ask(&mesh, 30, "");
    within.all_well();
    let extra = gets.since() - 30;
    assert!((1..=3).contains(&extra), "{extra}");

    let nothing = "retry: {budget: {ratio: 0, minimumPerSecond: 0}}";
    put(&mesh, &format!("{hedged}, {nothing}"));
    let spent = ask(&mesh, 6, "");
    spent.all_well();
    assert!(spent.percentile(99) >= 0.4, "{:?}", spent.seconds);
    assert_eq!((spent.hedges(), gets.since()), (0, 6));
}

#[test]
fn what_may_do_harm_is_never_hedged() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _slow = instance(&mesh, "slow", paced("slow 0.4"));
    let _fast = instance(&mesh, "fast", paced("fast 0"));
    let budget = "retry: {budget: {ratio: 1}}";
    put(&mesh, &format!("hedge: {{delay: 60ms}}, {budget}"));
    // A PUT is idempotent, but one that is late would undo what came after it.
    for (method, more) in [("POST", "--data x"), ("PUT", "--request PUT --data x")] {
        let mut counting = Counting {
            mesh: &mesh,
            seen: 0,
            method,
        };
        let answered = ask(&mesh, 8, more);
        answered.all_well();
        assert!(answered.percentile(99) >= 0.4, "{:?}", answered.seconds);
        assert_eq!((answered.hedges(), counting.since()), (0, 8), "{method}");
    }
    // By choice, with the body that was kept.
    put(
        &mesh,
        &format!("hedge: {{delay: 60ms, methods: [PUT]}}, {budget}"),
    );
    let body = mesh.scratch().file("body", "x".repeat(20_000));
    let put_body = format!("--request PUT --data-binary @{}", body.display());
    let answered = ask(&mesh, 8, &put_body);
    answered.all_well();
    assert!(answered.percentile(99) < 0.3, "{:?}", answered.seconds);
    assert!(answered.hedges() >= 4, "{}", answered.hedges());
    let whole = format!("curl --silent {put_body} {URL}/?[1-4]");
    let me = Workload::new("me").wait_for("web");
    let whole = mesh.run_to_end(&me, Program::line(&whole), LIMIT).success();
    assert_eq!(whole.stdout, "fast 20000\n".repeat(4));
    // Longer than what is kept: sent once.
    put(
        &mesh,
        "hedge: {delay: 60ms, methods: [PUT]}, \
         retry: {maxBodyBytes: 1000, budget: {ratio: 1}}",
    );
    let answered = ask(&mesh, 4, &put_body);
    answered.all_well();
    assert_eq!(answered.hedges(), 0);
    // As many retries at the same time as may be: none beside the one that runs.
    put(
        &mesh,
        &format!(
            "hedge: {{delay: 60ms, maxAttempts: 3}}, limits: {{concurrentRetries: 1}}, {budget}"
        ),
    );
    let hang = format!("--request GET {URL}/hang --max-time 2");
    let line = format!("curl --silent {hang} ; true");
    let mut gets = Counting {
        mesh: &mesh,
        seen: 0,
        method: "GET",
    };
    gets.since();
    mesh.run_to_end(&me, Program::shell(line), LIMIT).success();
    assert_eq!(gets.since(), 2);
}

/// The usual time is learned from what is seen; until then nothing is hedged.
#[test]
fn the_delay_follows_the_percentile() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    // One of so many requests is slow.
    let _one = instance(&mesh, "slow", paced("one 0.6 20 200 0.05"));
    let _other = instance(&mesh, "fast", paced("other 0.6 27 200 0.05"));
    put(
        &mesh,
        "hedge: {percentile: 80, minDelay: 10ms}, retry: {budget: {ratio: 1}}",
    );
    let answered = ask(&mesh, 130, "");
    answered.all_well();
    let slow = |seconds: &[f64]| seconds.iter().filter(|time| **time >= 0.6).count();
    let (learning, learned) = answered.seconds.split_at(50);
    assert!(slow(learning) >= 1, "{learning:?}");
    // A hedge may meet a slow request of the other.
    assert!(slow(learned) <= 1, "{learned:?}");
    let mut early = answered.log[..50].iter();
    assert!(early.all(|line| line["hedges"].is_null()));
    // Eighty requests, of which three or four are slow; a fifth or so takes longer than usual, and
    // all take longer than the floor.
    let hedges = answered.hedges();
    assert!((2..=40).contains(&hedges), "{hedges}");
}

#[test]
fn a_failure_beside_another_attempt_is_not_the_answer_yet() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    // Both are slow, and one of them fails before the other answers.
    let _fails = instance(&mesh, "slow", paced("fails 0.25 1 503"));
    let _well = instance(&mesh, "fast", paced("well 0.5"));
    let off = "circuitBreaker: {enabled: false}, retry: {attempts: 0, budget: {ratio: 1}}";
    put(&mesh, off);
    let without = ask(&mesh, 4, "");
    let failed = without.answers.iter().filter(|answer| *answer == "503:");
    assert_eq!(failed.count(), 2, "{:?}", without.answers);
    put(&mesh, &format!("hedge: {{delay: 60ms}}, {off}"));
    let with = ask(&mesh, 8, "");
    with.all_well();
    assert_eq!(with.hedges(), 8);
    // The time of one attempt is each attempt's own, and the request's is that of all.
    put(
        &mesh,
        &format!("hedge: {{delay: 60ms}}, timeouts: {{perTry: 400ms}}, {off}"),
    );
    let short = ask(&mesh, 4, "");
    let timed_out = |answer: &&String| **answer == "504:per-try-timeout" || **answer == "503:";
    let timed_out = short.answers.iter().filter(timed_out).count();
    assert_eq!(timed_out, 4, "{:?}", short.answers);
    put(
        &mesh,
        &format!("hedge: {{delay: 60ms}}, timeouts: {{request: 400ms}}, {off}"),
    );
    let short = ask(&mesh, 4, "");
    let timed_out = |answer: &&String| **answer == "504:request-timeout";
    let timed_out = short.answers.iter().filter(timed_out).count();
    assert_eq!(timed_out, 4, "{:?}", short.answers);
    assert!(short.percentile(99) < 0.9, "{:?}", short.seconds);
}

/// Calls are hedged where the policy names them.
#[test]
fn grpc_calls_are_hedged_by_name() {
    need!("python:grpc");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let workload = Workload::new("web").port("8080:grpc");
    let _web = mesh.run(&workload, script("grpc_server.py").arg("8080"));
    mesh.wait_for_service("web");
    // The only endpoint: its hedges go to itself.
    let slow = |expected: u32| -> Value {
        let arguments = format!("web.shop.mesh:8080 4 0.4 {expected}");
        let program = script("grpc_slow.py").args(arguments.split(' '));
        let me = Workload::new("me").wait_for("web");
        let printed = mesh.run_to_end(&me, program, LIMIT).success().stdout;
        serde_json::from_str(&printed).expect("JSON")
    };
    let expected = |ended: u32| serde_json::json!({"answered": 4, "ended": ended});
    // Codes to repeat on do not say that two may run side by side.
    let budget = "retry: {grpcCodes: [14], budget: {ratio: 1}}";
    put(&mesh, &format!("hedge: {{delay: 60ms}}, {budget}"));
    assert_eq!(slow(4), expected(4));
    put(
        &mesh,
        &format!("hedge: {{delay: 60ms, grpcMethods: [weft.test.Echo/Sleep]}}, {budget}"),
    );
    assert_eq!(slow(12), expected(12));
}
