//! Heads in HTTP/1.1: the same bytes mean the same however they are cut, and what is accepted means
//! the same once it was written anew. The first byte cuts, the second chooses between request and
//! response, and how it is written: in its own form, or with its bit 3 in the form that the first line of
//! the rest is, whoever wrote that.

use bytes::BytesMut;
use http::header::{CONTENT_LENGTH, COOKIE, HeaderName, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, Version};
use weft_core::h1::{
    Defect, Framing, HeadScan, Limits, RequestHead, RequestOptions, ResponseHead, ResponseOptions,
    TargetForm, encode_request, encode_response, parse_request, parse_response,
};
use weft_core::http1_form;

use crate::input::{Input, pieces};

/// What a head was found to mean; `None` where it is not complete.
type Meaning<T> = Result<Option<T>, std::mem::Discriminant<Defect>>;

/// Parses a head that comes in pieces; with what is left behind it.
fn parse<'a, T>(
    stream: impl Iterator<Item = &'a [u8]>,
    limits: &Limits,
    mut parse: impl FnMut(&mut BytesMut, &mut HeadScan) -> Meaning<T>,
) -> (Meaning<T>, usize) {
    let (mut buffer, mut scan, mut behind) = (BytesMut::new(), HeadScan::default(), 0);
    let mut found = Ok(None);
    for piece in stream {
        if !matches!(found, Ok(None)) {
            behind += piece.len();
            continue;
        }
        buffer.extend_from_slice(piece);
        found = parse(&mut buffer, &mut scan);
        let is_bounded = buffer.len() <= limits.head_bytes;
        assert!(
            is_bounded || !matches!(found, Ok(None)),
            "what waits is bounded"
        );
    }
    (found, buffer.len() + behind)
}

fn request<'a>(
    stream: impl Iterator<Item = &'a [u8]>,
    limits: &Limits,
) -> (Meaning<RequestHead>, usize) {
    parse(stream, limits, |buffer, scan| {
        parse_request(buffer, scan, limits).map_err(|malformed| {
            assert!(!malformed.to_string().is_empty());
            std::mem::discriminant(&malformed.defect)
        })
    })
}

fn response<'a>(
    stream: impl Iterator<Item = &'a [u8]>,
    limits: &Limits,
) -> (Meaning<ResponseHead>, usize) {
    parse(stream, limits, |buffer, scan| {
        parse_response(buffer, scan, &Method::GET, limits).map_err(|malformed| {
            assert!(!malformed.to_string().is_empty());
            std::mem::discriminant(&malformed.defect)
        })
    })
}

/// Room for what joining and writing anew add to a head within the limits.
fn roomy() -> Limits {
    Limits {
        fields: 2048,
        ..Limits::with_head_bytes(1 << 20)
    }
}

/// The fields that are neither about this connection nor written anew, without their order.
fn kept(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "host",
        "date",
    ] {
        headers.remove(name);
    }
    for name in [CONTENT_LENGTH, TRANSFER_ENCODING, COOKIE] {
        headers.remove(name);
    }
    headers
}

/// The values of a field, joined as those of `Cookie` are; the space behind an empty last one is none.
fn joined(headers: &HeaderMap, name: HeaderName) -> Vec<u8> {
    let values: Vec<&[u8]> = headers.get_all(name).iter().map(|v| v.as_bytes()).collect();
    values.join(&b"; "[..]).trim_ascii_end().to_vec()
}

/// How a head is written anew.
struct Style<'a> {
    bits: u8,
    /// The form of a peer, in the place of its own.
    form: Option<&'a [u8]>,
}

impl Style<'_> {
    /// The fields of a head with the form that it is written in.
    fn formed(&self, own: Option<&HeaderValue>, headers: &HeaderMap) -> HeaderMap {
        let mut headers = headers.clone();
        let form = match self.form {
            Some(form) => HeaderValue::from_bytes(form).ok(),
            None => own.cloned(),
        };
        http1_form::put(form, &mut headers);
        headers
    }
}

fn check_request(first: &RequestHead, style: &Style<'_>) {
    let target_form = if style.bits & 2 == 0 {
        TargetForm::Origin
    } else {
        first.target_form
    };
    let keep_alive = first.keep_alive;
    let options = RequestOptions {
        target_form,
        keep_alive,
    };
    let mut out = BytesMut::new();
    let mut parts = first.parts.clone();
    parts.headers = style.formed(first.form.as_ref(), &parts.headers);
    let framing = encode_request(&parts, first.framing, options, &mut out);
    let (again, left) = request(std::iter::once(&out[..]), &roomy());
    let Ok(Some(again)) = again else {
        panic!("{} is refused: {again:?}", out.escape_ascii());
    };
    assert_eq!(left, 0, "{}", out.escape_ascii());
    let says_empty = again.parts.headers.contains_key(CONTENT_LENGTH);
    let expected = match framing {
        Framing::None if says_empty => Framing::Length(0),
        Framing::None | Framing::Length(_) | Framing::Chunked | Framing::UntilClose => framing,
    };
    assert_eq!(again.framing, expected);
    assert_eq!(again.keep_alive, keep_alive);
    assert_eq!(again.parts.method, first.parts.method);
    assert_eq!(again.parts.uri.path(), first.parts.uri.path());
    assert_eq!(again.parts.uri.query(), first.parts.uri.query());
    assert_eq!(kept(&again.parts.headers), kept(&first.parts.headers));
    let (found, sent) = (&again.parts.headers, &first.parts.headers);
    assert_eq!(joined(found, COOKIE), joined(sent, COOKIE));
}

fn check_response(first: &ResponseHead, style: &Style<'_>) {
    if first.is_interim() {
        return;
    }
    let options = ResponseOptions {
        request_method: &Method::GET,
        client_version: match style.bits & 4 {
            0 => Version::HTTP_11,
            _ => Version::HTTP_10,
        },
        keep_alive: first.keep_alive,
        date: None,
    };
    let mut out = BytesMut::new();
    let (mut parts, _) = http::Response::new(()).into_parts();
    parts.status = first.parts.status;
    parts.headers = style.formed(first.form.as_ref(), &first.parts.headers);
    let written = encode_response(&parts, first.framing, options, &mut out);
    let (again, left) = response(std::iter::once(&out[..]), &roomy());
    let Ok(Some(again)) = again else {
        panic!("{} is refused: {again:?}", out.escape_ascii());
    };
    assert_eq!(left, 0, "{}", out.escape_ascii());
    assert_eq!(again.framing, written.framing);
    assert_eq!(again.keep_alive, written.keep_alive);
    assert_eq!(again.parts.status, first.parts.status);
    assert_eq!(kept(&again.parts.headers), kept(&first.parts.headers));
}

/// Runs the target.
pub fn run(input: &[u8]) {
    let mut input = Input::new(input);
    let (cut, bits) = (input.byte(), input.byte());
    let (mut stream, limits) = (input.rest(), Limits::default());
    let mut form = None;
    if bits & 8 != 0 {
        let end = stream.iter().position(|byte| *byte == b'\n');
        let (line, rest) = stream.split_at(end.unwrap_or(stream.len()));
        (form, stream) = (Some(line), rest.get(1..).unwrap_or_default());
    }
    let style = Style { bits, form };
    if bits & 1 == 0 {
        let (whole, left) = request(std::iter::once(stream), &limits);
        let (found, rest) = request(pieces(stream, cut), &limits);
        assert_eq!(format!("{found:?}"), format!("{whole:?}"));
        if let Ok(Some(head)) = &whole {
            assert_eq!(rest, left);
            check_request(head, &style);
        }
    } else {
        let (whole, left) = response(std::iter::once(stream), &limits);
        let (found, rest) = response(pieces(stream, cut), &limits);
        assert_eq!(format!("{found:?}"), format!("{whole:?}"));
        if let Ok(Some(head)) = &whole {
            assert_eq!(rest, left);
            check_response(head, &style);
        }
    }
}
