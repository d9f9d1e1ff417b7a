//! Properties: what is encoded is decoded, and nothing that is received panics or takes the dynamic
//! table out of step.

use http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::h1::{check_authority, check_target};
use crate::h2::message::{Protocol, encode_request, encode_response, encode_trailers};

/// Names that are standard, that are known, and others.
fn name() -> impl Strategy<Value = String> {
    let known = select(vec![
        "accept",
        "authorization",
        "cookie",
        "content-type",
        "grpc-timeout",
        "traceparent",
        "x-request-id",
    ]);
    prop_oneof![3 => known.prop_map(str::to_owned), 1 => "x-[a-z0-9_.]{0,70}"]
}

/// A value without white space around it, and whether it is never indexed.
fn value() -> impl Strategy<Value = HeaderValue> {
    let inside = prop_oneof![Just(b'\t'), 0x20..0x7f_u8, 0x80..=0xff_u8];
    let bytes = vec(inside, 0..40).prop_map(|bytes| bytes.trim_ascii().to_vec());
    (bytes, prop::bool::weighted(0.2)).prop_map(|(bytes, sensitive)| {
        let mut value = HeaderValue::from_bytes(&bytes).unwrap();
        value.set_sensitive(sensitive);
        value
    })
}

fn headers() -> impl Strategy<Value = HeaderMap> {
    vec((name(), value()), 0..12).prop_map(|fields| {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::try_from(name).unwrap(), value);
        }
        headers
    })
}

#[derive(Debug, Clone)]
struct Sent {
    method: Method,
    uri: Uri,
    protocol: Option<Protocol>,
    headers: HeaderMap,
    length: Option<u64>,
}

fn sent() -> impl Strategy<Value = Sent> {
    let method = prop_oneof![
        Just(Method::GET),
        Just(Method::POST),
        Just(Method::OPTIONS),
        Just(Method::CONNECT),
        "[A-Z!]{1,64}".prop_map(|name| name.parse().unwrap()),
    ];
    let authority = option::of("[a-z0-9.-]{1,60}(:[1-9][0-9]{0,3})?");
    let scheme = select(vec!["http", "https", "coap"]);
    let path = "/[a-zA-Z0-9/._~|^{}%-]{0,40}(\\?[a-z=&%?/]{0,20})?";
    let protocol = option::of(select(vec!["websocket", "connect-udp", "x"]));
    let message = (headers(), option::of(any::<u32>()));
    (method, scheme, authority, path, protocol, message).prop_map(
        |(method, scheme, authority, path, protocol, (headers, length))| {
            let is_connect = method == Method::CONNECT;
            let protocol = protocol.filter(|_| is_connect);
            let protocol = protocol.map(HeaderValue::from_static);
            let uri = match authority {
                _ if is_connect && protocol.is_none() => "web:443".to_owned(),
                Some(authority) => format!("{scheme}://{authority}{path}"),
                None => path,
            };
            Sent {
                uri: uri.parse().unwrap(),
                protocol: protocol.and_then(Protocol::new),
                headers,
                length: length.map(u64::from).filter(|_| !is_connect),
                method,
            }
        },
    )
}

/// Without a table of its own, or with one of this size.
fn new_encoder(limit: Option<u32>) -> Encoder {
    limit.map_or_else(Encoder::plain, Encoder::with_table)
}

fn with_length(headers: &HeaderMap, length: Option<u64>) -> HeaderMap {
    let mut headers = headers.clone();
    headers.extend(length.map(|length| (http::header::CONTENT_LENGTH, HeaderValue::from(length))));
    headers
}

/// Equal with what is sensitive; the encoder makes some values sensitive by itself.
fn check_headers(found: &HeaderMap, sent: &HeaderMap) {
    assert_eq!(found, sent);
    for (name, value) in sent {
        let is_there = |found: &HeaderValue| found == value && found.is_sensitive();
        let found = found.get_all(name).iter().any(is_there);
        assert!(found || !value.is_sensitive(), "{name}");
    }
}

/// Fields that are valid, nearly valid, and anything.
fn any_field() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let names = select(vec![
        ":method",
        ":scheme",
        ":authority",
        ":path",
        ":protocol",
        ":status",
        ":x",
        "host",
        "content-length",
        "cookie",
        "te",
        "connection",
        "Accept",
        "x-a",
        "x-b",
    ]);
    let values = select(vec![
        "GET", "CONNECT", "OPTIONS", "http", "web", "web:80", "/", "*", "/a?b", "200", "101", "7",
        "trailers", "", " a", "u@web", "[::1]",
    ]);
    let bytes = || vec(any::<u8>(), 0..20);
    (
        prop_oneof![9 => names.prop_map(|name| name.as_bytes().to_vec()), 1 => bytes()],
        prop_oneof![9 => values.prop_map(|value| value.as_bytes().to_vec()), 1 => bytes()],
    )
}

/// Pseudo-header fields that are often those of a request.
fn nearly_a_request() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let scheme = prop_oneof![8 => "https?", 1 => "[a-z:+1]{0,3}"];
    let authority = prop_oneof![
        8 => "[a-z0-9.-]{1,4}(:[1-9][0-9]{0,4})?",
        1 => "(u@)?[a-z%\\[\\]:.]{0,4}(:[0-9]{0,2})?",
    ];
    let path = prop_oneof![8 => "/[a-z.%/]{0,4}(\\?[a-z=]{0,3})?", 1 => "[/*]?[a?#<\"\u{e9}]{0,3}"];
    let often = |value| option::weighted(0.95, value);
    let request = (
        select(vec!["GET", "HEAD", "OPTIONS"]),
        often(scheme.boxed()),
        often(path.boxed()),
    );
    let extended = request.clone().prop_flat_map(|(_, scheme, path)| {
        ("[a-z]{0,9}").prop_map(move |protocol| {
            let (scheme, path) = (scheme.clone(), path.clone());
            ("CONNECT", scheme, path, Some(protocol))
        })
    });
    let head = prop_oneof![
        4 => request.prop_map(|(method, scheme, path)| (method, scheme, path, None)),
        2 => extended,
        1 => Just(("CONNECT", None, None, None)),
    ];
    (head, option::weighted(0.8, authority)).prop_map(
        |((method, scheme, path, protocol), authority)| {
            let mut fields = vec![(":method", method.to_owned())];
            fields.extend(scheme.map(|value| (":scheme", value)));
            fields.extend(authority.map(|value| (":authority", value)));
            fields.extend(path.map(|value| (":path", value)));
            fields.extend(protocol.map(|value| (":protocol", value)));
            fields
        },
    )
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(
        limit in option::of(0..4096_u32),
        requests in vec(sent(), 1..6),
        trailers in headers(),
        status in (100..1000_u16).prop_filter("it is refused", |status| *status != 101),
    ) {
        let (mut encoder, mut decoder) = (new_encoder(limit), decoder());
        let (mut scratch, mut out) = (Scratch::default(), BytesMut::new());
        for Sent { method, uri, protocol, headers, length } in requests {
            let headers = with_length(&headers, length);
            out.clear();
            encode_request(&mut encoder, &method, &uri, protocol.as_ref(), &headers, &mut out).unwrap();
            let extended = ExtendedConnect::Announced;
            let found = decode_request(&mut decoder, &out, &mut scratch, LIMITS, extended).unwrap().unwrap();
            prop_assert_eq!(found.parts.method, method);
            prop_assert_eq!(found.parts.uri, uri);
            prop_assert_eq!(found.protocol, protocol);
            prop_assert_eq!(found.content_length, length);
            check_headers(&found.parts.headers, &headers);

            out.clear();
            let status = StatusCode::from_u16(status).unwrap();
            encode_response(&mut encoder, status, &headers, &mut out).unwrap();
            let found = decode_response(&mut decoder, &out, &mut scratch, LIMITS, false).unwrap().unwrap();
            prop_assert_eq!(found.parts.status, status);
            prop_assert_eq!(found.content_length, length);
            check_headers(&found.parts.headers, &headers);
        }
        out.clear();
        encode_trailers(&mut encoder, &trailers, &mut out);
        let message = Message::Response;
        let found = decode_trailers(&mut decoder, &out, &mut scratch, LIMITS, message, true);
        check_headers(&found.unwrap().unwrap(), &trailers);
    }

    /// What is accepted is what HTTP/1.1 allows, and the same once it was sent on.
    #[test]
    fn what_is_accepted_is_sent_on(
        pseudo in nearly_a_request(),
        fields in vec(any_field().prop_filter("it is none", |(name, _)| !name.starts_with(b":")), 0..4),
        never in any::<bool>(),
    ) {
        let (mut encoder, mut out) = (Encoder::plain(), BytesMut::new());
        encoder.begin(&mut out);
        for (name, value) in pseudo {
            encoder.field(&mut out, name.as_bytes(), value.as_bytes());
        }
        for (name, value) in &fields {
            match never {
                true => encoder.never_indexed(&mut out, name, value),
                false => encoder.field(&mut out, name, value),
            }
        }
        let (mut decoder, mut scratch) = (decoder(), Scratch::default());
        let extended = ExtendedConnect::Announced;
        let mut decode = |block: &[u8]| {
            decode_request(&mut decoder, block, &mut scratch, LIMITS, extended).unwrap()
        };
        let Ok(head) = decode(&out) else { return Ok(()) };
        let RequestHead { mut parts, protocol, content_length } = head;
        let (method, uri) = (&parts.method, &parts.uri);
        prop_assert_eq!(check_target(method, uri, protocol.is_some()), Ok(()));
        if let Some(authority) = uri.authority() {
            prop_assert_eq!(check_authority(authority.as_str().as_bytes()), Ok(()));
        }
        out.clear();
        encode_request(&mut encoder, method, uri, protocol.as_ref(), &parts.headers, &mut out).unwrap();
        let again = decode(&out).unwrap();
        if uri.authority().is_some() {
            parts.headers.remove(http::header::HOST);
        }
        prop_assert_eq!(&again.parts.method, method);
        prop_assert_eq!(&again.parts.uri, uri);
        prop_assert_eq!(again.protocol, protocol);
        prop_assert_eq!(again.content_length, content_length);
        check_headers(&again.parts.headers, &parts.headers);
    }

    /// Whatever a list has, the next block is decoded with the same table.
    #[test]
    fn the_table_stays_in_step(
        limit in 100..4096_u32,
        lists in vec(vec(any_field(), 0..10), 1..6),
        list_limit in prop_oneof![Just(LIST_LIMIT), 0..600_usize],
        fields in 0..10_u32,
    ) {
        let mut encoder = Encoder::with_table(limit);
        let (mut decoder, mut whole) = (Decoder::new(4096, list_limit), decoder());
        let mut scratch = Scratch::default();
        let limits = HeadLimits { bytes: 400, fields };
        for (number, list) in lists.iter().enumerate() {
            let mut out = BytesMut::new();
            encoder.begin(&mut out);
            for (name, value) in list {
                encoder.field(&mut out, name, value);
            }
            let (decoder, scratch) = (&mut decoder, &mut scratch);
            let extended = ExtendedConnect::Announced;
            let message = Message::Request;
            let refused = match number % 3 {
                0 => decode_request(decoder, &out, scratch, limits, extended).unwrap().err(),
                1 => decode_response(decoder, &out, scratch, limits, false).unwrap().err(),
                _ => decode_trailers(decoder, &out, scratch, limits, message, true).unwrap().err(),
            };
            prop_assert!(refused.is_none_or(|malformed| !malformed.to_string().is_empty()));
            all_fields(&mut whole, &out).unwrap();
        }
        // Every index of the dynamic table, and the first that is none.
        for index in 62..80_u8 {
            let block = [0x80 | index];
            let (found, expected) = (all_fields(&mut decoder, &block), all_fields(&mut whole, &block));
            prop_assert_eq!(found.is_none(), expected.is_none());
            if expected.is_none() {
                break;
            }
            if list_limit == LIST_LIMIT {
                prop_assert_eq!(found, expected);
            }
        }
    }
}

/// The fields of a block; `None` where it cannot be decoded.
fn all_fields(decoder: &mut Decoder, block: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut fields = Vec::new();
    let list = decoder.decode(block, |field| {
        fields.push((field.name.to_vec(), field.value.to_vec()));
    });
    list.ok().map(|_list| fields)
}
