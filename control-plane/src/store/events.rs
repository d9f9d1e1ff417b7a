//! The recent changes of a store, for consumers that follow them.
//!
//! One bounded log for all consumers: a consumer is a position in it, costs nothing while it
//! sleeps, and one that is slow holds nothing up. What falls out of the log is told apart from
//! what has not happened yet: the consumer lists again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::{Revision, StoredResource};
use crate::model::ResourceKey;

/// Events that are kept for consumers.
pub const EVENTS_MAX: usize = 4096;
/// Documents in the events that are kept, bytes of JSON text. The newest event is kept at any size.
pub const EVENTS_BYTES_MAX: usize = 32 * 1024 * 1024;

/// One revision: everything that one commit has changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The revision. Revisions ascend; a number may be missing.
    pub revision: Revision,
    /// What changed, each resource once.
    pub changes: Vec<ChangedResource>,
}

/// A resource that changed.
#[derive(Debug, Clone, PartialEq)]
pub struct ChangedResource {
    /// Its name.
    pub key: ResourceKey,
    /// The resource from then on; `None` when it was deleted.
    pub resource: Option<StoredResource>,
}

/// Why there is no next event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EventsError {
    /// Events between are no longer kept, or the engine does not know them: list again and follow
    /// from there.
    #[error("events after revision {position} are no longer kept; kept are those after {oldest}")]
    TooFarBehind {
        /// The last revision that the consumer knows.
        position: Revision,
        /// The revision after which events are kept.
        oldest: Revision,
    },
    /// The store was closed.
    #[error("the store has been closed")]
    Closed,
}

/// A consumer's position among the events.
#[derive(Debug)]
pub struct Events {
    log: Arc<Mutex<Log>>,
    newest: watch::Receiver<Revision>,
    position: Revision,
}

impl Events {
    /// Waits for the next event. May be dropped at any time: nothing is lost.
    pub async fn next(&mut self) -> Result<Arc<Event>, EventsError> {
        loop {
            // Seen before the log is read: an event that comes in between wakes again.
            self.newest.mark_unchanged();
            if let Some(event) = self.try_next()? {
                return Ok(event);
            }
            if self.newest.changed().await.is_err() {
                return Err(EventsError::Closed);
            }
        }
    }

    /// The next event, if there is one already.
    pub fn try_next(&mut self) -> Result<Option<Arc<Event>>, EventsError> {
        let log = lock(&self.log);
        if self.position < log.floor {
            return Err(EventsError::TooFarBehind {
                position: self.position,
                oldest: log.floor,
            });
        }
        let known = log.events.partition_point(|e| e.revision <= self.position);
        let Some(event) = log.events.get(known) else {
            return Ok(None);
        };
        self.position = event.revision;
        Ok(Some(Arc::clone(event)))
    }

    /// The revision of the event that was given last, or where the consumer began.
    pub fn position(&self) -> Revision {
        self.position
    }
}

/// The log that an engine writes.
#[derive(Debug)]
pub(super) struct EventLog {
    log: Arc<Mutex<Log>>,
    newest: watch::Sender<Revision>,
}

#[derive(Debug, Default)]
struct Log {
    /// Events of this revision and before are not here.
    floor: Revision,
    /// In ascending order of revisions.
    events: VecDeque<Arc<Event>>,
    /// Size of their documents.
    bytes: usize,
}

impl EventLog {
    /// An empty log of a store that is at a revision.
    pub(super) fn new(revision: Revision) -> Self {
        let log = Log {
            floor: revision,
            ..Log::default()
        };
        Self {
            log: Arc::new(Mutex::new(log)),
            newest: watch::Sender::new(revision),
        }
    }

    /// The newest revision.
    pub(super) fn revision(&self) -> Revision {
        *self.newest.borrow()
    }

    /// The newest revision, as it changes.
    pub(super) fn watch(&self) -> watch::Receiver<Revision> {
        self.newest.subscribe()
    }

    /// A consumer that knows everything up to `from`.
    pub(super) fn follow(&self, from: Revision) -> Events {
        Events {
            log: Arc::clone(&self.log),
            newest: self.newest.subscribe(),
            position: from,
        }
    }

    /// Appends the event of a commit that is durable.
    pub(super) fn append(&self, event: Event) {
        let revision = event.revision;
        let mut log = lock(&self.log);
        log.bytes += size(&event);
        log.events.push_back(Arc::new(event));
        while log.events.len() > EVENTS_MAX
            || (log.bytes > EVENTS_BYTES_MAX && log.events.len() > 1)
        {
            let Some(oldest) = log.events.pop_front() else {
                break;
            };
            log.bytes -= size(&oldest);
            log.floor = oldest.revision;
        }
        drop(log);
        self.newest.send_replace(revision);
    }

    /// Makes everybody list again who does not know this revision, which came about in a way that
    /// is not known.
    pub(super) fn reset(&self, revision: Revision) {
        let mut log = lock(&self.log);
        *log = Log {
            floor: revision,
            ..Log::default()
        };
        drop(log);
        self.newest.send_replace(revision);
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

fn size(event: &Event) -> usize {
    let documents = event.changes.iter().filter_map(|c| c.resource.as_ref());
    documents
        .map(|resource| json_size(&resource.document))
        .sum()
}

/// Size of a document as JSON text, about: escapes are not counted.
fn json_size(value: &serde_json::Value) -> usize {
    use serde_json::Value;
    match value {
        Value::Null | Value::Bool(_) => 5,
        Value::Number(_) => 8,
        Value::String(text) => text.len() + 3,
        Value::Array(items) => items.iter().map(json_size).sum::<usize>() + 2,
        Value::Object(fields) => {
            let fields = fields.iter();
            let fields = fields.map(|(name, value)| name.len() + 4 + json_size(value));
            fields.sum::<usize>() + 2
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(revision: Revision, size: usize) -> Event {
        let key = ResourceKey {
            kind: "Service".to_owned(),
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
        };
        let resource = StoredResource {
            key: key.clone(),
            revision,
            created: 0,
            changed: 0,
            author: String::new(),
            digest: String::new(),
            generation: 1,
            document: json!("x".repeat(size)),
        };
        Event {
            revision,
            changes: vec![ChangedResource {
                key,
                resource: Some(resource),
            }],
        }
    }

    #[tokio::test]
    async fn each_event_once_and_in_order() {
        let log = EventLog::new(7);
        let mut early = log.follow(7);
        assert_eq!(early.try_next(), Ok(None));
        log.append(event(8, 1));
        log.append(event(9, 1));
        let mut late = log.follow(8);
        assert_eq!(early.next().await.unwrap().revision, 8);
        assert_eq!(early.next().await.unwrap().revision, 9);
        assert_eq!(late.next().await.unwrap().revision, 9);
        // One who listed before the log had the event waits for the one after it.
        let mut ahead = log.follow(10);
        log.append(event(10, 1));
        assert_eq!(ahead.try_next(), Ok(None));
        drop(log);
        assert_eq!(early.next().await.unwrap().revision, 10);
        assert_eq!(early.next().await, Err(EventsError::Closed));
    }

    #[test]
    fn bounded_in_events_and_in_bytes() {
        let log = EventLog::new(0);
        let mut slow = log.follow(0);
        for revision in 1..=EVENTS_MAX as u64 {
            log.append(event(revision, 1));
        }
        assert_eq!(slow.try_next().unwrap().unwrap().revision, 1);
        log.append(event(5000, 1));
        assert_eq!(slow.try_next().unwrap().unwrap().revision, 2);
        log.append(event(5001, 1));
        log.append(event(5002, 1));
        let behind = EventsError::TooFarBehind {
            position: 2,
            oldest: 3,
        };
        assert_eq!(slow.try_next(), Err(behind));
        log.append(event(5003, EVENTS_BYTES_MAX));
        let mut newest = log.follow(5002);
        assert_eq!(newest.try_next().unwrap().unwrap().revision, 5003);
        assert!(log.follow(5001).try_next().is_err());
    }

    #[test]
    fn after_a_reset_everybody_lists_who_does_not_know_it() {
        let log = EventLog::new(3);
        let (mut behind, mut knows) = (log.follow(3), log.follow(4));
        log.reset(4);
        assert!(behind.try_next().is_err());
        assert_eq!(knows.try_next(), Ok(None));
    }
}
