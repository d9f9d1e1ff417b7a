//! One connection that requests are sent over, and a request's place on it.

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use http::uri::Scheme;
use http::{Request, Response, Uri, Version};
use hyper::client::conn::http2;
use tokio::time::{Instant, sleep};
use weft_core::headers::remove_untrusted;

use super::limited::Common;
use super::peer::{Open, Peer};
use super::streams::Streams;
use crate::config::ProxyConfig;
use crate::http::h1::client::{ClientError, SharedLine};
use crate::http::{ExchangeError, Incoming, ProxyBody, SendError, make_absolute, send_http2};

/// A connection in HTTP/1.1 whose answer has ended may still have to take the end of a request: it is
/// looked at again after this time.
const READY_AGAIN: Duration = Duration::from_millis(2);

/// What is spoken on a connection.
#[derive(Debug, Clone)]
pub(super) enum Line {
    Http1(SharedLine),
    Http2(http2::SendRequest<ProxyBody>),
}

/// Who is on the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Far {
    /// Another sidecar.
    Peer,
    /// The application beside this sidecar.
    Application,
    /// A server outside the mesh, in TLS or not.
    External {
        /// Whether the connection is in TLS.
        tls: bool,
    },
}

/// What requests are sent with.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    line: Line,
    far: Far,
    /// What the head of a response in HTTP/2 may have, in bytes.
    head_bytes: usize,
}

impl Sender {
    pub(super) fn new(line: Line, far: Far, config: &ProxyConfig) -> Self {
        Self {
            line,
            far,
            head_bytes: config.limits.max_header_bytes.bytes(),
        }
    }

    /// To another sidecar. What its application may send is that one's own to say.
    pub(super) fn mesh(sender: http2::SendRequest<ProxyBody>) -> Self {
        Self {
            line: Line::Http2(sender),
            far: Far::Peer,
            head_bytes: usize::MAX,
        }
    }

    /// Whether it leads to another sidecar.
    pub(crate) fn is_mesh(&self) -> bool {
        self.far == Far::Peer
    }

    /// Sends a request, which is absolute unless it goes to the application; the error gives it back where nothing of it was sent.
    pub(crate) async fn try_send_request(
        &mut self,
        mut request: Request<ProxyBody>,
    ) -> Result<Response<Incoming>, SendError> {
        let limit = self.head_bytes;
        match (&mut self.line, self.far) {
            (Line::Http2(sender), Far::Peer) => send_http2(sender, request, limit).await,
            (Line::Http2(sender), Far::Application) => {
                make_absolute(&mut request);
                *request.version_mut() = Version::HTTP_2;
                send_http2(sender, request, limit).await
            }
            (Line::Http1(sender), Far::Peer | Far::Application) => {
                Box::pin(send_http1(sender, request)).await
            }
            (line, Far::External { tls }) => {
                Box::pin(send_outside(line, (tls, limit), request)).await
            }
        }
    }

    /// Sends a request.
    pub(crate) async fn send_request(
        &mut self,
        request: Request<ProxyBody>,
    ) -> Result<Response<Incoming>, ExchangeError> {
        let sent = self.try_send_request(request).await;
        sent.map_err(|failed| failed.error)
    }

    fn is_closed(&self) -> bool {
        match &self.line {
            Line::Http1(sender) => sender.is_closed(),
            Line::Http2(sender) => sender.is_closed(),
        }
    }

    fn is_exclusive(&self) -> bool {
        matches!(self.line, Line::Http1(_))
    }
}

async fn send_http1(
    line: &SharedLine,
    request: Request<ProxyBody>,
) -> Result<Response<Incoming>, SendError> {
    let Some((connection, home)) = line.take() else {
        return Err(SendError {
            unsent: Some(Box::new(request)),
            error: ClientError::Closed.into(),
        });
    };
    connection.send(request, home).await
}

/// Sends a request out of the mesh. Nothing that is the mesh's own leaves it, and nothing that comes
/// back speaks for it.
async fn send_outside(
    line: &mut Line,
    (tls, limit): (bool, usize),
    mut request: Request<ProxyBody>,
) -> Result<Response<Incoming>, SendError> {
    remove_untrusted(request.headers_mut());
    let mut response = match line {
        Line::Http1(sender) => send_http1(sender, request).await?,
        Line::Http2(sender) => {
            if tls {
                secure(request.uri_mut());
            }
            send_http2(sender, request, limit).await?
        }
    };
    remove_untrusted(response.headers_mut());
    Ok(response)
}

/// What the program asks for in the clear is asked for in TLS.
fn secure(uri: &mut Uri) {
    let mut parts = std::mem::take(uri).into_parts();
    if parts.scheme.is_some() {
        parts.scheme = Some(Scheme::HTTPS);
    }
    // Only the scheme is another one.
    *uri = Uri::from_parts(parts).unwrap_or_default();
}

/// A connection that has just been made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) sender: Sender,
    /// Of which terms.
    pub(super) generation: u64,
    /// How many requests its server takes at a time; `None`: one.
    pub(super) streams: Option<Rc<Streams>>,
}

/// One connection to a destination, shared where its protocol allows that.
#[derive(Debug)]
pub(super) struct Carrier {
    sender: Sender,
    peer: Weak<Peer>,
    in_flight: Cell<u32>,
    /// Requests that it has been given.
    carried: Cell<u32>,
    streams: Option<Rc<Streams>>,
    /// Whether its server takes no further request.
    retired: Cell<bool>,
    generation: u64,
    last_used: Cell<Instant>,
    _open: Open,
}

impl Carrier {
    pub(super) fn new(made: Made, peer: &Rc<Peer>) -> Rc<Self> {
        if let Some(streams) = &made.streams {
            streams.serves(peer);
        }
        Rc::new(Self {
            sender: made.sender,
            peer: Rc::downgrade(peer),
            in_flight: Cell::new(0),
            carried: Cell::new(0),
            streams: made.streams,
            retired: Cell::new(false),
            generation: made.generation,
            last_used: Cell::new(Instant::now()),
            _open: peer.opened(),
        })
    }

    /// A place for one request.
    pub(super) fn place(self: &Rc<Self>) -> Slot {
        self.in_flight.set(self.in_flight.get() + 1);
        self.carried.set(self.carried.get().saturating_add(1));
        Slot(Place::Own(Rc::clone(self)))
    }

    /// Whether it takes one request at a time.
    pub(super) fn is_exclusive(&self) -> bool {
        self.sender.is_exclusive()
    }

    /// Whether further requests may be sent over it.
    pub(super) fn is_usable(&self) -> bool {
        !self.retired.get() && !self.sender.is_closed()
    }

    /// Whether it takes a request at once.
    pub(super) fn is_ready(&self) -> bool {
        match &self.sender.line {
            Line::Http1(sender) => sender.is_ready(),
            Line::Http2(_) => true,
        }
    }

    /// Until it takes a request, or never will.
    pub(super) async fn ready(&self) {
        if let Line::Http1(line) = &self.sender.line {
            while !line.is_ready() && !line.is_closed() {
                sleep(READY_AGAIN).await;
            }
        }
    }

    /// Whether it takes one more request, of at most so many at a time.
    pub(super) fn has_room(&self, most: u32) -> bool {
        self.in_flight.get() < most.min(self.streams())
    }

    /// How many requests its server takes at a time.
    pub(super) fn streams(&self) -> u32 {
        self.streams.as_ref().map_or(1, |streams| streams.most())
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    pub(super) fn carried(&self) -> u32 {
        self.carried.get()
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn last_used(&self) -> Instant {
        self.last_used.get()
    }
}

/// A place on a connection for one request.
#[derive(Debug)]
pub struct Slot(Place);

/// Whose connection it is.
#[derive(Debug)]
enum Place {
    /// The worker's own.
    Own(Rc<Carrier>),
    /// One of all workers.
    Common(Arc<Common>),
}

impl Slot {
    pub(super) fn common(common: Arc<Common>) -> Self {
        Self(Place::Common(common))
    }

    /// What requests are sent with.
    pub(crate) fn sender(&self) -> Sender {
        match &self.0 {
            Place::Own(carrier) => carrier.sender.clone(),
            Place::Common(common) => Sender::mesh(common.sender.clone()),
        }
    }

    /// Whether its connection has carried other requests: its server may have closed it meanwhile.
    pub(crate) fn is_reused(&self) -> bool {
        match &self.0 {
            Place::Own(carrier) => carrier.carried() > 1,
            Place::Common(_) => true,
        }
    }

    /// How long its connection had carried nothing.
    pub(crate) fn unused_for(&self) -> Duration {
        match &self.0 {
            Place::Own(carrier) => carrier.last_used().elapsed(),
            Place::Common(_) => Duration::ZERO,
        }
    }

    /// Its connection's server takes no further requests: others are sent elsewhere.
    pub(crate) fn retire(&self) {
        if let Place::Own(carrier) = &self.0 {
            carrier.retired.set(true);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        match &self.0 {
            Place::Own(carrier) => {
                carrier.in_flight.set(carrier.in_flight.get() - 1);
                carrier.last_used.set(Instant::now());
                if let Some(peer) = carrier.peer.upgrade() {
                    peer.on_left(carrier);
                }
            }
            Place::Common(common) => common.leave(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_scheme_changes() {
        let mut uri: Uri = "http://api.example.com:8080/a?b=c".parse().unwrap();
        secure(&mut uri);
        assert_eq!(uri, "https://api.example.com:8080/a?b=c");
    }
}
