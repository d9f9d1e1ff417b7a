//! The dynamic table (RFC 7541 sections 2.3.2 and 4).

use std::collections::VecDeque;

use super::field_size;

/// The fields that were added last, as many as fit into a size that the encoder chose and that
/// never exceeds a limit of the decoder.
///
/// The bytes of all fields stand one after the other in one buffer, so that every name and value is
/// one slice. The oldest are dropped by moving the begin; once the buffer is full, what is left is
/// moved to its front. There is room for a quarter more than is left, so that a byte is moved 4
/// times on average at most. Nothing is allocated before the first field is inserted.
///
/// Invariant: `size` is the sum of [`field_size`] over all fields, and `size <= max_size`.
#[derive(Debug)]
pub(super) struct Table {
    /// What has not been moved away yet; ends with the newest field.
    bytes: Vec<u8>,
    /// How many bytes were inserted before `bytes[0]` since the table was last empty.
    origin: u64,
    /// The newest first.
    entries: VecDeque<Entry>,
    size: usize,
    max_size: usize,
}

/// Where a field's bytes are.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// How many bytes were inserted before its name, as [`Table::origin`].
    start: u64,
    name_bytes: u32,
    value_bytes: u32,
}

impl Entry {
    fn length(self) -> usize {
        self.name_bytes as usize + self.value_bytes as usize
    }

    fn size(self) -> usize {
        field_size(self.name_bytes as usize, self.value_bytes as usize)
    }
}

impl Table {
    /// An empty table of at most `max_size` bytes.
    pub(super) fn new(max_size: u32) -> Self {
        Self {
            bytes: Vec::new(),
            origin: 0,
            entries: VecDeque::new(),
            size: 0,
            max_size: max_size as usize,
        }
    }

    /// Number of fields.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Size of all fields, in bytes (section 4.1).
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// What the size is at most, in bytes.
    pub(super) fn max_size(&self) -> usize {
        self.max_size
    }

    /// Sets what the size is at most, and drops the oldest fields until it is so (section 4.3). With
    /// 0 the memory is given back.
    pub(super) fn set_max_size(&mut self, max_size: u32) {
        self.max_size = max_size as usize;
        self.evict_for(0);
        if max_size == 0 {
            self.bytes = Vec::new();
            self.entries = VecDeque::new();
        }
    }

    /// Name and value of the field that was inserted `age` fields before the newest.
    pub(super) fn get(&self, age: usize) -> Option<(&[u8], &[u8])> {
        let entry = *self.entries.get(age)?;
        let start = (entry.start - self.origin) as usize;
        let field = &self.bytes[start..start + entry.length()];
        Some(field.split_at(entry.name_bytes as usize))
    }

    /// Inserts a field as the newest and drops the oldest ones for it. One that is larger than the
    /// whole table leaves it empty (section 4.4).
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size = field_size(name.len(), value.len());
        if size > self.max_size {
            self.clear();
            return;
        }
        self.evict_for(size);
        self.make_room(name.len() + value.len());
        let entry = Entry {
            start: self.origin + self.bytes.len() as u64,
            // Both are below `max_size`, which was given as u32.
            name_bytes: name.len() as u32,
            value_bytes: value.len() as u32,
        };
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        self.entries.push_front(entry);
        self.size += size;
    }

    /// Drops all fields.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.bytes.clear();
        self.origin = 0;
        self.size = 0;
    }

    /// Drops the oldest fields until one of `size` bytes fits, which is at most `max_size`.
    fn evict_for(&mut self, size: usize) {
        while self.size + size > self.max_size
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size();
        }
        if self.entries.is_empty() {
            self.clear();
        }
    }

    /// Makes the buffer hold `length` bytes more.
    fn make_room(&mut self, length: usize) {
        if self.bytes.capacity() - self.bytes.len() >= length {
            return;
        }
        if let Some(oldest) = self.entries.back() {
            let dropped = oldest.start - self.origin;
            self.bytes.drain(..dropped as usize);
            self.origin = oldest.start;
        }
        let needed = self.bytes.len() + length;
        let roomy = needed + needed / 4;
        if self.bytes.capacity() < roomy {
            let most = self.max_size + self.max_size / 4;
            let capacity = (2 * self.bytes.capacity()).min(most).max(roomy);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
    }

    /// Bytes of memory that are allocated.
    #[cfg(test)]
    pub(super) fn allocated(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<Entry>()
    }
}
