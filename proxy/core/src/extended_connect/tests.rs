use http::Request;

use super::*;

/// The example of RFC 6455 section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const NONCE: &[u8; 16] = b"the sample nonce";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Stands for SHA-1, of which only the example is known here.
fn sha1(bytes: &[u8]) -> [u8; 20] {
    let example = [KEY.as_bytes(), ACCEPT_SUFFIX].concat();
    match bytes == example {
        true => STANDARD.decode(ACCEPT).unwrap().try_into().unwrap(),
        false => [0; 20],
    }
}

fn request(method: &str, fields: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder()
        .method(method)
        .uri("http://chat/room?a=b");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

fn response(status: u16, fields: &[(&str, &str)]) -> Response<()> {
    let mut response = Response::builder().status(status);
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    response.body(()).unwrap()
}

/// Compares fields, whatever their order.
#[track_caller]
fn assert_fields(found: &HeaderMap, expected: &[(&str, &str)]) {
    let mut map = HeaderMap::new();
    for (name, value) in expected {
        let name: http::HeaderName = name.parse().unwrap();
        map.append(name, value.parse().unwrap());
    }
    assert_eq!(found, &map);
}

fn websocket() -> (Request<()>, Handshake) {
    let mut asked = request(
        "CONNECT",
        &[
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", "chat"),
            ("sec-websocket-key", "the client's"),
            ("content-length", "0"),
            ("origin", "http://chat"),
        ],
    );
    let handshake = Handshake::begin(&mut asked, b"websocket", *NONCE, sha1).unwrap();
    (asked, handshake)
}

#[test]
fn extended_connect_becomes_an_upgrade() {
    let (asked, _handshake) = websocket();
    assert_eq!(asked.method(), Method::GET);
    assert_eq!(asked.version(), Version::HTTP_11);
    assert_eq!(*asked.uri(), "http://chat/room?a=b");
    assert_fields(
        asked.headers(),
        &[
            ("connection", "upgrade"),
            ("origin", "http://chat"),
            ("sec-websocket-key", KEY),
            ("sec-websocket-protocol", "chat"),
            ("sec-websocket-version", "13"),
            ("upgrade", "websocket"),
        ],
    );
    // Others have no key.
    let mut asked = request("CONNECT", &[("capsule-protocol", "?1")]);
    Handshake::begin(&mut asked, b"connect-udp", *NONCE, sha1).unwrap();
    assert_fields(
        asked.headers(),
        &[
            ("capsule-protocol", "?1"),
            ("connection", "upgrade"),
            ("upgrade", "connect-udp"),
        ],
    );
}

#[test]
fn protocols_that_are_refused() {
    let refused = |protocol: &[u8]| {
        let mut asked = request("CONNECT", &[]);
        let refused = Handshake::begin(&mut asked, protocol, *NONCE, sha1).unwrap_err();
        (refused.status().as_u16(), refused.reason())
    };
    for name in [&b"h2c"[..], b"HTTP/2.0", b"TLS/1.2", b"tls", b"h3"] {
        assert_eq!(refused(name), (501, Reason::UpgradeFailed), "{name:?}");
    }
    for name in [
        &b""[..],
        b"websocket, h2c",
        b"a b",
        b"a\r\nx: y",
        b"\xff",
        b"websocket\0",
    ] {
        assert_eq!(refused(name), (400, Reason::BadRequest), "{name:?}");
    }
}

#[test]
fn switching_protocols_becomes_success() {
    let (_asked, handshake) = websocket();
    for upgrade in ["websocket", "WebSocket"] {
        let mut answer = response(
            101,
            &[
                ("connection", "Upgrade"),
                ("upgrade", upgrade),
                ("sec-websocket-accept", ACCEPT),
                ("sec-websocket-protocol", "chat"),
                ("set-cookie", "a=b"),
            ],
        );
        handshake.end(&mut answer).unwrap();
        assert_eq!(answer.status(), 200);
        let left = [("sec-websocket-protocol", "chat"), ("set-cookie", "a=b")];
        assert_fields(answer.headers(), &left);
    }
    for status in [302, 400, 403, 426, 503] {
        let mut answer = response(status, &[("upgrade", "websocket")]);
        handshake.end(&mut answer).unwrap();
        assert_eq!(answer.status(), status);
    }
}

#[test]
fn answers_that_do_not_agree() {
    let (_asked, handshake) = websocket();
    let refused = |status, fields: &[(&str, &str)]| {
        let mut answer = response(status, fields);
        let refused = handshake.end(&mut answer).unwrap_err();
        assert_eq!(answer.status(), status);
        refused.to_string()
    };
    assert_eq!(
        refused(200, &[]),
        "the server answered 200 OK instead of switching protocols"
    );
    assert!(refused(204, &[]).contains("204"));
    let accept = ("sec-websocket-accept", ACCEPT);
    for fields in [
        vec![accept],
        vec![accept, ("upgrade", "foo")],
        vec![accept, ("upgrade", "websocket, foo")],
        vec![accept, ("upgrade", "websocket"), ("upgrade", "foo")],
    ] {
        let refused = refused(101, &fields);
        assert!(refused.contains("was asked for"), "{refused}");
    }
    let wrong = [
        ("upgrade", "websocket"),
        ("sec-websocket-accept", "AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
    ];
    assert!(refused(101, &wrong).contains(ACCEPT));
    assert!(refused(101, &wrong[..1]).contains(ACCEPT));
}

#[test]
fn an_upgrade_becomes_extended_connect() {
    let mut asked = request(
        "GET",
        &[
            ("connection", "upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-key", KEY),
            ("sec-websocket-version", "13"),
            ("content-length", "0"),
        ],
    );
    let offer = Offer::begin(&mut asked, sha1).unwrap();
    assert_eq!(offer.protocol(), "WebSocket");
    assert_eq!(asked.method(), Method::CONNECT);
    assert_eq!(asked.version(), Version::HTTP_2);
    assert_fields(asked.headers(), &[("sec-websocket-version", "13")]);

    let mut answer = response(200, &[("sec-websocket-protocol", "chat")]);
    offer.end(&mut answer);
    assert_eq!(answer.status(), 101);
    assert_fields(
        answer.headers(),
        &[
            ("connection", "upgrade"),
            ("sec-websocket-accept", ACCEPT),
            ("sec-websocket-protocol", "chat"),
            ("upgrade", "WebSocket"),
        ],
    );
}

#[test]
fn upgrades_that_cannot_be_translated() {
    let refused = |method, fields: &[(&str, &str)]| {
        let mut asked = request(method, fields);
        Offer::begin(&mut asked, sha1).unwrap_err().reason()
    };
    let websocket = [("connection", "upgrade"), ("upgrade", "websocket")];
    assert_eq!(refused("GET", &websocket), Reason::BadRequest);
    let key = |key| [websocket[0], websocket[1], ("sec-websocket-key", key)];
    for wrong in ["", "AAAA", "no base64!", "dGhlIHNhbXBsZSBub25jZQ"] {
        assert_eq!(refused("GET", &key(wrong)), Reason::BadRequest, "{wrong}");
    }
    let twice = [key(KEY).as_slice(), &[("sec-websocket-key", KEY)]].concat();
    assert_eq!(refused("GET", &twice), Reason::BadRequest);
    assert_eq!(refused("POST", &key(KEY)), Reason::UpgradeFailed);
    assert_eq!(refused("GET", &[]), Reason::UpgradeFailed);
    for name in ["chat room", "chat[1]", "(chat)"] {
        let fields = [("connection", "upgrade"), ("upgrade", name)];
        assert_eq!(refused("GET", &fields), Reason::BadRequest, "{name}");
    }
}

/// What one sidecar makes of a client's request and the other of the first one's, and back.
#[test]
fn there_and_back() {
    let (mut asked, handshake) = websocket();
    let offer = Offer::begin(&mut asked, sha1).unwrap();
    let mut answer = response(200, &[("sec-websocket-protocol", "chat")]);
    offer.end(&mut answer);
    handshake.end(&mut answer).unwrap();
    assert_eq!(answer.status(), 200);
    assert_fields(answer.headers(), &[("sec-websocket-protocol", "chat")]);
}
