//! Properties: the same bytes mean the same however they arrive, and what is written is read back.

use bytes::{Bytes, BytesMut};
use http::{Method, Version};
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::super::{
    Decoded, Decoder, Defect, Encoder, Framing, HeadScan, Limits, Malformed, Message,
    RequestOptions, ResponseOptions, TargetForm, encode_request, encode_response, parse_request,
    parse_response,
};
use super::{fields, request, response};

/// Small enough that generated streams exceed them now and then.
const LIMITS: Limits = Limits {
    head_bytes: 150,
    fields: 6,
    method_bytes: 8,
    empty_lines: 2,
    chunk_line_bytes: 12,
    chunk_extension_bytes: 10,
    trailer_bytes: 30,
};

/// A receiving side: everything that a connection's bytes were found to mean.
struct Receiver {
    message: Message,
    buffer: BytesMut,
    scan: HeadScan,
    decoder: Option<Decoder>,
    events: Vec<Event>,
    failed: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Event {
    /// What a head was found to mean, as text.
    Head(String),
    Data(Vec<u8>),
    Trailers(Vec<String>),
    End,
    Refused(std::mem::Discriminant<Defect>, &'static str),
}

impl Receiver {
    fn new(message: Message) -> Self {
        Self {
            message,
            buffer: BytesMut::new(),
            scan: HeadScan::default(),
            decoder: None,
            events: Vec::new(),
            failed: false,
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        while !self.failed {
            match self.step() {
                Ok(true) => {}
                Ok(false) => return,
                Err(malformed) => {
                    let defect = std::mem::discriminant(&malformed.defect);
                    self.events
                        .push(Event::Refused(defect, malformed.reason().as_str()));
                    self.failed = true;
                }
            }
        }
    }

    /// Whether there may be more in the buffer.
    fn step(&mut self) -> Result<bool, Malformed> {
        let Some(decoder) = &mut self.decoder else {
            return self.head();
        };
        let event = match decoder.decode(&mut self.buffer)? {
            Decoded::NeedMore => return Ok(false),
            Decoded::Data(data) => {
                if let Some(Event::Data(before)) = self.events.last_mut() {
                    before.extend_from_slice(&data);
                    return Ok(true);
                }
                Event::Data(data.to_vec())
            }
            Decoded::Trailers(trailers) => Event::Trailers(fields(&trailers)),
            Decoded::End => {
                self.decoder = None;
                Event::End
            }
        };
        self.events.push(event);
        Ok(true)
    }

    fn head(&mut self) -> Result<bool, Malformed> {
        let (buffer, scan) = (&mut self.buffer, &mut self.scan);
        let (text, framing) = match self.message {
            Message::Request => {
                let Some(head) = parse_request(buffer, scan, &LIMITS)? else {
                    return Ok(false);
                };
                (format!("{head:?}"), head.framing)
            }
            Message::Response => {
                let Some(head) = parse_response(buffer, scan, &Method::GET, &LIMITS)? else {
                    return Ok(false);
                };
                (format!("{head:?}"), head.framing)
            }
        };
        self.events.push(Event::Head(text));
        self.decoder = Some(Decoder::new(self.message, framing, &LIMITS));
        Ok(true)
    }

    /// What the whole stream means when it arrives in these pieces.
    fn events<'a>(message: Message, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Event> {
        let mut receiver = Self::new(message);
        for piece in pieces {
            receiver.receive(piece);
        }
        receiver.events
    }
}

/// Lines, bodies and odd bytes from which streams are made.
fn line() -> impl Strategy<Value = &'static str> {
    select(vec![
        "X: y\r\n",
        "x-long: abcdefghijklmnopqrstuvwxyz\r\n",
        "Connection: close\r\n",
        "Expect: 100-continue\r\n",
        "Cookie: a=b\r\n",
        "X:\r\n",
        "X:  \t a b \r\n",
        "X: a\r\n b\r\n",
        "X : a\r\n",
        "Host: b\r\n",
        "Content-Length: 3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "X: y\n",
        "X: \u{e9}\r\n",
        "Accept-Encoding: gzip\r\n",
        "x-request-id: 1\r\n",
    ])
}

fn body() -> impl Strategy<Value = &'static str> {
    select(vec![
        "\r\n",
        "Content-Length: 5\r\n\r\nhello",
        "Content-Length: 0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\nA;x=y\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0000000000000\r\n\r\n",
    ])
}

fn messages(first_lines: Vec<&'static str>) -> impl Strategy<Value = Vec<u8>> {
    let lines = proptest::collection::vec(line(), 0..4);
    let message = (select(first_lines), lines, body())
        .prop_map(|(first, lines, body)| format!("{first}{}{body}", lines.concat()));
    let messages = proptest::collection::vec(message, 1..4);
    let odd = select(vec![
        "", "\r", "\n", "\r\n", " ", "\t", "\0", ":", ";", "0", "\u{e9}", ",", "f", "#",
    ]);
    let edits = proptest::collection::vec((any::<Index>(), 0..3_usize, odd), 0..3);
    (messages, edits).prop_map(|(messages, edits)| {
        let mut stream = messages.concat().into_bytes();
        for (at, remove, insert) in edits {
            let at = at.index(stream.len() + 1);
            let end = (at + remove).min(stream.len());
            stream.splice(at..end, insert.bytes());
        }
        stream
    })
}

fn streams() -> impl Strategy<Value = (Message, Vec<u8>)> {
    let requests = messages(vec![
        "GET / HTTP/1.1\r\nHost: a\r\n",
        "\r\nPOST /a?b HTTP/1.1\r\nHost: a\r\n",
        "PUT http://b/ HTTP/1.1\r\nHost: a\r\n",
        "GET /a{|}\"^`<?\\>\u{e9} HTTP/1.1\r\nHost: a\r\n",
        "patch * HTTP/1.0\r\n",
        "OPTIONS * HTTP/1.0\r\n",
        "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n",
        "PRI * HTTP/2.0\r\n",
        "GET /\r\n",
    ]);
    let responses = messages(vec![
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 299 Odd\r\n",
        "HTTP/1.0 304\r\n",
        "HTTP/1.1 204 \n",
        "HTTP/1.1 200 \u{e9}\r\n",
        "\r\nHTTP/1.1 500 x y\r\n",
        "HTTP/2.0 200 OK\r\n",
    ]);
    prop_oneof![
        requests.prop_map(|stream| (Message::Request, stream)),
        responses.prop_map(|stream| (Message::Response, stream)),
    ]
}

/// Checks that a stream means the same cut in two at every byte, and byte by byte.
fn check_cuts(message: Message, stream: &[u8]) -> Result<(), TestCaseError> {
    let whole = Receiver::events(message, [stream]);
    let shown = stream.escape_ascii();
    for cut in 1..stream.len() {
        let (before, after) = stream.split_at(cut);
        let found = Receiver::events(message, [before, after]);
        prop_assert_eq!(found, &whole[..], "{} cut at {}", shown, cut);
    }
    let found = Receiver::events(message, stream.chunks(1));
    prop_assert_eq!(found, whole, "{} byte by byte", shown);
    Ok(())
}

/// Streams in which a cut is in the middle of something, more often than generated ones have it.
#[test]
fn cuts_of_known_streams() {
    let requests = [
        "\r\n\r\nPUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.0\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
         2\r\nab\r\n1;x\r\na\r\n0\r\nX: y\r\nZ: a\r\n\r\nGET / HTTP/1.0\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc",
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\rx",
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\n\r\n",
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;1234567890123\r\n",
        "G(T\n",
        "G(T / HTTP/1.1\r\n",
        "GET\r\r\n",
        "\rGET / HTTP/1.1\r\n",
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "METHODTOOLONG / HTTP/1.1\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET /\r\n",
        "\r\n\r\n\r\nGET / HTTP/1.1\r\n",
        "GET / HTTP/1.0\r\na:\r\nb:\r\nc:\r\nd:\r\ne:\r\nf:\r\ng:\r\n\r\n",
    ];
    let long = format!("GET / HTTP/1.0\r\na: {}\r\n\r\n", "b".repeat(150));
    for stream in requests.into_iter().chain([&long[..]]) {
        check_cuts(Message::Request, stream.as_bytes()).unwrap();
    }
    for stream in [
        "\nHTTP/1.1 200\nX: a\n b\n\nuntil the end",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 x\r\n\r\nHTTP/1.0 200 OK\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
        "HTTX/1.1 200 OK\n",
        "HTTP/3 200 OK\r\n",
    ] {
        check_cuts(Message::Response, stream.as_bytes()).unwrap();
    }
}

proptest! {
    #[test]
    fn cuts_do_not_matter((message, stream) in streams()) {
        check_cuts(message, &stream)?;
    }

    #[test]
    fn many_cuts_do_not_matter(
        (message, stream) in streams(),
        cuts in proptest::collection::vec(any::<Index>(), 0..12),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]);
        let whole = Receiver::events(message, [&stream[..]]);
        prop_assert_eq!(Receiver::events(message, pieces), whole);
    }

    /// Nothing panics, and no more is kept than the limits allow.
    #[test]
    fn any_bytes(stream in proptest::collection::vec(any::<u8>(), 0..400), response: bool) {
        let message = if response { Message::Response } else { Message::Request };
        let mut receiver = Receiver::new(message);
        for byte in stream {
            receiver.receive(&[byte]);
            prop_assert!(receiver.failed || receiver.buffer.len() <= LIMITS.head_bytes);
        }
    }

    /// A head that is accepted is written so that it is accepted again, and means the same.
    #[test]
    fn requests_are_read_as_they_are_written(stream in streams(), absolute: bool) {
        let (message, stream) = stream;
        let mut buffer = BytesMut::from(&stream[..]);
        let mut scan = HeadScan::default();
        if message == Message::Request
            && let Ok(Some(first)) = parse_request(&mut buffer, &mut scan, &LIMITS)
        {
            let target_form = if absolute { first.target_form } else { TargetForm::Origin };
            let options = RequestOptions { target_form, keep_alive: first.keep_alive };
            let mut out = BytesMut::new();
            let framing = encode_request(&first.parts, first.framing, options, &mut out);
            let second = request(&out).unwrap();
            prop_assert_eq!(second.framing, if framing == Framing::None
                && second.parts.headers.contains_key("content-length")
            {
                Framing::Length(0)
            } else {
                framing
            });
            prop_assert_eq!(second.keep_alive, first.keep_alive);
            prop_assert_eq!(&second.parts.method, &first.parts.method);
            prop_assert_eq!(second.parts.uri.path(), first.parts.uri.path());
            prop_assert_eq!(second.parts.uri.query(), first.parts.uri.query());
            prop_assert_eq!(second.parts.headers.get("x"), first.parts.headers.get("x"));
        }
    }

    #[test]
    fn responses_are_read_as_they_are_written(stream in streams(), old_client: bool) {
        let (message, stream) = stream;
        let mut buffer = BytesMut::from(&stream[..]);
        let mut scan = HeadScan::default();
        if message == Message::Response
            && let Ok(Some(first)) = parse_response(&mut buffer, &mut scan, &Method::GET, &LIMITS)
            && !first.is_interim()
        {
            let options = ResponseOptions {
                request_method: &Method::GET,
                client_version: if old_client { Version::HTTP_10 } else { Version::HTTP_11 },
                keep_alive: first.keep_alive,
                date: None,
            };
            let mut out = BytesMut::new();
            let written = encode_response(&first.parts, first.framing, options, &mut out);
            let second = response(&Method::GET, &out).unwrap();
            prop_assert_eq!(second.framing, written.framing);
            prop_assert_eq!(second.keep_alive, written.keep_alive);
            prop_assert_eq!(second.parts.status, first.parts.status);
            prop_assert_eq!(second.parts.headers.get("x"), first.parts.headers.get("x"));
        }
    }

    #[test]
    fn bodies_are_read_as_they_are_written(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8),
        form in 0..3_u8,
    ) {
        let body = pieces.concat();
        let framing = match form {
            0 => Framing::Chunked,
            1 => Framing::Length(body.len() as u64),
            _ => Framing::UntilClose,
        };
        let mut encoder = Encoder::new(framing);
        let mut out = BytesMut::new();
        for piece in &pieces {
            let frame = encoder.data(piece.len()).unwrap();
            out.extend_from_slice(&frame.before);
            out.extend_from_slice(piece);
            out.extend_from_slice(frame.after);
        }
        encoder.end(None, &mut out).unwrap();
        let mut decoder = Decoder::new(Message::Response, framing, &Limits::default());
        let mut found = Vec::new();
        while let Decoded::Data(data) = decoder.decode(&mut out).unwrap() {
            found.extend_from_slice(&data);
        }
        prop_assert!(decoder.on_eof().is_ok());
        prop_assert_eq!(Bytes::from(found), body);
    }
}
