//! Interim responses (1xx, RFC 9110 section 15.2) on their way between sidecars.
//!
//! HTTP/2 as it is spoken between sidecars carries no interim responses. They travel as fields of the
//! final response, and the caller's sidecar writes them before it.

use http::header::{CONTENT_LENGTH, HeaderName, TRAILER};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::headers::{is_any_of, remove_hop_by_hop, remove_untrusted};

/// Between sidecars: one line of an interim response, a status (`103`) or a field (`link: …`) of the
/// status before it.
pub const WEFT_INTERIM: HeaderName = HeaderName::from_static("weft-interim");
/// Interim responses that are passed on for one request; later ones are dropped.
pub const INTERIM_MAX: usize = 8;
/// Bytes of all their fields; a response that would exceed them is dropped.
pub const INTERIM_MAX_BYTES: usize = 8 * 1024;

/// The head of an interim response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interim {
    /// 1xx, but not 101.
    pub status: StatusCode,
    /// Its fields.
    pub headers: HeaderMap,
}

/// The interim responses that came before a final one, within [`INTERIM_MAX`] and
/// [`INTERIM_MAX_BYTES`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interims {
    all: Vec<Interim>,
    bytes: usize,
}

impl Interims {
    /// Notes one as the application sent it: without what is for its hop only, and what only the
    /// mesh may say.
    pub fn push(&mut self, status: StatusCode, mut headers: HeaderMap) {
        remove_hop_by_hop(&mut headers, false);
        remove_untrusted(&mut headers);
        // An interim response frames nothing.
        headers.remove(CONTENT_LENGTH);
        headers.remove(TRAILER);
        if status == StatusCode::CONTINUE {
            // It is said by each hop in its own words.
            headers.clear();
        }
        let fields = headers.iter();
        let bytes: usize = fields
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum();
        if self.all.len() < INTERIM_MAX && self.bytes + bytes <= INTERIM_MAX_BYTES {
            self.bytes += bytes;
            self.all.push(Interim { status, headers });
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All of them, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Interim> {
        self.all.iter()
    }

    /// Adds them to the fields of the final response, for another sidecar.
    pub fn write(&self, headers: &mut HeaderMap) {
        for interim in &self.all {
            headers.append(WEFT_INTERIM, HeaderValue::from(interim.status.as_u16()));
            for (name, value) in &interim.headers {
                let line = [name.as_str().as_bytes(), b":", value.as_bytes()].concat();
                // A name and a value make a value.
                if let Ok(line) = HeaderValue::from_bytes(&line) {
                    headers.append(WEFT_INTERIM, line);
                }
            }
        }
    }

    /// Takes them out of the fields of another sidecar's response.
    pub fn take(headers: &mut HeaderMap) -> Self {
        let mut found = Self::default();
        if !is_any_of(headers, [&WEFT_INTERIM]) {
            return found;
        }
        let mut current: Option<Interim> = None;
        for line in headers.get_all(WEFT_INTERIM) {
            if let Some(status) = status(line) {
                found.end(current.take());
                let headers = HeaderMap::new();
                current = Some(Interim { status, headers });
            } else if let (Some((name, value)), Some(interim)) = (field(line), &mut current) {
                interim.headers.append(name, value);
            }
        }
        found.end(current);
        headers.remove(WEFT_INTERIM);
        found
    }

    fn end(&mut self, interim: Option<Interim>) {
        if let Some(Interim { status, headers }) = interim {
            self.push(status, headers);
        }
    }
}

fn status(line: &HeaderValue) -> Option<StatusCode> {
    let status = StatusCode::from_bytes(line.as_bytes()).ok()?;
    (status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS).then_some(status)
}

fn field(line: &HeaderValue) -> Option<(HeaderName, HeaderValue)> {
    let line = line.as_bytes();
    let colon = line.iter().position(|byte| *byte == b':')?;
    let name = HeaderName::from_bytes(line.get(..colon)?).ok()?;
    let value = HeaderValue::from_bytes(line.get(colon + 1..)?).ok()?;
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn they_arrive_as_they_were_sent() {
        let mut sent = Interims::default();
        sent.push(StatusCode::CONTINUE, HeaderMap::new());
        let hints = [
            ("link", "</a>; rel=preload"),
            ("link", "</b>"),
            ("x-empty", ""),
        ];
        sent.push(StatusCode::EARLY_HINTS, fields(&hints));
        let mut headers = fields(&[("etag", "a")]);
        sent.write(&mut headers);
        assert_eq!(Interims::take(&mut headers), sent);
        assert_eq!(headers, fields(&[("etag", "a")]));
        assert!(Interims::take(&mut headers).is_empty());
    }

    #[test]
    fn they_carry_nothing_of_their_hop_and_the_mesh() {
        let mut sent = Interims::default();
        let more = [
            ("connection", "x-own"),
            ("x-own", "1"),
            ("weft-reason", "timeout"),
            ("weft-interim", "100"),
            ("content-length", "3"),
            ("link", "</a>"),
        ];
        sent.push(StatusCode::EARLY_HINTS, fields(&more));
        let kept: Vec<_> = sent.iter().map(|interim| interim.headers.clone()).collect();
        assert_eq!(kept, [fields(&[("link", "</a>")])]);
    }

    #[test]
    fn they_are_bounded() {
        let mut many = Interims::default();
        (0..50).for_each(|_| many.push(StatusCode::PROCESSING, HeaderMap::new()));
        assert_eq!(many.iter().count(), INTERIM_MAX);
        let mut large = Interims::default();
        let field = "x".repeat(INTERIM_MAX_BYTES / 2);
        (0..3).for_each(|_| large.push(StatusCode::EARLY_HINTS, fields(&[("a", &field)])));
        assert_eq!(large.iter().count(), 1);
    }

    proptest! {
        /// Whatever a peer sends, what is taken from it is interim, bounded, and the field is gone.
        #[test]
        fn any_lines(lines in prop::collection::vec("[0-9a-z:; -]{0,12}", 0..40)) {
            let mut headers = HeaderMap::new();
            for line in &lines {
                headers.append(WEFT_INTERIM, line.parse().unwrap());
            }
            let found = Interims::take(&mut headers);
            prop_assert!(headers.is_empty());
            prop_assert!(found.iter().count() <= INTERIM_MAX);
            for interim in found.iter() {
                prop_assert!(interim.status.is_informational());
                prop_assert!(!interim.headers.contains_key(WEFT_INTERIM));
            }
        }
    }
}
