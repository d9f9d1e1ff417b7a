//! B3, as Zipkin and older meshes speak it: one header `b3`, or several `x-b3-…`.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use crate::headers::remove_in_order;

use super::{Formats, Parent, TraceContext, hex, parse_id};

const B3: HeaderName = HeaderName::from_static("b3");
const TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const PARENT_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// What there is of B3. The single header goes before the others.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Read {
    pub(super) parent: Option<Parent>,
    pub(super) sampled: Option<bool>,
    pub(super) formats: Formats,
}

pub(super) fn read(headers: &HeaderMap) -> Read {
    let single = headers.get(B3);
    let multi = headers.contains_key(TRACE_ID) || headers.contains_key(SAMPLED);
    let formats = Formats {
        w3c: false,
        b3_single: single.is_some(),
        b3_multi: multi,
    };
    if !formats.b3_single && !multi {
        return Read::default();
    }
    let found = single.and_then(|value| parse_single(value.as_bytes()));
    let (parent, sampled) = found.unwrap_or_else(|| read_multi(headers));
    Read {
        parent,
        sampled,
        formats,
    }
}

/// `TRACE-SPAN[-SAMPLED[-PARENT]]`, or a decision alone.
fn parse_single(text: &[u8]) -> Option<(Option<Parent>, Option<bool>)> {
    if let Some(sampled) = parse_decision(text) {
        return Some((None, Some(sampled)));
    }
    let mut parts = text.split(|byte| *byte == b'-');
    let parent = Parent {
        trace_id: parse_trace_id(parts.next()?)?,
        span_id: parse_id(parts.next()?)?,
    };
    // No decision, or one of those there are.
    let sampled = match parts.next() {
        None => None,
        Some(text) => Some(parse_decision(text)?),
    };
    if let Some(grandparent) = parts.next() {
        parse_id::<8>(grandparent)?;
    }
    parts.next().is_none().then_some((Some(parent), sampled))
}

fn read_multi(headers: &HeaderMap) -> (Option<Parent>, Option<bool>) {
    let bytes = |name| headers.get(name).map(HeaderValue::as_bytes);
    let trace_id = bytes(TRACE_ID).and_then(parse_trace_id);
    let span_id = bytes(SPAN_ID).and_then(parse_id);
    let parent = trace_id
        .zip(span_id)
        .map(|(trace_id, span_id)| Parent { trace_id, span_id });
    // Debug means sampled, too.
    let debug = bytes(FLAGS) == Some(b"1");
    let sampled = match bytes(SAMPLED) {
        _ if debug => Some(true),
        Some(b"1" | b"true") => Some(true),
        Some(b"0" | b"false") => Some(false),
        Some(_) | None => None,
    };
    (parent, sampled)
}

/// Not sampled, sampled, or sampled for debugging.
fn parse_decision(text: &[u8]) -> Option<bool> {
    match text {
        b"0" => Some(false),
        b"1" | b"d" => Some(true),
        _ => None,
    }
}

/// 128 bits, or the lower 64 of them.
fn parse_trace_id(text: &[u8]) -> Option<[u8; 16]> {
    if text.len() == 16 {
        let mut id = [0; 16];
        id[8..].copy_from_slice(&parse_id::<8>(text)?);
        return Some(id);
    }
    parse_id(text)
}

pub(super) fn write_single(context: &TraceContext, headers: &mut HeaderMap) {
    let (trace_id, span_id) = (trace_id(context), hex(&context.span_id));
    let sampled = u8::from(context.sampled);
    insert(headers, B3, &format!("{trace_id}-{span_id}-{sampled}"));
}

pub(super) fn write_multi(context: &TraceContext, headers: &mut HeaderMap) {
    insert(headers, TRACE_ID, &trace_id(context));
    insert(headers, SPAN_ID, &hex(&context.span_id));
    let sampled = if context.sampled { "1" } else { "0" };
    headers.insert(SAMPLED, HeaderValue::from_static(sampled));
    // It named the caller's parent, and is optional.
    remove_in_order(headers, &PARENT_SPAN_ID);
}

/// As short as it came: systems with trace IDs of 64 bits can't read longer ones.
fn trace_id(context: &TraceContext) -> String {
    match context.trace_id.split_at(8) {
        ([0, 0, 0, 0, 0, 0, 0, 0], low) => hex(low),
        _ => hex(&context.trace_id),
    }
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // Hexadecimal digits and dashes are always a valid value.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
