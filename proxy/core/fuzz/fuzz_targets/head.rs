//! Heads: the same bytes mean the same whole and byte by byte, and what is accepted can be written
//! and read again. The first byte chooses between request and response.
#![no_main]

use bytes::BytesMut;
use http::Method;
use libfuzzer_sys::fuzz_target;
use weft_core::h1::{
    HeadScan, Limits, RequestOptions, TargetForm, encode_request, parse_request, parse_response,
};

/// What a head was found to mean; `None` where it is not complete.
type Meaning = Result<Option<String>, std::mem::Discriminant<weft_core::h1::Defect>>;

fn parse(response: bool, buffer: &mut BytesMut, scan: &mut HeadScan) -> Meaning {
    let limits = Limits::default();
    let text = if response {
        let head = parse_response(buffer, scan, &Method::GET, &limits);
        head.map(|head| head.map(|head| format!("{head:?}")))
    } else {
        let head = parse_request(buffer, scan, &limits);
        if let Ok(Some(head)) = &head {
            let options = RequestOptions {
                target_form: TargetForm::Origin,
                keep_alive: true,
            };
            let mut out = BytesMut::new();
            encode_request(&head.parts, head.framing, options, &mut out);
            let again = parse_request(&mut out, &mut HeadScan::default(), &limits);
            // Joining and writing anew can only exceed a limit.
            assert!(!matches!(again, Ok(None)));
        }
        head.map(|head| head.map(|head| format!("{head:?}")))
    };
    text.map_err(|malformed| std::mem::discriminant(&malformed.defect))
}

fuzz_target!(|input: &[u8]| {
    let Some((first, stream)) = input.split_first() else {
        return;
    };
    let response = first & 1 == 1;
    let whole = parse(response, &mut BytesMut::from(stream), &mut HeadScan::default());
    let (mut buffer, mut scan) = (BytesMut::new(), HeadScan::default());
    let mut pieces = Ok(None);
    for byte in stream {
        buffer.extend_from_slice(&[*byte]);
        pieces = parse(response, &mut buffer, &mut scan);
        if pieces != Ok(None) {
            break;
        }
    }
    assert_eq!(whole, pieces);
});
