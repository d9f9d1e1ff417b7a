//! Seeing and changing safely: explain, plan, breakers, what is in force, and what is refused
//! because it leads nowhere.

use std::time::Duration;

use serde_json::Value;

use crate::support::{Bed, Machine, Mesh, Program, Workload, need, script, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

fn json(mesh: &Mesh<'_>, command: &str) -> Value {
    let shown = mesh.command(command).success().stdout;
    serde_json::from_str(&shown).unwrap_or_else(|error| panic!("{error}: {shown}"))
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

fn route(rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: web, namespace: shop}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, name: web}}], rules: {rules}}}\n"
    )
}

const TARGET: &str = "targetRef: {kind: Service, name: web}";

#[test]
fn what_leads_nowhere_is_refused_unless_it_is_wanted() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], script("backend.py").args(["8080", "web"]));
    let cases = [
        (
            policy("p", "targetRef: {kind: Service, name: gone}"),
            ["spec.targetRef", "shop/gone"],
        ),
        (
            policy("p", "targetRef: {kind: Service, name: web, port: 99}"),
            ["spec.targetRef", "99"],
        ),
        (
            route("[{backendRefs: [{name: gone, port: 80}]}]"),
            ["spec.rules[0].backendRefs[0]", "shop/gone"],
        ),
        (
            route("[{backendRefs: [{name: web, port: 99}]}]"),
            ["spec.rules[0].backendRefs[0]", "8080"],
        ),
        (
            route("[{backendRefs: [{name: web, namespace: lab, port: 8080}]}]"),
            ["spec.rules[0].backendRefs[0]", "ReferenceGrant"],
        ),
    ];
    for (document, parts) in cases {
        let file = mesh.scratch().file("dangling.yaml", &document);
        for command in ["apply", "plan", "apply --dry-run"] {
            let refused = mesh.command(&format!("{command} -f {}", file.display()));
            assert_eq!(refused.code(), 2, "{refused}");
            for part in parts.iter().chain(&["dangling.yaml", "--allow-missing"]) {
                assert!(refused.stderr.contains(part), "{part}: {refused}");
            }
        }
        let apply = format!("apply --allow-missing -f {}", file.display());
        mesh.command(&apply).success();
    }
    // What is together in one input may refer to each other.
    let both = format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\nmetadata: {{name: new, namespace: shop}}\n\
         spec: {{ports: [{{port: 80, protocol: http}}]}}\n{}",
        route("[{backendRefs: [{name: new, port: 80}]}]")
    );
    mesh.apply(&both).success();
}

/// A route and two policies for `web`, in a file.
fn documents(mesh: &Mesh<'_>) -> String {
    let rules = "[{name: first, matches: [{path: {value: /a}}], backendRefs: [{name: web, port: 8080}], timeouts: {request: 3s}}]";
    let documents = [
        route(rules),
        policy("whole", &format!("{TARGET}, retry: {{attempts: 1}}")),
        policy(
            "port",
            "targetRef: {kind: Service, name: web, port: 8080}, retry: {attempts: 4}",
        ),
    ];
    let file = mesh.scratch().file("all.yaml", documents.concat());
    file.display().to_string()
}

#[test]
fn changes_are_foreseen() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], script("backend.py").args(["8080", "web"]));
    let file = documents(&mesh);

    let planned = json(&mesh, &format!("plan -f {file} -o json"));
    let changes: Vec<&str> = planned["effects"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|effect| effect["change"].as_str())
        .collect();
    for part in [
        "route shop/web comes",
        "TrafficPolicy port in the place of the defaults",
        "retry.attempts becomes 4, was 2",
    ] {
        assert!(
            changes.iter().any(|change| change.contains(part)),
            "{part}: {changes:?}"
        );
    }
    // Nothing has happened yet.
    assert_eq!(
        json(&mesh, "get all -o json")["items"],
        serde_json::json!([])
    );
    mesh.command(&format!("apply --wait 10s -f {file}"))
        .success();
    let planned = json(&mesh, &format!("plan -f {file} -o json"));
    assert_eq!(planned["effects"], serde_json::json!([]));

    let shown = json(&mesh, "get --effective shop/web -o json");
    let one = &shown["items"][0];
    assert_eq!(
        (&one["policy"], &one["beaten"][0]),
        (&"port".into(), &"whole".into())
    );
    assert_eq!(one["spec"]["retry"]["attempts"], 4);
    for named in ["web", "web -n shop", "shop/web -n other"] {
        let same = json(&mesh, &format!("get --effective {named} -o json"));
        assert_eq!(same, shown, "{named}");
    }
    let other = mesh.command("get --effective web -n other");
    assert!(!other.status.success(), "{other}");
    assert!(other.stderr.contains("namespace \"other\""), "{other}");
}

#[test]
fn decisions_are_explained() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], script("backend.py").args(["8080", "web"]));
    let apply = format!("apply --wait 10s -f {}", documents(&mesh));
    mesh.command(&apply).success();
    let steps = |url: &str| -> Vec<(String, String)> {
        let shown = json(&mesh, &format!("explain --from shop/me GET {url} -o json"));
        let steps = shown["items"].as_array().expect("a list").clone();
        let text = |step: &Value, field: &str| step[field].as_str().unwrap_or_default().to_owned();
        steps
            .iter()
            .map(|step| {
                (
                    text(step, "step"),
                    text(step, "result") + "|" + &text(step, "by"),
                )
            })
            .collect()
    };
    let explained = steps("http://web.shop.mesh:8080/a/b");
    for (step, part) in [
        ("service", "Service shop/web"),
        ("route", "rule 0 (first)"),
        ("backend", "100 % go to shop/web:8080"),
        ("policy", "TrafficPolicy shop/port"),
        ("endpoint", "breaker closed"),
        ("retry", "up to 4 more attempts on 502, 503, 504, a reset"),
        ("timeout", "request: 3 s, the route's"),
    ] {
        let there = explained
            .iter()
            .any(|(s, text)| s == step && text.contains(part));
        assert!(there, "{step} {part}: {explained:#?}");
    }
    // What is explained is what happens.
    let explained = steps("http://web.shop.mesh:8080/b");
    assert!(
        explained
            .iter()
            .any(|(_, text)| text.contains("404 and route-not-found"))
    );
    let line = "curl --silent --output /dev/null --write-out %{http_code}:%header{weft-reason} \
                http://web.shop.mesh:8080/b";
    let called = mesh.call("me", &["web"], Program::line(line), LIMIT);
    assert_eq!(called.success().stdout, "404:route-not-found");
}

#[test]
fn breakers_are_seen_with_their_reasons() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let bad = script("backend.py").args(["8080", "bad", "500"]);
    let _bad = mesh.serve("web", &["8080"], bad);
    let spec = format!("{TARGET}, circuitBreaker: {{consecutiveFailures: 3, openTime: 60s}}");
    let file = mesh.scratch().file("policy.yaml", policy("p", &spec));
    let apply = format!("apply --wait 10s -f {}", file.display());
    mesh.command(&apply).success();
    // A caller that stays, so that there is a sidecar to ask.
    let calling = "curl --silent --output /dev/null --retry 1000 --retry-delay 1 --retry-all-errors \
                   --fail http://web.shop.mesh:8080/";
    let caller = Workload::new("me").wait_for("web");
    let _calling = mesh.run(&caller, Program::line(calling));
    let breaker = wait_for("an open breaker to be told of", LIMIT, || {
        let shown = json(&mesh, "breakers shop/web --open -o json");
        let one = shown["items"][0].clone();
        (one["state"] == "open").then_some(one)
    });
    assert_eq!(breaker["service"], "shop/web");
    assert_eq!(breaker["workload"], "shop/web");
    let cause = breaker["cause"].as_str().expect("a cause");
    assert!(cause.contains("failures in a row"), "{breaker}");
    assert!(cause.contains("last: 500, 500, 500"), "{breaker}");
    assert!(
        breaker["nextProbe"].as_i64() > breaker["since"].as_i64(),
        "{breaker}"
    );
    let table = mesh.command("breakers").success().stdout;
    assert!(
        table.contains("in a row") && table.contains("NEXT PROBE"),
        "{table}"
    );
    let explained = mesh.command("explain --from shop/me GET http://web.shop.mesh:8080/");
    let explained = explained.success().stdout;
    assert!(
        explained.contains("breaker open (") && explained.contains("in a row"),
        "{explained}"
    );
}

#[test]
fn rules_have_breakers_of_their_own() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let backend = script("backend.py").args(["8080", "web"]);
    let _web = mesh.serve("web", &["8080"], backend);
    let spec = format!(
        "{TARGET}, timeouts: {{perTry: 100ms}}, retry: {{attempts: 0}}, circuitBreaker: \
         {{enabled: false, route: {{consecutiveFailures: 3, openTime: 60s}}}}"
    );
    let rules = "[{name: slow, matches: [{path: {value: /slow}}], backendRefs: [{name: web, port: 8080}]}, \
                  {backendRefs: [{name: web, port: 8080}]}]";
    let documents = policy("p", &spec) + &route(rules);
    let file = mesh.scratch().file("both.yaml", documents);
    let apply = format!("apply --wait 10s -f {}", file.display());
    mesh.command(&apply).success();
    // It stays afterwards, so that there is a sidecar to ask.
    let url = "http://web.shop.mesh:8080";
    let program = format!(
        "curl --silent --output /dev/null --write-out '%{{http_code}}:%header{{weft-reason}} ' \
         '{url}/slow/[1-5]' '{url}/[1-3]'; exec sleep 1000"
    );
    let caller = Workload::new("me").wait_for("web");
    let mut calling = mesh.run(&caller, Program::shell(program));
    let slow = ["504:per-try-timeout "; 3].concat() + &"503:circuit-open ".repeat(2);
    let expected = slow + &"web\n200: ".repeat(3);
    calling.wait_until("its answers", LIMIT, |calling| calling.stdout() == expected);
    let breaker = wait_for("an open breaker to be told of", LIMIT, || {
        let shown = json(&mesh, "breakers shop/web --open -o json");
        let one = shown["items"][0].clone();
        (one["state"] == "open").then_some(one)
    });
    assert_eq!(breaker["route"], "shop/web/slow", "{breaker}");
    assert_eq!(breaker["workload"], "", "{breaker}");
    let table = mesh.command("breakers").success().stdout;
    assert!(table.contains("rule shop/web/slow"), "{table}");
}
