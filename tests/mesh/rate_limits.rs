//! RateLimitPolicy through real sidecars: who is let through, what callers are told, and that all
//! sidecars of a service together hold a limit that is global.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    Bed, Machine, Mesh, Program, Running, Settings, Workload, need, script, wait_for,
};

const LIMIT: Duration = Duration::from_secs(60);
const URL: &str = "http://web.shop.mesh:8080";

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: weft-mesh.io/v1alpha1\nkind: RateLimitPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\n\
         spec: {{targetRef: {{kind: Service, name: web}}, {spec}}}\n"
    )
}

/// Applies documents; returns when every sidecar that they concern has them.
fn put(mesh: &Mesh<'_>, documents: &str) {
    let file = mesh.scratch().file("limits.yaml", documents);
    let apply = format!("apply --wait 10s -f {}", file.display());
    mesh.command(&apply).success();
}

/// Asks as a workload for what `ask.py` reads; all answers to each.
fn ask(mesh: &Mesh<'_>, workload: &str, requests: &Value) -> Vec<Vec<Value>> {
    let file = mesh.scratch().file("requests.json", requests.to_string());
    let asking = Workload::new(workload).wait_for("web");
    let asked = mesh.run_to_end(&asking, script("ask.py").arg(file), LIMIT);
    let printed = asked.success().stdout;
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

fn get(path: &str, headers: Value, times: usize) -> Value {
    json!({ "url": format!("{URL}{path}"), "headers": headers, "times": times })
}

/// How many of these answers went through; the others were refused, and by a limit.
fn passed(answers: &[Value]) -> usize {
    let refused = answers.iter().filter(|answer| answer["status"] == 429);
    for refused in refused.clone() {
        assert_eq!(
            refused["headers"]["weft-reason"], "rate-limited",
            "{refused}"
        );
    }
    let passed = answers.iter().filter(|answer| answer["status"] == 200);
    assert_eq!(passed.clone().count() + refused.count(), answers.len());
    passed.count()
}

#[test]
fn requests_count_together_by_what_they_have_in_common() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], script("echo.py").args(["8080", "web"]));
    // So slow that nothing comes back while this runs: what passes is the burst, exactly.
    put(
        &mesh,
        &policy(
            "web",
            "rules: [\
             {requests: 7, per: 24h, matches: [{path: {type: PathPrefix, value: /caller}}], \
              key: [{caller: {}}]}, \
             {requests: 1, per: 24h, burst: 3, key: [{header: x-user}], \
              matches: [{path: {type: PathPrefix, value: /header}}]}, \
             {requests: 2, per: 24h, key: [{claim: sub}], \
              matches: [{path: {type: PathPrefix, value: /claim}}]}, \
             {requests: 4, per: 24h, matches: [{path: {type: Exact, value: /path}, method: GET}]}]",
        ),
    );
    // {"sub":"alice"} and {"sub":"bob"}.
    let token = |payload: &str| json!({ "authorization": format!("Bearer e30.{payload}.x") });
    let answers = ask(
        &mesh,
        "me",
        &json!([
            get("/caller/x", json!({}), 20),
            get("/header", json!({"x-user": "1"}), 10),
            get("/header", json!({"x-user": "2"}), 10),
            get("/header", json!({}), 10),
            get("/claim", token("eyJzdWIiOiJhbGljZSJ9"), 5),
            get("/claim", token("eyJzdWIiOiJib2IifQ"), 5),
            get("/path", json!({}), 10),
            get("/path/x", json!({}), 10),
            {"url": format!("{URL}/path"), "method": "POST", "body": "x", "times": 10},
        ]),
    );
    let counts: Vec<usize> = answers.iter().map(|answers| passed(answers)).collect();
    assert_eq!(counts, [7, 3, 3, 3, 2, 2, 4, 10, 10]);

    // What callers are told.
    let first = &answers[0][0]["headers"];
    assert_eq!(first["ratelimit-policy"], "\"web/0\";q=7;w=86400");
    let left = first["ratelimit"].as_str().unwrap_or_default();
    assert!(left.starts_with("\"web/0\";r=6;t="), "{first}");
    let refused = &answers[1][3];
    let told = &refused["headers"];
    let wait: u64 = told["retry-after"].as_str().unwrap().parse().unwrap();
    assert!((86_000..=86_400).contains(&wait), "{told}");
    assert_eq!(told["ratelimit"], format!("\"web/1\";r=0;t={wait}"));
    let text = refused["body"].as_str().unwrap_or_default();
    assert!(text.contains("shop/web, rule 1"), "{text}");
    let free = &answers[7][0]["headers"];
    assert!(free.get("ratelimit").is_none(), "no rule is for it: {free}");

    // Another caller has a bucket of its own; the same one again does not.
    let again = json!([get("/caller", json!({}), 10)]);
    assert_eq!(passed(&ask(&mesh, "other", &again)[0]), 7);
    assert_eq!(passed(&ask(&mesh, "me", &again)[0]), 0);
    // Names of workloads and service accounts may have dots.
    let dotted = ask(&mesh, "me.v1", &again);
    assert_eq!(passed(&dotted[0]), 7);
    let seen = dotted[0][0]["body"].to_string();
    assert!(
        seen.contains("spiffe://weft.local/ns/shop/sa/me.v1"),
        "{seen}"
    );

    // The caller's own field says nothing about who it is.
    let forged = json!({ "x-forwarded-client-cert": "URI=spiffe://weft.local/ns/shop/sa/new" });
    let forged = json!([get("/caller", forged, 3)]);
    assert_eq!(passed(&ask(&mesh, "me", &forged)[0]), 0);
}

#[test]
fn a_policy_changes_while_requests_run() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], script("echo.py").args(["8080", "web"]));
    let count = |times: usize| {
        let answers = ask(&mesh, "me", &json!([get("/", json!({}), times)]));
        passed(&answers[0])
    };
    assert_eq!(count(20), 20, "without a policy");
    put(&mesh, &policy("web", "rules: [{requests: 5, per: 24h}]"));
    assert_eq!(count(20), 5);

    refused_field_by_field(&mesh);
    assert_eq!(count(5), 0, "what was counted is still counted");

    // Raising the burst gives nothing; a second policy holds beside the first.
    put(
        &mesh,
        &policy("web", "rules: [{requests: 50, per: 24h, burst: 100}]"),
    );
    assert_eq!(count(5), 0);
    let two = policy("web", "rules: [{requests: 1000, per: 1s}]")
        + &policy("more", "rules: [{requests: 6, per: 24h}]");
    put(&mesh, &two);
    wait_for("tokens to come", LIMIT, || (count(1) == 1).then_some(()));
    let answers = ask(&mesh, "me", &json!([get("/", json!({}), 10)])).remove(0);
    assert_eq!(passed(&answers), 5);
    let policies = answers[9]["headers"]["ratelimit-policy"]
        .as_str()
        .unwrap_or_default();
    assert_eq!(policies, "\"more/0\";q=6;w=86400, \"web/0\";q=1000;w=1");

    told(&mesh);
    for name in ["web", "more"] {
        mesh.command(&format!("delete RateLimitPolicy {name} -n shop"))
            .success();
    }
    wait_for("no limit to be there", LIMIT, || {
        (count(20) == 20).then_some(())
    });
}

/// Refused whole, field by field: what was applied before stays in force.
fn refused_field_by_field(mesh: &Mesh<'_>) {
    let bad = "scope: world, rules: [{requests: 0, per: 25h, key: [{header: 'a b'}], x: 1, \
               matches: [{path: {value: nowhere}}]}]";
    let refused = mesh.apply(&policy("web", bad));
    assert_eq!(refused.code(), 2, "{refused}");
    for part in ["spec.scope", "world", "local"] {
        assert!(refused.stderr.contains(part), "{part}: {refused}");
    }
    let bad = bad.replace("scope: world, ", "");
    let refused = mesh.apply(&policy("web", &bad));
    for part in [
        "spec.rules[0].requests",
        "1 to 1000000000",
        "spec.rules[0].per",
        "24h",
        "spec.rules[0].key[0].header",
        "spec.rules[0].x",
        "spec.rules[0].matches[0].path.value",
    ] {
        assert!(refused.stderr.contains(part), "{part}: {refused}");
    }
    let dangling =
        policy("web", "rules: [{requests: 1, per: 1s}]").replace("name: web}, ", "name: gone}, ");
    let refused = mesh.apply(&dangling);
    assert_eq!(refused.code(), 2, "{refused}");
    assert!(refused.stderr.contains("spec.targetRef"), "{refused}");
}

/// What is in force, why, and what would change.
fn told(mesh: &Mesh<'_>) {
    let shown = mesh
        .command("get --effective shop/web -o json")
        .success()
        .stdout;
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    let limits = &shown["items"][0]["rateLimits"];
    assert_eq!(limits[0]["policy"], "more", "{limits}");
    let limit = limits[0]["limit"].as_str().unwrap_or_default();
    assert!(limit.contains("6 requests in 86400s"), "{limit}");
    let explained = mesh.command(&format!("explain --from shop/me GET {URL}/x"));
    let explained = explained.success().stdout;
    for part in ["rate limit", "RateLimitPolicy shop/more", "rate-limited"] {
        assert!(explained.contains(part), "{part}: {explained}");
    }
    let file = mesh.scratch().file(
        "plan.yaml",
        policy("more", "rules: [{requests: 9, per: 1s}]"),
    );
    let planned = mesh
        .command(&format!("plan -f {}", file.display()))
        .success()
        .stdout;
    assert!(
        planned.contains("rate limit more/0 becomes 9 requests"),
        "{planned}"
    );
}

#[test]
fn the_example_does_what_it_says() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _orders = mesh.serve("orders", &["80"], script("echo.py").args(["80", "orders"]));
    let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let example = example.join("deploy/examples/rate-limit-policy.yaml");
    let apply = format!("apply --wait 10s -f {}", example.display());
    mesh.command(&apply).success();
    let order = |user: &str| {
        json!({
            "url": "http://orders.shop.mesh/v1/orders",
            "method": "POST",
            "headers": {"x-user": user},
            "body": "x",
            "times": 8,
        })
    };
    let search = json!({"url": "http://orders.shop.mesh/v1/search?q=x"});
    let requests = json!([order("1"), order("2"), search]);
    let file = mesh.scratch().file("requests.json", requests.to_string());
    let asked = mesh.call("me", &["orders"], script("ask.py").arg(file), LIMIT);
    let answers: Vec<Vec<Value>> = serde_json::from_str(&asked.success().stdout).expect("JSON");
    assert_eq!((passed(&answers[0]), passed(&answers[1])), (5, 5));
    let policies = &answers[2][0]["headers"]["ratelimit-policy"];
    let expected = "\"orders/0\";q=1000;w=1, \"orders-search/0\";q=200;w=1";
    assert_eq!(policies, expected);
}

#[test]
fn refusals_are_no_failures_and_are_not_repeated() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], script("echo.py").args(["8080", "web"]));
    // A breaker that opens after two 429, as far as they are the endpoint's.
    let breaker = "---\napiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
                   metadata: {name: web, namespace: shop}\n\
                   spec: {targetRef: {kind: Service, name: web}, \
                   circuitBreaker: {consecutiveFailures: 2, openTime: 60s, \
                   failures: {statuses: [429, 5xx]}, service: {consecutiveFailures: 2}}}\n";
    let limited = "rules: [{requests: 1, per: 24h, \
                   matches: [{path: {type: PathPrefix, value: /limited}}]}]";
    put(&mesh, &(policy("web", limited) + breaker));
    let answers = ask(
        &mesh,
        "me",
        &json!([get("/limited", json!({}), 10), get("/free", json!({}), 10)]),
    );
    assert_eq!((passed(&answers[0]), passed(&answers[1])), (1, 10));
    let counted = ask(&mesh, "me", &json!([{"url": format!("{URL}/count")}]));
    assert_eq!(
        counted[0][0]["body"]["count"], 11,
        "refused ones never get there"
    );
}

#[test]
fn grpc_calls_get_resource_exhausted() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], script("echo.py").args(["8080", "web"]));
    put(&mesh, &policy("web", "rules: [{requests: 1, per: 24h}]"));
    let curl = Program::line(&format!(
        "curl --silent --output /dev/null --max-time 20 -H content-type:application/grpc \
         --write-out %{{http_code}}:%header{{grpc-status}}:%header{{weft-reason}}| {URL}/s/[1-3]"
    ));
    let answered = mesh.call("me", &["web"], curl, LIMIT).success().stdout;
    let answers: Vec<&str> = answered.split_terminator('|').collect();
    assert_eq!(answers[1..], ["200:8:rate-limited"; 2], "{answered}");
}

/// An instance of `web` that is also a service of its own, so that callers can choose.
fn instance(mesh: &Mesh<'_>, name: &str) -> Running {
    let workload = Workload::new(name)
        .port("8080")
        .flag("--service", "web")
        .flag("--service", name);
    let running = mesh.run(&workload, script("echo.py").args(["8080", name]));
    wait_for(name, LIMIT, || {
        let shown = mesh.command("get services -o json").success().stdout;
        let shown: Value = serde_json::from_str(&shown).ok()?;
        let web = shown["items"]
            .as_array()?
            .iter()
            .find(|service| service["metadata"]["name"] == "web")?
            .clone();
        web["status"]["endpoints"]
            .to_string()
            .contains(name)
            .then_some(())
    });
    running
}

/// Asks an instance so many times a second, for so long; counts by second.
fn load(mesh: &Mesh<'_>, at: &str, rate: usize, seconds: usize) -> Running {
    let url = format!("http://{at}.shop.mesh:8080/");
    let program = script("rates.py").args([&url, &*rate.to_string(), &*seconds.to_string()]);
    let asking = Workload::new(&format!("asks-{at}")).wait_for(at);
    mesh.run(&asking, program)
}

/// How many passed in each second.
fn by_second(printed: &str) -> Vec<u64> {
    let lines = printed.lines().map(|line| {
        let counted: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(counted["other"], 0, "{printed}");
        counted["passed"].as_u64().expect("a number")
    });
    lines.collect()
}

#[test]
fn all_sidecars_together_hold_a_global_limit() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::with(
        &machine,
        Settings {
            // More than twice the 3 s in which sidecars reconnect.
            flags: &["--grace", "7s"],
            ..Settings::default()
        },
    );
    let _one = instance(&mesh, "one");
    let _two = instance(&mesh, "two");
    put(
        &mesh,
        &policy(
            "web",
            "scope: global, rules: [{requests: 20, per: 1s, burst: 5}]",
        ),
    );
    // All of the demand is at one of them: it gets nearly all of the limit, where its first share
    // was a half. That may be after the grace of a control plane that has just begun. The burst is 5, and
    // a request more for each of the two.
    let counts = by_second(&load(&mesh, "one", 60, 12).finish(LIMIT).success().stdout);
    assert!(
        counts[11] >= 15,
        "the share goes where the demand is: {counts:?}"
    );
    assert!(counts.iter().sum::<u64>() <= 12 * 20 + 7, "{counts:?}");

    // The demand moves to the other, with some left at the first. Meanwhile the control plane dies:
    // the last shares hold.
    let began = Instant::now();
    let (one, two) = (load(&mesh, "one", 2, 9), load(&mesh, "two", 60, 9));
    let seconds = |seconds: usize| {
        wait_for("some seconds to pass", LIMIT, || {
            (two.stdout().lines().count() >= seconds).then_some(())
        });
    };
    seconds(6);
    mesh.kill_control_plane();
    seconds(8);
    mesh.start_control_plane();
    let (one, two) = (one.finish(LIMIT).success(), two.finish(LIMIT).success());
    let most = 20 * (began.elapsed().as_secs() + 1) + 7;
    let (one, two) = (by_second(&one.stdout), by_second(&two.stdout));
    let fits = |count: &u64| (14..=21).contains(count);
    assert!(fits(&two[5]), "moved to where the demand is: {two:?}");
    let without = &two[7..8];
    assert!(without.iter().all(fits), "without a control plane: {two:?}");
    let some = one[4..9].iter().sum::<u64>();
    assert!(some >= 3, "something for everyone: {one:?}");
    let all: u64 = one.iter().chain(&two).sum();
    assert!(all <= most, "{all} of {most}: {one:?} {two:?}");

    // It is back, has learned what is held, and moves shares again.
    let counts = by_second(&load(&mesh, "one", 60, 10).finish(LIMIT).success().stdout);
    assert!(counts[9] >= 14, "{counts:?}");
    assert!(counts.iter().sum::<u64>() <= 10 * 20 + 7, "{counts:?}");
}
