//! Cross-origin requests of browsers (Gateway API, `HTTPCORSFilter`; Fetch Standard, "CORS
//! protocol").

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// Which origins may ask for what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cors {
    /// Origins `SCHEME://HOST[:PORT]`, whose host may begin with `*`; `*` alone is every origin.
    pub allow_origins: Vec<Box<str>>,
    /// Whether cookies and the like may come along.
    pub allow_credentials: bool,
    /// Methods beside GET, HEAD and POST; `*` is every one.
    pub allow_methods: Vec<Box<str>>,
    /// Fields of the request; `*` is every one.
    pub allow_headers: Vec<Box<str>>,
    /// Fields of the response that scripts may see; `*` is every one.
    pub expose_headers: Vec<Box<str>>,
    /// For how many seconds the answer to a preflight may be kept.
    pub max_age: u32,
}

impl Cors {
    /// The fields of the answer to a preflight; `None` where the request is none. An origin that
    /// may not ask gets an answer without such fields, which its browser takes for no. All of them
    /// depend on the origin, and say so to caches.
    pub fn preflight(&self, method: &Method, request: &HeaderMap) -> Option<HeaderMap> {
        let asked = request.get(ACCESS_CONTROL_REQUEST_METHOD)?;
        let origin = request.get(ORIGIN)?;
        if *method != Method::OPTIONS {
            return None;
        }
        let mut headers = HeaderMap::new();
        vary_by_origin(&mut headers);
        if !self.allows(origin) {
            return Some(headers);
        }
        self.allow(origin, &mut headers);
        let methods = self.list(&self.allow_methods, Some(asked));
        insert(&mut headers, ACCESS_CONTROL_ALLOW_METHODS, methods);
        let wanted = request.get(ACCESS_CONTROL_REQUEST_HEADERS);
        let allowed = self.list(&self.allow_headers, wanted);
        insert(&mut headers, ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(self.max_age));
        Some(headers)
    }

    /// Adds to a response what lets its origin's scripts see it. `origin` is the request's. That the
    /// response depends on it is said to requests without one too: a cache that keeps theirs must
    /// not give it to an origin (Fetch Standard, "CORS protocol and HTTP caches").
    pub fn apply(&self, origin: Option<&HeaderValue>, response: &mut HeaderMap) {
        vary_by_origin(response);
        let Some(origin) = origin.filter(|origin| self.allows(origin)) else {
            return;
        };
        self.allow(origin, response);
        let exposed = self.list(&self.expose_headers, None);
        insert(response, ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }

    fn allow(&self, origin: &HeaderValue, headers: &mut HeaderMap) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if self.allow_credentials {
            let yes = HeaderValue::from_static("true");
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        let Ok(origin) = origin.to_str() else {
            return false;
        };
        self.allow_origins
            .iter()
            .any(|allowed| origin_matches(allowed, origin))
    }

    /// A list for a header. With credentials `*` is not understood by browsers: what was asked for
    /// takes its place.
    fn list(&self, values: &[Box<str>], asked: Option<&HeaderValue>) -> Option<HeaderValue> {
        let any = values.iter().any(|value| **value == *"*");
        if any && self.allow_credentials {
            return asked.cloned();
        }
        if any {
            return Some(HeaderValue::from_static("*"));
        }
        if values.is_empty() {
            return None;
        }
        HeaderValue::from_str(&values.join(", ")).ok()
    }
}

/// Adds `Origin` to `Vary`, unless it is there (RFC 9110 section 12.5.5).
fn vary_by_origin(headers: &mut HeaderMap) {
    let fields = headers.get_all(VARY).iter();
    let mut names = fields.filter_map(|field| field.to_str().ok());
    let is_said = |name: &str| name.trim() == "*" || name.trim().eq_ignore_ascii_case("origin");
    if !names.any(|names| names.split(',').any(is_said)) {
        headers.append(VARY, HeaderValue::from_name(ORIGIN));
    }
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    if let Some(value) = value {
        headers.insert(name, value);
    }
}

/// Whether an origin is one that is allowed: the scheme's own port may be left out on either side.
fn origin_matches(allowed: &str, origin: &str) -> bool {
    if allowed == "*" {
        return true;
    }
    let (Some((scheme, allowed)), Some((origin_scheme, origin))) =
        (allowed.split_once("://"), origin.split_once("://"))
    else {
        return false;
    };
    let (host, port) = host_and_port(scheme, allowed);
    let (origin_host, origin_port) = host_and_port(origin_scheme, origin);
    let same_host = match host.strip_prefix('*') {
        Some(end) => origin_host.len() > end.len() && ends_with(origin_host, end),
        None => host.eq_ignore_ascii_case(origin_host),
    };
    scheme.eq_ignore_ascii_case(origin_scheme) && port == origin_port && same_host
}

fn ends_with(text: &str, end: &str) -> bool {
    let tail = text.len().checked_sub(end.len());
    let tail = tail.and_then(|start| text.get(start..));
    tail.is_some_and(|tail| tail.eq_ignore_ascii_case(end))
}

fn host_and_port<'a>(scheme: &str, authority: &'a str) -> (&'a str, Option<u16>) {
    let own = if scheme.eq_ignore_ascii_case("https") {
        443
    } else {
        80
    };
    // An IPv6 address has colons of its own, within brackets.
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()),
        _ => (authority, Some(own)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        let cases = [
            ("*", "http://any.example", true),
            ("https://shop.example", "https://shop.example", true),
            ("https://shop.example", "https://SHOP.example:443", true),
            ("https://shop.example", "http://shop.example", false),
            ("https://shop.example:8443", "https://shop.example", false),
            ("https://*.shop.example", "https://a.b.shop.example", true),
            ("https://*.shop.example", "https://shop.example", false),
            ("https://*.shop.example", "https://notshop.example", false),
            ("http://*", "http://x", true),
            ("http://[::1]:80", "http://[::1]", true),
            ("http://*", "null", false),
        ];
        for (allowed, origin, expected) in cases {
            assert_eq!(
                origin_matches(allowed, origin),
                expected,
                "{allowed} {origin}"
            );
        }
    }

    fn asked(fields: &[(HeaderName, &'static str)]) -> HeaderMap {
        let fields = fields.iter();
        fields
            .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn preflights_are_answered_and_others_are_not_preflights() {
        let mut cors = Cors {
            allow_origins: vec!["https://shop.example".into()],
            allow_methods: vec!["*".into()],
            allow_headers: vec!["x-user".into(), "x-cart".into()],
            max_age: 5,
            ..Cors::default()
        };
        let request = asked(&[
            (ORIGIN, "https://shop.example"),
            (ACCESS_CONTROL_REQUEST_METHOD, "PUT"),
        ]);
        let answer = cors.preflight(&Method::OPTIONS, &request).unwrap();
        assert_eq!(answer[ACCESS_CONTROL_ALLOW_ORIGIN], "https://shop.example");
        assert_eq!(answer[ACCESS_CONTROL_ALLOW_METHODS], "*");
        assert_eq!(answer[ACCESS_CONTROL_ALLOW_HEADERS], "x-user, x-cart");
        assert_eq!(answer[ACCESS_CONTROL_MAX_AGE], "5");
        assert_eq!(cors.preflight(&Method::GET, &request), None);
        cors.allow_credentials = true;
        let answer = cors.preflight(&Method::OPTIONS, &request).unwrap();
        assert_eq!(answer[ACCESS_CONTROL_ALLOW_METHODS], "PUT");
        assert_eq!(answer[ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
        let other = asked(&[
            (ORIGIN, "https://other.example"),
            (ACCESS_CONTROL_REQUEST_METHOD, "PUT"),
        ]);
        let answer = cors.preflight(&Method::OPTIONS, &other);
        assert_eq!(answer, Some(asked(&[(VARY, "origin")])));
        let plain = asked(&[(ORIGIN, "https://shop.example")]);
        assert_eq!(cors.preflight(&Method::OPTIONS, &plain), None);
    }

    #[test]
    fn responses_say_who_may_see_them() {
        let cors = Cors {
            allow_origins: vec!["*".into()],
            expose_headers: vec!["x-total".into()],
            ..Cors::default()
        };
        let mut response = HeaderMap::new();
        cors.apply(None, &mut response);
        assert_eq!(response, asked(&[(VARY, "origin")]));
        let other = Cors::default();
        for (there, expected) in [
            ("Accept, ORIGIN", vec!["Accept, ORIGIN"]),
            ("*", vec!["*"]),
            ("Accept", vec!["Accept", "origin"]),
        ] {
            let mut response = asked(&[(VARY, there)]);
            let origin = HeaderValue::from_static("http://a.example");
            other.apply(Some(&origin), &mut response);
            assert!(response.get_all(VARY).iter().eq(expected.iter()));
            assert_eq!(response.keys_len(), 1);
        }
        let origin = HeaderValue::from_static("http://a.example");
        cors.apply(Some(&origin), &mut response);
        assert_eq!(response[ACCESS_CONTROL_ALLOW_ORIGIN], "http://a.example");
        assert_eq!(response[ACCESS_CONTROL_EXPOSE_HEADERS], "x-total");
        assert!(response.get_all(VARY).iter().eq(["origin"]));
    }
}
