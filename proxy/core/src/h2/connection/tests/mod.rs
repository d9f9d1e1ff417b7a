//! Two connections of ours against each other, and one against frames that are written by hand.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test names what it expects, and anything else fails it"
)]

mod exchange;
mod floods;
mod properties;
mod shutdown;
mod stalls;
mod states;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode};

use super::super::frame::{
    ErrorCode, Frame, FrameSize, Limits, Reader, Received, Role, Setting, StreamId, WindowSize,
    write_headers, write_preface, write_settings,
};
use super::super::hpack::Encoder;
use super::super::message::HeadLimits;
use super::*;
use crate::time::Instant;

const NOW: Instant = Instant::from_nanos(1);

fn id(number: u32) -> StreamId {
    StreamId::new(number).unwrap()
}

fn window(bytes: u32) -> WindowSize {
    WindowSize::new(bytes).unwrap()
}

/// Moves what one connection has written to the other, in pieces of `cut` bytes; what it tells.
fn carry(
    from: &mut Connection,
    to: &mut Connection,
    buffer: &mut BytesMut,
    cut: usize,
) -> Vec<Event> {
    let out = from.output().split().freeze();
    let mut events = Vec::new();
    // Also where nothing is new: there may be room now for what was not read.
    for piece in out.chunks(cut.max(1)).chain([&[][..]]) {
        buffer.extend_from_slice(piece);
        while let Some(event) = to.receive(buffer, NOW).expect("the peer is ours") {
            events.push(event);
        }
    }
    events
}

/// A client and a server.
struct Pair {
    client: Connection,
    server: Connection,
    to_client: BytesMut,
    to_server: BytesMut,
    cut: usize,
}

impl Pair {
    /// Both have each other's settings.
    fn new(client: Config, server: Config) -> Self {
        let mut pair = Self {
            client: Connection::new(Role::Client, client),
            server: Connection::new(Role::Server, server),
            to_client: BytesMut::new(),
            to_server: BytesMut::new(),
            cut: usize::MAX,
        };
        pair.settle();
        assert!(pair.client.has_settings() && pair.server.has_settings());
        pair
    }

    fn deliver_to_server(&mut self) -> Vec<Event> {
        carry(
            &mut self.client,
            &mut self.server,
            &mut self.to_server,
            self.cut,
        )
    }

    fn deliver_to_client(&mut self) -> Vec<Event> {
        carry(
            &mut self.server,
            &mut self.client,
            &mut self.to_client,
            self.cut,
        )
    }

    /// Until neither has anything to say; what both have told.
    fn settle(&mut self) -> (Vec<Event>, Vec<Event>) {
        let (mut client, mut server) = (Vec::new(), Vec::new());
        while !self.client.output().is_empty() || !self.server.output().is_empty() {
            server.extend(self.deliver_to_server());
            client.extend(self.deliver_to_client());
        }
        (client, server)
    }

    /// A request without body that the server has got; its streams at both ends.
    fn request(&mut self, method: Method) -> (StreamKey, StreamKey) {
        let stream = open(&mut self.client, &method, true).unwrap();
        let events = self.deliver_to_server();
        match &events[..] {
            [
                Event::Request {
                    stream: there,
                    end: true,
                    ..
                },
            ] => (stream, *there),
            events => panic!("{events:?}"),
        }
    }
}

fn open(client: &mut Connection, method: &Method, end: bool) -> Result<StreamKey, OpenError> {
    let request = Request::builder()
        .method(method)
        .uri("http://web/things?a=b")
        .header("x-tenant", "blue")
        .body(());
    client.open(&request.unwrap(), None, end)
}

fn send(
    connection: &mut Connection,
    stream: StreamKey,
    data: &[u8],
    end: bool,
) -> (Progress, usize) {
    let mut bytes = Bytes::copy_from_slice(data);
    let progress = connection.send_data(stream, &mut bytes, end).unwrap();
    (progress, data.len() - bytes.len())
}

/// A connection against frames that are written by hand.
struct Raw {
    connection: Connection,
    to: BytesMut,
    from: BytesMut,
    reader: Reader,
    encoder: Encoder,
}

impl Raw {
    /// After the preface and the settings of both sides.
    fn server(config: Config) -> Self {
        let mut raw = Self::of(Role::Server, Role::Client, config);
        write_preface(&mut raw.to);
        write_settings(&[], &mut raw.to);
        raw.started()
    }

    fn client(config: Config) -> Self {
        let mut raw = Self::of(Role::Client, Role::Server, config);
        write_settings(&[Setting::MaxConcurrentStreams(100)], &mut raw.to);
        raw.started()
    }

    fn of(role: Role, reader: Role, config: Config) -> Self {
        Self {
            connection: Connection::new(role, config),
            to: BytesMut::new(),
            from: BytesMut::new(),
            reader: Reader::new(reader, Limits::default()),
            encoder: Encoder::plain(),
        }
    }

    fn started(mut self) -> Self {
        let events = self.events().unwrap();
        assert!(matches!(&events[..], [Event::Settings]), "{events:?}");
        let frames = self.frames();
        assert!(frames.contains(&Frame::SettingsAck), "{frames:?}");
        self
    }

    /// What the connection tells of what was written to it.
    fn events(&mut self) -> Result<Vec<Event>, ConnectionViolation> {
        let mut events = Vec::new();
        while let Some(event) = self.connection.receive(&mut self.to, NOW)? {
            events.push(event);
        }
        Ok(events)
    }

    /// What it says.
    fn frames(&mut self) -> Vec<Frame> {
        self.from.unsplit(self.connection.output().split());
        let mut frames = Vec::new();
        while let Received::Frame(frame) = self.reader.read(&mut self.from).unwrap() {
            frames.push(frame);
        }
        frames
    }

    fn headers(&mut self, stream: u32, fields: &[(&str, &str)], end: bool) {
        let mut block = BytesMut::new();
        self.encoder.begin(&mut block);
        for (name, value) in fields {
            self.encoder
                .field(&mut block, name.as_bytes(), value.as_bytes());
        }
        write_headers(id(stream), &block, end, FrameSize::DEFAULT, &mut self.to);
    }

    fn get(&mut self, stream: u32, end: bool) {
        self.headers(stream, GET, end);
    }

    /// Has the client of the connection open a stream, and forgets what it wrote.
    fn open(&mut self, end: bool) -> StreamKey {
        let stream = open(&mut self.connection, &Method::GET, end).unwrap();
        self.frames();
        stream
    }

    /// The connection ends with this code, says so, and says nothing else any more.
    fn assert_ends(&mut self, code: ErrorCode) {
        let violation = self.events().expect_err("it ends");
        assert_eq!(violation.code(), code, "{violation}");
        let frames = self.frames();
        let said = frames.iter().find_map(|frame| match frame {
            Frame::GoAway { code, .. } => Some(*code),
            _ => None,
        });
        assert_eq!(said, Some(code), "{frames:?}");
        self.get(101, true);
        assert_eq!(self.events().unwrap_err(), violation);
        assert!(self.frames().is_empty());
    }

    /// The stream ends with this code, and the connection goes on.
    fn assert_resets(&mut self, stream: u32, code: ErrorCode) -> Vec<Event> {
        let events = self.events().expect("it goes on");
        let frames = self.frames();
        let stream = id(stream);
        assert!(
            frames.contains(&Frame::ResetStream { stream, code }),
            "{frames:?} {events:?}"
        );
        events
    }

    /// Nothing happens.
    fn assert_ignored(&mut self) {
        let events = self.events().expect("it goes on");
        assert!(events.is_empty(), "{events:?}");
        let frames = self.frames();
        assert!(frames.is_empty(), "{frames:?}");
    }
}

const GET: &[(&str, &str)] = &[
    (":method", "GET"),
    (":scheme", "http"),
    (":authority", "web"),
    (":path", "/"),
];
const POST: &[(&str, &str)] = &[
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "web"),
    (":path", "/"),
];
const OK: &[(&str, &str)] = &[(":status", "200")];

fn ok(connection: &mut Connection, stream: StreamKey, end: bool) {
    connection
        .respond(stream, StatusCode::OK, &HeaderMap::new(), end)
        .unwrap();
}
