//! Readiness by guards: ready when nobody blocks any more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Who still has to become ready. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// How many guards there are of each name.
    blocking: Mutex<BTreeMap<String, usize>>,
    ready: watch::Sender<bool>,
}

/// As long as this lives, the sidecar is not ready.
#[derive(Debug)]
#[must_use = "readiness is blocked only as long as the guard lives"]
pub struct BlockReady {
    readiness: Readiness,
    name: String,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// Ready: nobody blocks yet. Take the first guards before anybody asks.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            blocking: Mutex::default(),
            ready: watch::Sender::new(true),
        }))
    }

    /// Not ready until the guard is dropped. `name` is what `/readyz` shows, such as `discovery`.
    pub fn block(&self, name: impl Into<String>) -> BlockReady {
        let name = name.into();
        let mut blocking = self.lock();
        *blocking.entry(name.clone()).or_default() += 1;
        self.0.ready.send_replace(false);
        drop(blocking);
        BlockReady {
            readiness: self.clone(),
            name,
        }
    }

    /// What is missing, if anything.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let blocking = self.lock();
        if blocking.is_empty() {
            Ok(())
        } else {
            Err(blocking.keys().cloned().collect())
        }
    }

    /// Waits until nothing is missing.
    pub async fn wait(&self) {
        // The sender lives as long as `self`.
        self.0.ready.subscribe().wait_for(|ready| *ready).await.ok();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.0
            .blocking
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for BlockReady {
    fn drop(&mut self) {
        let mut blocking = self.readiness.lock();
        if let Some(count) = blocking.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                blocking.remove(&self.name);
            }
        }
        self.readiness.0.ready.send_replace(blocking.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_the_last_guard_drops() {
        let readiness = Readiness::new();
        readiness.wait().await;
        let first = readiness.block("discovery");
        let second = readiness.block("discovery");
        let third = readiness.block("certificate");
        let missing = |r: &Readiness| r.check().unwrap_err().join(",");
        assert_eq!(missing(&readiness), "certificate,discovery");
        drop(first);
        drop(third);
        assert_eq!(missing(&readiness), "discovery");
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.wait().await }
        });
        assert!(!waiting.is_finished());
        drop(second);
        waiting.await.unwrap();
        assert_eq!(readiness.check(), Ok(()));
        // And again.
        let guard = readiness.block("draining");
        assert!(readiness.check().is_err());
        drop(guard);
        assert!(readiness.check().is_ok());
    }
}
