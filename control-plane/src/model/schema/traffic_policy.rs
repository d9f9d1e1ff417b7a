//! Limits and rules of TrafficPolicy.

use serde_json::json;

use super::others::{header_matches, statuses, target};
use super::overlay::{LABEL, Overlay, TOKEN};

/// Of a breaker for a port or a route, what the breaker of its endpoints says for all.
const OUTER: [&str; 7] = [
    "mode",
    "failures",
    "heedRetryAfter",
    "maxEjectedShare",
    "fallback",
    "service",
    "route",
];
/// Methods that are idempotent (RFC 9110 section 9.2.2).
const IDEMPOTENT: [&str; 6] = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"];

/// Adds them to the schema of its `spec`.
pub(super) fn refine(o: &mut Overlay<'_>) {
    target(o);
    balancer(o);
    breakers(o);
    retry(o);
    hedge(o);
    timeouts(o);
    health(o);
    adaptive(o);
    o.rule(
        "",
        "!has(self.pathNormalization) || self.targetRef.kind == 'Service'",
        "pathNormalization: nothing for an ExternalService: no sidecar restricts or permits by path there",
    );
    o.rule(
        "",
        "!has(self.adaptiveConcurrency) || !has(self.adaptiveConcurrency.server) || self.targetRef.kind == 'Service'",
        "adaptiveConcurrency.server: nothing for an ExternalService, where no sidecar could do it: client",
    );
}

fn balancer(o: &mut Overlay<'_>) {
    o.rule(
        "loadBalancer",
        "(has(self.type) && self.type in ['ringHash', 'maglev']) == has(self.hashOn)",
        "hashOn goes with type ringHash or maglev, and with these only",
    );
    o.text("loadBalancer.hashOn.header", TOKEN, 1024);
    o.text("loadBalancer.hashOn.cookie.name", TOKEN, 1024);
    o.rule(
        "loadBalancer.hashOn.cookie.ttl",
        "duration(self) >= duration('1s')",
        "1s and longer",
    );
    o.time("loadBalancer.slowStart");
    o.range("loadBalancer.panicThreshold", 0, 1);
}

fn breakers(o: &mut Overlay<'_>) {
    let whole = "circuitBreaker";
    for inner in ["circuitBreaker.service", "circuitBreaker.route"] {
        o.remove(inner, &OUTER);
        breaker(o, inner);
    }
    breaker(o, whole);
    o.share("circuitBreaker.maxEjectedShare");
    statuses(o, "circuitBreaker.failures.statuses", 400, 32);
    o.items("circuitBreaker.failures.grpcCodes", 0, 32);
    o.once("circuitBreaker.failures.grpcCodes");
    o.range("circuitBreaker.failures.grpcCodes[]", 1, 16);
    let response = "circuitBreaker.fallback.response";
    o.range(&format!("{response}.status"), 200, 599);
    o.set(&format!("{response}.body"), json!({"maxLength": 65536}));
    o.rule(
        &format!("{response}.body"),
        "bytes(self).size() <= 65536",
        "64 KiB at most",
    );
    o.text(&format!("{response}.contentType"), r"^[\t -~]+$", 1024);
    let backend = "circuitBreaker.fallback.backend";
    o.text(&format!("{backend}.name"), LABEL, 63);
    o.text(&format!("{backend}.namespace"), LABEL, 63);
    o.port(&format!("{backend}.port"));
}

fn breaker(o: &mut Overlay<'_>, at: &str) {
    let field = |name: &str| format!("{at}.{name}");
    o.range(&field("window.count"), 1, 10_000);
    o.times(&field("window.time"), "10ms", "24h");
    o.share(&field("failureRate"));
    o.rule(
        &field("slowCallDuration"),
        "duration(self) > duration('0s')",
        "above 0",
    );
    o.share(&field("slowCallRate"));
    o.set(&field("minimumCalls"), json!({"minimum": 1}));
    o.times(&field("openTime"), "1ms", "24h");
    o.times(&field("maxOpenTime"), "1ms", "24h");
    o.rule(
        at,
        "!has(self.maxOpenTime) || duration(has(self.openTime) ? self.openTime : '1s') <= duration(self.maxOpenTime)",
        "openTime: 1 ms to maxOpenTime; without a value it is 1s",
    );
    o.range(&field("openTimeGrowth"), 1, 100);
    o.range(&field("jitter"), 0, 1);
    o.range(&field("halfOpen.probes"), 1, 1000);
    o.set(&field("halfOpen.successes"), json!({"minimum": 1}));
    o.times(&field("halfOpen.maxWait"), "1ms", "24h");
    o.times(&field("ramp"), "0s", "24h");
}

fn retry(o: &mut Overlay<'_>) {
    o.range("retry.attempts", 0, 10);
    o.items("retry.statuses", 0, 32);
    o.once("retry.statuses");
    o.rule(
        "retry.statuses[]",
        "(self >= 500 && self <= 599) || self in [408, 425, 429]",
        "500 to 599, 408, 425 or 429",
    );
    o.items("retry.grpcCodes", 0, 32);
    o.once("retry.grpcCodes");
    o.range("retry.grpcCodes[]", 1, 16);
    o.range("retry.maxBodyBytes", 0, 1_048_576);
    o.times("retry.backoff.base", "0s", "24h");
    o.times("retry.backoff.max", "0s", "24h");
    o.rule(
        "retry.backoff",
        "duration(has(self.base) ? self.base : '25ms') <= duration(has(self.max) ? self.max : '250ms')",
        "base: at most max; without values they are 25ms and 250ms",
    );
    o.range("retry.budget.ratio", 0, 10);
    o.range("retry.budget.minimumPerSecond", 0, 10_000);
}

fn hedge(o: &mut Overlay<'_>) {
    o.rule(
        "hedge",
        "has(self.delay) != has(self.percentile)",
        "either delay or percentile",
    );
    o.rule(
        "hedge",
        "!has(self.minDelay) || has(self.percentile)",
        "minDelay: nothing, unless percentile is there: delay is the delay",
    );
    o.time("hedge.delay");
    o.range("hedge.percentile", 50, 99.9);
    o.times("hedge.minDelay", "0s", "24h");
    o.range("hedge.maxAttempts", 1, 3);
    o.set("hedge.methods[]", json!({"enum": IDEMPOTENT}));
    o.items("hedge.grpcMethods", 0, 100);
    o.text("hedge.grpcMethods[]", "^[^/]+/[^/]+$", 1024);
    let wait = "has(self.hedge.delay) ? self.hedge.delay : (has(self.hedge.minDelay) ? self.hedge.minDelay : '1ms')";
    let limit = "has(self.timeouts.perTry) ? self.timeouts.perTry : self.timeouts.request";
    o.rule(
        "",
        &format!(
            "!has(self.hedge) || !has(self.timeouts) || !(has(self.timeouts.perTry) || has(self.timeouts.request)) \
             || duration({wait}) < duration({limit})"
        ),
        "hedge: its delay is below the timeout of an attempt: no other attempt would be made",
    );
}

fn timeouts(o: &mut Overlay<'_>) {
    for field in ["connect", "request", "perTry", "streamIdle"] {
        o.time(&format!("timeouts.{field}"));
    }
    o.times("timeouts.idle", "1s", "24h");
    o.rule(
        "timeouts",
        "!has(self.perTry) || !has(self.request) || duration(self.perTry) <= duration(self.request)",
        "perTry: at most request: a longer one never ends an attempt",
    );
    for field in [
        "concurrentRequests",
        "pendingRequests",
        "concurrentRetries",
        "connections",
        "requestsPerConnection",
    ] {
        o.range(&format!("limits.{field}"), 1, 1_000_000);
    }
    o.rule(
        "limits",
        "!has(self.pendingRequests) || has(self.concurrentRequests)",
        "pendingRequests: beside concurrentRequests: without it nothing waits",
    );
}

fn health(o: &mut Overlay<'_>) {
    o.rule(
        "healthCheck",
        "[has(self.http), has(self.grpc), has(self.tcp)].exists_one(there, there)",
        "exactly one of http, grpc and tcp",
    );
    o.times("healthCheck.interval", "100ms", "24h");
    o.times("healthCheck.timeout", "1ms", "60s");
    o.range("healthCheck.unhealthyThreshold", 1, 100);
    o.range("healthCheck.healthyThreshold", 1, 100);
    o.range("healthCheck.jitter", 0, 0.9);
    o.set(
        "healthCheck.grpc.service",
        json!({"pattern": "^[!-~]*$", "maxLength": 1024}),
    );
    o.text("healthCheck.http.path", r#"^/[^#\s<>\\^`]*$"#, 1024);
    o.text(
        "healthCheck.http.host",
        r"^[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]+$",
        1024,
    );
    o.items("healthCheck.http.expectedStatuses", 1, 16);
    statuses(o, "healthCheck.http.expectedStatuses", 200, 16);
    o.items("healthCheck.http.headers", 0, 16);
    o.text("healthCheck.http.headers[].name", TOKEN, 256);
    o.set(
        "healthCheck.http.headers[].value",
        json!({"pattern": r"^[\t -~\x80-\x{10FFFF}]*$", "maxLength": 1024}),
    );
    o.rule(
        "healthCheck.http.headers[].name",
        "!(self.lowerAscii() in ['connection', 'content-length', 'host', 'te', 'transfer-encoding', 'upgrade']) \
         && !self.lowerAscii().matches('^weft[^a-z0-9]')",
        "a field that does not frame, route or belong to the mesh; the host is healthCheck.http.host",
    );
}

fn adaptive(o: &mut Overlay<'_>) {
    for side in ["client", "server"] {
        let at = format!("adaptiveConcurrency.{side}");
        let field = |name: &str| format!("{at}.{name}");
        for limit in ["initial", "min", "max"] {
            o.range(&field(limit), 1, 1_000_000);
        }
        let max = "(has(self.max) ? self.max : 1000)";
        let min = format!("(has(self.min) ? self.min : ({max} < 4 ? {max} : 4))");
        o.rule(
            &at,
            &format!("!has(self.min) || self.min <= {max}"),
            "min: 1 to max; without a value that is 1000",
        );
        o.rule(
            &at,
            &format!("!has(self.initial) || (self.initial >= {min} && self.initial <= {max})"),
            "initial: min to max; without values they are 4 and 1000",
        );
        o.share(&field("smoothing"));
        o.range(&field("tolerance"), 1, 10);
        o.range(&field("queue"), 1, 1000);
        o.times(&field("longWindow"), "1s", "24h");
    }
    let at = "adaptiveConcurrency.server";
    o.range(&format!("{at}.criticalShare"), 0, 0.5);
    o.rule(
        at,
        "!has(self.criticalShare) || self.criticalShare == 0.0 || (has(self.critical) && self.critical.size() > 0)",
        "criticalShare: nothing, unless critical says which requests the share is kept for",
    );
    o.items(&format!("{at}.critical"), 0, 32);
    let at = format!("{at}.critical[]");
    o.rule(
        &at,
        "(has(self.callers) && self.callers.size() > 0) || (has(self.path) && !self.path.matches('^/*$')) \
         || has(self.method) || (has(self.headers) && self.headers.size() > 0)",
        "callers, a path below /, a method or headers: where everything is critical nothing is",
    );
    o.items(&format!("{at}.callers"), 0, 64);
    o.text(
        &format!("{at}.callers[]"),
        r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?/(\*|[a-z0-9]([-a-z0-9.]*[a-z0-9])?)$",
        317,
    );
    o.text(&format!("{at}.path"), "^/", 1024);
    o.text(&format!("{at}.method"), TOKEN, 64);
    header_matches(o, &format!("{at}.headers"));
}
