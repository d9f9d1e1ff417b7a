//! The examples of RFC 7541 Appendix C.

use bytes::BytesMut;

use super::super::{DEFAULT_TABLE_SIZE, Decoder, Encoder, integer};
use super::{LIST_LIMIT, contents, decode, encode, hex, owned};

type Fields = &'static [(&'static str, &'static str)];

/// A block, the fields that it holds, the table after it and the size of that.
type Example = (&'static str, Fields, Fields, usize);

/// Decodes blocks that follow each other, with a table of `limit` bytes.
#[track_caller]
fn check(limit: u32, examples: &[Example]) {
    let mut decoder = Decoder::new(limit, LIST_LIMIT);
    for (block, fields, table, size) in examples {
        let (_, found) = decode(&mut decoder, &hex(block)).unwrap();
        let found: Vec<_> = found
            .into_iter()
            .map(|(name, value, _)| (name, value))
            .collect();
        assert_eq!(found, owned(fields), "{block}");
        assert_eq!(contents(decoder.table()), owned(table), "{block}");
        assert_eq!(decoder.table().size(), *size, "{block}");
    }
}

#[test]
fn c1_integers() {
    for (value, prefix, bytes) in [(10, 5, "0a"), (1337, 5, "1f9a0a"), (42, 8, "2a")] {
        let mut out = BytesMut::new();
        integer::encode(&mut out, 0, prefix, value);
        assert_eq!(out[..], hex(bytes));
        let mut rest = &out[..];
        assert_eq!(integer::decode(&mut rest, prefix), Ok(value as u32));
        assert!(rest.is_empty());
    }
}

#[test]
fn c2_fields() {
    let custom: Fields = &[("custom-key", "custom-header")];
    check(
        DEFAULT_TABLE_SIZE,
        &[(
            "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
            custom,
            custom,
            55,
        )],
    );
    let path: Fields = &[(":path", "/sample/path")];
    let path_block = "040c 2f73 616d 706c 652f 7061 7468";
    check(DEFAULT_TABLE_SIZE, &[(path_block, path, &[], 0)]);
    assert_eq!(encode(&mut Encoder::plain(), path), hex(path_block));
    let method: Fields = &[(":method", "GET")];
    check(DEFAULT_TABLE_SIZE, &[("82", method, &[], 0)]);
    assert_eq!(encode(&mut Encoder::plain(), method), hex("82"));
}

#[test]
fn c2_3_a_field_that_is_never_indexed() {
    let block = hex("1008 7061 7373 776f 7264 0673 6563 7265 74");
    let mut decoder = Decoder::new(DEFAULT_TABLE_SIZE, LIST_LIMIT);
    let (_, fields) = decode(&mut decoder, &block).unwrap();
    assert_eq!(fields, [(b"password".into(), b"secret".into(), true)]);
    assert_eq!(decoder.table().len(), 0);

    let mut out = BytesMut::new();
    Encoder::plain().never_indexed(&mut out, b"password", b"secret");
    assert_eq!(out[..], block);
}

const REQUESTS: [Fields; 3] = [
    &[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "www.example.com"),
    ],
    &[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "www.example.com"),
        ("cache-control", "no-cache"),
    ],
    &[
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/index.html"),
        (":authority", "www.example.com"),
        ("custom-key", "custom-value"),
    ],
];

const REQUEST_TABLES: [Fields; 3] = [
    &[(":authority", "www.example.com")],
    &[
        ("cache-control", "no-cache"),
        (":authority", "www.example.com"),
    ],
    &[
        ("custom-key", "custom-value"),
        ("cache-control", "no-cache"),
        (":authority", "www.example.com"),
    ],
];

/// Requests whose blocks are these.
fn requests(blocks: [&'static str; 3]) -> [Example; 3] {
    let sizes = [57, 110, 164];
    std::array::from_fn(|at| (blocks[at], REQUESTS[at], REQUEST_TABLES[at], sizes[at]))
}

#[test]
fn c3_requests() {
    let blocks = [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ];
    check(DEFAULT_TABLE_SIZE, &requests(blocks));
}

#[test]
fn c4_requests_with_huffman() {
    let blocks = [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ];
    check(DEFAULT_TABLE_SIZE, &requests(blocks));
    let mut encoder = Encoder::with_table(DEFAULT_TABLE_SIZE);
    for (block, fields, table, size) in requests(blocks) {
        assert_eq!(encode(&mut encoder, fields), hex(block));
        let found = encoder.table().unwrap();
        assert_eq!((contents(found), found.size()), (owned(table), size));
    }
}

const DATE_21: (&str, &str) = ("date", "Mon, 21 Oct 2013 20:13:21 GMT");
const DATE_22: (&str, &str) = ("date", "Mon, 21 Oct 2013 20:13:22 GMT");
const LOCATION: (&str, &str) = ("location", "https://www.example.com");
const PRIVATE: (&str, &str) = ("cache-control", "private");
const GZIP: (&str, &str) = ("content-encoding", "gzip");
const COOKIE: (&str, &str) = (
    "set-cookie",
    "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
);

const RESPONSES: [Fields; 3] = [
    &[(":status", "302"), PRIVATE, DATE_21, LOCATION],
    &[(":status", "307"), PRIVATE, DATE_21, LOCATION],
    &[(":status", "200"), PRIVATE, DATE_22, LOCATION, GZIP, COOKIE],
];

const RESPONSE_TABLES: [Fields; 3] = [
    &[LOCATION, DATE_21, PRIVATE, (":status", "302")],
    &[(":status", "307"), LOCATION, DATE_21, PRIVATE],
    &[COOKIE, GZIP, DATE_22],
];

/// Responses whose blocks are these. The table has 256 bytes, so that fields are evicted.
fn check_responses(blocks: [&'static str; 3]) {
    let sizes = [222, 222, 215];
    let examples: [Example; 3] =
        std::array::from_fn(|at| (blocks[at], RESPONSES[at], RESPONSE_TABLES[at], sizes[at]));
    check(256, &examples);
}

#[test]
fn c5_responses() {
    check_responses([
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133
         2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70
         6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d
         54c0 5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049
         5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e
         3d31",
    ]);
}

#[test]
fn c6_responses_with_huffman() {
    check_responses([
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6
         2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab
         77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f
         9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ]);
}
