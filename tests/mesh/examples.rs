//! Every example of `deploy/examples/` is applied as it stands, and what it says happens.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::external;
use crate::support::{Machine, Mesh, Program, Running, Workload, need, script, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

fn example(name: &str) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples");
    directory.join(name).display().to_string()
}

/// A Service without workloads of its own.
fn service(name: &str, ports: &str) -> String {
    format!(
        "---\napiVersion: weft-mesh.io/v1alpha1\nkind: Service\n\
         metadata: {{name: {name}, namespace: shop}}\nspec: {{ports: {ports}}}\n"
    )
}

/// An instance of services in a namespace.
fn serve(mesh: &Mesh<'_>, namespace: &str, name: &str, port: &str, program: Program) -> Running {
    let running = mesh.run(&Workload::of(namespace, name).port(port), program);
    wait_for(name, LIMIT, || {
        let shown = mesh.command("get workloads -o json").success().stdout;
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        let found = shown["items"]
            .as_array()?
            .iter()
            .find(|workload| workload["name"] == format!("{namespace}/{name}"))?;
        found["ports"][0]["ready"].as_bool()?.then_some(())
    });
    running
}

fn apply(mesh: &Mesh<'_>, file: &str) {
    mesh.command(&format!("apply --wait 10s -f {file}"))
        .success();
}

/// Asks for what `ask.py` reads; an answer for each.
fn ask(mesh: &Mesh<'_>, requests: &Value) -> Vec<Value> {
    let file = mesh.scratch().file("requests.json", requests.to_string());
    let asking = Workload::new("asking").wait_for("orders-v1");
    let asked = mesh.run_to_end(&asking, script("ask.py").arg(file), LIMIT);
    let printed = asked.success().stdout;
    let answers: Vec<Vec<Value>> =
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"));
    answers.into_iter().map(|mut all| all.remove(0)).collect()
}

#[test]
fn routes_policies_and_faults_do_what_they_say() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let echo = |name: &str| script("echo.py").args(["80", name]);
    let _one = serve(&mesh, "shop", "orders-v1", "80", echo("v1"));
    let _two = serve(&mesh, "shop", "orders-v2", "80", echo("v2"));
    let orders = service("orders", "[{port: 80, protocol: http}]");
    mesh.apply(&orders).success();
    for name in ["http-route.yaml", "traffic-policy.yaml", "mesh-config.yaml"] {
        apply(&mesh, &example(name));
    }
    let get = |path: &str, headers: Value| json!({ "url": format!("http://orders.shop.mesh{path}"), "headers": headers });
    let mut preflight = get(
        "/x",
        json!({"origin": "https://a.shop.example", "access-control-request-method": "PUT"}),
    );
    preflight["method"] = json!("OPTIONS");
    let answers = ask(
        &mesh,
        &json!([
            get("/v1/items", json!({"x-canary": "yes", "x-debug": "1"})),
            get("/v2/items/7?preview=1", json!({})),
            get("/old/a?b=c", json!({})),
            preflight,
        ]),
    );
    let canary = &answers[0];
    assert_eq!(canary["body"]["name"], "v2", "{canary}");
    assert_eq!(canary["body"]["headers"]["x-route"], "canary", "{canary}");
    assert!(canary["body"]["headers"]["x-debug"].is_null(), "{canary}");
    assert_eq!(canary["headers"]["x-served-by"], "canary", "{canary}");
    assert_eq!(answers[1]["body"]["name"], "v2", "{}", answers[1]);
    assert_eq!(answers[2]["status"], 301);
    let moved = "http://orders.shop.mesh/v1/a?b=c";
    assert_eq!(answers[2]["headers"]["location"], moved, "{}", answers[2]);
    let allowed = &answers[3]["headers"]["access-control-allow-methods"];
    assert_eq!(allowed, "GET, PUT", "{}", answers[3]);

    faults_and_weights(&mesh, get("/else", json!({"x-test": "flaky"})));
    let shown = mesh
        .command("get --effective shop/orders -o json")
        .success()
        .stdout;
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    let spec = &shown["items"][0]["spec"];
    assert_eq!(
        spec["circuitBreaker"]["slowCallDuration"], "500ms",
        "{shown}"
    );
    assert_eq!(spec["limits"]["pendingRequests"], 100, "{shown}");
}

/// What becomes of requests that the fault is for.
fn faults_and_weights(mesh: &Mesh<'_>, mut flaky: Value) {
    // A quarter of the calls with the header fails, after three retries within the route.
    flaky["times"] = json!(60);
    let file = mesh
        .scratch()
        .file("requests.json", json!([flaky]).to_string());
    let asking = Workload::new("asking").wait_for("orders-v1");
    let asked = mesh.run_to_end(&asking, script("ask.py").arg(file), LIMIT);
    let answers: Vec<Vec<Value>> = serde_json::from_str(&asked.success().stdout).expect("JSON");
    let failed = answers[0].iter().filter(|answer| answer["status"] == 503);
    let failed: Vec<&Value> = failed.collect();
    assert!(
        (3..40).contains(&failed.len()),
        "{} of 60 failed",
        failed.len()
    );
    assert_eq!(failed[0]["headers"]["weft-reason"], "fault-injected");
    // Where v2 answers, the path was rewritten for it alone.
    let served = answers[0].iter().filter(|answer| answer["status"] == 200);
    for answer in served {
        let path = &answer["body"]["path"];
        let expected = match answer["body"]["name"].as_str() {
            Some("v2") => "/v2/else",
            _ => "/else",
        };
        assert_eq!(path, expected, "{answer}");
    }
}

#[test]
fn services_are_declared() {
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    apply(&mesh, &example("service.yaml"));
    let shown = mesh.command("get services -o json").success().stdout;
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert!(
        !shown["items"].as_array().expect("a list").is_empty(),
        "{shown}"
    );
}

#[test]
fn calls_are_routed_to_another_namespace() {
    need!("python:grpc");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let server = || script("grpc_server.py").arg("50051");
    let _one = serve(&mesh, "shop", "greeter-v1", "50051:grpc", server());
    let _beta = serve(&mesh, "lab", "greeter-beta", "50051:grpc", server());
    mesh.apply(&service("greeter", "[{port: 50051, protocol: grpc}]"))
        .success();
    apply(&mesh, &example("grpc-route.yaml"));
    let explain = |more: &str| {
        let url = "http://greeter.shop.mesh:50051/demo.Greeter/Hello";
        let command = format!("explain --from shop/asking POST {url} {more} -o json");
        mesh.command(&command).success().stdout
    };
    assert!(explain("-H x-tenant:beta-7").contains("lab/greeter-beta:50051"));
    assert!(explain("").contains("shop/greeter-v1:50051"));
    for tenant in ["x-tenant:beta-7", "x-tenant:other"] {
        let program =
            script("grpc_ask.py").args(["greeter.shop.mesh:50051", "demo.Greeter/Hello", tenant]);
        let asking = Workload::new("asking").wait_for("greeter-v1");
        let printed = mesh.run_to_end(&asking, program, LIMIT).success().stdout;
        // The server's own word: it was asked, and does not have this method.
        assert!(printed.contains("Method not found"), "{printed}");
    }
}

#[test]
fn connections_are_shared_out() {
    need!("redis-server", "redis-cli");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let redis = || {
        Program::shell("exec redis-server --port 6379 --bind 0.0.0.0 --protected-mode no --save ''")
    };
    let _one = serve(&mesh, "shop", "cache-v1", "6379:tcp", redis());
    let _two = serve(&mesh, "shop", "cache-v2", "6379:tcp", redis());
    mesh.apply(&service("cache", "[{port: 6379, protocol: tcp}]"))
        .success();
    apply(&mesh, &example("tcp-route.yaml"));
    let lines = "redis-cli -h cache-v1.shop.mesh set who v1 && \
                 redis-cli -h cache-v2.shop.mesh set who v2 && \
                 for n in $(seq 60); do redis-cli -h cache.shop.mesh get who; done";
    let asking = Workload::new("asking")
        .wait_for("cache-v1")
        .wait_for("cache-v2");
    let printed = mesh
        .run_to_end(&asking, Program::shell(lines), LIMIT)
        .success()
        .stdout;
    let count = |name: &str| printed.lines().filter(|line| *line == name).count();
    assert_eq!(count("v1") + count("v2"), 60, "{printed}");
    assert!(count("v1") > 40, "{printed}");
}

#[test]
fn tls_connections_go_by_the_host_that_they_name() {
    need!("openssl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let server = |name: &str| {
        let dir = mesh.scratch().dir(name);
        let (key, cert) = (dir.join("key"), dir.join("crt"));
        let (key, cert) = (key.display(), cert.display());
        Program::shell(format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} \
             -keyout {key} -out {cert} && exec openssl s_server -accept 443 -key {key} -cert {cert} -quiet"
        ))
    };
    let _one = serve(&mesh, "shop", "web-v1", "443:tls", server("web-v1"));
    let _two = serve(&mesh, "shop", "web-v2", "443:tls", server("web-v2"));
    mesh.apply(&service("web", "[{port: 443, protocol: tls}]"))
        .success();
    apply(&mesh, &example("tls-route.yaml"));
    let lines = "ask() { openssl s_client -connect web.shop.mesh:443 $1 </dev/null 2>/dev/null | \
                   sed -n 's/^subject=.*CN *= *//p' | grep . || echo refused; }
                 for n in $(seq 40); do ask '-servername shop.example.com'; done
                 echo; ask '-servername deep.A.shop.example.com'; ask '-servername example.com'; ask -noservername";
    let asking = Workload::new("asking")
        .wait_for("web-v1")
        .wait_for("web-v2");
    let printed = mesh
        .run_to_end(&asking, Program::shell(lines), LIMIT)
        .success()
        .stdout;
    let (shared, others) = printed.split_once("\n\n").expect("two parts");
    let count = |name: &str| shared.lines().filter(|line| *line == name).count();
    assert_eq!(count("web-v1") + count("web-v2"), 40, "{printed}");
    assert!(count("web-v1") > 24, "{printed}");
    let others: Vec<&str> = others.lines().collect();
    assert!(others[0].starts_with("web-v"), "{printed}");
    assert_eq!(others[1..], ["refused", "refused"], "{printed}");
    let explain = "explain --from shop/asking GET https://web.shop.mesh:443/";
    let told = mesh.command(explain).success().stdout;
    assert!(told.contains("route-not-found"), "{told}");
}

#[test]
fn destinations_outside_are_reached_by_their_ordinary_names() {
    need!("root", "ip", "curl", "nginx", "python3", "unshare");
    let machine = Machine::shared();
    let inside = external::outside(&["198.51.100.7", "203.0.113.10", "203.0.113.11"]);
    let mesh = external::mesh_in(&machine, &inside);
    let logs = mesh.scratch().dir("outside");
    let authority = external::authority();
    let roots = mesh.scratch().file("roots.pem", authority.pem());
    let zone = mesh.scratch().path().join("zone");
    external::write_zone(&zone, "api.example.com 60 198.51.100.7\n");
    let (_names, resolv_conf) = external::name_server(&inside, &mesh, &zone);
    let start = |name: &str, port: u16, program: Program| {
        let mut server = program.under(inside.enter()).start(name, &logs);
        server.wait_until("it listens", LIMIT, |_| inside.listens(port));
        server
    };
    let api = external::tls_server(mesh.scratch().path(), "api.example.com", &authority);
    let backend = |at: &str, name: &str| script("backend.py").args([at, name]);
    let _api = start("api", 443, api);
    let _ledger = [
        start("ledger-1", 5432, backend("203.0.113.10:5432", "ledger")),
        start("ledger-2", 6432, backend("203.0.113.11:6432", "ledger")),
    ];
    apply(&mesh, &example("external-service.yaml"));
    let asked = "curl --silent --max-time 20 http://api.example.com/; \
                 curl --silent --max-time 20 --insecure https://api.example.com/; \
                 for n in 1 2 3 4; do curl --silent --max-time 20 http://ledger.example.net:5432/; done; \
                 curl --silent --max-time 20 http://203.0.113.10:5432/";
    let run = mesh.run_command(&Workload::new("me"), Program::shell(asked));
    let run = run
        .env("SSL_CERT_FILE", roots)
        .under(external::with_resolver(&resolv_conf));
    let printed = run.run("me", &logs, LIMIT).success().stdout;
    let lines: Vec<&str> = printed.lines().collect();
    let through = "api.example.com api.example.com HTTP/2.0 []";
    assert_eq!(lines[..2], [through, through], "{printed}");
    assert_eq!(lines[2..], ["ledger"; 5], "{printed}");
    let shown = mesh
        .command("get --effective shop/api -o json")
        .success()
        .stdout;
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(
        shown["items"][0]["spec"]["limits"]["concurrentRequests"], 50,
        "{shown}"
    );
}
