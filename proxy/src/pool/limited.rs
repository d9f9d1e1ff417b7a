//! Connections to ports that have a limit on them: counted over all workers, and shared by them.
//! This is the one place where a request goes over a connection that another worker drives: each
//! worker with connections of its own could neither keep a limit below the number of workers nor
//! leave any worker without. As elsewhere, a connection that is being made belongs to the port.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::client::conn::http2::SendRequest;
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Notify, oneshot};
use tokio::task::spawn_local;
use tokio::time::timeout_at;
use weft_core::name::ServiceName;
use weft_core::time::Instant;

use super::Pool;
use super::carrier::Slot;
use super::dialling::{MeshTarget, handshake};
use super::error::DialError;
use crate::http::ProxyBody;
use crate::mesh::{Counted, Endpoint, EndpointKey, PortView};

/// One connection that all workers use.
#[derive(Debug)]
pub(super) struct Common {
    key: EndpointKey,
    pub(super) sender: SendRequest<ProxyBody>,
    in_flight: AtomicU32,
    /// Requests that it has been given.
    carried: AtomicU32,
    generation: u64,
    /// Nanoseconds of the process's clock.
    last_used: AtomicU64,
    /// Requests that it takes at a time.
    streams: u32,
    /// Told when it has room again, or nothing to do.
    changed: Arc<Notify>,
    /// Its place within the port's limit, until the last request on it has ended.
    _counted: Counted,
}

impl Common {
    /// One request has ended.
    pub(super) fn leave(&self) {
        let now = crate::clock::now().as_nanos();
        self.last_used.store(now, Ordering::Relaxed);
        let before = self.in_flight.fetch_sub(1, Ordering::Release);
        if before == 1 || before >= self.streams {
            self.changed.notify_waiters();
        }
    }

    fn is_idle(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) == 0
    }
}

/// The connections of one port.
#[derive(Debug, Default)]
struct Carriers {
    standing: Vec<Arc<Common>>,
    /// To whom one is being made.
    making: Vec<EndpointKey>,
}

/// The connections of all ports with a limit, of all workers.
#[derive(Debug, Default)]
pub struct Limited(Mutex<HashMap<(ServiceName, u16), Carriers>>);

/// What a request comes to that needs a connection.
enum Next {
    Take(Arc<Common>),
    Make(Counted),
    Wait(OwnedNotified),
}

/// How many requests a connection takes.
#[derive(Clone, Copy)]
struct Room {
    /// At a time.
    streams: u32,
    /// In all.
    requests: u32,
    /// Those of other generations are taken only where no other may be made.
    generation: u64,
}

impl Limited {
    fn lock(&self) -> MutexGuard<'_, HashMap<(ServiceName, u16), Carriers>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a request to an endpoint comes to; one is on its connection from then on.
    fn next(&self, port: &PortView, key: &EndpointKey, room: Room) -> Next {
        let mut all = self.lock();
        let carriers = all.entry((port.service.clone(), port.port)).or_default();
        // Before anything is looked at: what changes from now on is told.
        let changed = Arc::clone(port.connections_changed()).notified_owned();
        let spent = |common: &Common| common.carried.load(Ordering::Relaxed) >= room.requests;
        carriers
            .standing
            .retain(|common| !(common.sender.is_closed() || spent(common) && common.is_idle()));
        let current = |common: &Common| !spent(common) && common.generation == room.generation;
        if let Some(common) = carriers.take(key, room.streams, current) {
            return Next::Take(common);
        }
        if carriers.making.contains(key) {
            return Next::Wait(changed);
        }
        if let Some(counted) = port.admit_connection().or_else(|| {
            carriers.drop_idle();
            port.admit_connection()
        }) {
            carriers.making.push(key.clone());
            return Next::Make(counted);
        }
        let any = carriers.take(key, room.streams, |common| !spent(common));
        any.map_or(Next::Wait(changed), Next::Take)
    }

    /// Endpoints of a port to which no connection stands while none may be made.
    fn out_of_reach(&self, port: &PortView) -> Vec<EndpointKey> {
        let all = self.lock();
        let Some(carriers) = all.get(&(port.service.clone(), port.port)) else {
            return Vec::new();
        };
        let spare = port.has_room_for_connection()
            || carriers.standing.iter().any(|common| common.is_idle());
        if spare {
            return Vec::new();
        }
        let keys = port.endpoints.iter().map(|endpoint| &endpoint.key);
        let stands = |key: &EndpointKey| {
            let mut standing = carriers.standing.iter();
            standing.any(|common| common.key == *key) || carriers.making.contains(key)
        };
        keys.filter(|key| !stands(key)).cloned().collect()
    }

    /// Closes connections that were idle for longer than those to their endpoint may be.
    pub(super) fn sweep(&self, idle: impl Fn(&EndpointKey) -> Option<Duration>) {
        let now = crate::clock::now();
        self.lock().retain(|_port, carriers| {
            carriers.standing.retain(|common| {
                let used = Instant::from_nanos(common.last_used.load(Ordering::Relaxed));
                let idle = idle(&common.key).unwrap_or_default();
                let stays = !common.is_idle() || now.saturating_since(used) < idle;
                stays && !common.sender.is_closed()
            });
            !carriers.standing.is_empty() || !carriers.making.is_empty()
        });
    }
}

impl Carriers {
    fn take(
        &self,
        key: &EndpointKey,
        streams: u32,
        fits: impl Fn(&Common) -> bool,
    ) -> Option<Arc<Common>> {
        // Only here, under the lock, does a request come to a connection.
        let has_room = |common: &&Arc<Common>| {
            common.key == *key && common.in_flight.load(Ordering::Relaxed) < streams && fits(common)
        };
        let common = self.standing.iter().find(has_room)?;
        common.in_flight.fetch_add(1, Ordering::Relaxed);
        common.carried.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(common))
    }

    /// Closes one on which nothing is under way: its place is needed.
    fn drop_idle(&mut self) {
        let idle = self.standing.iter().position(|common| common.is_idle());
        if let Some(index) = idle {
            drop(self.standing.swap_remove(index));
        }
    }
}

/// A connection that is being made; dropped, it is not any more.
struct Making {
    limited: Arc<Limited>,
    port: (ServiceName, u16),
    key: EndpointKey,
    changed: Arc<Notify>,
}

impl Making {
    fn done(self, common: &Arc<Common>) {
        let mut all = self.limited.lock();
        let carriers = all.entry(self.port.clone()).or_default();
        carriers.standing.push(Arc::clone(common));
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        let mut all = self.limited.lock();
        if let Some(carriers) = all.get_mut(&self.port) {
            carriers.making.retain(|key| *key != self.key);
        }
        self.changed.notify_waiters();
    }
}

impl Pool {
    /// A place on a connection that counts within its port's limit. Where there is none it is waited
    /// for, as long as connecting may take.
    pub(super) async fn limited_slot(
        &self,
        port: &PortView,
        endpoint: &Endpoint,
        most: u32,
    ) -> Result<Slot, DialError> {
        let patience = tokio::time::Instant::now() + port.connect_timeout(&self.config);
        loop {
            let material = self.tls.current().ok_or(DialError::NoCertificate)?;
            let room = Room {
                streams: self.config.limits.max_concurrent_streams,
                requests: port.policy.requests_per_connection.unwrap_or(u32::MAX),
                generation: material.generation,
            };
            let counted = match self.limited.next(port, &endpoint.key, room) {
                Next::Take(common) => return Ok(Slot::common(common)),
                Next::Make(counted) => counted,
                Next::Wait(change) => {
                    let told = timeout_at(patience, change).await;
                    told.map_err(|_elapsed| DialError::Limited {
                        address: endpoint.key.address,
                        limit: most,
                    })?;
                    continue;
                }
            };
            let making = Making {
                limited: Arc::clone(&self.limited),
                port: (port.service.clone(), port.port),
                key: endpoint.key.clone(),
                changed: Arc::clone(port.connections_changed()),
            };
            let target = MeshTarget::of(port, endpoint);
            let (config, metrics) = (Arc::clone(&self.config), self.metrics.clone());
            let limit = port.connect_timeout(&config);
            let (sender, made) = oneshot::channel();
            // It goes on when this request leaves, and serves those that wait.
            spawn_local(async move {
                let made = match handshake(&target, &material, limit, (&config, &metrics)).await {
                    Ok(sender) => {
                        let common = Arc::new(Common {
                            key: making.key.clone(),
                            sender,
                            in_flight: AtomicU32::new(1),
                            carried: AtomicU32::new(1),
                            generation: material.generation,
                            last_used: AtomicU64::default(),
                            streams: room.streams,
                            changed: Arc::clone(&making.changed),
                            _counted: counted,
                        });
                        making.done(&common);
                        Ok(Slot::common(common))
                    }
                    Err(error) => {
                        // Given back before others are told that there is no connection.
                        drop(counted);
                        drop(making);
                        Err(error)
                    }
                };
                // Gone meanwhile: dropped, the place is another's.
                let _taken = sender.send(made);
            });
            // Nobody drops the sender unanswered but at the end of the worker.
            return made.await.unwrap_or_else(|_dropped| {
                Err(DialError::Limited {
                    address: endpoint.key.address,
                    limit: most,
                })
            });
        }
    }

    /// The endpoints of a port that cannot be reached while as many connections stand as may.
    pub(crate) fn out_of_reach(&self, port: &PortView) -> Vec<EndpointKey> {
        match port.policy.max_connections {
            Some(_) => self.limited.out_of_reach(port),
            None => Vec::new(),
        }
    }

    /// A place among the port's connections for one of another kind, where need be in the place of
    /// one on which nothing is under way.
    pub(crate) fn admit_connection(&self, port: &PortView) -> Option<Counted> {
        port.admit_connection().or_else(|| {
            let mut all = self.limited.lock();
            let carriers = all.get_mut(&(port.service.clone(), port.port))?;
            carriers.drop_idle();
            port.admit_connection()
        })
    }
}
