//! Bad policy of every sort: refused with file, field, what was found and what is allowed, by
//! `weft validate` and by `weft apply` alike; what was applied before stays in force, and what leads
//! nowhere harms nothing else.

#![expect(
    clippy::too_many_lines,
    reason = "tables, a line for each sort of bad policy"
)]

mod dangling;
mod documents;
mod http_routes;
mod other_routes;
mod others;
mod policies;
mod shapes;

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Bed, Load, Machine, Mesh, Workload, need, script, wait_for};

use dangling::dangling;
use documents::{Bad, GATEWAY, bad, config, policy, route, rule};
use http_routes::http_routes;
use other_routes::other_routes;
use others::the_rest;
use policies::policies;
use shapes::shapes;

const LIMIT: Duration = Duration::from_secs(60);

/// Refused by a command, in the four parts.
fn refused(mesh: &Mesh<'_>, command: &str, bad: &Bad) -> Option<String> {
    let file = mesh.scratch().file("bad.yaml", &bad.text);
    let finished = mesh.command(&format!("{command} -f {}", file.display()));
    let parts = bad.parts.iter().chain(&["bad.yaml"]);
    let mut missing: Vec<&str> = parts
        .copied()
        .filter(|part| !finished.stderr.contains(part))
        .collect();
    if finished.code() != 2 {
        missing.push("exit code 2");
    }
    if finished.stderr.contains("panicked") || finished.stderr.len() > 4000 {
        missing.push("a few plain words");
    }
    let what = bad.what;
    (!missing.is_empty()).then(|| format!("{command}: {what}: without {missing:?}: {finished}"))
}

/// Asks once, and gives the status, the field `x-route` that the backend saw, and the reason.
fn ask(mesh: &Mesh<'_>, urls: &[&str]) -> Vec<(u64, String, String)> {
    let requests: Vec<Value> = urls.iter().map(|url| json!({ "url": url })).collect();
    let file = mesh
        .scratch()
        .file("requests.json", json!(requests).to_string());
    let asking = Workload::new("asking").wait_for("web");
    let printed = mesh.run_to_end(&asking, script("ask.py").arg(file), LIMIT);
    let answers: Value = serde_json::from_str(&printed.success().stdout).expect("JSON");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let answers = answers.as_array().expect("a list").iter();
    answers
        .map(|answers| {
            let answer = &answers[0];
            let seen = text(&answer["body"]["headers"]["x-route"]);
            let reason = text(&answer["headers"]["weft-reason"]);
            (answer["status"].as_u64().expect("a status"), seen, reason)
        })
        .collect()
}

/// `web`, with a policy and a route of its own, and what callers get because of them.
fn in_force(mesh: &Mesh<'_>) {
    let documents = [
        "---\napiVersion: weft-mesh.io/v1alpha1\nkind: Service\nmetadata: {name: front, namespace: shop}\nspec: {ports: [{port: 80, protocol: http}]}\n".to_owned(),
        format!("---\napiVersion: {GATEWAY}\nkind: HTTPRoute\nmetadata: {{name: front, namespace: shop}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: front}}]\n  rules: [{{filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-route, value: kept}}]}}}}], backendRefs: [{{name: web, port: 8080}}]}}]\n"),
        // Under the name that all the bad ones have too.
        policy("retry: {attempts: 3}").replace("name: web}", "name: front}"),
    ];
    let file = mesh.scratch().file("good.yaml", documents.concat());
    let apply = format!("apply --wait 10s -f {}", file.display());
    mesh.command(&apply).success();
}

fn revision(mesh: &Mesh<'_>) -> u64 {
    let status = mesh.command("status -o json").success().stdout;
    let status: Value = serde_json::from_str(&status).expect("JSON");
    status["revision"].as_u64().expect("a number")
}

/// A steady load over the route, that must not notice anything.
fn load(mesh: &Mesh<'_>) -> Load {
    let state = mesh.scratch().dir("load");
    let url = "http://front.shop.mesh/";
    let program = Load::program("http", url, &state, &["--connections", "2", "--rate", "20"]);
    let running = mesh.run(&Workload::new("load").wait_for("web"), program);
    Load::watch(running, state)
}

#[test]
fn bad_policy_is_refused_in_four_parts_and_changes_nothing() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], script("echo.py").args(["8080", "web"]));
    in_force(&mesh);
    let load = load(&mesh);
    let before = revision(&mesh);
    let tables = [
        shapes(),
        http_routes(),
        other_routes(),
        policies(),
        the_rest(),
    ];
    let mut wrong = Vec::new();
    for bad in tables.iter().flatten() {
        for command in ["validate", "apply"] {
            wrong.extend(refused(&mesh, command, bad));
        }
    }
    for bad in &dangling() {
        for command in ["apply", "plan"] {
            wrong.extend(refused(&mesh, command, bad));
        }
    }
    // A good document goes down with a bad one beside it.
    let beside = bad(
        "good and bad",
        config("{unknownDestinations: refuse}") + &policy("retry: {attempts: 99}"),
        ["spec.retry.attempts", "99", "0 to 10"],
    );
    wrong.extend(refused(&mesh, "apply", &beside));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(
        revision(&mesh),
        before,
        "something was kept of what was refused"
    );
    let effective = mesh.command("get --effective shop/front -o json").success();
    assert!(effective.stdout.contains("\"attempts\": 3"), "{effective}");
    let [front] = &ask(&mesh, &["http://front.shop.mesh/"])[..] else {
        panic!("one answer");
    };
    assert_eq!(*front, (200, "kept".to_owned(), String::new()));
    load.stop_without_failure();
}

/// With `--allow-missing` it is taken, its own requests fail with the reason, and everything else
/// goes on: other rules, other routes, other services.
#[test]
fn what_leads_nowhere_harms_nothing_else() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], script("echo.py").args(["8080", "web"]));
    in_force(&mesh);
    let load = load(&mesh);
    let to_gone = "{matches: [{path: {value: /gone}}], backendRefs: [{name: gone, port: 80}]}";
    let half = "{matches: [{path: {value: /copied}}], filters: [{type: RequestMirror, requestMirror: {backendRef: {name: gone, port: 80}}}], backendRefs: [{name: web, port: 8080}]}";
    let another = rule(&format!("{to_gone}, {half}"))
        .replace("kind: Service, name: web}", "kind: Service, name: front}");
    let connections = route(
        "TCPRoute",
        "rules: [{backendRefs: [{name: gone, port: 80}]}]",
    )
    .replace("name: bad", "name: bad-tcp")
    .replace("kind: Service, name: web}", "kind: Service, name: nobody}");
    let file = mesh.scratch().file("bad.yaml", another + &connections);
    let apply = format!("apply --allow-missing --wait 10s -f {}", file.display());
    mesh.command(&apply).success();
    let urls = [
        "http://front.shop.mesh/gone/x",
        "http://front.shop.mesh/copied",
        "http://front.shop.mesh/else",
        "http://web.shop.mesh:8080/",
    ];
    let gone = (500, String::new(), "backend-not-found".to_owned());
    let plain = (200, String::new(), String::new());
    let kept = (200, "kept".to_owned(), String::new());
    assert_eq!(
        ask(&mesh, &urls),
        [gone, plain.clone(), kept.clone(), plain.clone()]
    );
    let shown = mesh.command("get httproutes bad -n shop").success().stdout;
    assert!(shown.contains("BackendNotFound"), "{shown}");
    // It is there later: the route leads somewhere without being applied again.
    let late = "---\napiVersion: weft-mesh.io/v1alpha1\nkind: Service\nmetadata: {name: gone, namespace: shop}\nspec: {ports: [{port: 80, targetPort: 8080, protocol: http}]}\n";
    let file = mesh.scratch().file("late.yaml", late);
    mesh.command(&format!("apply -f {}", file.display()))
        .success();
    let workload = Workload::new("late").port("8080").flag("--service", "gone");
    let _late = mesh.run(&workload, script("echo.py").args(["8080", "late"]));
    wait_for("the backend that was missing", LIMIT, || {
        (ask(&mesh, &urls[..1]) == [plain.clone()]).then_some(())
    });
    load.stop_without_failure();
}
