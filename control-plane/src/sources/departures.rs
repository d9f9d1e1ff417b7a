//! Pods that are not there any more: their certificates are revoked for as long as one may live.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use weft_core::name::WorkloadName;

use super::{Batch, Source};
use crate::identity::Identities;
use crate::store::StoreError;
use crate::world::Delta;

/// Passes on what a source of pods tells, and tells the identities which of them have gone.
#[derive(Debug)]
pub struct DepartedPods<S> {
    pods: S,
    identities: Arc<Identities>,
    present: Present,
}

/// The instances of pods that are there.
#[derive(Debug, Default)]
struct Present(HashMap<WorkloadName, Arc<str>>);

impl<S> DepartedPods<S> {
    /// Those that this source tells of.
    pub fn new(pods: S, identities: Arc<Identities>) -> Self {
        Self {
            pods,
            identities,
            present: Present::default(),
        }
    }

    fn look(&mut self, batch: &Batch) {
        let departed = self.present.departed(&batch.deltas);
        if !departed.is_empty() {
            self.identities.pods_are_gone(&departed);
        }
    }
}

impl Present {
    /// Instances that are not there any more after these changes.
    fn departed(&mut self, deltas: &[Delta]) -> Vec<Arc<str>> {
        let mut departed: Vec<(WorkloadName, Arc<str>)> = Vec::new();
        for delta in deltas {
            let before = match delta {
                // Made again under its name, it is another one. What no node has taken on has run
                // nothing: whoever makes and deletes pods only has no place among those that went.
                Delta::Pod(pod) => match &pod.identity {
                    Some(_) if !pod.node.is_empty() => {
                        let before = self.0.insert(pod.name.clone(), pod.instance());
                        before.map(|before| (pod.name.clone(), before))
                    }
                    Some(_) | None => self.0.remove_entry(&pod.name),
                },
                Delta::PodGone(name) => self.0.remove_entry(name),
                Delta::Document(_)
                | Delta::DocumentGone(_)
                | Delta::Workload(_)
                | Delta::WorkloadGone(_)
                | Delta::ClusterService(_)
                | Delta::ClusterServiceGone(_)
                | Delta::ClusterSlice(_)
                | Delta::ClusterSliceGone(_)
                | Delta::Addresses(_)
                | Delta::Node(..)
                | Delta::NodeGone(_)
                | Delta::Bundle(_) => continue,
            };
            departed.extend(before);
        }
        // One that was told of again is there.
        departed.retain(|(name, gone)| self.0.get(name) != Some(gone));
        departed.into_iter().map(|(_name, gone)| gone).collect()
    }
}

impl<S: Source> Source for DepartedPods<S> {
    fn start(&mut self) -> Result<Batch, StoreError> {
        let batch = self.pods.start()?;
        self.look(&batch);
        Ok(batch)
    }

    fn is_complete(&self) -> bool {
        self.pods.is_complete()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Batch, StoreError>> {
        Box::pin(async {
            let batch = self.pods.next().await?;
            self.look(&batch);
            Ok(batch)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::cluster::Pod;

    fn pod(name: &str, uid: &str, has_sidecar: bool) -> Delta {
        let identity = "spiffe://weft.local/ns/shop/sa/web".parse().unwrap();
        Delta::Pod(Arc::new(Pod {
            name: name.parse().unwrap(),
            uid: uid.into(),
            addresses: Vec::new(),
            identity: has_sidecar.then_some(identity),
            protocols: Arc::default(),
            node: "node1".into(),
        }))
    }

    #[test]
    fn pods_that_go_or_are_made_again_have_departed() {
        let gone = |name: &str| Delta::PodGone(name.parse().unwrap());
        let mut present = Present::default();
        let mut departed = |deltas: &[Delta]| present.departed(deltas).join(" ");
        let begin = [
            pod("shop/a", "1", true),
            pod("shop/b", "2", true),
            pod("shop/c", "3", false),
        ];
        assert_eq!(departed(&begin), "");
        assert_eq!(departed(&[pod("shop/a", "1", true)]), "", "told again");
        assert_eq!(departed(&[gone("shop/c")]), "", "it has no sidecar");
        assert_eq!(departed(&[pod("shop/a", "4", true)]), "pod-1");
        assert_eq!(departed(&[gone("shop/b"), gone("shop/b")]), "pod-2");
        assert_eq!(departed(&[gone("shop/a"), pod("shop/a", "4", true)]), "");
        assert_eq!(departed(&[gone("shop/a")]), "pod-4");
    }
}
