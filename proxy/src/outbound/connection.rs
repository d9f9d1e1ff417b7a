//! What a request is sent over: a place on a shared connection, or a connection of its own.

use std::rc::Rc;

use http::{Request, Response};

use super::pool::{DialError, Slot};
use super::upgrade::OwnConnection;
use crate::http::{Incoming, ProxyBody, SendError};
use crate::mesh::{Endpoint, PortView};
use crate::worker::Worker;

/// A connection for one request, given back when dropped.
#[derive(Debug)]
pub(super) enum Connection {
    /// A place on one that others use as well.
    Shared(Slot),
    /// One that may become a stream of bytes.
    Own(Box<OwnConnection>),
}

impl Connection {
    /// Gets one to an endpoint: of the request's `own`, or shared.
    pub(super) async fn acquire(
        worker: &Rc<Worker>,
        port: &PortView,
        endpoint: &Endpoint,
        own: bool,
    ) -> Result<Self, DialError> {
        if own {
            // On the heap: ordinary requests need no room for it.
            let opening = Box::pin(OwnConnection::open(worker, port, endpoint));
            return Ok(Self::Own(Box::new(opening.await?)));
        }
        let slot = worker.pool.slot(port, endpoint).await?;
        Ok(Self::Shared(slot))
    }

    /// Sends a request; the error gives it back where nothing of it was sent.
    pub(super) async fn send(
        &mut self,
        request: Request<ProxyBody>,
    ) -> Result<Response<Incoming>, SendError> {
        match self {
            Self::Shared(slot) => slot.sender().try_send_request(request).await,
            Self::Own(own) => Box::pin(own.send(request)).await,
        }
    }

    /// Whether it is the request's own.
    pub(super) fn is_own(&self) -> bool {
        matches!(self, Self::Own(_))
    }
}
