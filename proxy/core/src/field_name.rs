//! Names of fields that are found quickly, the characters of tokens, and maps of fields.

use http::header::MaxSizeReached;
use http::{HeaderMap, HeaderName};

use crate::headers::INTERNAL_PREFIX;

/// The names that are frequent in a mesh, or have rules of their own.
macro_rules! known {
    ($($name:literal),* $(,)?) => {
        const NAMES: [&[u8]; [$($name),*].len()] = [$($name.as_bytes()),*];
        static KNOWN: [Known; NAMES.len()] = [$(Known {
            name: HeaderName::from_static($name),
            lower_case: $name.as_bytes(),
            title_case: &const { title_case::<{ $name.len() }>($name.as_bytes()) },
            is_ordinary: const { is_ordinary($name.as_bytes()) },
        }),*];
    };
}

/// A name that is frequent in a mesh.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) name: HeaderName,
    lower_case: &'static [u8],
    pub(crate) title_case: &'static [u8],
    /// No rule for heads asks for it: it is not for one hop, says nothing of the message, and everybody may
    /// set it. What is not ordinary is known by its name.
    pub(crate) is_ordinary: bool,
}

/// Whether a known name is an ordinary one.
const fn is_ordinary(name: &[u8]) -> bool {
    const RULED: [&[u8]; 11] = [
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"http2-settings",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"x-forwarded-client-cert",
    ];
    let mut at = 0;
    while at < RULED.len() {
        if begins(name, RULED[at]) && name.len() == RULED[at].len() {
            return false;
        }
        at += 1;
    }
    !begins(name, INTERNAL_PREFIX.as_bytes())
}

const fn begins(name: &[u8], with: &[u8]) -> bool {
    match name.split_at_checked(with.len()) {
        Some((begin, _)) => {
            let mut at = 0;
            while at < with.len() && begin[at] == with[at] {
                at += 1;
            }
            at == with.len()
        }
        None => false,
    }
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
    let known = candidate(name)?;
    let is_title = name == known.title_case;
    let is_lower = !is_title && name == known.lower_case;
    let is_it = is_title || is_lower || name.eq_ignore_ascii_case(known.lower_case);
    is_it.then_some((known, Spelling { is_lower, is_title }))
}

/// The name, in lower case, if it is frequent in a mesh.
pub(crate) fn known_lower_case(name: &[u8]) -> Option<&'static Known> {
    candidate(name).filter(|known| known.lower_case == name)
}

/// The only known name that this one can be.
fn candidate(name: &[u8]) -> Option<&'static Known> {
    const PLACES: [u8; 256] = places(&NAMES, FACTOR);
    let place = place(name, FACTOR)?;
    KNOWN.get(usize::from(PLACES[place]))
}

/// With it no two known names have one place: [`places`] checks that. For another list of names another
/// odd number has to be tried out.
const FACTOR: u32 = 0xd5e2_512b;

/// Where a name is in a table of 256: by its length and three of its bytes, in any case (that of a letter is
/// one bit). `None` for names of less than two bytes.
pub(crate) const fn place(name: &[u8], factor: u32) -> Option<usize> {
    let length = name.len();
    if length < 2 {
        return None;
    }
    let bytes = [
        length as u8,
        name[length / 2] | 0x20,
        name[length - 2] | 0x20,
        name[length - 1] | 0x20,
    ];
    Some((u32::from_le_bytes(bytes).wrapping_mul(factor) >> 24) as usize)
}

/// The table of the numbers of `names`, each in its place; 255 where there is none.
pub(crate) const fn places(names: &[&[u8]], factor: u32) -> [u8; 256] {
    let mut places = [u8::MAX; 256];
    let mut number = 0;
    while number < names.len() {
        let Some(place) = place(names[number], factor) else {
            panic!("a name is too short");
        };
        assert!(places[place] == u8::MAX, "two names have one place");
        places[place] = number as u8;
        number += 1;
    }
    places
}

known![
    "b3",
    "te",
    "via",
    "date",
    "etag",
    "host",
    "vary",
    "accept",
    "cookie",
    "expect",
    "origin",
    "server",
    "baggage",
    "referer",
    "upgrade",
    "location",
    "priority",
    "sec-ch-ua",
    "weft-hops",
    "x-api-key",
    "x-real-ip",
    "connection",
    "keep-alive",
    "set-cookie",
    "tracestate",
    "user-agent",
    "weft-check",
    "grpc-status",
    "traceparent",
    "weft-reason",
    "x-b3-spanid",
    "content-type",
    "grpc-message",
    "grpc-timeout",
    "x-b3-sampled",
    "x-b3-traceid",
    "x-powered-by",
    "x-request-id",
    "accept-ranges",
    "authorization",
    "cache-control",
    "if-none-match",
    "last-modified",
    "weft-deadline",
    "accept-charset",
    "content-length",
    "http2-settings",
    "sec-fetch-dest",
    "sec-fetch-mode",
    "sec-fetch-site",
    "sec-fetch-user",
    "accept-encoding",
    "accept-language",
    "idempotency-key",
    "weft-http1-form",
    "x-forwarded-for",
    "content-encoding",
    "proxy-connection",
    "sec-ch-ua-mobile",
    "weft-target-form",
    "x-correlation-id",
    "x-forwarded-host",
    "x-forwarded-port",
    "transfer-encoding",
    "weft-app-protocol",
    "x-b3-parentspanid",
    "x-forwarded-proto",
    "sec-ch-ua-platform",
    "grpc-accept-encoding",
    "x-forwarded-client-cert",
];

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
    use http::header::{CONTENT_LENGTH, EXPECT, TE};

    use super::*;
    use crate::http1_form::comes_behind;

    #[test]
    fn known_names_are_found_however_they_are_spelled() {
        for known in &KNOWN {
            let text = known.name.as_str();
            assert_eq!(text.as_bytes(), known.lower_case);
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
        }
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
    fn ordinary_names_are_those_that_no_rule_is_for() {
        let ruled =
            |name: &HeaderName| comes_behind(name) || [CONTENT_LENGTH, EXPECT, TE].contains(name);
        for known in &KNOWN {
            assert_eq!(known.is_ordinary, !ruled(&known.name), "{}", known.name);
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
