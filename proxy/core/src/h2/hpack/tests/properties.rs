//! Properties: what is encoded is decoded, both tables stay the same, and nothing that is received
//! panics or takes more memory than allowed.

use std::collections::VecDeque;

use bytes::BytesMut;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::table::Table;
use super::super::{Decoder, Encoder, FieldList, huffman};
use super::{LIST_LIMIT, Owned, contents, decode};

/// What happens between two peers.
#[derive(Debug, Clone)]
enum Step {
    /// Our setting is acknowledged, by the decoder's and the encoder's side at once.
    TableLimit(u32),
    Block(Vec<Owned>),
}

/// Names that the static table has, that the encoder treats in another way, and others.
fn name() -> impl Strategy<Value = Vec<u8>> {
    let known = select(vec![
        ":method",
        ":path",
        ":status",
        "accept-encoding",
        "cookie",
        "authorization",
        "date",
        "x-tenant",
        "x-tenanu",
        "x-a-name-that-is-longer-than-a-few-words",
        "traceparent",
        "",
    ]);
    prop_oneof![
        4 => known.prop_map(|name| name.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..40),
    ]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    let known = select(vec![
        "",
        "GET",
        "/",
        "200",
        "gzip, deflate",
        "a",
        "b",
        "blue",
        "red",
    ]);
    prop_oneof![
        4 => known.prop_map(|value| value.as_bytes().to_vec()),
        2 => vec(any::<u8>(), 0..60),
        1 => "[a-z0-9]{0,300}".prop_map(String::into_bytes),
    ]
}

fn table_limit() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(4096), 0..200_u32, 0..10_000_u32]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let field = (name(), value(), prop::bool::weighted(0.1));
    let step = prop_oneof![
        1 => table_limit().prop_map(Step::TableLimit),
        4 => vec(field, 0..12).prop_map(Step::Block),
    ];
    vec(step, 1..20)
}

/// Without a table of its own, or with one of this size.
fn encoder() -> impl Strategy<Value = Option<u32>> {
    prop_oneof![1 => Just(None), 4 => table_limit().prop_map(Some)]
}

fn new_encoder(limit: Option<u32>) -> Encoder {
    limit.map_or_else(Encoder::plain, Encoder::with_table)
}

fn put(encoder: &mut Encoder, out: &mut BytesMut, (name, value, never): &Owned) {
    if *never {
        encoder.never_indexed(out, name, value);
    } else {
        encoder.field(out, name, value);
    }
}

/// Names that the encoder never indexes on its own.
fn is_secret(name: &[u8], value: &[u8]) -> bool {
    name == b"authorization" || (name == b"cookie" && value.len() < 20)
}

/// The table as the RFC describes it: the newest first.
#[derive(Default)]
struct Model(VecDeque<(Vec<u8>, Vec<u8>)>);

impl Model {
    fn size(&self) -> usize {
        self.0
            .iter()
            .map(|(name, value)| name.len() + value.len() + 32)
            .sum()
    }

    fn evict_to(&mut self, size: usize) {
        while self.size() > size {
            self.0.pop_back();
        }
    }

    fn insert(&mut self, name: &[u8], value: &[u8], max_size: usize) {
        let size = name.len() + value.len() + 32;
        self.evict_to(max_size.saturating_sub(size));
        if size <= max_size {
            self.0.push_front((name.to_vec(), value.to_vec()));
        }
    }
}

/// Checks the promise of [`Decoder::new`]. A queue has room for 4 entries of 16 bytes at least.
fn check_memory(decoder: &Decoder, table_limit: usize, list_limit: usize) {
    let allowed = table_limit * 9 / 4 + 64 + 2 * table_limit.max(list_limit);
    let allocated = decoder.allocated();
    assert!(allocated <= allowed, "{allocated} of {allowed} bytes");
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(limit in encoder(), steps in steps()) {
        let mut encoder = new_encoder(limit);
        let mut decoder = Decoder::new(4096, LIST_LIMIT);
        for step in steps {
            let fields = match step {
                Step::TableLimit(limit) => {
                    encoder.set_peer_table_limit(limit);
                    decoder.set_table_limit(limit);
                    continue;
                }
                Step::Block(fields) => fields,
            };
            let mut block = BytesMut::new();
            encoder.begin(&mut block);
            for field in &fields {
                put(&mut encoder, &mut block, field);
            }
            let (list, found) = decode(&mut decoder, &block).unwrap();
            let bytes: usize = fields.iter().map(|(name, value, _)| name.len() + value.len() + 32).sum();
            prop_assert_eq!(list, FieldList::Complete { bytes: bytes as u64 });
            prop_assert_eq!(found.len(), fields.len());
            for ((name, value, never), found) in fields.iter().zip(&found) {
                let never = *never || is_secret(name, value);
                prop_assert_eq!(found, &(name.clone(), value.clone(), never));
            }
            let expected = encoder.table().map(contents).unwrap_or_default();
            prop_assert_eq!(contents(decoder.table()), expected);
            let allowed = 3 * encoder.table().map_or(0, Table::max_size) + 128;
            prop_assert!(encoder.allocated() <= allowed.max(3 * limit.unwrap_or(0) as usize + 128));
        }
    }

    #[test]
    fn any_bytes_are_decoded_within_the_limits(
        blocks in vec(vec(any::<u8>(), 0..200), 1..8),
        table_limit in 0..300_u32,
        list_limit in 0..400_usize,
    ) {
        let mut decoder = Decoder::new(table_limit, list_limit);
        for block in blocks {
            let result = decode(&mut decoder, &block);
            check_memory(&decoder, table_limit as usize, list_limit);
            let Ok((list, fields)) = result else { break };
            let bytes: usize = fields.iter().map(|(name, value, _)| name.len() + value.len() + 32).sum();
            prop_assert!(bytes <= list_limit);
            match list {
                FieldList::Complete { bytes: all } => prop_assert_eq!(all, bytes as u64),
                FieldList::TooLarge { bytes, limit } => prop_assert!(bytes > limit),
            }
        }
    }

    /// Blocks that are nearly valid, and lists that are too large.
    #[test]
    fn damaged_blocks_are_decoded_within_the_limits(
        fields in vec((name(), value(), any::<bool>()), 1..30),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        table_limit in 0..5000_u32,
        list_limit in 0..2000_usize,
    ) {
        let mut encoder = Encoder::with_table(table_limit.min(4096));
        let mut whole = Decoder::new(table_limit, LIST_LIMIT);
        let mut decoder = Decoder::new(table_limit, list_limit);
        for _ in 0..3 {
            let mut block = BytesMut::new();
            encoder.begin(&mut block);
            fields.iter().for_each(|field| put(&mut encoder, &mut block, field));
            for (at, byte) in &damage {
                let at = at.index(block.len());
                block[at] = *byte;
            }
            let expected = decode(&mut whole, &block);
            let found = decode(&mut decoder, &block);
            check_memory(&decoder, table_limit as usize, list_limit);
            match (expected, found) {
                (Ok((_, all)), Ok((_, delivered))) => prop_assert!(all.starts_with(&delivered)),
                (expected, found) => {
                    prop_assert_eq!(expected.err(), found.err());
                    break;
                }
            }
            prop_assert_eq!(contents(decoder.table()), contents(whole.table()));
        }
    }

    #[test]
    fn huffman_round_trip(text in vec(any::<u8>(), 0..300)) {
        let mut code = BytesMut::new();
        huffman::encode(&text, &mut code);
        prop_assert_eq!(code.len(), huffman::encoded_length(&text));
        prop_assert!(text.len() <= huffman::max_decoded_length(code.len()));
        let mut found = Vec::new();
        huffman::decode(&code, |byte| found.push(byte)).unwrap();
        prop_assert_eq!(found, text);
    }

    /// A string has exactly one code.
    #[test]
    fn what_is_no_code_is_refused(code in vec(prop_oneof![any::<u8>(), Just(0xff)], 0..40)) {
        let mut found = Vec::new();
        if huffman::decode(&code, |byte| found.push(byte)).is_ok() {
            let mut again = BytesMut::new();
            huffman::encode(&found, &mut again);
            prop_assert_eq!(&again[..], code);
        }
    }

    #[test]
    fn the_table_equals_a_simple_one(
        first in table_limit(),
        steps in vec(prop_oneof![
            1 => table_limit().prop_map(|size| (Some(size), Vec::new(), Vec::new())),
            9 => (name(), value()).prop_map(|(name, value)| (None, name, value)),
        ], 0..300),
    ) {
        let (mut table, mut model, mut most) = (Table::new(first), Model::default(), first);
        for (size, name, value) in steps {
            if let Some(size) = size {
                table.set_max_size(size);
                model.evict_to(size as usize);
                most = most.max(size);
            } else {
                table.insert(&name, &value);
                model.insert(&name, &value, table.max_size());
            }
            prop_assert_eq!(table.size(), model.size());
            prop_assert_eq!(contents(&table), Vec::from(model.0.clone()));
            prop_assert!(table.get(table.len()).is_none());
            prop_assert!(table.allocated() <= most as usize * 9 / 4 + 64);
        }
    }
}

#[test]
fn huffman_round_trip_of_every_byte() {
    for first in 0..=255_u8 {
        for second in 0..=255_u8 {
            let mut code = BytesMut::new();
            huffman::encode(&[first, second], &mut code);
            let mut found = Vec::new();
            huffman::decode(&code, |byte| found.push(byte)).unwrap();
            assert_eq!(found, [first, second]);
        }
    }
}

#[test]
fn a_table_allocates_a_quarter_more_than_its_size() {
    let mut table = Table::new(1000);
    for length in [968, 1, 500, 900, 968, 400, 400, 10, 968] {
        table.insert(b"", &vec![b'v'; length]);
        assert!(table.allocated() <= 1250 + 4 * 16, "{length}");
    }
    // Fields without a byte count, too.
    for _ in 0..100 {
        table.insert(b"", b"");
    }
    assert_eq!(table.len(), 1000 / 32);
    assert!(table.allocated() <= 1000 * 9 / 4);
}
