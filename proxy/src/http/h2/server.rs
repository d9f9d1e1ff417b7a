//! The server's side of a connection: one task reads it, calls the handlers of its requests, and
//! writes what they answer.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{Method, Request, Response};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};
use weft_core::h2::connection::{
    Config, Connection, ConnectionViolation, Event, ResetCause, RespondError, StreamKey,
};
use weft_core::h2::frame::{ErrorCode, Role};
use weft_core::h2::message::{Malformed, RequestHead};

use super::body::StreamBody;
use super::failure::StreamFailure;
use super::inbox::{InboxId, Inboxes, Reader, Touched};
use super::outgoing::{Outbound, Outgoing, Sent};
use super::probe::{PROBE, Probe, Probed, Probing};
use super::ready::{Part, Ready};
use super::wire::Wire;
use crate::clock::Turn;

/// How often a connection goes from reading to writing before others have their turn.
const ROUNDS: usize = 8;
/// Places for requests that a connection without any keeps.
const PLACES_KEPT: usize = 32;

/// A request whose answer is on its way, or one that is refused at once.
pub type Called<S> =
    Result<(<S as Service>::Guard, <S as Service>::Answer), Response<<S as Service>::Body>>;

/// What answers the requests of a connection.
pub trait Service: Sized {
    /// The body of answers.
    type Body: Outbound;
    /// An answer on its way.
    type Answer: Future;
    /// Kept until a request has been answered. Dropped before that, its client has given it up.
    type Guard: Unpin;

    /// Answers a request, or refuses it at once.
    fn call(&self, request: Request<StreamBody>) -> Called<Self>;
    /// A request has been answered.
    fn answered(
        &self,
        guard: Self::Guard,
        answer: <Self::Answer as Future>::Output,
    ) -> Response<Self::Body>;
    /// Answers a request that cannot be understood; `None` resets it.
    fn refuse(&self, malformed: &Malformed) -> Option<Response<Self::Body>>;
    /// The client has sent something that had to be reset before it was a request.
    fn on_refused(&self);
    /// The connection has ended, by its client or not: that its requests end with it says nothing of them.
    fn on_end(&self, by_client: bool);
    /// Bytes that may be read before other connections have their turn.
    ///
    /// # Errors
    ///
    /// How long nothing may be read.
    fn turn(&self) -> Result<usize, Duration>;
}

/// A connection that is served. As a future it ends with the connection.
pub struct Serving<IO, S: Service> {
    wire: Wire<IO>,
    service: S,
    ready: Arc<Ready>,
    inboxes: Arc<Inboxes>,
    exchanges: Vec<Exchange<S>>,
    /// Parts that were woken, and were not polled yet.
    woken: Vec<u32>,
    touched: Vec<Touched>,
    end: End,
    /// Nothing is read meanwhile.
    pause: Option<Pin<Box<Sleep>>>,
    probe: Option<Probe>,
    /// Whether more was not read for want of room in the output.
    is_held_up: bool,
}

/// How far a connection has come.
#[derive(Debug)]
enum End {
    Open,
    /// The client sends no more.
    Read,
    /// What is left is written, and then it is over.
    Failed(Arc<ConnectionViolation>),
}

/// What is done on one stream, in a place that one stream after the other has.
struct Exchange<S: Service> {
    part: Arc<Part>,
    waker: Waker,
    stream: Option<StreamKey>,
    inbox: Option<InboxId>,
    /// Its place on the heap is there once, and not for each request.
    handler: Pin<Box<Option<S::Answer>>>,
    guard: Option<S::Guard>,
    /// Whether the answer has no content.
    is_head: bool,
    answer: Option<Outgoing<S::Body>>,
}

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The client has broken a rule.
    #[error("{0}")]
    Violation(Arc<ConnectionViolation>),
    /// The socket has failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The client does not answer any more.
    #[error("the client has not answered a PING")]
    Silent,
}

impl<S: Service> Exchange<S> {
    fn new(number: u32, ready: &Arc<Ready>) -> Self {
        let part = Part::new(number, ready);
        Self {
            waker: Waker::from(Arc::clone(&part)),
            part,
            stream: None,
            inbox: None,
            handler: Box::pin(None),
            guard: None,
            is_head: false,
            answer: None,
        }
    }

    fn drop_work(&mut self) {
        self.handler.set(None);
        self.guard = None;
        self.answer = None;
    }
}

impl<IO, S> Serving<IO, S>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: Service,
{
    /// Serves a connection that has just been accepted.
    pub fn new(io: IO, config: Config, probing: Option<Probing>, service: S) -> Self {
        let ready = Arc::<Ready>::default();
        Self {
            wire: Wire::new(io, Connection::new(Role::Server, config)),
            service,
            inboxes: Inboxes::new(&ready),
            ready,
            exchanges: Vec::new(),
            woken: Vec::new(),
            touched: Vec::new(),
            end: End::Open,
            pause: None,
            probe: probing.map(Probe::new),
            is_held_up: false,
        }
    }

    /// Ends the connection in good order; its future has to be polled again.
    pub fn shut_down(&mut self) {
        self.wire.connection.shut_down();
    }

    /// One turn; pending where nothing is left to do.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ServeError>> {
        let _turn = Turn::begin();
        self.ready.begin_turn(cx.waker());
        let mut budget = self.turn();
        for _ in 0..ROUNDS {
            self.ready.begin_nudged();
            if matches!(self.end, End::Open) {
                self.probe(cx)?;
                self.read(cx, &mut budget)?;
            }
            self.apply_touched();
            self.work();
            let is_written = self.wire.poll_write(cx)?.is_ready();
            if let Some(ended) = self.ended(cx, is_written) {
                return ended;
            }
            self.mark_writable();
            if self.is_held_up && self.wire.connection.may_receive() {
                continue;
            }
            let is_done = self.woken.is_empty() && self.wire.connection.output().is_empty();
            // While the socket takes nothing, its readiness is what is waited for.
            if is_done || !is_written {
                if budget == 0 {
                    break;
                }
                self.forget_places();
                if self.ready.end_turn() {
                    return Poll::Pending;
                }
            }
        }
        self.ready.yield_turn(cx.waker());
        Poll::Pending
    }

    /// Gives back the memory of a burst: a place has room for a handler. What still wakes one of them
    /// wakes nobody.
    fn forget_places(&mut self) {
        if self.exchanges.len() > PLACES_KEPT && self.wire.connection.is_unused() {
            self.exchanges = Vec::new();
        }
    }

    /// Bytes that may be read in this turn; sets a pause where there are none.
    fn turn(&mut self) -> usize {
        match self.service.turn() {
            Ok(bytes) => bytes,
            Err(pause) => {
                let due = Instant::now() + pause;
                match &mut self.pause {
                    Some(timer) => timer.as_mut().reset(due),
                    None => self.pause = Some(Box::pin(sleep_until(due))),
                }
                usize::MAX
            }
        }
    }

    /// Asks a client of which nothing has come for long whether it is there.
    fn probe(&mut self, cx: &mut Context<'_>) -> Result<(), ServeError> {
        let Some(probe) = &mut self.probe else {
            return Ok(());
        };
        let connection = &mut self.wire.connection;
        match probe.poll(cx, connection.is_unused()) {
            Probed::Nothing => Ok(()),
            Probed::Ask => {
                connection.ping(PROBE);
                Ok(())
            }
            Probed::Silent => Err(ServeError::Silent),
        }
    }

    /// Whether the connection is over, and how.
    fn ended(
        &mut self,
        cx: &mut Context<'_>,
        is_written: bool,
    ) -> Option<Poll<Result<(), ServeError>>> {
        let result = match &self.end {
            End::Open if self.wire.connection.is_finished() => Ok(()),
            End::Open => return None,
            // Nobody is there any more.
            End::Read => return Some(Poll::Ready(Ok(()))),
            End::Failed(violation) => Err(ServeError::Violation(Arc::clone(violation))),
        };
        if !is_written {
            return Some(Poll::Pending);
        }
        Some(match self.wire.poll_shutdown(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(()) | Err(_)) => Poll::Ready(result),
        })
    }

    /// Reads until nothing more is there, the turn is over, or there is no room for what is to be said.
    fn read(&mut self, cx: &mut Context<'_>, budget: &mut usize) -> io::Result<()> {
        self.is_held_up = false;
        loop {
            match self.wire.next_event() {
                Ok(Some(event)) => {
                    self.on_event(event);
                    continue;
                }
                Ok(None) => {}
                Err(violation) => {
                    let violation = Arc::new(violation);
                    self.fail(&StreamFailure::Connection(Arc::clone(&violation)));
                    self.end = End::Failed(violation);
                    return Ok(());
                }
            }
            if !self.wire.connection.may_receive() {
                self.is_held_up = true;
                return Ok(());
            }
            if *budget == 0 || self.is_paused(cx) {
                return Ok(());
            }
            match self.wire.poll_read(cx, *budget) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => {
                    self.fail(&StreamFailure::ClientGone);
                    self.end = End::Read;
                    return Ok(());
                }
                Poll::Ready(Ok(read)) => {
                    *budget = budget.saturating_sub(read);
                    if let Some(probe) = &mut self.probe {
                        probe.on_read();
                    }
                }
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
    }

    /// Whether nothing may be read now.
    fn is_paused(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(pause) = &mut self.pause else {
            return false;
        };
        if pause.as_mut().poll(cx).is_pending() {
            return true;
        }
        self.pause = None;
        false
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Request { stream, head, end } => self.on_request(stream, *head, end),
            Event::BadRequest {
                stream, malformed, ..
            } => {
                self.begin(stream);
                match self.service.refuse(&malformed) {
                    Some(response) => self.answer(stream, response),
                    None => self.wire.connection.reset(stream, malformed.code()),
                }
                // Nobody reads the rest of it.
                self.wire.connection.discard(stream);
            }
            Event::Data {
                stream,
                payload,
                end,
            } => match self.inbox(stream) {
                Some(inbox) => self.inboxes.put_data(inbox, payload, end),
                None => self.wire.connection.discard(stream),
            },
            Event::Trailers { stream, trailers } => {
                if let Some(inbox) = self.inbox(stream) {
                    self.inboxes.put_trailers(inbox, trailers);
                }
            }
            Event::Reset { stream, cause } => self.on_reset(stream, cause),
            Event::Stopped { stream, .. } => self.on_stopped(stream),
            Event::Refused { .. } => self.service.on_refused(),
            // Nobody waits for them, and no server gets the others.
            Event::Settings
            | Event::PingAnswered { .. }
            | Event::GoAway { .. }
            | Event::Interim { .. }
            | Event::Response { .. } => {}
        }
    }

    /// The place of a new stream.
    fn begin(&mut self, stream: StreamKey) -> &mut Exchange<S> {
        while self.exchanges.len() <= stream.slot() {
            // There are fewer than streams.
            let number = self.exchanges.len() as u32;
            self.exchanges.push(Exchange::new(number, &self.ready));
        }
        let exchange = &mut self.exchanges[stream.slot()];
        exchange.drop_work();
        exchange.stream = Some(stream);
        exchange.inbox = None;
        exchange.is_head = false;
        exchange
    }

    fn on_request(&mut self, stream: StreamKey, head: RequestHead, end: bool) {
        let inbox = (!end).then(|| self.inboxes.open(Some(stream), head.content_length));
        let body = match inbox {
            Some(inbox) => StreamBody::new(Reader::new(&self.inboxes, inbox)),
            None => StreamBody::EMPTY,
        };
        let mut request = Request::from_parts(head.parts, body);
        if let Some(protocol) = head.protocol {
            request.extensions_mut().insert(protocol);
        }
        let is_head = *request.method() == Method::HEAD;
        let called = self.service.call(request);
        let exchange = self.begin(stream);
        exchange.is_head = is_head;
        exchange.inbox = inbox;
        match called {
            Ok((guard, answer)) => {
                exchange.handler.set(Some(answer));
                exchange.guard = Some(guard);
                exchange.part.mark();
            }
            Err(response) => self.answer(stream, response),
        }
    }

    fn on_reset(&mut self, stream: StreamKey, cause: ResetCause) {
        let Some(exchange) = self.exchange(stream) else {
            return;
        };
        exchange.drop_work();
        exchange.stream = None;
        let inbox = exchange.inbox.take();
        if let Some(inbox) = inbox {
            self.inboxes.fail(inbox, cause.into());
        }
    }

    /// The client wants no answer any more. Its request has come whole: whoever reads it may.
    fn on_stopped(&mut self, stream: StreamKey) {
        if let Some(exchange) = self.exchange(stream) {
            exchange.drop_work();
            exchange.stream = None;
        }
    }

    fn exchange(&mut self, stream: StreamKey) -> Option<&mut Exchange<S>> {
        let exchange = self.exchanges.get_mut(stream.slot())?;
        (exchange.stream == Some(stream)).then_some(exchange)
    }

    fn inbox(&mut self, stream: StreamKey) -> Option<InboxId> {
        self.exchange(stream)?.inbox
    }

    /// Tells the connection what readers have taken, and who reads no more.
    fn apply_touched(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        self.inboxes.take_touched(&mut touched);
        for touch in touched.drain(..) {
            if touch.is_dropped {
                self.inboxes.close(touch.inbox);
            }
            let Some(stream) = touch.stream else {
                continue;
            };
            self.wire.connection.consumed(stream, touch.taken);
            if !touch.is_dropped {
                continue;
            }
            self.wire.connection.discard(stream);
            if let Some(exchange) = self.exchange(stream) {
                exchange.inbox = None;
                let is_over = exchange.handler.is_none() && exchange.answer.is_none();
                if is_over {
                    self.stop_upload(stream);
                }
            }
        }
        self.touched = touched;
    }

    /// The answer is there, and nobody reads the request any more (RFC 9113 section 8.1).
    fn stop_upload(&mut self, stream: StreamKey) {
        if self.wire.connection.is_receiving(stream) {
            self.wire.connection.reset(stream, ErrorCode::NO_ERROR);
        }
    }

    /// Polls what was woken before this, each once, as long as there is room for what comes of it.
    fn work(&mut self) {
        if self.woken.is_empty() {
            self.ready.take(&mut self.woken);
            self.woken.reverse();
        }
        while self.wire.connection.has_room()
            && let Some(number) = self.woken.pop()
        {
            let Some(exchange) = self.exchanges.get_mut(number as usize) else {
                continue;
            };
            exchange.part.begin_poll();
            let Some(stream) = exchange.stream else {
                continue;
            };
            let waker = exchange.waker.clone();
            let mut cx = Context::from_waker(&waker);
            if let Some(handler) = exchange.handler.as_mut().as_pin_mut() {
                let Poll::Ready(answer) = handler.poll(&mut cx) else {
                    continue;
                };
                exchange.handler.set(None);
                if let Some(guard) = exchange.guard.take() {
                    let response = self.service.answered(guard, answer);
                    self.answer(stream, response);
                }
            }
            self.send(stream, &mut cx);
        }
    }

    /// Sends the head of an answer; its body follows.
    fn answer(&mut self, stream: StreamKey, response: Response<S::Body>) {
        let (parts, body) = response.into_parts();
        let is_head = self
            .exchange(stream)
            .is_some_and(|exchange| exchange.is_head);
        let connection = &mut self.wire.connection;
        let end = body.is_end_stream() || is_head;
        match connection.respond(stream, parts.status, &parts.headers, end) {
            Ok(()) if end => self.on_answered(stream),
            Ok(()) => {
                if let Some(exchange) = self.exchange(stream) {
                    exchange.answer = Some(Outgoing::new(body));
                    exchange.part.mark();
                }
            }
            Err(RespondError::Unsendable(error)) => {
                tracing::error!(%error, "an answer is none in HTTP/2");
                connection.reset(stream, ErrorCode::INTERNAL_ERROR);
            }
            Err(RespondError::TooLarge(error)) => {
                tracing::debug!(%error, "an answer is not sent");
                connection.reset(stream, ErrorCode::INTERNAL_ERROR);
            }
            Err(RespondError::Ended(_) | RespondError::NoRoom) => {}
        }
    }

    /// Sends more of an answer's body.
    fn send(&mut self, stream: StreamKey, cx: &mut Context<'_>) {
        let Some(exchange) = self.exchanges.get_mut(stream.slot()) else {
            return;
        };
        let Some(answer) = &mut exchange.answer else {
            return;
        };
        match answer.poll_send(&mut self.wire.connection, stream, cx) {
            Sent::Waiting => {}
            Sent::Done => {
                exchange.answer = None;
                self.on_answered(stream);
            }
            Sent::Broken | Sent::Gone => {
                exchange.answer = None;
                exchange.stream = None;
            }
        }
    }

    /// All of an answer is sent.
    fn on_answered(&mut self, stream: StreamKey) {
        if self.inbox(stream).is_none() {
            self.stop_upload(stream);
        }
    }

    /// Tells streams that were blocked that there is room.
    fn mark_writable(&mut self) {
        while let Some(stream) = self.wire.connection.next_writable() {
            if let Some(exchange) = self.exchange(stream) {
                exchange.part.mark();
            }
        }
    }

    /// Ends all exchanges.
    fn fail(&mut self, failure: &StreamFailure) {
        self.service.on_end(true);
        for exchange in &mut self.exchanges {
            exchange.drop_work();
            exchange.stream = None;
        }
        self.inboxes.fail_all(failure);
    }
}

impl<IO, S> Future for Serving<IO, S>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: Service + Unpin,
{
    type Output = Result<(), ServeError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let me = self.get_mut();
        let polled = me.poll_turn(cx);
        if let Poll::Ready(ended) = &polled {
            let failure = match ended {
                Err(ServeError::Violation(violation)) => {
                    StreamFailure::Connection(Arc::clone(violation))
                }
                Ok(()) | Err(ServeError::Silent | ServeError::Io(_)) => StreamFailure::ClientGone,
            };
            me.fail(&failure);
        }
        polled
    }
}

impl<IO, S: Service> Drop for Serving<IO, S> {
    fn drop(&mut self) {
        self.inboxes.fail_all(&StreamFailure::ClientGone);
    }
}
