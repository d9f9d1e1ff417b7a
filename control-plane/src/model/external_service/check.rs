//! What is wrong with an ExternalService.

use std::collections::BTreeSet;

use weft_core::external::{EndpointHost, check_host, is_dialable};
use weft_core::model::AppProtocol;
use weft_core::registration::ZONE_MAX_BYTES;

use super::roots::roots;
use super::{ExternalServiceSpec, ExternalTlsSpec, ResolutionMode, TlsMode, shown};
use crate::model::check::Check;

/// Hosts of one ExternalService.
const HOSTS_MAX: usize = 16;
/// Ports of one ExternalService.
const PORTS_MAX: usize = 16;
/// Endpoints of one ExternalService.
const ENDPOINTS_MAX: usize = 64;

/// What a host may be.
const HOST: &str =
    "a name as in api.example.com: lower case, no wildcard, no address, not in .mesh";

impl ExternalServiceSpec {
    /// Adds what is wrong with it to `check`.
    pub(super) fn read(&self, check: &mut Check<'_>) {
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

fn count(check: &mut Check<'_>, path: &str, found: usize, least: usize, most: usize) {
    if !(least..=most).contains(&found) {
        let allowed = format!("{least} to {most}");
        check.add(path, format!("{found} of them"), allowed);
    }
}
