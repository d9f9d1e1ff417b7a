//! Routes of the other kinds that are refused.

use super::documents::{Bad, TO_WEB, bad, route};

pub(super) fn other_routes() -> Vec<Bad> {
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
