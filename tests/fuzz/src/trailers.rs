//! Heads and trailers between the versions of HTTP: what is accepted in HTTP/2 means the same once it was
//! sent on in HTTP/2, and once it was sent on in HTTP/1.1; trailers too, in both directions.
//!
//! The first byte says what the rest is: 0 the head of a request, 1 of a response, 2 and 3 trailers of
//! either, all as lines `name: value` that a peer puts into a block of HTTP/2 whatever they are; 4 is a
//! trailer section in HTTP/1.1. Others mean the same by their last three bits, and by 8 whether all values
//! are secret, by 16 whether the stream ends.

use bytes::BytesMut;
use http::header::{CONTENT_LENGTH, COOKIE, HOST, TE};
use http::{HeaderMap, HeaderValue, Method, Version};
use weft_core::h1::{
    self, Decoded, Encoder as BodyEncoder, Framing, HeadScan, Limits, Message, RequestOptions,
    ResponseOptions, TargetForm, join_cookies,
};
use weft_core::h2::hpack::{Decoder, Encoder};
use weft_core::h2::message::{
    ExtendedConnect, HeadLimits, Length, RequestHead, ResponseHead, Scratch, decode_request,
    decode_response, decode_trailers, encode_request, encode_response, encode_trailers,
};
use weft_core::headers::{WEFT_HTTP1_FORM, clean_trailers, remove_hop_by_hop};

use crate::input::Input;

/// As many fields as [`Limits`] allows in HTTP/1.1.
const LIMITS: HeadLimits = HeadLimits {
    bytes: 64 * 1024,
    fields: 512,
};

/// A pair of coders, whose tables stay the same.
struct Coders {
    encoder: Encoder,
    decoder: Decoder,
    scratch: Scratch,
}

impl Coders {
    fn new() -> Self {
        Self {
            encoder: Encoder::with_table(4096),
            decoder: Decoder::new(4096, 1 << 20),
            scratch: Scratch::default(),
        }
    }

    /// Lines as a block, whatever they are.
    fn block(&mut self, lines: &[u8], secret: bool) -> BytesMut {
        let mut block = BytesMut::new();
        self.encoder.begin(&mut block);
        for line in lines
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            // The colon that a pseudo-header field begins with is none.
            let end = line.iter().skip(1).position(|byte| *byte == b':');
            let (name, value) =
                end.map_or((line, &b""[..]), |end| (&line[..end + 1], &line[end + 2..]));
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match secret {
                true => self.encoder.never_indexed(&mut block, name, value),
                false => self.encoder.field(&mut block, name, value),
            }
        }
        block
    }

    fn request(&mut self, block: &[u8]) -> Option<RequestHead> {
        let (decoder, scratch) = (&mut self.decoder, &mut self.scratch);
        let found = decode_request(decoder, block, scratch, LIMITS, ExtendedConnect::Announced);
        let found = found.unwrap_or_else(|error| panic!("{error}"));
        found
            .map_err(|malformed| assert!(!malformed.to_string().is_empty()))
            .ok()
    }

    fn response(&mut self, block: &[u8], end: bool) -> Option<ResponseHead> {
        let found = decode_response(&mut self.decoder, block, &mut self.scratch, LIMITS, end);
        let found = found.unwrap_or_else(|error| panic!("{error}"));
        found
            .map_err(|malformed| assert!(!malformed.to_string().is_empty()))
            .ok()
    }

    fn trailers(&mut self, block: &[u8], message: Message, end: bool) -> Option<HeaderMap> {
        let (decoder, scratch) = (&mut self.decoder, &mut self.scratch);
        let found = decode_trailers(decoder, block, scratch, LIMITS, message, end);
        let found = found.unwrap_or_else(|error| panic!("{error}"));
        found
            .map_err(|malformed| assert!(!malformed.to_string().is_empty()))
            .ok()
    }
}

/// Equal, and as secret.
fn check_fields(found: &HeaderMap, sent: &HeaderMap) {
    assert_eq!(found, sent);
    for (name, value) in sent {
        let mut found = found.get_all(name).iter();
        let is_there = found.any(|found| found == value && found.is_sensitive());
        assert!(
            is_there || !value.is_sensitive(),
            "{name} is no secret any more"
        );
    }
}

fn check_request(coders: &mut Coders, head: RequestHead) {
    let RequestHead {
        mut parts,
        protocol,
        content_length,
    } = head;
    // It is never sent on as a field.
    parts.headers.remove(WEFT_HTTP1_FORM);
    let length = Length::request(&parts.method, content_length);
    assert_eq!(length.remaining(), content_length);
    let mut out = BytesMut::new();
    let (encoder, protocol) = (&mut coders.encoder, protocol.as_ref());
    let (method, uri) = (&parts.method, &parts.uri);
    let sent = encode_request(encoder, method, uri, protocol, &parts.headers, &mut out);
    sent.unwrap_or_else(|error| panic!("{method} {uri} is accepted and not sent: {error}"));
    let Some(again) = coders.request(&out) else {
        panic!("{parts:?} is accepted, and refused when it is sent on");
    };
    if parts.uri.authority().is_some() {
        parts.headers.remove(HOST);
    }
    assert_eq!(again.parts.method, parts.method);
    assert_eq!(again.parts.uri, parts.uri);
    assert_eq!(again.protocol.as_ref(), protocol);
    assert_eq!(again.content_length, content_length);
    check_fields(&again.parts.headers, &parts.headers);
    if protocol.is_none() {
        check_request_in_http1(&mut parts, content_length);
    }
}

/// The head is one message in HTTP/1.1, which says the same.
fn check_request_in_http1(parts: &mut http::request::Parts, content_length: Option<u64>) {
    remove_hop_by_hop(&mut parts.headers, false);
    join_cookies(&mut parts.headers);
    let framing = match content_length {
        _ if parts.method == Method::CONNECT => Framing::None,
        Some(length) => Framing::Length(length),
        None => Framing::Chunked,
    };
    let options = RequestOptions {
        target_form: TargetForm::Origin,
        keep_alive: true,
    };
    let mut out = BytesMut::new();
    let framing = h1::encode_request(parts, framing, options, &mut out);
    let shown = out.clone();
    let limits = Limits::with_head_bytes(1 << 20);
    let found = h1::parse_request(&mut out, &mut HeadScan::default(), &limits);
    let again = match found {
        Ok(Some(head)) => head,
        // HTTP/2 has requests without a host.
        Err(_) if parts.uri.authority().is_none() && !parts.headers.contains_key(HOST) => return,
        other => panic!("{}: {other:?}", shown.escape_ascii()),
    };
    assert_eq!(
        out.len(),
        0,
        "{} is more than one head",
        shown.escape_ascii()
    );
    assert_eq!(again.framing, framing, "{}", shown.escape_ascii());
    assert_eq!(again.parts.method, parts.method);
    if parts.method != Method::CONNECT {
        assert_eq!(again.parts.uri.path(), parts.uri.path());
        assert_eq!(again.parts.uri.query(), parts.uri.query());
    }
    assert_eq!(bare(&again.parts.headers), bare(&parts.headers));
}

/// Fields without those that each version writes for itself.
fn bare(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    // The space behind an empty last one of several is none.
    if let Some(value) = headers.get_mut(COOKIE) {
        let trimmed = HeaderValue::from_bytes(value.as_bytes().trim_ascii_end());
        *value = trimmed.unwrap_or_else(|error| panic!("{error}"));
    }
    for name in [HOST, CONTENT_LENGTH, TE] {
        headers.remove(name);
    }
    for name in ["connection", "transfer-encoding"] {
        headers.remove(name);
    }
    headers
}

fn check_response(coders: &mut Coders, head: ResponseHead, end: bool) {
    let ResponseHead {
        mut parts,
        content_length,
    } = head;
    // It is never sent on as a field.
    parts.headers.remove(WEFT_HTTP1_FORM);
    let mut out = BytesMut::new();
    let sent = encode_response(&mut coders.encoder, parts.status, &parts.headers, &mut out);
    sent.unwrap_or_else(|error| panic!("{parts:?} is accepted and not sent: {error}"));
    let Some(again) = coders.response(&out, end) else {
        panic!("{parts:?} is accepted, and refused when it is sent on");
    };
    assert_eq!(again.parts.status, parts.status);
    assert_eq!(again.content_length, content_length);
    check_fields(&again.parts.headers, &parts.headers);
    if again.is_interim() {
        return;
    }
    remove_hop_by_hop(&mut parts.headers, false);
    let framing = match content_length {
        _ if end => Framing::None,
        Some(length) => Framing::Length(length),
        None => Framing::Chunked,
    };
    let options = ResponseOptions {
        request_method: &Method::GET,
        client_version: Version::HTTP_11,
        keep_alive: true,
        date: None,
    };
    out.clear();
    let written = h1::encode_response(&parts, framing, options, &mut out);
    let shown = out.clone();
    let limits = Limits::with_head_bytes(1 << 20);
    let found = h1::parse_response(&mut out, &mut HeadScan::default(), &Method::GET, &limits);
    let Ok(Some(again)) = found else {
        panic!("{}: {found:?}", shown.escape_ascii());
    };
    assert_eq!(
        out.len(),
        0,
        "{} is more than one head",
        shown.escape_ascii()
    );
    assert_eq!(again.framing, written.framing, "{}", shown.escape_ascii());
    assert_eq!(again.parts.status, parts.status);
    assert_eq!(bare(&again.parts.headers), bare(&parts.headers));
}

/// Trailers that were accepted in one version are accepted in the other, and say the same.
fn check_trailers(coders: &mut Coders, trailers: &HeaderMap, message: Message) {
    let mut sent = trailers.clone();
    clean_trailers(&mut sent);
    let mut out = BytesMut::new();
    encode_trailers(&mut coders.encoder, &sent, &mut out);
    let Some(found) = coders.trailers(&out, message, true) else {
        panic!("{sent:?} is refused in HTTP/2");
    };
    check_fields(&found, &sent);
    let mut out = BytesMut::new();
    let ended = BodyEncoder::new(Framing::Chunked).end(Some(trailers), &mut out);
    ended.unwrap_or_else(|error| panic!("{error}"));
    let shown = out.clone();
    let found = section(&mut out, message, &Limits::with_head_bytes(1 << 20));
    let Some(found) = found else {
        panic!("{} is refused", shown.escape_ascii());
    };
    assert_eq!(
        out.len(),
        0,
        "{} is more than the end",
        shown.escape_ascii()
    );
    assert_eq!(found, sent);
}

/// The trailers behind the last chunk; `None` where they are refused or not complete.
fn section(stream: &mut BytesMut, message: Message, limits: &Limits) -> Option<HeaderMap> {
    let mut decoder = h1::Decoder::new(message, Framing::Chunked, limits);
    let mut trailers = HeaderMap::new();
    loop {
        match decoder.decode(stream) {
            Ok(Decoded::Trailers(found)) => trailers = found,
            Ok(Decoded::End) => return Some(trailers),
            Ok(Decoded::NeedMore | Decoded::Data(_)) | Err(_) => return None,
        }
    }
}

/// Runs the target.
pub fn run(input: &[u8]) {
    let mut input = Input::new(input);
    let form = input.byte();
    let (secret, end) = (form & 8 != 0, form & 16 != 0);
    let mut coders = Coders::new();
    let message = match form & 1 {
        0 => Message::Request,
        _ => Message::Response,
    };
    if form & 4 != 0 {
        let mut stream = BytesMut::from(&b"0\r\n"[..]);
        stream.extend_from_slice(input.rest());
        if let Some(trailers) = section(&mut stream, message, &Limits::default()) {
            check_trailers(&mut coders, &trailers, message);
        }
        return;
    }
    let block = coders.block(input.rest(), secret);
    if form & 2 != 0 {
        if let Some(trailers) = coders.trailers(&block, message, true) {
            check_trailers(&mut coders, &trailers, message);
        }
    } else if message == Message::Request {
        if let Some(head) = coders.request(&block) {
            check_request(&mut coders, head);
        }
    } else if let Some(head) = coders.response(&block, end) {
        check_response(&mut coders, head, end);
    }
}
