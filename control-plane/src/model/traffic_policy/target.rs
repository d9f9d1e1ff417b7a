//! What policies are for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_core::name::{ServiceName, check_label};

use crate::model::check::Check;
use crate::model::kind::Attachment;

/// The Service or ExternalService that a policy is for, in the policy's own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TargetRef {
    /// `Service` or `ExternalService`.
    pub kind: TargetKind,
    /// Its name.
    pub name: String,
    /// One of its ports; a policy for a port beats one for all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// What a policy may be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TargetKind {
    /// A service.
    Service,
    /// A service outside the mesh.
    ExternalService,
}

impl TargetRef {
    /// Adds what is wrong with it to `check`.
    pub(in crate::model) fn check(&self, check: &mut Check<'_>) {
        if check_label(&self.name).is_err() {
            check.add(
                "spec.targetRef.name",
                format!("{:?}", self.name),
                "the name of a Service or ExternalService of this namespace",
            );
        }
        if self.port == Some(0) {
            check.add("spec.targetRef.port", 0, "1 to 65535");
        }
    }

    /// What a policy of this namespace is attached to; nothing only when the name was refused.
    pub(in crate::model) fn attachments(&self, namespace: &str) -> Vec<Attachment> {
        let service = ServiceName::new(namespace, &self.name).into_iter();
        let attachments = service.map(|service| Attachment {
            service,
            external: self.kind == TargetKind::ExternalService,
            port: self.port,
        });
        attachments.collect()
    }
}
