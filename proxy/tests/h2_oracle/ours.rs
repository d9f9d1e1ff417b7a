//! Our connection, driven over a pipe.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use http::{HeaderMap, Request, StatusCode, request};
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use weft_core::h2::connection::{
    Config, Connection, ConnectionViolation, Event, OpenError, Progress, ResetCause, RespondError,
    StreamKey, StreamViolation,
};
use weft_core::h2::frame::{ErrorCode, FrameSize, Limits, Role, WindowSize};
use weft_core::h2::message::HeadLimits;
use weft_core::time::Instant;

use super::plan::{End, Exchange, Seen, Step};
use super::raw::RawFrame;

/// Nothing depends on time: no frame is forgiven because a second has passed.
const NOW: Instant = Instant::from_nanos(1);
/// Bytes that are received and not read.
const BUFFER: usize = 64 * 1024;

/// One side of a connection that does what the exchanges say.
#[derive(Debug)]
pub(crate) struct Ours {
    pub(crate) connection: Connection,
    role: Role,
    exchanges: Vec<Exchange>,
    /// Of a client, those that it has not begun.
    waiting: VecDeque<usize>,
    streams: HashMap<StreamKey, Stream>,
    pub(crate) seen: BTreeMap<usize, Seen>,
    dice: Dice,
    /// Bytes that are read at a time.
    cut: usize,
    buffer: BytesMut,
    /// Everything that was received, and everything that was written.
    pub(crate) received: Vec<u8>,
    pub(crate) written: Vec<u8>,
    /// Whether it sends nothing before it has the peer's settings.
    pub(crate) is_patient: bool,
    /// After so many requests it ends the connection in good order.
    shut_down_after: Option<usize>,
}

#[derive(Debug)]
struct Stream {
    number: usize,
    steps: VecDeque<Step>,
    /// Whether it may go on: the server with its answer, and whoever is not blocked.
    is_ready: bool,
    is_blocked: bool,
    held: usize,
}

/// Deterministic choices.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) as usize % sides
    }
}

impl Ours {
    pub(crate) fn new(
        role: Role,
        config: Config,
        exchanges: Vec<Exchange>,
        cut: usize,
        shut_down_after: Option<usize>,
    ) -> Self {
        Self {
            connection: Connection::new(role, config),
            role,
            waiting: match role {
                Role::Client => (0..exchanges.len()).collect(),
                Role::Server => VecDeque::new(),
            },
            exchanges,
            streams: HashMap::new(),
            seen: BTreeMap::new(),
            dice: Dice(cut as u64),
            cut,
            buffer: BytesMut::new(),
            received: Vec::new(),
            written: Vec::new(),
            is_patient: false,
            shut_down_after,
        }
    }

    /// Goes on until the peer closes the pipe, or until this side has nothing more to do.
    pub(crate) async fn drive(&mut self, io: &mut DuplexStream) -> Result<(), ConnectionViolation> {
        loop {
            self.turn()?;
            let is_over = self.is_over() && self.connection.output().is_empty();
            if is_over || !std::future::poll_fn(|cx| self.poll_io(cx, io)).await {
                break;
            }
            tokio::task::yield_now().await;
        }
        for stream in self.sorted() {
            self.consume(stream);
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        let is_client = self.role == Role::Client;
        let is_done = is_client && self.waiting.is_empty() && self.streams.is_empty();
        self.connection.is_finished() || (is_done && self.shut_down_after.is_none())
    }

    /// Whether there is something to do without anything new from the peer.
    fn is_busy(&self) -> bool {
        let mut streams = self.streams.values();
        streams.any(|stream| stream.can_go_on() || stream.held > 0)
    }

    /// Reads and writes what can be at once; false where the peer has closed the pipe.
    fn poll_io(&mut self, cx: &mut Context<'_>, io: &mut DuplexStream) -> Poll<bool> {
        let mut moved = false;
        let output = self.connection.output();
        if !output.is_empty() {
            match Pin::new(&mut *io).poll_write(cx, output) {
                Poll::Ready(Ok(bytes)) => {
                    self.written.extend_from_slice(&output[..bytes]);
                    output.advance(bytes);
                    moved = true;
                }
                Poll::Ready(Err(_)) => {
                    self.written.extend_from_slice(output);
                    output.clear();
                }
                Poll::Pending => {}
            }
        }
        if self.buffer.len() < BUFFER {
            let mut piece = vec![0; self.dice.roll(2 * self.cut) + 1];
            let mut piece = ReadBuf::new(&mut piece);
            if let Poll::Ready(read) = Pin::new(io).poll_read(cx, &mut piece) {
                if read.is_err() || piece.filled().is_empty() {
                    return Poll::Ready(false);
                }
                self.received.extend_from_slice(piece.filled());
                self.buffer.extend_from_slice(piece.filled());
                moved = true;
            }
        }
        match moved || self.is_busy() {
            true => Poll::Ready(true),
            false => Poll::Pending,
        }
    }

    fn turn(&mut self) -> Result<(), ConnectionViolation> {
        while let Some(event) = self.connection.receive(&mut self.buffer, NOW)? {
            self.on_event(event);
        }
        if self
            .shut_down_after
            .is_some_and(|after| self.seen.len() >= after)
        {
            self.connection.shut_down();
        }
        while let Some(stream) = self.connection.next_writable() {
            if let Some(found) = self.streams.get_mut(&stream) {
                found.is_blocked = false;
            }
            self.go_on(stream);
        }
        self.open();
        for stream in self.sorted() {
            match self.dice.roll(3) {
                0 => self.consume(stream),
                1 => self.go_on(stream),
                _ => {}
            }
        }
        Ok(())
    }

    /// Streams in an order that is the same in every run.
    fn sorted(&self) -> Vec<StreamKey> {
        let mut streams: Vec<_> = self.streams.keys().copied().collect();
        streams.sort_by_key(|stream| stream.id());
        streams
    }

    fn open(&mut self) {
        if self.is_patient && !self.connection.has_settings() {
            return;
        }
        let connection = &self.connection;
        if connection.open_streams() >= connection.max_open_streams() || !connection.has_room() {
            return;
        }
        while let Some(&number) = self.waiting.front() {
            let exchange = &self.exchanges[number];
            let mut steps = VecDeque::from(exchange.steps(true));
            let Some(Step::Head(end)) = steps.pop_front() else {
                panic!("a request begins with a head");
            };
            match self.connection.open(&request(exchange, number), None, end) {
                Ok(stream) => {
                    self.waiting.pop_front();
                    self.seen.insert(number, Seen::default());
                    self.add(stream, number, steps, true);
                }
                Err(OpenError::TooMany { .. } | OpenError::NoRoom) => return,
                Err(OpenError::GoingAway) => self.waiting.clear(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn add(&mut self, stream: StreamKey, number: usize, steps: VecDeque<Step>, is_ready: bool) {
        let added = Stream {
            number,
            steps,
            is_ready,
            is_blocked: false,
            held: 0,
        };
        assert!(self.streams.insert(stream, added).is_none());
    }

    fn consume(&mut self, stream: StreamKey) {
        if let Some(found) = self.streams.get_mut(&stream) {
            let held = std::mem::take(&mut found.held);
            // In two pieces.
            let first = self.dice.roll(held + 1);
            self.connection.consumed(stream, first);
            self.connection.consumed(stream, held - first);
        }
        self.forget_if_over(stream);
    }

    fn forget_if_over(&mut self, stream: StreamKey) {
        let seen = &self.seen;
        let is_over = self.streams.get(&stream).is_some_and(|found| {
            let is_received = seen[&found.number].end != End::Open;
            is_received && found.steps.is_empty() && found.held == 0
        });
        if is_over {
            self.streams.remove(&stream);
        }
    }

    /// Takes the stream's next step, if it can.
    fn go_on(&mut self, stream: StreamKey) {
        let Some(found) = self.streams.get_mut(&stream) else {
            return;
        };
        if !found.can_go_on() {
            return;
        }
        let exchange = &self.exchanges[found.number];
        let Some(step) = found.steps.pop_front() else {
            return;
        };
        match step {
            Step::Interim(headers) => {
                let status = StatusCode::EARLY_HINTS;
                let sent = self.connection.respond(stream, status, &headers, false);
                if sent == Err(RespondError::NoRoom) {
                    return found.steps.push_front(Step::Interim(headers));
                }
                sent.unwrap();
            }
            Step::Head(end) => {
                let headers = &exchange.response.headers;
                let sent = self
                    .connection
                    .respond(stream, exchange.status, headers, end);
                if sent == Err(RespondError::NoRoom) {
                    return found.steps.push_front(Step::Head(end));
                }
                sent.unwrap();
            }
            Step::Data(mut data, end) => {
                match self.connection.send_data(stream, &mut data, end).unwrap() {
                    Progress::Done => {}
                    Progress::Blocked => {
                        found.is_blocked = true;
                        found.steps.push_front(Step::Data(data, end));
                    }
                }
            }
            Step::Trailers(trailers) => {
                self.connection.send_trailers(stream, &trailers).unwrap();
            }
            Step::Reset => {
                self.connection.reset(stream, ErrorCode::CANCEL);
                let end = &mut self.seen.get_mut(&found.number).unwrap().end;
                if *end == End::Open {
                    *end = End::Reset;
                }
                self.streams.remove(&stream);
            }
        }
        self.forget_if_over(stream);
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Request { stream, head, end } => self.on_request(stream, &head.parts, end),
            Event::Interim { stream, head } => {
                self.seen_of(stream).interims.push(head.parts.headers);
            }
            Event::Response { stream, head, end } => {
                let seen = self.seen_of(stream);
                assert_eq!(seen.first, "", "a second response");
                head.parts.status.as_str().clone_into(&mut seen.first);
                seen.headers = head.parts.headers;
                self.ended(stream, end);
            }
            Event::Data {
                stream,
                payload,
                end,
            } => {
                self.seen_of(stream).body.extend_from_slice(&payload);
                self.streams.get_mut(&stream).unwrap().held += payload.len();
                self.ended(stream, end);
            }
            Event::Trailers { stream, trailers } => {
                self.seen_of(stream).trailers = Some(trailers);
                self.ended(stream, true);
            }
            Event::Reset { stream, cause } => self.on_reset(stream, cause),
            // Nothing more of what is sent is wanted: what was received is whole.
            Event::Stopped { stream, code } => {
                self.streams.get_mut(&stream).unwrap().steps.clear();
                self.seen_of(stream).code = Some(code.0);
                self.forget_if_over(stream);
            }
            Event::Settings | Event::GoAway { .. } => {}
            // The client may not have seen our settings; it tries again.
            Event::Refused {
                violation: StreamViolation::TooMany { .. },
                ..
            } => {}
            event @ (Event::BadRequest { .. }
            | Event::BadTrailers { .. }
            | Event::Refused { .. }
            | Event::PingAnswered { .. }) => panic!("{event:?}"),
        }
    }

    fn on_reset(&mut self, stream: StreamKey, cause: ResetCause) {
        let Some(found) = self.streams.remove(&stream) else {
            return;
        };
        let (end, code) = match cause {
            // The server's settings came too late.
            ResetCause::Peer(ErrorCode::REFUSED_STREAM) => {
                self.seen.remove(&found.number);
                return self.waiting.push_back(found.number);
            }
            ResetCause::Peer(code) => (End::Reset, Some(code.0)),
            ResetCause::Unprocessed => (End::Unprocessed, None),
            ResetCause::Violation(violation) => panic!("{violation}"),
        };
        let seen = self.seen.get_mut(&found.number).unwrap();
        if seen.end == End::Open {
            (seen.end, seen.code) = (end, code);
        }
    }

    fn on_request(&mut self, stream: StreamKey, head: &request::Parts, end: bool) {
        let number = Exchange::number(head.uri.path());
        let exchange = &self.exchanges[number];
        let steps = exchange.steps(false).into();
        let is_ready = exchange.is_early;
        let seen = Seen {
            first: format!("{} {}", head.method, head.uri),
            headers: head.headers.clone(),
            ..Seen::default()
        };
        let earlier = self.seen.insert(number, seen);
        assert!(earlier.is_none(), "{number} comes twice");
        self.add(stream, number, steps, is_ready);
        self.ended(stream, end);
    }

    fn seen_of(&mut self, stream: StreamKey) -> &mut Seen {
        let number = self.streams[&stream].number;
        self.seen.get_mut(&number).unwrap()
    }

    fn ended(&mut self, stream: StreamKey, end: bool) {
        if end {
            self.seen_of(stream).end = End::Whole;
            self.streams.get_mut(&stream).unwrap().is_ready = true;
            self.forget_if_over(stream);
        }
    }

    /// Nothing is left, and the window that the peer has is at least half of the connection's.
    pub(crate) fn check_is_unused(&mut self, config: Config) -> Result<(), TestCaseError> {
        prop_assert!(self.connection.is_unused(), "{:?}", self.streams);
        prop_assert_eq!(self.connection.open_streams(), 0);
        let mut written = self.written.clone();
        written.extend_from_slice(self.connection.output());
        let given = RawFrame::of_side(&written, self.role);
        let given: u64 = given.iter().map(RawFrame::connection_increment).sum();
        let taken = RawFrame::of_side(&self.received, self.other());
        let taken: u64 = taken.iter().map(RawFrame::data_bytes).sum();
        let size = u64::from(config.connection_window.max(WindowSize::DEFAULT).get());
        let window = 65_535 + given - taken;
        prop_assert!(window <= size && window >= size / 2, "{window} of {size}");
        Ok(())
    }

    pub(crate) fn check_secrets(&self) -> Result<(), TestCaseError> {
        let is_client = self.role == Role::Client;
        let mut seen = self.seen.iter();
        seen.try_for_each(|(number, seen)| self.exchanges[*number].check_secrets(is_client, seen))
    }

    fn other(&self) -> Role {
        match self.role {
            Role::Client => Role::Server,
            Role::Server => Role::Client,
        }
    }
}

impl Stream {
    fn can_go_on(&self) -> bool {
        self.is_ready && !self.is_blocked && !self.steps.is_empty()
    }
}

/// The head of a request.
pub(crate) fn request(exchange: &Exchange, number: usize) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = exchange.method.clone();
    *request.uri_mut() = Exchange::uri(number).parse().unwrap();
    *request.headers_mut() = HeaderMap::clone(&exchange.request.headers);
    request
}

/// What our side allows.
pub(crate) fn config() -> impl Strategy<Value = Config> {
    let window = prop_oneof![Just(65_535_u32), 300..5_000_u32, 5_000..300_000_u32];
    let table = prop_oneof![Just(4_096_u32), Just(0), 33..400_u32, 5_000..20_000_u32];
    let frame = prop_oneof![3 => Just(1_u32 << 14), 1 => 1 << 14..1_u32 << 17];
    let out = prop_oneof![2_100..5_000_usize, 30_000..100_000_usize];
    (
        window.clone(),
        window,
        (table.clone(), table),
        frame,
        out,
        1..12_u32,
    )
        .prop_map(
            |(stream, connection, (receive, send), frame, out, streams)| Config {
                max_streams: streams,
                stream_window: WindowSize::new(stream).unwrap(),
                connection_window: WindowSize::new(connection).unwrap(),
                receive_table: receive,
                send_table: send,
                frames: Limits {
                    frame_size: FrameSize::new(frame).unwrap(),
                    ..Limits::with_block_bytes(1 << 20)
                },
                heads: HeadLimits::NONE,
                header_list: 1 << 20,
                out_bytes: out,
                ..Config::default()
            },
        )
}
