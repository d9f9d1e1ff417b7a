//! How far the source has come, for `/readyz`.

use std::sync::Arc;

use crate::kubernetes::watches::{Watch, Watches};

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// Services.
    Services,
    /// EndpointSlices.
    EndpointSlices,
    /// Pods.
    Pods,
    /// Nodes, of which nothing but the labels. They are not waited for: without them it is not known in
    /// which zone a pod is, and nothing else.
    Nodes,
}

impl Watched {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Services,
        Self::EndpointSlices,
        Self::Pods,
        Self::Nodes,
    ];

    /// Whether sidecars are told nothing before it has been listed once.
    pub const fn is_waited_for(self) -> bool {
        match self {
            Self::Services | Self::EndpointSlices | Self::Pods => true,
            Self::Nodes => false,
        }
    }

    /// As the API has it in its paths.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::Pods => "pods",
            Self::Nodes => "nodes",
        }
    }
}

/// What of the cluster has been seen, and how every watch of its API fares.
#[derive(Debug)]
pub struct ClusterStatus {
    watches: Arc<Watches>,
    of: [Watch; 4],
}

impl ClusterStatus {
    pub(super) fn new(watches: &Arc<Watches>) -> Self {
        Self {
            watches: Arc::clone(watches),
            of: Watched::ALL.map(|kind| watches.begin(kind.as_str())),
        }
    }

    pub(super) fn watch(&self, kind: Watched) -> &Watch {
        &self.of[kind as usize]
    }

    /// Every watch of the cluster's API, those of others too.
    pub fn watches(&self) -> &Watches {
        &self.watches
    }

    /// What is still missing before sidecars may be told anything, with the reason; `None` when
    /// everything has been listed once.
    pub fn missing(&self) -> Option<String> {
        let mut waited_for = Watched::ALL.iter().filter(|kind| kind.is_waited_for());
        waited_for.find_map(|kind| match self.watch(*kind).listed() {
            (0, Some(error)) => Some(format!("{} not listed: {error}", kind.as_str())),
            (0, None) => Some(format!("{} not listed yet", kind.as_str())),
            (_, _) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn what_was_not_listed_yet_is_missing() {
        let status = ClusterStatus::new(&Arc::default());
        let services = status.watch(Watched::Services);
        assert_eq!(status.missing().as_deref(), Some("services not listed yet"));
        services.on_failed(&"refused", Instant::now());
        let expected = "services not listed: refused";
        assert_eq!(status.missing().as_deref(), Some(expected));
        for kind in [Watched::Services, Watched::EndpointSlices, Watched::Pods] {
            assert!(status.missing().is_some());
            status.watch(kind).on_listed();
        }
        assert_eq!(status.missing(), None);
    }
}
