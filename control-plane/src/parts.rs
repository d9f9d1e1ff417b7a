//! The parts of a control plane that the API and the metrics show.

use std::sync::Arc;

use crate::compile::Snapshot;
use crate::identity::Identities;
use crate::peers::Peers;
use crate::pipeline::Pipeline;
use crate::publish::Publisher;
use crate::registry::{Observations, Registrations};
use crate::store::Store;

/// What a control plane consists of; each part knows only those that it needs.
#[derive(Debug)]
pub struct Parts {
    /// What was asked for.
    pub store: Arc<dyn Store>,
    /// Who somebody is.
    pub identities: Arc<Identities>,
    /// Who is connected, and what they may use.
    pub peers: Arc<Peers>,
    /// Who is there.
    pub registrations: Arc<Registrations>,
    /// What sidecars see.
    pub observations: Arc<Observations>,
    /// What follows from all that.
    pub pipeline: Arc<Pipeline>,
    /// Who is told of it.
    pub publisher: Arc<Publisher>,
}

impl Parts {
    /// The world and what sidecars are told of it, as of now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.pipeline.snapshot()
    }
}
