//! The client's side of a connection: one task reads and writes it, and sends what a [`Handle`] gives it.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use http::{Method, Request};
use tokio::io::{AsyncRead, AsyncWrite};
use weft_core::h2::connection::{Config, Connection, Event, OpenError, ResetCause, StreamKey};
use weft_core::h2::frame::{ErrorCode, Role};
use weft_core::h2::message::{Malformed, Protocol, may_have_content};

use super::arrived::Come;
use super::failure::StreamFailure;
use super::handle::{Handle, Shared};
use super::inbox::InboxId;
use super::outgoing::{Outbound, Outgoing, Sent, Stop};
use super::probe::Probing;
use super::ready::{Part, Ready};
use super::turns::{DriveError, Next, ROUNDS, Read, Turns};
use super::unsent::Unsent;
use crate::clock::Turn;

/// So many streams may be open whose answers are whole: most servers end them a moment later, and some
/// end a connection on which streams are reset.
const LINGERING: usize = 32;

/// What a server has announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    /// Requests that it takes at a time.
    pub max_streams: u32,
    /// Whether it takes extended CONNECT (RFC 8441 section 3).
    pub extended_connect: bool,
}

/// Drives a connection. As a future it ends with the connection.
pub struct Driving<IO, B: Outbound> {
    pub(super) turns: Turns<IO>,
    shared: Arc<Shared<B>>,
    pub(super) uploads: Vec<Upload<B>>,
    on_announced: Box<dyn FnMut(Announced)>,
    /// Streams whose answers were whole before they have ended, the oldest first.
    lingering: VecDeque<StreamKey>,
    pub(super) unsent: Unsent,
    is_over: bool,
}

/// What is sent on one stream, in a place that one stream after the other has.
pub(super) struct Upload<B> {
    part: Arc<Part>,
    waker: Waker,
    stream: Option<StreamKey>,
    inbox: Option<InboxId>,
    pub(super) body: Option<Outgoing<B>>,
    pub(super) method: Method,
    /// Whether the answer was whole before its stream has ended, and nobody reads on.
    is_answered: bool,
}

impl<B> Upload<B> {
    fn new(number: u32, ready: &Arc<Ready>) -> Self {
        let part = Part::new(number, ready);
        Self {
            waker: Waker::from(Arc::clone(&part)),
            part,
            stream: None,
            inbox: None,
            body: None,
            method: Method::GET,
            is_answered: false,
        }
    }
}

impl<B> Upload<B> {
    /// Whether something is sent, or may be.
    pub(super) fn is_sending(&self) -> bool {
        self.body.is_some()
    }

    /// Nothing more is sent, and nobody reads what may still come.
    pub(super) fn give_up(&mut self, connection: &mut Connection, stream: StreamKey) {
        self.body = None;
        self.stream = None;
        connection.reset(stream, ErrorCode::CANCEL);
    }
}

/// Whether there is anybody on the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    There,
    Gone,
}

/// A connection that has just been made: what sends requests over it, and what drives it. The latter
/// calls `on_announced` with what the server allows, each time that this changes.
pub fn connect<IO, B>(
    io: IO,
    config: Config,
    probing: Option<Probing>,
    on_announced: Box<dyn FnMut(Announced)>,
) -> (Handle<B>, Driving<IO, B>)
where
    IO: AsyncRead + AsyncWrite + Unpin,
    B: Outbound,
{
    let shared = Shared::new();
    let connection = Connection::new(Role::Client, config);
    let driving = Driving {
        turns: Turns::new(io, connection, probing, &shared.ready),
        shared: Arc::clone(&shared),
        uploads: Vec::new(),
        on_announced,
        lingering: VecDeque::new(),
        unsent: Unsent::new(),
        is_over: false,
    };
    (Handle::new(shared), driving)
}

impl<IO, B> Driving<IO, B>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    B: Outbound,
{
    /// One turn; pending where nothing is left to do.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), DriveError>> {
        let _turn = Turn::begin();
        self.shared.ready.begin_turn(cx.waker());
        for _ in 0..ROUNDS {
            self.shared.ready.begin_nudged();
            self.turns.probe()?;
            let server = self.read();
            self.hear_readers();
            if let Ok(Server::There) = server {
                self.open_streams();
                self.work();
                self.cut_unsent(cx);
            }
            // Streams that nobody waits for must not keep a connection.
            if !self.lingering.is_empty() && self.is_ending() {
                while self.end_lingering() {}
            }
            // GOAWAY is written as far as there is room for it.
            let written = self.turns.wire.poll_write();
            if server? == Server::Gone {
                return Poll::Ready(Ok(()));
            }
            let is_written = written?.is_ready();
            self.mark_writable();
            if is_written && self.is_finished() {
                // Whatever comes of it: everything on it is over.
                return self.turns.wire.poll_shutdown().map(|_closed| Ok(()));
            }
            if self.turns.next(is_written) == Next::Wait && self.shared.ready.end_turn() {
                return Poll::Pending;
            }
        }
        self.shared.ready.yield_turn(cx.waker());
        Poll::Pending
    }

    /// Whether nothing is under way, and nothing more comes.
    fn is_finished(&self) -> bool {
        let is_over = self.is_ending() && self.turns.wire.connection.is_unused();
        is_over && self.shared.lock().requests.is_empty()
    }

    /// Whether nothing more is sent over it than what waits.
    fn is_ending(&self) -> bool {
        self.turns.wire.connection.is_going_away() || self.shared.lock().is_abandoned
    }

    fn read(&mut self) -> Result<Server, DriveError> {
        let mut all = usize::MAX;
        loop {
            match self.turns.read(&mut all)? {
                Read::Event(event) => self.on_event(event),
                Read::Nothing => return Ok(Server::There),
                Read::Ended => return Ok(Server::Gone),
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Response { stream, head, end } => {
                if let Some(upload) = self.upload(stream)
                    && let Some(inbox) = upload.inbox
                {
                    let come = match end {
                        true => Come::Ended,
                        false if may_have_content(&upload.method, head.parts.status) => Come::Part,
                        false => Come::Whole,
                    };
                    self.shared.inboxes.put_head(inbox, head, come);
                }
            }
            Event::Data {
                stream,
                payload,
                end,
            } => match self.inbox(stream) {
                Some(inbox) => self.shared.inboxes.put_data(inbox, payload, end),
                None => self.turns.wire.connection.discard(stream),
            },
            Event::Trailers { stream, trailers } => {
                if let Some(inbox) = self.inbox(stream) {
                    self.shared.inboxes.put_trailers(inbox, trailers);
                }
            }
            Event::BadTrailers { stream, malformed } => self.on_bad_trailers(stream, malformed),
            Event::Reset { stream, cause } => self.on_reset(stream, cause),
            // The response has come whole: what is still sent is not wanted.
            Event::Stopped { stream, code } => {
                if let Some(upload) = self.upload(stream)
                    && let Some(body) = upload.body.take()
                {
                    body.on_stopped(match code {
                        ErrorCode::NO_ERROR => Stop::Unread,
                        _ => Stop::Reset,
                    });
                }
            }
            Event::Settings => {
                let connection = &self.turns.wire.connection;
                let announced = Announced {
                    max_streams: connection.max_open_streams(),
                    extended_connect: connection.takes_extended_connect(),
                };
                (self.on_announced)(announced);
            }
            Event::GoAway { .. } => {
                self.shared.close(&StreamFailure::GoingAway);
            }
            Event::Interim { stream, head } => {
                if let Some(inbox) = self.inbox(stream) {
                    self.shared.inboxes.put_interim(inbox, *head);
                }
            }
            // No client gets them.
            Event::PingAnswered { .. }
            | Event::Request { .. }
            | Event::BadRequest { .. }
            | Event::Refused { .. } => {}
        }
    }

    fn on_bad_trailers(&mut self, stream: StreamKey, malformed: Malformed) {
        if let Some(inbox) = self.inbox(stream) {
            let failure = StreamFailure::of(malformed);
            self.shared.inboxes.fail_at_end(inbox, failure);
        }
    }

    fn on_reset(&mut self, stream: StreamKey, cause: ResetCause) {
        let Some(upload) = self.upload(stream) else {
            return;
        };
        upload.body = None;
        upload.stream = None;
        if let Some(inbox) = upload.inbox.take() {
            self.shared.inboxes.fail(inbox, cause.into());
        }
    }

    fn upload(&mut self, stream: StreamKey) -> Option<&mut Upload<B>> {
        upload(&mut self.uploads, stream)
    }

    fn inbox(&mut self, stream: StreamKey) -> Option<InboxId> {
        self.upload(stream)?.inbox
    }

    /// Opens streams for requests that wait, as many as the server takes.
    fn open_streams(&mut self) {
        if !self.turns.wire.connection.has_settings() {
            return;
        }
        while self.turns.wire.connection.has_room() {
            let next = self.shared.lock().requests.pop_front();
            let Some((inbox, request)) = next else { return };
            if self.shared.inboxes.is_dropped(inbox) {
                // It is closed with what its reader has left.
                continue;
            }
            if let Err((error, request)) = self.open(inbox, request) {
                if matches!(error, OpenError::TooMany { .. } | OpenError::NoRoom) {
                    self.shared.lock().requests.push_front((inbox, request));
                    // One that lingers leaves its place.
                    match self.end_lingering() {
                        true => continue,
                        false => return,
                    }
                }
                if matches!(error, OpenError::Exhausted) {
                    // Another connection is for all that follows.
                    self.turns.wire.connection.shut_down();
                    self.shared.close(&StreamFailure::GoingAway);
                    self.shared
                        .give_back(inbox, request, StreamFailure::GoingAway);
                    return;
                }
                let failure = StreamFailure::NotOpened(Arc::new(error));
                self.shared.give_back(inbox, request, failure);
            }
        }
    }

    /// Resets the stream that has lingered for the longest time; false where there is none.
    fn end_lingering(&mut self) -> bool {
        let Some(stream) = self.lingering.pop_front() else {
            return false;
        };
        if let Some(upload) = upload(&mut self.uploads, stream) {
            upload.give_up(&mut self.turns.wire.connection, stream);
        }
        true
    }

    fn open(
        &mut self,
        inbox: InboxId,
        request: Box<Request<B>>,
    ) -> Result<(), (OpenError, Box<Request<B>>)> {
        let protocol = request.extensions().get::<Protocol>();
        let end = request.body().is_end_stream();
        let method = request.method().clone();
        let opened = self.turns.wire.connection.open(&request, protocol, end);
        let stream = match opened {
            Ok(stream) => stream,
            Err(error) => return Err((error, request)),
        };
        self.shared.inboxes.set_stream(inbox, stream);
        while self.uploads.len() <= stream.slot() {
            // There are fewer than streams.
            let number = self.uploads.len() as u32;
            self.uploads.push(Upload::new(number, &self.shared.ready));
        }
        let upload = &mut self.uploads[stream.slot()];
        upload.stream = Some(stream);
        upload.inbox = Some(inbox);
        upload.method = method;
        upload.is_answered = false;
        upload.body = (!end).then(|| Outgoing::new(request.into_body()));
        if !end {
            upload.part.mark();
        }
        Ok(())
    }

    /// Gives up requests whose responses nobody reads any more.
    fn hear_readers(&mut self) {
        let (turns, uploads) = (&mut self.turns, &mut self.uploads);
        let (lingering, mut unsent) = (&mut self.lingering, Vec::new());
        turns.hear_readers(&self.shared.inboxes, |connection, stream, come| {
            let Some(upload) = upload(uploads, stream) else {
                return;
            };
            upload.inbox = None;
            upload.is_answered = come == Come::Whole;
            match come {
                Come::Part => upload.give_up(connection, stream),
                // The server may still read the request.
                Come::Whole | Come::Ended if upload.is_sending() => unsent.push(stream),
                Come::Whole => lingering.push_back(stream),
                Come::Ended => {}
            }
        });
        for stream in unsent {
            self.bound_unsent(stream);
        }
        while self.lingering.len() > LINGERING {
            self.end_lingering();
        }
    }

    /// Sends bodies that were woken before this, each once, as long as there is room.
    fn work(&mut self) {
        self.turns.begin_work(&self.shared.ready);
        while let Some(number) = self.turns.next_woken() {
            let Some(upload) = self.uploads.get_mut(number) else {
                continue;
            };
            upload.part.begin_poll();
            let (Some(stream), Some(body)) = (upload.stream, &mut upload.body) else {
                continue;
            };
            let mut cx = Context::from_waker(&upload.waker);
            match body.poll_send(&mut self.turns.wire.connection, stream, &mut cx) {
                Sent::Waiting => {
                    if let Some(since) = body.untaken_since() {
                        self.unsent.on_blocked(since);
                    }
                }
                Sent::Done | Sent::Gone => {
                    upload.body = None;
                    if upload.is_answered {
                        self.lingering.push_back(stream);
                    }
                }
                Sent::Broken(reason) => {
                    upload.body = None;
                    upload.stream = None;
                    if let Some(inbox) = upload.inbox.take() {
                        let failure = StreamFailure::Broken(reason);
                        self.shared.inboxes.fail(inbox, failure);
                    }
                }
            }
        }
    }

    /// Tells streams that were blocked that there is room.
    fn mark_writable(&mut self) {
        while let Some(stream) = self.turns.wire.connection.next_writable() {
            if let Some(upload) = self.upload(stream) {
                upload.part.mark();
            }
        }
    }

    /// Everything on the connection fails.
    fn fail(&mut self, failure: &StreamFailure) {
        self.is_over = true;
        self.shared.close(failure);
        self.uploads.clear();
        self.shared.inboxes.fail_all(failure);
    }
}

/// What is sent on a stream.
pub(super) fn upload<B>(uploads: &mut [Upload<B>], stream: StreamKey) -> Option<&mut Upload<B>> {
    let upload = uploads.get_mut(stream.slot())?;
    (upload.stream == Some(stream)).then_some(upload)
}

impl<IO, B> Future for Driving<IO, B>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    B: Outbound,
{
    type Output = Result<(), DriveError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let me = self.get_mut();
        let ended = ready!(me.poll_turn(cx));
        let failure = match &ended {
            Ok(()) => StreamFailure::Ended,
            Err(error) => error.failure(),
        };
        me.fail(&failure);
        Poll::Ready(ended)
    }
}

impl<IO, B: Outbound> Drop for Driving<IO, B> {
    fn drop(&mut self) {
        if !self.is_over {
            let failure = StreamFailure::Ended;
            self.shared.close(&failure);
            self.shared.inboxes.fail_all(&failure);
        }
    }
}
