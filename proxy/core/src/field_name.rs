//! Names of fields that are found quickly, the characters of tokens, and maps of fields.

use http::header::MaxSizeReached;
use http::{HeaderMap, HeaderName};

/// A slice of known names in a static of their own, as a match arm's value.
macro_rules! names {
    ($($name:literal),*) => {{
        const COUNT: usize = [$($name),*].len();
        static NAMES: [Known; COUNT] = [$(Known {
            name: HeaderName::from_static($name),
            lower_case: $name.as_bytes(),
            title_case: &const { title_case::<{ $name.len() }>($name.as_bytes()) },
        }),*];
        &NAMES
    }};
}

/// A name that is frequent in a mesh.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) name: HeaderName,
    lower_case: &'static [u8],
    pub(crate) title_case: &'static [u8],
}

/// How a name is spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spelling {
    /// Without upper-case letters: `user-agent`.
    pub(crate) is_lower: bool,
    /// The first letter and each one behind a hyphen is upper case, and no other: `User-Agent`.
    pub(crate) is_title: bool,
}

impl Spelling {
    /// Of any name.
    pub(crate) fn of(name: &[u8]) -> Self {
        let (mut is_lower, mut is_title, mut before) = (true, true, b'-');
        for &byte in name {
            is_lower &= !byte.is_ascii_uppercase();
            is_title &= byte == titled(before, byte.to_ascii_lowercase());
            before = byte;
        }
        Self { is_lower, is_title }
    }
}

/// A byte of a name in lower case as it is in Title-Case behind another one.
pub(crate) const fn titled(before: u8, byte: u8) -> u8 {
    match before {
        b'-' => byte.to_ascii_uppercase(),
        _ => byte,
    }
}

/// A name that is in lower case in Title-Case.
const fn title_case<const LENGTH: usize>(name: &[u8]) -> [u8; LENGTH] {
    let mut title = [0; LENGTH];
    let (mut at, mut before) = (0, b'-');
    while at < LENGTH {
        title[at] = titled(before, name[at]);
        before = name[at];
        at += 1;
    }
    title
}

/// Fields that are added to a head on its way.
const ADDED_FIELDS: usize = 4;

/// A map for so many fields, and as far as that is possible for those that are added on the way: it is
/// not made anew for the first of them.
pub(crate) fn map_for(fields: usize) -> Result<HeaderMap, MaxSizeReached> {
    let roomy = HeaderMap::try_with_capacity(fields.saturating_add(ADDED_FIELDS));
    roomy.or_else(|_| HeaderMap::try_with_capacity(fields))
}

/// The name, in any case, if it is frequent in a mesh, and how it is spelled: [`HeaderName`] would search
/// for it among all that it knows, or allocate it each time.
pub(crate) fn known_name(name: &[u8]) -> Option<(&'static Known, Spelling)> {
    // The case of a letter is one bit. The first and the last byte tell nearly all names of one length apart.
    let wanted = (name.first()? | 0x20, name.last()? | 0x20);
    names_of_length(name.len()).iter().find_map(|known| {
        let lower_case = known.lower_case;
        if (lower_case[0], lower_case[lower_case.len() - 1]) != wanted {
            return None;
        }
        let is_title = name == known.title_case;
        let is_lower = !is_title && name == lower_case;
        let is_it = is_title || is_lower || name.eq_ignore_ascii_case(lower_case);
        is_it.then_some((known, Spelling { is_lower, is_title }))
    })
}

/// The name, in lower case, if it is frequent in a mesh.
pub(crate) fn known_lower_case(name: &[u8]) -> Option<&'static Known> {
    let wanted = (name.first()?, name.last()?);
    names_of_length(name.len()).iter().find(|known| {
        let lower_case = known.lower_case;
        (lower_case.first(), lower_case.last()) == (Some(wanted.0), Some(wanted.1))
            && lower_case == name
    })
}

fn names_of_length(length: usize) -> &'static [Known] {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_found_however_they_are_spelled() {
        let mut count = 0;
        for length in 0..64 {
            for known in names_of_length(length) {
                let text = known.name.as_str();
                assert_eq!((text.len(), text.as_bytes()), (length, known.lower_case));
                let found = known_lower_case(text.as_bytes()).unwrap();
                assert_eq!(found.name, known.name);
                let upper = text.to_ascii_uppercase();
                for spelled in [text.as_bytes(), known.title_case, upper.as_bytes()] {
                    let (found, spelling) = known_name(spelled).unwrap();
                    assert_eq!(found.name, known.name);
                    assert_eq!(
                        spelling,
                        Spelling::of(spelled),
                        "{}",
                        spelled.escape_ascii()
                    );
                }
                count += 1;
            }
        }
        assert!(count > 50);
        // One bit beside a hyphen, and beside a letter.
        for other in [
            &b"host\r"[..],
            b"b\x13",
            b"user\ragent",
            b"hOSt ",
            b"",
            b"-",
        ] {
            assert!(known_name(other).is_none(), "{}", other.escape_ascii());
        }
    }

    #[test]
    fn spellings() {
        for (name, is_lower, is_title) in [
            ("user-agent", true, false),
            ("User-Agent", false, true),
            ("User-agent", false, false),
            ("USER-AGENT", false, false),
            ("ETag", false, false),
            ("x--y", true, false),
            ("X--Y", false, true),
            ("1", true, true),
            ("1-2", true, true),
            ("A-1b", false, true),
            ("", true, true),
        ] {
            let spelling = Spelling::of(name.as_bytes());
            assert_eq!(spelling, Spelling { is_lower, is_title }, "{name}");
        }
    }
}
