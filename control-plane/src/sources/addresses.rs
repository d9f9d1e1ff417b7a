//! Virtual addresses that other control planes of the same store have given.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use weft_core::name::ServiceName;

use super::{Batch, Source};
use crate::store::{Store, StoreError, read_records};
use crate::world::Delta;
use crate::world::addresses::Assigned;

/// The table of virtual addresses, by the names of services.
pub const ADDRESSES: &str = "address";

/// Records that come within this time are read together.
const TOGETHER: Duration = Duration::from_millis(50);

/// Follows what is on record of addresses.
#[derive(Debug)]
pub struct AddressSource {
    store: Arc<dyn Store>,
    records: watch::Receiver<u64>,
}

impl AddressSource {
    /// Of this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        let records = store.watch_records();
        Self { store, records }
    }
}

/// What is on record of addresses.
pub fn read_assigned(store: &dyn Store) -> Result<Vec<(ServiceName, Assigned)>, StoreError> {
    let records = read_records::<Assigned>(store, ADDRESSES)?.into_iter();
    let named = records.map(|(key, record)| {
        let name = key
            .parse()
            .map_err(|error| StoreError::unreadable(ADDRESSES, &key, key.as_bytes(), &error))?;
        Ok((name, record))
    });
    named.collect()
}

impl Source for AddressSource {
    /// The pipeline has read them when it was opened.
    fn start(&mut self) -> Result<Batch, StoreError> {
        Ok(Batch::default())
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Batch, StoreError>> {
        Box::pin(async {
            // Dropped while it waits, it has taken nothing: what has changed is marked when it is read.
            let changed = async {
                while !self.records.has_changed().unwrap_or(false) {
                    let mut records = self.records.clone();
                    if records.changed().await.is_err() {
                        // A store of one process: there are no others.
                        std::future::pending::<()>().await;
                    }
                }
            };
            changed.await;
            tokio::time::sleep(TOGETHER).await;
            self.records.mark_unchanged();
            let deltas = match read_assigned(&*self.store) {
                Ok(assigned) => vec![Delta::Addresses(assigned)],
                // What is in force stays so: somebody else's record is no reason to end.
                Err(error) => {
                    tracing::error!(%error, "addresses that others have put on record are not followed");
                    Vec::new()
                }
            };
            Ok(Batch {
                deltas,
                ..Batch::default()
            })
        })
    }
}
