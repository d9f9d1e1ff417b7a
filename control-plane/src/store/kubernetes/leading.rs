//! The lease of a store as that which elects a leader.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;

use crate::kubernetes::leader::{LeaderLease, LeaseError};
use crate::kubernetes::watches::Watch;
use crate::store::{Lease, Store, StoreError};

/// A lease by its name, for one holder.
#[derive(Debug)]
pub struct StoreLease {
    store: Arc<dyn Store>,
    watch: Watch,
    name: String,
    holder: String,
    held: Mutex<Option<Lease>>,
}

impl StoreLease {
    /// Nothing is held yet. `holder` is this process's alone. Whether the API answers is said of `watch`: of
    /// all that asks it, this asks the most often.
    pub fn new(store: Arc<dyn Store>, watch: Watch, name: &str, holder: &str) -> Self {
        Self {
            store,
            watch,
            name: name.to_owned(),
            holder: holder.to_owned(),
            held: Mutex::default(),
        }
    }

    fn keep(&self, lease: Option<Lease>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = lease;
    }

    /// Whose a lease is was answered, or not.
    fn answered<T>(&self, answer: Result<T, StoreError>) -> Result<T, LeaseError> {
        let answer = answer.map_err(error);
        match &answer {
            Ok(_) | Err(LeaseError::NotHeld(_)) => self.watch.on_seen(),
            Err(LeaseError::Unanswered(error)) => self.watch.on_failed(error, Instant::now()),
        }
        answer
    }

    fn held(&self) -> Option<Lease> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.clone()
    }
}

impl LeaderLease for StoreLease {
    fn take(&self, ttl: Duration) -> BoxFuture<'_, Result<u64, LeaseError>> {
        Box::pin(async move {
            let taken = self.store.lease(&self.name, &self.holder, ttl).await;
            let taken = self.answered(taken)?;
            let term = taken.fencing;
            self.keep(Some(taken));
            Ok(term)
        })
    }

    fn renew(&self) -> BoxFuture<'_, Result<(), LeaseError>> {
        Box::pin(async move {
            let Some(held) = self.held() else {
                return Err(LeaseError::NotHeld("it was not taken".to_owned()));
            };
            self.answered(self.store.renew(&held).await)
        })
    }

    fn release(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Some(held) = self.held()
                && let Err(error) = self.store.release(&held).await
            {
                tracing::debug!(%error, "the lease ends by itself");
            }
            self.keep(None);
        })
    }
}

fn error(error: StoreError) -> LeaseError {
    let said = error.to_string();
    let is_anothers = matches!(
        error,
        StoreError::LeaseHeld { .. } | StoreError::LeaseLost { .. }
    );
    match is_anothers {
        true => LeaseError::NotHeld(said),
        false => LeaseError::Unanswered(said),
    }
}
