//! The client's side of a connection: one task reads and writes it, and sends what a [`Handle`] gives it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};
use weft_core::h2::connection::{
    Config, Connection, ConnectionViolation, Event, OpenError, StreamKey,
};
use weft_core::h2::frame::{ErrorCode, Role};
use weft_core::h2::message::Protocol;

use super::failure::StreamFailure;
use super::handle::{Handle, Shared};
use super::inbox::{InboxId, Touched};
use super::outgoing::{Outbound, Outgoing, Sent};
use super::probe::{PROBE, Probe, Probed, Probing};
use super::ready::{Part, Ready};
use super::wire::Wire;
use crate::clock::Turn;

/// How often a connection goes from reading to writing before others have their turn.
const ROUNDS: usize = 8;

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
    wire: Wire<IO>,
    shared: Arc<Shared<B>>,
    uploads: Vec<Upload<B>>,
    /// Parts that were woken, and were not polled yet.
    woken: Vec<u32>,
    touched: Vec<Touched>,
    on_announced: Box<dyn FnMut(Announced)>,
    probe: Option<Probe>,
    /// Whether more was not read for want of room in the output.
    is_held_up: bool,
    is_over: bool,
}

/// What is sent on one stream, in a place that one stream after the other has.
struct Upload<B> {
    part: Arc<Part>,
    waker: Waker,
    stream: Option<StreamKey>,
    inbox: Option<InboxId>,
    body: Option<Outgoing<B>>,
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
        }
    }
}

/// What was read.
#[derive(Debug, Clone, Copy)]
enum Read {
    /// All that was there.
    Open,
    /// The end: nobody is there any more.
    Ended,
}

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The server has broken a rule.
    #[error("{0}")]
    Violation(Arc<ConnectionViolation>),
    /// The socket has failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The server does not answer any more.
    #[error("the server has not answered a PING")]
    Silent,
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
    let driving = Driving {
        wire: Wire::new(io, Connection::new(Role::Client, config)),
        shared: Arc::clone(&shared),
        uploads: Vec::new(),
        woken: Vec::new(),
        touched: Vec::new(),
        on_announced,
        probe: probing.map(Probe::new),
        is_held_up: false,
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
            self.probe(cx)?;
            let read = self.read(cx);
            self.apply_touched();
            if let Ok(Read::Open) = read {
                self.open_streams();
                self.work();
            }
            // GOAWAY is written as far as there is room for it.
            let written = self.wire.poll_write(cx);
            if let Read::Ended = read? {
                return Poll::Ready(Ok(()));
            }
            let is_written = written?.is_ready();
            self.mark_writable();
            if is_written && self.is_finished() {
                // Whatever comes of it: everything on it is over.
                return self.wire.poll_shutdown(cx).map(|_closed| Ok(()));
            }
            if self.is_held_up && self.wire.connection.may_receive() {
                continue;
            }
            let is_done = self.woken.is_empty() && self.wire.connection.output().is_empty();
            // While the socket takes nothing, its readiness is what is waited for.
            if (is_done || !is_written) && self.shared.ready.end_turn() {
                return Poll::Pending;
            }
        }
        self.shared.ready.yield_turn(cx.waker());
        Poll::Pending
    }

    /// Asks a server of which nothing has come for long whether it is there.
    fn probe(&mut self, cx: &mut Context<'_>) -> Result<(), DriveError> {
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
            Probed::Silent => Err(DriveError::Silent),
        }
    }

    /// Whether nothing is under way, and nothing more comes.
    fn is_finished(&self) -> bool {
        let queue = self.shared.lock();
        let is_ending = queue.is_abandoned || self.wire.connection.is_going_away();
        is_ending && queue.requests.is_empty() && self.wire.connection.is_unused()
    }

    /// Reads until nothing more is there, or there is no room for what is to be said.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<Read, DriveError> {
        self.is_held_up = false;
        loop {
            match self.wire.next_event() {
                Ok(Some(event)) => {
                    self.on_event(event);
                    continue;
                }
                Ok(None) => {}
                Err(violation) => return Err(DriveError::Violation(Arc::new(violation))),
            }
            if !self.wire.connection.may_receive() {
                self.is_held_up = true;
                return Ok(Read::Open);
            }
            match self.wire.poll_read(cx, usize::MAX) {
                Poll::Pending => return Ok(Read::Open),
                Poll::Ready(Ok(0)) => return Ok(Read::Ended),
                Poll::Ready(Ok(_read)) => {
                    if let Some(probe) = &mut self.probe {
                        probe.on_read();
                    }
                }
                Poll::Ready(Err(error)) => return Err(error.into()),
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Response { stream, head, end } => {
                if let Some(inbox) = self.inbox(stream) {
                    self.shared.inboxes.put_head(inbox, head, end);
                }
            }
            Event::Data {
                stream,
                payload,
                end,
            } => match self.inbox(stream) {
                Some(inbox) => self.shared.inboxes.put_data(inbox, payload, end),
                None => self.wire.connection.discard(stream),
            },
            Event::Trailers { stream, trailers } => {
                if let Some(inbox) = self.inbox(stream) {
                    self.shared.inboxes.put_trailers(inbox, trailers);
                }
            }
            Event::Reset { stream, cause } => {
                let Some(upload) = self.upload(stream) else {
                    return;
                };
                upload.body = None;
                upload.stream = None;
                if let Some(inbox) = upload.inbox.take() {
                    self.shared.inboxes.fail(inbox, cause.into());
                }
            }
            // The response has come whole: what is still sent is not wanted.
            Event::Stopped { stream, .. } => {
                if let Some(upload) = self.upload(stream) {
                    upload.body = None;
                }
            }
            Event::Settings => {
                let announced = Announced {
                    max_streams: self.wire.connection.max_open_streams(),
                    extended_connect: self.wire.connection.takes_extended_connect(),
                };
                (self.on_announced)(announced);
            }
            Event::GoAway { .. } => {
                self.shared.close(&StreamFailure::GoingAway);
            }
            // Interim responses are not forwarded, and no client gets the others.
            Event::Interim { .. }
            | Event::PingAnswered { .. }
            | Event::Request { .. }
            | Event::BadRequest { .. }
            | Event::Refused { .. } => {}
        }
    }

    fn upload(&mut self, stream: StreamKey) -> Option<&mut Upload<B>> {
        let upload = self.uploads.get_mut(stream.slot())?;
        (upload.stream == Some(stream)).then_some(upload)
    }

    fn inbox(&mut self, stream: StreamKey) -> Option<InboxId> {
        self.upload(stream)?.inbox
    }

    /// Opens streams for requests that wait, as many as the server takes.
    fn open_streams(&mut self) {
        if !self.wire.connection.has_settings() {
            return;
        }
        while self.wire.connection.has_room() {
            let next = self.shared.lock().requests.pop_front();
            let Some((inbox, request)) = next else { return };
            if self.shared.inboxes.is_dropped(inbox) {
                // It is closed with what its reader has left.
                continue;
            }
            if let Err((error, request)) = self.open(inbox, request) {
                if matches!(error, OpenError::TooMany { .. } | OpenError::NoRoom) {
                    return self.shared.lock().requests.push_front((inbox, *request));
                }
                let failure = StreamFailure::NotOpened(Arc::new(error));
                self.shared.give_back(inbox, *request, failure);
            }
        }
    }

    fn open(
        &mut self,
        inbox: InboxId,
        request: Request<B>,
    ) -> Result<(), (OpenError, Box<Request<B>>)> {
        let (parts, body) = request.into_parts();
        let protocol = parts.extensions.get::<Protocol>();
        let end = body.is_end_stream();
        let opened = self.wire.connection.open(&parts, protocol, end);
        let stream = match opened {
            Ok(stream) => stream,
            Err(error) => return Err((error, Box::new(Request::from_parts(parts, body)))),
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
        upload.body = (!end).then(|| Outgoing::new(body));
        if !end {
            upload.part.mark();
        }
        Ok(())
    }

    /// Tells the connection what readers have taken, and who reads no more.
    fn apply_touched(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        self.shared.inboxes.take_touched(&mut touched);
        for touch in touched.drain(..) {
            if touch.is_dropped {
                self.shared.inboxes.close(touch.inbox);
            }
            let Some(stream) = touch.stream else {
                continue;
            };
            self.wire.connection.consumed(stream, touch.taken);
            if !touch.is_dropped {
                continue;
            }
            self.wire.connection.discard(stream);
            let Some(upload) = self.upload(stream) else {
                continue;
            };
            upload.inbox = None;
            if !touch.has_ended {
                upload.body = None;
                upload.stream = None;
                self.wire.connection.reset(stream, ErrorCode::CANCEL);
            }
        }
        self.touched = touched;
    }

    /// Sends bodies that were woken before this, each once, as long as there is room.
    fn work(&mut self) {
        if self.woken.is_empty() {
            self.shared.ready.take(&mut self.woken);
            self.woken.reverse();
        }
        while self.wire.connection.has_room()
            && let Some(number) = self.woken.pop()
        {
            let Some(upload) = self.uploads.get_mut(number as usize) else {
                continue;
            };
            upload.part.begin_poll();
            let (Some(stream), Some(body)) = (upload.stream, &mut upload.body) else {
                continue;
            };
            let mut cx = Context::from_waker(&upload.waker);
            match body.poll_send(&mut self.wire.connection, stream, &mut cx) {
                Sent::Waiting => {}
                Sent::Done | Sent::Gone => upload.body = None,
                Sent::Broken => {
                    upload.body = None;
                    upload.stream = None;
                    if let Some(inbox) = upload.inbox.take() {
                        self.shared.inboxes.fail(inbox, StreamFailure::Broken);
                    }
                }
            }
        }
    }

    /// Tells streams that were blocked that there is room.
    fn mark_writable(&mut self) {
        while let Some(stream) = self.wire.connection.next_writable() {
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
            Ok(()) | Err(DriveError::Silent) => StreamFailure::Ended,
            Err(DriveError::Violation(violation)) => {
                StreamFailure::Connection(Arc::clone(violation))
            }
            Err(DriveError::Io(error)) => StreamFailure::io(error),
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
