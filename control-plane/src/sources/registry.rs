//! Workloads, from the registry.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{Batch, Source};
use crate::registry::{Changes, RegistryDelta};
use crate::store::StoreError;
use crate::world::Delta;

/// Follows the registry's queue of changes.
#[derive(Debug)]
pub struct RegistrySource {
    changes: Arc<Changes>,
}

impl RegistrySource {
    /// The only consumer of this queue.
    pub fn new(changes: Arc<Changes>) -> Self {
        Self { changes }
    }
}

impl Source for RegistrySource {
    fn start(&mut self) -> Result<Batch, StoreError> {
        Ok(batch(self.changes.try_take()))
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Batch, StoreError>> {
        Box::pin(async { Ok(batch(self.changes.take().await)) })
    }
}

fn batch((changes, registered): (Vec<RegistryDelta>, u64)) -> Batch {
    let deltas = changes.into_iter().map(|change| match change {
        RegistryDelta::Put(entry) => Delta::Workload(entry),
        RegistryDelta::Removed(name) => Delta::WorkloadGone(name),
    });
    Batch {
        deltas: deltas.collect(),
        revision: None,
        registered: Some(registered),
    }
}
