//! How many sidecars of callers a request has passed, so that one that goes round is refused.
//!
//! The count travels between sidecars in `weft-hops`. An application gets it with a request and may
//! pass it on with what it asks of others, as reverse proxies do with every field they do not know;
//! an application that does not, begins anew. What an application says of it can only hurt itself.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Between sidecars: how many sidecars of callers the request has passed.
pub const WEFT_HOPS: HeaderName = HeaderName::from_static("weft-hops");
/// More than this many is a loop: no honest chain of services is so long.
pub const HOPS_MAX: u32 = 64;

/// How many sidecars of callers a request has passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hops(u32);

impl Hops {
    /// What a request says; none where it says nothing that can be read.
    pub fn read(headers: &HeaderMap) -> Self {
        let value = headers.get(WEFT_HOPS).and_then(|value| value.to_str().ok());
        Self(value.and_then(|text| text.parse().ok()).unwrap_or(0))
    }

    /// One more; `None` where the request goes round.
    pub fn next(self) -> Option<Self> {
        (self.0 < HOPS_MAX).then(|| Self(self.0 + 1))
    }

    /// Says so in a request; nothing where there are none.
    pub fn write(self, headers: &mut HeaderMap) {
        if self.0 > 0 {
            headers.insert(WEFT_HOPS, HeaderValue::from(self.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_passes_so_many_and_no_more() {
        let mut headers = HeaderMap::new();
        let mut passed = 0;
        while let Some(hops) = Hops::read(&headers).next() {
            hops.write(&mut headers);
            passed += 1;
        }
        assert_eq!(passed, HOPS_MAX);
        assert_eq!(headers[WEFT_HOPS], "64");
    }

    #[test]
    fn what_cannot_be_read_is_none() {
        for value in ["", "-1", "x", "99999999999", "1, 2"] {
            let mut headers = HeaderMap::new();
            headers.insert(WEFT_HOPS, HeaderValue::from_static(value));
            assert_eq!(Hops::read(&headers), Hops::default(), "{value:?}");
        }
        let mut headers = HeaderMap::new();
        Hops::default().write(&mut headers);
        assert!(headers.is_empty());
        headers.insert(WEFT_HOPS, HeaderValue::from_static("4294967295"));
        assert_eq!(Hops::read(&headers).next(), None);
    }
}
