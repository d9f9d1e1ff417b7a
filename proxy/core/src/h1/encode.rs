//! Heads as they are sent. The version on the wire is always HTTP/1.1 (RFC 9110 section 6.2).

use std::ops::Deref;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderName, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, request, response};

use super::framing::{Framing, is_tunnel, may_have_body};
use super::target::TargetForm;
use crate::headers::WEFT_HTTP1_FORM;
use crate::http1_form::Form;

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
/// `Host` is the URI's authority where the fields have none; several `Cookie` fields, as HTTP/2
/// splits them, become one (RFC 9113 section 8.2.3). `Connection` is written anew: `close`, `upgrade`
/// with an `Upgrade`, `te` with a `TE`.
///
/// Names and their order are those of the head's form ([`crate::http1_form`]); what this hop adds comes
/// last, in the style of the others. Without a form names are in lower case, and `Host` comes first.
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
    let framing = match framing {
        Framing::UntilClose => Framing::Chunked,
        Framing::None | Framing::Length(_) | Framing::Chunked => framing,
    };
    let found = Found::of(headers);
    let length = match framing {
        Framing::Length(length) => Some(Decimal::of(length)),
        Framing::None if says_empty(&parts.method, &found) => Some(Decimal::of(0)),
        Framing::None | Framing::Chunked | Framing::UntilClose => None,
    };
    let length = length.as_deref();
    let mut connection = ConnectionList::default();
    connection.add(!options.keep_alive, "close");
    connection.add(found.upgrade, "upgrade");
    connection.add(found.te, "te");
    let lines = Lines {
        form: Form::of(found.form),
        host: Some(host(&parts.uri, &found)),
        length,
        chunked: framing == Framing::Chunked,
        connection,
        date: None,
    };
    lines.write(headers, out);
    framing
}

/// Fields that the encoders ask for, found in one pass: to look each of them up takes longer. Of several
/// values it is the first.
#[derive(Default)]
struct Found<'h> {
    form: Option<&'h HeaderValue>,
    host: Option<&'h HeaderValue>,
    length: Option<&'h HeaderValue>,
    date: bool,
    te: bool,
    upgrade: bool,
}

impl<'h> Found<'h> {
    fn of(headers: &'h HeaderMap) -> Self {
        let mut found = Self::default();
        for (name, value) in headers {
            let place = match name.as_str() {
                "host" => &mut found.host,
                "content-length" => &mut found.length,
                "weft-http1-form" => &mut found.form,
                other => {
                    found.date |= other == "date";
                    found.te |= other == "te";
                    found.upgrade |= other == "upgrade";
                    continue;
                }
            };
            place.get_or_insert(value);
        }
        found
    }
}

/// Whether a request without content says so: methods that usually have content (RFC 9110 section
/// 8.6), and every other as its caller did.
fn says_empty(method: &Method, found: &Found<'_>) -> bool {
    [Method::POST, Method::PUT, Method::PATCH].contains(method)
        || found.length.is_some_and(|length| length == "0")
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
/// Names, their order and the reason phrase are those of the head's form ([`crate::http1_form`]).
pub fn encode_response(
    parts: &response::Parts,
    framing: Framing,
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
    let found = Found::of(headers);
    let form = Form::of(found.form);
    write_status_line(status, form.phrase(), out);
    let date = options.date;
    let date = date.filter(|_| !status.is_informational() && !found.date);
    let counted = match written.framing {
        Framing::Length(length) => Some(Decimal::of(length)),
        Framing::None | Framing::Chunked | Framing::UntilClose => None,
    };
    let length = counted.as_deref();
    let mut connection = ConnectionList::default();
    if !interim && !tunnel {
        connection.add(!written.keep_alive, "close");
        connection.add(written.keep_alive && old_client, "keep-alive");
    }
    connection.add(found.upgrade, "upgrade");
    let lines = Lines {
        form,
        host: None,
        length: length.or_else(|| told_length(parts, options.request_method, written.framing)),
        chunked: written.framing == Framing::Chunked,
        connection,
        date: date.map(HeaderValue::as_bytes),
    };
    lines.write(headers, out);
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

/// The `Content-Length` of a response without a body that tells of the one that `GET` would have.
fn told_length<'h>(
    parts: &'h response::Parts,
    method: &Method,
    framing: Framing,
) -> Option<&'h [u8]> {
    let tells_of_get = *method == Method::HEAD || parts.status == StatusCode::NOT_MODIFIED;
    let has_none = parts.status.is_informational()
        || parts.status == StatusCode::NO_CONTENT
        || is_tunnel(method, parts.status);
    let told = framing == Framing::None && tells_of_get && !has_none;
    let length = told.then(|| parts.headers.get(CONTENT_LENGTH)).flatten()?;
    Some(length.as_bytes())
}

fn write_status_line(status: StatusCode, phrase: Option<&[u8]>, out: &mut BytesMut) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    let usual = || status.canonical_reason().unwrap_or_default().as_bytes();
    out.extend_from_slice(phrase.unwrap_or_else(usual));
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

fn host<'h>(uri: &'h Uri, found: &Found<'h>) -> &'h [u8] {
    let authority = uri.authority().map(|authority| authority.as_str());
    let host = found.host.map(HeaderValue::as_bytes);
    host.or_else(|| authority.map(str::as_bytes))
        .unwrap_or_default()
}

fn write_cookies(headers: &HeaderMap, out: &mut BytesMut) {
    for (index, value) in headers.get_all(COOKIE).iter().enumerate() {
        if index > 0 {
            out.extend_from_slice(b"; ");
        }
        out.extend_from_slice(value.as_bytes());
    }
}

/// The lines behind the first one.
struct Lines<'a> {
    form: Form<'a>,
    /// Of a request.
    host: Option<&'a [u8]>,
    length: Option<&'a [u8]>,
    chunked: bool,
    connection: ConnectionList,
    date: Option<&'a [u8]>,
}

/// What stands in a line behind the name.
#[derive(Clone, Copy)]
enum Content<'a> {
    Value(&'a [u8]),
    /// All `Cookie` fields.
    Cookies,
    Connection,
}

impl<'a> Lines<'a> {
    fn write(&self, headers: &'a HeaderMap, out: &mut BytesMut) {
        let speller = self.form.speller();
        if self.form.is_ordered() {
            let mut lines = Vec::with_capacity(headers.len() + 3);
            self.each(headers, |name, content| lines.push((name, content)));
            for (name, content) in self.form.arrange(lines) {
                name.write(&speller, out);
                self.write_content(content, headers, out);
            }
        } else {
            self.each(headers, |name, content| {
                speller.write(name, out);
                self.write_content(content, headers, out);
            });
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Calls `line` with the name and the content of each, in the order of the fields.
    fn each(&self, headers: &'a HeaderMap, mut line: impl FnMut(&'a str, Content<'a>)) {
        let (mut host, mut length) = (self.host, self.length);
        let mut cookies_written = false;
        let mut lines = 0;
        for (name, value) in headers {
            if self.form.is_host_next(lines)
                && let Some(host) = host.take()
            {
                line("host", Content::Value(host));
            }
            let content = match field(name) {
                Field::Copied => Some(Content::Value(value.as_bytes())),
                Field::Host if self.host.is_none() => Some(Content::Value(value.as_bytes())),
                Field::Cookie if self.host.is_none() => Some(Content::Value(value.as_bytes())),
                Field::Cookie if !cookies_written => Some(Content::Cookies),
                Field::Length => length.take().map(Content::Value),
                Field::Host | Field::Cookie | Field::Dropped => None,
            };
            cookies_written |= *name == COOKIE;
            if let Some(content) = content {
                line(name.as_str(), content);
                lines += 1;
            }
        }
        let chunked = self.chunked.then_some(&b"chunked"[..]);
        let rest = [
            ("host", host),
            ("date", self.date),
            ("content-length", length),
            ("transfer-encoding", chunked),
        ];
        for (name, value) in rest {
            if let Some(value) = value {
                line(name, Content::Value(value));
            }
        }
        if self.connection.length > 0 {
            line("connection", Content::Connection);
        }
    }

    fn write_content(&self, content: Content<'_>, headers: &HeaderMap, out: &mut BytesMut) {
        out.extend_from_slice(b": ");
        match content {
            Content::Value(value) => out.extend_from_slice(value),
            Content::Cookies => write_cookies(headers, out),
            Content::Connection => self.connection.write(out),
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// How a field is written.
#[derive(Clone, Copy)]
enum Field {
    Copied,
    Host,
    Cookie,
    Length,
    /// Of this hop, which the encoders never copy.
    Dropped,
}

fn field(name: &HeaderName) -> Field {
    if *name == HOST {
        Field::Host
    } else if *name == COOKIE {
        Field::Cookie
    } else if *name == CONTENT_LENGTH {
        Field::Length
    } else if *name == CONNECTION
        || *name == TRANSFER_ENCODING
        || *name == KEEP_ALIVE
        || *name == PROXY_CONNECTION
        || *name == WEFT_HTTP1_FORM
    {
        Field::Dropped
    } else {
        Field::Copied
    }
}

pub(super) fn write_field(name: &HeaderName, value: &HeaderValue, out: &mut BytesMut) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// A number in digits; it derefs to them.
struct Decimal {
    digits: [u8; 20],
    begin: usize,
}

impl Decimal {
    fn of(number: u64) -> Self {
        let mut digits = [b'0'; 20];
        let mut begin = digits.len() - 1;
        let mut rest = number;
        loop {
            digits[begin] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                return Self { digits, begin };
            }
            begin -= 1;
        }
    }
}

impl Deref for Decimal {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.digits[self.begin..]
    }
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
            if index > 0 {
                out.extend_from_slice(b", ");
            }
            out.extend_from_slice(element.as_bytes());
        }
    }
}
