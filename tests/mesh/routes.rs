//! Routes through real sidecars: the mesh cases of the Gateway API's conformance tests (GAMMA), core
//! and extended, as a table; and what belongs to them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Bed, Machine, Mesh, Running, Workload, need, script, wait_for};

mod more;

const LIMIT: Duration = Duration::from_secs(60);

/// A service whose requests a route takes, and what they come to.
///
/// What is asked is `METHOD PATH [FIELD:VALUE]…`. What is expected is the backend's name or a
/// status, and then: `path=…` and `FIELD=VALUE` of what the backend saw, `!FIELD` that it did not
/// see, `>FIELD=VALUE` of the response and `>!FIELD` that it does not have.
struct Case {
    service: &'static str,
    rules: &'static str,
    asked: &'static [(&'static str, &'static str)],
}

const CASES: &[Case] = &[
    Case {
        // Names of rules are DNS subdomains (`SectionName`), like the routes' own.
        service: "subdomains",
        rules: "[{name: canary.v2, matches: [{path: {type: PathPrefix, value: /v2}}], backendRefs: [{name: v2, port: 8080}]},
                 {name: stable.v1.0, backendRefs: [{name: v1, port: 8080}]}]",
        asked: &[("GET /v2", "v2"), ("GET /", "v1")],
    },
    Case {
        // MeshHTTPRouteSimpleSameNamespace
        service: "simple",
        rules: "[{backendRefs: [{name: v1, port: 8080}]}]",
        asked: &[
            ("GET /", "v1 path=/"),
            ("POST /a?b=c", "v1 path=/a?b=c"),
            ("DELETE /", "v1"),
        ],
    },
    Case {
        // MeshHTTPRouteMatching
        service: "matching",
        rules: "[{matches: [{path: {type: PathPrefix, value: /}, headers: [{name: version, value: one}]}], backendRefs: [{name: v1, port: 8080}]},
                 {matches: [{path: {type: PathPrefix, value: /v2}}, {headers: [{name: version, value: two}]}], backendRefs: [{name: v2, port: 8080}]},
                 {matches: [{path: {type: Exact, value: /exact}, method: PUT}, {path: {type: RegularExpression, value: '/r[0-9]+'}}], backendRefs: [{name: v1, port: 8080}]}]",
        asked: &[
            ("GET / version:one", "v1"),
            ("GET /example version:one", "v1"),
            ("GET /v2", "v2"),
            ("GET /v2/example", "v2"),
            ("GET /v2 version:one", "v2"),
            ("GET / version:two", "v2"),
            // By the normal path, and it goes on as it came.
            // (The server merges slashes at the beginning.)
            ("GET //%76%32/./a%2fb", "v2 path=/%76%32/./a%2fb"),
            ("GET /x/../v2", "v2 path=/x/../v2"),
            ("GET /v2example", "404 >weft-reason=route-not-found"),
            ("GET /", "404"),
            ("PUT /exact", "v1"),
            ("GET /exact", "404"),
            ("GET /r12", "v1"),
            ("GET /r12/x", "404"),
        ],
    },
    Case {
        // MeshHTTPRouteQueryParamMatching
        service: "queries",
        rules: "[{matches: [{queryParams: [{name: animal, value: whale}]}], backendRefs: [{name: v1, port: 8080}]},
                 {matches: [{queryParams: [{name: animal, value: dolphin}]}, {path: {type: PathPrefix, value: /path}, queryParams: [{name: color, type: RegularExpression, value: 'blue|red'}]}], backendRefs: [{name: v2, port: 8080}]}]",
        asked: &[
            ("GET /?animal=whale", "v1"),
            ("GET /?animal=whale&otherparam=irrelevant", "v1"),
            ("GET /?animal=dolphin", "v2"),
            ("GET /path?color=red", "v2"),
            ("GET /path?color=green", "404"),
            ("GET /?color=blue", "404"),
            ("GET /?animal=dog", "404"),
            ("GET /?ANIMAL=whale", "404"),
        ],
    },
    Case {
        // MeshHTTPRouteRequestHeaderModifier
        service: "request-headers",
        rules: "[{matches: [{path: {value: /set}}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Header-Set, value: set-overwrites-values}]}}], backendRefs: [{name: v1, port: 8080}]},
                 {matches: [{path: {value: /add}}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: X-Header-Add, value: added}]}}], backendRefs: [{name: v1, port: 8080}]},
                 {matches: [{path: {value: /remove}}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [X-Header-Remove]}}], backendRefs: [{name: v1, port: 8080}]}]",
        asked: &[
            ("GET /set some-other-header:val", "v1 some-other-header=val x-header-set=set-overwrites-values"),
            ("GET /set x-header-set:old", "v1 x-header-set=set-overwrites-values"),
            ("GET /add", "v1 x-header-add=added"),
            ("GET /remove x-header-remove:val kept:1", "v1 !x-header-remove kept=1"),
        ],
    },
    Case {
        // HTTPRouteResponseHeaderModification, MeshFrontend
        service: "response-headers",
        rules: "[{filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-set, value: one}, {name: x-from, value: route}], add: [{name: x-more, value: two}], remove: [content-type]}}], backendRefs: [{name: v1, port: 8080}]}]",
        asked: &[("GET /", "v1 >x-set=one >x-from=route >x-more=two >!content-type")],
    },
    Case {
        // MeshHTTPRouteBackendRequestHeaderModifier
        service: "backend-headers",
        rules: "[{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-rule, value: '1'}]}}],
                  backendRefs: [{name: v1, port: 8080, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: x-backend, value: '2'}]}}]}]}]",
        asked: &[("GET /", "v1 x-rule=1 x-backend=2")],
    },
    Case {
        // MeshHTTPRouteRedirectHostAndStatus, -Path, -Port, SchemeRedirect, 303, 307, 308
        service: "redirect",
        rules: "[{matches: [{path: {value: /host}}], filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org}}]},
                 {matches: [{path: {value: /status}}], filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org, statusCode: 301}}]},
                 {matches: [{path: {value: /original}}], filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /replacement}}}]},
                 {matches: [{path: {value: /full}}], filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /whole}, statusCode: 308}}]},
                 {matches: [{path: {value: /port}}], filters: [{type: RequestRedirect, requestRedirect: {port: 8083, statusCode: 307}}]},
                 {matches: [{path: {value: /scheme}}], filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 303}}]}]",
        asked: &[
            ("GET /host", "302 >location=http://example.org/host"),
            ("GET /status/x?y=1", "301 >location=http://example.org/status/x?y=1"),
            ("GET //status/./%7ex%2fy?y=//", "301 >location=http://example.org/status/~x%2Fy?y=//"),
            ("GET /original/a", "302 >location=http://redirect.shop.mesh/replacement/a"),
            ("GET /full/a?b=1", "308 >location=http://redirect.shop.mesh/whole?b=1"),
            ("GET /port", "307 >location=http://redirect.shop.mesh:8083/port"),
            ("GET /scheme", "303 >location=https://redirect.shop.mesh/scheme"),
            ("GET /other", "404"),
        ],
    },
    Case {
        // MeshHTTPRouteRewritePath, and the host
        service: "rewrite",
        rules: "[{matches: [{path: {value: /prefix/one}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /one}}}], backendRefs: [{name: v1, port: 8080}]},
                 {matches: [{path: {value: /full/one}}], filters: [{type: URLRewrite, urlRewrite: {hostname: other.example, path: {type: ReplaceFullPath, replaceFullPath: /one}}}], backendRefs: [{name: v1, port: 8080}]},
                 {matches: [{path: {value: /strip}}], backendRefs: [{name: v2, port: 8080, filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]}]}]",
        asked: &[
            ("GET /prefix/one/two?q=1", "v1 path=/one/two?q=1 host=rewrite.shop.mesh"),
            ("GET /prefix/one", "v1 path=/one"),
            ("GET //prefix/%6fne//a%2fb?q=%2f", "v1 path=/one/a%2Fb?q=%2f"),
            ("GET /full/one/two", "v1 path=/one host=other.example"),
            ("GET /strip/a/b", "v2 path=/a/b"),
            ("GET /strip", "v2 path=/"),
        ],
    },
    Case {
        // MeshHTTPRouteNamedRule
        service: "named",
        rules: "[{name: first, matches: [{path: {value: /named}}], backendRefs: [{name: v1, port: 8080}]}, {backendRefs: [{name: v2, port: 8080}]}]",
        asked: &[("GET /named", "v1"), ("GET /unnamed", "v2")],
    },
    Case {
        // A reference that leads nowhere: its share answers 500, the others are not harmed.
        service: "dangling",
        rules: "[{matches: [{path: {value: /gone}}], backendRefs: [{name: gone, port: 80}]},
                 {matches: [{path: {value: /port}}], backendRefs: [{name: v1, port: 99}]},
                 {matches: [{path: {value: /empty}}]},
                 {matches: [{path: {value: /fault}}], filters: [{type: ExtensionRef, extensionRef: {group: weft-mesh.io, kind: FaultInjection, name: gone}}], backendRefs: [{name: v1, port: 8080}]},
                 {backendRefs: [{name: v1, port: 8080}]}]",
        asked: &[
            ("GET /gone", "500 >weft-reason=backend-not-found"),
            ("GET /port", "500 >weft-reason=backend-not-found"),
            ("GET /empty", "500 >weft-reason=backend-not-found"),
            ("GET /fault", "500 >weft-reason=backend-not-found"),
            ("GET /", "v1"),
        ],
    },
    Case {
        service: "cors",
        rules: "[{filters: [{type: CORS, cors: {allowOrigins: ['https://*.shop.example'], allowMethods: [PUT], exposeHeaders: [x-from]}}], backendRefs: [{name: v1, port: 8080}]}]",
        asked: &[
            ("OPTIONS /x origin:https://a.shop.example access-control-request-method:PUT", "204 >access-control-allow-origin=https://a.shop.example >access-control-allow-methods=PUT"),
            ("OPTIONS /x origin:https://evil.example access-control-request-method:PUT", "204 >!access-control-allow-origin >vary=origin"),
            ("GET /x origin:https://a.shop.example", "v1 >access-control-allow-origin=https://a.shop.example >access-control-expose-headers=x-from >vary=origin"),
            // A cache must not give these to an origin.
            ("GET /x origin:https://evil.example", "v1 >!access-control-allow-origin >vary=origin"),
            ("GET /x", "v1 >vary=origin"),
            ("OPTIONS /x", "v1 >vary=origin"),
        ],
    },
    Case {
        // Credentials: browsers take no * then, so that what was asked for is named.
        service: "cors-credentials",
        rules: "[{filters: [{type: CORS, cors: {allowOrigins: ['*'], allowMethods: ['*'], allowHeaders: ['*'], allowCredentials: true, maxAge: 600}}], backendRefs: [{name: v1, port: 8080}]}]",
        asked: &[
            ("OPTIONS /x origin:http://any.example access-control-request-method:DELETE access-control-request-headers:x-a,x-b", "204 >access-control-allow-origin=http://any.example >access-control-allow-methods=DELETE >access-control-allow-headers=x-a,x-b >access-control-allow-credentials=true >access-control-max-age=600"),
            ("GET /x origin:http://any.example", "v1 >access-control-allow-credentials=true >vary=origin"),
            ("GET /x", "v1 >!access-control-allow-origin"),
        ],
    },
    Case {
        // MeshTrafficSplit, by path to one or the other
        service: "split",
        rules: "[{matches: [{path: {value: /v1}}], backendRefs: [{name: v1, port: 8080}]},
                 {matches: [{path: {value: /v2}}], backendRefs: [{name: v2, port: 8080}]}]",
        asked: &[("GET /v1", "v1"), ("GET /v2", "v2"), ("GET /v3", "404")],
    },
    Case {
        // Everything at once, and a field that is there already
        service: "all-modifiers",
        rules: "[{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set-1, value: a}, {name: X-Set-2, value: b}], add: [{name: X-Add, value: more}], remove: [X-Gone-1, X-Gone-2]}},
                            {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-from, value: route}]}}],
                  backendRefs: [{name: v1, port: 8080, filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-backend, value: own}]}}]}]}]",
        asked: &[
            ("GET / x-set-1:old x-gone-1:1 x-gone-2:2 x-stays:3", "v1 x-set-1=a x-set-2=b x-add=more !x-gone-1 !x-gone-2 x-stays=3 >x-backend=own"),
            ("GET / x-add:first", "v1 x-add=more"),
        ],
    },
    Case {
        // Patterns of everything, and methods
        service: "patterns",
        rules: "[{matches: [{method: DELETE, path: {type: RegularExpression, value: '/items/[0-9]+'}, headers: [{name: x-user, type: RegularExpression, value: '[a-z]+'}]}], backendRefs: [{name: v2, port: 8080}]},
                 {matches: [{method: OPTIONS}], backendRefs: [{name: v2, port: 8080}]},
                 {backendRefs: [{name: v1, port: 8080}]}]",
        asked: &[
            ("DELETE /items/7 x-user:ann", "v2"),
            ("DELETE /items/7 x-user:7", "v1"),
            ("DELETE /items/x x-user:ann", "v1"),
            ("GET /items/7 x-user:ann", "v1"),
            ("OPTIONS /", "v2"),
        ],
    },
    Case {
        service: "faults",
        rules: "[{filters: [{type: ExtensionRef, extensionRef: {group: weft-mesh.io, kind: FaultInjection, name: broken}}], backendRefs: [{name: v1, port: 8080}]}]",
        asked: &[
            ("GET / x-test:yes", "418 >weft-reason=fault-injected"),
            ("GET / x-test:no", "v1"),
        ],
    },
    Case {
        service: "retries",
        rules: "[{matches: [{path: {value: /flaky/no}}], retry: {attempts: 0}, backendRefs: [{name: v1, port: 8080}]},
                 {retry: {attempts: 1, codes: [503], backoff: 1ms}, backendRefs: [{name: v1, port: 8080}]}]",
        asked: &[
            ("GET /flaky/no", "503"),
            ("GET /flaky/yes", "v1"),
            // Not harmless: it is not repeated.
            ("POST /flaky/post", "503"),
        ],
    },
];

const MORE: &str = "
apiVersion: weft-mesh.io/v1alpha1
kind: FaultInjection
metadata: {name: broken, namespace: shop}
spec: {headers: [{name: x-test, value: 'yes'}], delay: {time: 10ms}, abort: {status: 418}}
";

/// A Service without workloads of its own, at port 80.
fn service(name: &str, ports: &str) -> String {
    format!(
        "---\napiVersion: weft-mesh.io/v1alpha1\nkind: Service\n\
         metadata: {{name: {name}, namespace: shop}}\nspec: {{ports: {ports}}}\n"
    )
}

/// An HTTPRoute for a Service of `shop`.
fn route(namespace: &str, name: &str, service: &str, port: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  parentRefs: [{{group: '', kind: Service, namespace: shop, name: {service}{port}}}]\n  \
         rules: {rules}\n"
    )
}

const HTTP: &str = "[{port: 80, protocol: http}]";

/// Two versions of a program, each a service of its own.
fn versions(mesh: &Mesh<'_>) -> Vec<Running> {
    let names = ["v1", "v2"];
    let started = names.map(|name| mesh.serve(name, &["8080"], program(name)));
    started.into()
}

fn program(name: &str) -> crate::support::Program {
    script("echo.py").args(["8080", name])
}

fn apply(mesh: &Mesh<'_>, documents: &str) {
    let file = mesh.scratch().file("routes.yaml", documents);
    let apply = format!("apply --allow-missing --wait 10s -f {}", file.display());
    mesh.command(&apply).success();
}

/// A request as `ask.py` reads it.
fn request(host: &str, asked: &str) -> Value {
    let mut words = asked.split(' ');
    let method = words.next().expect("a method");
    let path = words.next().expect("a path");
    let fields = words.map(|word| word.split_once(':').expect("FIELD:VALUE"));
    let fields: BTreeMap<&str, &str> = fields.collect();
    json!({ "url": format!("http://{host}{path}"), "method": method, "headers": fields })
}

/// Asks as a workload of a namespace.
fn ask(mesh: &Mesh<'_>, namespace: &str, requests: &[Value]) -> Vec<Vec<Value>> {
    let file = mesh
        .scratch()
        .file("requests.json", json!(requests).to_string());
    let workload = Workload::of(namespace, "asking").wait_for("shop/v1");
    let asked = mesh.run_to_end(&workload, script("ask.py").arg(file), LIMIT);
    let printed = asked.success().stdout;
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

/// What is not as expected.
fn differs(answer: &Value, expected: &str) -> Option<String> {
    let mut words = expected.split(' ');
    let first = words.next().expect("a name or a status");
    let found = match first.parse::<u64>() {
        Ok(status) => answer["status"] == status,
        Err(_name) => answer["status"] == 200 && answer["body"]["name"] == first,
    };
    if !found {
        return Some(first.to_owned());
    }
    let seen = |field: &str| match field {
        "path" => &answer["body"]["path"],
        field => &answer["body"]["headers"][field],
    };
    words.map(ToOwned::to_owned).find(|word| {
        let holds = if let Some(field) = word.strip_prefix(">!") {
            answer["headers"][field].is_null()
        } else if let Some(field) = word.strip_prefix('!') {
            seen(field).is_null()
        } else {
            let (field, value) = word.split_once('=').expect("FIELD=VALUE");
            match field.strip_prefix('>') {
                Some(field) => answer["headers"][field] == value,
                None => *seen(field) == value,
            }
        };
        !holds
    })
}

#[test]
fn the_mesh_cases_of_the_gateway_api() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _versions = versions(&mesh);
    let mut documents = MORE.to_owned();
    for case in CASES {
        documents.push_str(&service(case.service, HTTP));
        let name = format!("{}.of.shop", case.service);
        documents.push_str(&route("shop", &name, case.service, "", case.rules));
    }
    apply(&mesh, &documents);
    let all = CASES.iter().flat_map(|case| {
        let host = format!("{}.shop.mesh", case.service);
        let asked = case.asked.iter();
        asked.map(move |(asked, expected)| (host.clone(), *asked, *expected))
    });
    let all: Vec<(String, &str, &str)> = all.collect();
    let requests = all.iter().map(|(host, asked, _)| request(host, asked));
    let answers = ask(&mesh, "shop", &requests.collect::<Vec<_>>());
    let mut wrong = String::new();
    for ((host, asked, expected), answer) in all.iter().zip(&answers) {
        if let Some(part) = differs(&answer[0], expected) {
            let answer = &answer[0];
            writeln!(wrong, "{host} {asked}: no {part} of {expected} in {answer}").expect("text");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert_eq!(answers.len(), all.len());

    // What leads nowhere is said where the route is looked at.
    let shown = mesh.command("get httproutes dangling.of.shop -n shop -o json");
    let shown: Value = serde_json::from_str(&shown.success().stdout).expect("JSON");
    let parents = &shown["items"][0]["status"]["parents"];
    assert_eq!(parents[0]["conditions"][0]["status"], "True", "{shown}");
    let resolved = &parents[0]["conditions"][1];
    assert_eq!(resolved["type"], "ResolvedRefs");
    assert_eq!(resolved["status"], "False");
    assert_eq!(resolved["reason"], "BackendNotFound");
    assert_eq!(resolved["observedGeneration"], 1);
    let message = resolved["message"].as_str().expect("a message");
    assert!(
        message.contains("spec.rules[0].backendRefs[0]"),
        "{message}"
    );
    assert!(message.contains("shop/gone"), "{message}");
}

/// How often each backend answered.
fn names(answers: &[Value]) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for answer in answers {
        let name = answer["body"]["name"].as_str().unwrap_or_default();
        *found.entry(name.to_owned()).or_default() += 1;
    }
    found
}

#[test]
fn weights_ports_consumers_and_addresses() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _versions = versions(&mesh);
    let to = |backend: &str| {
        format!("[{{backendRefs: [{{name: {backend}, port: 8080, namespace: shop}}]}}]")
    };
    let weights = "[{backendRefs: [{name: v1, port: 8080, weight: 70}, {name: v2, port: 8080, weight: 30}, {name: gone, port: 80, weight: 0}]}]";
    let two = "[{port: 80, protocol: http}, {port: 81, protocol: http}]";
    let documents = [
        // MeshHTTPRouteWeight, MeshTrafficSplit
        service("weighted", HTTP),
        route("shop", "weighted", "weighted", "", weights),
        // MeshPorts, ParentRefPort
        service("ports", two),
        route("shop", "first", "ports", ", port: 80", &to("v1")),
        route("shop", "second", "ports", ", port: 81", &to("v2")),
        // MeshConsumerRoute
        service("consumed", HTTP),
        route("shop", "producer", "consumed", "", &to("v1")),
        route("lab", "consumer", "consumed", "", &to("v2")),
    ];
    apply(&mesh, &documents.concat());
    let shown = mesh.command("get services consumed -n shop -o json");
    let shown: Value = serde_json::from_str(&shown.success().stdout).expect("JSON");
    let address = shown["items"][0]["status"]["addresses"][0].as_str();
    let address = address.expect("an address").to_owned();
    let mut requests = vec![
        request("ports.shop.mesh", "GET /"),
        request("ports.shop.mesh:81", "GET /"),
        request("consumed.shop.mesh", "GET /"),
        // MeshClusterIPMatching
        request(&address, "GET /"),
        request("weighted.shop.mesh", "GET /"),
    ];
    requests[4]["times"] = json!(500);
    let of = |answers: &[Value]| names(answers).into_keys().collect::<Vec<_>>();
    let answers = ask(&mesh, "shop", &requests);
    let found: Vec<_> = answers[..4].iter().map(|answers| of(answers)).collect();
    assert_eq!(found, [["v1"], ["v2"], ["v1"], ["v1"]]);
    let weighted = names(&answers[4]);
    assert_eq!(weighted["v1"] + weighted["v2"], 500);
    // Five points either way of 500 requests are two and a half standard deviations: as often as the
    // conformance tests, it is tried again.
    let mut tries = vec![weighted];
    let within = |seen: &BTreeMap<String, usize>| (seen["v1"] as f64 / 500.0 - 0.7).abs() <= 0.05;
    while tries.len() < 10 && !tries.last().is_some_and(within) {
        tries.push(names(&ask(&mesh, "shop", &requests[4..])[0]));
    }
    assert!(tries.last().is_some_and(within), "{tries:?}");

    let answers = ask(&mesh, "lab", &requests);
    let found: Vec<_> = answers[..4].iter().map(|answers| of(answers)).collect();
    assert_eq!(found, [["v1"], ["v2"], ["v2"], ["v2"]]);

    // Taken away, the producer's is back for everybody.
    mesh.command("delete httproute consumer -n lab").success();
    wait_for("the consumer's route to be gone", LIMIT, || {
        let answers = ask(&mesh, "lab", &requests[2..3]);
        (of(&answers[0]) == ["v1"]).then_some(())
    });
}

#[test]
fn copies_are_sent_with_their_body() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _versions = versions(&mesh);
    let mirrored = "[{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 8080}}}], backendRefs: [{name: v1, port: 8080}]}]";
    let documents = [
        service("mirrored", HTTP),
        route("shop", "r", "mirrored", "", mirrored),
    ];
    apply(&mesh, &documents.concat());
    let mut requests = vec![request("mirrored.shop.mesh", "POST /copied")];
    requests[0]["times"] = json!(20);
    requests[0]["body"] = json!("x".repeat(50_000));
    let answers = ask(&mesh, "shop", &requests);
    assert_eq!(names(&answers[0]), [("v1".to_owned(), 20)].into());
    assert_eq!(
        answers[0][0]["body"]["body"].as_str().map(str::len),
        Some(50_000)
    );
    let count = request("v2.shop.mesh:8080", "GET /count");
    wait_for("every copy to be there", LIMIT, || {
        let answers = ask(&mesh, "shop", std::slice::from_ref(&count));
        (answers[0][0]["body"]["count"] == 20).then_some(())
    });
}

/// MESH-GRPC: MeshGRPCRouteWeight, MeshGRPCRouteRequestHeaderModifier, and matching.
#[test]
fn calls_go_where_their_routes_say() {
    need!("python:grpc");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let names = ["g1", "g2"];
    let _servers = names.map(|name| {
        let server = script("grpc_server.py").arg("50051");
        mesh.serve(name, &["50051:grpc"], server)
    });
    let filter = |via: &str| {
        format!(
            "filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-via, value: {via}}}]}}}}]"
        )
    };
    let documents = format!(
        "{}---\napiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\n\
         metadata: {{name: echo, namespace: shop}}\nspec:\n  \
         parentRefs: [{{group: '', kind: Service, name: echo}}]\n  rules:\n  \
         - matches: [{{method: {{service: weft.test.Echo, method: Unary}}, headers: [{{name: x-tenant, value: beta}}]}}]\n    \
         {}\n    backendRefs: [{{name: g2, port: 50051}}]\n  \
         - matches: [{{method: {{type: RegularExpression, service: 'weft\\..*'}}}}]\n    \
         {}\n    backendRefs: [{{name: g1, port: 50051, weight: 1}}, {{name: g2, port: 50051, weight: 0}}]\n",
        service("echo", "[{port: 50051, protocol: grpc}]"),
        filter("g2"),
        filter("g1"),
    );
    apply(&mesh, &documents);
    let call = |arguments: &[&str]| -> Value {
        let program = script("grpc_ask.py")
            .arg("echo.shop.mesh:50051")
            .args(arguments.iter().copied());
        let asking = Workload::new("asking").wait_for("g1").wait_for("g2");
        let printed = mesh.run_to_end(&asking, program, LIMIT).success().stdout;
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    };
    let via = |answer: &Value| answer["reply"]["metadata"]["x-via"].clone();
    let plain = call(&["weft.test.Echo/Unary"]);
    assert_eq!(via(&plain), "g1", "{plain}");
    let beta = call(&["weft.test.Echo/Unary", "x-tenant:beta"]);
    assert_eq!(via(&beta), "g2", "{beta}");
    // 12 is UNIMPLEMENTED: no rule takes it.
    let other = call(&["other.Service/Method"]);
    assert_eq!(other["code"], 12, "{other}");
    let details = other["details"].as_str().unwrap_or_default();
    assert!(details.contains("route-not-found"), "{other}");
}
