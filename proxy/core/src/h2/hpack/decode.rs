//! Field blocks as they are received (RFC 7541 sections 3 and 6).

use super::error::CompressionError;
use super::static_table::FIELDS;
use super::table::Table;
use super::{DEFAULT_TABLE_SIZE, field_size, huffman, integer};

/// Capacity that a buffer for a decoded string keeps between blocks, in bytes: more than most
/// values have, tokens included, and little for a connection that is idle.
const KEPT_BYTES: usize = 4096;

/// A field of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// As it was received; lower case is not checked.
    pub name: &'a [u8],
    /// As it was received.
    pub value: &'a [u8],
    /// Whether every hop has to send it as a literal that is never indexed (section 6.2.3).
    pub never_indexed: bool,
}

/// What a field block was found to hold.
///
/// Sizes are those of the uncompressed list (RFC 9113 section 6.5.2): name, value and
/// [`FIELD_OVERHEAD`](super::FIELD_OVERHEAD) of every field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a list that is too large was not delivered whole"]
pub enum FieldList {
    /// Every field was delivered.
    Complete {
        /// Size of the list.
        bytes: u64,
    },
    /// The list is larger than the limit. What was delivered is its begin and is not to be used; the
    /// decoder is ready for the next block.
    TooLarge {
        /// Size of the whole list.
        bytes: u64,
        /// The limit of the decoder.
        limit: u64,
    },
}

/// Decodes the field blocks of one direction of a connection, in the order in which they came.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    /// Our SETTINGS_HEADER_TABLE_SIZE that the peer has acknowledged.
    table_limit: u32,
    /// What the next block's first size update must not exceed, where one is required.
    required_update: Option<u32>,
    /// Our SETTINGS_MAX_HEADER_LIST_SIZE, or what stands for it.
    list_limit: usize,
    strings: Strings,
}

/// Buffers for strings that cannot be borrowed from the block.
#[derive(Debug, Default)]
struct Strings {
    name: Vec<u8>,
    value: Vec<u8>,
}

/// Bytes of a string literal.
#[derive(Clone, Copy)]
struct Text<'a> {
    /// Empty if the string had to be put into a buffer and is longer than what was to be kept.
    bytes: &'a [u8],
    /// Length of the whole string, in bytes.
    length: usize,
}

/// A field that is not in a table.
struct Literal<'a> {
    name: Text<'a>,
    value: Text<'a>,
}

/// Size of the list so far, against its limit.
struct Tally {
    bytes: u64,
    limit: u64,
}

impl Decoder {
    /// A decoder for a peer that was allowed a dynamic table of `table_limit` bytes, and whose
    /// fields are delivered up to a list of `list_limit` bytes (see [`FieldList`]).
    ///
    /// `table_limit` is our SETTINGS_HEADER_TABLE_SIZE where the peer knows it from the begin. A
    /// peer that has not acknowledged our SETTINGS yet may use [`DEFAULT_TABLE_SIZE`] bytes: for
    /// a new connection give the larger of both here, and the setting to [`Self::set_table_limit`]
    /// once it is acknowledged.
    ///
    /// The decoder allocates at most 9/4 of `table_limit` for the table, and twice the larger of
    /// both limits for strings.
    pub fn new(table_limit: u32, list_limit: usize) -> Self {
        Self {
            // What the peer begins with, unless it was allowed less (RFC 7541 section 4.2).
            table: Table::new(table_limit.min(DEFAULT_TABLE_SIZE)),
            table_limit,
            required_update: None,
            list_limit,
            strings: Strings::default(),
        }
    }

    /// Sets our SETTINGS_HEADER_TABLE_SIZE once the peer has acknowledged it, in bytes.
    ///
    /// If the peer's table is larger, its next block has to begin with a size update to no more than
    /// this, or to the smallest of several (RFC 7541 section 4.2, RFC 9113 section 4.3.1).
    pub fn set_table_limit(&mut self, limit: u32) {
        self.table_limit = limit;
        if (limit as usize) < self.table.max_size() {
            let smallest = self
                .required_update
                .map_or(limit, |before| before.min(limit));
            self.required_update = Some(smallest);
        }
    }

    /// Decodes one complete field block and calls `deliver` for its fields in their order.
    ///
    /// After an error the connection has to be closed, and the decoder is not to be used again.
    pub fn decode(
        &mut self,
        block: &[u8],
        mut deliver: impl FnMut(Field<'_>),
    ) -> Result<FieldList, CompressionError> {
        let mut rest = block;
        self.decode_size_updates(&mut rest)?;
        let mut tally = Tally {
            bytes: 0,
            limit: self.list_limit as u64,
        };
        while let Some(&first) = rest.first() {
            if first & 0x80 != 0 {
                let (name, value) = self.decode_indexed(&mut rest)?;
                if tally.admits(field_size(name.len(), value.len())) {
                    let never_indexed = false;
                    deliver(Field {
                        name,
                        value,
                        never_indexed,
                    });
                }
                continue;
            }
            if first & 0xe0 == 0x20 {
                return Err(CompressionError::SizeUpdateMisplaced);
            }
            let is_added = first & 0x40 != 0;
            let literal =
                self.strings
                    .decode_literal(&mut rest, &self.table, is_added, tally.left())?;
            if tally.admits(literal.size()) {
                deliver(Field {
                    name: literal.name.bytes,
                    value: literal.value.bytes,
                    never_indexed: !is_added && first & 0x10 != 0,
                });
            }
            if is_added {
                literal.add_to(&mut self.table);
            }
        }
        self.strings.shrink();
        Ok(tally.finish())
    }

    /// Reads the size updates that a block begins with (sections 4.2 and 6.3).
    fn decode_size_updates(&mut self, rest: &mut &[u8]) -> Result<(), CompressionError> {
        while let Some(first) = rest.first()
            && first & 0xe0 == 0x20
        {
            let size = integer::decode(rest, 5)?;
            let limit = self.required_update.take().unwrap_or(self.table_limit);
            if size > limit {
                return Err(CompressionError::SizeUpdateTooLarge { size, limit });
            }
            self.table.set_max_size(size);
        }
        match self.required_update {
            Some(limit) => Err(CompressionError::SizeUpdateMissing { limit }),
            None => Ok(()),
        }
    }

    /// Reads an indexed field (section 6.1).
    fn decode_indexed(&self, rest: &mut &[u8]) -> Result<(&[u8], &[u8]), CompressionError> {
        let index = integer::decode(rest, 7)?;
        get(index, &self.table)
    }

    /// The dynamic table.
    #[cfg(test)]
    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// Bytes of memory that are allocated.
    #[cfg(test)]
    pub(super) fn allocated(&self) -> usize {
        self.table.allocated() + self.strings.name.capacity() + self.strings.value.capacity()
    }
}

/// The field at an index of the static table.
fn static_field(index: u32) -> Option<(&'static str, &'static str)> {
    let position = (index as usize).checked_sub(1)?;
    FIELDS.get(position).copied()
}

/// The field at an index of the static and the dynamic table (section 2.3.3).
fn get(index: u32, table: &Table) -> Result<(&[u8], &[u8]), CompressionError> {
    if let Some((name, value)) = static_field(index) {
        return Ok((name.as_bytes(), value.as_bytes()));
    }
    let field = (index as usize)
        .checked_sub(FIELDS.len() + 1)
        .and_then(|age| table.get(age));
    field.ok_or(CompressionError::InvalidIndex {
        index,
        // Below 2^32: every field in the table counts 32 bytes of a size that is a u32.
        last: (FIELDS.len() + table.len()) as u32,
    })
}

impl Strings {
    /// Reads a literal field (section 6.2), which is to be added to the table or not. Strings that
    /// could neither be delivered, with `left` bytes left of the list, nor added are not kept.
    fn decode_literal<'a, 'block: 'a>(
        &'a mut self,
        rest: &mut &'block [u8],
        table: &Table,
        is_added: bool,
        left: usize,
    ) -> Result<Literal<'a>, CompressionError> {
        let (prefix, keep) = if is_added {
            (6, left.max(table.max_size()))
        } else {
            (4, left)
        };
        let index = integer::decode(rest, prefix)?;
        let name = if index == 0 {
            decode_string(rest, &mut self.name, keep)?
        } else {
            decode_name(index, table, &mut self.name, keep)?
        };
        let value = decode_string(rest, &mut self.value, keep)?;
        Ok(Literal { name, value })
    }

    /// Gives back the memory of unusually long strings.
    fn shrink(&mut self) {
        for buffer in [&mut self.name, &mut self.value] {
            if buffer.capacity() > KEPT_BYTES {
                *buffer = Vec::new();
            }
        }
    }
}

/// Reads a string literal (section 5.2), of which no more than `keep` bytes are put into `buffer`.
#[inline(always)]
fn decode_string<'a, 'block: 'a>(
    rest: &mut &'block [u8],
    buffer: &'a mut Vec<u8>,
    keep: usize,
) -> Result<Text<'a>, CompressionError> {
    // Between sidecars nearly all are such: not compressed, and their length is one byte.
    if let [length @ 0..0x7f, tail @ ..] = *rest
        && let Some((bytes, tail)) = tail.split_at_checked(usize::from(*length))
    {
        *rest = tail;
        let length = bytes.len();
        return Ok(Text { bytes, length });
    }
    decode_any_string(rest, buffer, keep)
}

/// The same for every string.
#[inline(never)]
fn decode_any_string<'a, 'block: 'a>(
    rest: &mut &'block [u8],
    buffer: &'a mut Vec<u8>,
    keep: usize,
) -> Result<Text<'a>, CompressionError> {
    let is_huffman = rest.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer::decode(rest, 7)? as usize;
    let (bytes, tail) = rest
        .split_at_checked(length)
        .ok_or(CompressionError::Truncated)?;
    *rest = tail;
    if !is_huffman {
        return Ok(Text { bytes, length });
    }
    let mut capacity = huffman::max_decoded_length(length);
    if capacity > keep {
        // Whether it is too long, and whether it is valid, is known once it was counted.
        let mut length = 0;
        huffman::decode(bytes, |_| length += 1)?;
        if length > keep {
            return Ok(Text { bytes: &[], length });
        }
        capacity = length;
    }
    buffer.clear();
    buffer.reserve_exact(capacity);
    buffer.resize(capacity, 0);
    let mut length = 0;
    huffman::decode(bytes, |byte| {
        buffer[length] = byte;
        length += 1;
    })?;
    let bytes = &buffer[..length];
    Ok(Text { bytes, length })
}

/// The name of the field at an index. That of a field in the dynamic table is copied into `buffer`,
/// unless it is longer than `keep`: the field may be dropped when the new one is added (section 4.4).
fn decode_name<'a>(
    index: u32,
    table: &Table,
    buffer: &'a mut Vec<u8>,
    keep: usize,
) -> Result<Text<'a>, CompressionError> {
    let (bytes, length) = if let Some((name, _)) = static_field(index) {
        (name.as_bytes(), name.len())
    } else {
        let (name, _) = get(index, table)?;
        buffer.clear();
        if name.len() <= keep {
            buffer.reserve_exact(name.len());
            buffer.extend_from_slice(name);
        }
        (buffer.as_slice(), name.len())
    };
    Ok(Text { bytes, length })
}

impl Literal<'_> {
    fn size(&self) -> usize {
        field_size(self.name.length, self.value.length)
    }

    /// Adds the field to the table (section 4.4).
    fn add_to(&self, table: &mut Table) {
        if self.size() > table.max_size() {
            // Its strings may not have been kept.
            table.clear();
        } else {
            table.insert(self.name.bytes, self.value.bytes);
        }
    }
}

impl Tally {
    /// Counts a field and says whether the list is still within its limit.
    fn admits(&mut self, size: usize) -> bool {
        self.bytes = self.bytes.saturating_add(size as u64);
        self.bytes <= self.limit
    }

    /// Bytes until the limit is reached.
    fn left(&self) -> usize {
        // No more than the limit, which was given as usize.
        self.limit.saturating_sub(self.bytes) as usize
    }

    fn finish(self) -> FieldList {
        let Self { bytes, limit } = self;
        if bytes <= limit {
            FieldList::Complete { bytes }
        } else {
            FieldList::TooLarge { bytes, limit }
        }
    }
}
