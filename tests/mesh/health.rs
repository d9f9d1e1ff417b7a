//! Active health checks through real sidecars: what they find keeps requests away before any fails.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::external::{authority, mesh_in, outside, start, tls_server};
use crate::support::{Bed, Machine, Mesh, Program, Running, Workload, need, script, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

/// Servers whose health is said by files, and a caller that stays.
struct Ward<'a> {
    mesh: Mesh<'a>,
    state: PathBuf,
}

impl<'a> Ward<'a> {
    fn new(machine: &'a Machine) -> Self {
        Self::of(Mesh::start(machine))
    }

    fn of(mesh: Mesh<'a>) -> Self {
        let state = mesh.scratch().dir("state");
        Self { mesh, state }
    }

    /// An instance of `web`, once the control plane tells of it.
    fn serve(&self, kind: &str, port: &str, name: &str) -> Running {
        let number = port.split(':').next().expect("a port");
        let program = script("health_server.py")
            .args([kind, number, name])
            .arg(&self.state);
        let workload = Workload::new(name).port(port).flag("--service", "web");
        let running = self.mesh.run(&workload, program);
        wait_for(name, LIMIT, || {
            let shown = self.mesh.command("get services -o json").success().stdout;
            shown.contains(&format!("shop/{name}")).then_some(())
        });
        running
    }

    /// Applies a policy for `web`; returns when the sidecars have it.
    fn put(&self, spec: &str) {
        self.apply(&policy("Service", spec));
    }

    fn apply(&self, documents: &str) {
        let file = self.mesh.scratch().file("documents.yaml", documents);
        let apply = format!("apply --wait 10s -f {}", file.display());
        self.mesh.command(&apply).success();
    }

    fn set(&self, what: &str) {
        std::fs::write(self.state.join(what), "").expect("write a mark");
    }

    fn clear(&self, what: &str) {
        std::fs::remove_file(self.state.join(what)).expect("remove a mark");
    }

    /// What a server noted of each check.
    fn checks(&self, name: &str) -> Vec<String> {
        lines(&self.state.join(format!("{name}.checks")))
    }

    fn call(&self, every: &str) -> Caller {
        let workload = Workload::new("me").port("9000:tcp").wait_for("web");
        self.call_as(&workload, "http://web.shop.mesh:8080/", every)
    }

    fn call_as(&self, workload: &Workload, url: &str, every: &str) -> Caller {
        let answers = self.state.join("answers");
        let program = script("caller.py").arg(url).arg(&answers).arg(every);
        let running = self.mesh.run(workload, program);
        wait_for("the first answer", LIMIT, || {
            (!lines(&answers).is_empty()).then_some(())
        });
        Caller {
            answers,
            _running: running,
        }
    }

    /// Open breakers by workload, with why.
    fn open(&self) -> Vec<(String, String)> {
        let shown = self.mesh.command("breakers shop/web --open -o json");
        let shown: Value = serde_json::from_str(&shown.success().stdout).expect("JSON");
        let items = shown["items"].as_array().expect("a list");
        let text = |item: &Value, field: &str| item[field].as_str().unwrap_or_default().to_owned();
        let open = items
            .iter()
            .map(|item| (text(item, "workload"), text(item, "cause")));
        open.collect()
    }

    fn wait_for_open(&self, names: &[&str], why: &str) {
        let mut seen = Vec::new();
        let expected: Vec<String> = names.iter().map(|name| format!("shop/{name}")).collect();
        let found = || {
            seen = self.open();
            let found: Vec<_> = seen.iter().map(|(workload, _)| workload.clone()).collect();
            let told = seen.iter().all(|(_, cause)| cause.contains(why));
            (found == expected && told).then_some(())
        };
        wait_for(&format!("open breakers: {names:?}, {why}"), LIMIT, found);
    }

    fn explain(&self) -> String {
        let command = "explain --from shop/me GET http://web.shop.mesh:8080/";
        self.mesh.command(command).success().stdout
    }

    /// A sample of a workload's sidecar.
    fn metric(&self, workload: &str, sample: &str) -> Option<f64> {
        let status = self.mesh.command("status -o json").success().stdout;
        let status: Value = serde_json::from_str(&status).expect("JSON");
        let address = status["metricsAddress"].as_str().expect("an address");
        let fetch = |url: &str| {
            let curl = Program::line(&format!("curl --silent --max-time 10 {url}"));
            let fetched = curl.run("curl", &self.state, LIMIT);
            fetched.success().stdout
        };
        let targets = fetch(&format!("http://{address}/targets"));
        let targets: Value = serde_json::from_str(&targets).expect("JSON");
        let mut targets = targets.as_array().into_iter().flatten();
        let target = targets.find(|target| target["labels"]["workload"] == workload);
        let target = target.expect("a target");
        let host = target["targets"][0].as_str().expect("HOST:PORT");
        let path = target["labels"]["__metrics_path__"].as_str()?;
        let metrics = fetch(&format!("http://{host}{path}"));
        let line = metrics.lines().find(|line| line.starts_with(sample))?;
        line.rsplit(' ').next()?.parse().ok()
    }
}

/// A policy for `web`.
fn policy(kind: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {{name: web, namespace: shop}}\n\
         spec: {{targetRef: {{kind: {kind}, name: web}}, {spec}}}\n"
    )
}

/// A workload that asks all the time.
struct Caller {
    answers: PathBuf,
    _running: Running,
}

impl Caller {
    /// The answers to its next requests.
    fn next(&self, count: usize) -> Vec<String> {
        // One may be under way now.
        let from = lines(&self.answers).len() + 1;
        wait_for("more answers", LIMIT, || {
            let all = lines(&self.answers);
            (all.len() >= from + count).then(|| all[from..].to_vec())
        })
    }

    fn wait_until(&self, what: &str, is: impl Fn(&[String]) -> bool) {
        wait_for(what, LIMIT, || is(&self.next(20)).then_some(()));
    }
}

fn lines(file: &PathBuf) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    // What is not ended yet is no line.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().map(ToOwned::to_owned);
    lines.filter(|line| !line.is_empty()).collect()
}

fn has(answers: &[String], wanted: &str) -> bool {
    answers.iter().any(|answer| answer == wanted)
}

const HTTP: &str = "healthCheck: {http: {path: /healthz, headers: [{name: x-probe, value: p}]}, \
                    interval: 200ms, timeout: 5s, unhealthyThreshold: 2}";
const TURNS: &str = "loadBalancer: {type: roundRobin}";

#[test]
fn an_endpoint_that_says_it_is_ill_is_out_before_a_request_fails() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let ward = Ward::new(&machine);
    let _one = ward.serve("http", "8080:http", "one");
    let _two = ward.serve("http", "8080:http", "two");
    // Checks alone are enough.
    let checked = format!("{TURNS}, circuitBreaker: {{enabled: false}}, {HTTP}");
    ward.put(&checked);
    let caller = ward.call("0.02");
    let both = |answers: &[String]| has(answers, "200 one") && has(answers, "200 two");
    assert!(both(&caller.next(20)));

    ward.set("one.ill");
    ward.wait_for_open(&["one"], "2 health checks in a row failed: status 503");
    ward.set("one.broken");
    let answers = caller.next(60);
    assert!(
        answers.iter().all(|answer| answer == "200 two"),
        "{answers:?}"
    );
    let explained = ward.explain();
    for part in [
        "GET /healthz expects 200-299",
        "breaker open (2 health checks",
    ] {
        assert!(explained.contains(part), "{part}: {explained}");
    }

    // Too few are left for this policy: what was found stays, and is disregarded.
    ward.clear("one.broken");
    ward.put(&checked.replace("roundRobin", "roundRobin, panicThreshold: 0.6"));
    assert!(both(&caller.next(20)));
    let explained = ward.explain();
    assert!(explained.contains("1 of 2 are out"), "{explained}");
    assert_eq!(ward.open().len(), 1);
    ward.put(&checked);
    let answers = caller.next(20);
    assert!(
        answers.iter().all(|answer| answer == "200 two"),
        "{answers:?}"
    );

    // All are ill, and requests go somewhere all the same.
    ward.set("two.ill");
    ward.wait_for_open(&["one", "two"], "status 503");
    let answers = caller.next(20);
    assert!(
        answers.iter().all(|answer| answer.starts_with("200 ")),
        "{answers:?}"
    );

    ward.clear("one.ill");
    ward.wait_for_open(&["two"], "status 503");
    ward.clear("two.ill");
    caller.wait_until("both to be back", both);
    ward.wait_for_open(&[], "");

    // What was asked, and where it is counted.
    let asked = ward.checks("one").pop().expect("a check");
    let expected = "/healthz web.shop.mesh:8080 weft-health-check p weft-deadline";
    assert_eq!(asked, expected);
    let count = |workload, sample| ward.metric(workload, sample).unwrap_or_default();
    assert!(count("me", "weft_health_checks_total{result=\"failed\"}") >= 4.0);
    assert!(count("one", "weft_health_checks_received_total") >= 10.0);
}

#[test]
fn checks_end_with_their_policy_and_do_not_count_as_traffic() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let ward = Ward::new(&machine);
    let _one = ward.serve("http", "8080:http", "one");
    ward.put(&format!("{TURNS}, {HTTP}"));
    // An application cannot say that it checks.
    let line = "curl --silent --fail -H weft-check:connection http://web.shop.mesh:8080/";
    let called = ward
        .mesh
        .call("other", &["web"], Program::line(line), LIMIT);
    assert_eq!(called.success().stdout, "one\n");
    // Ill from the beginning, and never asked for anything else.
    ward.set("late.ill");
    ward.set("late.broken");
    let caller = ward.call("0.02");
    ward.put(&format!("{TURNS}, {HTTP}").replace("200ms", "200ms, initialState: unhealthy"));
    let _late = ward.serve("http", "8080:http", "late");
    ward.wait_for_open(&["late"], "no health check has passed yet");
    wait_for("checks", LIMIT, || {
        (ward.checks("late").len() > 5).then_some(())
    });
    let answers = lines(&caller.answers);
    assert!(
        answers.iter().all(|answer| answer == "200 one"),
        "{answers:?}"
    );
    assert_eq!(ward.metric("late", "weft_requests_total"), None);
    let received = ward.metric("late", "weft_health_checks_received_total");
    assert!(received.is_some_and(|received| received > 5.0));
    assert!(ward.metric("one", "weft_requests_total").is_some());
    ward.clear("late.broken");
    ward.clear("late.ill");
    caller.wait_until("the late one to take part", |answers| {
        has(answers, "200 late")
    });

    ward.set("late.ill");
    ward.wait_for_open(&["late"], "status 503");
    // Nobody would say that it is well again.
    ward.put(TURNS);
    caller.wait_until("it to be back", |answers| has(answers, "200 late"));
    let before = (ward.checks("one").len(), ward.checks("late").len());
    // As long as several checks would take.
    caller.next(75);
    let after = (ward.checks("one").len(), ward.checks("late").len());
    assert_eq!(after, before);
    assert_eq!(ward.open(), []);
}

#[test]
fn the_grpc_health_protocol_is_spoken() {
    need!("python3", "python:grpc_health");
    let machine = Machine::shared();
    let ward = Ward::new(&machine);
    let _one = ward.serve("grpc", "8080:grpc", "one");
    let check = |service: &str| {
        format!(
            "healthCheck: {{grpc: {{service: {service}}}, interval: 200ms, timeout: 5s, \
             unhealthyThreshold: 2}}"
        )
    };
    ward.put(&check("shop.Orders"));
    let _caller = ward.call("0.2");
    let asked = || {
        ward.checks("one")
            .last()
            .is_some_and(|last| last == "shop.Orders")
    };
    wait_for("a check", LIMIT, || asked().then_some(()));
    assert_eq!(ward.open(), []);
    ward.set("one.ill");
    ward.wait_for_open(&["one"], "2 health checks in a row failed: NOT_SERVING");
    ward.clear("one.ill");
    ward.wait_for_open(&[], "");
    // NOT_FOUND.
    ward.put(&check("shop.Gone"));
    ward.wait_for_open(&["one"], "gRPC status 5");
    // The server as a whole.
    ward.put(&check("''"));
    ward.wait_for_open(&[], "");
}

#[test]
fn a_connection_is_asked_for_at_the_application_itself() {
    need!("python3");
    let machine = Machine::shared();
    let ward = Ward::new(&machine);
    let _one = ward.serve("tcp", "8080:tcp", "one");
    ward.put("healthCheck: {tcp: {}, interval: 200ms, timeout: 5s, unhealthyThreshold: 2}");
    let _caller = ward.call("1");
    wait_for("checks", LIMIT, || {
        (ward.checks("one").len() > 5).then_some(())
    });
    assert_eq!(ward.open(), []);
    ward.set("one.ill");
    ward.wait_for_open(
        &["one"],
        "2 health checks in a row failed: application-unreachable",
    );
    ward.clear("one.ill");
    ward.wait_for_open(&[], "");
}

/// With TLS and HTTP/2 to a server that knows nothing of the mesh.
#[test]
fn endpoints_outside_the_mesh_are_asked_the_way_that_requests_go() {
    need!("root", "ip", "nginx", "python3");
    const ADDRESS: &str = "198.51.100.7";
    let machine = Machine::shared();
    let inside = outside(&[ADDRESS]);
    let ward = Ward::of(mesh_in(&machine, &inside));
    let own = authority();
    let scratch = ward.mesh.scratch().path();
    let nginx = tls_server(scratch, "api.example.test", &own);
    let _server = start(&inside, &ward.mesh, "tls", 443, nginx);
    let pem = json!(own.pem());
    let service = format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: ExternalService\n\
         metadata: {{name: web, namespace: shop}}\n\
         spec: {{hosts: [api.example.test], resolution: static, endpoints: [{{address: {ADDRESS}}}], \
         tls: {{mode: origination, caCertificates: {pem}}}, \
         ports: [{{port: 80, protocol: http, targetPort: 443}}]}}\n"
    );
    let checked = |check: &str| {
        let spec = format!(
            "circuitBreaker: {{enabled: false}}, \
             healthCheck: {{{check}, interval: 200ms, timeout: 5s, unhealthyThreshold: 2}}"
        );
        policy("ExternalService", &spec)
    };
    ward.apply(&(service + &checked("http: {path: /healthz}")));
    let caller = Workload::new("me").port("9000:tcp");
    let _caller = ward.call_as(&caller, "http://api.example.test/", "0.2");
    let ill = scratch.join("nginx-api.example.test/ill");
    std::fs::write(&ill, "").expect("write a mark");
    ward.wait_for_open(&["web"], "2 health checks in a row failed: status 503");
    // Who is only asked for a connection has one.
    ward.apply(&checked("tcp: {}"));
    ward.wait_for_open(&[], "");
    ward.apply(&checked("http: {path: /healthz}"));
    ward.wait_for_open(&["web"], "status 503");
    std::fs::remove_file(&ill).expect("remove a mark");
    ward.wait_for_open(&[], "");
}
