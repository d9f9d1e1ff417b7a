//! A client's side of connections in HTTP/1.1. A connection has no task of its own: whoever waits
//! for the response drives it, then the response's body does, which gives it back at its end.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::header::{EXPECT, HOST, UPGRADE};
use http::{Method, Request};
use http_body::Frame;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Sleep, sleep};
use weft_core::h1::{
    Decoded, Decoder, Defect, Framing, HeadScan, Limits, Malformed, Message, RequestOptions,
    ResponseHead, TargetForm, encode_request, parse_response,
};

use super::ReasonPhrase;
use super::body::{Broken, Http1Body};
pub use super::home::{Home, Line, SharedLine};
use super::outgoing::{Cut, Outgoing, framing};
use super::wire::{BODY_READ_BYTES, HEAD_READ_BYTES, Wire};
use crate::http::{
    BodyError, ExchangeError, Incoming, Io, ProxyBody, SendError, Upgrade, Upgraded,
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
    wire: Wire<Box<dyn Io>>,
    scan: HeadScan,
    limits: Limits,
    /// It has carried a request.
    used: bool,
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
        })
    }

    /// Whether the server has neither closed it nor said anything unasked.
    pub fn is_alive(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let filled = self.wire.poll_fill(&mut cx, HEAD_READ_BYTES);
        filled.is_pending() && self.wire.read.is_empty()
    }

    /// Sends a request, and waits for the head of its response. The error gives the request back
    /// where nothing of it was sent. Interim responses are not passed on.
    pub async fn send(
        mut self: Box<Self>,
        request: Request<ProxyBody>,
        home: Home,
    ) -> Result<http::Response<Incoming>, SendError> {
        if self.used && !self.is_alive() {
            return Err(SendError {
                unsent: Some(Box::new(request)),
                error: ClientError::Closed.into(),
            });
        }
        self.used = true;
        let (mut parts, body) = request.into_parts();
        if parts.uri.authority().is_some() {
            // What it was routed by is what the server is to see (RFC 9113 section 8.3.1).
            parts.headers.remove(HOST);
        }
        let options = RequestOptions {
            target_form: TargetForm::Origin,
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
                let asked = *method == Method::CONNECT || parts.headers.contains_key(UPGRADE);
                self.hand_over(head, asked)
            }
            Ok(head) => Ok(self.respond(head, upload, home)),
            Err(error) => {
                let unsent = self.wire.written == before && !upload.outgoing.touched;
                let body = upload.outgoing.into_body();
                Err(SendError {
                    unsent: unsent.then(|| Box::new(Request::from_parts(parts, body))),
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
                    upload.hold = None;
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
                error: ClientError::Unasked.into(),
            });
        }
        let (to, upgrade) = Upgrade::pending();
        let (io, first) = self.wire.into_parts();
        // The receiver is ours.
        let _sent = to.send(Upgraded::new(io, first));
        let mut response =
            http::Response::from_parts(head.parts, Incoming::Http1(Http1Body::EMPTY));
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
        if let Some(phrase) = head.reason_phrase {
            parts.extensions.insert(ReasonPhrase(phrase));
        }
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
                Http1Body::Response(Box::new(Response {
                    exchange: Some(Exchange::new(self, upload, home, keep_alive)),
                    decoder,
                    next: None,
                }))
            }
        };
        http::Response::from_parts(parts, Incoming::Http1(body))
    }
}

/// A request's body on its way to the server.
#[derive(Debug)]
struct Upload {
    outgoing: Outgoing<ProxyBody>,
    /// Until then 100 is waited for.
    hold: Option<Hold>,
    /// The server takes no more.
    failed: bool,
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
    fn is_done(&self, wire: &Wire<Box<dyn Io>>) -> bool {
        self.outgoing.is_queued() && wire.is_flushed() && !self.failed
    }

    /// Sends on; ready when all is sent, or the server takes no more.
    fn poll(
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

/// An exchange whose response has begun.
#[derive(Debug)]
struct Exchange {
    driver: Driver,
}

/// Who drives the connection.
#[derive(Debug)]
enum Driver {
    /// The response alone.
    Response(Box<Connection>, Ending),
    /// The response and, until the request's body is sent, a task.
    Both(Arc<Mutex<Shared>>, AbortHandle),
}

/// What becomes of the connection.
#[derive(Debug)]
struct Ending {
    home: Home,
    reusable: bool,
}

/// A connection while both bodies move.
#[derive(Debug)]
struct Shared {
    /// `None` once nobody needs it.
    connection: Option<Box<Connection>>,
    ending: Option<Ending>,
    sent: bool,
    received: bool,
}

impl Exchange {
    fn new(connection: Box<Connection>, upload: Upload, home: Home, keep_alive: bool) -> Self {
        let reusable = keep_alive && !upload.failed;
        let ending = Ending { home, reusable };
        if upload.is_done(&connection.wire) || upload.failed {
            return Self {
                driver: Driver::Response(connection, ending),
            };
        }
        let shared = Arc::new(Mutex::new(Shared {
            connection: Some(connection),
            ending: Some(ending),
            sent: false,
            received: false,
        }));
        let task = spawn_local(send_rest(Arc::clone(&shared), upload));
        Self {
            driver: Driver::Both(shared, task.abort_handle()),
        }
    }

    /// The response has been received.
    fn finish(self) {
        match self.driver {
            Driver::Response(connection, ending) => ending.end(connection),
            Driver::Both(shared, task) => {
                let mut shared = lock(&shared);
                shared.received = true;
                let closes = shared.ending.as_ref().is_none_or(|ending| !ending.reusable);
                if closes {
                    task.abort();
                    shared.connection = None;
                }
                shared.end();
            }
        }
    }

    /// The response is given up.
    fn abandon(self) {
        if let Driver::Both(shared, task) = self.driver {
            task.abort();
            lock(&shared).connection = None;
        }
    }

    fn with<T>(&mut self, f: impl FnOnce(&mut Connection) -> T) -> Option<T> {
        match &mut self.driver {
            Driver::Response(connection, _) => Some(f(connection)),
            Driver::Both(shared, _) => lock(shared).connection.as_mut().map(|c| f(c)),
        }
    }
}

impl Ending {
    fn end(self, connection: Box<Connection>) {
        let wire = &connection.wire;
        if self.reusable && wire.read.is_empty() && !wire.eof && wire.is_flushed() {
            self.home.give_back(connection);
        }
    }
}

impl Shared {
    fn end(&mut self) {
        if self.sent
            && self.received
            && let (Some(connection), Some(ending)) = (self.connection.take(), self.ending.take())
        {
            ending.end(connection);
        }
    }
}

/// Sends the rest of a request's body while its response comes already.
async fn send_rest(shared: Arc<Mutex<Shared>>, mut upload: Upload) {
    let sent = poll_fn(|cx| match &mut lock(&shared).connection {
        Some(connection) => upload.poll(cx, &mut connection.wire),
        None => Poll::Ready(Ok(())),
    })
    .await;
    let mut shared = lock(&shared);
    shared.sent = true;
    if (sent.is_err() || upload.failed)
        && let Some(ending) = &mut shared.ending
    {
        ending.reusable = false;
    }
    shared.end();
}

/// A response's body, which reads from its connection when it is asked for more.
#[derive(Debug)]
pub struct Response {
    /// `None` once the body has ended.
    exchange: Option<Exchange>,
    decoder: Decoder,
    /// Received with what came before, and not given yet.
    next: Option<Result<Decoded, Malformed>>,
}

impl Response {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let decoded = match self.next.take() {
                Some(next) => next,
                None => self.decode(),
            };
            match decoded {
                Ok(Decoded::Data(data)) => {
                    self.look_ahead();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Decoded::Trailers(trailers)) => {
                    self.look_ahead();
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Ok(Decoded::End) => {
                    self.finish();
                    return Poll::Ready(None);
                }
                Ok(Decoded::NeedMore) => {}
                Err(malformed) => return self.fail(malformed.into()),
            }
            let fill = |connection: &mut Connection| connection.wire.poll_fill(cx, BODY_READ_BYTES);
            match self
                .exchange
                .as_mut()
                .and_then(|exchange| exchange.with(fill))
            {
                Some(Poll::Pending) => return Poll::Pending,
                Some(Poll::Ready(Ok(1..))) => {}
                Some(Poll::Ready(Ok(0))) | None => match self.decoder.on_eof() {
                    Ok(()) => {}
                    Err(malformed) => return self.fail(malformed.into()),
                },
                Some(Poll::Ready(Err(error))) => return self.fail(Broken::Reset(error.kind())),
            }
        }
    }

    fn decode(&mut self) -> Result<Decoded, Malformed> {
        let decoder = &mut self.decoder;
        let decode = |connection: &mut Connection| decoder.decode(&mut connection.wire.read);
        match &mut self.exchange {
            Some(exchange) => exchange.with(decode).unwrap_or(Ok(Decoded::NeedMore)),
            None => Ok(Decoded::End),
        }
    }

    /// The end may have been received with what came before it: then the reader is told with that,
    /// and the connection is free.
    fn look_ahead(&mut self) {
        match self.decode() {
            Ok(Decoded::NeedMore) => {}
            Ok(Decoded::End) => self.finish(),
            next @ (Ok(Decoded::Data(_) | Decoded::Trailers(_)) | Err(_)) => self.next = Some(next),
        }
    }

    fn finish(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.finish();
        }
    }

    fn fail(&mut self, broken: Broken) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(exchange) = self.exchange.take() {
            exchange.abandon();
        }
        Poll::Ready(Some(Err(BodyError::of_response(broken))))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.exchange.is_none() && self.next.is_none()
    }

    pub(super) fn remaining(&self) -> Option<u64> {
        let next = match &self.next {
            Some(Ok(Decoded::Data(data))) => data.len() as u64,
            Some(_) | None => 0,
        };
        Some(self.decoder.remaining()? + next)
    }
}

impl Drop for Response {
    fn drop(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.abandon();
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
