//! `ExternalService`: a destination outside the mesh that programs reach by its ordinary names.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use weft_core::external::{
    EndpointHost, External, ExternalEndpoint, Origination, check_host, is_dialable,
};
use weft_core::model::{AppProtocol, ServicePort};
use weft_core::name::ServiceName;

use super::check::Check;
use super::key::ObjectName;
use super::kind::{API_VERSION, DocumentKind, NameRule};
use super::kinds::Document;

/// Most of everything.
const HOSTS_MAX: usize = 16;
const PORTS_MAX: usize = 16;
const ENDPOINTS_MAX: usize = 64;
/// Bytes of `caCertificates`, and certificates in it.
const ROOTS_MAX_BYTES: usize = 64 * 1024;
const ROOTS_MAX: usize = 16;
/// Bytes of a zone's name.
const ZONE_MAX_BYTES: usize = 63;
/// The weight of an endpoint that says nothing.
const WEIGHT: u32 = 100;

const HOST: &str =
    "a name as in api.example.com: lower case, no wildcard, no address, not in .mesh";

/// `spec` of an ExternalService.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalServiceSpec {
    /// The names that programs call it by.
    pub hosts: Vec<String>,
    /// Its ports.
    pub ports: Vec<ExternalPortSpec>,
    /// How its endpoints are found.
    #[serde(default)]
    pub resolution: ResolutionMode,
    /// Who serves it; by default whoever its only host stands for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<ExternalEndpointSpec>,
    /// What is done to connections of every port, unless it says otherwise or speaks TLS itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ExternalTlsSpec>,
}

/// One port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalPortSpec {
    /// The port that programs dial, 1 to 65535.
    pub port: u16,
    /// What they speak there.
    #[serde(deserialize_with = "super::service::protocol")]
    pub protocol: AppProtocol,
    /// The endpoints' port; by default the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// What is done to its connections, in the place of what holds for all ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ExternalTlsSpec>,
}

/// How endpoints are found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResolutionMode {
    /// Each sidecar resolves names.
    #[default]
    Dns,
    /// They are addresses.
    Static,
}

/// One server, or one name of servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalEndpointSpec {
    /// An address, or with `resolution: dns` a name.
    pub address: String,
    /// The port that is dialled, where the service has one port only; by default that port's target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Its share in balancing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Where it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// What is done to connections on the way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalTlsSpec {
    /// Whether they get TLS.
    pub mode: TlsMode,
    /// Sent as SNI, and what the server's certificate has to name; by default the first host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// Roots that are believed, PEM; by default those of the sidecar's system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_certificates: Option<String>,
}

/// Whether connections get TLS on the way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// The sidecar makes it.
    Origination,
    /// They stay as they are.
    None,
}

impl DocumentKind for ExternalServiceSpec {
    const NAME: &'static str = "ExternalService";
    const PLURAL: &'static str = "externalservices";
    const VERSION: &'static str = API_VERSION;
    const NAMES: NameRule = NameRule::Label;

    fn validate(&self, check: &mut Check<'_>, _own: &ObjectName) {
        self.read(check);
    }

    fn into_document(self, own: ObjectName) -> Option<Document> {
        let name = ServiceName::new(&own.namespace, &own.name).ok()?;
        Some(Document::ExternalService(name, Box::new(self)))
    }
}

impl ExternalServiceSpec {
    /// Its ports, ascending.
    pub fn ports(&self) -> Vec<ServicePort> {
        let ports = self.ports.iter().map(|port| ServicePort {
            port: port.port,
            protocol: port.protocol,
        });
        let mut ports: Vec<ServicePort> = ports.collect();
        ports.sort_by_key(|port| port.port);
        ports
    }

    /// What it comes to. It was checked when it was read: nothing of it is left out.
    pub fn resolve(&self) -> External {
        let tls = self.ports.iter().filter_map(|port| {
            let tls = self.tls_of(port)?;
            let server_name = tls.sni.as_ref().or_else(|| self.hosts.first())?;
            let origination = Origination {
                server_name: server_name.as_str().into(),
                roots: roots(tls.ca_certificates.as_deref()).unwrap_or_default(),
            };
            Some((port.port, origination))
        });
        let mut tls: Vec<(u16, Origination)> = tls.collect();
        tls.sort_by_key(|(port, _)| *port);
        let ports = |own: Option<u16>| {
            let target = |port: &ExternalPortSpec| own.or(port.target_port).unwrap_or(port.port);
            let ports = self.ports.iter().map(|port| (port.port, target(port)));
            let mut ports: Vec<(u16, u16)> = ports.collect();
            ports.sort_unstable();
            ports
        };
        let hosts: Vec<Arc<str>> = self.hosts.iter().map(|host| host.as_str().into()).collect();
        let mut endpoints: Vec<ExternalEndpoint> = self
            .endpoints
            .iter()
            .filter_map(|endpoint| {
                Some(ExternalEndpoint {
                    host: EndpointHost::parse(&endpoint.address)?,
                    zone: endpoint.zone.clone().unwrap_or_default(),
                    weight: endpoint.weight.unwrap_or(WEIGHT),
                    ports: ports(endpoint.port),
                })
            })
            .collect();
        if endpoints.is_empty() {
            endpoints.extend(hosts.first().map(|host| ExternalEndpoint {
                host: EndpointHost::Name(Arc::clone(host)),
                zone: String::new(),
                weight: WEIGHT,
                ports: ports(None),
            }));
        }
        External {
            hosts,
            tls,
            endpoints,
        }
    }

    /// The TLS that a port's connections get, if any.
    fn tls_of<'a>(&'a self, port: &'a ExternalPortSpec) -> Option<&'a ExternalTlsSpec> {
        if port.protocol == AppProtocol::Tls {
            return None;
        }
        let tls = port.tls.as_ref().or(self.tls.as_ref())?;
        (tls.mode == TlsMode::Origination).then_some(tls)
    }

    /// Adds what is wrong with it to `check`.
    fn read(&self, check: &mut Check<'_>) {
        self.read_hosts(check);
        self.read_ports(check);
        self.read_endpoints(check);
        if let Some(tls) = &self.tls {
            read_tls(check, "spec.tls", tls);
            let idle = self.ports.iter().all(|p| p.protocol == AppProtocol::Tls);
            if idle && tls.mode == TlsMode::Origination {
                let allowed = "nothing: every port speaks TLS itself";
                check.add("spec.tls.mode", "origination", allowed);
            }
        }
    }

    fn read_hosts(&self, check: &mut Check<'_>) {
        count(check, "spec.hosts", self.hosts.len(), 1, HOSTS_MAX);
        let mut seen = BTreeSet::new();
        for (index, host) in self.hosts.iter().take(HOSTS_MAX).enumerate() {
            let at = format!("spec.hosts[{index}]");
            if !check_host(host) {
                check.add(at, format!("{:?}", shown(host)), HOST);
            } else if !seen.insert(host) {
                check.add(at, format!("{host:?} again"), "each once");
            }
        }
    }

    fn read_ports(&self, check: &mut Check<'_>) {
        count(check, "spec.ports", self.ports.len(), 1, PORTS_MAX);
        let mut seen = BTreeSet::new();
        for (index, port) in self.ports.iter().take(PORTS_MAX).enumerate() {
            let at = format!("spec.ports[{index}]");
            if port.port == 0 {
                check.add(format!("{at}.port"), 0, "1 to 65535");
            }
            if port.target_port == Some(0) {
                check.add(format!("{at}.targetPort"), 0, "1 to 65535");
            }
            if !seen.insert(port.port) {
                let found = format!("{} a second time", port.port);
                check.add(format!("{at}.port"), found, "each port once");
            }
            if let Some(tls) = &port.tls {
                read_tls(check, &format!("{at}.tls"), tls);
                if port.protocol == AppProtocol::Tls && tls.mode == TlsMode::Origination {
                    let allowed = "none: the program speaks TLS itself there";
                    check.add(format!("{at}.tls.mode"), "origination", allowed);
                }
            }
        }
    }

    fn read_endpoints(&self, check: &mut Check<'_>) {
        let names = self.resolution == ResolutionMode::Dns;
        if self.endpoints.is_empty() && !names {
            let allowed = "at least one: resolution static finds nothing else";
            check.add("spec.endpoints", "none", allowed);
        } else if self.endpoints.is_empty() && self.hosts.len() > 1 {
            let found = format!("none for {} hosts", self.hosts.len());
            let allowed = "endpoints, or one host: all hosts are names of the same servers";
            check.add("spec.endpoints", found, allowed);
        }
        count(
            check,
            "spec.endpoints",
            self.endpoints.len(),
            0,
            ENDPOINTS_MAX,
        );
        let mut seen = BTreeSet::new();
        for (index, endpoint) in self.endpoints.iter().take(ENDPOINTS_MAX).enumerate() {
            let at = format!("spec.endpoints[{index}]");
            let good = match EndpointHost::parse(&endpoint.address) {
                Some(EndpointHost::Address(address)) => is_dialable(address),
                Some(EndpointHost::Name(_)) => names,
                None => false,
            };
            if !good {
                let allowed = if names {
                    "an address of another machine, or a name as in api.example.com"
                } else {
                    "an address of another machine; names need resolution dns"
                };
                let found = format!("{:?}", shown(&endpoint.address));
                check.add(format!("{at}.address"), found, allowed);
            }
            if !seen.insert((&endpoint.address, endpoint.port)) {
                check.add(&at, "the same address and port again", "each once");
            }
            match endpoint.port {
                Some(0) => check.add(format!("{at}.port"), 0, "1 to 65535"),
                Some(port) if self.ports.len() > 1 => {
                    let allowed =
                        "nothing where the service has several ports: see their targetPort";
                    check.add(format!("{at}.port"), port, allowed);
                }
                Some(_) | None => {}
            }
            if let Some(weight) = endpoint.weight
                && !(1..=1000).contains(&weight)
            {
                check.add(format!("{at}.weight"), weight, "1 to 1000");
            }
            let zone = endpoint.zone.as_ref().map_or(0, String::len);
            if zone > ZONE_MAX_BYTES {
                let allowed = format!("{ZONE_MAX_BYTES} bytes at most");
                check.add(format!("{at}.zone"), format!("{zone} bytes"), allowed);
            }
        }
    }
}

fn read_tls(check: &mut Check<'_>, at: &str, tls: &ExternalTlsSpec) {
    if tls.mode == TlsMode::None {
        for (field, there) in [
            ("sni", tls.sni.is_some()),
            ("caCertificates", tls.ca_certificates.is_some()),
        ] {
            if there {
                check.add(format!("{at}.{field}"), "a value", "nothing with mode none");
            }
        }
        return;
    }
    if let Some(sni) = tls.sni.as_ref().filter(|sni| !check_host(sni)) {
        check.add(format!("{at}.sni"), format!("{:?}", shown(sni)), HOST);
    }
    if let Err(found) = roots(tls.ca_certificates.as_deref()) {
        let allowed = "PEM: 1 to 16 certificates of authorities, 64 KiB at most";
        check.add(format!("{at}.caCertificates"), found, allowed);
    }
}

/// The certificates of a PEM text; none where there is no text.
fn roots(text: Option<&str>) -> Result<Vec<Vec<u8>>, String> {
    let Some(text) = text else {
        return Ok(Vec::new());
    };
    if text.len() > ROOTS_MAX_BYTES {
        return Err(format!("{} bytes", text.len()));
    }
    let blocks = pem::parse_many(text).map_err(|error| error.to_string())?;
    if blocks.is_empty() || blocks.len() > ROOTS_MAX {
        return Err(format!("{} blocks", blocks.len()));
    }
    let mut roots = Vec::with_capacity(blocks.len());
    for (index, block) in blocks.into_iter().enumerate() {
        if block.tag() != "CERTIFICATE" {
            return Err(format!("block {index}: a {}", shown(block.tag())));
        }
        let der = CertificateDer::from(block.into_contents());
        webpki::anchor_from_trusted_cert(&der)
            .map_err(|error| format!("block {index}: {error}"))?;
        roots.push(der.to_vec());
    }
    Ok(roots)
}

fn count(check: &mut Check<'_>, path: &str, found: usize, least: usize, most: usize) {
    if !(least..=most).contains(&found) {
        let allowed = format!("{least} to {most}");
        check.add(path, format!("{found} of them"), allowed);
    }
}

/// What was found, cut where nobody reads on.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::read;

    fn document(spec: &str) -> String {
        format!(
            "apiVersion: weft-mesh.io/v1alpha1\nkind: ExternalService\n\
             metadata: {{name: api, namespace: shop}}\nspec: {spec}\n"
        )
    }

    fn good(spec: &str) -> ExternalServiceSpec {
        let read = read("-", &document(spec)).unwrap().remove(0).value;
        assert_eq!(Document::from_value(read.to_value()).unwrap(), read);
        let Document::ExternalService(_, spec) = read else {
            panic!("another kind");
        };
        *spec
    }

    fn ca() -> String {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().pem()
    }

    #[test]
    fn what_it_comes_to() {
        let pem = serde_json::to_string(&ca()).unwrap();
        let spec = good(&format!(
            "{{hosts: [api.example.com], ports: [{{port: 443, protocol: tls}}, {{port: 80, protocol: http, targetPort: 443}}, \
             {{port: 81, protocol: http, tls: {{mode: none}}}}], tls: {{mode: origination, caCertificates: {pem}}}}}"
        ));
        let external = spec.resolve();
        let ports: Vec<u16> = spec.ports().iter().map(|port| port.port).collect();
        assert_eq!(ports, [80, 81, 443]);
        let [(80, tls)] = external.tls.as_slice() else {
            panic!("{external:?}");
        };
        assert_eq!((&*tls.server_name, tls.roots.len()), ("api.example.com", 1));
        let [endpoint] = external.endpoints.as_slice() else {
            panic!("{external:?}");
        };
        assert_eq!(endpoint.host, EndpointHost::Name("api.example.com".into()));
        assert_eq!(endpoint.ports, [(80, 443), (81, 81), (443, 443)]);

        let spec = good(
            "{hosts: [a.example, b.example], resolution: static, ports: [{port: 6379, protocol: tcp}], \
             endpoints: [{address: 203.0.113.5}, {address: 203.0.113.5, port: 6380, weight: 10, zone: b}], \
             tls: {mode: origination, sni: c.example}}",
        );
        let external = spec.resolve();
        assert_eq!(&*external.tls[0].1.server_name, "c.example");
        assert!(external.tls[0].1.roots.is_empty());
        assert_eq!(external.endpoints[0].ports, [(6379, 6379)]);
        assert_eq!(external.endpoints[1].ports, [(6379, 6380)]);
        assert_eq!(
            (external.endpoints[1].weight, &*external.endpoints[1].zone),
            (10, "b")
        );
    }

    /// What is wrong, where that is said, and what is found there.
    const BAD: &[(&str, &str, &str)] = &[
        ("{hosts: [], ports: [PORT80]}", "spec.hosts", "0 of them"),
        ("{ports: [PORT80]}", "spec.hosts", "nothing"),
        ("{hosts: [a.b], ports: []}", "spec.ports", "0 of them"),
        (
            "{hosts: ['*.example.com'], ports: [PORT80]}",
            "spec.hosts[0]",
            "*.example.com",
        ),
        (
            "{hosts: [web.shop.mesh], ports: [PORT80]}",
            "spec.hosts[0]",
            "web.shop.mesh",
        ),
        (
            "{hosts: [10.0.0.1], ports: [PORT80]}",
            "spec.hosts[0]",
            "10.0.0.1",
        ),
        (
            "{hosts: [localhost], ports: [PORT80]}",
            "spec.hosts[0]",
            "localhost",
        ),
        ("{hosts: [A.b], ports: [PORT80]}", "spec.hosts[0]", "A.b"),
        (
            "{hosts: [a.b, a.b], ports: [PORT80]}",
            "spec.hosts[1]",
            "again",
        ),
        (
            "{hosts: [a.b, c.d], ports: [PORT80]}",
            "spec.endpoints",
            "2 hosts",
        ),
        (
            "{hosts: [a.b], ports: [{port: 80}]}",
            "spec.ports[0].protocol",
            "nothing",
        ),
        (
            "{hosts: [a.b], ports: [{port: 80, protocol: gopher}]}",
            "spec.ports[0].protocol",
            "gopher",
        ),
        (
            "{hosts: [a.b], ports: [{port: 0, protocol: tcp}]}",
            "spec.ports[0].port",
            "0",
        ),
        (
            "{hosts: [a.b], ports: [PORT80, PORT80]}",
            "spec.ports[1].port",
            "second time",
        ),
        (
            "{hosts: [a.b], ports: [{port: 80, protocol: tcp, targetPort: 0}]}",
            "spec.ports[0].targetPort",
            "0",
        ),
        (
            "{hosts: [a.b], ports: [PORT80], resolution: magic}",
            "spec.resolution",
            "magic",
        ),
        (
            "{hosts: [a.b], ports: [PORT80], resolution: static}",
            "spec.endpoints",
            "none",
        ),
        (
            "{hosts: [a.b], ports: [PORT80], resolution: static, endpoints: [{address: c.d}]}",
            "spec.endpoints[0].address",
            "c.d",
        ),
        (
            "{hosts: [a.b], ports: [PORT80], endpoints: [{address: 127.0.0.1}]}",
            "spec.endpoints[0].address",
            "127.0.0.1",
        ),
        (
            "{hosts: [a.b], ports: [PORT80], endpoints: [{address: '::'}]}",
            "spec.endpoints[0].address",
            "::",
        ),
        (
            "{hosts: [a.b], ports: [PORT80], endpoints: [{address: c.d}, {address: c.d}]}",
            "spec.endpoints[1]",
            "again",
        ),
        (
            "{hosts: [a.b], ports: [PORT80], endpoints: [{address: c.d, weight: 0}]}",
            "spec.endpoints[0].weight",
            "0",
        ),
        (
            "{hosts: [a.b], ports: [PORT80], endpoints: [{address: c.d, port: 0}]}",
            "spec.endpoints[0].port",
            "0",
        ),
        (
            "{hosts: [a.b], ports: [PORT80, {port: 81, protocol: tcp}], endpoints: [{address: c.d, port: 9}]}",
            "spec.endpoints[0].port",
            "9",
        ),
        (
            "{hosts: [a.b], ports: [PORT80], tls: {mode: mutual}}",
            "spec.tls.mode",
            "mutual",
        ),
        (
            "{hosts: [a.b], ports: [PORT80], tls: {}}",
            "spec.tls.mode",
            "nothing",
        ),
        (
            "{hosts: [a.b], ports: [PORT80], tls: {mode: none, sni: c.d}}",
            "spec.tls.sni",
            "a value",
        ),
        (
            "{hosts: [a.b], ports: [PORT80], tls: {mode: origination, sni: 1.2.3.4}}",
            "spec.tls.sni",
            "1.2.3.4",
        ),
        (
            "{hosts: [a.b], ports: [PORT80], tls: {mode: origination, insecureSkipVerify: true}}",
            "spec.tls.insecureSkipVerify",
            "unknown",
        ),
        (
            "{hosts: [a.b], ports: [PORT80], tls: {mode: origination, caCertificates: x}}",
            "spec.tls.caCertificates",
            "0 blocks",
        ),
        (
            "{hosts: [a.b], ports: [{port: 1, protocol: tls}], tls: {mode: origination}}",
            "spec.tls.mode",
            "origination",
        ),
        (
            "{hosts: [a.b], ports: [{port: 1, protocol: tls, tls: {mode: origination}}]}",
            "spec.ports[0].tls.mode",
            "origination",
        ),
        (
            "{hosts: [a.b], ports: [PORT80], colour: red}",
            "spec.colour",
            "unknown",
        ),
    ];

    #[test]
    fn what_is_wrong_is_said() {
        for (spec, path, found) in BAD {
            let text = document(&spec.replace("PORT80", "{port: 80, protocol: http}"));
            let problems = read("file.yaml", &text).unwrap_err();
            let said = |p: &crate::model::Problem| p.path == *path && p.found.contains(found);
            assert!(problems.iter().any(said), "{spec}: {problems:#?}");
        }
        let many = vec!["{address: c.d}"; 65].join(", ");
        let text = document(&format!(
            "{{hosts: [a.b], ports: [{{port: 1, protocol: tcp}}], endpoints: [{many}]}}"
        ));
        let problems = read("file.yaml", &text).unwrap_err();
        assert!(
            problems.iter().any(|p| p.found == "65 of them"),
            "{problems:#?}"
        );
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert!(roots(Some(key)).unwrap_err().contains("PRIVATE KEY"));
        let garbage = key.replace("PRIVATE KEY", "CERTIFICATE");
        assert!(roots(Some(&garbage)).is_err());
        assert!(roots(Some(&"x".repeat(ROOTS_MAX_BYTES + 1))).is_err());
        assert!(
            roots(Some(&ca().repeat(17)))
                .unwrap_err()
                .contains("17 blocks")
        );
    }
}
