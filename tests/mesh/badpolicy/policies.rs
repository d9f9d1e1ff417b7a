//! TrafficPolicies that are refused.

use super::documents::{Bad, OURS, bad, document, policy};

pub(super) fn policies() -> Vec<Bad> {
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
