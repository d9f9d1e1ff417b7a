//! What heads and trailers may have.

use super::End::{Reset, Status};
use super::*;
use crate::h2::message::{Defect, Exceeded};
use crate::reason::Reason;

const SMALL: HeadLimits = HeadLimits {
    bytes: 1024,
    fields: 8,
};

fn small(fields: &[(&str, &str)]) -> Result<RequestHead, Malformed> {
    request_to(fields, SMALL, ExtendedConnect::Announced)
}

#[test]
fn bytes_are_counted_as_in_http1() {
    // The values of :method, :scheme, :authority and :path, and `x: v\r\n` but for the value.
    let other = "GEThttpweb/".len() + "x: \r\n".len();
    let fits = "v".repeat(1024 - other);
    assert!(small(&get(&[("x", &fits)])).is_ok());
    let found = small(&get(&[("x", &(fits + "v"))]));
    assert_eq!(
        found.as_ref().unwrap_err().reason(),
        Reason::HeadersTooLarge
    );
    check_refusal(found, Status(431), "the head is larger than 1024 bytes");
    // Whether it is HEAD is known where something before the method is too large, too.
    let path = format!("/{}", "p".repeat(1024));
    let found = small(&[(":path", &path), (":method", "GET"), (":scheme", "http")]);
    check_refusal(found, Status(431), "larger than 1024 bytes");
    let found = small(&[(":path", &path), (":scheme", "http")]);
    check_refusal(found, Reset, "larger than 1024 bytes");
}

#[test]
fn fields_are_bounded() {
    let some = |cookies: usize, others: usize| {
        let mut fields = get(&vec![("cookie", "a"); cookies]);
        fields.extend(vec![("x", "y"); others]);
        small(&fields)
    };
    for (cookies, others, is_accepted) in [
        (0, 8, true),
        (0, 9, false),
        (30, 7, true),
        (30, 8, false),
        (1, 8, false),
    ] {
        let found = some(cookies, others);
        match is_accepted {
            true => assert_eq!(found.unwrap().parts.headers.len(), cookies + others),
            false => check_refusal(found, Status(431), "of more than 8 fields"),
        }
    }
}

#[test]
fn trailers_are_reset() {
    let (mut decoder, mut scratch) = (decoder(), Scratch::default());
    for message in [Message::Request, Message::Response] {
        let block = block(&[("x", "y"); 9]);
        let (decoder, scratch) = (&mut decoder, &mut scratch);
        let found = decode_trailers(decoder, &block, scratch, SMALL, message, true).unwrap();
        let malformed = found.as_ref().unwrap_err();
        assert_eq!(malformed.reason(), Reason::HeadersTooLarge);
        assert_eq!(malformed.message, message);
        check_refusal(found, Reset, "the trailers are of more than 8 fields");
    }
}

#[test]
fn methods_are_bounded() {
    let method = |length| {
        let value = "M".repeat(length);
        request(&[&[(":method", value.as_str())], &GET[1..]].concat())
    };
    assert!(method(64).is_ok());
    let found = method(65);
    assert_eq!(
        found.as_ref().unwrap_err().reason(),
        Reason::HeadersTooLarge
    );
    check_refusal(found, Status(431), ":method is larger than 64 bytes");
}

/// What the decoder does not deliver.
#[test]
fn lists_are_bounded() {
    let mut decoder = Decoder::new(4096, 300);
    let mut scratch = Scratch::default();
    let grpc = ("content-type", "application/grpc");
    let long = "v".repeat(300);
    let head = block(&get(&[grpc, ("x", &long), ("y", "z")]));
    let extended = ExtendedConnect::Announced;
    let found = decode_request(&mut decoder, &head, &mut scratch, LIMITS, extended);
    let malformed = found.unwrap().unwrap_err();
    let exceeded = Exceeded::List {
        bytes: 595,
        limit: 300,
    };
    assert_eq!(malformed.defect, Defect::HeadTooLarge(exceeded));
    assert_eq!(
        (malformed.status(), malformed.reason()),
        (431, Reason::HeadersTooLarge)
    );
    assert!(malformed.answerable.unwrap().grpc);
    let head = block(&[(":status", "200"), ("x", &long)]);
    let found = decode_response(&mut decoder, &head, &mut scratch, LIMITS, false);
    check_refusal(found.unwrap(), Reset, "list of 375 bytes with 32 for each");
}

#[test]
fn maps_have_room_for_what_is_allowed() {
    let all = |count: usize| {
        let (mut encoder, mut out) = (Encoder::plain(), block(&GET));
        for number in 0..count {
            encoder.field(&mut out, format!("x-{number}").as_bytes(), b"");
        }
        let mut decoder = Decoder::new(4096, 1 << 24);
        let (none, extended) = (HeadLimits::NONE, ExtendedConnect::Announced);
        decode_request(&mut decoder, &out, &mut Scratch::default(), none, extended).unwrap()
    };
    assert_eq!(all(24_576).unwrap().parts.headers.len(), 24_576);
    check_refusal(all(24_577), Status(431), "of more than 24576 fields");
}
