//! Live streams that the control plane may end: those of registrations and of observations.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// By instance and number: what ends a stream.
type ByInstance = HashMap<Arc<str>, BTreeMap<u64, oneshot::Sender<()>>>;

/// Streams of one kind, by instance.
#[derive(Debug, Default)]
pub struct LiveStreams {
    by_instance: Mutex<ByInstance>,
}

/// A live stream; it is no more once this is dropped.
#[derive(Debug)]
pub struct LiveStream {
    all: Arc<LiveStreams>,
    instance: Arc<str>,
    stream: u64,
    ended: oneshot::Receiver<()>,
}

impl LiveStreams {
    fn lock(&self) -> MutexGuard<'_, ByInstance> {
        self.by_instance
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a stream. Of more than `max` of its instance, the oldest are ended.
    pub fn begin(self: &Arc<Self>, instance: &Arc<str>, stream: u64, max: usize) -> LiveStream {
        let (end, ended) = oneshot::channel();
        let mut all = self.lock();
        let streams = all.entry(Arc::clone(instance)).or_default();
        streams.insert(stream, end);
        while streams.len() > max
            && let Some((_oldest, end)) = streams.pop_first()
        {
            let _gone_anyway = end.send(());
        }
        LiveStream {
            all: Arc::clone(self),
            instance: Arc::clone(instance),
            stream,
            ended,
        }
    }

    /// Ends a stream, if it is live.
    pub fn end(&self, instance: &str, stream: u64) {
        let mut all = self.lock();
        if let Some(streams) = all.get_mut(instance)
            && let Some(end) = streams.remove(&stream)
        {
            let _gone_anyway = end.send(());
        }
    }
}

impl LiveStream {
    /// Its number.
    pub fn number(&self) -> u64 {
        self.stream
    }

    /// Waits until it has to end; for ever, once that was said.
    pub async fn ended(&mut self) {
        if self.ended.is_terminated() || (&mut self.ended).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for LiveStream {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if let Some(streams) = all.get_mut(&self.instance) {
            streams.remove(&self.stream);
            if streams.is_empty() {
                all.remove(&self.instance);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_over(stream: &mut LiveStream) -> bool {
        stream.ended.try_recv().is_ok()
    }

    #[test]
    fn the_oldest_of_too_many_is_ended() {
        let all = Arc::new(LiveStreams::default());
        let (a, b) = (Arc::from("a"), Arc::from("b"));
        let mut other = all.begin(&b, 1, 2);
        let mut first = all.begin(&a, 2, 2);
        let mut second = all.begin(&a, 3, 2);
        assert!(!is_over(&mut first));
        let mut third = all.begin(&a, 4, 2);
        assert!(is_over(&mut first));
        assert!(!is_over(&mut second) && !is_over(&mut third));
        assert!(!is_over(&mut other), "another instance's");
        drop(second);
        let mut fourth = all.begin(&a, 5, 2);
        assert!(!is_over(&mut third) && !is_over(&mut fourth));
    }

    #[test]
    fn ended_by_number_and_forgotten_with_its_end() {
        let all = Arc::new(LiveStreams::default());
        let a = Arc::from("a");
        let mut first = all.begin(&a, 1, usize::MAX);
        let mut second = all.begin(&a, 2, usize::MAX);
        all.end("a", 1);
        all.end("a", 7);
        assert!(is_over(&mut first) && !is_over(&mut second));
        drop((first, second));
        assert!(all.lock().is_empty());
    }
}
