//! Trace context: read, decided, and written on.
//!
//! W3C Trace Context (`traceparent`) is what the mesh speaks; B3 is read where it is all there is,
//! and written where it came in.

use std::fmt::Write as _;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

/// W3C Trace Context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const B3: HeaderName = HeaderName::from_static("b3");
const X_B3_TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const X_B3_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const X_B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");

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

/// In which form a context came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `traceparent`.
    W3c,
    /// One header `b3`.
    B3Single,
    /// `x-b3-…`.
    B3Multi,
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
        (low as f64) < self.ratio * (u64::MAX as f64)
    }
}

/// The context that a request brought.
pub fn incoming(headers: &HeaderMap) -> Option<(TraceContext, Format)> {
    if let Some(value) = headers.get(TRACEPARENT) {
        return Some((parse_traceparent(value.as_bytes())?, Format::W3c));
    }
    if let Some(value) = headers.get(B3) {
        return Some((parse_b3(value.as_bytes())?, Format::B3Single));
    }
    let trace_id = headers.get(X_B3_TRACE_ID)?;
    let span_id = headers.get(X_B3_SPAN_ID)?;
    let sampled = headers.get(X_B3_SAMPLED);
    let context = TraceContext {
        trace_id: parse_trace_id(trace_id.as_bytes())?,
        span_id: parse_id(span_id.as_bytes())?,
        sampled: sampled.is_some_and(|value| matches!(value.as_bytes(), b"1" | b"true" | b"d")),
    };
    Some((context, Format::B3Multi))
}

/// The context of this request's own span: the caller's trace continues and its decision holds; a
/// new trace is sampled by ratio. `random` gives the IDs.
pub fn decide(incoming: Option<TraceContext>, random: [u64; 3], sampler: Sampler) -> TraceContext {
    let span_id = random[0].max(1).to_be_bytes();
    match incoming {
        Some(parent) => TraceContext { span_id, ..parent },
        None => {
            let mut trace_id = [0; 16];
            trace_id[..8].copy_from_slice(&random[1].max(1).to_be_bytes());
            trace_id[8..].copy_from_slice(&random[2].to_be_bytes());
            TraceContext {
                trace_id,
                span_id,
                sampled: sampler.samples(&trace_id),
            }
        }
    }
}

/// Writes the context into a request, in W3C form and, where it came so, in B3 as well.
pub fn inject(context: &TraceContext, came_as: Option<Format>, headers: &mut HeaderMap) {
    // 00-TRACE-SPAN-FLAGS
    let mut text = [b'-'; 55];
    text[..2].copy_from_slice(b"00");
    write_hex(&context.trace_id, &mut text[3..35]);
    write_hex(&context.span_id, &mut text[36..52]);
    text[53] = b'0';
    text[54] = if context.sampled { b'1' } else { b'0' };
    if let Ok(value) = HeaderValue::from_bytes(&text) {
        headers.insert(TRACEPARENT, value);
    }
    match came_as {
        None | Some(Format::W3c) => {}
        Some(Format::B3Single) => {
            let sampled = u8::from(context.sampled);
            let text = format!(
                "{}-{}-{sampled}",
                hex(&context.trace_id),
                hex(&context.span_id)
            );
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(B3, value);
            }
        }
        Some(Format::B3Multi) => {
            if let Ok(value) = HeaderValue::from_str(&hex(&context.span_id)) {
                headers.insert(X_B3_SPAN_ID, value);
            }
        }
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

/// W3C Trace Context section 3.2: version 00 exactly, later versions with more behind.
fn parse_traceparent(text: &[u8]) -> Option<TraceContext> {
    let (head, tail) = text.split_at_checked(55)?;
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
    Some(TraceContext {
        trace_id: parse_id(&head[3..35])?,
        span_id: parse_id(&head[36..52])?,
        sampled: parse_hex::<1>(&head[53..55])?[0] & 1 == 1,
    })
}

/// `TRACE-SPAN[-SAMPLED[-PARENT]]`; a lone `0` says only that nothing is sampled.
fn parse_b3(text: &[u8]) -> Option<TraceContext> {
    let mut parts = text.split(|byte| *byte == b'-');
    let trace_id = parse_trace_id(parts.next()?)?;
    let span_id = parse_id(parts.next()?)?;
    let sampled = matches!(parts.next(), Some(b"1" | b"d"));
    Some(TraceContext {
        trace_id,
        span_id,
        sampled,
    })
}

/// B3 also has trace IDs of 64 bits.
fn parse_trace_id(text: &[u8]) -> Option<[u8; 16]> {
    if text.len() == 16 {
        let mut id = [0; 16];
        id[8..].copy_from_slice(&parse_id::<8>(text)?);
        return Some(id);
    }
    parse_id(text)
}

fn parse_id<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    parse_hex(text).filter(|id| id.iter().any(|byte| *byte != 0))
}

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
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const W3C: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn with(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[test]
    fn traceparent() {
        let (context, format) = incoming(&with("traceparent", W3C)).unwrap();
        assert!(context.sampled);
        assert_eq!(format, Format::W3c);
        let mut headers = HeaderMap::new();
        inject(&context, None, &mut headers);
        assert_eq!(headers["traceparent"], W3C);
        let later = W3C.replacen("00", "cc", 1) + "-what-comes";
        assert!(incoming(&with("traceparent", &later)).is_some());
        for bad in [
            "",
            "00",
            &W3C.to_uppercase(),
            &W3C.replacen("00", "ff", 1),
            &format!("{W3C}-x"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        ] {
            assert_eq!(incoming(&with("traceparent", bad)), None, "{bad}");
        }
    }

    #[test]
    fn b3() {
        let single = "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1";
        let (context, format) = incoming(&with("b3", single)).unwrap();
        assert_eq!((context.sampled, format), (true, Format::B3Single));
        let mut headers = HeaderMap::new();
        inject(&context, Some(format), &mut headers);
        assert_eq!(headers["b3"], single);
        let mut multi = with("x-b3-traceid", "e457b5a2e4d86bd1");
        multi.insert("x-b3-spanid", "e457b5a2e4d86bd1".parse().unwrap());
        let (context, _) = incoming(&multi).unwrap();
        assert!(!context.sampled);
        assert_eq!(&context.trace_id[..8], &[0; 8]);
        assert_eq!(incoming(&with("b3", "0")), None);
    }

    #[test]
    fn the_callers_decision_holds_and_new_traces_go_by_ratio() {
        let (parent, _) = incoming(&with("traceparent", W3C)).unwrap();
        let own = decide(Some(parent), [7, 8, 9], Sampler { ratio: 0.0 });
        assert_eq!(own.trace_id, parent.trace_id);
        assert!(own.sampled && own.span_id != parent.span_id);
        let sampled = (0..10_000u64)
            .filter(|n| {
                let random = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                decide(None, [1, random, random], Sampler { ratio: 0.1 }).sampled
            })
            .count();
        assert!((900..1100).contains(&sampled), "{sampled}");
        assert!(!decide(None, [0, 0, 0], Sampler { ratio: 0.0 }).sampled);
        assert_ne!(
            decide(None, [0, 0, 0], Sampler { ratio: 0.0 }).trace_id,
            [0; 16]
        );
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,80}") {
            let _ = parse_traceparent(text.as_bytes());
            let _ = parse_b3(text.as_bytes());
        }
    }
}
