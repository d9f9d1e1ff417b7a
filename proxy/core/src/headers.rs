//! Header fields that are for one hop only, and those that only the mesh may set.

use http::header::{CONNECTION, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Method};

use crate::name::SpiffeId;

/// Why the mesh itself answered ([`crate::reason::Reason`]).
pub const WEFT_REASON: HeaderName = HeaderName::from_static("weft-reason");
/// Between sidecars: what the application is to be spoken to in.
pub const WEFT_APP_PROTOCOL: HeaderName = HeaderName::from_static("weft-app-protocol");
/// Between sidecars and applications: milliseconds that are left for the request.
pub const WEFT_DEADLINE: HeaderName = HeaderName::from_static("weft-deadline");
/// Who called, as the server's sidecar verified it.
pub const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Removes what is for one hop only (RFC 9110 section 7.6.1): the fields that `Connection` names,
/// and those known to be so. `TE: trailers` stays, since both our hops carry trailers. With
/// `keep_upgrade`, `Connection: upgrade` and `Upgrade` stay for a connection of their own.
pub fn remove_hop_by_hop(headers: &mut HeaderMap, keep_upgrade: bool) {
    if headers.contains_key(CONNECTION) {
        remove_nominated(headers, keep_upgrade);
        headers.remove(CONNECTION);
    }
    let upgrade = headers.remove(UPGRADE);
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(TRANSFER_ENCODING);
    if let Some(te) = headers.remove(TE)
        && contains_token(te.as_bytes(), b"trailers")
    {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if keep_upgrade && let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade);
    }
}

fn remove_nominated(headers: &mut HeaderMap, keep_upgrade: bool) {
    let mut nominated: Vec<HeaderName> = Vec::new();
    for value in headers.get_all(CONNECTION) {
        for token in tokens(value.as_bytes()) {
            let spared = token.eq_ignore_ascii_case(b"close")
                || token.eq_ignore_ascii_case(b"keep-alive")
                || token.eq_ignore_ascii_case(b"te")
                || (keep_upgrade && token.eq_ignore_ascii_case(b"upgrade"));
            if !spared && let Ok(name) = HeaderName::from_bytes(token) {
                nominated.push(name);
            }
        }
    }
    for name in nominated {
        headers.remove(name);
    }
}

/// Whether a request asks to turn the connection into something else.
pub fn is_upgrade(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::CONNECT
        || (headers.contains_key(UPGRADE)
            && headers
                .get_all(CONNECTION)
                .iter()
                .any(|value| contains_token(value.as_bytes(), b"upgrade")))
}

/// Removes what only the mesh may say, from whoever is not the mesh.
pub fn remove_untrusted(headers: &mut HeaderMap) {
    headers.remove(X_FORWARDED_CLIENT_CERT);
    headers.remove(WEFT_APP_PROTOCOL);
    headers.remove(WEFT_REASON);
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
    }

    #[test]
    fn upgrades() {
        let websocket = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
        ]);
        assert!(is_upgrade(&Method::GET, &websocket));
        assert!(is_upgrade(&Method::CONNECT, &HeaderMap::new()));
        assert!(!is_upgrade(&Method::GET, &headers(&[("upgrade", "h2c")])));
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
            ("a", "b"),
        ]);
        remove_untrusted(&mut outside);
        assert_eq!(outside, headers(&[("a", "b")]));
    }
}
