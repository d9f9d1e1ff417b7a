//! Requests that come to connections, with servers of hyper's at the other end.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local, yield_now};
use weft_core::dialling::Bounds;
use weft_core::reason::Reason;

use super::carrier::{Far, Line, Made, Sender, Slot};
use super::error::DialError;
use super::peer::{Dial, Peer, Terms};
use super::streams::http2;
use crate::config::ProxyConfig;
use crate::http::{LocalExecutor, Server};
use crate::telemetry::metrics::{Metrics, PoolKind};

/// Requests that the server takes at a time on a connection.
const STREAMS: u32 = 2;

fn terms(connections: u32, waiting: u32) -> Terms {
    Terms {
        generation: 0,
        requests: u32::MAX,
        streams: u32::MAX,
        exclusive: Some(false),
        bounds: Bounds {
            connections,
            dials: 8,
            waiting,
        },
        patience: Duration::from_millis(200),
    }
}

/// A destination, its dials, and what they wait for.
struct Bench {
    peer: Rc<Peer>,
    metrics: Metrics,
    dials: Rc<Cell<u32>>,
    gate: Rc<Notify>,
    dial: Dial,
}

impl Bench {
    /// Dials wait for `gate` where it is `closed`.
    fn new(closed: bool) -> Self {
        let metrics = Metrics::new(10);
        let (dials, gate) = (Rc::<Cell<u32>>::default(), Rc::<Notify>::default());
        let (counter, waited) = (Rc::clone(&dials), Rc::clone(&gate));
        let dial: Dial = Rc::new(move || {
            counter.set(counter.get() + 1);
            let waited = Rc::clone(&waited);
            Box::pin(async move {
                if closed {
                    waited.notified().await;
                }
                Ok(connection().await)
            })
        });
        Self {
            peer: Peer::new(PoolKind::Application, &metrics),
            metrics,
            dials,
            gate,
            dial,
        }
    }

    async fn slot(&self, terms: Terms) -> Result<Slot, DialError> {
        match self.peer.take(&terms) {
            Some(slot) => Ok(slot),
            None => self.peer.wait(terms, Rc::clone(&self.dial)).await,
        }
    }
}

async fn connection() -> Made {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let never = hyper::service::service_fn(|_request| async {
        std::future::pending::<()>().await;
        Ok::<_, Infallible>(http::Response::new(
            http_body_util::Empty::<bytes::Bytes>::new(),
        ))
    });
    let mut server = hyper::server::conn::http2::Builder::new(LocalExecutor);
    server.max_concurrent_streams(STREAMS);
    spawn_local(server.serve_connection(TokioIo::new(far), never));
    let config = Arc::new(ProxyConfig::default());
    let made = http2(near, &config, Server::Application).await;
    let (sender, streams) = made.unwrap();
    assert!(streams.settled().await);
    assert_eq!(streams.most(), STREAMS);
    Made {
        sender: Sender::new(Line::Http2(sender), Far::Application, &config),
        generation: 0,
        streams: Some(streams),
    }
}

#[tokio::test]
async fn as_many_connections_as_it_takes() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let bench = Bench::new(false);
            let slots = (0..7).map(|_| bench.slot(terms(100, 100)));
            let slots: Vec<_> = futures_util::future::join_all(slots).await;
            assert!(slots.iter().all(Result::is_ok), "{slots:?}");
            assert_eq!(bench.peer.open(), 4);
            assert_eq!(bench.metrics.pool(PoolKind::Application).pending.get(), 0);
            drop(slots);
            // What stands is used again.
            let dials = bench.dials.get();
            assert!(bench.slot(terms(100, 100)).await.is_ok());
            assert_eq!(bench.dials.get(), dials);
        })
        .await;
}

#[tokio::test]
async fn within_the_limit_they_wait_and_beyond_it_they_are_refused() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let bench = Rc::new(Bench::new(false));
            let terms = terms(1, 1);
            let first = bench.slot(terms).await.unwrap();
            let _second = bench.slot(terms).await.unwrap();
            let waits = Rc::clone(&bench);
            let third = spawn_local(async move { waits.slot(terms).await });
            yield_now().await;
            let pending = || bench.metrics.pool(PoolKind::Application).pending.get();
            assert_eq!(pending(), 1);
            let fourth = bench.slot(terms).await.unwrap_err();
            assert!(matches!(fourth, DialError::Full { waiting: 1 }), "{fourth}");
            assert_eq!(fourth.reason(), Reason::PendingLimit);
            drop(first);
            let _third = third.await.unwrap().unwrap();
            assert_eq!(pending(), 0);
            let late = bench.slot(terms).await.unwrap_err();
            assert!(
                matches!(
                    late,
                    DialError::Busy {
                        open: 1,
                        most: 1,
                        ..
                    }
                ),
                "{late}"
            );
            assert_eq!(pending(), 0);
            assert_eq!(bench.dials.get(), 1);
        })
        .await;
}

/// A storm of requests that leave makes one connection and not one each; it serves who comes next.
#[tokio::test]
async fn a_dial_goes_on_when_its_request_leaves() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let bench = Rc::new(Bench::new(true));
            let terms = terms(100, 1000);
            for _ in 0..500 {
                let left = tokio::time::timeout(Duration::ZERO, bench.slot(terms)).await;
                assert!(left.is_err());
            }
            assert_eq!(bench.dials.get(), 1);
            let stays = Rc::clone(&bench);
            let stays = spawn_local(async move { stays.slot(terms).await });
            yield_now().await;
            bench.gate.notify_one();
            assert!(stays.await.unwrap().is_ok());
            assert_eq!((bench.dials.get(), bench.peer.open()), (1, 1));
        })
        .await;
}

#[tokio::test]
async fn who_waits_for_a_dial_that_fails_is_told() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let metrics = Metrics::new(10);
            let peer = Peer::new(PoolKind::Mesh, &metrics);
            let dial: Dial = Rc::new(|| Box::pin(async { Err(DialError::NoCertificate) }));
            let waits = (0..3).map(|_| peer.wait(terms(100, 100), Rc::clone(&dial)));
            for told in futures_util::future::join_all(waits).await {
                assert!(matches!(told, Err(DialError::NoCertificate)), "{told:?}");
            }
            let stats = metrics.pool(PoolKind::Mesh);
            assert_eq!((stats.pending.get(), stats.connections.get()), (0, 0));
        })
        .await;
}
