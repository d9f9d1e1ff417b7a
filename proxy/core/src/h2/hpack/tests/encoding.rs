//! What the encoder chooses.

use bytes::BytesMut;

use super::super::{DEFAULT_TABLE_SIZE, Decoder, Encoder};
use super::{LIST_LIMIT, accept, contents, encode, hex, owned};

#[test]
fn plain() {
    let mut encoder = Encoder::plain();
    for (fields, block) in [
        (&[(":status", "200")], "88"),
        (&[(":status", "201")], "08 03 323031"),
        (&[("accept-encoding", "gzip, deflate")], "90"),
        (&[("content-length", "7")], "0f0d 01 37"),
        (&[("host", "")], "a6"),
        (&[("x", "y")], "00 01 78 01 79"),
        (&[("authorization", "b")], "1f08 01 62"),
        (&[("proxy-authorization", "b")], "1f22 01 62"),
        (&[("cookie", "short")], "1f11 05 73686f7274"),
        (
            &[("cookie", "exactlytwentybytes=1")],
            "0f11 14 65786163746c797477656e747962797465733d31",
        ),
    ] {
        assert_eq!(encode(&mut encoder, fields), hex(block), "{fields:?}");
        // Nothing is remembered.
        assert_eq!(encode(&mut encoder, fields), hex(block), "{fields:?}");
    }
    let mut out = BytesMut::new();
    encoder.never_indexed(&mut out, b":method", b"GET");
    assert_eq!(out[..], hex("12 03 474554"));
    assert_eq!(encoder.allocated(), 0);
}

#[test]
fn what_is_added_to_the_table() {
    let mut encoder = Encoder::with_table(DEFAULT_TABLE_SIZE);
    let added = [
        ("x-tenant", "blue"),
        ("user-agent", "curl/8"),
        ("grpc-status", "5"),
    ];
    let not_added = [
        (":path", "/a"),
        ("age", "1"),
        ("content-length", "1"),
        ("etag", "1"),
        ("if-modified-since", "1"),
        ("if-none-match", "1"),
        ("location", "/"),
        ("set-cookie", "a=b"),
        ("cookie", "a=b"),
        ("cookie", "aaaaaaaaaa=bbbbbbbbbbbb"),
        ("authorization", "Bearer x"),
        ("traceparent", "00-1-1-01"),
        ("grpc-timeout", "1S"),
    ];
    let first = encode(&mut encoder, &added);
    encode(&mut encoder, &not_added);
    let newest_first = [added[2], added[1], added[0]];
    assert_eq!(contents(encoder.table().unwrap()), owned(&newest_first));
    assert_eq!(encode(&mut encoder, &added), hex("c0 bf be"));

    // The name of a field in the table, with another value.
    let block = encode(&mut encoder, &[("x-tenant", "#")]);
    assert_eq!(block, hex("7f01 01 23"));
    assert!(first.len() > 10);

    // One that would take more than three quarters.
    let large = "v".repeat(DEFAULT_TABLE_SIZE as usize / 4 * 3 - 32);
    encode(&mut encoder, &[("l", &large)]);
    assert_eq!(encoder.table().unwrap().len(), 4);
    encode(&mut encoder, &[("l", &large[1..])]);
    assert_eq!(encoder.table().unwrap().get(0).unwrap().0, b"l");
}

#[test]
fn size_updates() {
    let begin = |encoder: &mut Encoder| encode(encoder, &[]);
    let mut encoder = Encoder::with_table(DEFAULT_TABLE_SIZE);
    assert_eq!(begin(&mut encoder), hex(""));
    encoder.set_peer_table_limit(65536);
    assert_eq!(begin(&mut encoder), hex(""));
    encoder.set_peer_table_limit(100);
    assert_eq!(begin(&mut encoder), hex("3f45"));
    assert_eq!(begin(&mut encoder), hex(""));
    encoder.set_peer_table_limit(0);
    encoder.set_peer_table_limit(4096);
    assert_eq!(begin(&mut encoder), hex("20 3fe11f"));
    encoder.set_peer_table_limit(50);
    encoder.set_peer_table_limit(70);
    encoder.set_peer_table_limit(20);
    assert_eq!(begin(&mut encoder), hex("34"));

    // Our own limit is below the default, which the peer's decoder begins with.
    let mut encoder = Encoder::with_table(256);
    assert_eq!(begin(&mut encoder), hex("3fe101"));
    encoder.set_peer_table_limit(65536);
    assert_eq!(begin(&mut encoder), hex(""));
    // Some decoders wait for an update whenever they allow less.
    encoder.set_peer_table_limit(4096);
    assert_eq!(begin(&mut encoder), hex("3fe101"));

    let mut encoder = Encoder::with_table(8192);
    assert_eq!(begin(&mut encoder), hex(""));
    encoder.set_peer_table_limit(65536);
    assert_eq!(begin(&mut encoder), hex("3fe13f"));

    let mut encoder = Encoder::plain();
    encoder.set_peer_table_limit(65536);
    assert_eq!(begin(&mut encoder), hex(""));
    encoder.set_peer_table_limit(4096);
    assert_eq!(begin(&mut encoder), hex("20"));
    assert_eq!(begin(&mut encoder), hex(""));
}

#[test]
fn a_table_that_shrinks_between_blocks_stays_the_same_on_both_sides() {
    let mut encoder = Encoder::with_table(DEFAULT_TABLE_SIZE);
    let mut decoder = Decoder::new(DEFAULT_TABLE_SIZE, LIST_LIMIT);
    let fields = [("a", "1"), ("b", "2"), ("c", "3")];
    for limit in [4096, 68, 4096, 0, 4096] {
        encoder.set_peer_table_limit(limit);
        decoder.set_table_limit(limit);
        let block = encode(&mut encoder, &fields);
        accept(&mut decoder, &block);
        let expected = contents(encoder.table().unwrap());
        assert_eq!(contents(decoder.table()), expected);
        assert_eq!(expected.len(), (limit as usize / 34).min(3));
    }
}
