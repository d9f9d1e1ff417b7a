//! W3C Trace Context, level 1 (and the part of level 2 that readers of level 1 have to survive).

use http::HeaderMap;
use http::header::HeaderValue;

use super::{Parent, TRACEPARENT, TRACESTATE, TraceContext, parse_hex, parse_id, write_hex};

/// `VERSION-TRACE-SPAN-FLAGS`.
const LENGTH: usize = 55;
/// Members of a `tracestate` (section 3.3.1.1).
const STATE_MEMBERS_MAX: usize = 32;

/// The parent and its decision; `None` where there is no valid `traceparent`, or more than one.
pub(super) fn read(headers: &HeaderMap) -> Option<(Parent, bool)> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    parse_traceparent(value.as_bytes())
}

/// Reads a `traceparent` (section 3.2): version 00 exactly, later versions with more behind it.
/// The second is whether it is sampled; other flags are not ours to pass on.
pub fn parse_traceparent(text: &[u8]) -> Option<(Parent, bool)> {
    let (head, tail) = text.split_at_checked(LENGTH)?;
    let dashes = head[2] == b'-' && head[35] == b'-' && head[52] == b'-';
    let version = parse_hex::<1>(&head[..2])?[0];
    let tail_fits = match version {
        0 => tail.is_empty(),
        0xff => false,
        _ => tail.is_empty() || tail[0] == b'-',
    };
    if !dashes || !tail_fits {
        return None;
    }
    let parent = Parent {
        trace_id: parse_id(&head[3..35])?,
        span_id: parse_id(&head[36..52])?,
    };
    Some((parent, parse_hex::<1>(&head[53..55])?[0] & 1 == 1))
}

/// Writes a `traceparent` of version 00.
pub(super) fn format(context: &TraceContext) -> HeaderValue {
    let mut text = [b'-'; LENGTH];
    text[..2].copy_from_slice(b"00");
    write_hex(&context.trace_id, &mut text[3..35]);
    write_hex(&context.span_id, &mut text[36..52]);
    write_hex(&[u8::from(context.sampled)], &mut text[53..55]);
    // Hexadecimal digits and dashes are always a valid value.
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Whether `tracestate`, all its lines together, is well-formed (section 3.3): up to 32 members
/// `key=value`, each key once. None at all is well-formed.
pub fn is_valid_tracestate(headers: &HeaderMap) -> bool {
    let mut keys: [&[u8]; STATE_MEMBERS_MAX] = [b""; STATE_MEMBERS_MAX];
    let mut count = 0;
    for line in headers.get_all(TRACESTATE) {
        for member in line.as_bytes().split(|byte| *byte == b',') {
            let member = member.trim_ascii();
            if member.is_empty() {
                continue;
            }
            let Some(equals) = member.iter().position(|byte| *byte == b'=') else {
                return false;
            };
            let (key, value) = (&member[..equals], &member[equals + 1..]);
            let repeated = keys[..count].contains(&key);
            if count == keys.len() || repeated || !is_state_key(key) || !is_state_value(value) {
                return false;
            }
            keys[count] = key;
            count += 1;
        }
    }
    true
}

/// `simple-key` or `tenant@system` (section 3.3.1.3.1).
fn is_state_key(key: &[u8]) -> bool {
    let part = |part: &[u8], longest: usize, digit_first: bool| {
        let first = part.first();
        let begins =
            first.is_some_and(|b| b.is_ascii_lowercase() || (digit_first && b.is_ascii_digit()));
        let inner = |b: &u8| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-' | b'*' | b'/')
        };
        begins && part.len() <= longest && part.iter().all(inner)
    };
    match key.iter().position(|byte| *byte == b'@') {
        None => part(key, 256, false),
        Some(at) => part(&key[..at], 241, true) && part(&key[at + 1..], 14, false),
    }
}

/// Up to 256 printable characters without ',' and '=' that don't end in a blank.
fn is_state_value(value: &[u8]) -> bool {
    let inner = |byte: &u8| matches!(byte, 0x20..=0x7e) && !matches!(byte, b',' | b'=');
    let ends = value.last().is_some_and(|byte| *byte != b' ');
    ends && value.len() <= 256 && value.iter().all(inner)
}
