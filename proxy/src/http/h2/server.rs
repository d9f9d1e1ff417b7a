//! The server's side of a connection: one task reads it, calls the handlers of its requests, and
//! writes what they answer.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::EXPECT;
use http::{HeaderMap, Request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};
use weft_core::h2::connection::{
    Config, Connection, Event, ResetCause, StreamKey, StreamViolation,
};
use weft_core::h2::frame::{ErrorCode, Role};
use weft_core::h2::message::{Malformed, RequestHead};

use super::answering::{Stalls, send_interims, stop_upload};
use super::body::StreamBody;
use super::exchange::Exchanges;
use super::failure::StreamFailure;
use super::inbox::{InboxId, Inboxes, Reader};
use super::outgoing::Stop;
use super::probe::Probing;
use super::ready::Ready;
use super::service::Service;
use super::turns::{DriveError, Next, ROUNDS, Read, Turns};
use crate::clock::Turn;
use crate::http::interims;

/// For the client to read why its connection has ended.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long a client may be silent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Patience {
    /// When it is asked whether it is there.
    pub probing: Option<Probing>,
    /// How long it may take nothing of an answer that is bounded in that ([`Outbound::is_bounded`]);
    /// `None` waits for ever.
    ///
    /// [`Outbound::is_bounded`]: super::Outbound::is_bounded
    pub stall: Option<Duration>,
}

/// So many streams beyond the limit are refused without a word to the service: a client opens them before
/// it knows the limit, and streams that have ended count as long as nobody has read them.
const TOO_MANY_FREE: u32 = 1_000;

/// A connection that is served. As a future it ends with the connection.
pub struct Serving<IO, S: Service> {
    pub(super) turns: Turns<IO>,
    pub(super) service: S,
    ready: Arc<Ready>,
    pub(super) inboxes: Arc<Inboxes>,
    pub(super) exchanges: Exchanges<S>,
    end: End,
    /// Nothing is read meanwhile.
    pause: Option<Pin<Box<Sleep>>>,
    pub(super) stalls: Stalls,
    /// Streams that were refused because there were too many, up to [`TOO_MANY_FREE`].
    too_many: u32,
}

/// How far a connection has come.
#[derive(Debug)]
enum End {
    Open,
    /// The client sends no more.
    Read,
    /// What is left is written, if that is possible until then, and then it is over.
    Failed(DriveError, Pin<Box<Sleep>>),
    Over,
}

impl<IO, S> Serving<IO, S>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: Service,
{
    /// Serves a connection that has just been accepted.
    pub fn new(io: IO, config: Config, patience: Patience, service: S) -> Self {
        let ready = Arc::<Ready>::default();
        let connection = Connection::new(Role::Server, config);
        Self {
            turns: Turns::new(io, connection, patience.probing, &ready),
            service,
            inboxes: Inboxes::new(&ready),
            ready,
            exchanges: Exchanges::new(),
            end: End::Open,
            pause: None,
            stalls: Stalls::new(patience.stall),
            too_many: 0,
        }
    }

    /// Ends the connection in good order; its future has to be polled again.
    pub fn shut_down(&mut self) {
        self.turns.wire.connection.shut_down();
    }

    /// Takes no more requests, though the client has not answered [`Self::shut_down`]; the future has to
    /// be polled again.
    pub fn stop_waiting(&mut self) {
        self.turns.wire.connection.stop_waiting();
    }

    /// Ends the connection and everything on it, for this reason; its future has to be polled again.
    pub fn abort(&mut self, code: ErrorCode, reason: &'static str) {
        self.turns.wire.connection.abort(code, reason);
    }

    /// One turn; pending where nothing is left to do.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), DriveError>> {
        let _turn = Turn::begin();
        self.ready.begin_turn(cx.waker());
        let mut budget = self.turn();
        for _ in 0..ROUNDS {
            self.ready.begin_nudged();
            if matches!(self.end, End::Open) {
                self.turns.probe()?;
                self.read(cx, &mut budget)?;
            }
            self.hear_readers();
            self.work();
            self.cut_stalled(cx);
            let is_written = self.turns.wire.poll_write()?.is_ready();
            if let Some(ended) = self.ended(cx, is_written) {
                return ended;
            }
            self.mark_writable();
            if self.turns.next(is_written) == Next::Round {
                continue;
            }
            if budget == 0 {
                break;
            }
            if self.turns.wire.connection.is_unused() {
                self.exchanges.forget_places();
            }
            if self.ready.end_turn() {
                return Poll::Pending;
            }
        }
        self.ready.yield_turn(cx.waker());
        Poll::Pending
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

    /// Whether the connection is over, and how.
    fn ended(
        &mut self,
        cx: &mut Context<'_>,
        is_written: bool,
    ) -> Option<Poll<Result<(), DriveError>>> {
        let is_late = match &mut self.end {
            End::Open if self.turns.wire.connection.is_finished() => false,
            End::Open => return None,
            // Nobody is there any more.
            End::Read | End::Over => return Some(Poll::Ready(Ok(()))),
            End::Failed(_, until) => until.as_mut().poll(cx).is_ready(),
        };
        let is_closed = is_written && self.turns.wire.poll_shutdown().is_ready();
        if !is_closed && !is_late {
            return Some(Poll::Pending);
        }
        Some(Poll::Ready(
            match std::mem::replace(&mut self.end, End::Over) {
                End::Failed(error, _) => Err(error),
                End::Open | End::Read | End::Over => Ok(()),
            },
        ))
    }

    /// Reads until nothing more is there, the turn is over, or there is no room for what is to be said.
    fn read(&mut self, cx: &mut Context<'_>, budget: &mut usize) -> Result<(), DriveError> {
        let mut nothing = 0;
        let budget = match self.is_paused(cx) {
            true => &mut nothing,
            false => budget,
        };
        loop {
            match self.turns.read(budget) {
                Ok(Read::Event(event)) => self.on_event(event),
                Ok(Read::Nothing) => return Ok(()),
                Ok(Read::Ended) => {
                    self.fail(&StreamFailure::ClientGone);
                    self.end = End::Read;
                    return Ok(());
                }
                Err(error @ DriveError::Violation(_)) => {
                    self.fail(&error.failure());
                    let until = Box::pin(sleep_until(Instant::now() + FAREWELL));
                    self.end = End::Failed(error, until);
                    return Ok(());
                }
                Err(error @ (DriveError::Io(_) | DriveError::Silent)) => return Err(error),
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
            } => self.on_bad_request(stream, &malformed),
            Event::Data {
                stream,
                payload,
                end,
            } => match self.inbox(stream) {
                Some(inbox) => self.inboxes.put_data(inbox, payload, end),
                None => self.turns.wire.connection.discard(stream),
            },
            Event::Trailers { stream, trailers } => {
                if let Some(inbox) = self.inbox(stream) {
                    self.inboxes.put_trailers(inbox, trailers);
                }
            }
            Event::BadTrailers { stream, malformed } => {
                if let Some(inbox) = self.inbox(stream) {
                    self.inboxes
                        .fail_at_end(inbox, StreamFailure::of(malformed));
                }
            }
            Event::Reset { stream, cause } => self.on_reset(stream, cause),
            Event::Stopped { stream, .. } => self.on_stopped(stream),
            Event::Refused {
                violation: StreamViolation::TooMany { .. },
                ..
            } if self.too_many < TOO_MANY_FREE => self.too_many += 1,
            Event::Refused { .. } => self.service.on_refused(),
            // Nobody waits for them, and no server gets the others.
            Event::Settings
            | Event::PingAnswered { .. }
            | Event::GoAway { .. }
            | Event::Interim { .. }
            | Event::Response { .. } => {}
        }
    }

    fn on_bad_request(&mut self, stream: StreamKey, malformed: &Malformed) {
        self.exchanges.begin(stream, &self.ready);
        match self.service.refuse(malformed) {
            Some(response) => self.answer(stream, response),
            None => self.turns.wire.connection.reset(stream, malformed.code()),
        }
        // Nobody reads the rest of it.
        self.turns.wire.connection.discard(stream);
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
        let method = request.method().clone();
        let expects_continue = !end && expects_continue(request.headers());
        let admitted = self.service.admit(&mut request);
        let exchange = self.exchanges.begin(stream, &self.ready);
        exchange.method = method;
        exchange.inbox = inbox;
        exchange.expects_continue = expects_continue;
        match admitted {
            Ok(guard) => {
                exchange.handler.set(Some(self.service.call(request)));
                exchange.guard = Some(guard);
                exchange.part.mark();
            }
            Err(response) => self.answer(stream, response),
        }
    }

    fn on_reset(&mut self, stream: StreamKey, cause: ResetCause) {
        let Some(exchange) = self.exchanges.of(stream) else {
            return;
        };
        exchange.drop_work();
        exchange.stream = None;
        if let Some(inbox) = exchange.inbox.take() {
            self.inboxes.fail(inbox, cause.into());
        }
    }

    /// The client wants no answer any more. Its request has come whole: whoever reads it may.
    fn on_stopped(&mut self, stream: StreamKey) {
        if let Some(exchange) = self.exchanges.of(stream) {
            if let Some(answer) = exchange.answer.take() {
                answer.on_stopped(Stop::Reset);
            }
            exchange.drop_work();
            exchange.stream = None;
        }
    }

    pub(super) fn inbox(&mut self, stream: StreamKey) -> Option<InboxId> {
        self.exchanges.of(stream)?.inbox
    }

    /// Stops what is still sent of requests that are answered, and that nobody reads any more.
    fn hear_readers(&mut self) {
        let (turns, exchanges) = (&mut self.turns, &mut self.exchanges);
        turns.hear_readers(&self.inboxes, |connection, stream, _come| {
            if let Some(exchange) = exchanges.of(stream) {
                exchange.inbox = None;
                if exchange.is_over() {
                    stop_upload(connection, stream);
                }
            }
        });
    }

    /// Polls what was woken before this, each once, as long as there is room for what comes of it.
    fn work(&mut self) {
        self.turns.begin_work(&self.ready);
        while let Some(number) = self.turns.next_woken() {
            let Some(exchange) = self.exchanges.get_mut(number) else {
                continue;
            };
            exchange.part.begin_poll();
            let Some(stream) = exchange.stream else {
                continue;
            };
            let waker = exchange.waker.clone();
            let mut cx = Context::from_waker(&waker);
            if let Some(handler) = exchange.handler.as_mut().as_pin_mut() {
                let polled = interims::collect(&mut exchange.interims, || handler.poll(&mut cx));
                send_interims(&mut self.turns.wire.connection, exchange);
                let Poll::Ready(answer) = polled else {
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

    /// Tells streams that were blocked that there is room.
    fn mark_writable(&mut self) {
        while let Some(stream) = self.turns.wire.connection.next_writable() {
            if let Some(exchange) = self.exchanges.of(stream) {
                exchange.part.mark();
            }
        }
    }

    /// Ends all exchanges.
    fn fail(&mut self, failure: &StreamFailure) {
        self.service.on_end(true);
        for exchange in self.exchanges.iter_mut() {
            exchange.drop_work();
            exchange.stream = None;
        }
        self.inboxes.fail_all(failure);
    }
}

/// Whether a client waits for 100 before it sends the body (RFC 9110 section 10.1.1).
fn expects_continue(headers: &HeaderMap) -> bool {
    let expected = headers.get(EXPECT);
    expected.is_some_and(|expected| expected.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

impl<IO, S> Future for Serving<IO, S>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: Service + Unpin,
{
    type Output = Result<(), DriveError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let me = self.get_mut();
        let polled = me.poll_turn(cx);
        if let Poll::Ready(ended) = &polled {
            let failure = match ended {
                Err(error @ DriveError::Violation(_)) => error.failure(),
                Ok(()) | Err(DriveError::Silent | DriveError::Io(_)) => StreamFailure::ClientGone,
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
