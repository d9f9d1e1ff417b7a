//! Heads of requests and responses.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HOST};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, request, response,
};
use httparse::{Header, ParserConfig, Status};

use super::field::{diagnose, header_map, with_room};
use super::framing::{ConnectionOptions, Framing, Noted, is_tunnel};
use super::limits::Limits;
use super::malformed::{Defect, Excerpt, Malformed, Message};
use super::plain;
use super::scan::{HeadScan, Section};
use super::target::{TargetForm, check_host, forbidden_character, parse_target, set_host};
use crate::headers::remove_in_order;

/// The head of a request.
#[derive(Debug)]
pub struct RequestHead {
    /// Method, target, version and fields as received, with three exceptions: an absolute target
    /// has replaced `Host` (RFC 9112 section 3.2.2), identical repetitions of `Content-Length` are
    /// one, and names are in lower case. `Host` is there once in HTTP/1.1, and behind others as all
    /// that is removed on the way.
    pub parts: request::Parts,
    /// The form in which the target was written.
    pub target_form: TargetForm,
    /// Where the request ends.
    pub framing: Framing,
    /// Whether the client keeps the connection after the answer (RFC 9112 section 9.3).
    pub keep_alive: bool,
    /// What `Connection` says.
    pub connection: ConnectionOptions,
    /// Whether the client waits for 100 before it sends the body. Never set in HTTP/1.0 (RFC 9110
    /// section 10.1.1).
    pub expect_continue: bool,
    /// What is lost of the fields in [`Self::parts`] ([`crate::http1_form`]): the value of
    /// [`WEFT_HTTP1_FORM`](crate::headers::WEFT_HTTP1_FORM), which the encoders take from the fields. `parts` never have it.
    pub form: Option<HeaderValue>,
}

/// The head of a response. A 1xx is a head of its own, which others follow.
#[derive(Debug)]
pub struct ResponseHead {
    /// Status, version and fields as received, with the exceptions of [`RequestHead::parts`], and
    /// without a `Content-Length` that `Transfer-Encoding` overrides. With [`Framing::None`] a
    /// `Content-Length` says what the response to `GET` would have (RFC 9110 section 8.6).
    pub parts: response::Parts,
    /// Where the response ends.
    pub framing: Framing,
    /// Whether the connection can be used again when the response has ended.
    pub keep_alive: bool,
    /// What `Connection` says.
    pub connection: ConnectionOptions,
    /// What is lost of the first line and the fields, as [`RequestHead::form`]. The reason phrase is in
    /// it where it is not the usual one of the status.
    pub form: Option<HeaderValue>,
    /// Whether the connection is no HTTP/1.1 any more after this head: 101, or success of
    /// `CONNECT`.
    pub tunnel: bool,
}

impl ResponseHead {
    /// Whether another head follows: 1xx but 101 (RFC 9110 section 15.2).
    pub fn is_interim(&self) -> bool {
        self.parts.status.is_informational() && !self.tunnel
    }
}

/// Reads the head of a request off the buffer; `None` where it is not complete. `scan` belongs to
/// the buffer and remembers what was searched.
pub fn parse_request(
    buffer: &mut BytesMut,
    scan: &mut HeadScan,
    limits: &Limits,
) -> Result<Option<RequestHead>, Malformed> {
    let message = Message::Request;
    read_request(buffer, scan, limits).map_err(|defect| Malformed { message, defect })
}

/// Reads the head of a response to `request_method` off the buffer; `None` where it is not
/// complete. `scan` belongs to the buffer and remembers what was searched.
pub fn parse_response(
    buffer: &mut BytesMut,
    scan: &mut HeadScan,
    request_method: &Method,
    limits: &Limits,
) -> Result<Option<ResponseHead>, Malformed> {
    let message = Message::Response;
    read_response(buffer, scan, request_method, limits)
        .map_err(|defect| Malformed { message, defect })
}

fn read_request(
    buffer: &mut BytesMut,
    scan: &mut HeadScan,
    limits: &Limits,
) -> Result<Option<RequestHead>, Defect> {
    if let Some(head) = read_plain(buffer, scan, Message::Request, limits, plain_request) {
        return Ok(Some(head));
    }
    let Some(end) = scan.find_end(buffer, Section::Head(Message::Request), limits)? else {
        return Ok(None);
    };
    let head = buffer.split_to(end.length).freeze();
    let parsed = with_room(end.lines, |room| request_head(&head, room));
    if parsed.is_err() {
        // What refuses it looks for what its fields say.
        put_back(&head, buffer);
    }
    parsed.map(Some)
}

/// Reads a plain head ([`plain`]) off the buffer, of which nothing was searched yet; nothing is read where
/// it is none.
fn read_plain<T>(
    buffer: &mut BytesMut,
    scan: &HeadScan,
    message: Message,
    limits: &Limits,
    read: impl FnOnce(&Bytes, &Limits) -> Option<T>,
) -> Option<T> {
    if *scan != HeadScan::default() {
        return None;
    }
    let length = plain::length(buffer, message, limits)?;
    let head = buffer.split_to(length).freeze();
    let found = read(&head, limits);
    if found.is_none() {
        put_back(&head, buffer);
    }
    found
}

/// Puts what was split off before the rest of the buffer.
fn put_back(head: &Bytes, buffer: &mut BytesMut) {
    let rest = std::mem::replace(buffer, BytesMut::from(&**head));
    buffer.unsplit(rest);
}

fn plain_request(head: &Bytes, limits: &Limits) -> Option<RequestHead> {
    let plain = plain::request(head, limits)?;
    let method = Method::from_bytes(plain.method).ok()?;
    let target = head.slice_ref(plain.target);
    let line = (method, target, Version::HTTP_11);
    finish_request(line, plain.headers, &plain.noted, plain.form).ok()
}

fn plain_response(head: &Bytes, limits: &Limits, request_method: &Method) -> Option<ResponseHead> {
    let plain = plain::response(head, limits)?;
    let line = (plain.code, Version::HTTP_11);
    let (headers, form) = (plain.headers, plain.form);
    finish_response(head, line, (headers, form), &plain.noted, request_method).ok()
}

fn request_head<'b>(
    head: &'b Bytes,
    room: &mut [MaybeUninit<Header<'b>>],
) -> Result<RequestHead, Defect> {
    let mut parsed = httparse::Request::new(&mut []);
    let status = ParserConfig::default().parse_request_with_uninit_headers(&mut parsed, head, room);
    let (Ok(Status::Complete(_)), Some(method), Some(path), Some(minor)) =
        (status, parsed.method, parsed.path, parsed.version)
    else {
        return Err(diagnose_head(head));
    };
    let (headers, noted, form) = header_map(head, parsed.headers, Message::Request)?;
    let form = form.form(names(parsed.headers), None);
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| diagnose_head(head))?;
    let target = head.slice_ref(path.as_bytes());
    let line = (method, target, http_version(minor));
    finish_request(line, headers, &noted, form)
}

/// The head that a first line and fields make.
fn finish_request(
    (method, target, version): (Method, Bytes, Version),
    headers: HeaderMap,
    noted: &Noted,
    form: Option<HeaderValue>,
) -> Result<RequestHead, Defect> {
    match (noted.hosts, headers.get(HOST)) {
        (0, _) if version == Version::HTTP_11 => return Err(Defect::HostMissing),
        (2.., _) => return Err(Defect::HostRepeated),
        (_, Some(host)) => check_host(host)?,
        (_, None) => {}
    }
    let framing = noted.request_framing(&method, version)?;
    let (uri, target_form) = parse_target(&method, target)?;

    let (mut parts, ()) = Request::new(()).into_parts();
    parts.headers = headers;
    if target_form == TargetForm::Absolute {
        set_host(&mut parts.headers, &uri);
    }
    parts.method = method;
    parts.uri = uri;
    parts.version = version;
    Ok(RequestHead {
        parts,
        target_form,
        framing,
        keep_alive: noted.keep_alive(version),
        connection: noted.connection(version),
        expect_continue: noted.expect_continue && version == Version::HTTP_11,
        form,
    })
}

fn read_response(
    buffer: &mut BytesMut,
    scan: &mut HeadScan,
    request_method: &Method,
    limits: &Limits,
) -> Result<Option<ResponseHead>, Defect> {
    let plain = |head: &Bytes, limits: &Limits| plain_response(head, limits, request_method);
    if let Some(head) = read_plain(buffer, scan, Message::Response, limits, plain) {
        return Ok(Some(head));
    }
    let Some(end) = scan.find_end(buffer, Section::Head(Message::Response), limits)? else {
        return Ok(None);
    };
    let head = buffer.split_to(end.length).freeze();
    with_room(end.lines, |room| response_head(&head, room, request_method)).map(Some)
}

fn response_head<'b>(
    head: &'b Bytes,
    room: &mut [MaybeUninit<Header<'b>>],
    request_method: &Method,
) -> Result<ResponseHead, Defect> {
    let mut parsed = httparse::Response::new(&mut []);
    let mut config = ParserConfig::default();
    config
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true);
    let status = config.parse_response_with_uninit_headers(&mut parsed, head, room);
    let (Ok(Status::Complete(_)), Some(code), Some(minor)) = (status, parsed.code, parsed.version)
    else {
        return Err(diagnose_head(head));
    };
    let (headers, noted, form) = header_map(head, parsed.headers, Message::Response)?;
    let form = form.form(
        names(parsed.headers),
        unusual_phrase(first_line(head), code),
    );
    let line = (code, http_version(minor));
    finish_response(head, line, (headers, form), &noted, request_method)
}

/// The head that a first line and fields make.
fn finish_response(
    head: &Bytes,
    (code, version): (u16, Version),
    (mut headers, form): (HeaderMap, Option<HeaderValue>),
    noted: &Noted,
    request_method: &Method,
) -> Result<ResponseHead, Defect> {
    let status = StatusCode::from_u16(code).map_err(|_| diagnose_head(head))?;
    let framing = noted.response_framing(request_method, version, status)?;
    if noted.transfer_encoding && noted.chunked {
        remove_in_order(&mut headers, &CONTENT_LENGTH);
    }
    let tunnel = is_tunnel(request_method, status);
    let keep_alive = noted.keep_alive(version) && framing != Framing::UntilClose && !tunnel;

    let (mut parts, ()) = Response::new(()).into_parts();
    parts.headers = headers;
    parts.status = status;
    parts.version = version;
    Ok(ResponseHead {
        parts,
        framing,
        keep_alive,
        connection: noted.connection(version),
        form,
        tunnel,
    })
}

/// The phrase after `HTTP/1.1 200 ` where it is not the usual one of the status; it may be empty. The
/// parser's own has no bytes above 127.
pub(super) fn unusual_phrase(line: &[u8], code: u16) -> Option<&[u8]> {
    const BEFORE: usize = "HTTP/1.1 200 ".len();
    let phrase = line.get(BEFORE..).unwrap_or_default();
    let status = StatusCode::from_u16(code).ok();
    let usual = status.and_then(|status| status.canonical_reason());
    (phrase != usual.unwrap_or_default().as_bytes()).then_some(phrase)
}

/// The names of fields as they came.
fn names<'h>(fields: &[Header<'h>]) -> impl Iterator<Item = &'h [u8]> {
    fields.iter().map(|field| field.name.as_bytes())
}

fn http_version(minor: u8) -> Version {
    if minor == 0 {
        Version::HTTP_10
    } else {
        Version::HTTP_11
    }
}

/// The first line without its end.
fn first_line(head: &[u8]) -> &[u8] {
    let end = head.iter().position(|byte| *byte == b'\n');
    let line = &head[..end.unwrap_or(head.len())];
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// What is wrong with a head that the parser refuses, although its first line was accepted.
fn diagnose_head(head: &[u8]) -> Defect {
    let line = first_line(head);
    let mut words = line.split(|byte| *byte == b' ');
    if let Some(defect) = words.nth(1).and_then(forbidden_character) {
        return defect;
    }
    if str::from_utf8(line).is_err() {
        let found = Excerpt::of(line);
        return Defect::RequestLine { found };
    }
    let end = head.iter().position(|byte| *byte == b'\n');
    diagnose(&head[end.map_or(head.len(), |end| end + 1)..])
}
