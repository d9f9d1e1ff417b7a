//! How far the source has come, for `/readyz` and metrics.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A kind of object that has not failed again for this long is followed: longer than the longest pause
/// between two attempts.
const RECOVERED_AFTER: Duration = Duration::from_secs(15);

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

/// One kind.
#[derive(Debug, Clone, Default)]
struct OfKind {
    /// How often it has been listed.
    lists: u64,
    objects: usize,
    /// When it began to fail, when it failed last, and how.
    failing: Option<(Instant, Instant, String)>,
}

/// What is known of the cluster, and since when it may be old.
#[derive(Debug, Default)]
pub struct ClusterStatus {
    kinds: Mutex<[OfKind; 4]>,
}

/// One kind, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KindView {
    /// The kind.
    pub kind: Watched,
    /// How many there are.
    pub objects: usize,
    /// How often they have been listed: once, and again whenever a watch could not go on.
    pub lists: u64,
    /// For how long the API server has not been heard of: what is in force may be old.
    pub stale: Duration,
}

impl ClusterStatus {
    fn kinds(&self) -> MutexGuard<'_, [OfKind; 4]> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn on_seen(&self, kind: Watched, objects: usize) {
        let of_kind = &mut self.kinds()[kind as usize];
        of_kind.objects = objects;
        of_kind.failing = None;
    }

    pub(super) fn on_listed(&self, kind: Watched) {
        self.kinds()[kind as usize].lists += 1;
    }

    pub(super) fn on_failed(&self, kind: Watched, error: String, now: Instant) {
        let of_kind = &mut self.kinds()[kind as usize];
        let since = match &of_kind.failing {
            Some((since, last, _)) if now - *last < RECOVERED_AFTER => *since,
            Some(_) | None => now,
        };
        of_kind.failing = Some((since, now, error));
    }

    /// What is still missing before sidecars may be told anything, with the reason; `None` when
    /// everything has been listed once.
    pub fn missing(&self) -> Option<String> {
        let kinds = self.kinds();
        let (kind, of_kind) = Watched::ALL
            .iter()
            .zip(kinds.iter())
            .find(|(kind, of_kind)| kind.is_waited_for() && of_kind.lists == 0)?;
        let kind = kind.as_str();
        Some(match &of_kind.failing {
            Some((_, _, error)) => format!("{kind} not listed: {error}"),
            None => format!("{kind} not listed yet"),
        })
    }

    /// Every kind.
    pub fn view(&self, now: Instant) -> [KindView; 4] {
        let kinds = self.kinds();
        Watched::ALL.map(|kind| {
            let of_kind = &kinds[kind as usize];
            let stale = match &of_kind.failing {
                Some((since, last, _))
                    if now.saturating_duration_since(*last) < RECOVERED_AFTER =>
                {
                    now.saturating_duration_since(*since)
                }
                Some(_) | None => Duration::ZERO,
            };
            KindView {
                kind,
                objects: of_kind.objects,
                lists: of_kind.lists,
                stale,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_stale_until_it_is_seen_or_has_not_failed_for_a_while() {
        let status = ClusterStatus::default();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let stale = |now| status.view(at(now))[0].stale.as_secs();
        assert_eq!(status.missing().as_deref(), Some("services not listed yet"));
        status.on_failed(Watched::Services, "refused".to_owned(), at(1));
        assert_eq!(
            status.missing().as_deref(),
            Some("services not listed: refused")
        );
        status.on_failed(Watched::Services, "refused".to_owned(), at(9));
        assert_eq!(stale(10), 9);
        status.on_seen(Watched::Services, 3);
        assert_eq!((stale(11), status.view(at(11))[0].objects), (0, 3));
        status.on_failed(Watched::Services, "refused".to_owned(), at(20));
        assert_eq!((stale(21), stale(40)), (1, 0));
        for kind in Watched::ALL {
            status.on_listed(kind);
        }
        assert_eq!(status.missing(), None);
    }
}
