//! Names of fields that are found quickly, the characters of tokens, and maps of fields.

use http::header::MaxSizeReached;
use http::{HeaderMap, HeaderName};

/// A slice of names in a static of their own, as a match arm's value.
macro_rules! names {
    ($($name:literal),*) => {{
        const COUNT: usize = [$($name),*].len();
        static NAMES: [HeaderName; COUNT] = [$(HeaderName::from_static($name)),*];
        &NAMES
    }};
}

/// Fields that are added to a head on its way.
const ADDED_FIELDS: usize = 4;

/// A map for so many fields, and as far as that is possible for those that are added on the way: it is
/// not made anew for the first of them.
pub(crate) fn map_for(fields: usize) -> Result<HeaderMap, MaxSizeReached> {
    let roomy = HeaderMap::try_with_capacity(fields.saturating_add(ADDED_FIELDS));
    roomy.or_else(|_| HeaderMap::try_with_capacity(fields))
}

/// The name, in any case, if it is frequent in a mesh: [`HeaderName`] would search for it among all that
/// it knows, or allocate it each time.
pub(crate) fn known_name(name: &[u8]) -> Option<&'static HeaderName> {
    let mut room = [0; NAME_BYTES];
    let lower_case = room.get_mut(..name.len())?;
    lower_case.copy_from_slice(name);
    lower_case.make_ascii_lowercase();
    known_lower_case(lower_case)
}

/// The same of a name in lower case.
pub(crate) fn known_lower_case(name: &[u8]) -> Option<&'static HeaderName> {
    // The first and the last byte tell nearly all names of one length apart.
    let wanted = (name.first()?, name.last()?);
    names_of_length(name.len()).iter().find(|known| {
        let known = known.as_str().as_bytes();
        (known.first(), known.last()) == (Some(wanted.0), Some(wanted.1)) && known == name
    })
}

/// Bytes of the longest name that is known.
const NAME_BYTES: usize = 23;

fn names_of_length(length: usize) -> &'static [HeaderName] {
    match length {
        2 => names!["b3", "te"],
        3 => names!["via"],
        4 => names!["host", "date", "etag", "vary"],
        6 => names!["accept", "cookie", "server", "origin", "expect"],
        7 => names!["baggage", "referer"],
        8 => names!["priority", "location"],
        9 => names!["x-api-key", "x-real-ip", "sec-ch-ua", "weft-hops"],
        10 => names![
            "user-agent",
            "connection",
            "set-cookie",
            "tracestate",
            "keep-alive",
            "weft-check"
        ],
        11 => names!["traceparent", "x-b3-spanid", "grpc-status", "weft-reason"],
        12 => names![
            "content-type",
            "x-request-id",
            "grpc-timeout",
            "grpc-message",
            "x-b3-traceid",
            "x-b3-sampled",
            "x-powered-by"
        ],
        13 => names![
            "cache-control",
            "accept-ranges",
            "authorization",
            "last-modified",
            "if-none-match",
            "weft-deadline"
        ],
        14 => names![
            "content-length",
            "accept-charset",
            "sec-fetch-site",
            "sec-fetch-mode",
            "sec-fetch-dest",
            "sec-fetch-user"
        ],
        15 => names![
            "accept-encoding",
            "accept-language",
            "x-forwarded-for",
            "idempotency-key",
            "weft-http1-form"
        ],
        16 => names![
            "content-encoding",
            "x-forwarded-host",
            "x-forwarded-port",
            "x-correlation-id",
            "proxy-connection",
            "sec-ch-ua-mobile"
        ],
        17 => names![
            "transfer-encoding",
            "x-forwarded-proto",
            "x-b3-parentspanid",
            "weft-app-protocol"
        ],
        18 => names!["sec-ch-ua-platform"],
        20 => names!["grpc-accept-encoding"],
        23 => names!["x-forwarded-client-cert"],
        _ => &[],
    }
}

/// A character of a token (RFC 9110 section 5.6.2).
pub(crate) fn is_tchar(byte: u8) -> bool {
    const TABLE: [bool; 256] = alphanumeric_or(b"!#$%&'*+-.^_`|~");
    TABLE[usize::from(byte)]
}

/// Which bytes are letters, digits, or among `marks`.
pub(crate) const fn alphanumeric_or(marks: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < marks.len() {
        table[marks[at] as usize] = true;
        at += 1;
    }
    table
}
