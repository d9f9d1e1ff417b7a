//! A client's side of connections in HTTP/1.1. A connection has no task of its own: whoever waits
//! for the response drives it, then the response's body does, which gives it back at its end.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::header::{EXPECT, HOST, UPGRADE};
use http::{Method, Request, StatusCode};
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};
use weft_core::h1::{
    Decoder, Defect, Framing, HeadScan, Limits, Malformed, Message, RequestOptions, ResponseHead,
    TargetForm, encode_request, parse_response,
};
use weft_core::http1_form;
use weft_core::interim::Interim;
use weft_core::time::Instant;

use super::body::Http1Body;
pub use super::home::{Home, Line, SharedLine};
use super::outgoing::{Cut, Outgoing, framing};
use super::response::Exchange;
pub use super::response::Response;
use super::wire::{HEAD_READ_BYTES, Wire};
use crate::http::{
    BodyError, ExchangeError, Incoming, Io, ProxyBody, SendError, Upgrade, Upgraded, interims,
};

/// A request that asks for 100 waits for it this long before it sends its body all the same
/// (RFC 9110 section 10.1.1). Callers wait longer (curl a second): an application that does not know
/// `Expect` costs them no more than without a mesh.
pub(crate) const CONTINUE_WAIT: Duration = Duration::from_millis(500);

/// As an extension of a request that asks for 100: told once its body may be sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct OnContinue(pub(crate) Arc<Notify>);

/// A connection to a server, which carries one exchange at a time.
#[derive(Debug)]
pub struct Connection {
    pub(super) wire: Wire<Box<dyn Io>>,
    scan: HeadScan,
    limits: Limits,
    /// It has carried a request.
    used: bool,
    /// When it was seen alive, where nothing has been sent since.
    seen_alive: Option<Instant>,
}

/// Why there is no response in HTTP/1.1.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server closed the connection instead of answering. It may have seen the request.
    #[error("the connection was closed before a response")]
    Closed,
    /// The connection broke. The server may have seen the request.
    #[error("the connection broke before a response: {0}")]
    Io(#[from] io::Error),
    /// What the server sent is not a response.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The server switched to a protocol that nobody asked for.
    #[error("the server switched protocols without being asked")]
    Unasked,
    /// The request's body ended early.
    #[error("the request's body ended early: {0}")]
    Upload(#[source] BodyError),
}

pub(super) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connection {
    /// A connection that has just been made.
    pub fn new(io: impl Io + 'static, limits: Limits) -> Box<Self> {
        Box::new(Self {
            wire: Wire::new(Box::new(io)),
            scan: HeadScan::default(),
            limits,
            used: false,
            seen_alive: None,
        })
    }

    /// Whether the server has neither closed it nor said anything unasked. It is asked several times while
    /// a request is given its place: in one turn the socket is looked at once.
    pub fn is_alive(&mut self) -> bool {
        let now = crate::clock::now();
        if self.seen_alive == Some(now) {
            return true;
        }
        let mut cx = Context::from_waker(Waker::noop());
        let filled = self.wire.poll_fill(&mut cx, HEAD_READ_BYTES);
        let is_alive = filled.is_pending() && self.wire.read.is_empty();
        self.seen_alive = is_alive.then_some(now);
        is_alive
    }

    /// Holds no buffer until it is used again.
    pub(super) fn rest(&mut self) {
        self.wire.rest();
    }

    /// Sends a request, and waits for the head of its response. The error gives the request back
    /// where nothing of it was sent. The interim responses before it are passed on as they come.
    pub async fn send(
        mut self: Box<Self>,
        request: Box<Request<ProxyBody>>,
        home: Home,
    ) -> Result<http::Response<Incoming>, SendError> {
        if self.used && !self.is_alive() {
            return Err(SendError {
                unsent: Some(request),
                sent: None,
                error: ClientError::Closed.into(),
            });
        }
        self.used = true;
        self.seen_alive = None;
        let (mut parts, body) = request.into_parts();
        if parts.uri.authority().is_some() {
            // What it was routed by is what the server is to see (RFC 9113 section 8.3.1).
            parts.headers.remove(HOST);
        }
        let form = parts.extensions.get::<TargetForm>().copied();
        let options = RequestOptions {
            target_form: form.unwrap_or(TargetForm::Origin),
            keep_alive: true,
        };
        let framing = framing(&parts.headers, &body);
        let framing = encode_request(&parts, framing, options, self.wire.out());
        let before = self.wire.written;
        let hold = parts.headers.contains_key(EXPECT).then(|| Hold {
            wait: Box::pin(sleep(CONTINUE_WAIT)),
            told: parts.extensions.get::<OnContinue>().cloned(),
        });
        let mut upload = Upload {
            outgoing: Outgoing::new(body, framing),
            hold,
            failed: false,
        };
        let method = &parts.method;
        let head = poll_fn(|cx| self.poll_head(cx, &mut upload, method)).await;
        match head {
            Ok(head) if head.tunnel => {
                // 101 is no answer to CONNECT (RFC 9110 section 9.3.6).
                let asked = match head.parts.status {
                    StatusCode::SWITCHING_PROTOCOLS => parts.headers.contains_key(UPGRADE),
                    _ => *method == Method::CONNECT,
                };
                self.hand_over(head, asked)
            }
            Ok(head) => Ok(self.respond(head, upload, home)),
            Err(error) => {
                let is_unsent = self.wire.written == before && !upload.outgoing.touched;
                let body = upload.outgoing.into_body();
                let request = Some(Box::new(Request::from_parts(parts, body)));
                let (unsent, sent) = match is_unsent {
                    true => (request, None),
                    false => (None, request),
                };
                Err(SendError {
                    unsent,
                    sent,
                    error: error.into(),
                })
            }
        }
    }

    /// Drives the exchange until the head of the final response has come.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        upload: &mut Upload,
        method: &Method,
    ) -> Poll<Result<ResponseHead, ClientError>> {
        loop {
            // A server that answers early may close before it has read everything: what it sent
            // is read although nothing can be written any more.
            if let Poll::Ready(Err(error)) = upload.poll(cx, &mut self.wire) {
                return Poll::Ready(Err(ClientError::Upload(error)));
            }
            let received = &mut self.wire.read;
            if let Some(head) = parse_response(received, &mut self.scan, method, &self.limits)? {
                if head.is_interim() {
                    if head.parts.status == StatusCode::CONTINUE {
                        upload.hold = None;
                    }
                    let mut headers = head.parts.headers;
                    http1_form::put(head.form, &mut headers);
                    interims::pass_on(Interim::received(head.parts.status, headers));
                    continue;
                }
                return Poll::Ready(Ok(head));
            }
            match self.wire.poll_fill(cx, HEAD_READ_BYTES) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0)) => {
                    self.scan.on_eof(&self.wire.read, Message::Response)?;
                    return Poll::Ready(Err(ClientError::Closed));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn hand_over(
        self: Box<Self>,
        head: ResponseHead,
        asked: bool,
    ) -> Result<http::Response<Incoming>, SendError> {
        if !asked {
            return Err(SendError {
                unsent: None,
                sent: None,
                error: ClientError::Unasked.into(),
            });
        }
        let (to, upgrade) = Upgrade::pending();
        let (io, first) = self.wire.into_parts();
        // The receiver is ours.
        let _sent = to.send(Upgraded::new(io, first));
        let mut parts = head.parts;
        http1_form::put(head.form, &mut parts.headers);
        let mut response = http::Response::from_parts(parts, Http1Body::EMPTY.into());
        response.extensions_mut().insert(upgrade);
        Ok(response)
    }

    fn respond(
        mut self: Box<Self>,
        head: ResponseHead,
        upload: Upload,
        home: Home,
    ) -> http::Response<Incoming> {
        let mut parts = head.parts;
        http1_form::put(head.form, &mut parts.headers);
        let (received, keep_alive) = (&mut self.wire.read, head.keep_alive);
        let whole = match head.framing {
            Framing::None => Some(0),
            Framing::Length(length) => usize::try_from(length).ok(),
            Framing::Chunked | Framing::UntilClose => None,
        };
        let body = match whole.filter(|length| *length <= received.len()) {
            Some(length) => {
                let bytes = received.split_to(length).freeze();
                Exchange::new(self, upload, home, keep_alive).finish();
                Http1Body::Whole(bytes)
            }
            None => {
                let decoder = Decoder::new(Message::Response, head.framing, &self.limits);
                let exchange = Exchange::new(self, upload, home, keep_alive);
                Http1Body::Response(Box::new(Response::new(exchange, decoder)))
            }
        };
        http::Response::from_parts(parts, body.into())
    }
}

/// A request's body on its way to the server.
#[derive(Debug)]
pub(super) struct Upload {
    outgoing: Outgoing<ProxyBody>,
    /// Until then 100 is waited for.
    hold: Option<Hold>,
    /// The server takes no more.
    pub(super) failed: bool,
}

/// The wait for 100.
#[derive(Debug)]
struct Hold {
    wait: Pin<Box<Sleep>>,
    told: Option<OnContinue>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(told) = &self.told {
            told.0.notify_one();
        }
    }
}

impl Upload {
    /// Whether all of it has been sent.
    pub(super) fn is_done(&self, wire: &Wire<Box<dyn Io>>) -> bool {
        self.outgoing.is_queued() && wire.is_flushed() && !self.failed
    }

    /// Sends on; ready when all is sent, or the server takes no more.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        wire: &mut Wire<Box<dyn Io>>,
    ) -> Poll<Result<(), BodyError>> {
        if self.failed {
            return Poll::Ready(Ok(()));
        }
        if let Some(hold) = &mut self.hold {
            if wire
                .poll_flush(cx)
                .map_err(|_gone| self.failed = true)
                .is_pending()
                || hold.wait.as_mut().poll(cx).is_pending()
            {
                return Poll::Pending;
            }
            self.hold = None;
        }
        match self.outgoing.poll(cx, wire) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(Cut::Body(error))) => Poll::Ready(Err(error)),
            Poll::Ready(Err(Cut::Io(_closed))) => {
                self.failed = true;
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl ClientError {
    /// Whether what the server sent was not HTTP.
    pub(crate) fn is_malformed(&self) -> bool {
        match self {
            Self::Malformed(malformed) => malformed.defect != Defect::HeadCut,
            Self::Unasked => true,
            Self::Closed | Self::Io(_) | Self::Upload(_) => false,
        }
    }
}

impl From<ClientError> for ExchangeError {
    fn from(error: ClientError) -> Self {
        Self::Http1(error)
    }
}
