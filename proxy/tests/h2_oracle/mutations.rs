//! A client's bytes with one thing wrong, read by our server and by that of `h2`: neither panics or
//! stops, and a request that both accept is the same request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Response, StatusCode};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use weft_core::h2::connection::{Config, Connection, Event};
use weft_core::h2::frame::Role;
use weft_core::h2::message::Malformed;
use weft_core::time::Instant;

use super::raw::{self, RawFrame};
use super::streams::client;
use super::{cases, run};

/// Room for a whole stream of bytes, so that nobody waits for the other side.
const ROOM: usize = 1 << 20;

/// What a server made of a client's bytes.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Requests by their streams, those that are not whole included.
    requests: BTreeMap<u32, Request>,
    /// Requests that were understood well enough to be answered with an error.
    refused: BTreeMap<u32, Malformed>,
    /// Codes of RST_STREAM by their streams, and that of GOAWAY.
    resets: BTreeMap<u32, u32>,
    goaway: Option<u32>,
}

/// A request as an application sees it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    first: String,
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: HeaderMap,
    is_whole: bool,
}

impl Outcome {
    fn note_written(&mut self, written: &[u8]) {
        for frame in RawFrame::of_side(written, Role::Server) {
            match frame.kind {
                raw::RST_STREAM => {
                    let code = self.resets.entry(frame.stream);
                    code.or_insert_with(|| frame.number(0));
                }
                raw::GOAWAY => {
                    let code = Some(frame.number(4)).filter(|code| *code != 0);
                    self.goaway = self.goaway.or(code);
                }
                _ => {}
            }
        }
    }
}

/// What our server makes of it, in pieces of `cut` bytes. It answers when everything was read.
pub(crate) fn ours(bytes: &[u8], cut: usize) -> Outcome {
    let now = Instant::from_nanos(1);
    let mut connection = Connection::new(Role::Server, Config::default());
    let (mut outcome, mut buffer) = (Outcome::default(), BytesMut::new());
    let (mut streams, mut written) = (Vec::new(), Vec::new());
    'bytes: for piece in bytes.chunks(cut.max(1)) {
        buffer.extend_from_slice(piece);
        loop {
            let event = match connection.receive(&mut buffer, now) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(_) => break 'bytes,
            };
            if let Event::Request { stream, .. } = &event {
                streams.push(*stream);
            }
            if let Event::Data {
                stream, payload, ..
            } = &event
            {
                connection.consumed(*stream, payload.len());
            }
            outcome.note(event);
            written.extend_from_slice(&connection.output().split());
        }
    }
    for stream in streams {
        if connection.violation().is_none() {
            let _ended = connection.respond(stream, StatusCode::OK, &HeaderMap::new(), true);
        }
    }
    written.extend_from_slice(&connection.output().split());
    outcome.note_written(&written);
    outcome
}

impl Outcome {
    fn note(&mut self, event: Event) {
        match event {
            Event::Request { stream, head, end } => {
                let request = Request {
                    first: format!("{} {}", head.parts.method, head.parts.uri),
                    headers: head.parts.headers,
                    is_whole: end,
                    ..Request::default()
                };
                self.requests.insert(stream.id().get(), request);
            }
            Event::BadRequest {
                stream, malformed, ..
            } => {
                self.refused.insert(stream.id().get(), malformed);
            }
            Event::Data {
                stream,
                payload,
                end,
            } => {
                if let Some(request) = self.requests.get_mut(&stream.id().get()) {
                    request.body.extend_from_slice(&payload);
                    request.is_whole = end;
                }
            }
            Event::Trailers { stream, trailers } => {
                if let Some(request) = self.requests.get_mut(&stream.id().get()) {
                    request.trailers = trailers;
                    request.is_whole = true;
                }
            }
            Event::BadTrailers { .. }
            | Event::Reset { .. }
            | Event::Stopped { .. }
            | Event::Refused { .. }
            | Event::Settings
            | Event::PingAnswered { .. }
            | Event::GoAway { .. } => {}
            event @ (Event::Interim { .. } | Event::Response { .. }) => panic!("{event:?}"),
        }
    }
}

type Requests = Arc<Mutex<BTreeMap<u32, Request>>>;

/// What the server of `h2` makes of it.
pub(crate) async fn theirs(bytes: &[u8]) -> Outcome {
    let (mut client, server) = tokio::io::duplex(ROOM);
    client.write_all(bytes).await.unwrap();
    let requests = Requests::default();
    let noted = Arc::clone(&requests);
    let serve = async move {
        let mut builder = h2::server::Builder::new();
        let Ok(mut connection) = builder.max_concurrent_streams(100).handshake(server).await else {
            return;
        };
        let mut answers = JoinSet::new();
        while let Some(Ok((request, respond))) = connection.accept().await {
            let (head, body) = request.into_parts();
            let request = Request {
                first: format!("{} {}", head.method, head.uri),
                headers: head.headers,
                ..Request::default()
            };
            let stream = respond.stream_id().as_u32();
            noted.lock().unwrap().insert(stream, request);
            answers.spawn(answer(body, respond, stream, Arc::clone(&noted)));
        }
        drop(connection);
        while answers.join_next().await.is_some() {}
    };
    let served = tokio::spawn(serve);
    // It forgets requests that it has not told when the pipe is closed. Nothing waits for anything but
    // this thread.
    for _turn in 0..100 {
        tokio::task::yield_now().await;
    }
    client.shutdown().await.unwrap();
    let mut written = Vec::new();
    client.read_to_end(&mut written).await.unwrap();
    served.await.unwrap();
    let mut outcome = Outcome {
        requests: std::mem::take(&mut *requests.lock().unwrap()),
        ..Outcome::default()
    };
    outcome.note_written(&written);
    outcome
}

async fn answer(
    mut body: RecvStream,
    mut respond: SendResponse<Bytes>,
    stream: u32,
    requests: Requests,
) {
    let note = |note: &dyn Fn(&mut Request)| {
        note(requests.lock().unwrap().get_mut(&stream).unwrap());
    };
    while let Some(data) = body.data().await {
        let Ok(data) = data else { return };
        note(&|request| request.body.extend_from_slice(&data));
        let _released = body.flow_control().release_capacity(data.len());
    }
    let Ok(trailers) = body.trailers().await else {
        return;
    };
    note(&|request| {
        request.trailers = trailers.clone().unwrap_or_default();
        request.is_whole = true;
    });
    let _gone = respond.send_response(Response::new(()), true);
}

/// Whether a server has told the client that a request is not answered.
fn is_rejected(outcome: &Outcome, stream: u32) -> bool {
    outcome.goaway.is_some()
        || outcome.resets.contains_key(&stream)
        || outcome.refused.contains_key(&stream)
}

/// What both accept is the same, and no request is lost in silence that the client has not given up.
fn check(bytes: &[u8], ours: &Outcome, theirs: &Outcome) -> Result<(), TestCaseError> {
    let mut frames = RawFrame::of_side(bytes, Role::Client);
    frames.retain(|frame| frame.kind == raw::RST_STREAM);
    let is_given_up = |stream| frames.iter().any(|frame| frame.stream == stream);
    let streams = ours.requests.keys().chain(theirs.requests.keys());
    for stream in streams {
        let whole = |outcome: &Outcome| {
            let request = outcome.requests.get(stream);
            request.filter(|request| request.is_whole).cloned()
        };
        match (whole(ours), whole(theirs)) {
            (Some(ours), Some(theirs)) => prop_assert_eq!(ours, theirs, "{}", stream),
            (Some(_), None) if !is_given_up(*stream) => {
                prop_assert!(is_rejected(theirs, *stream), "{stream}");
            }
            (None, Some(_)) if !is_given_up(*stream) => {
                prop_assert!(is_rejected(ours, *stream), "{stream}");
            }
            (Some(_) | None, None) | (None, Some(_)) => {}
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(1_500))]

    /// The property below compares something: what is right is accepted by both.
    #[test]
    fn nothing_is_wrong(client in client(false)) {
        let (ours, theirs) = (ours(&client.bytes, usize::MAX), run(theirs(&client.bytes)));
        prop_assert_eq!((ours.goaway, theirs.goaway), (None, None));
        prop_assert!(ours.resets.is_empty() && ours.refused.is_empty(), "{ours:?}");
        prop_assert!(theirs.resets.is_empty(), "{theirs:?}");
        prop_assert_eq!(ours.requests, theirs.requests);
    }

    #[test]
    fn one_thing_is_wrong(client in client(true), cut in 1..200_usize) {
        let (whole, pieces) = (ours(&client.bytes, usize::MAX), ours(&client.bytes, cut));
        prop_assert_eq!(whole.goaway, pieces.goaway);
        prop_assert_eq!(&whole.resets, &pieces.resets);
        check(&client.bytes, &whole, &run(theirs(&client.bytes)))?;
    }
}
