//! What only the control plane can know: references that lead nowhere.

use super::documents::{Bad, TO_WEB, bad, policy, route, rule};

pub(super) fn dangling() -> Vec<Bad> {
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
