//! What sidecars see of their breakers, and of interception, by instance.
//!
//! An instance has one view per live stream, of which there are few, and one of a stream that has
//! ended: opening and ending streams in a loop keeps nothing more.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use weft_core::interception::InterceptionReport;
use weft_core::model::ObservedBreaker;
use weft_proto::replicas::ObservedReport;

use crate::peer::PeerIdentity;
use crate::unix_millis;

/// Breakers that are kept of one sidecar; it tells of no more.
const OBSERVED_MAX: usize = 1000;
/// What was told on a stream that has ended is kept this long: a sidecar that moves to another
/// connection tells it anew.
const OBSERVED_KEPT: Duration = Duration::from_secs(2);

/// How often it is looked for views whose streams have ended.
const FORGET_EVERY: Duration = Duration::from_millis(250);

/// What a sidecar tells.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// Breakers that have ever opened.
    pub(super) breakers: Vec<ObservedBreaker>,
    /// Whether interception is in force, where it is proved.
    pub(super) interception: Option<InterceptionReport>,
}

/// What a sidecar has told.
#[derive(Debug, Clone)]
pub struct ObservedView {
    /// Which sidecar.
    pub peer: PeerIdentity,
    /// When it told, milliseconds since the Unix epoch.
    pub told: i64,
    /// Those that have ever opened.
    pub breakers: Vec<ObservedBreaker>,
    /// Whether interception is in force, where it is proved.
    pub interception: Option<InterceptionReport>,
    /// When its stream ended.
    ended: Option<Instant>,
}

impl ObservedView {
    /// What a sidecar has told another control plane.
    pub fn elsewhere(peer: PeerIdentity, observed: ObservedReport) -> Self {
        Self {
            peer,
            told: observed.told,
            breakers: observed.breakers,
            interception: observed.interception,
            ended: None,
        }
    }
}

/// What every sidecar has told.
#[derive(Debug, Default)]
pub struct Observations {
    views: Mutex<Views>,
    /// Changes when a sidecar has told something else of interception.
    interception: watch::Sender<()>,
}

impl Observations {
    /// Forgets what nobody tells any more. Runs until the task is dropped.
    pub async fn keep(self: Arc<Self>) {
        let mut forget = tokio::time::interval(FORGET_EVERY);
        loop {
            forget.tick().await;
            self.forget();
        }
    }

    fn views(&self) -> MutexGuard<'_, Views> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a sidecar sees; `None` when its stream has ended: the view is kept for a moment.
    pub(super) fn note(&self, stream: u64, peer: &PeerIdentity, told: Option<Told>) {
        let mut views = self.views();
        let Some(Told {
            breakers,
            interception,
        }) = told
        else {
            return views.end(&peer.instance, stream, Instant::now());
        };
        let view = ObservedView {
            peer: peer.clone(),
            told: unix_millis(),
            breakers,
            interception,
            ended: None,
        };
        let before = views.interception(&peer.instance);
        views.tell(stream, view);
        let is_news = views.interception(&peer.instance) != before;
        drop(views);
        if is_news {
            self.interception.send_replace(());
        }
    }

    /// Changes when a sidecar has told something else of interception.
    pub fn watch_interception(&self) -> watch::Receiver<()> {
        self.interception.subscribe()
    }

    /// Whether interception is in force, by the sidecars that prove it.
    pub fn interception(&self) -> Vec<(PeerIdentity, InterceptionReport)> {
        let views = self.views();
        let newest = views.by_instance.values().filter_map(Views::newest_of);
        newest
            .filter_map(|view| Some((view.peer.clone(), view.interception?)))
            .collect()
    }

    /// Forgets what was told on streams that ended a while ago.
    fn forget(&self) {
        self.views().forget(Instant::now());
    }

    /// What every sidecar sees.
    pub fn newest(&self) -> Vec<ObservedView> {
        self.views().newest()
    }
}

/// The views of all instances, each by the number of its stream.
#[derive(Debug, Default)]
struct Views {
    by_instance: BTreeMap<Arc<str>, HashMap<u64, ObservedView>>,
}

impl Views {
    /// Takes what was told on a live stream, in the place of what older streams had told that have
    /// ended.
    fn tell(&mut self, stream: u64, mut view: ObservedView) {
        view.breakers.truncate(OBSERVED_MAX);
        let instance = Arc::clone(&view.peer.instance);
        let views = self.by_instance.entry(instance).or_default();
        views.retain(|other, view| view.ended.is_none() || *other > stream);
        views.insert(stream, view);
    }

    /// A stream has ended. Of all that have, only the newest one's view is kept, for a moment.
    fn end(&mut self, instance: &str, stream: u64, now: Instant) {
        let Some(views) = self.by_instance.get_mut(instance) else {
            return;
        };
        if let Some(view) = views.get_mut(&stream) {
            view.ended = Some(now);
        }
        let ended = views.iter().filter(|(_, view)| view.ended.is_some());
        let newest = ended.map(|(stream, _)| *stream).max();
        views.retain(|stream, view| view.ended.is_none() || Some(*stream) == newest);
    }

    /// Forgets what was told on streams that ended a while ago.
    fn forget(&mut self, now: Instant) {
        let kept = |ended: Instant| now.saturating_duration_since(ended) < OBSERVED_KEPT;
        self.by_instance.retain(|_, views| {
            views.retain(|_, view| view.ended.is_none_or(kept));
            !views.is_empty()
        });
    }

    /// What each instance told on its newest stream, in the order of instances.
    fn newest(&self) -> Vec<ObservedView> {
        let newest = self.by_instance.values().filter_map(Self::newest_of);
        newest.cloned().collect()
    }

    /// What one told on its newest stream.
    fn newest_of(views: &HashMap<u64, ObservedView>) -> Option<&ObservedView> {
        let newest = views.iter().max_by_key(|(stream, _)| **stream);
        newest.map(|(_, view)| view)
    }

    fn interception(&self, instance: &str) -> Option<InterceptionReport> {
        let views = self.by_instance.get(instance)?;
        Self::newest_of(views)?.interception
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(instance: &str, told: i64) -> ObservedView {
        let peer = PeerIdentity {
            instance: instance.into(),
            identity: "spiffe://t/ns/shop/sa/web".parse().unwrap(),
            not_after: 0,
        };
        ObservedView {
            peer,
            told,
            breakers: Vec::new(),
            interception: None,
            ended: None,
        }
    }

    fn streams(all: &Views, instance: &str) -> Vec<u64> {
        let views = all.by_instance.get(instance);
        let mut streams: Vec<u64> = views.into_iter().flat_map(HashMap::keys).copied().collect();
        streams.sort_unstable();
        streams
    }

    #[test]
    fn streams_in_a_loop_leave_one_view() {
        let now = Instant::now();
        let mut all = Views::default();
        all.tell(1, view("b", 1));
        for stream in 2..100 {
            all.tell(stream, view("a", 2));
            all.end("a", stream, now);
            assert_eq!(streams(&all, "a"), [stream]);
        }
        assert_eq!(streams(&all, "b"), [1], "the neighbour's");
        all.forget(now + OBSERVED_KEPT);
        assert_eq!(all.by_instance.len(), 1, "nothing is left of the instance");
    }

    #[test]
    fn an_ended_view_stands_until_a_newer_stream_tells() {
        let now = Instant::now();
        let mut all = Views::default();
        all.tell(1, view("a", 1));
        all.end("a", 1, now);
        all.forget(now + OBSERVED_KEPT / 2);
        assert_eq!(all.newest().len(), 1);
        all.tell(2, view("a", 2));
        assert_eq!(streams(&all, "a"), [2]);
        // A newer stream comes and goes beside it.
        all.tell(3, view("a", 3));
        all.end("a", 3, now);
        all.tell(2, view("a", 4));
        assert_eq!(streams(&all, "a"), [2, 3]);
        all.end("a", 2, now);
        assert_eq!(streams(&all, "a"), [3], "the newest that has ended");
    }

    #[test]
    fn a_stream_that_told_nothing_leaves_nothing() {
        let mut all = Views::default();
        all.end("a", 1, Instant::now());
        assert!(all.by_instance.is_empty());
    }
}
