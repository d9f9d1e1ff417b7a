//! Heads as they are sent. The version on the wire is always HTTP/1.1 (RFC 9110 section 6.2).

use bytes::{Bytes, BytesMut};
use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, DATE, HOST, HeaderName, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, request, response};

use super::framing::{Framing, is_tunnel, may_have_body};
use super::target::TargetForm;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// How a request is sent.
#[derive(Debug, Clone, Copy)]
pub struct RequestOptions {
    /// [`TargetForm::Absolute`] writes the whole URI where it has scheme and authority, as a
    /// forward proxy expects it. Otherwise the URI decides: `CONNECT` has its authority, `OPTIONS`
    /// may have `*`, everything else path and query.
    pub target_form: TargetForm,
    /// Whether the connection is kept; `Connection: close` says that it is not.
    pub keep_alive: bool,
}

/// How a response is sent.
#[derive(Debug, Clone, Copy)]
pub struct ResponseOptions<'a> {
    /// The method that it answers.
    pub request_method: &'a Method,
    /// The version that the client's request had.
    pub client_version: Version,
    /// Whether the connection shall be kept. The client has to agree:
    /// [`RequestHead::keep_alive`](super::RequestHead::keep_alive).
    pub keep_alive: bool,
    /// Written as `Date` where the response has none (RFC 9110 section 6.6.1).
    pub date: Option<&'a HeaderValue>,
}

/// What the recipient of a response was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The framing of the body that is to be written; [`Framing::None`] where there must be none,
    /// whatever body the response has.
    pub framing: Framing,
    /// Whether the connection is kept after the response.
    pub keep_alive: bool,
}

/// Writes the head of a request and returns the framing that its body is to have: what was asked
/// for, but chunks in place of [`Framing::UntilClose`], which requests do not have.
///
/// `Host` comes first and is the URI's authority where the fields have none; several `Cookie`
/// fields, as HTTP/2 splits them, become one (RFC 9113 section 8.2.3). `Connection` is written
/// anew: `close`, `upgrade` with an `Upgrade`, `te` with a `TE`.
pub fn encode_request(
    parts: &request::Parts,
    framing: Framing,
    options: RequestOptions,
    out: &mut BytesMut,
) -> Framing {
    let headers = &parts.headers;
    out.reserve(256 + 48 * headers.len());
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    write_target(parts, options.target_form, out);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    write_host(parts, out);
    let mut cookies_written = false;
    for (name, value) in headers {
        if *name == HOST || is_written_anew(name) {
            continue;
        }
        if *name != COOKIE {
            write_field(name, value, out);
        } else if !cookies_written {
            write_cookies(headers, out);
            cookies_written = true;
        }
    }
    let framing = match framing {
        Framing::UntilClose => Framing::Chunked,
        Framing::None | Framing::Length(_) | Framing::Chunked => framing,
    };
    match framing {
        Framing::Length(length) => write_length(length, out),
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::None if says_empty(parts) => write_length(0, out),
        Framing::None | Framing::UntilClose => {}
    }
    let mut connection = ConnectionList::default();
    connection.add(!options.keep_alive, "close");
    connection.add(headers.contains_key(UPGRADE), "upgrade");
    connection.add(headers.contains_key(TE), "te");
    connection.write(out);
    out.extend_from_slice(b"\r\n");
    framing
}

/// Whether a request without content says so: methods that usually have content (RFC 9110 section
/// 8.6), and every other as its caller did.
fn says_empty(parts: &request::Parts) -> bool {
    let length = parts.headers.get(CONTENT_LENGTH);
    [Method::POST, Method::PUT, Method::PATCH].contains(&parts.method)
        || length.is_some_and(|length| length == "0")
}

/// Writes the head of a response. `framing` is what is known of the body: its length, that it has
/// none, or [`Framing::Chunked`] where its end is not known yet.
///
/// - 1xx, 204 and success of `CONNECT` have no body and no `Content-Length` (RFC 9110 section
///   8.6); `HEAD` and 304 have no body and keep theirs.
/// - HTTP/1.0 has no chunks: a body of unknown length ends with the connection. Nor has it interim
///   responses: nothing is written.
/// - `Connection` is written anew: `close`, or `keep-alive` to HTTP/1.0, and `upgrade` with an
///   `Upgrade`.
///
/// `reason_phrase` is in place of the usual phrase of the status.
pub fn encode_response(
    parts: &response::Parts,
    framing: Framing,
    reason_phrase: Option<&Bytes>,
    options: ResponseOptions<'_>,
    out: &mut BytesMut,
) -> Written {
    let status = parts.status;
    let tunnel = is_tunnel(options.request_method, status);
    let interim = status.is_informational() && !tunnel;
    let old_client = options.client_version == Version::HTTP_10;
    if interim && old_client {
        return Written {
            framing: Framing::None,
            keep_alive: options.keep_alive,
        };
    }
    let written = outcome(status, tunnel, framing, options);
    let headers = &parts.headers;
    out.reserve(256 + 48 * headers.len());
    write_status_line(status, reason_phrase, out);
    for (name, value) in headers {
        if !is_written_anew(name) {
            write_field(name, value, out);
        }
    }
    if let Some(date) = options.date
        && !status.is_informational()
        && !headers.contains_key(DATE)
    {
        write_field(&DATE, date, out);
    }
    write_response_framing(parts, options.request_method, written.framing, out);
    let mut connection = ConnectionList::default();
    if !interim && !tunnel {
        connection.add(!written.keep_alive, "close");
        connection.add(written.keep_alive && old_client, "keep-alive");
    }
    connection.add(headers.contains_key(UPGRADE), "upgrade");
    connection.write(out);
    out.extend_from_slice(b"\r\n");
    written
}

/// Joins several `Cookie` fields to one (RFC 9113 section 8.2.3). [`encode_request`] does so by
/// itself; this is for who looks at the field before.
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut values = headers.get_all(COOKIE).iter();
    if values.next().is_none() || values.next().is_none() {
        return;
    }
    let values: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    // Values joined by two allowed characters are a value.
    if let Ok(joined) = HeaderValue::from_maybe_shared(Bytes::from(values.join(&b"; "[..]))) {
        headers.insert(COOKIE, joined);
    }
}

/// The framing and the fate of the connection of a response.
fn outcome(
    status: StatusCode,
    tunnel: bool,
    framing: Framing,
    options: ResponseOptions<'_>,
) -> Written {
    let old_client = options.client_version == Version::HTTP_10;
    let framing = match framing {
        _ if !may_have_body(options.request_method, status) => Framing::None,
        Framing::None => Framing::Length(0),
        Framing::Length(length) => Framing::Length(length),
        Framing::Chunked | Framing::UntilClose if old_client => Framing::UntilClose,
        Framing::Chunked | Framing::UntilClose => Framing::Chunked,
    };
    let keep_alive = options.keep_alive && framing != Framing::UntilClose && !tunnel;
    Written {
        framing,
        keep_alive,
    }
}

fn write_response_framing(
    parts: &response::Parts,
    method: &Method,
    framing: Framing,
    out: &mut BytesMut,
) {
    match framing {
        Framing::Length(length) => write_length(length, out),
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::None => {
            let tells_of_get = *method == Method::HEAD || parts.status == StatusCode::NOT_MODIFIED;
            let has_none = parts.status.is_informational()
                || parts.status == StatusCode::NO_CONTENT
                || is_tunnel(method, parts.status);
            if let Some(length) = parts.headers.get(CONTENT_LENGTH)
                && tells_of_get
                && !has_none
            {
                write_field(&CONTENT_LENGTH, length, out);
            }
        }
        Framing::UntilClose => {}
    }
}

fn write_status_line(status: StatusCode, reason_phrase: Option<&Bytes>, out: &mut BytesMut) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    let is_text = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
    match reason_phrase {
        Some(phrase) if phrase.iter().all(is_text) => out.extend_from_slice(phrase),
        Some(_) | None => {
            let usual = status.canonical_reason().unwrap_or_default();
            out.extend_from_slice(usual.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn write_target(parts: &request::Parts, form: TargetForm, out: &mut BytesMut) {
    let uri = &parts.uri;
    let authority = uri.authority().map(http::uri::Authority::as_str);
    if let (&Method::CONNECT, Some(authority)) = (&parts.method, authority) {
        out.extend_from_slice(authority.as_bytes());
        return;
    }
    let path = uri.path_and_query().map_or("", |path| path.as_str());
    let is_asterisk = path == "*";
    if let (TargetForm::Absolute, Some(scheme), Some(authority)) =
        (form, uri.scheme_str(), authority)
    {
        out.extend_from_slice(scheme.as_bytes());
        out.extend_from_slice(b"://");
        out.extend_from_slice(authority.as_bytes());
        if is_asterisk {
            return;
        }
    }
    if !path.starts_with('/') && !is_asterisk {
        out.extend_from_slice(b"/");
    }
    out.extend_from_slice(path.as_bytes());
}

fn write_host(parts: &request::Parts, out: &mut BytesMut) {
    let authority = parts.uri.authority().map(|authority| authority.as_str());
    let host = parts.headers.get(HOST).map(HeaderValue::as_bytes);
    let host = host
        .or_else(|| authority.map(str::as_bytes))
        .unwrap_or_default();
    out.extend_from_slice(b"host: ");
    out.extend_from_slice(host);
    out.extend_from_slice(b"\r\n");
}

fn write_cookies(headers: &HeaderMap, out: &mut BytesMut) {
    out.extend_from_slice(b"cookie: ");
    for (index, value) in headers.get_all(COOKIE).iter().enumerate() {
        if index > 0 {
            out.extend_from_slice(b"; ");
        }
        out.extend_from_slice(value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// Fields of this hop, which the encoders never copy.
fn is_written_anew(name: &HeaderName) -> bool {
    *name == CONTENT_LENGTH
        || *name == CONNECTION
        || *name == TRANSFER_ENCODING
        || *name == KEEP_ALIVE
        || *name == PROXY_CONNECTION
}

pub(super) fn write_field(name: &HeaderName, value: &HeaderValue, out: &mut BytesMut) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn write_length(length: u64, out: &mut BytesMut) {
    let mut digits = [b'0'; 20];
    let mut begin = digits.len() - 1;
    let mut rest = length;
    loop {
        digits[begin] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
        begin -= 1;
    }
    out.extend_from_slice(b"content-length: ");
    out.extend_from_slice(&digits[begin..]);
    out.extend_from_slice(b"\r\n");
}

/// The value of `Connection`, written as its elements are added.
#[derive(Default)]
struct ConnectionList {
    elements: [&'static str; 3],
    length: usize,
}

impl ConnectionList {
    fn add(&mut self, applies: bool, element: &'static str) {
        if applies {
            self.elements[self.length] = element;
            self.length += 1;
        }
    }

    fn write(&self, out: &mut BytesMut) {
        for (index, element) in self.elements[..self.length].iter().enumerate() {
            let before: &[u8] = if index == 0 { b"connection: " } else { b", " };
            out.extend_from_slice(before);
            out.extend_from_slice(element.as_bytes());
        }
        if self.length > 0 {
            out.extend_from_slice(b"\r\n");
        }
    }
}
