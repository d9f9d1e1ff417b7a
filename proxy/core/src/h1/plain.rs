//! Heads as nearly all are, read in one pass: complete, in HTTP/1.1, every line ended by CR LF, nothing
//! folded, nothing unusual in the target.
//!
//! Every other head is left to the parser that says what is wrong with it. What is read here, that one
//! reads in the same way: properties compare them.

use std::sync::LazyLock;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use memchr::memchr;
use memchr::memmem::Finder;

use super::field::{Fields, shared_value};
use super::framing::Noted;
use super::head::unusual_phrase;
use super::limits::Limits;
use super::malformed::Message;
use crate::field_name::{alphanumeric_or, is_tchar};

/// Fields that a map has room for from the begin; more are possible.
const FIELDS: usize = 8;

/// The first line of a request, and its fields.
#[derive(Debug)]
pub(super) struct PlainRequest<'b> {
    pub(super) method: &'b [u8],
    pub(super) target: &'b [u8],
    pub(super) headers: HeaderMap,
    pub(super) noted: Noted,
    pub(super) form: Option<HeaderValue>,
}

/// The first line of a response, and its fields.
#[derive(Debug)]
pub(super) struct PlainResponse {
    pub(super) code: u16,
    pub(super) headers: HeaderMap,
    pub(super) noted: Noted,
    pub(super) form: Option<HeaderValue>,
}

/// The length of the head that the buffer begins with, its empty line included, if it may be a plain one.
/// Its first line is: to split a head off and put it back is not for free, and all that a request may have
/// without being plain is in there.
pub(super) fn length(buffer: &[u8], message: Message, limits: &Limits) -> Option<usize> {
    static END: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(b"\r\n\r\n"));
    let window = &buffer[..buffer.len().min(limits.head_bytes)];
    let (line, _) = line(window)?;
    match message {
        Message::Request => request_line(line, limits).map(|_| ())?,
        Message::Response => status_line(line).map(|_| ())?,
    }
    END.find(window).map(|at| at + 4)
}

/// The method and the target.
fn request_line<'b>(line: &'b [u8], limits: &Limits) -> Option<(&'b [u8], &'b [u8])> {
    let method = token(line)?;
    let rest = line[method.len()..].strip_prefix(b" ")?;
    let target = rest.strip_suffix(b" HTTP/1.1")?;
    let is_plain = (1..=limits.method_bytes).contains(&method.len())
        && !target.is_empty()
        && target.iter().all(|byte| is_target(*byte));
    is_plain.then_some((method, target))
}

/// Reads a request's head; `None` where it is not a plain one.
pub(super) fn request<'b>(head: &'b Bytes, limits: &Limits) -> Option<PlainRequest<'b>> {
    let (line, fields) = line(head)?;
    let (method, target) = request_line(line, limits)?;
    let (headers, noted, form) = read_fields(head, fields, limits, Message::Request, None)?;
    Some(PlainRequest {
        method,
        target,
        headers,
        noted,
        form,
    })
}

/// Reads a response's head; `None` where it is not a plain one.
pub(super) fn response(head: &Bytes, limits: &Limits) -> Option<PlainResponse> {
    let (line, fields) = line(head)?;
    let code = status_line(line)?;
    let phrase = unusual_phrase(line, code);
    let (headers, noted, form) = read_fields(head, fields, limits, Message::Response, phrase)?;
    Some(PlainResponse {
        code,
        headers,
        noted,
        form,
    })
}

/// The status.
fn status_line(line: &[u8]) -> Option<u16> {
    let rest = line.strip_prefix(b"HTTP/1.1 ")?;
    let (code, phrase) = rest.split_at_checked(3)?;
    let code = match code {
        [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] => [a, b, c]
            .into_iter()
            .fold(0, |code, digit| code * 10 + u16::from(digit - b'0')),
        _ => return None,
    };
    let phrase = phrase.strip_prefix(b" ")?;
    let is_plain = phrase.iter().all(|byte| matches!(byte, b' '..=b'~'));
    is_plain.then_some(code)
}

/// The fields up to the empty line, which ends the head, what they say of it, and its form.
fn read_fields(
    head: &Bytes,
    fields: &[u8],
    limits: &Limits,
    message: Message,
    phrase: Option<&[u8]>,
) -> Option<(HeaderMap, Noted, Option<HeaderValue>)> {
    let mut found = Fields::new(message, FIELDS).ok()?;
    let mut rest = fields;
    let mut count = 0;
    while rest != b"\r\n" {
        let name = token(rest)?;
        let (line, after) = line(&rest[name.len()..])?;
        rest = after;
        count += 1;
        if name.is_empty() || count > limits.fields {
            return None;
        }
        let value = shared_value(head, trimmed(line.strip_prefix(b":")?)).ok()?;
        found.add(name, value).ok()?;
    }
    let (headers, noted, form) = found.finish().ok()?;
    let names = fields.split(|byte| *byte == b'\n').map_while(token);
    let form = form.form(names.filter(|name| !name.is_empty()), phrase);
    Some((headers, noted, form))
}

/// The first line without its end, and what follows.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (line, rest) = bytes.split_at(memchr(b'\n', bytes)? + 1);
    Some((line.strip_suffix(b"\r\n")?, rest))
}

/// The token that the bytes begin with; it may be empty.
fn token(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|byte| !is_tchar(*byte))?;
    Some(&bytes[..end])
}

/// The value without spaces and tabs around it.
fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// A character that RFC 3986 knows, except `#`: no other has a meaning of its own to anybody.
fn is_target(byte: u8) -> bool {
    const TABLE: [bool; 256] = alphanumeric_or(b"-._~%:/?[]@!$&'()*+,;=");
    TABLE[usize::from(byte)]
}
