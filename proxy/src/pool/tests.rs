//! Requests that come to connections, with servers of hyper's at the other end.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::{Notify, oneshot};
use tokio::task::{LocalSet, spawn_local, yield_now};
use weft_core::dialling::{Bounds, Terms, Want};
use weft_core::name::ServiceName;
use weft_core::reason::Reason;
use weft_core::shares::{ClientKey, ClientKind};

use super::carrier::{Made, Place, Sender, Slot};
use super::error::DialError;
use super::owner::{Dialling, Owner, Process, SharedPeer, Worker};
use super::peer::{self, Held, Peer};
use super::shares::Shares;
use crate::config::ProxyConfig;
use crate::http::h2::Handle;
use crate::http::{Party, ProxyBody};
use crate::mesh::{ConnectionLimit, EndpointKey};
use crate::telemetry::metrics::{Metrics, PoolKind};

/// Requests that the server takes at a time on a connection.
const STREAMS: u32 = 2;

fn terms(connections: u32, waiting: u32) -> Terms {
    Terms {
        want: Want::Any,
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
    peer: Rc<Peer<Worker>>,
    metrics: Metrics,
    dials: Rc<Cell<u32>>,
    gate: Rc<Notify>,
    dial: <Worker as Owner>::Dial,
}

impl Bench {
    /// Dials wait for `gate` where it is `closed`.
    fn new(closed: bool) -> Self {
        let metrics = Metrics::new(10);
        let (dials, gate) = (Rc::<Cell<u32>>::default(), Rc::<Notify>::default());
        let (counter, waited) = (Rc::clone(&dials), Rc::clone(&gate));
        let dial = move || -> Dialling<Sender> {
            counter.set(counter.get() + 1);
            let waited = Rc::clone(&waited);
            Box::pin(async move {
                if closed {
                    waited.notified().await;
                }
                Ok(connection().await.of_worker())
            })
        };
        Self {
            peer: Peer::of_worker(PoolKind::Application, &metrics),
            metrics,
            dials,
            gate,
            dial: Rc::new(dial),
        }
    }

    async fn slot(&self, terms: Terms) -> Result<Held<Worker>, DialError> {
        match peer::take::<Worker>(&self.peer, &(), &terms) {
            Some(held) => Ok(held),
            None => peer::wait::<Worker>(&self.peer, &(), terms, Rc::clone(&self.dial)).await,
        }
    }
}

async fn connection() -> Made<Handle<ProxyBody>> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let never = hyper::service::service_fn(|_request| async {
        std::future::pending::<()>().await;
        Ok::<_, Infallible>(http::Response::new(
            http_body_util::Empty::<bytes::Bytes>::new(),
        ))
    });
    let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    server.max_concurrent_streams(STREAMS);
    spawn_local(server.serve_connection(TokioIo::new(far), never));
    let (line, streams) = super::streams::http2(near, &ProxyConfig::default(), Party::Peer);
    assert!(streams.settled().await);
    assert_eq!(streams.most(), STREAMS);
    Made {
        line,
        generation: 0,
        streams: Some(streams),
        signal: None,
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
            assert_eq!(bench.peer.look(|set| set.open()), 4);
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
            assert_eq!(
                (bench.dials.get(), bench.peer.look(|set| set.open())),
                (1, 1)
            );
        })
        .await;
}

#[tokio::test]
async fn who_waits_for_a_dial_that_fails_is_told() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let metrics = Metrics::new(10);
            let peer = Peer::of_worker(PoolKind::Mesh, &metrics);
            let dial: <Worker as Owner>::Dial =
                Rc::new(|| Box::pin(async { Err(DialError::NoCertificate) }));
            let terms = terms(100, 100);
            let waits = (0..3).map(|_| peer::wait::<Worker>(&peer, &(), terms, Rc::clone(&dial)));
            for told in futures_util::future::join_all(waits).await {
                assert!(matches!(told, Err(DialError::NoCertificate)), "{told:?}");
            }
            let stats = metrics.pool(PoolKind::Mesh);
            assert_eq!((stats.pending.get(), stats.connections.get()), (0, 0));
        })
        .await;
}

/// A connection that is a request's own counts until that has been sent, also where its answer has
/// ended before; nobody else is given a place on it, and who wants one waits within the limits.
#[tokio::test]
async fn a_connection_of_its_own_counts_until_its_request_was_sent() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let bench = Rc::new(Bench::new(false));
            let any = terms(1, 100);
            let own = Terms {
                want: Want::Own(crate::clock::now()),
                ..any
            };
            let slot = Slot(Place::Own(Rc::new(bench.slot(own).await.unwrap())));
            let (body, sent) = oneshot::channel();
            slot.keep_until_sent(sent);
            drop(slot);
            for terms in [any, own] {
                let late = bench.slot(terms).await.unwrap_err();
                assert!(
                    matches!(late, DialError::Busy { open: 1, patience, .. } if !patience.is_zero()),
                    "{late}"
                );
            }
            let waits = Rc::clone(&bench);
            let waits = spawn_local(async move { waits.slot(own).await });
            yield_now().await;
            assert_eq!(bench.dials.get(), 1);
            drop(body);
            let _held = waits.await.unwrap().unwrap();
            let stats = bench.metrics.pool(PoolKind::Application);
            assert_eq!((stats.connections.get(), stats.opened.get()), (1, 2));
        })
        .await;
}

/// The connections of all workers to a port with a limit.
fn limited(most: u32) -> (SharedPeer, Metrics) {
    let metrics = Metrics::new(10);
    let limit = ConnectionLimit::new(most);
    let peer = Peer::<Process>::new(PoolKind::Mesh, &metrics, limit);
    (Arc::new(peer), metrics)
}

fn endpoint(number: u8) -> EndpointKey {
    EndpointKey {
        service: ServiceName::new("shop", "web").unwrap(),
        port: 8080,
        instance: "one".into(),
        address: ([10, 0, 0, number], 8080).into(),
    }
}

async fn limited_place(peer: &SharedPeer, terms: Terms) -> Result<Held<Process>, DialError> {
    let key = endpoint(1);
    if let Some(held) = peer::take::<Process>(peer, &key, &terms) {
        return Ok(held);
    }
    let dial: <Process as Owner>::Dial = Arc::new(|| Box::pin(async { Ok(connection().await) }));
    peer::wait::<Process>(peer, &key, terms, dial).await
}

/// A thread like a worker's.
fn worker<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, work());
    })
}

/// A peer that takes two streams on a connection gets as many connections as the limit allows; what
/// does not fit waits, is counted, and is refused by name.
#[tokio::test]
async fn a_limited_port_learns_how_many_streams_its_peer_takes() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let (peer, metrics) = limited(2);
            let slots = (0..4).map(|_| limited_place(&peer, terms(2, 4)));
            let mut slots: Vec<_> = futures_util::future::join_all(slots).await;
            assert!(slots.iter().all(Result::is_ok), "{slots:?}");
            let stats = metrics.pool(PoolKind::Mesh);
            assert_eq!((stats.connections.get(), stats.opened.get()), (2, 2));
            let terms = terms(2, 2);
            let waits: Vec<_> = (0..2)
                .map(|_| {
                    let peer = Arc::clone(&peer);
                    spawn_local(async move { limited_place(&peer, terms).await })
                })
                .collect();
            yield_now().await;
            assert_eq!(stats.pending.get(), 2);
            let refused = limited_place(&peer, terms).await.unwrap_err();
            assert_eq!(refused.reason(), Reason::PendingLimit, "{refused}");
            assert_eq!(stats.overflowed.get(), 1);
            drop(slots.pop());
            let [first, second]: [_; 2] = waits.try_into().unwrap();
            let _served = first.await.unwrap().unwrap();
            let late = second.await.unwrap().unwrap_err();
            assert!(
                matches!(
                    late,
                    DialError::Busy {
                        open: 2,
                        most: 2,
                        ..
                    }
                ),
                "{late}"
            );
            assert_eq!((stats.pending.get(), stats.overflowed.get()), (0, 2));
        })
        .await;
}

/// A place that another kind of connection has given back is noticed.
#[tokio::test]
async fn a_limited_port_waits_for_places_that_others_have() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let (peer, metrics) = limited(1);
            let opaque = peer.limit().admit().unwrap();
            let waits = Arc::clone(&peer);
            let waits = spawn_local(async move { limited_place(&waits, terms(1, 9)).await });
            yield_now().await;
            assert_eq!(metrics.pool(PoolKind::Mesh).pending.get(), 1);
            drop(opaque);
            let held = waits.await.unwrap().unwrap();
            assert!(peer.limit().admit().is_none());
            drop(held);
            assert!(peer.evict_idle());
            assert!(peer.limit().admit().is_some());
        })
        .await;
}

/// Requests of two workers are served in the order in which they came, whichever worker's place
/// comes free.
#[test]
fn workers_wait_in_one_queue() {
    let (peer, _metrics) = limited(1);
    let (told, order) = mpsc::channel();
    let (all_wait, is_over) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let mut patient = terms(1, 100);
    patient.patience = Duration::from_secs(20);
    let asks: Vec<_> = (0..2)
        .map(|index| {
            let (ask, mut asked) = tokio::sync::mpsc::unbounded_channel::<u32>();
            let (peer, told) = (Arc::clone(&peer), told.clone());
            let (all_wait, is_over) = (Arc::clone(&all_wait), Arc::clone(&is_over));
            let thread = worker(move || async move {
                let mut tasks = Vec::new();
                while let Some(number) = asked.recv().await {
                    let (peer, told) = (Arc::clone(&peer), told.clone());
                    let (all_wait, is_over) = (Arc::clone(&all_wait), Arc::clone(&is_over));
                    tasks.push(spawn_local(async move {
                        let held = limited_place(&peer, patient).await.unwrap();
                        told.send((index, number)).unwrap();
                        let until = if index == 0 { &is_over } else { &all_wait };
                        while number == 0 && !until.load(Ordering::Acquire) {
                            yield_now().await;
                        }
                        drop(held);
                    }));
                }
                for task in tasks {
                    task.await.unwrap();
                }
            });
            (ask, thread)
        })
        .collect();
    // The first two take the two streams of the one connection.
    for (ask, _thread) in &asks {
        ask.send(0).unwrap();
        assert_eq!(order.recv().unwrap().1, 0);
    }
    for number in 1..=8 {
        asks[number as usize % 2].0.send(number).unwrap();
        while peer.look(|set| set.waiting()) < number {
            std::thread::yield_now();
        }
    }
    all_wait.store(true, Ordering::Release);
    // One place goes from hand to hand.
    let served: Vec<u32> = (0..8).map(|_| order.recv().unwrap().1).collect();
    assert_eq!(served, [1, 2, 3, 4, 5, 6, 7, 8]);
    is_over.store(true, Ordering::Release);
    for (ask, thread) in asks {
        drop(ask);
        thread.join().unwrap();
    }
}

/// From four workers at once: never more connections than may stand, and nobody is left waiting,
/// also where requests leave while they wait.
#[test]
fn a_limit_is_exact_over_all_workers() {
    let (peer, metrics) = limited(3);
    let mut patient = terms(3, 1000);
    patient.patience = Duration::from_secs(30);
    patient.requests = 7;
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let (peer, metrics) = (Arc::clone(&peer), metrics.clone());
            worker(move || async move {
                let asking = (0..16).map(|task| {
                    let (peer, metrics) = (Arc::clone(&peer), metrics.clone());
                    spawn_local(async move {
                        for round in 0..40 {
                            let place = limited_place(&peer, patient);
                            if (task + round) % 5 == 0 {
                                let hurried = Duration::from_micros(300);
                                let _left = tokio::time::timeout(hurried, place).await;
                                continue;
                            }
                            let held = place.await.unwrap();
                            let open = metrics.pool(PoolKind::Mesh).connections.get();
                            assert!(open <= 3, "{open}");
                            yield_now().await;
                            drop(held);
                        }
                    })
                });
                for asked in futures_util::future::join_all(asking).await {
                    asked.unwrap();
                }
                // The connections that this one drives are used by others.
                while peer.look(|set| set.is_busy()) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    assert_eq!(metrics.pool(PoolKind::Mesh).pending.get(), 0);
}

fn client(id: u64) -> ClientKey {
    let kind = ClientKind::Peer;
    ClientKey { kind, id }
}

/// A client at its share waits, and others do not; a place that is given back goes to who waits, and
/// one that nobody takes any more to the next.
#[tokio::test(start_paused = true)]
async fn clients_share_the_connections_to_the_application() {
    let metrics = Metrics::new(10);
    let stats = metrics.pool(PoolKind::Application);
    let shares = Shares::new(8, 8);
    let patience = Duration::from_secs(10);
    let mut held: Vec<_> = std::iter::from_fn(|| shares.take(client(1))).collect();
    assert_eq!(held.len(), 6);
    let other = shares.take(client(2));
    assert!(other.is_some());
    {
        let mut first = std::pin::pin!(shares.wait(client(1), patience, stats));
        let second = shares.wait(client(1), patience, stats);
        assert!(futures_util::poll!(&mut first).is_pending());
        let gives_back = async {
            yield_now().await;
            assert_eq!(stats.pending.get(), 2);
            drop(held.pop());
        };
        // It has its place, and leaves without it.
        let (second, ()) = tokio::join!(
            tokio::time::timeout(Duration::from_secs(1), second),
            gives_back
        );
        assert!(second.is_err());
        assert!(matches!(
            futures_util::poll!(&mut first),
            Poll::Ready(Ok(_))
        ));
    }
    assert_eq!(stats.pending.get(), 0);
    held.extend(shares.take(client(1)));
    assert_eq!(held.len(), 6);
    let began = tokio::time::Instant::now();
    let late = shares.wait(client(1), patience, stats).await.unwrap_err();
    assert!(matches!(late, DialError::Share { held: 6, .. }), "{late}");
    assert_eq!(
        (late.reason(), began.elapsed()),
        (Reason::PendingLimit, patience)
    );
    drop((held, other));
    assert!(shares.is_unused());
}
