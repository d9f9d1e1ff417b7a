//! `ExternalService`: a destination outside the mesh that programs reach by its ordinary names.

mod check;
mod roots;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_core::external::{EndpointHost, External, ExternalEndpoint, Origination};
use weft_core::model::{AppProtocol, ServicePort};
use weft_core::name::ServiceName;

use super::check::Check;
use super::key::ObjectName;
use super::kind::{API_VERSION, DocumentKind, NameRule};
use super::kinds::Document;
use roots::roots;

/// The weight of an endpoint that says nothing.
const WEIGHT: u32 = 100;

/// `spec` of an ExternalService.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalPortSpec {
    /// The port that programs dial, 1 to 65535.
    pub port: u16,
    /// What they speak there.
    #[serde(deserialize_with = "super::service::protocol")]
    #[schemars(with = "String")]
    pub protocol: AppProtocol,
    /// The endpoints' port; by default the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// What is done to its connections, in the place of what holds for all ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ExternalTlsSpec>,
}

/// How endpoints are found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ResolutionMode {
    /// Each sidecar resolves names.
    #[default]
    Dns,
    /// They are addresses.
    Static,
}

/// One server, or one name of servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
}

/// What was found, cut where nobody reads on.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests;
