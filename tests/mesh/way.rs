//! A request's way: whose fault it is when it ends early, and that nobody gets around its checks.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::hedging;
use crate::shedding::{application, at_once, metrics};
use crate::support::{Bed, Machine, Mesh, Program, Workload, need, script, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

/// Applies documents; returns when every sidecar that they concern has them.
fn put(mesh: &Mesh<'_>, documents: &str) {
    let file = mesh.scratch().file("way.yaml", documents);
    let apply = format!("apply --wait 10s -f {}", file.display());
    mesh.command(&apply).success();
}

fn traffic_policy(spec: &str) -> String {
    format!(
        "---\napiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {{name: web, namespace: shop}}\n\
         spec: {{targetRef: {{kind: Service, name: web}}, {spec}}}\n"
    )
}

/// `limit` requests for the whole test, of all callers together.
fn rate_limit(limit: u32) -> String {
    format!(
        "---\napiVersion: weft-mesh.io/v1alpha1\nkind: RateLimitPolicy\n\
         metadata: {{name: web, namespace: shop}}\n\
         spec: {{targetRef: {{kind: Service, name: web}}, \
         rules: [{{requests: {limit}, per: 24h}}]}}\n"
    )
}

fn reasons(log: &str) -> Vec<Value> {
    let lines = log.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        line["reason"].clone()
    });
    lines.collect()
}

/// Lines of a metric whose labels have all these parts, with a value other than 0.
fn counted<'a>(metrics: &'a str, name: &str, parts: &[&str]) -> Vec<&'a str> {
    let lines = metrics.lines().filter(|line| {
        let named = line.starts_with(name) && parts.iter().all(|part| line.contains(part));
        named && !line.ends_with(" 0")
    });
    lines.collect()
}

#[test]
fn an_upload_that_its_caller_breaks_off_is_nobody_elses_failure() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let server = script("uploads.py").args(["serve", "8080"]);
    let _web = mesh.serve("web", &["8080:http"], server);
    // A single failure would open them, for the endpoint and for the port.
    put(
        &mesh,
        &traffic_policy(
            "circuitBreaker: {consecutiveFailures: 1, openTime: 300s, \
             service: {consecutiveFailures: 1, openTime: 300s}}",
        ),
    );
    let log = mesh.scratch().dir("uploads").join("log.json");
    let me = Workload::new("me")
        .port("9000")
        .wait_for("web")
        .flag("--access-log", &log.display().to_string());
    let breaking = script("uploads.py").args(["break", "web.shop.mesh", "8080", "3"]);
    let mut breaking = mesh.run(&me, breaking);
    breaking.wait_until("the uploads are broken off", LIMIT, |running| {
        running.stdout().contains("afterwards")
    });
    assert!(
        breaking.stdout().contains("afterwards 200 9"),
        "{}",
        breaking.stdout()
    );
    let breakers = mesh.command("breakers -o json").success().stdout;
    assert!(!breakers.contains("\"open\""), "{breakers}");
    // Neither the endpoint's metrics nor the application's know of a failure.
    for workload in ["me", "web"] {
        let told = wait_for("metrics of the workload", LIMIT, || {
            metrics(&mesh, workload)
        });
        let failed = counted(&told, "weft_requests_total", &["5xx"]);
        assert!(failed.is_empty(), "{workload}: {failed:?}");
        assert!(!counted(&told, "weft_requests_total", &["2xx"]).is_empty());
    }
    breaking.kill();
    let log = std::fs::read_to_string(&log).expect("an access log");
    let reasons = reasons(&log);
    let broken = reasons.iter().filter(|reason| *reason == "client-gone");
    // Those that were reset have nobody to tell it to.
    assert!(broken.count() >= 6, "{reasons:?}");
    // One whose framing is broken is told so.
    let others = reasons.iter().filter(|reason| !reason.is_null());
    let mut others = others.filter_map(Value::as_str);
    assert!(
        others.all(|reason| ["client-gone", "bad-request"].contains(&reason)),
        "{reasons:?}"
    );
}

const TLS: &str = "--header Upgrade:TLS/1.2 --header Connection:Upgrade";
const CUSTOM: &str = "--header Upgrade:custom/1 --header Connection:Upgrade";

#[test]
fn an_upgrade_is_shed_limited_and_repeated_like_any_request() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080:http"], application("8080", "web"));
    let one = "adaptiveConcurrency: {server: {initial: 1, min: 1, max: 1}}, retry: {attempts: 0}";
    put(&mesh, &traffic_policy(one));
    for offer in ["", TLS, CUSTOM] {
        let answers = at_once(&mesh, 3, offer);
        let expected = ["200::", "503:load-shed:1", "503:load-shed:1"];
        assert_eq!(answers, expected, "{offer}");
    }

    put(
        &mesh,
        &(traffic_policy("retry: {attempts: 0}") + &rate_limit(3)),
    );
    let mut passed = BTreeMap::new();
    for offer in [TLS, CUSTOM, ""] {
        for answer in at_once(&mesh, 2, offer) {
            let (status, _) = answer.split_once(':').expect("STATUS:REASON");
            *passed.entry(status.to_owned()).or_insert(0) += 1;
        }
    }
    let expected = BTreeMap::from([("200".to_owned(), 3), ("429".to_owned(), 3)]);
    assert_eq!(passed, expected);
}

#[test]
fn an_upgrade_that_fails_is_asked_for_elsewhere() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let backend = |name: &str, status: &str| script("backend.py").args(["8080", name, status]);
    let _good = hedging::instance(&mesh, "good", backend("good", "200"));
    let _bad = hedging::instance(&mesh, "bad", backend("bad", "503"));
    hedging::put(
        &mesh,
        "circuitBreaker: {enabled: false}, retry: {attempts: 1}",
    );
    for offer in [TLS, CUSTOM] {
        let program = Program::line(&format!(
            "curl --silent --max-time 30 {offer} http://web.shop.mesh:8080/[1-6]"
        ));
        let answered = mesh.call("me", &["web"], program, LIMIT).success().stdout;
        assert_eq!(answered.lines().collect::<Vec<_>>(), ["good"; 6], "{offer}");
    }
}

/// What `mesh_peer.py` has seen.
#[derive(Debug, Deserialize)]
struct Storm {
    answers: BTreeMap<String, u32>,
    seconds: f64,
}

impl Storm {
    fn count(&self, answer: &str) -> u32 {
        self.answers.get(answer).copied().unwrap_or_default()
    }

    /// Checks that one sidecar may make in that time: twenty a second, and as many at once.
    fn checks(&self) -> u32 {
        20 + (self.seconds * 20.0).ceil() as u32
    }
}

#[test]
fn a_forged_health_check_gets_around_no_limit() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve(
        "web",
        &["8080:http"],
        script("backend.py").args(["8080", "web"]),
    );
    put(&mesh, &rate_limit(5));
    // A workload may read its sidecar's certificate where they share a disk.
    let state = mesh.scratch().dir("mallory");
    let mallory = Workload::new("mallory").flag("--state-dir", &state.display().to_string());
    let _mallory = mesh.run(&mallory, Program::line("sleep 600"));
    let identity = state.join("identity.json");
    wait_for("the workload's certificate", LIMIT, || {
        identity.exists().then_some(())
    });
    let shown = mesh
        .command("get services web -n shop -o json")
        .success()
        .stdout;
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    let address = address_in(&shown).unwrap_or_else(|| panic!("no endpoint: {shown}"));
    let storm = |method: &str, check: &str| -> Storm {
        let program = script("mesh_peer.py").arg(&identity).args([
            &address,
            "web.shop.mesh",
            "50",
            method,
            "/",
            check,
        ]);
        let printed = program.run("mesh-peer", &mesh.scratch().dir("peer"), LIMIT);
        let printed = printed.success().stdout;
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    };
    // What no check does is a request: five pass.
    let posted = storm("POST", "weft-check: request");
    assert_eq!(posted.count("200:"), 5, "{posted:?}");
    assert_eq!(posted.count("429:rate-limited"), 395, "{posted:?}");
    let asked = storm("GET", "weft-check: request");
    assert!(asked.count("200:") <= asked.checks(), "{asked:?}");
    assert_eq!(asked.count("200:") + asked.count("429:rate-limited"), 400);
    let connected = storm("GET", "weft-check: connection");
    assert!(
        connected.count("200:") <= connected.checks(),
        "{connected:?}"
    );
    assert_eq!(
        connected.count("200:") + connected.count("429:rate-limited"),
        400
    );
    assert!(asked.count("429:rate-limited") > 0 && connected.count("429:rate-limited") > 0);
    // All that was more than a sidecar's checks is counted as requests are.
    let told = wait_for("metrics of the server", LIMIT, || metrics(&mesh, "web"));
    let refused = counted(&told, "weft_requests_total", &["mallory", "4xx"]);
    let refused: f64 = refused
        .iter()
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    let expected = [&posted, &asked, &connected].map(|storm| storm.count("429:rate-limited"));
    assert_eq!(refused as u32, expected.iter().sum::<u32>(), "{told}");
}

/// The first `addresses` entry somewhere in a document.
pub(crate) fn address_in(value: &Value) -> Option<String> {
    match value {
        Value::Object(fields) => {
            let own = fields
                .get("addresses")
                .filter(|_| fields.contains_key("instance"));
            let own = own.and_then(|addresses| Some(addresses.get(0)?.as_str()?.to_owned()));
            own.or_else(|| fields.values().find_map(address_in))
        }
        Value::Array(values) => values.iter().find_map(address_in),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

#[test]
fn a_refused_streaming_call_has_its_status_at_once() {
    need!("python:grpc");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let server = script("grpc_server.py").arg("50051");
    let _web = mesh.serve("web", &["50051:grpc"], server);
    put(&mesh, &rate_limit(1));
    let client = script("refused_stream.py").args(["web.shop.mesh:50051", "5"]);
    let seen = mesh.call("me", &["web"], client, LIMIT).success().stdout;
    let seen: Value = serde_json::from_str(&seen).expect("JSON");
    assert_eq!(
        seen["codes"],
        serde_json::json!(["RESOURCE_EXHAUSTED"]),
        "{seen}"
    );
    // A second is how long a refused body was read before.
    assert!(
        seen["seconds"]
            .as_f64()
            .is_some_and(|seconds| seconds < 0.8),
        "{seen}"
    );
}
