//! Answers on the streams of a server's connection: their heads, their bodies, and clients that do not
//! read them.

use std::task::Context;
use std::time::Duration;

use http::{Response, StatusCode};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use weft_core::h2::connection::{Connection, RespondError, StreamKey};
use weft_core::h2::frame::ErrorCode;
use weft_core::h2::message::may_have_content;
use weft_core::reason::Reason;

use super::exchange::Exchange;
use super::failure::StreamFailure;
use super::outgoing::{Outgoing, Sent};
use super::server::Serving;
use super::service::Service;
use crate::http::h1::Timer;

/// Looks after an other side that does not read: clients that do not read answers, servers that do not
/// read requests which they have answered.
#[derive(Debug)]
pub(super) struct Stalls {
    limit: Option<Duration>,
    /// Set while there is one.
    timer: Timer,
    is_set: bool,
}

impl Stalls {
    /// `limit`: how long it may take nothing; `None` waits for ever.
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Self {
            limit,
            timer: Timer::default(),
            is_set: false,
        }
    }

    /// It takes nothing since then.
    pub(super) fn begin(&mut self, since: Instant) {
        if let Some(limit) = self.limit
            && !self.is_set
        {
            self.is_set = true;
            self.timer.set(Some(since + limit));
        }
    }

    /// The limit, when it may be over for somebody. Whoever is told sets the timer anew.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Option<Duration> {
        let limit = self.limit.filter(|_| self.is_set)?;
        let is_over = self.timer.poll(cx).is_ready();
        self.is_set = !is_over;
        is_over.then_some(limit)
    }
}

impl<IO, S> Serving<IO, S>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: Service,
{
    /// Sends the head of an answer; its body follows.
    pub(super) fn answer(&mut self, stream: StreamKey, response: Response<S::Body>) {
        let (parts, body) = response.into_parts();
        let exchange = self.exchanges.of(stream);
        let may_follow =
            exchange.is_none_or(|exchange| may_have_content(&exchange.method, parts.status));
        let connection = &mut self.turns.wire.connection;
        let end = !may_follow || body.is_end_stream();
        match connection.respond(stream, parts.status, &parts.headers, end) {
            Ok(()) if end => self.on_answered(stream),
            Ok(()) => {
                if let Some(exchange) = self.exchanges.of(stream) {
                    exchange.answer = Some(Outgoing::new(body));
                    exchange.part.mark();
                }
            }
            Err(RespondError::Unsendable(error)) => {
                tracing::error!(%error, "an answer is none in HTTP/2");
                self.give_up(stream);
            }
            Err(RespondError::TooLarge(error)) => {
                tracing::debug!(%error, "an answer is not sent");
                self.give_up(stream);
            }
            Err(RespondError::Ended(_) | RespondError::NoRoom) => {}
        }
    }

    /// Resets a stream whose answer cannot be sent.
    fn give_up(&mut self, stream: StreamKey) {
        let connection = &mut self.turns.wire.connection;
        connection.reset(stream, ErrorCode::INTERNAL_ERROR);
        self.leave(stream);
    }

    /// A stream that was reset is nobody's any more. Whoever reads its request gets no more of it.
    fn leave(&mut self, stream: StreamKey) {
        let Some(exchange) = self.exchanges.of(stream) else {
            return;
        };
        exchange.answer = None;
        exchange.stream = None;
        if let Some(inbox) = exchange.inbox.take() {
            let failure = StreamFailure::Broken(Reason::ClientGone);
            self.inboxes.fail(inbox, failure);
        }
    }

    /// Sends more of an answer's body.
    pub(super) fn send(&mut self, stream: StreamKey, cx: &mut Context<'_>) {
        let Some(exchange) = self.exchanges.of(stream) else {
            return;
        };
        let Some(answer) = &mut exchange.answer else {
            return;
        };
        match answer.poll_send(&mut self.turns.wire.connection, stream, cx) {
            Sent::Waiting => {
                if let Some(since) = answer.untaken_since() {
                    self.stalls.begin(since);
                }
            }
            Sent::Done => {
                exchange.answer = None;
                self.on_answered(stream);
            }
            Sent::Broken(_) | Sent::Gone => self.leave(stream),
        }
    }

    /// All of an answer is sent.
    fn on_answered(&mut self, stream: StreamKey) {
        if self.inbox(stream).is_none() {
            stop_upload(&mut self.turns.wire.connection, stream);
        }
    }

    /// Resets streams whose clients have taken nothing of their answers for too long.
    pub(super) fn cut_stalled(&mut self, cx: &mut Context<'_>) {
        while let Some(limit) = self.stalls.poll(cx) {
            let now = Instant::now();
            let mut first = None;
            for exchange in self.exchanges.iter_mut() {
                let (Some(stream), Some(since)) = (exchange.stream, exchange.untaken_since())
                else {
                    continue;
                };
                if now < since + limit {
                    first = Some(first.map_or(since, |first: Instant| first.min(since)));
                    continue;
                }
                if let Some(answer) = exchange.answer.take() {
                    answer.on_stalled();
                }
                exchange.stream = None;
                self.turns.wire.connection.reset(stream, ErrorCode::CANCEL);
                if let Some(inbox) = exchange.inbox.take() {
                    let failure = StreamFailure::Broken(Reason::ClientTimeout);
                    self.inboxes.fail(inbox, failure);
                }
            }
            if let Some(since) = first {
                self.stalls.begin(since);
            }
        }
    }
}

/// Sends the interim responses that have come as far as there is room; nobody may rely on them. 100 goes
/// to a client that waits for it, once.
pub(super) fn send_interims<S: Service>(connection: &mut Connection, exchange: &mut Exchange<S>) {
    let Some(stream) = exchange.stream else {
        return;
    };
    for interim in exchange.interims.take() {
        let status = interim.status();
        if status == StatusCode::CONTINUE && !std::mem::take(&mut exchange.expects_continue) {
            continue;
        }
        if let Err(error) = connection.respond(stream, status, interim.headers(), false) {
            tracing::debug!(%error, "an interim response is not sent");
        }
    }
}

/// The answer is there, and nobody reads the request any more (RFC 9113 section 8.1).
pub(super) fn stop_upload(connection: &mut Connection, stream: StreamKey) {
    if connection.is_receiving(stream) {
        connection.reset(stream, ErrorCode::NO_ERROR);
    }
}
