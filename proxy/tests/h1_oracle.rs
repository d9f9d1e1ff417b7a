//! The HTTP/1.1 codec of core against hyper's: what ours accepts, hyper accepts too and
//! understands the same way; what only hyper accepts is a list of refusals made on purpose.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a panic is a failed test"
)]

use std::cell::RefCell;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_core::h1::{
    Decoded, Decoder, Defect, Framing, HeadScan, Limits, Malformed, Message, TargetForm,
    parse_request, parse_response,
};

/// Room for a whole generated stream, so that nobody waits for the other side.
const ROOM: usize = 64 * 1024;

/// A message as an application would see it. Fields that only frame it are left out.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    first: String,
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    trailers: Vec<(String, Vec<u8>)>,
}

/// How a connection's stream of messages ended.
#[derive(Debug)]
enum Ending {
    /// Between two messages, or where the sender asked for it.
    Clean,
    Refused(Malformed),
}

fn fields(headers: &HeaderMap, left_out: &[HeaderName]) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<_> = headers
        .iter()
        .filter(|(name, _)| !left_out.contains(name))
        .map(|(name, value)| (name.to_string(), words(value.as_bytes())))
        .collect();
    fields.sort();
    fields
}

/// White space is one space: a folded line may be joined by several.
fn words(value: &[u8]) -> Vec<u8> {
    let words = value.split(u8::is_ascii_whitespace);
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    words.join(&b' ')
}

const FRAMING: [HeaderName; 2] = [
    http::header::CONTENT_LENGTH,
    http::header::TRANSFER_ENCODING,
];
/// An absolute target replaces `Host` in our parser only.
const FRAMING_AND_HOST: [HeaderName; 3] = [
    http::header::CONTENT_LENGTH,
    http::header::TRANSFER_ENCODING,
    http::header::HOST,
];

/// The rest of a message after its head.
fn our_body(
    buffer: &mut BytesMut,
    message: Message,
    framing: Framing,
    seen: &mut Seen,
) -> Result<(), Malformed> {
    let mut decoder = Decoder::new(message, framing, &Limits::default());
    loop {
        match decoder.decode(buffer)? {
            Decoded::NeedMore => return decoder.on_eof(),
            Decoded::Data(data) => seen.body.extend_from_slice(&data),
            Decoded::Trailers(trailers) => seen.trailers = fields(&trailers, &[]),
            Decoded::End => return Ok(()),
        }
    }
}

/// Every complete request of a stream that ends, and how it ended.
fn our_requests(stream: &[u8]) -> (Vec<Seen>, Ending) {
    let mut buffer = BytesMut::from(stream);
    let mut scan = HeadScan::default();
    let mut requests = Vec::new();
    let ending = loop {
        let head = match parse_request(&mut buffer, &mut scan, &Limits::default()) {
            Ok(Some(head)) => head,
            Ok(None) => match scan.on_eof(&buffer, Message::Request) {
                Ok(()) => break Ending::Clean,
                Err(malformed) => break Ending::Refused(malformed),
            },
            Err(malformed) => break Ending::Refused(malformed),
        };
        let left_out: &[HeaderName] = match head.target_form {
            TargetForm::Absolute => &FRAMING_AND_HOST,
            TargetForm::Origin | TargetForm::Authority | TargetForm::Asterisk => &FRAMING,
        };
        let mut seen = Seen {
            first: format!("{} {}", head.parts.method, head.parts.uri),
            fields: fields(&head.parts.headers, left_out),
            body: Vec::new(),
            trailers: Vec::new(),
        };
        if let Err(malformed) = our_body(&mut buffer, Message::Request, head.framing, &mut seen) {
            break Ending::Refused(malformed);
        }
        requests.push(seen);
        if !head.keep_alive {
            break Ending::Clean;
        }
    };
    (requests, ending)
}

/// Every complete request that hyper's server finds in the stream.
async fn hyper_requests(stream: &[u8]) -> Vec<Seen> {
    let requests = Rc::new(RefCell::new(Vec::new()));
    let (mut client, server) = tokio::io::duplex(ROOM);
    client.write_all(stream).await.unwrap();
    client.shutdown().await.unwrap();
    let found = Rc::clone(&requests);
    let service = service_fn(move |request: Request<Incoming>| {
        let found = Rc::clone(&found);
        async move {
            let (parts, body) = request.into_parts();
            let left_out: &[HeaderName] = if parts.uri.scheme().is_some() {
                &FRAMING_AND_HOST
            } else {
                &FRAMING
            };
            let collected = body.collect().await?;
            let trailers = collected.trailers().cloned().unwrap_or_default();
            found.borrow_mut().push(Seen {
                first: format!("{} {}", parts.method, parts.uri),
                fields: fields(&parts.headers, left_out),
                body: collected.to_bytes().to_vec(),
                trailers: fields(&trailers, &[]),
            });
            Ok::<_, hyper::Error>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let serve = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .max_headers(512)
        .serve_connection(TokioIo::new(server), service);
    let drain = async { client.read_to_end(&mut Vec::new()).await };
    // How it ended does not matter: what was complete was pushed.
    let _ = tokio::join!(serve, drain);
    requests.take()
}

/// What ours refuses and hyper forwards, each for the reason that its doc comment or text gives.
fn is_stricter_than_hyper(defect: &Defect) -> bool {
    matches!(
        defect,
        Defect::BareLineFeed
            | Defect::Target { .. }
            | Defect::Host { .. }
            | Defect::HostMissing
            | Defect::HostRepeated
            | Defect::TwoFramings
            | Defect::TransferCoding { .. }
            | Defect::ChunkedNotLast { .. }
            | Defect::TransferEncodingEmpty
            | Defect::ChunkSize { .. }
            | Defect::SpaceBeforeColon { .. }
            | Defect::FoldedLine { .. }
            | Defect::EmptyLines { .. }
            | Defect::ContentLength { .. }
            | Defect::ContentLengthDiffers { .. }
            | Defect::TransferEncodingInHttp10
    )
}

fn check_requests(stream: &[u8], hyper: &[Seen]) -> Result<(), TestCaseError> {
    let (ours, ending) = our_requests(stream);
    let shown = stream.escape_ascii().to_string();
    prop_assert!(
        ours.len() <= hyper.len(),
        "{shown}\nours {ours:?}\nhyper {hyper:?}"
    );
    prop_assert_eq!(&ours[..], &hyper[..ours.len()], "{}", shown);
    match ending {
        Ending::Clean => prop_assert_eq!(ours.len(), hyper.len(), "{}", shown),
        Ending::Refused(malformed) => prop_assert!(
            ours.len() == hyper.len() || is_stricter_than_hyper(&malformed.defect),
            "{shown}\nonly we refuse it: {malformed}"
        ),
    }
    Ok(())
}

/// The final response of a stream that ends, as ours sees it.
fn our_response(stream: &[u8], method: &Method) -> Result<Seen, Malformed> {
    let mut buffer = BytesMut::from(stream);
    let mut scan = HeadScan::default();
    loop {
        let head = parse_response(&mut buffer, &mut scan, method, &Limits::default())?;
        let Some(head) = head else {
            let defect = Defect::HeadCut;
            let message = Message::Response;
            return Err(Malformed { message, defect });
        };
        if head.is_interim() {
            continue;
        }
        let mut seen = Seen {
            first: head.parts.status.as_u16().to_string(),
            fields: fields(&head.parts.headers, &FRAMING),
            body: Vec::new(),
            trailers: Vec::new(),
        };
        our_body(&mut buffer, Message::Response, head.framing, &mut seen)?;
        return Ok(seen);
    }
}

/// The final response of a stream that ends, as hyper's client sees it.
async fn hyper_response(stream: &[u8], method: &Method) -> Result<Seen, hyper::Error> {
    let (client, mut server) = tokio::io::duplex(ROOM);
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .max_headers(512)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(client))
        .await?;
    let exchange = async {
        let request = Request::builder()
            .method(method)
            .uri("/")
            .body(Empty::new());
        let response = sender.send_request(request.unwrap()).await?;
        let (parts, body) = response.into_parts();
        let collected = body.collect().await?;
        let trailers = collected.trailers().cloned().unwrap_or_default();
        Ok(Seen {
            first: parts.status.as_u16().to_string(),
            fields: fields(&parts.headers, &FRAMING),
            body: collected.to_bytes().to_vec(),
            trailers: fields(&trailers, &[]),
        })
    };
    let answer = async {
        // hyper does not look for an answer before it has asked.
        let mut asked = [0; 1];
        server.read_exact(&mut asked).await.unwrap();
        server.write_all(stream).await.unwrap();
        server.shutdown().await.unwrap();
        server.read_to_end(&mut Vec::new()).await
    };
    let (exchange, _, _) = tokio::join!(exchange, connection, answer);
    exchange
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
}

fn body() -> impl Strategy<Value = &'static str> {
    select(vec![
        "\r\n",
        "Content-Length: 5\r\n\r\nhello",
        "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        "Content-Length: 0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\nA;x=y\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTrailer: x\r\n\r\n05 \r\nhello\r\n000\r\n\r\n",
    ])
}

/// Messages with a few edits, which make most of what can be wrong with them.
fn messages(first_lines: Vec<&'static str>, most: usize) -> impl Strategy<Value = Vec<u8>> {
    let line = select(vec![
        "X: y\r\n",
        "Cookie: a=b\r\n",
        "X:\r\n",
        "X:  \t a b \t\r\n",
        "X: a\r\n b\r\n",
        "X : a\r\n",
        "Connection: close\r\n",
        "Connection: keep-alive\r\n",
        "X: \u{e9}\r\n",
        "Content-Length: 3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "X: y\n",
        "Transfer-Encoding: gzip\r\n",
        "Accept: */*\r\n",
    ]);
    let lines = proptest::collection::vec(line, 0..4);
    let message = (select(first_lines), lines, body())
        .prop_map(|(first, lines, body)| format!("{first}{}{body}", lines.concat()));
    let messages = proptest::collection::vec(message, 1..=most);
    let odd = select(vec![
        "", "\r", "\n", "\r\n", " ", "\t", "\0", ":", ";", "0", "\u{e9}", ",", "f", "#", "+", "x",
    ]);
    let edits = proptest::collection::vec((any::<Index>(), 0..3_usize, odd), 0..3);
    (messages, edits).prop_map(|(messages, edits)| {
        let mut stream = messages.concat().into_bytes();
        for (at, remove, insert) in edits {
            let at = at.index(stream.len() + 1);
            let end = (at + remove).min(stream.len());
            stream.splice(at..end, insert.bytes());
        }
        stream
    })
}

/// The properties below compare something: ordinary streams are accepted by both.
#[test]
fn ordinary_streams() {
    let streams = [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1),
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nabGET / HTTP/1.0\r\n\r\n",
            2,
        ),
        (
            "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
             3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\nDELETE http://b/ HTTP/1.1\r\nHost: b\r\n\r\n",
            2,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\n",
            1,
        ),
    ];
    for (stream, count) in streams {
        let hyper = runtime().block_on(hyper_requests(stream.as_bytes()));
        let (ours, ending) = our_requests(stream.as_bytes());
        assert!(matches!(ending, Ending::Clean), "{stream:?}: {ending:?}");
        assert_eq!(ours.len(), count, "{stream:?}");
        assert_eq!(ours, hyper, "{stream:?}");
    }
    let streams = [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.0 299 Odd\r\n\r\nuntil the end",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n\
         2\r\nab\r\n0\r\nX: y\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX : a\r\n b\r\nContent-Length: 0\r\n\r\n",
    ];
    for stream in streams {
        let hyper = runtime().block_on(hyper_response(stream.as_bytes(), &Method::GET));
        let ours = our_response(stream.as_bytes(), &Method::GET).unwrap();
        assert_eq!(ours, hyper.unwrap(), "{stream:?}");
    }
}

proptest! {
    /// Two recipients that see different requests in the same bytes are how smuggling works.
    #[test]
    fn requests(stream in messages(vec![
        "GET / HTTP/1.1\r\nHost: a\r\n",
        "\r\nPOST /a?b HTTP/1.1\r\nHost: a:80\r\n",
        "PUT http://b/c HTTP/1.1\r\nHost: a\r\n",
        "patch //x HTTP/1.0\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n",
    ], 3)) {
        let hyper = runtime().block_on(hyper_requests(&stream));
        check_requests(&stream, &hyper)?;
    }

    #[test]
    fn responses(
        stream in messages(vec![
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\nHTTP/1.1 299 Odd\r\n",
            "HTTP/1.0 404 x y\r\n",
            "HTTP/1.1 204\r\n",
            "HTTP/1.1 304 Not Modified\r\n",
            "\r\nHTTP/1.1 500 \r\n",
        ], 1),
        head: bool,
    ) {
        let method = if head { Method::HEAD } else { Method::GET };
        let shown = stream.escape_ascii().to_string();
        let hyper = runtime().block_on(hyper_response(&stream, &method));
        match (our_response(&stream, &method), hyper) {
            (Ok(ours), Ok(hyper)) => prop_assert_eq!(ours, hyper, "{}", shown),
            (Ok(ours), Err(error)) => {
                prop_assert!(false, "{shown}\nonly hyper refuses it: {error:?}\nours {ours:?}");
            }
            (Err(malformed), Ok(hyper)) => prop_assert!(
                is_stricter_than_hyper(&malformed.defect),
                "{shown}\nonly we refuse it: {malformed}\nhyper {hyper:?}"
            ),
            (Err(_), Err(_)) => {}
        }
    }
}
