//! Interim responses (1xx, RFC 9110 section 15.2) on their way to the caller, ahead of the final one.
//!
//! Each hop hands them on as they come. Sidecars before this wrote them into the fields of the final
//! response; what such a one says is still understood.

use http::header::{CONTENT_LENGTH, HeaderName, TRAILER};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::headers::{is_any_of, remove_hop_by_hop, remove_untrusted};

/// From an older sidecar: one line of an interim response, a status (`103`) or a field (`link: …`) of
/// the status before it.
pub const WEFT_INTERIM: HeaderName = HeaderName::from_static("weft-interim");
/// Interim responses that are passed on for one request; later ones are dropped.
pub const INTERIM_MAX: usize = 8;
/// Bytes of all their fields; a response that would exceed them is dropped.
pub const INTERIM_MAX_BYTES: usize = 8 * 1024;

/// The head of an interim response, without what is for one hop only and what only the mesh may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interim {
    status: StatusCode,
    headers: HeaderMap,
}

impl Interim {
    /// One as it was received; its status is 1xx, but not 101.
    pub fn received(status: StatusCode, mut headers: HeaderMap) -> Self {
        remove_hop_by_hop(&mut headers, false);
        remove_untrusted(&mut headers);
        // An interim response frames nothing.
        headers.remove(CONTENT_LENGTH);
        headers.remove(TRAILER);
        if status == StatusCode::CONTINUE {
            // It is said by each hop in its own words.
            headers.clear();
        }
        Self { status, headers }
    }

    /// 1xx, but not 101.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Its fields.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The head in parts.
    pub fn into_parts(self) -> (StatusCode, HeaderMap) {
        (self.status, self.headers)
    }

    fn bytes(&self) -> usize {
        let fields = self.headers.iter();
        fields
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum()
    }
}

/// The interim responses to one request that have come and have not gone on, within [`INTERIM_MAX`]
/// and [`INTERIM_MAX_BYTES`] for all that ever come.
///
/// Nothing is allocated before the first one.
#[derive(Debug, Default)]
pub struct Interims(Option<Box<Received>>);

#[derive(Debug, Default)]
struct Received {
    waiting: Vec<Interim>,
    /// Of all, also of those that have gone on.
    heads: usize,
    bytes: usize,
}

impl Interims {
    /// Adds one; false where it is beyond a limit, and dropped.
    pub fn push(&mut self, interim: Interim) -> bool {
        let received = self.0.get_or_insert_default();
        let bytes = received.bytes + interim.bytes();
        if received.heads == INTERIM_MAX || bytes > INTERIM_MAX_BYTES {
            return false;
        }
        received.heads += 1;
        received.bytes = bytes;
        received.waiting.push(interim);
        true
    }

    /// Takes those that wait, in their order. Their number and size still count.
    pub fn take(&mut self) -> Vec<Interim> {
        match &mut self.0 {
            Some(received) => std::mem::take(&mut received.waiting),
            None => Vec::new(),
        }
    }
}

/// Takes the interim responses out of the fields of an older sidecar's final response, within
/// [`INTERIM_MAX`] and [`INTERIM_MAX_BYTES`].
pub fn take_carried(headers: &mut HeaderMap) -> Vec<Interim> {
    if !is_any_of(headers, [&WEFT_INTERIM]) {
        return Vec::new();
    }
    let mut found = Interims::default();
    let mut current = None;
    let mut end = |current: Option<(StatusCode, HeaderMap)>| {
        if let Some((status, headers)) = current {
            found.push(Interim::received(status, headers));
        }
    };
    for line in headers.get_all(WEFT_INTERIM) {
        if let Some(status) = status(line) {
            end(current.replace((status, HeaderMap::new())));
        } else if let (Some((name, value)), Some((_, headers))) = (field(line), &mut current) {
            headers.append(name, value);
        }
    }
    end(current);
    headers.remove(WEFT_INTERIM);
    found.take()
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

    fn hints(with: &[(&'static str, &str)]) -> Interim {
        Interim::received(StatusCode::EARLY_HINTS, fields(with))
    }

    #[test]
    fn they_are_taken_once_in_their_order() {
        let mut interims = Interims::default();
        assert!(interims.take().is_empty());
        let first = Interim::received(StatusCode::CONTINUE, fields(&[("x-a", "1")]));
        assert!(first.headers().is_empty());
        let second = hints(&[("link", "</a>")]);
        assert!(interims.push(first.clone()));
        assert!(interims.push(second.clone()));
        assert_eq!(interims.take(), [first, second.clone()]);
        assert!(interims.take().is_empty());
        assert!(interims.push(second.clone()));
        assert_eq!(interims.take(), [second]);
    }

    #[test]
    fn they_carry_nothing_of_their_hop_and_the_mesh() {
        let received = hints(&[
            ("connection", "x-own"),
            ("x-own", "1"),
            ("keep-alive", "timeout=5"),
            ("weft-reason", "timeout"),
            ("weft_reason", "timeout"),
            ("weft-interim", "100"),
            ("x-forwarded-client-cert", "URI=spiffe://a/b"),
            ("content-length", "3"),
            ("transfer-encoding", "chunked"),
            ("trailer", "x-sum"),
            ("link", "</a>"),
        ]);
        assert_eq!(received.headers(), &fields(&[("link", "</a>")]));
    }

    /// Also where each is taken before the next one comes.
    #[test]
    fn they_are_bounded() {
        for takes in [false, true] {
            let mut many = Interims::default();
            let mut large = Interims::default();
            let (mut kept, mut kept_large) = (0, 0);
            let field = "x".repeat(INTERIM_MAX_BYTES / 2);
            for _ in 0..50 {
                kept += usize::from(many.push(hints(&[])));
                kept_large += usize::from(large.push(hints(&[("a", &field)])));
                if takes {
                    many.take();
                    large.take();
                }
            }
            assert_eq!((kept, kept_large), (INTERIM_MAX, 1));
            // A smaller one still has room.
            assert!(large.push(hints(&[("link", "</a>")])));
        }
    }

    #[test]
    fn those_of_older_sidecars_are_read() {
        let mut headers = fields(&[
            ("etag", "a"),
            ("weft-interim", "x:before"),
            ("weft-interim", "100"),
            ("weft-interim", "103"),
            ("weft-interim", "link:</a>; rel=preload"),
            ("weft-interim", "link:</b>"),
            ("weft-interim", "x-empty:"),
            ("weft-interim", "weft-reason:timeout"),
            ("weft-interim", "101"),
            ("weft-interim", "200"),
        ]);
        let expected = [
            Interim::received(StatusCode::CONTINUE, HeaderMap::new()),
            hints(&[
                ("link", "</a>; rel=preload"),
                ("link", "</b>"),
                ("x-empty", ""),
            ]),
        ];
        assert_eq!(take_carried(&mut headers), expected);
        assert_eq!(headers, fields(&[("etag", "a")]));
        assert!(take_carried(&mut headers).is_empty());
    }

    proptest! {
        /// Whatever a peer sends, what is taken from it is interim, bounded, and the field is gone.
        #[test]
        fn any_lines(lines in prop::collection::vec("[0-9a-z:; -]{0,12}", 0..40)) {
            let mut headers = HeaderMap::new();
            for line in &lines {
                headers.append(WEFT_INTERIM, line.parse().unwrap());
            }
            let found = take_carried(&mut headers);
            prop_assert!(headers.is_empty());
            prop_assert!(found.len() <= INTERIM_MAX);
            for interim in found {
                prop_assert!(interim.status().is_informational());
                prop_assert!(!interim.headers().contains_key(WEFT_INTERIM));
            }
        }
    }
}
