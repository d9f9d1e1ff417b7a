//! HTTPRoutes that are refused.

use super::documents::{BACKENDS, Bad, GATEWAY, bad, document, route, rule};

pub(super) fn http_routes() -> Vec<Bad> {
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
