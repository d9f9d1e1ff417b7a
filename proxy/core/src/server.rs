//! What the sidecars of a service's own workloads enforce, whoever calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::name::ServiceName;
use crate::path::PathNormalization;
use crate::rate::RateLimit;
use crate::shedding::Shedding;

/// What holds for everybody who serves a service.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerPolicy {
    /// The service.
    pub service: ServiceName,
    /// How many workloads serve it, at least 1; always 1 where nothing is shared among them.
    pub instances: u32,
    /// By the application's port, which is the target of the service's. Ports without anything to
    /// enforce are left out.
    pub ports: BTreeMap<u16, Arc<ServerPort>>,
}

/// What holds for one port of the application.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServerPort {
    /// Limits on the rate of requests; all of those that take a request have to let it through.
    pub rate_limits: Vec<Arc<RateLimit>>,
    /// How many requests at a time are let through, and which come first; `None`: any number.
    pub shedding: Option<Arc<Shedding>>,
    /// Which readings of a path the application may have, for all that depends on paths.
    pub path_normalization: PathNormalization,
}

impl ServerPort {
    /// Whether there is nothing to enforce.
    pub fn is_empty(&self) -> bool {
        self.rate_limits.is_empty() && self.shedding.is_none()
    }
}
