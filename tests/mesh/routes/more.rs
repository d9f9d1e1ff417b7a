//! More of GAMMA: hostnames and addresses, ports, shares of copies, gRPC with weights, statuses with
//! their generations, and how soon a change is there.

use std::collections::BTreeSet;
use std::time::Instant;

use super::*;

/// What callers of a service see of it, by whatever name they call it: a request to its address with
/// the name of another service in `Host` is still a request to it.
#[test]
fn a_service_is_where_it_is_called_not_what_host_says() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _versions = versions(&mesh);
    let marked = "[{filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-front, value: set}]}}], backendRefs: [{name: v2, port: 8080}]}]";
    let documents = [
        service("front", HTTP),
        route("shop", "front", "front", "", marked),
        service("other", HTTP),
        route(
            "shop",
            "other",
            "other",
            "",
            "[{backendRefs: [{name: v1, port: 8080}]}]",
        ),
    ];
    apply(&mesh, &documents.concat());
    let address = |name: &str| {
        let shown = mesh.command(&format!("get services {name} -n shop -o json"));
        let shown: Value = serde_json::from_str(&shown.success().stdout).expect("JSON");
        let address = shown["items"][0]["status"]["addresses"][0].as_str();
        address.expect("an address").to_owned()
    };
    let (front, other) = (address("front"), address("other"));
    let with_host = |host: &str, named: &str| {
        let mut request = request(host, "GET /");
        request["headers"] = json!({ "host": named });
        request
    };
    let requests = [
        // MeshFrontendHostname: every name that it has.
        request("front.shop.mesh", "GET /"),
        request("front.shop", "GET /"),
        request("front", "GET /"),
        // MeshFrontendHostname, MeshClusterIPMatching: the address decides.
        request(&front, "GET /"),
        with_host(&front, "other.shop.mesh"),
        with_host("front.shop.mesh", "example.org"),
        with_host(&other, "front.shop.mesh"),
        // MeshFrontend: the backend itself has no such route.
        request("v2.shop.mesh:8080", "GET /"),
    ];
    let answers = ask(&mesh, "shop", &requests);
    let seen = answers.iter().map(|answers| {
        let answer = &answers[0];
        let mark = answer["headers"]["x-front"].as_str().unwrap_or("-");
        let name = answer["body"]["name"].as_str().unwrap_or("?");
        format!("{name} {mark}")
    });
    let expected = [
        "v2 set", "v2 set", "v2 set", "v2 set", "v2 set", "v2 set", "v1 -", "v2 -",
    ];
    assert_eq!(seen.collect::<Vec<_>>(), expected, "{answers:#?}");
}

/// MeshPorts: a route for one port leaves the service's other ports alone.
#[test]
fn a_route_for_one_port_leaves_the_others_alone() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _versions = versions(&mesh);
    let marked = "[{filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-port, value: first}]}}], backendRefs: [{name: v1, port: 8080}]}]";
    let two = "[{port: 80, targetPort: 8080, protocol: http}, {port: 81, targetPort: 8080, protocol: http}]";
    let workload = Workload::new("own").port("8080").flag("--service", "ports");
    let documents = [
        service("ports", two),
        route("shop", "ports", "ports", ", port: 80", marked),
    ];
    apply(&mesh, &documents.concat());
    let _own = mesh.run(&workload, program("own"));
    mesh.wait_for_service("ports");
    let requests = ["ports.shop.mesh", "ports.shop.mesh:81"].map(|host| request(host, "GET /"));
    let answers = ask(&mesh, "shop", &requests);
    assert_eq!(answers[0][0]["body"]["name"], "v1");
    assert_eq!(answers[0][0]["headers"]["x-port"], "first");
    assert_eq!(answers[1][0]["body"]["name"], "own");
    assert!(answers[1][0]["headers"]["x-port"].is_null(), "{answers:?}");
}

#[test]
fn so_many_copies_as_the_share_says() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let to = ["v1", "none", "some", "every"];
    let _running = to.map(|name| mesh.serve(name, &["8080"], program(name)));
    let rule = |path: &str, share: &str, copy: &str| {
        format!(
            "{{matches: [{{path: {{value: {path}}}}}], filters: [{{type: RequestMirror, requestMirror: {{{share}backendRef: {{name: {copy}, port: 8080}}}}}}], backendRefs: [{{name: v1, port: 8080}}]}}"
        )
    };
    let rules = [
        rule("/none", "percent: 0, ", "none"),
        rule(
            "/some",
            "fraction: {numerator: 1, denominator: 4}, ",
            "some",
        ),
        rule("/every", "percent: 100, ", "every"),
    ];
    let documents = [
        service("copied", HTTP),
        route(
            "shop",
            "copied",
            "copied",
            "",
            &format!("[{}]", rules.join(", ")),
        ),
    ];
    apply(&mesh, &documents.concat());
    let requests = ["none", "some", "every"].map(|path| {
        let mut request = request("copied.shop.mesh", &format!("GET /{path}"));
        request["times"] = json!(200);
        request
    });
    let answers = ask(&mesh, "shop", &requests);
    assert!(answers.iter().all(|answers| names(answers)["v1"] == 200));
    let counts = || -> Vec<u64> {
        let asked = ["none", "some", "every"];
        let asked = asked.map(|name| request(&format!("{name}.shop.mesh:8080"), "GET /count"));
        let answers = ask(&mesh, "shop", &asked);
        let counts = answers.iter().map(|a| a[0]["body"]["count"].as_u64());
        counts.map(|count| count.expect("a count")).collect()
    };
    // Copies may still be on their way: nothing changes any more when all of the third are there.
    let counts = wait_for("every copy to be there", LIMIT, || {
        let (before, after) = (counts(), counts());
        (before == after && after[2] == 200).then_some(after)
    });
    assert_eq!(counts[0], 0);
    // Fifty, and six standard deviations either way.
    assert!((14..=86).contains(&counts[1]), "{counts:?}");
}

/// What `grpc_asks.py` was answered.
fn calls(mesh: &Mesh<'_>, calls: &[Value]) -> Vec<Vec<Value>> {
    let file = mesh.scratch().file("calls.json", json!(calls).to_string());
    let asking = Workload::new("calling").wait_for("g1").wait_for("g2");
    let printed = mesh.run_to_end(&asking, script("grpc_asks.py").arg(file), LIMIT);
    let printed = printed.success().stdout;
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

fn grpc_route(name: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\n\
         metadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         parentRefs: [{{group: '', kind: Service, name: {name}}}]\n  rules: {rules}\n"
    )
}

const GRPC: &str = "[{port: 50051, protocol: grpc}]";

/// MESH-GRPC: MeshBasic, MeshGRPCRouteWeight, MeshGRPCRouteRequestHeaderModifier; matching, and what
/// leads nowhere.
#[test]
#[expect(
    clippy::too_many_lines,
    reason = "three routes, and what calls come to"
)]
fn grpc_calls_by_weight_and_with_other_fields() {
    need!("python:grpc");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _servers = ["g1", "g2"].map(|name| {
        let server = script("grpc_server.py").args(["50051", name]);
        mesh.serve(name, &["50051:grpc"], server)
    });
    let weights = "[{backendRefs: [{name: g1, port: 50051, weight: 70}, {name: g2, port: 50051, weight: 30}]}]";
    let modified = "[{matches: [{headers: [{name: x-case, value: set}]}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: new}]}}], backendRefs: [{name: g1, port: 50051}]},
          {matches: [{headers: [{name: x-case, value: add}]}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: x-add, value: new}]}}], backendRefs: [{name: g1, port: 50051}]},
          {matches: [{headers: [{name: x-case, value: remove}]}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [x-remove]}}, {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-answer, value: given}]}}], backendRefs: [{name: g2, port: 50051}]}]";
    let matched = "[{matches: [{method: {method: Unary}}], backendRefs: [{name: g1, port: 50051}]},
          {matches: [{method: {service: weft.test.Echo}, headers: [{name: x-tenant, type: RegularExpression, value: 'b.*'}]}], backendRefs: [{name: g2, port: 50051}]},
          {matches: [{method: {service: gone.Service}}], backendRefs: [{name: gone, port: 1}]}]";
    let documents = [
        service("weighted", GRPC),
        grpc_route("weighted", weights),
        service("modified", GRPC),
        grpc_route("modified", modified),
        service("matched", GRPC),
        grpc_route("matched", matched),
    ];
    apply(&mesh, &documents.concat());
    let call = |name: &str, method: &str, metadata: Value| json!({"target": format!("{name}.shop.mesh:50051"), "method": method, "metadata": metadata});
    let unary = "weft.test.Echo/Unary";
    let mut weighted = call("weighted", unary, json!({}));
    weighted["times"] = json!(500);
    let asked = [
        call("g1", unary, json!({})),
        call("modified", unary, json!({"x-case": "set", "x-set": "old"})),
        call("modified", unary, json!({"x-case": "add", "x-other": "1"})),
        call(
            "modified",
            unary,
            json!({"x-case": "remove", "x-remove": "1"}),
        ),
        call("modified", unary, json!({"x-case": "none"})),
        call("matched", unary, json!({})),
        // The service goes before the method of any service.
        call("matched", unary, json!({"x-tenant": "beta"})),
        call("matched", "gone.Service/Any", json!({})),
        weighted,
    ];
    let answers = calls(&mesh, &asked);
    let first = |index: usize| &answers[index][0];
    let seen = |index: usize, field: &str| first(index)["reply"]["metadata"][field].clone();
    let name = |answer: &Value| answer["reply"]["name"].as_str().unwrap_or("?").to_owned();
    let reached: Vec<String> = (0..7).map(|index| name(first(index))).collect();
    assert_eq!(
        reached,
        ["g1", "g1", "g1", "g2", "?", "g1", "g2"],
        "{answers:#?}"
    );
    assert_eq!(seen(1, "x-set"), "new");
    assert_eq!(
        (seen(2, "x-add"), seen(2, "x-other")),
        (json!("new"), json!("1"))
    );
    assert_eq!(seen(3, "x-remove"), Value::Null);
    assert_eq!(first(3)["metadata"]["x-answer"], "given");
    // UNIMPLEMENTED: no rule takes it; UNAVAILABLE: the one that does leads nowhere.
    assert_eq!(first(4)["code"], 12, "{}", first(4));
    assert_eq!(first(7)["code"], 14, "{}", first(7));
    let details = first(7)["details"].as_str().unwrap_or_default();
    assert!(details.contains("backend-not-found"), "{details}");
    let share = |answers: &[Value]| {
        let of_first = answers.iter().filter(|answer| name(answer) == "g1").count();
        assert!(answers.iter().all(|answer| answer["code"] == 0));
        of_first as f64 / answers.len() as f64
    };
    let mut tries = vec![share(&answers[8])];
    while tries.len() < 10 && (tries[tries.len() - 1] - 0.7).abs() > 0.05 {
        tries.push(share(&calls(&mesh, &asked[8..])[0]));
    }
    assert!((tries[tries.len() - 1] - 0.7).abs() <= 0.05, "{tries:?}");
}

/// A condition of a route's only parent: status, reason, generation.
fn condition(mesh: &Mesh<'_>, kind: &str, name: &str, wanted: &str) -> (String, String, u64) {
    let shown = mesh.command(&format!("get {kind} {name} -n shop -o json"));
    let shown: Value = serde_json::from_str(&shown.success().stdout).expect("JSON");
    let parents = &shown["items"][0]["status"]["parents"];
    let conditions = parents[0]["conditions"].as_array().expect("conditions");
    let found = conditions.iter().find(|found| found["type"] == wanted);
    let found = found.unwrap_or_else(|| panic!("no {wanted}: {shown}"));
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    let generation = found["observedGeneration"].as_u64();
    (
        text("status"),
        text("reason"),
        generation.expect("a generation"),
    )
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of routes and statuses")]
fn statuses_say_what_holds_and_for_which_generation() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _versions = versions(&mesh);
    let to = |name: &str| format!("[{{backendRefs: [{{name: {name}, port: 8080}}]}}]");
    let elsewhere = "[{backendRefs: [{name: v1, namespace: lab, port: 8080}]}]";
    let fault = "[{filters: [{type: ExtensionRef, extensionRef: {group: weft-mesh.io, kind: FaultInjection, name: gone}}]}]";
    let documents = [
        service("front", HTTP),
        route("shop", "good", "front", "", &to("v1")),
        route("shop", "nobody", "nobody", "", &to("v1")),
        route("shop", "no-port", "front", ", port: 99", &to("v1")),
        route("shop", "no-backend", "front", "", &to("gone")),
        route("shop", "not-permitted", "front", "", elsewhere),
        route("shop", "no-fault", "front", "", fault),
        service("calls", GRPC),
        grpc_route("calls", &to("gone")),
        // Of another kind at the same port.
        route("shop", "less-specific", "calls", "", &to("v1")),
    ];
    apply(&mesh, &documents.concat());
    let cases = [
        ("httproute", "good", "Accepted", "True", "Accepted"),
        ("httproute", "good", "ResolvedRefs", "True", "ResolvedRefs"),
        (
            "httproute",
            "nobody",
            "Accepted",
            "False",
            "NoMatchingParent",
        ),
        (
            "httproute",
            "no-port",
            "Accepted",
            "False",
            "NoMatchingParent",
        ),
        ("httproute", "no-backend", "Accepted", "True", "Accepted"),
        (
            "httproute",
            "no-backend",
            "ResolvedRefs",
            "False",
            "BackendNotFound",
        ),
        (
            "httproute",
            "not-permitted",
            "ResolvedRefs",
            "False",
            "RefNotPermitted",
        ),
        (
            "httproute",
            "no-fault",
            "ResolvedRefs",
            "False",
            "FilterNotFound",
        ),
        ("grpcroute", "calls", "Accepted", "True", "Accepted"),
        (
            "grpcroute",
            "calls",
            "ResolvedRefs",
            "False",
            "BackendNotFound",
        ),
        (
            "httproute",
            "less-specific",
            "Accepted",
            "False",
            "Conflicted",
        ),
    ];
    for (kind, name, wanted, status, reason) in cases {
        let found = condition(&mesh, kind, name, wanted);
        assert_eq!(
            found,
            (status.to_owned(), reason.to_owned(), 1),
            "{name} {wanted}"
        );
    }
    // Changed, the conditions are about the change, and say what holds now.
    apply(&mesh, &route("shop", "no-backend", "front", "", &to("v2")));
    let found = condition(&mesh, "httproute", "no-backend", "ResolvedRefs");
    assert_eq!(found, ("True".to_owned(), "ResolvedRefs".to_owned(), 2));
    // So it is when what was missing comes, although the route is as it was.
    apply(&mesh, &service("nobody", HTTP));
    let found = condition(&mesh, "httproute", "nobody", "Accepted");
    assert_eq!(found, ("True".to_owned(), "Accepted".to_owned(), 1));
}

/// A change is there for connections that stand, far sooner than in the 30 s that the conformance
/// tests wait.
#[test]
fn changes_are_there_at_once_also_on_connections_that_stand() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _versions = versions(&mesh);
    let to = |name: &str| {
        let rules = format!("[{{backendRefs: [{{name: {name}, port: 8080}}]}}]");
        route("shop", "moving", "moving", "", &rules)
    };
    apply(&mesh, &(service("moving", HTTP) + &to("v1")));
    // One connection, a request every 20 ms; what is printed is who answered.
    let seen = mesh.scratch().dir("seen").join("answers");
    let program = script("keep_asking.py")
        .args(["http://moving.shop.mesh/", "0.02"])
        .arg(&seen);
    let asking = mesh.run(
        &Workload::new("asking").wait_for("v1").wait_for("v2"),
        program,
    );
    let answered = || std::fs::read_to_string(&seen).unwrap_or_default();
    let last = |name: &str| answered().lines().next_back() == Some(name);
    wait_for("the first answers", LIMIT, || last("v1").then_some(()));
    for name in ["v2", "v1", "v2"] {
        let file = mesh.scratch().file("move.yaml", to(name));
        mesh.command(&format!("apply -f {}", file.display()))
            .success();
        let began = Instant::now();
        wait_for("the change to be there", LIMIT, || last(name).then_some(()));
        let took = began.elapsed();
        eprintln!("{name} after {took:?}");
        assert!(took < Duration::from_secs(30), "{took:?}");
    }
    let names: BTreeSet<String> = answered().lines().map(ToOwned::to_owned).collect();
    let only: BTreeSet<String> = ["v1", "v2"].map(ToOwned::to_owned).into();
    assert_eq!(names, only, "something failed meanwhile");
    drop(asking);
}
