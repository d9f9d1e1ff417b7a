//! One connection that requests are sent over, and a request's place on it.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Scheme;
use http::{Request, Response, Uri, Version};
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use weft_core::headers::remove_untrusted;
use weft_core::reason::Reason;

use super::owner::{Process, Wire as _, Worker};
use super::peer::Held;
use super::streams::Streams;
use crate::http::h1::client::{ClientError, SharedLine};
use crate::http::h2::Handle;
use crate::http::{ExchangeError, Incoming, ProxyBody, SendError, make_absolute, send_http2};
use crate::tls::Signal;

/// What is spoken on a connection.
#[derive(Debug, Clone)]
pub(super) enum Line {
    Http1(SharedLine),
    Http2(Handle<ProxyBody>),
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
    pub(super) line: Line,
    far: Far,
    /// Whether its server has announced extended `CONNECT` (RFC 8441 section 3).
    extended_connect: bool,
}

impl Sender {
    pub(super) fn new(line: Line, far: Far) -> Self {
        Self {
            line,
            far,
            extended_connect: false,
        }
    }

    /// The same, of a connection whose SETTINGS have come.
    pub(super) fn announced(self, streams: &Streams) -> Self {
        Self {
            extended_connect: streams.extended_connect(),
            ..self
        }
    }

    /// Whether its server takes extended `CONNECT`, as far as it had said when the connection was
    /// made.
    pub(crate) fn takes_extended_connect(&self) -> bool {
        self.extended_connect
    }

    /// To another sidecar. What its application may send is that one's own to say.
    pub(super) fn mesh(line: Handle<ProxyBody>) -> Self {
        Self::new(Line::Http2(line), Far::Peer)
    }

    /// Whether it leads to another sidecar.
    pub(crate) fn is_mesh(&self) -> bool {
        self.far == Far::Peer
    }

    /// Sends a request, which is absolute unless it goes to the application; the error gives it back where nothing of it was sent.
    pub(crate) async fn try_send_request(
        &mut self,
        mut request: Box<Request<ProxyBody>>,
    ) -> Result<Response<Incoming>, SendError> {
        match (&self.line, self.far) {
            (Line::Http2(line), Far::Peer) => send_http2(line, request).await,
            (Line::Http2(line), Far::Application) => {
                make_absolute(&mut request);
                *request.version_mut() = Version::HTTP_2;
                send_http2(line, request).await
            }
            (Line::Http1(line), Far::Peer | Far::Application) => {
                Box::pin(send_http1(line, request)).await
            }
            (line, Far::External { tls }) => Box::pin(send_outside(line, tls, request)).await,
        }
    }

    /// Sends a request.
    pub(crate) async fn send_request(
        &mut self,
        request: Box<Request<ProxyBody>>,
    ) -> Result<Response<Incoming>, ExchangeError> {
        let sent = self.try_send_request(request).await;
        sent.map_err(|failed| failed.error)
    }
}

async fn send_http1(
    line: &SharedLine,
    request: Box<Request<ProxyBody>>,
) -> Result<Response<Incoming>, SendError> {
    let Some((connection, home)) = line.take() else {
        return Err(SendError {
            unsent: Some(request),
            sent: None,
            error: ClientError::Closed.into(),
        });
    };
    connection.send(request, home).await
}

/// Sends a request out of the mesh. Nothing that is the mesh's own leaves it, and nothing that comes
/// back speaks for it.
async fn send_outside(
    line: &Line,
    tls: bool,
    mut request: Box<Request<ProxyBody>>,
) -> Result<Response<Incoming>, SendError> {
    remove_untrusted(request.headers_mut());
    let mut response = match line {
        Line::Http1(line) => send_http1(line, request).await?,
        Line::Http2(line) => {
            if tls {
                secure(request.uri_mut());
            }
            send_http2(line, request).await?
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
pub(super) struct Made<L> {
    /// What requests are sent with.
    pub(super) line: L,
    /// Of which terms.
    pub(super) generation: u64,
    /// How many requests its server takes at a time; `None`: one.
    pub(super) streams: Option<Rc<Streams>>,
    /// What ends it, where it is one to another sidecar.
    pub(super) signal: Option<Arc<Signal>>,
}

impl Made<Handle<ProxyBody>> {
    /// A connection to another sidecar, of one worker.
    pub(super) fn of_worker(self) -> Made<Sender> {
        Made {
            line: Sender::mesh(self.line),
            generation: self.generation,
            streams: self.streams,
            signal: self.signal,
        }
    }
}

/// A place on a connection for one request, given back when dropped.
#[derive(Debug)]
pub struct Slot(pub(super) Place);

/// Whose connection it is.
#[derive(Debug)]
pub(super) enum Place {
    /// The worker's own.
    Worker(Held<Worker>),
    /// The worker's own, and no other request's.
    Own(Rc<Held<Worker>>),
    /// One of all workers, to another sidecar.
    Process(Held<Process>),
}

impl Slot {
    /// What requests are sent with.
    pub(crate) fn sender(&self) -> Sender {
        match &self.0 {
            Place::Worker(held) => held.line().clone(),
            Place::Own(held) => held.line().clone(),
            Place::Process(held) => Sender::mesh(held.line().clone()),
        }
    }

    /// Why its connection is cut, where it is one to another sidecar; `None` where it is not.
    pub(crate) fn cut_reason(&self) -> Option<Reason> {
        match &self.0 {
            Place::Worker(held) => held.cut_reason(),
            Place::Own(held) => held.cut_reason(),
            Place::Process(held) => held.cut_reason(),
        }
    }

    /// Whether its connection has carried other requests: its server may have closed it meanwhile.
    pub(crate) fn is_reused(&self) -> bool {
        match &self.0 {
            Place::Worker(held) => held.is_reused(),
            Place::Own(held) => held.is_reused(),
            Place::Process(held) => held.is_reused(),
        }
    }

    /// How long its connection had carried nothing.
    pub(crate) fn unused_for(&self) -> Duration {
        match &self.0 {
            Place::Worker(held) => held.unused_for(),
            Place::Own(held) => held.unused_for(),
            Place::Process(held) => held.unused_for(),
        }
    }

    /// Whether its connection carries no other request until this one has left it.
    pub(crate) fn holds_connection(&self) -> bool {
        match &self.0 {
            Place::Worker(held) => held.line().is_exclusive(),
            Place::Own(_) => true,
            Place::Process(_) => false,
        }
    }

    /// Counts a connection that is one request's own until `sent` is dropped as well, with the
    /// request's body: an application may have answered before all of it came.
    pub(crate) fn keep_until_sent(&self, sent: oneshot::Receiver<Infallible>) {
        if let Place::Own(held) = &self.0 {
            let held = Rc::clone(held);
            spawn_local(async move {
                let Err(_dropped) = sent.await;
                drop(held);
            });
        }
    }

    /// Its connection's server takes no further requests: others are sent elsewhere.
    pub(crate) fn retire(&self) {
        match &self.0 {
            Place::Worker(held) => held.retire(),
            Place::Own(held) => held.retire(),
            Place::Process(held) => held.retire(),
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
