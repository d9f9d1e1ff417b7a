//! Pods without a sidecar that might want one, as the watch of pods tells of them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::runtime::watcher::Event;
use tokio::sync::Notify;

use crate::injector::{Settings, SidecarWish, wish};
use crate::kubernetes::events::PodRef;

/// Follows the pods of a cluster; keeps of each that has no sidecar its name and what it wants.
#[derive(Debug)]
pub struct Candidates {
    settings: Settings,
    pods: Mutex<Pods>,
    pub(super) changed: Notify,
}

#[derive(Debug, Default)]
struct Pods {
    known: BTreeMap<PodRef, SidecarWish>,
    /// What a list that has not ended has said.
    listing: Option<BTreeMap<PodRef, SidecarWish>>,
}

impl Candidates {
    /// Of a cluster whose webhook has these settings.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            pods: Mutex::default(),
            changed: Notify::new(),
        }
    }

    fn pods(&self) -> MutexGuard<'_, Pods> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The watch has said something.
    pub fn handle(&self, event: &Event<Pod>) {
        // Decided before the lock is taken: a pod may be large.
        let of = |pod: &Pod| (reference(pod), wish(pod, &self.settings));
        let changed = match event {
            Event::Init => {
                self.pods().listing = Some(BTreeMap::new());
                false
            }
            Event::InitApply(pod) => {
                let (pod, wish) = of(pod);
                if let (Some(listing), Some(wish)) = (&mut self.pods().listing, wish) {
                    listing.insert(pod, wish);
                }
                false
            }
            Event::InitDone => {
                let mut pods = self.pods();
                pods.known = pods.listing.take().unwrap_or_default();
                true
            }
            Event::Apply(pod) => {
                let (pod, wish) = of(pod);
                let known = &mut self.pods().known;
                match wish {
                    Some(wish) => known.insert(pod, wish) != Some(wish),
                    None => known.remove(&pod).is_some(),
                }
            }
            Event::Delete(pod) => self.pods().known.remove(&reference(pod)).is_some(),
        };
        if changed {
            self.changed.notify_one();
        }
    }

    /// Those that want a sidecar, where `asks` says which namespaces ask for them; and all others
    /// without one.
    pub(super) fn all(&self, asks: impl Fn(&str) -> bool) -> BTreeMap<PodRef, bool> {
        let pods = self.pods();
        let all = pods.known.iter().map(|(pod, wish)| {
            let wants = match asks(&pod.namespace) {
                true => wish.where_asked,
                false => wish.always,
            };
            (pod.clone(), wants)
        });
        all.collect()
    }
}

fn reference(pod: &Pod) -> PodRef {
    PodRef {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
    }
}
