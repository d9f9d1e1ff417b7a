//! One end of a connection in HTTP/2, in either role, that is sent anything: no panic, what it holds and
//! what it writes are bounded, what it writes is valid, and the same bytes mean the same however they
//! are cut.
//!
//! The first two bytes are those of [`crate::frames`]; 16 of the second gives the end small windows and
//! little room. Eight bytes follow that say what its driver does about what it is told.

use std::collections::{BTreeMap, HashMap};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use weft_core::h2::connection::{
    Config, Connection, ConnectionViolation, Event, Progress, StreamKey,
};
use weft_core::h2::frame::{ErrorCode, Limits, Role, WindowSize};
use weft_core::h2::message::{ExtendedConnect, HeadLimits};
use weft_core::time::Instant;

use crate::frames::{beginning, expand};
use crate::input::{Input, pieces};
use crate::peer::Peer;

const NOW: Instant = Instant::from_nanos(1);
/// What single frames, and the heads of the driver, may add to the room for output.
const SLACK: usize = 64 * 1024;
/// Streams that a client opens.
const OPENED: usize = 4;

fn small() -> Config {
    Config {
        max_streams: 3,
        stream_window: WindowSize::new(300).unwrap_or_default(),
        receive_table: 100,
        send_table: 100,
        frames: Limits::with_block_bytes(600),
        heads: HeadLimits {
            bytes: 200,
            fields: 4,
        },
        header_list: 400,
        extended_connect: ExtendedConnect::Announced,
        out_bytes: 500,
        ..Config::default()
    }
}

fn request(number: usize) -> (Request<()>, bool) {
    let (method, uri) = match number % OPENED {
        0 => (Method::GET, "http://web/a"),
        1 => (Method::POST, "http://web/b?c"),
        2 => (Method::HEAD, "http://web/"),
        _ => (Method::CONNECT, "web:443"),
    };
    let is_whole = [Method::GET, Method::HEAD].contains(&method);
    let request = Request::builder().method(method).uri(uri).body(());
    let request = request.unwrap_or_else(|error| panic!("{error}"));
    (request, is_whole)
}

/// One end, with what drives it.
struct End<'a> {
    connection: Connection,
    config: Config,
    peer: Peer,
    script: &'a [u8],
    step: usize,
    /// Data that was told and not consumed, by stream.
    held: HashMap<StreamKey, usize>,
    /// Data that waits for room, by stream.
    waiting: HashMap<StreamKey, Bytes>,
    opened: usize,
}

impl End<'_> {
    fn next(&mut self) -> u8 {
        let byte = self.script.get(self.step % self.script.len().max(1));
        self.step += 1;
        // Not the same again in every round.
        let round = (self.step / self.script.len().max(1)) as u8;
        byte.copied().unwrap_or_default().wrapping_add(round)
    }

    fn check(&mut self) {
        let written = self.connection.output().len();
        assert!(
            written <= 2 * self.config.out_bytes + SLACK,
            "{written} bytes wait"
        );
        let held: usize = self.held.values().sum();
        let most = self.config.connection_window.max(WindowSize::DEFAULT);
        assert!(held <= most.get() as usize, "{held} bytes are held");
        assert!(self.connection.open_streams() <= self.config.max_streams);
    }

    /// Writes some of the output, or all.
    fn write(&mut self, bytes: usize) {
        let output = self.connection.output();
        let written = output.split_to(bytes.min(output.len()));
        self.peer.read(&written);
    }

    fn open(&mut self) {
        let (request, is_whole) = request(self.opened);
        if self.connection.open(&request, None, is_whole).is_ok() {
            self.opened += 1;
        }
    }

    fn send(&mut self, stream: StreamKey, mut data: Bytes) {
        let end = self.next() & 1 == 0;
        if let Ok(Progress::Blocked) = self.connection.send_data(stream, &mut data, end) {
            self.waiting.insert(stream, data);
        }
    }

    fn answer(&mut self, stream: StreamKey) {
        let choice = self.next();
        let mut headers = HeaderMap::new();
        headers.insert("x-a", HeaderValue::from_static("b"));
        let connection = &mut self.connection;
        match choice % 8 {
            0 => {
                let _refused = connection.respond(stream, StatusCode::OK, &headers, true);
            }
            1..4 => {
                let _refused = connection.respond(stream, StatusCode::OK, &headers, false);
                let length = usize::from(choice) * 300;
                self.send(stream, Bytes::from(vec![b'd'; length]));
            }
            4 => {
                let status = StatusCode::CONTINUE;
                let _refused = connection.respond(stream, status, &headers, false);
            }
            5 => {
                connection.reset(stream, ErrorCode::CANCEL);
                self.held.remove(&stream);
                self.waiting.remove(&stream);
            }
            6 => {
                connection.discard(stream);
                self.held.remove(&stream);
            }
            _ => {}
        }
    }

    fn take(&mut self, stream: StreamKey, bytes: usize) {
        *self.held.entry(stream).or_default() += bytes;
        match self.next() % 8 {
            0 => {}
            1 => {
                self.held.remove(&stream);
                self.connection.discard(stream);
            }
            2 => {
                let _ended = self.connection.send_trailers(stream, &HeaderMap::new());
            }
            // More than there is counts as all there is.
            3 => {
                self.held.remove(&stream);
                self.connection.consumed(stream, usize::MAX);
            }
            _ => {
                let bytes = self.held.remove(&stream).unwrap_or_default();
                self.connection.consumed(stream, bytes);
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Request { stream, .. }
            | Event::BadRequest { stream, .. }
            | Event::Response { stream, .. }
            | Event::Interim { stream, .. }
            | Event::Trailers { stream, .. }
            | Event::BadTrailers { stream, .. } => self.answer(stream),
            Event::Data {
                stream, payload, ..
            } => self.take(stream, payload.len()),
            Event::Stopped { stream, .. } => {
                self.waiting.remove(&stream);
            }
            Event::Reset { stream, .. } => {
                self.held.remove(&stream);
                self.waiting.remove(&stream);
                assert!(!self.connection.is_receiving(stream));
            }
            Event::Settings | Event::PingAnswered { .. } => match self.next() % 4 {
                0 => self.connection.shut_down(),
                1 => self.connection.stop_waiting(),
                2 => self.connection.ping([7; 8]),
                _ => {}
            },
            Event::Refused { .. } | Event::GoAway { .. } => {}
        }
    }

    fn receive(&mut self, buffer: &mut BytesMut) -> Result<(), ConnectionViolation> {
        loop {
            let event = self.connection.receive(buffer, NOW)?;
            self.check();
            match event {
                Some(event) => self.on_event(event),
                None if self.connection.may_receive() => return Ok(()),
                None => self.write(self.script.len().max(1) * 100),
            }
        }
    }

    fn drive(&mut self, stream: &[u8], cut: u8) {
        let mut buffer = BytesMut::new();
        for piece in pieces(stream, cut) {
            if self.opened < OPENED {
                self.open();
            }
            buffer.extend_from_slice(piece);
            let received = self.receive(&mut buffer);
            while let Some(stream) = self.connection.next_writable() {
                let data = self.waiting.remove(&stream).unwrap_or_default();
                self.send(stream, data);
                self.check();
            }
            let bytes = usize::from(self.next()) * 40;
            self.write(bytes);
            if let Err(violation) = received {
                assert_eq!(self.connection.violation(), Some(&violation));
                break;
            }
        }
        self.write(usize::MAX);
    }
}

/// What was told, data apart, and the data of each stream.
type Told = (Vec<String>, BTreeMap<u32, Vec<u8>>, Option<String>);

/// Why a stream or the connection ends, without its numbers: how much of a frame had come when it was
/// refused depends on where it is cut.
fn without_counts(event: &str) -> String {
    let (what, why) = event.split_once("cause: ").unwrap_or((event, ""));
    let why = why.chars().filter(|char| !char.is_ascii_digit());
    what.chars().chain(why).collect()
}

/// What a connection tells whose driver does nothing.
fn told<'a>(role: Role, config: Config, stream: impl Iterator<Item = &'a [u8]>) -> Told {
    let mut connection = Connection::new(role, config);
    for number in 0..OPENED {
        let (request, is_whole) = request(number);
        let _for_clients = connection.open(&request, None, is_whole);
    }
    let mut buffer = BytesMut::new();
    let (mut told, mut data) = (Vec::new(), BTreeMap::<u32, Vec<u8>>::new());
    for piece in stream {
        buffer.extend_from_slice(piece);
        loop {
            connection.output().clear();
            match connection.receive(&mut buffer, NOW) {
                // Its pieces depend on where it is cut.
                Ok(Some(Event::Data {
                    stream,
                    payload,
                    end,
                })) => {
                    let data = data.entry(stream.id().get()).or_default();
                    data.extend_from_slice(&payload);
                    if end {
                        told.push(format!("{stream:?} ends"));
                    }
                }
                Ok(Some(event)) => told.push(without_counts(&format!("{event:?}"))),
                Ok(None) if connection.may_receive() => break,
                Ok(None) => {}
                Err(violation) => {
                    let violation = without_counts(&format!("cause: {violation}"));
                    return (told, data, Some(violation));
                }
            }
        }
    }
    (told, data, None)
}

fn check_cuts(role: Role, config: Config, stream: &[u8], cut: u8) {
    let whole = told(role, config, std::iter::once(stream));
    let found = told(role, config, pieces(stream, cut));
    assert_eq!(found.0, whole.0);
    assert_eq!(found.2, whole.2);
    // A frame that is refused may have been told in part.
    if whole.2.is_none() && !whole.0.iter().any(|event| event.starts_with("Reset")) {
        assert_eq!(found.1, whole.1);
    }
}

/// Runs the target.
pub fn run(input: &[u8]) {
    let mut input = Input::new(input);
    let (cut, form) = (input.byte(), input.byte());
    let script = input.bytes(8);
    let role = match form & 1 {
        0 => Role::Server,
        _ => Role::Client,
    };
    let config = match form & 16 {
        0 => Config::default(),
        _ => small(),
    };
    let mut stream = match form & 2 {
        0 => Vec::new(),
        _ => beginning(role),
    };
    match form & 8 {
        0 => stream.extend(input.rest()),
        _ => stream.extend(expand(input)),
    }
    check_cuts(role, config, &stream, cut);
    let limits = config.frames.at_least(config.header_list);
    let mut end = End {
        connection: Connection::new(role, config),
        config,
        peer: Peer::new(role, limits, &stream),
        script,
        step: 0,
        held: HashMap::new(),
        waiting: HashMap::new(),
        opened: match role {
            Role::Client => 0,
            Role::Server => OPENED,
        },
    };
    end.drive(&stream, cut);
}
