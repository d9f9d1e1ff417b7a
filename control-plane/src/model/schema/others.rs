//! Limits and rules of RateLimitPolicy, FaultInjection and MeshConfig, and what several kinds share.

use serde_json::json;

use super::overlay::{LABEL, Overlay, TOKEN};
use crate::model::kind::{DocumentKind, NameRule};

/// Adds what holds for the name of a document to the schema of the whole.
pub(super) fn refine_name<K: DocumentKind>(o: &mut Overlay<'_>) {
    if K::NAMES == NameRule::Label {
        o.rule(
            "",
            &format!("self.metadata.name.matches('{LABEL}') && self.metadata.name.size() <= 63"),
            "metadata.name: 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit",
        );
    }
    if K::NAME == "MeshConfig" {
        o.rule(
            "",
            "self.metadata.name == 'mesh'",
            "there is one MeshConfig: mesh, in the namespace weft-system",
        );
    }
}

/// What a policy is for.
pub(super) fn target(o: &mut Overlay<'_>) {
    o.text("targetRef.name", LABEL, 63);
    o.port("targetRef.port");
}

/// Ranges of statuses: `5xx`, `500-502` or `429`.
pub(super) fn statuses(o: &mut Overlay<'_>, at: &str, least: u16, most: u64) {
    o.set(at, json!({"maxItems": most}));
    let class = least / 100;
    let text = format!("([{class}-5]xx|[{class}-5][0-9][0-9](-[{class}-5][0-9][0-9])?)");
    o.rule(
        &format!("{at}[]"),
        &format!(
            "type(self) == int ? (self >= {least} && self <= 599) \
             : (self.matches('^{text}$') && (!self.contains('-') || self.substring(0, 3) <= self.substring(4)))"
        ),
        &format!("{least} to 599, as in 5xx, 500-502 or 429"),
    );
}

/// Fields that a request has to have.
pub(super) fn header_matches(o: &mut Overlay<'_>, at: &str) {
    o.items(at, 0, 16);
    o.text(&format!("{at}[].name"), TOKEN, 256);
    o.set(&format!("{at}[].value"), json!({"maxLength": 4096}));
    o.rule(
        at,
        "self.all(one, self.exists_one(other, other.name.lowerAscii() == one.name.lowerAscii()))",
        "each field once",
    );
}

/// RateLimitPolicy.
pub(super) fn refine_rate_limit(o: &mut Overlay<'_>) {
    target(o);
    o.rule(
        "targetRef.kind",
        "self == 'Service'",
        "Service: limits are kept by the sidecars of its own workloads",
    );
    o.items("rules", 1, 16);
    o.range("rules[].requests", 1, 1_000_000_000);
    o.range("rules[].burst", 1, 1_000_000_000);
    o.times("rules[].per", "1ms", "24h");
    o.items("rules[].key", 0, 4);
    o.rule(
        "rules[].key",
        "self.all(one, self.exists_one(other, has(one.header) ? has(other.header) && one.header.lowerAscii() == other.header.lowerAscii() : one == other))",
        "each part once",
    );
    o.text("rules[].key[].header", TOKEN, 256);
    o.set(
        "rules[].key[].claim",
        json!({"minLength": 1, "maxLength": 128}),
    );
    o.items("rules[].matches", 0, 64);
    // By the list's type rather than by a rule, whose cost in a list of lists of lists is refused.
    for list in ["headers", "queryParams"] {
        let at = format!("rules[].matches[].{list}");
        o.items(&at, 0, 16);
        o.set(
            &at,
            json!({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
        );
        o.set(&format!("{at}[].value"), json!({"maxLength": 4096}));
    }
    o.text("rules[].matches[].headers[].name", TOKEN, 256);
    o.set(
        "rules[].matches[].queryParams[].name",
        json!({"maxLength": 256}),
    );
    o.set("rules[].matches[].path.value", json!({"maxLength": 1024}));
    o.rule(
        "rules[].matches[].path",
        "!has(self.value) || (has(self.type) && self.type == 'RegularExpression') || self.value.startsWith('/')",
        "value: a path that begins with /",
    );
}

/// FaultInjection.
pub(super) fn refine_fault(o: &mut Overlay<'_>) {
    o.rule(
        "",
        "has(self.delay) || has(self.abort)",
        "delay, abort or both",
    );
    header_matches(o, "headers");
    o.time("delay.time");
    o.range("delay.percentage", 0, 100);
    o.range("abort.percentage", 0, 100);
    o.range("abort.status", 200, 599);
    o.range("abort.grpcCode", 0, 16);
}

/// MeshConfig.
pub(super) fn refine_mesh(o: &mut Overlay<'_>) {
    let words = json!({"enum": ["passthrough", "refuse"]});
    o.set("unknownDestinations", words.clone());
    o.set("namespaces{}.unknownDestinations", words);
    o.set("namespaces", json!({"maxProperties": 256}));
    o.rule(
        "namespaces",
        &format!("self.all(name, name.matches('{LABEL}') && name.size() <= 63)"),
        "names of namespaces: 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit",
    );
    o.items("workloadRanges", 0, 256);
    o.once("workloadRanges");
    // Not CEL's isCIDR(), which is in Kubernetes from 1.31 on.
    o.set(
        "workloadRanges[]",
        json!({"maxLength": 64, "anyOf": [
            {"format": "cidr"}, {"format": "ipv4"}, {"format": "ipv6"},
        ]}),
    );
}
