//! Bad policy of every sort: refused with file, field, what was found and what is allowed, by
//! `weft validate` and by `weft apply` alike; what was applied before stays in force, and what leads
//! nowhere harms nothing else.

#![expect(
    clippy::too_many_lines,
    reason = "tables, a line for each sort of bad policy"
)]

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Bed, Load, Machine, Mesh, Workload, need, script, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

/// A document that is refused, and where, for what found, with what allowed.
struct Bad {
    what: &'static str,
    text: String,
    parts: [&'static str; 3],
}

fn bad(what: &'static str, text: impl Into<String>, parts: [&'static str; 3]) -> Bad {
    let text = text.into();
    Bad { what, text, parts }
}

const GATEWAY: &str = "gateway.networking.k8s.io/v1";
const OURS: &str = "weft-mesh.io/v1alpha1";

fn document(version: &str, kind: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: {version}\nkind: {kind}\n\
         metadata: {{name: bad, namespace: shop}}\nspec: {spec}\n"
    )
}

const PARENT: &str = "parentRefs: [{group: '', kind: Service, name: web}]";

/// A route of a kind for `web`.
fn route(kind: &str, rest: &str) -> String {
    let version = match kind {
        "TCPRoute" => "gateway.networking.k8s.io/v1alpha2",
        _ => GATEWAY,
    };
    document(version, kind, &format!("{{{PARENT}, {rest}}}"))
}

/// An HTTPRoute with one rule.
fn rule(rule: &str) -> String {
    route("HTTPRoute", &format!("rules: [{rule}]"))
}

fn policy(rest: &str) -> String {
    let target = "targetRef: {kind: Service, name: web}";
    document(OURS, "TrafficPolicy", &format!("{{{target}, {rest}}}"))
}

fn config(spec: &str) -> String {
    document(OURS, "MeshConfig", spec).replace(
        "{name: bad, namespace: shop}",
        "{name: mesh, namespace: weft-system}",
    )
}

fn grant(spec: &str) -> String {
    document(GATEWAY, "ReferenceGrant", spec)
}

fn fault(spec: &str) -> String {
    document(OURS, "FaultInjection", spec)
}

const BACKENDS: &str = "rules[0].backendRefs[0]";
const TO_WEB: &str = "{backendRefs: [{name: web, port: 8080}]}";

/// What is no document of any kind.
fn shapes() -> Vec<Bad> {
    let good = rule(TO_WEB);
    let many = "---\nkind: Service\n".repeat(1001);
    vec![
        bad(
            "malformed",
            good.replace("kind: HTTPRoute", "kind: [HTTPRoute"),
            ["(input)", "line 4", "well-formed YAML"],
        ),
        bad(
            "a field twice",
            rule("{name: a, name: b}"),
            ["(input)", "duplicate mapping key: name", "each field once"],
        ),
        bad(
            "a text",
            "hello\n",
            ["(document)", "\"hello\"", "NAME: VALUE"],
        ),
        bad(
            "a list",
            "[a, b]\n",
            ["(document)", "a list", "apiVersion, kind"],
        ),
        bad("nothing", "", ["(input)", "0 documents", "1 to 1000"]),
        bad("too many", many, ["(input)", "1001 documents", "1 to 1000"]),
        bad(
            "too large",
            format!("{good}# {}\n", "x".repeat(5 << 20)),
            ["bad.yaml", "4 MiB", "4 MiB at most"],
        ),
        bad(
            "an unknown kind",
            good.replace("HTTPRoute", "HttpRoute"),
            ["kind:", "\"HttpRoute\"", "HTTPRoute, GRPCRoute"],
        ),
        bad(
            "an unknown version",
            good.replace(GATEWAY, "gateway.networking.k8s.io/v7"),
            ["apiVersion:", "v7", "gateway.networking.k8s.io/v1"],
        ),
        bad(
            "a version of another kind",
            policy("retry: {attempts: 1}").replace(OURS, GATEWAY),
            ["apiVersion:", GATEWAY, OURS],
        ),
        bad(
            "no spec",
            good.split("spec:").next().expect("what is before it"),
            ["spec:", "nothing", "required"],
        ),
        bad(
            "a spec of another shape",
            document(GATEWAY, "HTTPRoute", "7"),
            ["spec:", "`7`", "NAME: VALUE"],
        ),
        bad(
            "no name",
            good.replace("name: bad, ", ""),
            ["metadata.name", "nothing", "required"],
        ),
        bad(
            "a name that is none",
            good.replace("name: bad", "name: Bad_1"),
            ["metadata.name", "\"Bad_1\"", "1 to 253 of a-z"],
        ),
        bad(
            "a name that is too long",
            good.replace("name: bad", &format!("name: {}", "x".repeat(254))),
            ["metadata.name", "xxx", "1 to 253 of a-z"],
        ),
        bad(
            "the same twice",
            good.repeat(2),
            ["metadata.name", "a second time", "each resource once"],
        ),
        bad(
            "an unknown field of the document",
            good.replace("spec:", "specs: 1\nspec:"),
            [
                "specs",
                "an unknown field",
                "apiVersion, kind, metadata, spec",
            ],
        ),
    ]
}

fn http_routes() -> Vec<Bad> {
    let rules = |count: usize| {
        route(
            "HTTPRoute",
            &format!("rules: [{}]", vec!["{}"; count].join(", ")),
        )
    };
    let header = |value: &str| {
        rule(&format!(
            "{{matches: [{{headers: [{{name: a, value: '{value}'}}]}}]}}"
        ))
    };
    let filter = |filter: &str| rule(&format!("{{filters: [{filter}]}}"));
    vec![
        bad(
            "unknown field",
            rule("{backends: []}"),
            [
                "spec.rules[0].backends",
                "an unknown field",
                "backendRefs, filters, matches",
            ],
        ),
        bad(
            "unknown field deep down",
            rule("{matches: [{path: {kind: Exact}}]}"),
            [
                "spec.rules[0].matches[0].path.kind",
                "an unknown field",
                "type, value",
            ],
        ),
        bad(
            "wrong type",
            rule("{backendRefs: [{name: web, port: eighty}]}"),
            [
                "spec.rules[0].backendRefs[0].port",
                "\"eighty\"",
                "1 to 65535",
            ],
        ),
        bad(
            "a scalar for a list",
            route("HTTPRoute", "rules: 7"),
            ["spec.rules", "`7`", "a list"],
        ),
        bad(
            "out of range",
            rule("{backendRefs: [{name: web, port: 70000}]}"),
            ["spec.rules[0].backendRefs[0].port", "70000", "1 to 65535"],
        ),
        bad(
            "a weight below nothing",
            rule("{backendRefs: [{name: web, port: 8080, weight: -1}]}"),
            [BACKENDS, "-1", "0 to 1000000"],
        ),
        bad(
            "a weight beyond reason",
            rule("{backendRefs: [{name: web, port: 8080, weight: 99999999999}]}"),
            [BACKENDS, "99999999999", "0 to 1000000"],
        ),
        bad(
            "no port",
            rule("{backendRefs: [{name: web}]}"),
            [
                "spec.rules[0].backendRefs[0].port",
                "nothing",
                "a port of the Service",
            ],
        ),
        bad(
            "another kind of backend",
            rule("{backendRefs: [{kind: Pod, name: web, port: 80}]}"),
            [BACKENDS, "Pod", "kind Service"],
        ),
        bad(
            "an unknown method",
            rule("{matches: [{method: FETCH}]}"),
            ["spec.rules[0].matches[0].method", "FETCH", "GET"],
        ),
        bad(
            "a path that is none",
            rule("{matches: [{path: {value: /a/../b}}]}"),
            [
                "spec.rules[0].matches[0].path.value",
                "/a/../b",
                "begins with /",
            ],
        ),
        bad(
            "a pattern that is none",
            rule("{matches: [{path: {type: RegularExpression, value: '('}}]}"),
            [
                "spec.rules[0].matches[0].path.value",
                "unclosed group",
                "RE2 syntax",
            ],
        ),
        bad(
            "a pattern that is far too large",
            rule("{matches: [{path: {type: RegularExpression, value: 'a{1000}{1000}'}}]}"),
            [
                "spec.rules[0].matches[0].path.value",
                "size limit",
                "RE2 syntax",
            ],
        ),
        bad(
            "a value that is far too large",
            header(&"x".repeat(5000)),
            [
                "spec.rules[0].matches[0].headers[0].value",
                "5000 characters",
                "4096 at most",
            ],
        ),
        bad(
            "too many rules",
            rules(17),
            ["spec.rules", "17 of them", "16 at most"],
        ),
        bad(
            "a field matched twice",
            rule("{matches: [{headers: [{name: a, value: x}, {name: A, value: z}]}]}"),
            ["headers[1].name", "a again", "each field once"],
        ),
        bad(
            "a name twice",
            route("HTTPRoute", "rules: [{name: a}, {name: a}]"),
            ["spec.rules[1].name", "a again", "each name once"],
        ),
        bad(
            "a parent twice",
            document(
                GATEWAY,
                "HTTPRoute",
                "{parentRefs: [{group: '', kind: Service, name: web}, {group: '', kind: Service, name: web}]}",
            ),
            ["spec.parentRefs[1]", "again", "each once"],
        ),
        bad(
            "no parent",
            document(GATEWAY, "HTTPRoute", "{rules: []}"),
            ["spec.parentRefs", "none", "kind: Service"],
        ),
        bad(
            "a gateway",
            document(GATEWAY, "HTTPRoute", "{parentRefs: [{name: front}]}"),
            ["spec.parentRefs[0]", "Gateway", "kind Service"],
        ),
        bad(
            "hostnames",
            route("HTTPRoute", "hostnames: [a.example]"),
            ["spec.hostnames", "a value", "nothing: a route of a Service"],
        ),
        bad(
            "a redirect beside backends",
            rule(
                "{filters: [{type: RequestRedirect, requestRedirect: {port: 81}}], backendRefs: [{name: web, port: 8080}]}",
            ),
            [
                "spec.rules[0].backendRefs",
                "beside a RequestRedirect",
                "none",
            ],
        ),
        bad(
            "a redirect and a rewrite",
            filter(
                "{type: RequestRedirect, requestRedirect: {port: 81}}, {type: URLRewrite, urlRewrite: {hostname: a}}",
            ),
            [
                "spec.rules[0].filters",
                "2 of URLRewrite and RequestRedirect",
                "one of them",
            ],
        ),
        bad(
            "a filter without its part",
            filter("{type: RequestMirror}"),
            [
                "filters[0].requestMirror",
                "nothing",
                "the type asks for it",
            ],
        ),
        bad(
            "a filter with another's part",
            filter("{type: CORS, cors: {}, requestMirror: {backendRef: {name: web, port: 80}}}"),
            [
                "filters[0].requestMirror",
                "beside the type CORS",
                "only what the type names",
            ],
        ),
        bad(
            "a filter twice",
            filter("{type: CORS, cors: {}}, {type: CORS, cors: {}}"),
            ["filters[1].type", "CORS again", "once in a rule"],
        ),
        bad(
            "an unknown filter",
            filter("{type: Teleport}"),
            ["filters[0].type", "Teleport", "RequestMirror"],
        ),
        bad(
            "more than all",
            filter(
                "{type: RequestMirror, requestMirror: {percent: 101, backendRef: {name: web, port: 80}}}",
            ),
            ["requestMirror.percent", "101", "0 to 100"],
        ),
        bad(
            "more than there are",
            filter(
                "{type: RequestMirror, requestMirror: {fraction: {numerator: 3, denominator: 2}, backendRef: {name: web, port: 80}}}",
            ),
            ["requestMirror.fraction", "3 of 2", "0 to all of them"],
        ),
        bad(
            "two shares",
            filter(
                "{type: RequestMirror, requestMirror: {percent: 1, fraction: {numerator: 1}, backendRef: {name: web, port: 80}}}",
            ),
            ["requestMirror", "percent and fraction", "one of them"],
        ),
        bad(
            "a status that is no redirect",
            filter("{type: RequestRedirect, requestRedirect: {statusCode: 200}}"),
            ["requestRedirect.statusCode", "200", "301, 302, 303, 307"],
        ),
        bad(
            "an origin that is none",
            filter("{type: CORS, cors: {allowOrigins: [shop.example]}}"),
            [
                "cors.allowOrigins[0]",
                "shop.example",
                "https://shop.example",
            ],
        ),
        bad(
            "a prefix where none is matched",
            rule(
                "{matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]}",
            ),
            [
                "replacePrefixMatch",
                "beside a match without a prefix",
                "PathPrefix",
            ],
        ),
        bad(
            "a rewrite to a relative path",
            filter(
                "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: b}}}",
            ),
            ["urlRewrite.path.replaceFullPath", "\"b\"", "begins with /"],
        ),
        bad(
            "a rewrite to a path with a query",
            filter(
                "{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: '/b?c'}}}",
            ),
            ["urlRewrite.path.replacePrefixMatch", "/b?c", "without"],
        ),
        bad(
            "a redirection to a path with half an escape",
            rule(
                "{filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: '/%a'}}}]}",
            ),
            ["requestRedirect.path.replaceFullPath", "/%a", "escapes"],
        ),
        bad(
            "a rewrite to a host with a port",
            filter("{type: URLRewrite, urlRewrite: {hostname: 'a.example:80'}}"),
            ["urlRewrite.hostname", "a.example:80", "without port"],
        ),
        bad(
            "a field of the mesh",
            filter(
                "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: weft-reason, value: x}]}}",
            ),
            ["set[0].name", "weft-reason", "not the mesh's"],
        ),
        bad(
            "a time that is none",
            rule("{timeouts: {request: soon}}"),
            ["spec.rules[0].timeouts.request", "\"soon\"", "a time as in"],
        ),
        bad(
            "an attempt longer than the request",
            rule("{timeouts: {request: 1s, backendRequest: 2s}}"),
            [
                "spec.rules[0].timeouts.backendRequest",
                "2s",
                "at most timeouts.request",
            ],
        ),
        bad(
            "too many attempts",
            rule("{retry: {attempts: 99}}"),
            ["spec.rules[0].retry.attempts", "99", "0 to 10"],
        ),
        bad(
            "a wait of days",
            rule("{retry: {backoff: 30h}}"),
            ["spec.rules[0].retry.backoff", "1080000s", "up to a day"],
        ),
        bad(
            "a success to repeat on",
            rule("{retry: {codes: [200]}}"),
            ["spec.rules[0].retry.codes[0]", "200", "500 to 599"],
        ),
    ]
}

fn other_routes() -> Vec<Bad> {
    let call = |method: &str| {
        route(
            "GRPCRoute",
            &format!("rules: [{{matches: [{{method: {method}}}]}}]"),
        )
    };
    let tls = |rest: &str| route("TLSRoute", rest);
    let to_web = "rules: [{backendRefs: [{name: web, port: 8080}]}]";
    vec![
        bad(
            "a service that is none",
            call("{service: shop/Orders}"),
            [
                "spec.rules[0].matches[0].method.service",
                "shop/Orders",
                "as in shop.Orders",
            ],
        ),
        bad(
            "neither service nor method",
            call("{}"),
            [
                "spec.rules[0].matches[0].method",
                "neither",
                "service, method or both",
            ],
        ),
        bad(
            "a pattern that is none",
            call("{type: RegularExpression, service: '('}"),
            [
                "spec.rules[0].matches[0].method",
                "unclosed group",
                "RE2 syntax",
            ],
        ),
        bad(
            "a filter of HTTPRoute",
            route("GRPCRoute", "rules: [{filters: [{type: URLRewrite}]}]"),
            [
                "spec.rules[0].filters[0].type",
                "URLRewrite",
                "RequestMirror",
            ],
        ),
        bad(
            "timeouts of HTTPRoute",
            route("GRPCRoute", "rules: [{timeouts: {request: 1s}}]"),
            ["spec.rules[0].timeouts", "an unknown field", "backendRefs"],
        ),
        bad(
            "a path",
            route("GRPCRoute", "rules: [{matches: [{path: {value: /a}}]}]"),
            [
                "spec.rules[0].matches[0].path",
                "an unknown field",
                "method",
            ],
        ),
        bad(
            "no host",
            tls(&format!("hostnames: [], {to_web}")),
            ["spec.hostnames", "none", "at least one"],
        ),
        bad(
            "an address for a host",
            tls(&format!("hostnames: [10.0.0.1], {to_web}")),
            ["spec.hostnames[0]", "10.0.0.1", "no address"],
        ),
        bad(
            "a host twice",
            tls(&format!("hostnames: [a.example, a.example], {to_web}")),
            ["spec.hostnames[1]", "again", "each once"],
        ),
        bad(
            "too many hosts",
            tls(&format!(
                "hostnames: [{}], {to_web}",
                (0..17)
                    .map(|n| format!("h{n}.example"))
                    .collect::<Vec<_>>()
                    .join(", ")
            )),
            ["spec.hostnames", "17 of them", "16 at most"],
        ),
        bad(
            "several rules for hosts",
            tls(&format!(
                "hostnames: [a.example], rules: [{TO_WEB}, {TO_WEB}]"
            )),
            ["spec.rules", "2 of them", "one:"],
        ),
        bad(
            "matches of connections",
            route("TCPRoute", "rules: [{matches: []}]"),
            ["spec.rules[0].matches", "an unknown field", "backendRefs"],
        ),
        bad(
            "no rule",
            route("TCPRoute", "rules: []"),
            ["spec.rules", "0 of them", "one:"],
        ),
        bad(
            "a port of nothing",
            route("TCPRoute", "rules: [{backendRefs: [{name: web, port: 0}]}]"),
            ["spec.rules[0].backendRefs[0].port", "0", "1 to 65535"],
        ),
        bad(
            "a version that it does not have",
            route("TCPRoute", to_web).replace("v1alpha2", "v1"),
            ["apiVersion", "gateway.networking.k8s.io/v1", "v1alpha2"],
        ),
    ]
}

fn policies() -> Vec<Bad> {
    let breaker = |rest: &str| policy(&format!("circuitBreaker: {{{rest}}}"));
    vec![
        bad(
            "paths in a way that there is none of",
            policy("pathNormalization: {foldCase: true}"),
            [
                "spec.pathNormalization.foldCase",
                "an unknown field",
                "decodeSlashes",
            ],
        ),
        bad(
            "no target",
            document(OURS, "TrafficPolicy", "{retry: {attempts: 1}}"),
            ["spec.targetRef", "nothing", "required"],
        ),
        bad(
            "another kind of target",
            policy("").replace("kind: Service,", "kind: Pod,"),
            ["spec.targetRef.kind", "Pod", "Service"],
        ),
        bad(
            "unknown field",
            policy("retry: {atempts: 1}"),
            [
                "spec.retry.atempts",
                "an unknown field",
                "attempts, statuses",
            ],
        ),
        bad(
            "unknown field of a variant",
            breaker("fallback: {response: {status: 200, text: x}}"),
            [
                "spec.circuitBreaker.fallback.response.text",
                "an unknown field",
                "status, body, contentType",
            ],
        ),
        bad(
            "wrong type",
            policy("retry: {attempts: two}"),
            ["spec.retry.attempts", "\"two\"", "an integer"],
        ),
        bad(
            "a list for fields",
            policy("retry: [1]"),
            ["spec.retry", "a list", "attempts, statuses"],
        ),
        bad(
            "out of range",
            policy("retry: {attempts: 99}"),
            ["spec.retry.attempts", "99", "0 to 10"],
        ),
        bad(
            "below range",
            policy("limits: {connections: -1}"),
            ["spec.limits.connections", "-1", "an integer from 0"],
        ),
        bad(
            "nothing at all",
            policy("limits: {concurrentRequests: 0}"),
            ["spec.limits.concurrentRequests", "0", "1 to 1000000"],
        ),
        bad(
            "no number",
            breaker("failureRate: .nan"),
            ["(input)", ".nan", "well-formed YAML"],
        ),
        bad(
            "more than all",
            breaker("failureRate: 1.5"),
            ["spec.circuitBreaker.failureRate", "1.5", "above 0 to 1"],
        ),
        bad(
            "an unknown word",
            policy("loadBalancer: {type: fair}"),
            ["spec.loadBalancer.type", "fair", "peakEwma"],
        ),
        bad(
            "a key that nobody reads",
            policy("loadBalancer: {type: random, hashOn: {source: {}}}"),
            ["spec.loadBalancer.hashOn", "a key", "ringHash or maglev"],
        ),
        bad(
            "no key",
            policy("loadBalancer: {type: maglev}"),
            [
                "spec.loadBalancer.hashOn",
                "nothing",
                "header, query, cookie or source",
            ],
        ),
        bad(
            "a queue before no limit",
            policy("limits: {pendingRequests: 5}"),
            ["spec.limits.pendingRequests", "5", "concurrentRequests"],
        ),
        bad(
            "an attempt longer than the request",
            policy("timeouts: {request: 1s, perTry: 2s}"),
            ["spec.timeouts.perTry", "2s", "at most timeouts.request"],
        ),
        bad(
            "slow calls that none can be",
            policy("timeouts: {request: 1s}, circuitBreaker: {slowCallDuration: 2s}"),
            ["spec.circuitBreaker.slowCallDuration", "2s", "below 1s"],
        ),
        bad(
            "longer open than at most",
            breaker("openTime: 2m, maxOpenTime: 1m"),
            ["spec.circuitBreaker.openTime", "120s", "maxOpenTime"],
        ),
        bad(
            "two windows",
            breaker("window: {count: 10, time: 1s}"),
            [
                "spec.circuitBreaker.window",
                "map",
                "one field with its value",
            ],
        ),
        bad(
            "a list with something twice",
            policy("retry: {statuses: [503, 503]}"),
            ["spec.retry.statuses[1]", "503 again", "each once"],
        ),
        bad(
            "a list without end",
            policy(&format!(
                "retry: {{statuses: [{}]}}",
                (500..599)
                    .map(|n| n.to_string())
                    .collect::<Vec<_>>()
                    .join(", ")
            )),
            ["spec.retry.statuses", "99 of them", "32 at most"],
        ),
        bad(
            "a body that is far too large",
            breaker(&format!(
                "fallback: {{response: {{status: 200, body: {}}}}}",
                "x".repeat(70_000)
            )),
            [
                "spec.circuitBreaker.fallback.response.body",
                "70000 bytes",
                "64 KiB at most",
            ],
        ),
        bad(
            "a time that is none",
            policy("timeouts: {request: soon}"),
            ["spec.timeouts.request", "\"soon\"", "a time as in"],
        ),
        bad(
            "no time",
            policy("timeouts: {request: 0s}"),
            ["spec.timeouts.request", "0", "above 0, up to a day"],
        ),
        bad(
            "what the outer one has",
            breaker("service: {mode: observe}"),
            [
                "spec.circuitBreaker.service.mode",
                "a value",
                "circuitBreaker has it",
            ],
        ),
    ]
}

fn the_rest() -> Vec<Bad> {
    let from = "{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: lab}";
    let to = "{group: '', kind: Service}";
    vec![
        bad(
            "neither delay nor abort",
            fault("{}"),
            ["spec", "neither", "delay, abort or both"],
        ),
        bad(
            "a share of more than all",
            fault("{abort: {status: 503, percentage: 101}}"),
            ["spec.abort.percentage", "101", "0 to 100"],
        ),
        bad(
            "a share of less than nothing",
            fault("{delay: {time: 1s, percentage: -1}}"),
            ["spec.delay.percentage", "-1", "0 to 100"],
        ),
        bad(
            "a status that is none",
            fault("{abort: {status: 99}}"),
            ["spec.abort.status", "99", "200 to 599"],
        ),
        bad(
            "a code that is none",
            fault("{abort: {status: 503, grpcCode: 17}}"),
            ["spec.abort.grpcCode", "17", "0 to 16"],
        ),
        bad(
            "no time",
            fault("{delay: {time: 0s}}"),
            ["spec.delay.time", "0", "above 0, up to a day"],
        ),
        bad(
            "a delay of a month",
            fault("{delay: {time: 800h}}"),
            ["spec.delay.time", "2880000s", "up to a day"],
        ),
        bad(
            "unknown field",
            fault("{abort: {code: 503}}"),
            [
                "spec.abort.code",
                "an unknown field",
                "status, grpcCode, percentage",
            ],
        ),
        bad(
            "another MeshConfig",
            document(OURS, "MeshConfig", "{}"),
            ["metadata", "shop/bad", "weft-system/mesh"],
        ),
        bad(
            "an unknown choice",
            config("{unknownDestinations: maybe}"),
            ["spec.unknownDestinations", "maybe", "passthrough"],
        ),
        bad(
            "a range that is none",
            config("{workloadRanges: [10.0.0.0/99]}"),
            ["spec.workloadRanges[0]", "10.0.0.0/99", "ADDRESS/PREFIX"],
        ),
        bad(
            "a namespace that is none",
            config("{namespaces: {Shop: {unknownDestinations: refuse}}}"),
            ["spec.namespaces", "Shop", "1 to 63 of a-z"],
        ),
        bad(
            "unknown field",
            config("{unknownDestination: refuse}"),
            [
                "spec.unknownDestination",
                "an unknown field",
                "unknownDestinations",
            ],
        ),
        bad(
            "from nobody",
            grant(&format!("{{from: [], to: [{to}]}}")),
            ["spec.from", "none", "1 to 16"],
        ),
        bad(
            "the same twice",
            grant(&format!("{{from: [{from}, {from}], to: [{to}]}}")),
            ["spec.from[1]", "again", "each once"],
        ),
        bad(
            "from another kind",
            grant(&format!(
                "{{from: [{}], to: [{to}]}}",
                from.replace("HTTPRoute", "Gateway")
            )),
            ["spec.from[0]", "Gateway", "HTTPRoute"],
        ),
        bad(
            "to another kind",
            grant(&format!(
                "{{from: [{from}], to: [{{group: '', kind: Secret}}]}}"
            )),
            ["spec.to[0]", "Secret", "kind Service"],
        ),
        bad(
            "unknown field",
            grant(&format!("{{from: [{from}], tos: [{to}]}}")),
            ["spec.tos", "an unknown field", "from, to"],
        ),
    ]
}

/// What only the control plane can know: references that lead nowhere.
fn dangling() -> Vec<Bad> {
    let or = "--allow-missing";
    let backend = |backend: &str| rule(&format!("{{backendRefs: [{backend}]}}"));
    vec![
        bad(
            "no such parent",
            rule(TO_WEB).replace("name: web}]", "name: gone}]"),
            ["spec.parentRefs[0]", "shop/gone", or],
        ),
        bad(
            "no such port of the parent",
            rule(TO_WEB).replace("name: web}]", "name: web, port: 99}]"),
            ["spec.parentRefs[0]", "port 99", or],
        ),
        bad(
            "no such backend",
            backend("{name: gone, port: 80}"),
            ["spec.rules[0].backendRefs[0]", "shop/gone", or],
        ),
        bad(
            "no such port",
            backend("{name: web, port: 99}"),
            ["spec.rules[0].backendRefs[0]", "port 99", "8080"],
        ),
        bad(
            "a namespace that does not permit it",
            backend("{name: web, namespace: lab, port: 80}"),
            ["spec.rules[0].backendRefs[0]", "lab/web", "ReferenceGrant"],
        ),
        bad(
            "copies for nobody",
            rule(
                "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: gone, port: 80}}}], backendRefs: [{name: web, port: 8080}]}",
            ),
            [
                "spec.rules[0].filters[0].requestMirror.backendRef",
                "shop/gone",
                or,
            ],
        ),
        bad(
            "no such fault",
            rule(
                "{filters: [{type: ExtensionRef, extensionRef: {group: weft-mesh.io, kind: FaultInjection, name: gone}}]}",
            ),
            ["spec.rules[0].filters", "the FaultInjection gone", or],
        ),
        bad(
            "a call to no such backend",
            route(
                "GRPCRoute",
                "rules: [{backendRefs: [{name: gone, port: 80}]}]",
            ),
            ["spec.rules[0].backendRefs[0]", "shop/gone", or],
        ),
        bad(
            "connections to no such backend",
            route(
                "TCPRoute",
                "rules: [{backendRefs: [{name: gone, port: 80}]}]",
            ),
            ["spec.rules[0].backendRefs[0]", "shop/gone", or],
        ),
        bad(
            "hosts at no such backend",
            route(
                "TLSRoute",
                "hostnames: [a.example], rules: [{backendRefs: [{name: gone, port: 80}]}]",
            ),
            ["spec.rules[0].backendRefs[0]", "shop/gone", or],
        ),
        bad(
            "a policy for nobody",
            policy("retry: {attempts: 1}").replace("name: web}", "name: gone}"),
            ["spec.targetRef", "shop/gone", or],
        ),
        bad(
            "a fallback that is not there",
            policy("circuitBreaker: {fallback: {backend: {name: gone, port: 80}}}"),
            ["spec.circuitBreaker.fallback.backend", "shop/gone", or],
        ),
    ]
}

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
