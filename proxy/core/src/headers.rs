//! Header fields that are for one hop only, and those that only the mesh may set.

use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, COOKIE, EXPECT, HOST, HeaderName, HeaderValue, MAX_FORWARDS, PROXY_AUTHORIZATION,
    RANGE, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, Method, Version};

use crate::name::SpiffeId;

/// Fields whose names begin so are the mesh's own: nobody outside may set them.
pub const INTERNAL_PREFIX: &str = "weft-";
/// Why the mesh itself answered ([`crate::reason::Reason`]).
pub const WEFT_REASON: HeaderName = HeaderName::from_static("weft-reason");
/// Between sidecars: what the application is to be spoken to in.
pub const WEFT_APP_PROTOCOL: HeaderName = HeaderName::from_static("weft-app-protocol");
/// The value of [`WEFT_APP_PROTOCOL`] of an upgrade that a client in HTTP/2 asked for.
pub const APP_HTTP2: &str = "h2";
/// The value of [`WEFT_APP_PROTOCOL`] where the client speaks HTTP/1 and its sidecar takes
/// [`WEFT_HTTP1_FORM`] in the answer. Sidecars before that say `http/1.1`, and hand the field on.
pub const APP_HTTP1_FORM: &str = "http/1.1+form";
/// Between sidecars: `absolute` where the client's target was a whole URI, as a forward proxy gets it
/// (RFC 9112 section 3.2.2). HTTP/2 tells no form of targets.
pub const WEFT_TARGET_FORM: HeaderName = HeaderName::from_static("weft-target-form");
/// The value of [`WEFT_TARGET_FORM`].
pub const ABSOLUTE: &str = "absolute";
/// Between sidecars, and within one: what HTTP/2 cannot say of a head in HTTP/1.1
/// ([`crate::http1_form`]). In a head that is here it is the word of the parser that read it, or of
/// another sidecar: those of all others are dropped as they are read.
pub const WEFT_HTTP1_FORM: HeaderName = HeaderName::from_static("weft-http1-form");
/// Between sidecars: milliseconds that are left for the request (see [`crate::timeout`]).
pub const WEFT_DEADLINE: HeaderName = HeaderName::from_static("weft-deadline");
/// Between sidecars: a health check, `request` for the application or `connection` for its sidecar.
pub const WEFT_CHECK: HeaderName = HeaderName::from_static("weft-check");
/// Between sidecars: a number that a request which expects 100 has, so that another stream can ask
/// when its body may be sent: also an application that says no 100 is sent it after a while.
pub const WEFT_EXPECT: HeaderName = HeaderName::from_static("weft-expect");
/// Between sidecars: asks for the moment at which the body of the request with this number in
/// [`WEFT_EXPECT`] may be sent. The answer is that moment.
pub const WEFT_CONTINUE: HeaderName = HeaderName::from_static("weft-continue");
/// Who called, as the server's sidecar verified it.
pub const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// The value of a field that few heads have; of several it is the first. Most heads have few names: to
/// compare them costs less than to look one up that is not there.
pub fn rare<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    is_any_of(headers, [name])
        .then(|| headers.get(name))
        .flatten()
}

/// Whether there is a field with one of these names.
pub fn is_any_of<const COUNT: usize>(headers: &HeaderMap, names: [&HeaderName; COUNT]) -> bool {
    let names = names.map(HeaderName::as_str);
    headers.keys().any(|name| names.contains(&name.as_str()))
}

/// Removes what is for one hop only (RFC 9110 section 7.6.1): the fields that `Connection` names,
/// and those known to be so. `TE: trailers` stays, since both our hops carry trailers, and so does
/// `Trailer`. With `keep_upgrade`, `Connection: upgrade` and `Upgrade` stay for a connection of
/// their own. Where there is nothing to remove, nothing is allocated or moved.
pub fn remove_hop_by_hop(headers: &mut HeaderMap, keep_upgrade: bool) {
    // One pass over the names costs less than looking up each of these.
    let found = headers.keys().fold(0, |found, name| found | hop_bit(name));
    if found == 0 {
        return;
    }
    if found & CONNECTION_BIT != 0 {
        remove_nominated(headers);
        headers.remove(CONNECTION);
    }
    if keep_upgrade && reduce_upgrade(headers) {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else if found & UPGRADE_BIT != 0 {
        headers.remove(UPGRADE);
    }
    if found & OTHERS_BIT != 0 {
        headers.remove(HTTP2_SETTINGS);
        headers.remove(KEEP_ALIVE);
        headers.remove(PROXY_CONNECTION);
        headers.remove(TRANSFER_ENCODING);
    }
    if found & TE_BIT != 0 {
        reduce_te(headers);
    }
}

/// Bits of [`hop_bit`].
const CONNECTION_BIT: u8 = 1;
const UPGRADE_BIT: u8 = 2;
const TE_BIT: u8 = 4;
const OTHERS_BIT: u8 = 8;

/// What a field is that is for one hop, or has something in it that is; 0 for all others.
fn hop_bit(name: &HeaderName) -> u8 {
    match name.as_str() {
        "connection" => CONNECTION_BIT,
        "upgrade" => UPGRADE_BIT,
        "te" => TE_BIT,
        "http2-settings" | "keep-alive" | "proxy-connection" | "transfer-encoding" => OTHERS_BIT,
        _ => 0,
    }
}

/// Whether a field is for one hop, or has something in it that is.
pub(crate) fn is_hop_by_hop(name: &HeaderName) -> bool {
    hop_bit(name) != 0
}

/// Leaves nothing of `Upgrade` that is HTTP again ([`is_mere_offer`]): its requests would be relayed as
/// bytes that nobody reads. Whether anything is left.
fn reduce_upgrade(headers: &mut HeaderMap) -> bool {
    let asked = || headers.get_all(UPGRADE).iter();
    if !asked().any(|value| tokens(value.as_bytes()).any(is_mere_offer)) {
        return headers.contains_key(UPGRADE);
    }
    let kept: Vec<&[u8]> = asked()
        .flat_map(|value| tokens(value.as_bytes()).filter(|token| !is_mere_offer(token)))
        .collect();
    let kept = HeaderValue::from_bytes(&kept.join(&b", "[..]));
    headers.remove(UPGRADE);
    match kept {
        Ok(kept) if !kept.is_empty() => {
            headers.insert(UPGRADE, kept);
            true
        }
        Ok(_) | Err(_) => false,
    }
}

/// Whether a protocol of an `Upgrade` field is HTTP again, in another version (`h2c` with its drafts,
/// `HTTP/2.0`) or under TLS (`TLS/1.2`, RFC 2817, which Apache HttpClient 5.4 offers with every
/// request): a server is free to ignore it (RFC 9110 section 7.8), and no hop of ours takes it up.
pub(crate) fn is_mere_offer(protocol: &[u8]) -> bool {
    let begins = |word: &[u8]| {
        let start = protocol.get(..word.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(word))
    };
    let tls = begins(b"tls") && protocol.get(3).is_none_or(|byte| *byte == b'/');
    tls || begins(b"h2") || begins(b"h3") || begins(b"http")
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

/// Removes the fields that `Connection` names.
fn remove_nominated(headers: &mut HeaderMap) {
    if nominates_nothing(headers) {
        return;
    }
    let mut nominated: HeaderMap<()> = HeaderMap::default();
    for value in headers.get_all(CONNECTION) {
        for token in tokens(value.as_bytes()) {
            if let Ok(name) = HeaderName::from_bytes(token)
                && headers.contains_key(&name)
                && !spared(&name)
            {
                nominated.insert(name, ());
            }
        }
    }
    if !nominated.is_empty() {
        retain(headers, |name| !nominated.contains_key(name));
    }
}

/// Whether `Connection` has one option, as nearly always, and no field is called so. To compare it with
/// the few names that there are costs less than to look it up.
fn nominates_nothing(headers: &HeaderMap) -> bool {
    let connection = headers.iter().filter(|(name, _)| *name == CONNECTION);
    let mut options = connection.flat_map(|(_, value)| tokens(value.as_bytes()));
    match (options.next(), options.next()) {
        (None, _) => true,
        (Some(only), None) => {
            let is_only = |name: &HeaderName| only.eq_ignore_ascii_case(name.as_str().as_bytes());
            !headers.keys().any(is_only)
        }
        (Some(_), Some(_)) => false,
    }
}

/// Removes a field and leaves the others in their order, which [`HeaderMap::remove`] does not.
pub(crate) fn remove_in_order(headers: &mut HeaderMap, name: &HeaderName) {
    if headers.contains_key(name) {
        retain(headers, |kept| kept != name);
    }
}

/// Keeps some of the fields, in their order.
fn retain(headers: &mut HeaderMap, keep: impl Fn(&HeaderName) -> bool) {
    let mut kept = HeaderMap::with_capacity(headers.keys_len());
    let mut current = None;
    for (name, value) in std::mem::take(headers) {
        // Further values of a name come without it.
        if let Some(name) = name {
            current = keep(&name).then_some(name);
        }
        if let Some(name) = &current {
            kept.append(name.clone(), value);
        }
    }
    *headers = kept;
}

/// Fields that removal does not follow nomination for: those that have rules of their own, one that
/// this sidecar has noted, and two that are for every recipient (RFC 9110 section 7.6.1 forbids to
/// nominate such), without which the request would be a different one.
fn spared(name: &HeaderName) -> bool {
    [
        TE,
        UPGRADE,
        CONNECTION,
        HOST,
        CONTENT_LENGTH,
        WEFT_HTTP1_FORM,
    ]
    .contains(name)
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
        COOKIE,
        EXPECT,
        HOST,
        KEEP_ALIVE,
        MAX_FORWARDS,
        PROXY_AUTHORIZATION,
        PROXY_CONNECTION,
        RANGE,
        SET_COOKIE,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    !forbidden.contains(name) && !is_mesh_field(name.as_str())
}

/// Removes from trailers what may not be one, in both directions and in every version of HTTP.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    if trailers.keys().all(may_be_trailer) {
        return;
    }
    let forbidden = |name: &&HeaderName| !may_be_trailer(name);
    let names: Vec<HeaderName> = trailers.keys().filter(forbidden).cloned().collect();
    for name in names {
        trailers.remove(name);
    }
}

/// Whether only the mesh may set a field: [`X_FORWARDED_CLIENT_CERT`] and what begins with
/// [`INTERNAL_PREFIX`], and every other name that a server folds into one of these. CGI, WSGI and
/// what follows them read any byte but letters and digits as `_` (RFC 3875 section 4.1.18).
pub fn is_mesh_field(name: &str) -> bool {
    let folds_into = |name: &[u8], field: &str| {
        let same = |(byte, expected): (&u8, u8)| match expected {
            b'-' => !byte.is_ascii_alphanumeric(),
            letter => byte.to_ascii_lowercase() == letter,
        };
        name.len() == field.len() && name.iter().zip(field.bytes()).all(same)
    };
    let name = name.as_bytes();
    // Nearly every other name begins with another letter.
    if !matches!(name.first(), Some(b'w' | b'W' | b'x' | b'X')) {
        return false;
    }
    let internal = name.get(..INTERNAL_PREFIX.len());
    internal.is_some_and(|prefix| folds_into(prefix, INTERNAL_PREFIX))
        || folds_into(name, X_FORWARDED_CLIENT_CERT.as_str())
}

/// Whether a request asks to turn the connection into something else: `CONNECT`, or an
/// [`upgrade_protocol`] in HTTP/1.1. In HTTP/1.0 `Upgrade` is ignored (RFC 9110 section 7.8), and
/// HTTP/2 has none.
pub fn is_upgrade(version: Version, method: &Method, headers: &HeaderMap) -> bool {
    let upgrades = version == Version::HTTP_11 && upgrade_protocol(headers).is_some();
    *method == Method::CONNECT || upgrades
}

/// What a message wants to go on with, `websocket` for instance (RFC 9110 section 7.8).
///
/// An offer that ordinary clients make on ordinary requests is not one, and the server is not asked
/// ([`is_mere_offer`]).
pub fn upgrade_protocol(headers: &HeaderMap) -> Option<&HeaderValue> {
    if !headers.keys().any(|name| *name == CONNECTION) {
        return None;
    }
    let mut connection = headers.get_all(CONNECTION).iter();
    if !connection.any(|value| contains_token(value.as_bytes(), b"upgrade")) {
        return None;
    }
    let taken_up = |value: &&HeaderValue| !tokens(value.as_bytes()).all(is_mere_offer);
    headers.get_all(UPGRADE).iter().find(taken_up)
}

/// The protocols that a message names to go on with, without those that are mere offers
/// ([`is_mere_offer`]).
pub(crate) fn upgrade_protocols(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(UPGRADE).iter();
    values
        .flat_map(|value| tokens(value.as_bytes()))
        .filter(|protocol| !is_mere_offer(protocol))
}

/// Whether a request is a gRPC call, by its content type.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Removes what only the mesh may say ([`is_mesh_field`]) from a head that is not the mesh's own,
/// and what may not be a trailer from the fields that it announces. [`WEFT_HTTP1_FORM`] stays: it was
/// noted where the head was read, here or by a sidecar, and says nothing but how it is written.
pub fn remove_untrusted(headers: &mut HeaderMap) {
    let untrusted = |name: &&HeaderName| is_mesh_field(name.as_str()) && **name != WEFT_HTTP1_FORM;
    let (mut is_announced, mut is_untrusted) = (false, false);
    for name in headers.keys() {
        is_announced |= *name == TRAILER;
        is_untrusted |= untrusted(&name);
    }
    if is_announced {
        clean_announcement(headers);
    }
    if !is_untrusted {
        return;
    }
    let names: Vec<HeaderName> = headers.keys().filter(untrusted).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Leaves nothing in `Trailer` but what may be one.
fn clean_announcement(headers: &mut HeaderMap) {
    let may = |token: &&[u8]| HeaderName::from_bytes(token).is_ok_and(|name| may_be_trailer(&name));
    let announced = || headers.get_all(TRAILER).iter();
    if announced().all(|value| tokens(value.as_bytes()).all(|token| may(&token))) {
        return;
    }
    let kept: Vec<&[u8]> = announced()
        .flat_map(|value| tokens(value.as_bytes()).filter(may))
        .collect();
    let kept = HeaderValue::from_bytes(&kept.join(&b", "[..]));
    match kept {
        Ok(kept) if !kept.is_empty() => {
            headers.insert(TRAILER, kept);
        }
        Ok(_) | Err(_) => remove_in_order(headers, &TRAILER),
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
    fn rare_fields_are_found_by_their_names() {
        let found = headers(&[("a", "1"), ("weft-check", "x"), ("weft-check", "y")]);
        assert_eq!(rare(&found, &WEFT_CHECK).unwrap(), "x");
        assert_eq!(rare(&found, &WEFT_REASON), None);
        assert!(is_any_of(&found, [&WEFT_REASON, &WEFT_CHECK]));
        assert!(!is_any_of(&found, [&WEFT_REASON, &TE]));
        assert!(!is_any_of(&HeaderMap::new(), [&WEFT_CHECK]));
    }

    #[test]
    fn hop_by_hop() {
        let cases: [(&[_], &[_]); 10] = [
            (&[("accept", "*/*")], &[("accept", "*/*")]),
            (&[("connection", "keep-alive"), ("a", "b")], &[("a", "b")]),
            (&[("connection", "Close"), ("close", "1")], &[]),
            (&[("connection", " , X ;y"), ("x", "1"), ("x", "2")], &[]),
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
        assert!(is_upgrade(Version::HTTP_11, &Method::GET, &websocket));
        for version in [Version::HTTP_10, Version::HTTP_11] {
            assert!(is_upgrade(version, &Method::CONNECT, &HeaderMap::new()));
        }
        for version in [Version::HTTP_10, Version::HTTP_2] {
            assert!(!is_upgrade(version, &Method::GET, &websocket));
        }
        assert_eq!(upgrade_protocol(&websocket).unwrap(), "websocket");
        let both = headers(&[
            ("connection", "Upgrade, HTTP2-Settings"),
            ("upgrade", "h2c"),
            ("upgrade", "H2C-14, websocket, HTTP/2.0"),
            ("http2-settings", "x"),
        ]);
        assert!(is_upgrade(Version::HTTP_11, &Method::GET, &both));
        let mut kept = both;
        remove_hop_by_hop(&mut kept, true);
        let expected = [("connection", "upgrade"), ("upgrade", "websocket")];
        assert_eq!(kept, headers(&expected));
        let second = headers(&[
            ("upgrade", "TLS/1.2"),
            ("upgrade", "tlsx/1, websocket"),
            ("connection", "Upgrade"),
        ]);
        assert_eq!(upgrade_protocol(&second).unwrap(), "tlsx/1, websocket");
        for fields in [
            [("upgrade", "websocket"), ("connection", "keep-alive")],
            [
                ("upgrade", "h2c"),
                ("connection", "Upgrade, HTTP2-Settings"),
            ],
            [("upgrade", "TLS/1.2"), ("connection", "Upgrade")],
            [("upgrade", "tls/1.3, H2C"), ("connection", "Upgrade")],
            [("accept", "*/*"), ("connection", "upgrade")],
        ] {
            let asks = is_upgrade(Version::HTTP_11, &Method::GET, &headers(&fields));
            assert!(!asks, "{fields:?}");
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

    #[test]
    fn fields_of_the_mesh_by_every_name() {
        for name in [
            "x-forwarded-client-cert",
            "X-Forwarded-Client-Cert",
            "x_forwarded_client_cert",
            "x.forwarded-client_cert",
            "x~forwarded!client|cert",
            "weft-reason",
            "WEFT_CHECK",
            "weft.anything",
        ] {
            assert!(is_mesh_field(name), "{name}");
            let name: HeaderName = name.parse().unwrap();
            assert!(!may_be_trailer(&name), "{name}");
            let mut outside = HeaderMap::new();
            outside.insert(name.clone(), HeaderValue::from_static("x"));
            let mut trailers = outside.clone();
            remove_untrusted(&mut outside);
            clean_trailers(&mut trailers);
            assert!(outside.is_empty() && trailers.is_empty(), "{name}");
        }
        for name in [
            "x-forwarded-client-certs",
            "xx-forwarded-client-cert",
            "x-forwarded-for",
            "forwarded",
            "weft",
            "wefta-x",
            "we-ft-x",
        ] {
            assert!(!is_mesh_field(name), "{name}");
        }
    }

    #[test]
    fn announced_trailers() {
        for (announced, expected) in [
            (&["x-sum, grpc-status"][..], &["x-sum, grpc-status"][..]),
            (&["x-forwarded-client-cert"], &[]),
            (&["X_Forwarded_Client_Cert, a", "host,b"], &["a, b"]),
            (&["a", "b"], &["a", "b"]),
        ] {
            let of = |values: &[&'static str]| {
                let mut headers = HeaderMap::new();
                for value in values {
                    headers.append(TRAILER, HeaderValue::from_static(value));
                }
                headers
            };
            let mut found = of(announced);
            remove_untrusted(&mut found);
            assert_eq!(found, of(expected));
        }
        let mut trailers = headers(&[("grpc-status", "0"), ("authorization", "x"), ("a", "b")]);
        clean_trailers(&mut trailers);
        assert_eq!(trailers, headers(&[("grpc-status", "0"), ("a", "b")]));
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
