//! `Service`: its ports, whether or not anybody serves it.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer, Serialize};
use weft_core::model::AppProtocol;
use weft_core::name::ServiceName;

use super::check::Check;
use super::key::ObjectName;
use super::kind::{API_VERSION, DocumentKind, NameRule};
use super::kinds::Document;

/// Ports of a service.
const PORTS_MAX: usize = 64;

/// `spec` of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// Its ports.
    pub ports: Vec<ServicePortSpec>,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePortSpec {
    /// The service's port, 1 to 65535.
    pub port: u16,
    /// The workloads' port; by default the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// What is spoken there; by default what the workloads declare.
    #[serde(
        default,
        deserialize_with = "protocol",
        skip_serializing_if = "is_undeclared"
    )]
    pub protocol: AppProtocol,
}

fn is_undeclared(protocol: &AppProtocol) -> bool {
    *protocol == AppProtocol::Detect
}

/// Reads a protocol by its name.
pub(super) fn protocol<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<AppProtocol, D::Error> {
    let text = String::deserialize(deserializer)?;
    AppProtocol::parse(&text).ok_or_else(|| {
        serde::de::Error::custom(format!("{text:?}, expected {}", AppProtocol::ALLOWED))
    })
}

impl DocumentKind for ServiceSpec {
    const NAME: &'static str = "Service";
    const PLURAL: &'static str = "services";
    const VERSION: &'static str = API_VERSION;
    const NAMES: NameRule = NameRule::Label;

    fn validate(&self, check: &mut Check<'_>, _own: &ObjectName) {
        check_ports(check, self);
    }

    fn into_document(self, own: ObjectName) -> Option<Document> {
        let name = ServiceName::new(&own.namespace, &own.name).ok()?;
        Some(Document::Service(name, self))
    }
}

fn check_ports(check: &mut Check<'_>, spec: &ServiceSpec) {
    if spec.ports.is_empty() || spec.ports.len() > PORTS_MAX {
        check.add(
            "spec.ports",
            format!("{} ports", spec.ports.len()),
            "1 to 64 ports",
        );
    }
    let mut seen = BTreeSet::new();
    for (index, port) in spec.ports.iter().enumerate() {
        if port.port == 0 {
            check.add(format!("spec.ports[{index}].port"), 0, "1 to 65535");
        }
        if port.target_port == Some(0) {
            check.add(format!("spec.ports[{index}].targetPort"), 0, "1 to 65535");
        }
        if !seen.insert(port.port) {
            let path = format!("spec.ports[{index}].port");
            check.add(
                path,
                format!("{} a second time", port.port),
                "each port once",
            );
        }
    }
}
