//! References from documents to services: whether they lead somewhere.

use std::sync::Arc;

use weft_core::name::ServiceName;

use super::shape::Shape;
use crate::model::{Reference, Relations};
use crate::world::World;
use crate::world::index::Map;

/// What references are looked up in.
#[derive(Debug, Clone, Copy)]
pub struct References<'a> {
    /// Faults, and what namespaces let others refer to.
    pub world: &'a World,
    /// Services that exist and are in force.
    pub shapes: &'a Map<ServiceName, Arc<Shape>>,
}

/// One thing that a document refers to and that is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: found {found}; allowed: {allowed}")]
pub struct Dangling {
    /// The path of the field.
    pub path: String,
    /// The word for it: a reason of the Gateway API where it has one.
    pub reason: &'static str,
    /// What was found.
    pub found: String,
    /// What to do.
    pub allowed: String,
}

impl<'a> References<'a> {
    /// A service that is referred to as what it is; or what was found instead.
    pub fn find(self, name: &ServiceName, external: bool) -> Result<&'a Shape, String> {
        let (kind, other) = match external {
            true => ("ExternalService", "a Service"),
            false => ("Service", "an ExternalService"),
        };
        match self.shapes.get(name) {
            None => Err(format!("the {kind} {name}, which does not exist")),
            Some(shape) if shape.external != external => {
                Err(format!("the {kind} {name}, which is {other}"))
            }
            Some(shape) => Ok(shape),
        }
    }

    /// What of a policy leads nowhere: its target, and its fallback, which is all that it refers to.
    pub fn check_policy(self, relations: &Relations) -> Vec<Dangling> {
        let attachments = relations.attachments.iter();
        let targets = attachments.filter_map(|to| {
            let wanted = ("spec.targetRef", &to.service, to.port);
            self.missing(wanted, to.external)
        });
        let references = relations.references.iter();
        let fallbacks = references.filter_map(|reference| {
            let Reference::Service { service, port } = reference else {
                return None;
            };
            // It is referred to by its name alone.
            let shape = self.shapes.get(service);
            let external = shape.is_some_and(|shape| shape.external);
            let path = "spec.circuitBreaker.fallback.backend";
            self.missing((path, service, Some(*port)), external)
        });
        targets.chain(fallbacks).collect()
    }

    /// A Service or port that is not there, for what is at this path.
    fn missing(
        self,
        (path, service, port): (&str, &ServiceName, Option<u16>),
        external: bool,
    ) -> Option<Dangling> {
        let found = self.find(service, external);
        let (found, allowed) = match (found, port) {
            (Err(found), _) => (found, "a Service or ExternalService that exists".to_owned()),
            (Ok(shape), Some(port)) if !shape.ports.contains_key(&port) => {
                let found = format!("port {port}, which {service} does not have");
                (found, ports_text(shape))
            }
            (Ok(_), _) => return None,
        };
        Some(Dangling {
            path: path.to_owned(),
            reason: "TargetNotFound",
            found,
            allowed,
        })
    }
}

/// The ports of a service, for people.
pub(super) fn ports_text(shape: &Shape) -> String {
    let ports: Vec<String> = shape.ports.keys().map(ToString::to_string).collect();
    ports.join(", ")
}
