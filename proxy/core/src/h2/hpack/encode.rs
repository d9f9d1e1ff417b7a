//! Field blocks as they are sent (RFC 7541 section 6).

use std::collections::VecDeque;

use bytes::{BufMut, BytesMut};

use super::indexing::Indexing;
use super::static_table::{FIELDS, StaticMatch};
use super::table::Table;
use super::{DEFAULT_TABLE_SIZE, huffman, integer, static_table};

/// Encodes the field blocks of one direction of a connection, in the order in which they are sent.
///
/// For each block: [`Self::begin`], then [`Self::field`] or [`Self::never_indexed`] for every field.
/// A block that was begun has to be sent, since the peer's dynamic table follows it.
#[derive(Debug)]
pub struct Encoder {
    mode: Mode,
    /// The peer's SETTINGS_HEADER_TABLE_SIZE.
    peer_limit: u32,
    /// The smallest table size since the last block, if the next one has to say its size.
    smallest_unsaid: Option<u32>,
}

#[derive(Debug)]
enum Mode {
    /// No dynamic table and no Huffman code.
    Plain,
    /// Both.
    Complete(DynamicTable),
}

/// The table that the peer's decoder has, too, and what finds a field in it.
#[derive(Debug)]
struct DynamicTable {
    /// Our own limit of its size, in bytes.
    limit: u32,
    table: Table,
    /// Of every field of the table, the newest first.
    hashes: VecDeque<Hashes>,
}

/// Hashes of a field. Others may have the same: they only save comparing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hashes {
    name: u32,
    field: u32,
}

/// Indexes, in the static and the dynamic table, that a field can be sent with.
enum Match {
    Field(usize),
    /// 0: no table has the name.
    Name(usize),
}

impl Encoder {
    /// An encoder that costs no memory and little time: fields of the static table are indexed, all
    /// others are literals that are neither compressed nor added to the table.
    pub fn plain() -> Self {
        Self {
            mode: Mode::Plain,
            peer_limit: DEFAULT_TABLE_SIZE,
            smallest_unsaid: None,
        }
    }

    /// An encoder with a dynamic table of at most `limit` bytes, or what the peer allows if that is
    /// less, and with the Huffman code where it is shorter.
    ///
    /// It allocates at most 3 times that size, once there are fields to remember.
    pub fn with_table(limit: u32) -> Self {
        let size = limit.min(DEFAULT_TABLE_SIZE);
        Self {
            mode: Mode::Complete(DynamicTable {
                limit,
                table: Table::new(size),
                hashes: VecDeque::new(),
            }),
            peer_limit: DEFAULT_TABLE_SIZE,
            // The peer's decoder begins with the default (RFC 9113 section 6.5.2).
            smallest_unsaid: (size < DEFAULT_TABLE_SIZE).then_some(size),
        }
    }

    /// Sets the peer's SETTINGS_HEADER_TABLE_SIZE, in bytes, when its SETTINGS are acknowledged.
    ///
    /// The next block says so (RFC 7541 section 4.2) if the table changes, and whenever the peer
    /// allows less than before: some decoders then wait for it in every case (RFC 9113 section
    /// 4.3.1).
    pub fn set_peer_table_limit(&mut self, limit: u32) {
        let is_less = limit < self.peer_limit;
        self.peer_limit = limit;
        let size = self.table_size();
        let is_changed = match &self.mode {
            Mode::Plain => false,
            Mode::Complete(dynamic) => size as usize != dynamic.table.max_size(),
        };
        if is_less || is_changed || self.smallest_unsaid.is_some() {
            let smallest = self.smallest_unsaid.map_or(size, |before| before.min(size));
            self.smallest_unsaid = Some(smallest);
        }
    }

    /// Begins a block: appends the size updates that are due (section 6.3) to `out`.
    pub fn begin(&mut self, out: &mut BytesMut) {
        let Some(smallest) = self.smallest_unsaid.take() else {
            return;
        };
        let size = self.table_size();
        if smallest < size {
            self.put_size_update(smallest, out);
        }
        self.put_size_update(size, out);
    }

    /// Appends a field to `out`. The name is in lower case. Credentials and short cookies are never
    /// indexed.
    pub fn field(&mut self, out: &mut BytesMut, name: &[u8], value: &[u8]) {
        self.put(out, name, value, Indexing::of(name, value));
    }

    /// Appends a field to `out` as one that no hop may index: as [`Field::never_indexed`] was, or
    /// because its value is secret (section 7.1.3).
    ///
    /// [`Field::never_indexed`]: super::Field::never_indexed
    pub fn never_indexed(&mut self, out: &mut BytesMut, name: &[u8], value: &[u8]) {
        self.put(out, name, value, Indexing::Never);
    }

    fn put(&mut self, out: &mut BytesMut, name: &[u8], value: &[u8], indexing: Indexing) {
        // A field and the two or three integers that it has fit, so that the buffer grows once.
        out.reserve(name.len() + value.len() + 16);
        let static_name = match static_table::find(name, value) {
            StaticMatch::Field(index) if indexing != Indexing::Never => {
                integer::encode(out, 0x80, 7, index);
                return;
            }
            StaticMatch::Field(index) | StaticMatch::Name(index) => index,
            StaticMatch::Nothing => 0,
        };
        match &mut self.mode {
            Mode::Plain => {
                put_name(out, name, static_name, indexing.without_table(), put_string);
                put_string(out, value);
            }
            Mode::Complete(dynamic) => {
                let indexing = indexing.within(dynamic.table.max_size(), name, value);
                let index = match indexing {
                    Indexing::Added => match dynamic.find_or_insert(name, value, static_name) {
                        Match::Field(index) => return integer::encode(out, 0x80, 7, index),
                        Match::Name(index) => index,
                    },
                    Indexing::NotAdded | Indexing::Never => static_name,
                };
                put_name(out, name, index, indexing, put_shorter_string);
                put_shorter_string(out, value);
            }
        }
    }

    /// The size that the dynamic table has to have, in bytes.
    fn table_size(&self) -> u32 {
        match &self.mode {
            Mode::Plain => 0,
            Mode::Complete(dynamic) => dynamic.limit.min(self.peer_limit),
        }
    }

    fn put_size_update(&mut self, size: u32, out: &mut BytesMut) {
        integer::encode(out, 0x20, 5, size as usize);
        match &mut self.mode {
            Mode::Plain => {}
            Mode::Complete(dynamic) => dynamic.set_max_size(size),
        }
    }

    /// The dynamic table.
    #[cfg(test)]
    pub(super) fn table(&self) -> Option<&Table> {
        match &self.mode {
            Mode::Plain => None,
            Mode::Complete(dynamic) => Some(&dynamic.table),
        }
    }

    /// Bytes of memory that are allocated.
    #[cfg(test)]
    pub(super) fn allocated(&self) -> usize {
        match &self.mode {
            Mode::Plain => 0,
            Mode::Complete(dynamic) => {
                dynamic.table.allocated() + dynamic.hashes.capacity() * size_of::<Hashes>()
            }
        }
    }
}

impl DynamicTable {
    /// Finds a field, or inserts it. `static_name` is the name's index in the static table, or 0.
    /// What is found is meant as it was before the insertion.
    fn find_or_insert(&mut self, name: &[u8], value: &[u8], static_name: usize) -> Match {
        let hashes = Hashes::of(name, value);
        let mut name_index = static_name;
        for (age, candidate) in self.hashes.iter().enumerate() {
            if candidate.name != hashes.name {
                continue;
            }
            let index = FIELDS.len() + 1 + age;
            match self.table.get(age) {
                Some(field) if candidate.field == hashes.field && field == (name, value) => {
                    return Match::Field(index);
                }
                Some((same, _)) if name_index == 0 && same == name => name_index = index,
                Some(_) | None => {}
            }
        }
        self.table.insert(name, value);
        self.hashes.push_front(hashes);
        self.hashes.truncate(self.table.len());
        Match::Name(name_index)
    }

    fn set_max_size(&mut self, size: u32) {
        self.table.set_max_size(size);
        self.hashes.truncate(self.table.len());
        if size == 0 {
            self.hashes = VecDeque::new();
        }
    }
}

impl Hashes {
    fn of(name: &[u8], value: &[u8]) -> Self {
        let name = hash(0, name);
        let field = hash(name, value);
        // The upper halves, into which a multiplication mixes all bits.
        Self {
            name: (name >> 32) as u32,
            field: (field >> 32) as u32,
        }
    }
}

/// A quick hash of `bytes`, which begins with that of what is before them.
fn hash(before: u64, bytes: &[u8]) -> u64 {
    /// 2^64 divided by the golden ratio, as in Fibonacci hashing.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    let (words, last) = bytes.as_chunks::<8>();
    let hash = words
        .iter()
        .fold(before, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let mut padded = [0; 8];
    padded[..last.len()].copy_from_slice(last);
    mix(hash, u64::from_le_bytes(padded) ^ bytes.len() as u64)
}

/// Appends the begin of a literal field: its name by index, or by `put_string` if that is 0.
fn put_name(
    out: &mut BytesMut,
    name: &[u8],
    index: usize,
    indexing: Indexing,
    put_string: impl Fn(&mut BytesMut, &[u8]),
) {
    let (pattern, prefix) = match indexing {
        Indexing::Added => (0x40, 6),
        Indexing::NotAdded => (0x00, 4),
        Indexing::Never => (0x10, 4),
    };
    integer::encode(out, pattern, prefix, index);
    if index == 0 {
        put_string(out, name);
    }
}

/// Appends a string literal (section 5.2) as it is.
fn put_string(out: &mut BytesMut, string: &[u8]) {
    integer::encode(out, 0x00, 7, string.len());
    out.put_slice(string);
}

/// Appends a string literal (section 5.2), with the Huffman code if that is shorter.
fn put_shorter_string(out: &mut BytesMut, string: &[u8]) {
    let length = huffman::encoded_length(string);
    if length < string.len() {
        integer::encode(out, 0x80, 7, length);
        huffman::encode(string, out);
    } else {
        put_string(out, string);
    }
}
