//! Documents, good and bad.

use std::collections::BTreeSet;

use super::*;

fn service(spec: &str) -> String {
    format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}\n"
    )
}

#[track_caller]
fn check(text: &str, path: &str, found: &str) {
    let problems = read("file.yaml", text).unwrap_err();
    let hit = problems
        .iter()
        .any(|p| p.path.contains(path) && p.found.contains(found));
    assert!(hit, "{path} {found} not in {problems:#?}");
}

#[test]
fn good_ones() {
    let text = service("{ports: [{port: 80, targetPort: 8080, protocol: http}]}");
    let documents = read("-", &text).unwrap();
    let value = documents[0].value.to_value();
    assert_eq!(Document::from_value(value).unwrap(), documents[0].value);
    let two = format!(
        "{text}---\napiVersion: weft-mesh.io/v1alpha1\nkind: MeshConfig\nmetadata: {{name: mesh, namespace: weft-system}}\nspec: {{unknownDestinations: refuse}}\n"
    );
    assert_eq!(read("-", &two).unwrap().len(), 2);
}

#[test]
fn the_examples_are_good() {
    let examples = [
        include_str!("../../../deploy/examples/service.yaml"),
        include_str!("../../../deploy/examples/mesh-config.yaml"),
        include_str!("../../../deploy/examples/traffic-policy.yaml"),
        include_str!("../../../deploy/examples/http-route.yaml"),
        include_str!("../../../deploy/examples/grpc-route.yaml"),
        include_str!("../../../deploy/examples/tcp-route.yaml"),
        include_str!("../../../deploy/examples/tls-route.yaml"),
        include_str!("../../../deploy/examples/rate-limit-policy.yaml"),
        include_str!("../../../deploy/examples/external-service.yaml"),
    ];
    let kinds: BTreeSet<String> = examples
        .into_iter()
        .flat_map(|text| read("-", text).unwrap())
        .map(|document| document.value.key().kind)
        .collect();
    assert_eq!(kinds.len(), KINDS.len(), "an example for every kind");
}

/// Policies with what is wrong with them: where, and what is found.
const POLICIES: &[(&str, &str, &str)] = &[
    (
        "loadBalancer: {type: maglev}",
        "spec.loadBalancer.hashOn",
        "nothing",
    ),
    (
        "loadBalancer: {hashOn: {source: {}}}",
        "spec.loadBalancer.hashOn",
        "a key",
    ),
    (
        "loadBalancer: {type: maglev, hashOn: {header: 'a b'}}",
        "spec.loadBalancer.hashOn.header",
        "a b",
    ),
    (
        "loadBalancer: {type: maglev, hashOn: {colour: x}}",
        "spec.loadBalancer.hashOn",
        "colour",
    ),
    (
        "circuitBreaker: {mode: maybe}",
        "spec.circuitBreaker.mode",
        "maybe",
    ),
    (
        "circuitBreaker: {failures: {statuses: [2xx]}}",
        "spec.circuitBreaker.failures.statuses[0]",
        "200",
    ),
    (
        "circuitBreaker: {failures: {statuses: [many]}}",
        "spec.circuitBreaker.failures.statuses[0]",
        "many",
    ),
    (
        "circuitBreaker: {service: {mode: observe}}",
        "spec.circuitBreaker.service.mode",
        "a value",
    ),
    (
        "circuitBreaker: {service: {failureRate: 7}}",
        "spec.circuitBreaker.service.failureRate",
        "7",
    ),
    (
        "circuitBreaker: {fallback: {response: {status: 99}}}",
        "spec.circuitBreaker.fallback.response.status",
        "99",
    ),
    (
        "circuitBreaker: {fallback: {backend: {name: X, port: 1}}}",
        "spec.circuitBreaker.fallback.backend",
        "X",
    ),
    (
        "limits: {pendingRequests: 1}",
        "spec.limits.pendingRequests",
        "1",
    ),
    ("limits: {connections: 0}", "spec.limits.connections", "0"),
    ("timeouts: {request: soon}", "spec.timeouts.request", "soon"),
    ("timeouts: {request: -1s}", "spec.timeouts.request", "-1s"),
    ("timeouts: {request: 0s}", "spec.timeouts.request", "0"),
    (
        "timeouts: {request: 1s, perTry: 2s}",
        "spec.timeouts.perTry",
        "2s",
    ),
    (
        "circuitBreaker: {failureRate: 1.5}",
        "spec.circuitBreaker.failureRate",
        "1.5",
    ),
    (
        "circuitBreaker: {window: {count: 1, time: 1s}}",
        "spec.circuitBreaker.window",
        "",
    ),
    (
        "loadBalancer: {type: fair}",
        "spec.loadBalancer.type",
        "fair",
    ),
    ("retry: {attempts: 99}", "spec.retry.attempts", "99"),
    (
        "retry: {statuses: [503, 503]}",
        "spec.retry.statuses[1]",
        "503 again",
    ),
    (
        "circuitBreaker: {failures: {statuses: [-1]}}",
        "spec.circuitBreaker.failures.statuses[0]",
        "-1",
    ),
    (
        "circuitBreaker: {fallback: {response: {status: 200, x: 1}}}",
        "spec.circuitBreaker.fallback.response.x",
        "unknown",
    ),
    (
        "circuitBreaker: {fallback: {response: {status: 200, contentType: \"a\\nb\"}}}",
        "spec.circuitBreaker.fallback.response.contentType",
        "a",
    ),
    (
        "loadBalancer: {panicThreshold: 2}",
        "spec.loadBalancer.panicThreshold",
        "2",
    ),
    ("healthCheck: {}", "spec.healthCheck", "nothing"),
    (
        "healthCheck: {tcp: {}, grpc: {}}",
        "spec.healthCheck",
        "grpc and tcp",
    ),
    ("healthCheck: {ping: {}}", "spec.healthCheck", "unknown"),
    (
        "healthCheck: {http: {}}",
        "spec.healthCheck.http.path",
        "nothing",
    ),
    (
        "healthCheck: {http: {path: x}}",
        "spec.healthCheck.http.path",
        "x",
    ),
    (
        "healthCheck: {http: {path: /, expectedStatuses: [1xx]}}",
        "spec.healthCheck.http.expectedStatuses[0]",
        "100",
    ),
    (
        "healthCheck: {http: {path: /, headers: [{name: 'a b', value: c}]}}",
        "spec.healthCheck.http.headers[0]",
        "a b",
    ),
    (
        "healthCheck: {http: {path: /, headers: [{name: host, value: c}]}}",
        "spec.healthCheck.http.headers[0].name",
        "host",
    ),
    (
        "healthCheck: {tcp: {}, interval: 1ms}",
        "spec.healthCheck.interval",
        "1ms",
    ),
    (
        "healthCheck: {tcp: {}, unhealthyThreshold: 0}",
        "spec.healthCheck.unhealthyThreshold",
        "0",
    ),
    (
        "healthCheck: {tcp: {}, initialState: ill}",
        "spec.healthCheck.initialState",
        "ill",
    ),
    ("retry: {atempts: 1}", "spec.retry", "unknown"),
    ("hedge: {}", "spec.hedge", "neither"),
    ("hedge: {delay: 1s, percentile: 95}", "spec.hedge", "both"),
    (
        "hedge: {delay: 1s, minDelay: 1s}",
        "spec.hedge.minDelay",
        "a time",
    ),
    ("hedge: {delay: 0s}", "spec.hedge.delay", "0"),
    ("hedge: {percentile: 101}", "spec.hedge.percentile", "101"),
    (
        "hedge: {percentile: 95, maxAttempts: 4}",
        "spec.hedge.maxAttempts",
        "4",
    ),
    (
        "hedge: {delay: 1s, methods: [GET, POST]}",
        "spec.hedge.methods[1]",
        "POST",
    ),
    (
        "hedge: {delay: 1s, methods: ['G T']}",
        "spec.hedge.methods[0]",
        "G T",
    ),
    (
        "hedge: {delay: 1s, grpcMethods: [Get]}",
        "spec.hedge.grpcMethods[0]",
        "Get",
    ),
    (
        "hedge: {delay: 1s}, timeouts: {perTry: 500ms}",
        "spec.hedge.delay",
        "1s",
    ),
    ("timeouts: {idle: 500ms}", "spec.timeouts.idle", "500ms"),
    (
        "timeouts: {streamIdle: 0s}",
        "spec.timeouts.streamIdle",
        "0",
    ),
    (
        "retry: {budget: {ratio: -1}}",
        "spec.retry.budget.ratio",
        "",
    ),
    (
        "circuitBreaker: {enabled: false, route: {failureRate: 2}}",
        "spec.circuitBreaker.route.failureRate",
        "2",
    ),
    (
        "circuitBreaker: {route: {mode: observe}}",
        "spec.circuitBreaker.route.mode",
        "a value",
    ),
];

#[test]
fn policies_are_read_strictly() {
    let policy = |rest: &str| {
        format!(
            "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{targetRef: {{kind: Service, name: web}}, {rest}}}\n"
        )
    };
    for good in [
        "circuitBreaker: {window: {count: 10}, openTime: 1500ms}",
        "circuitBreaker: {failures: {statuses: [5xx, 429, 400-404]}, service: {failureRate: 0.9}}",
        "loadBalancer: {type: ringHash, hashOn: {cookie: {name: stick, ttl: 1h}}, preferZone: true}",
        "loadBalancer: {type: maglev, hashOn: {source: {}}, slowStart: 30s}",
        "hedge: {percentile: 99.5, minDelay: 5ms, maxAttempts: 3, methods: [PUT], grpcMethods: [a.B/C]}",
        "hedge: {delay: 50ms}, timeouts: {idle: 1m, streamIdle: 30s}",
        "healthCheck: {tcp: {}, interval: 1s}, loadBalancer: {panicThreshold: 0.5}",
        "healthCheck: {grpc: {}, initialState: unhealthy}, circuitBreaker: {enabled: false}",
        "healthCheck: {http: {path: /x?y=z, host: h, expectedStatuses: [204, 3xx], headers: [{name: a, value: b}]}}",
    ] {
        let document = read("-", &policy(good)).unwrap().remove(0).value;
        assert_eq!(Document::from_value(document.to_value()).unwrap(), document);
    }
    for (rest, path, found) in POLICIES {
        check(&policy(rest), path, found);
    }
}

fn route(kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: shop}}\nspec: {spec}\n"
    )
}

/// Rules with what is wrong with them: where, and what is found.
const RULES: &[(&str, &str, &str)] = &[
    (
        "{backendRefs: [{name: web}]}",
        "spec.rules[0].backendRefs[0].port",
        "nothing",
    ),
    (
        "{backendRefs: [{name: web, port: 0}]}",
        "backendRefs[0].port",
        "0",
    ),
    (
        "{backendRefs: [{name: web, port: 80, weight: -1}]}",
        "backendRefs[0].weight",
        "-1",
    ),
    (
        "{backendRefs: [{kind: Pod, name: web, port: 80}]}",
        "backendRefs[0]",
        "Pod",
    ),
    (
        "{matches: [{path: {value: x}}]}",
        "matches[0].path.value",
        "x",
    ),
    (
        "{matches: [{path: {type: RegularExpression, value: '('}}]}",
        "matches[0].path.value",
        "(",
    ),
    (
        "{matches: [{path: {type: Suffix, value: /x}}]}",
        "matches[0].path.type",
        "Suffix",
    ),
    (
        "{matches: [{headers: [{name: 'a b', value: x}]}]}",
        "headers[0].name",
        "a b",
    ),
    (
        "{matches: [{headers: [{name: a, value: x}, {name: A, value: z}]}]}",
        "headers[1].name",
        "again",
    ),
    (
        "{matches: [{method: CONNECT}]}",
        "rules[0].matches[0].method",
        "CONNECT",
    ),
    ("{matches: [{colour: red}]}", "matches[0].colour", "unknown"),
    ("{timeouts: {request: 1 s}}", "timeouts.request", "1 s"),
    (
        "{timeouts: {request: 1s, backendRequest: 2s}}",
        "timeouts.backendRequest",
        "2s",
    ),
    ("{retry: {codes: [200]}}", "retry.codes[0]", "200"),
    ("{retry: {attempts: 99}}", "retry.attempts", "99"),
    ("{sessionPersistence: {}}", "sessionPersistence", ""),
    (
        "{filters: [{type: URLRewrite}]}",
        "filters[0].urlRewrite",
        "nothing",
    ),
    (
        "{filters: [{type: Teleport}]}",
        "filters[0].type",
        "Teleport",
    ),
    (
        "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Host, value: x}]}}]}",
        "set[0].name",
        "host",
    ),
    (
        "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: weft-reason, value: x}]}}]}",
        "set[0].name",
        "weft-reason",
    ),
    (
        "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Forwarded-Client-Cert, value: x}]}}]}",
        "requestHeaderModifier.set[0].name",
        "x-forwarded-client-cert",
    ),
    (
        "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: x_forwarded_client_cert, value: x}]}}]}",
        "requestHeaderModifier.add[0].name",
        "x_forwarded_client_cert",
    ),
    (
        "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: weft_deadline, value: '5'}]}}]}",
        "requestHeaderModifier.set[0].name",
        "weft_deadline",
    ),
    (
        "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [weft.hops]}}]}",
        "requestHeaderModifier.remove[0]",
        "weft.hops",
    ),
    (
        "{filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: weft_reason, value: fake}]}}]}",
        "responseHeaderModifier.set[0].name",
        "weft_reason",
    ),
    (
        "{backendRefs: [{name: web, port: 80, filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: weft_reason, value: fake}]}}]}]}",
        "backendRefs[0].filters[0].responseHeaderModifier.add[0].name",
        "weft_reason",
    ),
    (
        "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [a, A]}}]}",
        "remove[1]",
        "again",
    ),
    (
        "{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 200}}]}",
        "filters[0].requestRedirect",
        "200",
    ),
    (
        "{filters: [{type: RequestRedirect, requestRedirect: {hostname: 'a:80'}}]}",
        "filters[0].requestRedirect",
        "a:80",
    ),
    (
        "{filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: x}}}]}",
        "filters[0].requestRedirect",
        "x",
    ),
    (
        "{filters: [{type: CORS, cors: {}}, {type: CORS, cors: {}}]}",
        "filters[1].type",
        "CORS again",
    ),
    (
        "{filters: [{type: CORS, cors: {}, urlRewrite: {}}]}",
        "filters[0].urlRewrite",
        "beside the type CORS",
    ),
    (
        "{filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /a, replacePrefixMatch: /b}}}]}",
        "urlRewrite.path.replacePrefixMatch",
        "beside the type ReplaceFullPath",
    ),
    ("{name: 'A b'}", "rules[0].name", "A b"),
    ("{name: v1.}", "rules[0].name", "v1."),
    ("{name: one.a}, {name: one.a}", "rules[1].name", "again"),
];

/// Whole routes.
const ROUTES: &[(&str, &str, &str)] = &[
    ("{rules: []}", "spec.parentRefs", "none"),
    (
        "{parentRefs: [{name: gateway}]}",
        "spec.parentRefs[0]",
        "Gateway",
    ),
    (
        "{parentRefs: [{group: '', kind: Service, name: web, sectionName: http}]}",
        "spec.parentRefs[0].sectionName",
        "",
    ),
    (
        "{parentRefs: [{group: '', kind: Service, name: web}], hostnames: [a]}",
        "spec.hostnames",
        "",
    ),
];

#[test]
fn routes_are_read_strictly() {
    let rule = |rule: &str| {
        let parents = "parentRefs: [{group: '', kind: Service, name: web}]";
        route("HTTPRoute", &format!("{{{parents}, rules: [{rule}]}}"))
    };
    let good = rule("{backendRefs: [{name: web, port: 80}]}");
    let document = read("-", &good).unwrap().remove(0).value;
    assert_eq!(Document::from_value(document.to_value()).unwrap(), document);
    for (text, path, found) in RULES {
        check(&rule(text), path, found);
    }
    for (text, path, found) in ROUTES {
        check(&route("HTTPRoute", text), path, found);
    }
    check(
        &route(
            "GRPCRoute",
            "{parentRefs: [{group: '', kind: Service, name: web}], rules: [{matches: [{method: {type: RegularExpression, service: '('}}]}]}",
        ),
        "rules[0].matches[0].method",
        "(",
    );
    for (method, path, found) in [
        ("{service: 'shop/Orders'}", "method.service", "shop/Orders"),
        (
            "{service: shop.Orders, method: Get/All}",
            "method.method",
            "Get/All",
        ),
        ("{method: 7up}", "method.method", "7up"),
        ("{}", "method", "neither"),
    ] {
        let spec = format!(
            "{{parentRefs: [{{group: '', kind: Service, name: web}}], rules: [{{matches: [{{method: {method}}}]}}]}}"
        );
        check(&route("GRPCRoute", &spec), path, found);
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of settings and refusals")]
fn settings_and_grants_are_read_strictly() {
    let config = |spec: &str| {
        format!(
            "apiVersion: weft-mesh.io/v1alpha1\nkind: MeshConfig\nmetadata: {{name: mesh, namespace: weft-system}}\nspec: {spec}\n"
        )
    };
    let many: Vec<String> = (0..300)
        .map(|n| format!("10.{}.{}.0/24", n / 256, n % 256))
        .collect();
    for (spec, path, found) in [
        (
            "{unknownDestinations: maybe}",
            "spec.unknownDestinations",
            "maybe",
        ),
        (
            "{workloadRanges: [10.0.0.0/40]}",
            "spec.workloadRanges[0]",
            "10.0.0.0/40",
        ),
        (
            "{workloadRanges: [10.0.0.0/8, 10.0.0.0/8]}",
            "spec.workloadRanges[1]",
            "again",
        ),
        (
            "{namespaces: {Shop: {unknownDestinations: refuse}}}",
            "spec.namespaces",
            "Shop",
        ),
        (
            &*format!("{{workloadRanges: {many:?}}}"),
            "spec.workloadRanges",
            "300",
        ),
    ] {
        check(&config(spec), path, found);
    }
    let grant = |spec: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let from = "{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: lab}";
    let to = "{group: '', kind: Service}";
    let good = grant(&format!("{{from: [{from}], to: [{to}]}}"));
    assert_eq!(read("-", &good).unwrap().len(), 1);
    for (spec, path, found) in [
        (format!("{{from: [], to: [{to}]}}"), "spec.from", "none"),
        (
            format!("{{from: [{from}, {from}], to: [{to}]}}"),
            "spec.from[1]",
            "again",
        ),
        (
            format!("{{from: [{from}], to: [{to}, {to}]}}"),
            "spec.to[1]",
            "again",
        ),
        (
            format!("{{from: [{}], to: [{to}]}}", from.replace("lab", "Lab")),
            "spec.from[0].namespace",
            "Lab",
        ),
        (
            format!("{{from: [{}], to: [{to}]}}", vec![from; 17].join(", ")),
            "spec.from",
            "17 of them",
        ),
        (
            format!("{{from: [{from}], to: [{{group: '', kind: Service, name: A}}]}}"),
            "spec.to[0].name",
            "A",
        ),
        (
            format!("{{from: [{from}], to: [{{group: '', kind: Secret}}]}}"),
            "spec.to[0]",
            "Secret",
        ),
    ] {
        check(&grant(&spec), path, found);
    }
}

#[test]
fn bad_ones() {
    check("a: [", "(input)", "");
    check("", "(input)", "0 documents");
    check(&"#".repeat(INPUT_MAX_BYTES + 1), "(input)", "bytes");
    check(&service("{ports: [{port: 80}], x: 1}"), "spec.x", "unknown");
    check(
        &service("{ports: [{port: 80, colour: red}]}"),
        "spec.ports",
        "unknown",
    );
    check(
        &service("{ports: [{port: eighty}]}"),
        "spec.ports[0].port",
        "eighty",
    );
    check(
        &service("{ports: [{port: 70000}]}"),
        "spec.ports[0].port",
        "70000",
    );
    check(&service("{ports: [{port: 0}]}"), "spec.ports[0].port", "0");
    check(
        &service("{ports: [{port: 1}, {port: 1}]}"),
        "spec.ports[1]",
        "second",
    );
    check(
        &service("{ports: [{port: 1, protocol: carrier-pigeon}]}"),
        "spec.ports[0].protocol",
        "pigeon",
    );
    check(&service("{ports: []}"), "spec.ports", "0 ports");
    check(&service("{}"), "spec.ports", "nothing");
    let text = service("{ports: [{port: 1}]}");
    check(&text.replace("Service", "Servise"), "kind", "Servise");
    check(&text.replace("v1alpha1", "v9"), "apiVersion", "v9");
    check(
        &text.replace("name: web", "name: Web!"),
        "metadata.name",
        "Web!",
    );
    check(
        &format!("{text}---\n{text}"),
        "metadata.name",
        "second time",
    );
}

#[test]
fn a_policy_spelled_out_is_the_same_policy() {
    let example = include_str!("../../../deploy/examples/traffic-policy.yaml");
    let Document::TrafficPolicy(name, spec) = read("-", example).unwrap().remove(0).value else {
        panic!("another kind");
    };
    let keyed = policy_spec("loadBalancer: {type: maglev, hashOn: {cookie: {name: a, ttl: 1h}}}");
    let other = policy_spec(
        "circuitBreaker: {enabled: false, mode: observe, fallback: {backend: {name: b, port: 1}}}",
    );
    let tcp = policy_spec("healthCheck: {tcp: {}}, loadBalancer: {panicThreshold: 0.3}");
    let grpc = policy_spec("healthCheck: {grpc: {service: a.B}, initialState: unhealthy}");
    let hedged = policy_spec(
        "hedge: {percentile: 95, grpcMethods: [a.B/*]}, timeouts: {idle: 9s, streamIdle: 8s}",
    );
    for spec in [*spec, keyed, other, tcp, grpc, hedged] {
        let policy = spec.resolve(&name.namespace);
        let mut spelled = spelled_out(&policy);
        spelled["targetRef"] = serde_json::to_value(&spec.target_ref).unwrap();
        let again: TrafficPolicySpec = serde_json::from_value(spelled).unwrap();
        assert_eq!(again.resolve(&name.namespace), policy);
    }
}

fn policy_spec(rest: &str) -> TrafficPolicySpec {
    let text = format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{targetRef: {{kind: Service, name: web}}, {rest}}}\n"
    );
    let Document::TrafficPolicy(_, spec) = read("-", &text).unwrap().remove(0).value else {
        panic!("another kind");
    };
    *spec
}

/// What the document is attached to and what it names.
#[track_caller]
fn relations(text: &str) -> Relations {
    read("-", text).unwrap().remove(0).value.relations()
}

fn to_service(service: &str, port: u16) -> Reference {
    Reference::Service {
        service: service.parse().unwrap(),
        port,
    }
}

fn attachment(service: &str, external: bool, port: Option<u16>) -> Attachment {
    Attachment {
        service: service.parse().unwrap(),
        external,
        port,
    }
}

#[test]
fn routes_name_parents_backends_mirrors_faults_and_grants() {
    let Relations {
        attachments,
        references,
    } = relations(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: shop}
spec:
  parentRefs:
    - {group: "", kind: Service, name: web, port: 80}
    - {group: weft-mesh.io, kind: ExternalService, name: api}
  rules:
    - filters:
        - type: RequestMirror
          requestMirror: {backendRef: {name: shadow, namespace: lab, port: 80}}
        - type: ExtensionRef
          extensionRef: {group: weft-mesh.io, kind: FaultInjection, name: slow}
      backendRefs:
        - {name: web, port: 80}
        - {name: web-v2, port: 80}
        - {name: web, port: 80, weight: 2}
"#,
    );
    assert_eq!(
        attachments,
        [
            attachment("shop/web", false, Some(80)),
            attachment("shop/api", true, None)
        ]
    );
    assert_eq!(
        references,
        [
            to_service("lab/shadow", 80),
            to_service("shop/web", 80),
            to_service("shop/web-v2", 80),
            Reference::Fault(ObjectName {
                namespace: "shop".to_owned(),
                name: "slow".to_owned(),
            }),
            Reference::Grants("lab".to_owned()),
        ]
    );
}

#[test]
fn policies_name_targets_and_fallbacks() {
    let Relations {
        attachments,
        references,
    } = relations(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {name: web, namespace: shop}\n\
         spec: {targetRef: {kind: Service, name: web, port: 80}, \
         circuitBreaker: {fallback: {backend: {name: spare, port: 80}}}}\n",
    );
    assert_eq!(attachments, [attachment("shop/web", false, Some(80))]);
    assert_eq!(references, [to_service("shop/spare", 80)]);
    let none = relations(&service("{ports: [{port: 80}]}"));
    assert_eq!(none, Relations::default());
}

#[test]
fn kinds_as_people_write_them() {
    for kind in KINDS {
        for text in [kind.name, kind.plural, &kind.name.to_lowercase()] {
            assert_eq!(Kind::parse(text).unwrap().name, kind.name, "{text}");
        }
        assert_eq!(Kind::find(kind.name).unwrap().version, kind.version);
    }
    for text in ["", "policy", "s", "httprouteses"] {
        assert!(Kind::parse(text).is_none(), "{text}");
    }
}
