//! What carries nothing for too long: connections that are closed, streams that are reset, and what
//! is left alone.

use std::time::Duration;

use serde_json::Value;

use crate::hedging::{instance, paced, put};
use crate::support::{Bed, Machine, Mesh, Program, Workload, need, script};

const LIMIT: Duration = Duration::from_secs(60);
const URL: &str = "http://web.shop.mesh:8080";

/// What curl says of one exchange: `EXIT:STATUS:REASON:BYTES:SECONDS`.
struct Seen {
    outcome: String,
    seconds: f64,
    /// The reasons in the caller's access log.
    reasons: Vec<Value>,
}

/// Runs curl as the end of a shell's line.
fn curl(mesh: &Mesh<'_>, before: &str, more: &str) -> Seen {
    let shown = "%{exitcode}:%{http_code}:%header{weft-reason}:%{size_download}:%{time_total}";
    let line = format!(
        "{before} curl --silent --max-time 5 --output /dev/null --write-out '{shown}' {more}; true"
    );
    let log = mesh.scratch().dir("access").join("log.json");
    drop(std::fs::remove_file(&log));
    let me = Workload::new("me")
        .wait_for("web")
        .flag("--access-log", &log.display().to_string());
    let printed = mesh.run_to_end(&me, Program::shell(line), LIMIT).success();
    let (outcome, seconds) = printed.stdout.rsplit_once(':').expect("what curl shows");
    let log = std::fs::read_to_string(&log).expect("an access log");
    let lines = log.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        line["reason"].clone()
    });
    Seen {
        outcome: outcome.to_owned(),
        seconds: seconds.parse().expect("seconds"),
        reasons: lines.collect(),
    }
}

#[test]
fn streams_in_which_nothing_moves_are_reset() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = instance(&mesh, "web", paced("web 0"));
    // Without a time of its own a stream is silent for as long as it likes.
    let half = format!("{URL}/half");
    let open = curl(&mesh, "", &half);
    assert_eq!(open.outcome, "28:200::5", "cut by curl itself");

    put(&mesh, "timeouts: {streamIdle: 700ms}");
    let cut = curl(&mesh, "", &half);
    assert!(cut.outcome.ends_with(":200::5"), "{}", cut.outcome);
    assert!(!cut.outcome.starts_with("28:"), "{}", cut.outcome);
    assert!((0.6..3.0).contains(&cut.seconds), "{}", cut.seconds);
    assert_eq!(cut.reasons, ["stream-idle-timeout"]);

    // Nothing has begun: the answer says why.
    let hung = curl(&mesh, "", &format!("{URL}/hang"));
    assert!(
        hung.outcome.starts_with("0:504:stream-idle-timeout:"),
        "{}",
        hung.outcome
    );
    assert!((0.6..3.0).contains(&hung.seconds), "{}", hung.seconds);
    assert_eq!(hung.reasons, ["stream-idle-timeout"]);

    // Longer than that time, but never silent for so long, in one direction or the other.
    let trickled = curl(&mesh, "", &format!("{URL}/trickle/8/0.2"));
    assert_eq!(trickled.outcome, "0:200::8");
    assert!(trickled.seconds >= 1.6, "{}", trickled.seconds);
    let pieces = "(for n in 1 2 3 4 5 6 7 8; do sleep 0.2; printf piece; done) |";
    let upload = format!("--no-buffer --upload-file - {URL}/");
    let uploaded = curl(&mesh, pieces, &upload);
    assert_eq!(uploaded.outcome, "0:200::7", "web 40");

    // The caller goes silent in the middle of what it says.
    let stalled = curl(&mesh, "(printf piece; sleep 3) |", &upload);
    assert!(
        stalled.outcome.contains(":504:stream-idle-timeout:"),
        "{}",
        stalled.outcome
    );
    // The caller does not take what is there.
    let late = silence(&mesh, "reader", 5.0);
    let short = ["short", "reset"].contains(&late["ended"].as_str().unwrap_or_default());
    assert!(short && late["words"].as_u64() < Some(200), "{late}");
    // No endpoint was at fault.
    let breakers = mesh.command("breakers -o json").success().stdout;
    assert!(!breakers.contains("\"open\""), "{breakers}");
}

fn silence(mesh: &Mesh<'_>, kind: &str, pause: f32) -> Value {
    let arguments = format!("{kind} web.shop.mesh 8080 {pause}");
    let program = script("silence.py").args(arguments.split(' '));
    let me = Workload::new("me").wait_for("web");
    let printed = mesh.run_to_end(&me, program, LIMIT).success().stdout;
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

/// Neither before nor long after the time.
fn ended(seen: &Value, how: &[&str], at_least: f64) {
    assert_eq!(seen["words"], 6, "{seen}");
    assert!(
        how.contains(&seen["ended"].as_str().unwrap_or_default()),
        "{seen}"
    );
    let after = seen["after"].as_f64().expect("seconds");
    assert!((at_least..at_least + 3.0).contains(&after), "{seen}");
}

#[test]
fn opaque_connections_that_carry_nothing_are_closed() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve(
        "web",
        &["8080:tcp"],
        script("silence.py").args(["serve", "8080"]),
    );
    put(&mesh, "timeouts: {idle: 1s, streamIdle: 200ms}");
    ended(&silence(&mesh, "tcp", 0.4), &["reset"], 0.9);
}

#[test]
fn upgraded_streams_in_which_nothing_moves_are_cut() {
    need!("python:websockets");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let server = script("websocket_server.py").arg("8080");
    let _web = mesh.serve("web", &["8080"], server);
    put(&mesh, "timeouts: {streamIdle: 1s}");
    ended(&silence(&mesh, "websocket", 0.4), &["closed"], 0.9);
}

/// How many connections of other sidecars `web`'s sidecar has had.
fn connections(mesh: &Mesh<'_>) -> u64 {
    let logs = mesh.scratch().dir("prometheus");
    let fetch = |url: &str| {
        let curl = Program::line(&format!("curl --silent --fail {url}"));
        curl.run("curl", &logs, LIMIT).success().stdout
    };
    let status = mesh.command("status -o json").success().stdout;
    let status: Value = serde_json::from_str(&status).expect("JSON");
    let address = status["metricsAddress"].as_str().expect("an address");
    let targets: Value =
        serde_json::from_str(&fetch(&format!("http://{address}/targets"))).expect("JSON");
    let mut targets = targets.as_array().into_iter().flatten();
    let web = targets.find(|target| target["labels"]["workload"] == "web");
    let web = web.expect("a target");
    let host = web["targets"][0].as_str().expect("HOST:PORT");
    let path = web["labels"]["__metrics_path__"].as_str().expect("a path");
    let metrics = fetch(&format!("http://{host}{path}"));
    let name = "weft_connections_total{direction=\"inbound\",transport=\"mtls\"} ";
    let count = metrics.lines().find_map(|line| line.strip_prefix(name));
    count.map_or(0, |count| count.parse().expect("a number"))
}

#[test]
fn pooled_connections_that_carry_nothing_are_closed() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = instance(&mesh, "web", paced("web 0"));
    let made = || {
        let before = connections(&mesh);
        assert_eq!(silence(&mesh, "http", 2.8)["words"], 2);
        connections(&mesh) - before
    };
    put(&mesh, "retry: {attempts: 1}");
    assert_eq!(made(), 1);
    put(&mesh, "timeouts: {idle: 1s}");
    assert_eq!(made(), 2);
}

#[test]
fn deadlines_bound_everything_on_both_sides() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let port = crate::support::free_port();
    let web = Workload::new("web")
        .port("8080")
        .flag("--publish", &format!("{port}:8080"));
    let _web = mesh.run(&web, paced("web 0.5"));
    mesh.wait_for_service("web");
    let shown = "--max-time 10 --write-out '%{http_code}:%header{weft-reason}:%{time_total}'";
    let me = Workload::new("me").wait_for("web");
    let ask = |more: &str| {
        let line = format!("curl --silent {shown} {more}");
        let printed = mesh.run_to_end(&me, Program::shell(line), LIMIT).success();
        let (answer, seconds) = printed.stdout.rsplit_once(':').expect("both");
        (answer.to_owned(), seconds.parse::<f64>().expect("seconds"))
    };
    // Less at each hop, in both of its forms.
    let (answer, _) = ask(&format!("--header grpc-timeout:5S {URL}/fields"));
    let text = answer.split_once('\n').expect("a body").0;
    let fields: Value = serde_json::from_str(text).expect(text);
    let written = fields["grpc-timeout"].as_str().expect(text);
    let (number, unit) = written.split_at(written.len() - 1);
    assert_eq!(unit, "u", "{text}");
    let left: u64 = number.parse().expect(text);
    assert!((1_000_000..5_000_000).contains(&left), "{text}");
    let millis = fields["weft-deadline"].as_str().expect(text);
    assert!(millis.parse::<u64>().expect(text) <= left / 1000, "{text}");

    // Refused at once: by the caller's sidecar, also where it would become something else.
    let late = |more: &str, most: f64| {
        let (answer, seconds) = ask(more);
        assert!(
            answer.ends_with("504:deadline-exceeded"),
            "{more}: {answer}"
        );
        assert!(seconds < most, "{more}: {seconds}");
    };
    late(&format!("--header grpc-timeout:0n {URL}/"), 0.4);
    let upgrade = "--http1.1 --header connection:upgrade --header upgrade:websocket";
    late(&format!("{upgrade} --header weft-deadline:0 {URL}/"), 0.4);
    late(&format!("{upgrade} --header weft-deadline:100 {URL}/"), 0.4);
    // By the server's own sidecar, for whoever has none.
    let logs = mesh.scratch().dir("curl");
    for field in ["grpc-timeout:0n", "grpc-timeout:100m"] {
        let line = format!("curl --silent {shown} --header {field} http://127.0.0.1:{port}/");
        let printed = Program::shell(line).run("curl", &logs, LIMIT).success();
        assert!(
            printed.stdout.contains("504:deadline-exceeded"),
            "{printed}"
        );
    }

    // Impatient callers say nothing about the endpoint.
    put(
        &mesh,
        "circuitBreaker: {consecutiveFailures: 2, openTime: 60s}",
    );
    late(&format!("--header weft-deadline:100 {URL}/?[1-6]"), 0.4);
    let breakers = mesh.command("breakers -o json").success().stdout;
    assert!(!breakers.contains("\"open\""), "{breakers}");

    // A fault's delay is not waited for when nobody waits for the answer.
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {name: web, namespace: shop}\n\
         spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 8080}], \
         filters: [{type: ExtensionRef, extensionRef: {group: weft-mesh.io, kind: FaultInjection, name: slow}}]}]}\n\
         ---\napiVersion: weft-mesh.io/v1alpha1\nkind: FaultInjection\n\
         metadata: {name: slow, namespace: shop}\nspec: {delay: {time: 3s}}\n";
    let file = mesh.scratch().file("route.yaml", route);
    mesh.command(&format!("apply --wait 10s -f {}", file.display()))
        .success();
    late(&format!("--header weft-deadline:300 {URL}/"), 1.5);
}
