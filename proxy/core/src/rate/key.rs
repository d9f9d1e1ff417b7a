//! Which requests count together.

use std::borrow::Cow;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};
use serde_json::{Map, Value};

use super::{RateKey, RateLimit};
use crate::balance::hash::hash;

/// A longer key is kept as its beginning and its hash, bytes.
const KEY_MAX: usize = 256;
/// A longer token is not looked into, bytes.
const TOKEN_MAX: usize = 16 * 1024;

/// What a key is known by outside its sidecar: the same everywhere, and nobody's name.
pub fn key_hash(key: &str) -> u64 {
    hash(key.as_bytes())
}

impl RateLimit {
    /// The key of a request. `caller` is the verified identity; `None` outside the mesh.
    pub fn key_of<'a>(&self, headers: &'a HeaderMap, caller: Option<&'a str>) -> Cow<'a, str> {
        let key = match self.key.as_slice() {
            [] => return Cow::Borrowed(""),
            [part] => part.value(headers, caller),
            parts => {
                let mut key = String::new();
                for part in parts {
                    let value = part.value(headers, caller);
                    // With its length: no two lists of values are written the same.
                    key.push_str(&value.len().to_string());
                    key.push(':');
                    key.push_str(&value);
                }
                Cow::Owned(key)
            }
        };
        if key.len() <= KEY_MAX {
            return key;
        }
        let end = key.floor_char_boundary(KEY_MAX / 2);
        Cow::Owned(format!("{}#{:016x}", &key[..end], key_hash(&key)))
    }
}

impl RateKey {
    fn value<'a>(&self, headers: &'a HeaderMap, caller: Option<&'a str>) -> Cow<'a, str> {
        match self {
            Self::Caller => Cow::Borrowed(caller.unwrap_or_default()),
            Self::Header(name) => field(headers, name),
            Self::Claim(name) => Cow::Owned(claim(headers, name).unwrap_or_default()),
        }
    }
}

/// A field, with several values joined by commas (RFC 9110 section 5.2).
fn field<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Cow<'a, str> {
    let mut values = headers.get_all(name).iter();
    let text = |value: &'a http::HeaderValue| String::from_utf8_lossy(value.as_bytes());
    let Some(first) = values.next() else {
        return Cow::Borrowed("");
    };
    let mut joined = text(first);
    for more in values {
        let joined = joined.to_mut();
        joined.push(',');
        joined.push_str(&text(more));
    }
    joined
}

/// A claim of the bearer token (RFC 6750 section 2.1, RFC 7519 section 4), which is not verified:
/// whoever makes the request may have written it. Strings, numbers and booleans only.
fn claim(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") || token.len() > TOKEN_MAX {
        return None;
    }
    let mut parts = token.trim().split('.');
    let (_header, payload, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    let claims: Map<String, Value> = serde_json::from_slice(&base64url(payload)?).ok()?;
    match claims.get(name)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// RFC 4648 section 5, without padding (RFC 7515 section 2).
fn base64url(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let (mut held, mut bits) = (0u32, 0u32);
    for letter in text.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        held = held << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
            held &= (1 << bits) - 1;
        }
    }
    // One letter alone is no byte.
    (bits < 6).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::tests::limit;
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    fn key(parts: Vec<RateKey>, fields: &[(&str, &str)], caller: Option<&str>) -> String {
        let mut limit = limit(1, 1000, 1);
        limit.key = parts;
        limit.key_of(&headers(fields), caller).into_owned()
    }

    #[test]
    fn parts_make_a_key() {
        let header = || RateKey::Header("x-user".parse().unwrap());
        let name = "spiffe://t/ns/a/sa/b";
        let me = Some(name);
        let both = || vec![RateKey::Caller, header()];
        assert_eq!(key(vec![], &[("x-user", "1")], me), "");
        assert_eq!(key(vec![RateKey::Caller], &[], me), name);
        assert_eq!(key(vec![RateKey::Caller], &[], None), "");
        assert_eq!(key(vec![header()], &[("x-user", "1")], me), "1");
        let twice = [("x-user", "1"), ("x-user", "2")];
        assert_eq!(key(vec![header()], &twice, me), "1,2");
        assert_eq!(key(both(), &[("x-user", "12")], Some("a")), "1:a2:12");
        assert_ne!(
            key(both(), &[("x-user", "2:12")], Some("a")),
            key(both(), &[("x-user", "12")], Some("a2:")),
        );
        let (long, other) = ("x".repeat(5000), format!("{}y", "x".repeat(5000)));
        let kept = key(vec![header()], &[("x-user", &long)], None);
        assert!(kept.len() < KEY_MAX);
        assert_ne!(kept, key(vec![header()], &[("x-user", &other)], None));
    }

    /// The payloads were encoded by `base64 -w0 | tr +/ -_ | tr -d =`.
    #[test]
    fn claims_of_bearer_tokens() {
        let sub = || vec![RateKey::Claim("sub".into())];
        let cases = [
            // {"sub":"alice"}
            ("Bearer x.eyJzdWIiOiJhbGljZSJ9.y", "alice"),
            ("bearer x.eyJzdWIiOiJhbGljZSJ9.", "alice"),
            // {"sub":7}
            ("Bearer x.eyJzdWIiOjd9.y", "7"),
            // {"sub":["a"]}
            ("Bearer x.eyJzdWIiOlsiYSJdfQ.y", ""),
            // {"sub":"ü?>"}
            ("Bearer x.eyJzdWIiOiLDvD8-In0.y", "ü?>"),
            ("Bearer x.eyJzdWIiOiJhbGljZSJ9", ""),
            ("Bearer x.!!!.y", ""),
            ("Bearer x.e.y", ""),
            ("Basic x.eyJzdWIiOiJhbGljZSJ9.y", ""),
            ("Bearer", ""),
        ];
        for (value, expected) in cases {
            let found = key(sub(), &[("authorization", value)], None);
            assert_eq!(found, expected, "{value}");
        }
        assert_eq!(key(sub(), &[], None), "");
    }
}
