//! The connections of one listener.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use weft_core::connections::Client;
use weft_core::slots::{Admission, Slots};

/// Those that are open.
#[derive(Debug)]
pub(super) struct Open(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    slots: Slots,
    /// Ends a connection for another one.
    evictions: HashMap<u64, CancellationToken>,
}

/// A connection's place, which it gives back.
#[derive(Debug)]
pub(super) struct Place {
    open: Arc<Open>,
    ticket: u64,
    /// The connection has to end.
    pub(super) evicted: CancellationToken,
}

impl Open {
    pub(super) fn new(max: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Inner {
            slots: Slots::new(max, per_address),
            evictions: HashMap::new(),
        })))
    }

    /// A place for a connection from this address, or for one over a Unix socket; `None` where it is to
    /// be closed.
    pub(super) fn admit(self: &Arc<Self>, address: Option<IpAddr>) -> Option<Place> {
        let address = address.map(|address| address.to_canonical());
        let remote = address.filter(|address| !address.is_loopback());
        // The whole address, of IPv6 too: a kubelet may be in one /64 with its pods.
        let client = remote.map_or(Client::Application, Client::Address);
        let mut inner = self.lock();
        let Admission::Admitted { ticket, evicted } = inner.slots.admit(client) else {
            return None;
        };
        if let Some(other) = evicted.and_then(|ticket| inner.evictions.remove(&ticket)) {
            other.cancel();
        }
        let evicted = CancellationToken::new();
        inner.evictions.insert(ticket, evicted.clone());
        Some(Place {
            open: Arc::clone(self),
            ticket,
            evicted,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.open.lock();
        inner.slots.remove(self.ticket);
        inner.evictions.remove(&self.ticket);
    }
}
