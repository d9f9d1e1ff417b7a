//! Trace context: read, decided, and written on.
//!
//! W3C Trace Context (`traceparent`, `tracestate`) is what the mesh speaks; B3 is read where there
//! is no valid `traceparent`, and written where it came in. A request that brought none costs one pass
//! over its names.

mod b3;
mod w3c;

use std::fmt::Write as _;

use http::HeaderMap;
use http::header::HeaderName;

use crate::headers::remove_in_order;

pub use w3c::{is_valid_tracestate, parse_traceparent};

/// W3C Trace Context: who called, and whether that is recorded.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// W3C Trace Context: what tracing systems add for themselves. The mesh passes it on.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// One span's place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// Never all zero.
    pub trace_id: [u8; 16],
    /// Never all zero.
    pub span_id: [u8; 8],
    /// Whether spans of this trace are recorded.
    pub sampled: bool,
}

/// The span that called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// Never all zero.
    pub trace_id: [u8; 16],
    /// Never all zero.
    pub span_id: [u8; 8],
}

impl From<TraceContext> for Parent {
    fn from(context: TraceContext) -> Self {
        Self {
            trace_id: context.trace_id,
            span_id: context.span_id,
        }
    }
}

/// All forms that came in, which are therefore written on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Formats {
    /// A valid `traceparent`: without one, `tracestate` has no meaning and is removed.
    pub w3c: bool,
    /// One header `b3`.
    pub b3_single: bool,
    /// `x-b3-traceid` and others.
    pub b3_multi: bool,
}

/// All that a request brought; by default nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Incoming {
    /// The caller's span; B3 may bring a decision without one.
    pub parent: Option<Parent>,
    /// The caller's decision; B3 may leave it to us.
    pub sampled: Option<bool>,
    /// How it came.
    pub formats: Formats,
}

impl Incoming {
    /// Reads all forms. W3C goes before B3, and what is invalid is not there: that begins a new
    /// trace, as the specification wants it.
    pub fn of(headers: &HeaderMap) -> Self {
        // One pass over the names costs less than looking up each of these.
        if !headers.keys().any(is_context) {
            return Self::default();
        }
        let (w3c, b3) = (w3c::read(headers), b3::read(headers));
        let formats = Formats {
            w3c: w3c.is_some(),
            ..b3.formats
        };
        let (parent, sampled) = match w3c {
            Some((parent, sampled)) => (Some(parent), Some(sampled)),
            None => (b3.parent, b3.sampled),
        };
        Self {
            parent,
            sampled,
            formats,
        }
    }
}

/// Whether a field may say something of a trace.
fn is_context(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("trace") || name == "b3" || name.starts_with("x-b3-")
}

/// What is sampled where the caller has not decided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// The share of traces that are recorded, 0 to 1.
    pub ratio: f64,
}

impl Sampler {
    /// Decides by the trace's ID alone, so that every sidecar decides the same.
    pub fn samples(&self, trace_id: &[u8; 16]) -> bool {
        let [.., a, b, c, d, e, f, g, h] = *trace_id;
        let low = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        self.ratio >= 1.0 || (low as f64) < self.ratio * (u64::MAX as f64)
    }
}

/// The context of this request's own span: the caller's trace continues and its decision holds;
/// where there is none, the ratio decides. `random` gives the IDs.
pub fn decide(incoming: Incoming, random: [u64; 3], sampler: Sampler) -> TraceContext {
    let trace_id = match incoming.parent {
        Some(parent) => parent.trace_id,
        None => {
            let mut trace_id = [0; 16];
            trace_id[..8].copy_from_slice(&random[1].max(1).to_be_bytes());
            trace_id[8..].copy_from_slice(&random[2].to_be_bytes());
            trace_id
        }
    };
    let decided = incoming.sampled;
    TraceContext {
        trace_id,
        span_id: random[0].max(1).to_be_bytes(),
        sampled: decided.unwrap_or_else(|| sampler.samples(&trace_id)),
    }
}

/// Writes the context into a request, as W3C always and as B3 where it came so.
pub fn inject(context: &TraceContext, formats: Formats, headers: &mut HeaderMap) {
    headers.insert(TRACEPARENT, w3c::format(context));
    if !formats.w3c || !is_valid_tracestate(headers) {
        remove_in_order(headers, &TRACESTATE);
    }
    if formats.b3_single {
        b3::write_single(context, headers);
    }
    if formats.b3_multi {
        b3::write_multi(context, headers);
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

/// An ID that is not all zero.
fn parse_id<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    parse_hex(text).filter(|id| id.iter().any(|byte| *byte != 0))
}

/// Lower-case hexadecimal of exactly `N` bytes.
fn parse_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != N * 2 {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
    }
    Some(bytes)
}

fn write_hex(bytes: &[u8], into: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, pair) in bytes.iter().zip(into.chunks_exact_mut(2)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

#[cfg(test)]
mod tests;
