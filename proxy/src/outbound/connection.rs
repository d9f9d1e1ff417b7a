//! What a request is sent over: a place on a shared connection, or a connection of its own.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderValue, Request, Response, Version};
use tokio::time::timeout;
use weft_core::headers::{WEFT_CONTINUE, WEFT_EXPECT};
use weft_core::reason::Reason;

use super::upgrade::OwnConnection;
use crate::http::h1::{CONTINUE_WAIT, Expectation};
use crate::http::{Incoming, ProxyBody, SendError};
use crate::mesh::{Endpoint, PortView};
use crate::pool::{DialError, Sender, Slot};
use crate::tls::Signal;
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
        request: Box<Request<ProxyBody>>,
    ) -> Result<Response<Incoming>, SendError> {
        match self {
            Self::Shared(slot) => send(slot.sender(), request).await,
            Self::Own(own) => Box::pin(own.send(request)).await,
        }
    }

    /// What ends it, where it is the request's own and one to another sidecar.
    pub(super) fn signal(&self) -> Option<Arc<Signal>> {
        match self {
            Self::Shared(_) => None,
            Self::Own(own) => own.signal(),
        }
    }

    /// Why it is cut, where it is one to another sidecar; `None` where it is not.
    pub(super) fn cut_reason(&self) -> Option<Reason> {
        match self {
            Self::Shared(slot) => slot.cut_reason(),
            Self::Own(own) => own.cut_reason(),
        }
    }
}

/// Sends a request. The client of one that expects 100 is told to go on when the application says
/// so to its sidecar, or after [`CONTINUE_WAIT`] (RFC 9110 section 10.1.1).
async fn send(
    mut sender: Sender,
    mut request: Box<Request<ProxyBody>>,
) -> Result<Response<Incoming>, SendError> {
    let expectation = request.extensions_mut().remove::<Expectation>();
    let Some(expectation) = expectation.filter(|_| sender.is_mesh()) else {
        return sender.try_send_request(request).await;
    };
    // On the heap: few requests expect it.
    Box::pin(async move {
        let held = expectation.hold();
        let number = HeaderValue::from(fastrand::u64(1..));
        let mut asking = Request::new(ProxyBody::Empty);
        *asking.uri_mut() = request.uri().clone();
        *asking.version_mut() = Version::HTTP_2;
        asking.headers_mut().insert(WEFT_CONTINUE, number.clone());
        request.headers_mut().insert(WEFT_EXPECT, number);
        let mut beside = sender.clone();
        let mut sending = pin!(sender.try_send_request(request));
        let waiting = timeout(CONTINUE_WAIT, beside.try_send_request(Box::new(asking)));
        tokio::select! {
            biased;
            response = &mut sending => return response,
            _may_go_on = waiting => drop(held),
        }
        sending.await
    })
    .await
}
