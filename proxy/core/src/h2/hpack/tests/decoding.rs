//! Blocks that are refused, size updates and lists that are too large.

use super::super::{CompressionError, DEFAULT_TABLE_SIZE, Decoder, FieldList};
use super::{LIST_LIMIT, accept, contents, decode, hex};

use CompressionError::{
    HuffmanEos, HuffmanPadding, IntegerOverflow, InvalidIndex, SizeUpdateMisplaced,
    SizeUpdateMissing, SizeUpdateTooLarge, Truncated,
};

#[track_caller]
fn check_error(block: &str, error: CompressionError) {
    let mut decoder = Decoder::new(DEFAULT_TABLE_SIZE, LIST_LIMIT);
    assert_eq!(decode(&mut decoder, &hex(block)), Err(error), "{block}");
}

#[test]
fn indexes() {
    check_error("80", InvalidIndex { index: 0, last: 61 });
    check_error(
        "be",
        InvalidIndex {
            index: 62,
            last: 61,
        },
    );
    check_error(
        "40 01 61 01 62 be bf",
        InvalidIndex {
            index: 63,
            last: 62,
        },
    );
    check_error(
        "7f 00 01 62",
        InvalidIndex {
            index: 63,
            last: 61,
        },
    );
    check_error(
        "0f 2f 01 62",
        InvalidIndex {
            index: 62,
            last: 61,
        },
    );
    let last = u32::MAX;
    check_error(
        "ff 80ffffff0f",
        InvalidIndex {
            index: last,
            last: 61,
        },
    );
}

#[test]
fn integers_are_bounded() {
    check_error("ff 81ffffff0f", IntegerOverflow);
    check_error("ff ffffffff7f", IntegerOverflow);
    check_error(
        "ff 8080808000",
        InvalidIndex {
            index: 127,
            last: 61,
        },
    );
    check_error("ff 808080808000", IntegerOverflow);
    check_error("ff ffffffffffffffffffff", IntegerOverflow);
    check_error("00 7f ffffffffff 00", IntegerOverflow);
    check_error("3f ffffffff7f", IntegerOverflow);
}

#[test]
fn cuts() {
    for block in [
        "ff", "ff80", "40", "4001", "400161", "40016101", "410f77", "1f", "3f", "3fe1",
    ] {
        check_error(block, Truncated);
    }
    check_error("00 7f80ffffff07 61", Truncated);
    check_error("418c f1e3c2e5f23a6ba0ab90f4", Truncated);
}

#[test]
fn huffman_ends() {
    let value = |found: &str| {
        let mut decoder = Decoder::new(DEFAULT_TABLE_SIZE, LIST_LIMIT);
        decode(&mut decoder, &hex(found)).map(|(_, mut fields)| fields.remove(0).1)
    };
    // "a" is 00011, "0" is 00000.
    assert_eq!(value("04 81 1f"), Ok(b"a".into()));
    assert_eq!(value("04 80"), Ok(b"".into()));
    // "<" has 15 bits, 0x0a has 30.
    assert_eq!(value("04 82 fff9"), Ok(b"<".into()));
    assert_eq!(value("04 84 fffffff3"), Ok(b"\n".into()));
    for bad in [
        "04 81 1e",
        "04 81 18",
        "04 82 1fff",
        "04 81 ff",
        "04 81 00",
        "04 82 fff8",
    ] {
        assert_eq!(value(bad), Err(HuffmanPadding), "{bad}");
    }
    for cut in ["04 83 ffffff", "04 83 fffffe", "04 82 ffff"] {
        assert_eq!(value(cut), Err(HuffmanPadding), "{cut}");
    }
    for eos in ["04 84 ffffffff", "04 85 1fffffffff", "04 85 ffffffff1f"] {
        assert_eq!(value(eos), Err(HuffmanEos), "{eos}");
    }
}

#[test]
fn size_updates() {
    check_error("82 20", SizeUpdateMisplaced);
    check_error("20 82 3f e11f", SizeUpdateMisplaced);
    check_error(
        "3f e21f",
        SizeUpdateTooLarge {
            size: 4097,
            limit: 4096,
        },
    );

    let mut decoder = Decoder::new(DEFAULT_TABLE_SIZE, LIST_LIMIT);
    accept(&mut decoder, &hex("40 01 61 01 62"));
    assert_eq!(decoder.table().len(), 1);
    let (list, fields) = decode(&mut decoder, &hex("20 3f e11f")).unwrap();
    assert_eq!(
        (list, fields),
        (FieldList::Complete { bytes: 0 }, Vec::new())
    );
    let table = decoder.table();
    assert_eq!((table.len(), table.max_size()), (0, 4096));
}

#[test]
fn a_lower_limit_requires_an_update() {
    let lowered = |limits: &[u32], block: &str| {
        let mut decoder = Decoder::new(DEFAULT_TABLE_SIZE, LIST_LIMIT);
        for limit in limits {
            decoder.set_table_limit(*limit);
        }
        decode(&mut decoder, &hex(block)).map(|_| decoder.table().max_size())
    };
    assert_eq!(lowered(&[100], "82"), Err(SizeUpdateMissing { limit: 100 }));
    assert_eq!(lowered(&[100], ""), Err(SizeUpdateMissing { limit: 100 }));
    assert_eq!(lowered(&[100], "3f45 82"), Ok(100));
    assert_eq!(lowered(&[100], "20 82"), Ok(0));
    let too_large = |size, limit| Err(SizeUpdateTooLarge { size, limit });
    assert_eq!(lowered(&[100], "3f46 82"), too_large(101, 100));
    // Both the smallest and the last have to be said.
    assert_eq!(lowered(&[0, 4096], "3fe11f 82"), too_large(4096, 0));
    assert_eq!(lowered(&[0, 4096], "20 3fe11f 82"), Ok(4096));
    assert_eq!(lowered(&[0, 100], "20 3f46 82"), too_large(101, 100));
    assert_eq!(lowered(&[50, 100], "3f45 82"), too_large(100, 50));
    assert_eq!(lowered(&[100, 50], "3f45 82"), too_large(100, 50));
    assert_eq!(lowered(&[4096], "82"), Ok(4096));
    // A higher limit is only used once the peer says so.
    assert_eq!(lowered(&[8192], "82"), Ok(4096));
    assert_eq!(lowered(&[8192], "3fe13f 82"), Ok(8192));

    let mut decoder = Decoder::new(DEFAULT_TABLE_SIZE, LIST_LIMIT);
    accept(&mut decoder, &hex("3f45"));
    decoder.set_table_limit(100);
    assert!(decode(&mut decoder, &hex("82")).is_ok());
}

#[test]
fn without_a_table_nothing_is_allocated() {
    let mut decoder = Decoder::new(0, LIST_LIMIT);
    let (_, fields) = decode(&mut decoder, &hex("82 40 01 61 01 62 0f 0d 01 33")).unwrap();
    assert_eq!(fields.len(), 3);
    assert_eq!(decoder.allocated(), 0);
    assert_eq!(
        decode(&mut decoder, &hex("be")),
        Err(InvalidIndex {
            index: 62,
            last: 61
        })
    );
}

#[test]
fn a_list_that_is_too_large_keeps_the_table_in_step() {
    // x: y, :method: GET, a: (100 "a" in Huffman code, 63 bytes), x: y, a: aaaa…
    let block = |first: &str| {
        let long = "18c6318c63".repeat(12) + "18c63f";
        hex(&format!("40 01 78 01 79 82 {first} 01 61 bf {long} bf be"))
    };
    let bytes = 34 + 42 + 133 + 34 + 133;
    let mut whole = Decoder::new(DEFAULT_TABLE_SIZE, LIST_LIMIT);
    let (list, fields) = decode(&mut whole, &block("40")).unwrap();
    assert_eq!(list, FieldList::Complete { bytes });
    assert_eq!(fields[2].1, [b'a'; 100]);
    for limit in 0..bytes {
        let mut decoder = Decoder::new(DEFAULT_TABLE_SIZE, limit as usize);
        let (list, delivered) = decode(&mut decoder, &block("40")).unwrap();
        assert_eq!(list, FieldList::TooLarge { bytes, limit });
        assert!(fields.starts_with(&delivered) && delivered.len() < fields.len());
        let size: usize = delivered
            .iter()
            .map(|(name, value, _)| name.len() + value.len() + 32)
            .sum();
        assert!(size as u64 <= limit);
        assert_eq!(contents(decoder.table()), contents(whole.table()));
        let (next, _) = decode(&mut decoder, &hex("")).unwrap();
        assert_eq!(next, FieldList::Complete { bytes: 0 });
    }
    // A string that can neither be delivered nor added is not kept, but still validated.
    let mut decoder = Decoder::new(0, 40);
    let long = "18c6318c63".repeat(12);
    let block = |end: &str| hex(&format!("00 01 61 bf {long} {end}"));
    let (list, _) = decode(&mut decoder, &block("18c63f")).unwrap();
    assert_eq!(
        list,
        FieldList::TooLarge {
            bytes: 133,
            limit: 40
        }
    );
    assert_eq!(decode(&mut decoder, &block("18c63e")), Err(HuffmanPadding));
    assert!(decoder.allocated() <= 40);
}

#[test]
fn a_name_may_be_that_of_the_field_it_evicts() {
    // The table has room for one field; the second has the name of the first.
    let mut decoder = Decoder::new(40, LIST_LIMIT);
    let (_, fields) = decode(
        &mut decoder,
        &hex("40 03 616263 03 646566 7e 05 6768696a6b"),
    )
    .unwrap();
    assert_eq!(fields[1], (b"abc".into(), b"ghijk".into(), false));
    assert_eq!(
        contents(decoder.table()),
        [(b"abc".into(), b"ghijk".into())]
    );
    // One that is larger than the table leaves it empty.
    accept(&mut decoder, &hex("7e 06 6768696a6b6c"));
    assert_eq!(decoder.table().len(), 0);
}
