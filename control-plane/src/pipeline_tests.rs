//! Sources made by hand, and a store that does not take everything.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use tokio::time::sleep;

use super::*;
use crate::model::{Document, ServiceSpec};
use crate::store::{Fault, FaultyStore};
use crate::world::Delta;
use crate::world::facts::Stated;

type Next = Box<dyn FnMut() -> BoxFuture<'static, Result<Batch, StoreError>> + Send>;

/// A source that begins with some changes, and goes on with what a function gives.
struct Made {
    first: Vec<Delta>,
    next: Next,
    complete: Arc<AtomicBool>,
}

impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Made").finish_non_exhaustive()
    }
}

impl Source for Made {
    fn start(&mut self) -> Result<Batch, StoreError> {
        Ok(Batch {
            deltas: std::mem::take(&mut self.first),
            ..Batch::default()
        })
    }

    fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Relaxed)
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Batch, StoreError>> {
        (self.next)()
    }
}

fn made(
    first: Vec<Delta>,
    next: impl FnMut() -> BoxFuture<'static, Result<Batch, StoreError>> + Send + 'static,
) -> Box<dyn Source> {
    let next = Box::new(next);
    let complete = Arc::new(AtomicBool::new(true));
    Box::new(Made {
        first,
        next,
        complete,
    })
}

fn pipeline(store: &Arc<FaultyStore>, sources: &mut [Box<dyn Source>]) -> Arc<Pipeline> {
    let store = Arc::<FaultyStore>::clone(store);
    let settings = settings("weft.test".parse().unwrap(), virtual_ranges(), Vec::new());
    Pipeline::open(store, Arc::default(), settings, None, sources).unwrap()
}

/// A service, which gets a virtual address.
fn service() -> Delta {
    let spec: ServiceSpec =
        serde_json::from_value(serde_json::json!({"ports": [{"port": 80}]})).unwrap();
    Delta::Document(Box::new(Stated {
        created: 0,
        generation: 1,
        document: Document::Service("shop/web".parse().unwrap(), spec),
    }))
}

/// Addresses that could not be written are written as soon as they can be, in a mesh that never rests.
#[tokio::test(start_paused = true)]
async fn addresses_are_written_while_batches_come_all_the_time() {
    let store = FaultyStore::new();
    let churn = || -> BoxFuture<'static, _> {
        Box::pin(async {
            sleep(LOOK_EVERY / 10).await;
            Ok(Batch::default())
        })
    };
    let mut sources = vec![made(vec![service()], churn)];
    let pipeline = pipeline(&store, &mut sources);
    store.set(Fault::DiskFull);
    let running = tokio::spawn(Arc::clone(&pipeline).run(sources));
    sleep(5 * LOOK_EVERY).await;
    assert_eq!(pipeline.unsaved().len(), 1);
    store.set(Fault::None);
    sleep(5 * LOOK_EVERY).await;
    assert!(pipeline.unsaved().is_empty());
    assert_eq!(store.records(ADDRESSES).unwrap().len(), 1);
    running.abort();
}

/// What there is to begin with may have to be waited for, and until then nobody is told anything.
#[tokio::test(start_paused = true)]
async fn it_is_complete_when_every_source_is() {
    let complete = Arc::new(AtomicBool::new(false));
    let becomes = Arc::clone(&complete);
    let late = Made {
        first: Vec::new(),
        next: Box::new(move || {
            let becomes = Arc::clone(&becomes);
            if becomes.load(Ordering::Relaxed) {
                return Box::pin(std::future::pending());
            }
            Box::pin(async move {
                sleep(3 * LOOK_EVERY / 4).await;
                becomes.store(true, Ordering::Relaxed);
                Ok(Batch {
                    deltas: vec![service()],
                    ..Batch::default()
                })
            })
        }),
        complete,
    };
    let other = made(Vec::new(), || Box::pin(std::future::pending()));
    let mut sources: Vec<Box<dyn Source>> = vec![other, Box::new(late)];
    let pipeline = pipeline(&FaultyStore::new(), &mut sources);
    let early = tokio::time::timeout(LOOK_EVERY, pipeline.complete()).await;
    assert!(early.is_err(), "nobody has looked");
    let running = tokio::spawn(Arc::clone(&pipeline).run(sources));
    tokio::time::timeout(5 * LOOK_EVERY, pipeline.complete())
        .await
        .unwrap();
    assert!(pipeline.snapshot().compiled.service("shop/web").is_some());
    running.abort();
}

/// A source that always has another batch does not keep others waiting, whichever is first.
#[tokio::test(start_paused = true)]
async fn a_source_that_is_always_ready_starves_no_other() {
    const MANY: usize = 1_000;
    for busy_first in [true, false] {
        let (given, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let of_busy = Arc::clone(&given);
        let busy = made(Vec::new(), move || {
            match of_busy.fetch_add(1, Ordering::Relaxed) < MANY {
                true => Box::pin(async { Ok(Batch::default()) }),
                false => Box::pin(std::future::pending()),
            }
        });
        // Revocations, for instance; it ends when it has been taken.
        let (of_other, mut over) = (Arc::clone(&seen), false);
        let other = made(Vec::new(), move || {
            if std::mem::replace(&mut over, true) {
                return Box::pin(async { Err(StoreError::Closed) });
            }
            of_other.store(given.load(Ordering::Relaxed), Ordering::Relaxed);
            Box::pin(async { Ok(Batch::default()) })
        });
        let mut sources = match busy_first {
            true => vec![busy, other],
            false => vec![other, busy],
        };
        let pipeline = pipeline(&FaultyStore::new(), &mut sources);
        pipeline.run(sources).await;
        let before = seen.load(Ordering::Relaxed);
        assert!(
            before <= 1,
            "taken after {before} batches of the other source"
        );
    }
}
