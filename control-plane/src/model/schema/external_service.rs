//! Limits and rules of ExternalService.

use serde_json::json;

use super::overlay::{Overlay, SUBDOMAIN};

/// What a host may be.
const HOST: &str =
    "a name as in api.example.com: lower case, no wildcard, no address, not in .mesh";
/// Protocols as users write them, in any case.
const PROTOCOL: &str = "^(?i)(http|http1|http2|h2c|grpc|tcp|tls|https|kubernetes\\.io/(ws|h2c))$";

/// Adds them to the schema of its `spec`.
pub(super) fn refine(o: &mut Overlay<'_>) {
    o.items("hosts", 1, 16);
    o.once("hosts");
    host(o, "hosts[]");
    o.items("ports", 1, 16);
    o.set(
        "ports",
        json!({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"]}),
    );
    o.port("ports[].port");
    o.port("ports[].targetPort");
    o.set(
        "ports[].protocol",
        json!({"pattern": PROTOCOL, "maxLength": 32}),
    );
    o.rule(
        "ports[]",
        "!has(self.tls) || self.tls.mode == 'none' || !(self.protocol.lowerAscii() in ['tls', 'https'])",
        "tls.mode: none: the program speaks TLS itself there",
    );
    tls(o, "tls");
    tls(o, "ports[].tls");
    o.rule(
        "",
        "!has(self.tls) || self.tls.mode == 'none' || self.ports.exists(port, !(port.protocol.lowerAscii() in ['tls', 'https']))",
        "tls: nothing: every port speaks TLS itself",
    );
    endpoints(o);
}

fn host(o: &mut Overlay<'_>, at: &str) {
    o.text(at, SUBDOMAIN, 253);
    o.rule(
        at,
        r"self.contains('.') && !self.matches('[.][0-9]+$') && !self.endsWith('.mesh') && self.split('.').all(label, label.size() <= 63)",
        HOST,
    );
}

fn tls(o: &mut Overlay<'_>, at: &str) {
    o.rule(
        at,
        "self.mode != 'none' || (!has(self.sni) && !has(self.caCertificates))",
        "sni and caCertificates: nothing with mode none",
    );
    host(o, &format!("{at}.sni"));
    let pem = json!({"maxLength": 65536, "pattern": "-----BEGIN CERTIFICATE-----"});
    o.set(&format!("{at}.caCertificates"), pem);
}

/// What looks like an address, where a name is the alternative.
const ADDRESS: &str = "^[0-9.]+$|:";
/// Addresses of several machines, of none, of this one (`::`, `::1`), and IPv4 inside of IPv6.
const NOT_ELSEWHERE: &str = "^(22[4-9]|23[0-9])[.]|^[0:]*:0*1?$|^[fF][fF][0-9a-fA-F]{2}:|:.*[.]";

fn endpoints(o: &mut Overlay<'_>) {
    o.items("endpoints", 0, 64);
    o.port("endpoints[].port");
    o.range("endpoints[].weight", 1, 1000);
    o.set("endpoints[].zone", json!({"maxLength": 63}));
    // Formats and plain expressions, not CEL's ip(): that is in Kubernetes from 1.31 on.
    o.set(
        "endpoints[].address",
        json!({"maxLength": 253, "anyOf": [
            {"format": "ipv4"},
            {"format": "ipv6"},
            {"pattern": r"^[a-z0-9.-]+\.[a-z0-9-]*[a-z-][a-z0-9-]*$"},
        ]}),
    );
    o.rule(
        "endpoints[].address",
        &format!(
            "self.matches('{ADDRESS}') ? !(self.startsWith('127.') || self == '0.0.0.0' || \
             self.matches('{NOT_ELSEWHERE}')) : !self.endsWith('.mesh')"
        ),
        "an address of another machine, or with resolution dns a name as in api.example.com",
    );
    o.rule(
        "",
        &format!(
            "!has(self.endpoints) || !has(self.resolution) || self.resolution == 'dns' || \
             self.endpoints.all(endpoint, endpoint.address.matches('{ADDRESS}'))"
        ),
        "endpoints: an address of another machine; names need resolution dns",
    );
    let some = "has(self.endpoints) && self.endpoints.size() > 0";
    o.rule(
        "",
        &format!("!has(self.resolution) || self.resolution == 'dns' || ({some})"),
        "endpoints: at least one: resolution static finds nothing else",
    );
    o.rule(
        "",
        &format!("({some}) || self.hosts.size() == 1"),
        "endpoints, or one host: all hosts are names of the same servers",
    );
    o.rule(
        "",
        "!has(self.endpoints) || self.ports.size() == 1 || self.endpoints.all(endpoint, !has(endpoint.port))",
        "endpoints: no port where the service has several ports: see their targetPort",
    );
    o.rule(
        "endpoints",
        "self.all(one, self.exists_one(other, other.address == one.address && has(other.port) == has(one.port) && (!has(one.port) || other.port == one.port)))",
        "each address and port once",
    );
}
