//! Connections to ports that have a limit on them: counted over all workers, and shared by them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use weft_core::name::ServiceName;

use super::owner::{Process, SharedPeer};
use super::peer::Peer;
use crate::mesh::{EndpointKey, PortView};
use crate::telemetry::metrics::{Metrics, PoolKind};

/// Names a port of a service.
pub(super) type PortKey = (ServiceName, u16);

/// The connections to all ports with a limit, of all workers.
///
/// It is locked when a worker first uses a port, and now and then; each port's connections have a
/// lock of their own.
#[derive(Debug, Default)]
pub struct Limited(Mutex<HashMap<PortKey, SharedPeer>>);

impl Limited {
    fn lock(&self) -> MutexGuard<'_, HashMap<PortKey, SharedPeer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connections to a port. As long as somebody has them they are the only ones.
    pub(super) fn peer(&self, port: &PortView, metrics: &Metrics) -> SharedPeer {
        let mut all = self.lock();
        let new = || {
            let limit = port.connections();
            Arc::new(Peer::<Process>::new(PoolKind::Mesh, metrics, limit))
        };
        let peer = all.entry((port.service.clone(), port.port));
        let peer = peer.or_insert_with(new);
        // A service of the same name that has come in the place of one that was removed.
        if !peer.limit().is_of(port) {
            std::mem::replace(peer, new()).close();
        }
        Arc::clone(peer)
    }

    /// Closes connections that were idle for longer than those to their endpoint may be.
    pub(super) fn sweep(&self, idle: impl Fn(&EndpointKey) -> Option<Duration>) {
        self.lock().retain(|_port, peer| {
            let idle = |key: &EndpointKey, _| idle(key).unwrap_or_default();
            // Workers take their references from here: nobody can while this is locked.
            peer.sweep(idle, usize::MAX) || Arc::strong_count(peer) > 1
        });
    }

    /// Whether requests are under way over any of them, or wait.
    pub(crate) fn is_busy(&self) -> bool {
        let all = self.lock();
        let mut all = all.values();
        all.any(|peer| peer.look(|set| set.is_busy()))
    }
}
