//! Services put together from what is held of them: one resource that says what they are, and slices
//! that say who serves them.

use std::sync::Arc;

use weft_core::model::{EndpointSlice, Service};
use weft_core::slices;
use weft_proto::resource::Resource;

use super::held::Held;

/// A service with its endpoints.
#[derive(Debug)]
pub(super) struct Composed {
    /// The service.
    pub(super) service: Arc<Service>,
    /// What it was put together from.
    pub(super) parts: Parts,
}

/// Everything that a service is put together from.
#[derive(Debug)]
pub(super) struct Parts {
    /// Its own resource.
    pub(super) own: Arc<Held>,
    /// Its slices, by index.
    pub(super) slices: Vec<Arc<Held>>,
}

impl Parts {
    /// What a service says it is put together from; `slice` finds a slice by its name. `None` while
    /// one is missing: a part of the endpoints would get the load of all, and none would be a wrong
    /// answer.
    pub(super) fn find(
        own: &Arc<Held>,
        slice: impl Fn(String) -> Option<Arc<Held>>,
    ) -> Option<Self> {
        let Resource::Service(service) = &own.resource else {
            return None;
        };
        let (name, count) = (service.name.to_string(), service.endpoint_slices);
        let names = (0..count).map(|index| slices::resource_name(&name, index, count));
        Some(Self {
            own: Arc::clone(own),
            slices: names.map(slice).collect::<Option<_>>()?,
        })
    }

    /// Whether these are the very same.
    pub(super) fn same(&self, other: &Self) -> bool {
        let mut pairs = self.slices.iter().zip(&other.slices);
        Arc::ptr_eq(&self.own, &other.own)
            && self.slices.len() == other.slices.len()
            && pairs.all(|(one, other)| Arc::ptr_eq(one, other))
    }

    /// Puts the service together. Its policies and routes are those of its resource, shared.
    pub(super) fn compose(self) -> Option<Composed> {
        let Resource::Service(service) = &self.own.resource else {
            return None;
        };
        let slices = self.slices.iter().filter_map(|held| endpoint_slice(held));
        Some(Composed {
            service: Arc::new(service.with_endpoints(slices)),
            parts: self,
        })
    }
}

fn endpoint_slice(held: &Held) -> Option<&EndpointSlice> {
    match &held.resource {
        Resource::EndpointSlice(slice) => Some(slice),
        Resource::Service(_)
        | Resource::Workload(_)
        | Resource::TrustBundle(_)
        | Resource::MeshConfig(_)
        | Resource::Namespace(_)
        | Resource::ServerPolicy(_) => None,
    }
}

#[cfg(test)]
mod tests;
