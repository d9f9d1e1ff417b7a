//! The trust bundle, from the identities.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{Batch, Source};
use crate::identity::Identities;
use crate::store::StoreError;
use crate::world::Delta;

/// Follows revocations.
#[derive(Debug)]
pub struct IdentitySource {
    identities: Arc<Identities>,
    revoked: watch::Receiver<u64>,
}

impl IdentitySource {
    /// Of these identities.
    pub fn new(identities: Arc<Identities>) -> Self {
        let revoked = identities.watch_revoked();
        Self {
            identities,
            revoked,
        }
    }

    fn batch(&self) -> Batch {
        let bundle = Arc::new(self.identities.bundle());
        Batch {
            deltas: vec![Delta::Bundle(bundle)],
            ..Batch::default()
        }
    }
}

impl Source for IdentitySource {
    fn start(&mut self) -> Result<Batch, StoreError> {
        Ok(self.batch())
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Batch, StoreError>> {
        Box::pin(async {
            // It ends with the identities, which the source holds.
            self.revoked
                .changed()
                .await
                .map_err(|_ended| StoreError::Closed)?;
            Ok(self.batch())
        })
    }
}
