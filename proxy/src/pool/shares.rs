//! The driver of [`weft_core::shares`]: requests that each hold a whole connection to the application
//! have a place among those of their client first, and wait for it where the client is at its share.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use weft_core::shares::{self, ClientKey, WaitingFull};

use super::error::DialError;
use crate::telemetry::metrics::PoolStats;

/// The places of one worker at one port of the application.
#[derive(Debug, Clone)]
pub(super) struct Shares(Rc<RefCell<shares::Shares<oneshot::Sender<Share>>>>);

/// A place, given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    of: Shares,
    client: ClientKey,
    /// Another place that the same request has.
    beside: Option<Box<Self>>,
}

impl Share {
    /// Both places, given back together.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.beside = Some(Box::new(other));
        self
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        drop(self.beside.take());
        self.of.0.borrow_mut().release(self.client);
        self.of.serve();
    }
}

impl Shares {
    pub(super) fn new(places: u32, waiting_max: u32) -> Self {
        Self(Rc::new(RefCell::new(shares::Shares::new(
            places,
            waiting_max,
        ))))
    }

    /// A place, if the client may have another now.
    pub(super) fn take(&self, client: ClientKey) -> Option<Share> {
        let taken = self.0.borrow_mut().take(client);
        taken.then(|| self.share(client))
    }

    /// A place, which is waited for.
    pub(super) async fn wait(
        &self,
        client: ClientKey,
        patience: Duration,
        stats: &PoolStats,
    ) -> Result<Share, DialError> {
        let (sender, receiver) = oneshot::channel();
        let ticket = self.0.borrow_mut().wait(client, sender);
        let ticket = ticket.map_err(|WaitingFull { waiting }| {
            stats.overflowed.inc();
            DialError::Full { waiting }
        })?;
        let waiting = Waiting {
            of: self,
            client,
            ticket,
            stats,
        };
        stats.pending.add(1);
        let told = timeout(patience, receiver).await;
        drop(waiting);
        match told {
            Ok(Ok(share)) => Ok(share),
            // Nobody drops a sender unanswered but at the end of a worker.
            Ok(Err(_)) | Err(_) => {
                stats.overflowed.inc();
                let held = self.0.borrow().held_by(client);
                Err(DialError::Share { patience, held })
            }
        }
    }

    /// Whether nobody has a place or waits for one.
    pub(super) fn is_unused(&self) -> bool {
        self.0.borrow().is_unused()
    }

    fn share(&self, client: ClientKey) -> Share {
        let of = self.clone();
        Share {
            of,
            client,
            beside: None,
        }
    }

    fn serve(&self) {
        loop {
            let served = self.0.borrow_mut().serve();
            let Some((client, waiter)) = served else {
                return;
            };
            // Gone meanwhile: dropped, the place is another's.
            let _taken = waiter.send(self.share(client));
        }
    }
}

/// A request that waits; it may leave at any time.
struct Waiting<'a> {
    of: &'a Shares,
    client: ClientKey,
    ticket: u64,
    stats: &'a PoolStats,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.of.0.borrow_mut().leave(self.client, self.ticket);
        self.stats.pending.add(-1);
    }
}
