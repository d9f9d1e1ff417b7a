//! Bodies as they are received.

use bytes::BytesMut;

use super::super::{Decoded, Decoder, Framing, Limits, Malformed, Message};
use super::{check_refusal, fields};

/// Everything that a body of the framing has in the input, and what is left.
fn decode(framing: Framing, input: &[u8], limits: &Limits) -> Result<Body, Malformed> {
    let mut decoder = Decoder::new(Message::Request, framing, limits);
    let mut rest = BytesMut::from(input);
    let mut body = Body::default();
    loop {
        match decoder.decode(&mut rest)? {
            Decoded::NeedMore => break,
            Decoded::Data(data) => {
                assert!(!data.is_empty());
                body.data.extend_from_slice(&data);
            }
            Decoded::Trailers(trailers) => body.trailers = fields(&trailers),
            Decoded::End => {
                assert!(decoder.is_done() && decoder.on_eof().is_ok());
                body.ended = true;
                break;
            }
        }
    }
    body.rest = rest.to_vec();
    Ok(body)
}

#[derive(Debug, Default, PartialEq)]
struct Body {
    data: Vec<u8>,
    trailers: Vec<String>,
    ended: bool,
    rest: Vec<u8>,
}

#[track_caller]
fn check(framing: Framing, input: &str, data: &str, trailers: &[&str], rest: Option<&str>) {
    let found = decode(framing, input.as_bytes(), &Limits::default());
    let found = found.unwrap_or_else(|malformed| panic!("{input:?}: {malformed}"));
    let expected = Body {
        data: data.into(),
        trailers: trailers.iter().map(ToString::to_string).collect(),
        ended: rest.is_some(),
        rest: rest.unwrap_or_default().into(),
    };
    assert_eq!(found, expected, "{input:?}");
}

#[test]
fn bodies() {
    use Framing::{Chunked, Length, None, UntilClose};
    check(None, "GET", "", &[], Some("GET"));
    check(Length(0), "GET", "", &[], Some("GET"));
    check(Length(3), "abcGET", "abc", &[], Some("GET"));
    check(Length(5), "abc", "abc", &[], Option::None);
    check(UntilClose, "abc", "abc", &[], Option::None);
    check(Chunked, "0\r\n\r\nGET", "", &[], Some("GET"));
    check(
        Chunked,
        "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\nGET",
        "abcde",
        &[],
        Some("GET"),
    );
    check(Chunked, "0003\r\nabc\r\n000\r\n\r\n", "abc", &[], Some(""));
    check(
        Chunked,
        "A\r\n0123456789\r\n0\r\n\r\n",
        "0123456789",
        &[],
        Some(""),
    );
    check(
        Chunked,
        "3;a=b;c=\"d;e\"\r\nabc\r\n0;x\r\n\r\n",
        "abc",
        &[],
        Some(""),
    );
    check(
        Chunked,
        "3  \t;a\r\nabc\r\n0   \r\n\r\n",
        "abc",
        &[],
        Some(""),
    );
    check(Chunked, "3\r\nab", "ab", &[], Option::None);
    check(
        Chunked,
        "1\r\na\r\n0\r\nX-Sum: 1\r\nContent-Length: 7\r\nx-sum:2\r\n\r\nGET",
        "a",
        &["x-sum: 1", "x-sum: 2", "content-length: 7"],
        Some("GET"),
    );
}

#[test]
fn bodies_that_are_refused() {
    let cases: [(&[u8], &str); 27] = [
        (b"\r\n", "size of a chunk"),
        (b";a\r\n", "size of a chunk"),
        (b"g\r\n", "size of a chunk"),
        (b"0x3\r\n", "size of a chunk"),
        (b"-1\r\n", "size of a chunk"),
        (b"+1\r\n", "size of a chunk"),
        (b" 3\r\n", "size of a chunk"),
        (b"3 3\r\n", "size of a chunk"),
        (b"3,3\r\n", "size of a chunk"),
        (b"1_0\r\n", "size of a chunk"),
        (b"10000000000000000\r\n", "size of a chunk"),
        (b"3;a\0\r\n", "size of a chunk"),
        (b"3;a\rb\r\n", "size of a chunk"),
        (b"3\r\r\n", "size of a chunk"),
        (b"3\n", "bare line feed"),
        (b"3;a\nabc\r\n", "bare line feed"),
        (b"3\r\nabcd\r\n", "follows the data"),
        (b"3\r\nabc\n", "follows the data"),
        (b"3\r\nabc\rx", "follows the data"),
        (b"3\r\nabc0\r\n", "follows the data"),
        (b"0\r\n\n", "bare line feed"),
        (b"0\r\nX: a\n\r\n", "bare line feed"),
        (b"0\r\nX : a\r\n\r\n", "white space between"),
        (b"0\r\nX: a\r\n b\r\n\r\n", "continues a field"),
        (b"0\r\nX: a\0\r\n\r\n", "NUL"),
        (b"0\r\nGET / HTTP/1.1\r\n\r\n", "is no field"),
        (b"0\r\nX\r\n\r\n", "is no field"),
    ];
    for (input, text) in cases {
        let found = decode(Framing::Chunked, input, &Limits::default());
        check_refusal(found, &(400, "bad-request", text), input);
    }
    let malformed = {
        let mut decoder = Decoder::new(Message::Response, Framing::Chunked, &Limits::default());
        decoder.decode(&mut BytesMut::from("x\r\n"))
    };
    check_refusal(
        malformed,
        &(502, "upstream-protocol-error", "response"),
        b"a response",
    );
}

#[test]
fn limits() {
    let limits = Limits {
        fields: 2,
        chunk_line_bytes: 16,
        chunk_extension_bytes: 20,
        trailer_bytes: 40,
        ..Limits::default()
    };
    let decode = |input: &str| decode(Framing::Chunked, input.as_bytes(), &limits);
    assert!(decode("1;aaaaaaaaaaaa\r\n").is_ok());
    for input in [
        "1;aaaaaaaaaaaaa\r\n",
        "1;aaaaaaaaaaaaaa",
        "1111111111111111",
    ] {
        check_refusal(
            decode(input),
            &(400, "bad-request", "than 16 bytes"),
            input.as_bytes(),
        );
    }
    // Ten bytes of extension and one of data for each chunk: the third exceeds the allowance.
    let chunk = "1;123456789\r\na\r\n";
    assert!(decode(&chunk.repeat(2)).is_ok());
    let exceeded = (400, "bad-request", "by more than 20 bytes");
    check_refusal(decode(&chunk.repeat(3)), &exceeded, chunk.as_bytes());
    // Data earns extensions.
    let chunk = "9;12345678\r\n123456789\r\n";
    assert_eq!(decode(&chunk.repeat(100)).unwrap().data.len(), 900);

    assert!(decode("0\r\na:b\r\nc:d\r\n\r\n").unwrap().ended);
    let too_many = (431, "headers-too-large", "more than 2 fields");
    check_refusal(
        decode("0\r\na:b\r\nc:d\r\ne:f\r\n"),
        &too_many,
        b"three trailers",
    );
    let large = format!("0\r\na: {}", "b".repeat(40));
    let too_large = (
        431,
        "headers-too-large",
        "trailers are larger than 40 bytes",
    );
    check_refusal(decode(&large), &too_large, large.as_bytes());
}

#[test]
fn the_end_of_the_connection() {
    use Framing::{Chunked, Length, None, UntilClose};
    // Framing, what came before the end, what is missing.
    let cases = [
        (None, "", Ok(())),
        (Length(3), "abc", Ok(())),
        (UntilClose, "", Ok(())),
        (UntilClose, "abc", Ok(())),
        (Chunked, "0\r\n\r\n", Ok(())),
        (Length(3), "ab", Err("1 bytes are missing")),
        (Length(3), "", Err("3 bytes are missing")),
        (Chunked, "", Err("the last chunk")),
        (Chunked, "3\r\nabc\r\n", Err("the last chunk")),
        (Chunked, "3\r\nab", Err("the last chunk")),
        (Chunked, "0\r\n", Err("the last chunk")),
        (Chunked, "0\r\nx: y\r\n", Err("the last chunk")),
    ];
    for (framing, input, expected) in cases {
        for (message, status, reason) in [
            (Message::Request, 400, "bad-request"),
            (Message::Response, 502, "upstream-reset"),
        ] {
            let mut decoder = Decoder::new(message, framing, &Limits::default());
            let mut buffer = BytesMut::from(input);
            while !matches!(
                decoder.decode(&mut buffer).unwrap(),
                Decoded::NeedMore | Decoded::End
            ) {}
            match (decoder.on_eof(), expected) {
                (Ok(()), Ok(())) => {
                    assert!(decoder.is_done());
                    assert_eq!(decoder.decode(&mut buffer), Ok(Decoded::End));
                }
                (found, Err(text)) => {
                    check_refusal(found, &(status, reason, text), input.as_bytes());
                }
                (Err(malformed), Ok(())) => panic!("{framing:?} {input:?}: {malformed}"),
            }
        }
    }
}

#[test]
fn what_remains() {
    let mut decoder = Decoder::new(Message::Request, Framing::Length(3), &Limits::default());
    assert_eq!(decoder.remaining(), Some(3));
    decoder.decode(&mut BytesMut::from("ab")).unwrap();
    assert_eq!(decoder.remaining(), Some(1));
    decoder.decode(&mut BytesMut::from("c")).unwrap();
    assert_eq!((decoder.remaining(), decoder.is_done()), (Some(0), true));
    let decoder = Decoder::new(Message::Request, Framing::Chunked, &Limits::default());
    assert_eq!(decoder.remaining(), None);
}
