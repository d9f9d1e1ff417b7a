//! Header fields that are for one hop only, and those that only the mesh may set.

use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, HOST, HeaderName, HeaderValue, MAX_FORWARDS, SET_COOKIE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, Method};

use crate::name::SpiffeId;

/// Fields whose names begin so are the mesh's own: nobody outside may set them.
pub const INTERNAL_PREFIX: &str = "weft-";
/// Why the mesh itself answered ([`crate::reason::Reason`]).
pub const WEFT_REASON: HeaderName = HeaderName::from_static("weft-reason");
/// Between sidecars: what the application is to be spoken to in.
pub const WEFT_APP_PROTOCOL: HeaderName = HeaderName::from_static("weft-app-protocol");
/// Between sidecars: milliseconds that are left for the request (see [`crate::timeout`]).
pub const WEFT_DEADLINE: HeaderName = HeaderName::from_static("weft-deadline");
/// Between sidecars: a health check, `request` for the application or `connection` for its sidecar.
pub const WEFT_CHECK: HeaderName = HeaderName::from_static("weft-check");
/// Who called, as the server's sidecar verified it.
pub const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Removes what is for one hop only (RFC 9110 section 7.6.1): the fields that `Connection` names,
/// and those known to be so. `TE: trailers` stays, since both our hops carry trailers, and so does
/// `Trailer`. With `keep_upgrade`, `Connection: upgrade` and `Upgrade` stay for a connection of
/// their own. Where there is nothing to remove, nothing is allocated or moved.
pub fn remove_hop_by_hop(headers: &mut HeaderMap, keep_upgrade: bool) {
    if headers.contains_key(CONNECTION) {
        remove_nominated(headers);
        headers.remove(CONNECTION);
    }
    if keep_upgrade && headers.contains_key(UPGRADE) {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(UPGRADE);
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(TRANSFER_ENCODING);
    if headers.contains_key(TE) {
        reduce_te(headers);
    }
}

/// Leaves nothing of `TE` but `trailers`.
fn reduce_te(headers: &mut HeaderMap) {
    let mut values = headers.get_all(TE).iter();
    let first = values.next();
    if values.next().is_none() && first.is_some_and(|te| te == "trailers") {
        return;
    }
    let mut values = headers.get_all(TE).iter();
    let trailers = values.any(|te| contains_token(te.as_bytes(), b"trailers"));
    headers.remove(TE);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

fn remove_nominated(headers: &mut HeaderMap) {
    let mut nominated: Vec<HeaderName> = Vec::new();
    for value in headers.get_all(CONNECTION) {
        for token in tokens(value.as_bytes()) {
            if let Ok(name) = HeaderName::from_bytes(token)
                && headers.contains_key(&name)
                && !spared(&name)
            {
                nominated.push(name);
            }
        }
    }
    for name in nominated {
        headers.remove(name);
    }
}

/// Fields that removal does not follow nomination for: those that have rules of their own, and two
/// that are for every recipient (RFC 9110 section 7.6.1 forbids to nominate such), without which
/// the request would be a different one.
fn spared(name: &HeaderName) -> bool {
    [TE, UPGRADE, CONNECTION, HOST, CONTENT_LENGTH].contains(name)
}

/// Whether a field may come after the body. Those that frame a message, route it, say who sent it
/// or how to read it may not (RFC 9110 section 6.5.1): a recipient that merged them into the head
/// would see another message than the one that was checked.
pub fn may_be_trailer(name: &HeaderName) -> bool {
    let forbidden = [
        AUTHORIZATION,
        CACHE_CONTROL,
        CONNECTION,
        CONTENT_ENCODING,
        CONTENT_LENGTH,
        CONTENT_RANGE,
        CONTENT_TYPE,
        HOST,
        KEEP_ALIVE,
        MAX_FORWARDS,
        PROXY_CONNECTION,
        SET_COOKIE,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
        X_FORWARDED_CLIENT_CERT,
    ];
    !forbidden.contains(name) && !name.as_str().starts_with(INTERNAL_PREFIX)
}

/// Whether a request asks to turn the connection into something else: `CONNECT`, or an
/// [`upgrade_protocol`].
pub fn is_upgrade(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::CONNECT || upgrade_protocol(headers).is_some()
}

/// What a message wants to go on with, `websocket` for instance (RFC 9110 section 7.8).
///
/// `h2c` is not one: it is obsolete (RFC 9113 section 3.1), ordinary clients offer it on every
/// first request, and a server is free to ignore it.
pub fn upgrade_protocol(headers: &HeaderMap) -> Option<&HeaderValue> {
    let protocol = headers.get(UPGRADE)?;
    let mut connection = headers.get_all(CONNECTION).iter();
    let asked = connection.any(|value| contains_token(value.as_bytes(), b"upgrade"));
    let only_h2c = tokens(protocol.as_bytes()).all(|token| token.eq_ignore_ascii_case(b"h2c"));
    (asked && !only_h2c).then_some(protocol)
}

/// Removes what only the mesh may say, from whoever is not the mesh: `x-forwarded-client-cert` and
/// everything that begins with [`INTERNAL_PREFIX`].
pub fn remove_untrusted(headers: &mut HeaderMap) {
    headers.remove(X_FORWARDED_CLIENT_CERT);
    let internal = |name: &&HeaderName| name.as_str().starts_with(INTERNAL_PREFIX);
    if !headers.keys().any(|name| internal(&name)) {
        return;
    }
    let names: Vec<HeaderName> = headers.keys().filter(internal).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Who called, in the form that Envoy's users know: `By=…;Hash=…;URI=…`.
pub fn forwarded_client_cert(by: &SpiffeId, hash: &str, uri: &SpiffeId) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("By={by};Hash={hash};URI={uri}")).ok()
}

fn contains_token(list: &[u8], token: &[u8]) -> bool {
    tokens(list).any(|found| found.eq_ignore_ascii_case(token))
}

fn tokens(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .map(|token| {
            let end = token.iter().position(|byte| *byte == b';');
            token[..end.unwrap_or(token.len())].trim_ascii()
        })
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    #[track_caller]
    fn check(keep_upgrade: bool, fields: &[(&str, &str)], expected: &[(&str, &str)]) {
        let mut found = headers(fields);
        remove_hop_by_hop(&mut found, keep_upgrade);
        assert_eq!(found, headers(expected));
    }

    #[test]
    fn hop_by_hop() {
        let cases: [(&[_], &[_]); 7] = [
            (&[("accept", "*/*")], &[("accept", "*/*")]),
            (&[("connection", "keep-alive"), ("keep-alive", "5")], &[]),
            (
                &[
                    ("connection", "close, X-Secret"),
                    ("x-secret", "1"),
                    ("a", "b"),
                ],
                &[("a", "b")],
            ),
            (
                &[
                    ("connection", "x"),
                    ("connection", "y"),
                    ("x", "1"),
                    ("y", "2"),
                ],
                &[],
            ),
            (&[("te", "gzip, trailers;q=0.5")], &[("te", "trailers")]),
            (&[("te", "gzip"), ("transfer-encoding", "chunked")], &[]),
            (&[("connection", "upgrade"), ("upgrade", "websocket")], &[]),
        ];
        for (fields, expected) in cases {
            check(false, fields, expected);
        }
        check(
            true,
            &[
                ("connection", "keep-alive, Upgrade, z"),
                ("upgrade", "websocket"),
                ("z", "1"),
            ],
            &[("connection", "upgrade"), ("upgrade", "websocket")],
        );
        check(false, &[("trailer", "x-sum")], &[("trailer", "x-sum")]);
        check(false, &[("te", "trailers")], &[("te", "trailers")]);
        check(
            false,
            &[("te", "gzip"), ("te", "trailers")],
            &[("te", "trailers")],
        );
        check(
            false,
            &[("connection", "te, host, Content-Length"), ("host", "a")],
            &[("host", "a")],
        );
        check(true, &[("connection", "upgrade"), ("keep-alive", "5")], &[]);
    }

    #[test]
    fn upgrades() {
        let websocket = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
        ]);
        assert!(is_upgrade(&Method::GET, &websocket));
        assert!(is_upgrade(&Method::CONNECT, &HeaderMap::new()));
        assert_eq!(upgrade_protocol(&websocket).unwrap(), "websocket");
        for fields in [
            [("upgrade", "websocket"), ("connection", "keep-alive")],
            [
                ("upgrade", "h2c"),
                ("connection", "Upgrade, HTTP2-Settings"),
            ],
            [("accept", "*/*"), ("connection", "upgrade")],
        ] {
            assert!(!is_upgrade(&Method::GET, &headers(&fields)), "{fields:?}");
        }
    }

    #[test]
    fn client_cert() {
        let by: SpiffeId = "spiffe://t/ns/a/sa/b".parse().unwrap();
        let uri: SpiffeId = "spiffe://t/ns/a/sa/c".parse().unwrap();
        assert_eq!(
            forwarded_client_cert(&by, "ab", &uri).unwrap(),
            "By=spiffe://t/ns/a/sa/b;Hash=ab;URI=spiffe://t/ns/a/sa/c"
        );
        let mut outside = headers(&[
            ("x-forwarded-client-cert", "x"),
            ("weft-reason", "y"),
            ("weft-reason", "z"),
            ("Weft-Deadline", "1"),
            ("weft-anything", "1"),
            ("weftless", "1"),
            ("a", "b"),
        ]);
        remove_untrusted(&mut outside);
        assert_eq!(outside, headers(&[("weftless", "1"), ("a", "b")]));
    }

    proptest! {
        /// Nothing of one hop is left, what is left was there, and a second time changes nothing.
        #[test]
        fn hop_by_hop_always(
            fields in proptest::collection::vec(
                ("connection|te|upgrade|keep-alive|transfer-encoding|a|b|c",
                 "(a|b|close|trailers|upgrade|te|,| |;q=1){0,5}"),
                0..8,
            ),
            keep_upgrade: bool,
        ) {
            let fields: Vec<_> = fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let before = headers(&fields);
            let mut after = before.clone();
            remove_hop_by_hop(&mut after, keep_upgrade);
            prop_assert!(!after.contains_key(KEEP_ALIVE) && !after.contains_key(TRANSFER_ENCODING));
            prop_assert!(after.get_all(TE).iter().all(|te| te == "trailers"));
            prop_assert!(keep_upgrade || !after.contains_key(CONNECTION));
            prop_assert_eq!(after.contains_key(CONNECTION), after.contains_key(UPGRADE));
            for name in ["a", "b", "c"] {
                let named = before.get_all(CONNECTION).iter()
                    .any(|value| contains_token(value.as_bytes(), name.as_bytes()));
                prop_assert_eq!(after.contains_key(name), before.contains_key(name) && !named);
            }
            let once = after.clone();
            remove_hop_by_hop(&mut after, keep_upgrade);
            prop_assert_eq!(after, once);
        }
    }
}
