//! Buffers that the connections of a thread share: one takes a buffer when something comes, and gives
//! it back when all of that has been passed on. An idle connection holds none.
//!
//! A thread has its own, so that taking and giving costs no lock. What was not needed between two
//! sweeps is freed.

use std::cell::RefCell;

use bytes::BytesMut;

/// Bytes that free buffers of one size may have in all; of larger ones, one is kept.
const FREE_BYTES_MAX: usize = 256 * 1024;
/// So many sizes there are: from 4 KiB to 16 MiB, which is as much as a relay may be told to use.
const SIZES: usize = 13;

/// How much room a buffer has: a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(usize);

impl Size {
    /// 4 KiB.
    pub(crate) const SMALLEST: Self = Self(0);
    /// 8 KiB.
    pub(crate) const KIB_8: Self = Self(1);
    /// 16 KiB.
    pub(crate) const KIB_16: Self = Self(2);
    /// 64 KiB.
    pub(crate) const KIB_64: Self = Self(4);

    /// The largest that has no more than so many bytes; there is none below the smallest.
    pub(crate) fn at_most(bytes: usize) -> Self {
        let fits = |size: &Self| size.bytes() <= bytes;
        let sizes = (0..SIZES).map(Self);
        sizes.take_while(fits).last().unwrap_or(Self::SMALLEST)
    }

    pub(crate) const fn bytes(self) -> usize {
        4096 << self.0
    }

    /// Twice as much, up to `most`.
    pub(crate) fn doubled(self, most: Self) -> Self {
        Self(self.0 + 1).min(most)
    }

    /// Half as much, down to `least`.
    pub(crate) fn halved(self, least: Self) -> Self {
        Self(self.0.saturating_sub(1)).max(least)
    }
}

/// Free buffers of one size.
#[derive(Debug)]
struct Shelf {
    free: Vec<BytesMut>,
    /// The fewest that there were since the last sweep: so many were not needed.
    fewest: usize,
}

/// Free buffers by their size.
#[derive(Debug)]
struct Shelves([Shelf; SIZES]);

impl Shelves {
    const fn new() -> Self {
        const EMPTY: Shelf = Shelf {
            free: Vec::new(),
            fewest: 0,
        };
        Self([EMPTY; SIZES])
    }

    fn take(&mut self, size: Size) -> Option<BytesMut> {
        let shelf = &mut self.0[size.0];
        let buffer = shelf.free.pop()?;
        shelf.fewest = shelf.fewest.min(shelf.free.len());
        Some(buffer)
    }

    /// Keeps a buffer unless there are enough, or something still points into it.
    fn give(&mut self, mut buffer: BytesMut, size: Size) {
        let shelf = &mut self.0[size.0];
        if shelf.free.len() >= (FREE_BYTES_MAX / size.bytes()).max(1) {
            return;
        }
        buffer.clear();
        // The second would succeed where it has grown.
        if buffer.try_reclaim(size.bytes()) && !buffer.try_reclaim(size.bytes() + 1) {
            shelf.free.push(buffer);
        }
    }

    fn sweep(&mut self) {
        for shelf in &mut self.0 {
            let needed = shelf.free.len() - shelf.fewest;
            shelf.free.truncate(needed);
            shelf.fewest = needed;
            if needed == 0 {
                shelf.free = Vec::new();
            }
        }
    }
}

thread_local! {
    static SHELVES: RefCell<Shelves> = const { RefCell::new(Shelves::new()) };
}

/// An empty buffer with room for so much.
pub(crate) fn take(size: Size) -> BytesMut {
    // A thread that ends has none any more.
    let taken = SHELVES.try_with(|shelves| shelves.borrow_mut().take(size));
    let taken = taken.ok().flatten();
    taken.unwrap_or_else(|| BytesMut::with_capacity(size.bytes()))
}

/// Gives a buffer back that was taken with that size; what is in it is forgotten.
pub(crate) fn give(buffer: BytesMut, size: Size) {
    if buffer.capacity() > 0 {
        // On a thread that ends, it is freed.
        let _whether_kept = SHELVES.try_with(|shelves| shelves.borrow_mut().give(buffer, size));
    }
}

/// Frees buffers of this thread that were not needed since the last sweep.
pub(crate) fn sweep() {
    let _whether_any = SHELVES.try_with(|shelves| shelves.borrow_mut().sweep());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn free(shelves: &Shelves, size: Size) -> usize {
        shelves.0[size.0].free.len()
    }

    #[test]
    fn sizes_are_powers_of_two_within_what_is_allowed() {
        for (bytes, expected) in [
            (0, 4096),
            (4096, 4096),
            (8191, 4096),
            (8192, 8192),
            (128 << 10, 128 << 10),
            (100_000, 64 << 10),
            (16 << 20, 16 << 20),
            (usize::MAX, 16 << 20),
        ] {
            assert_eq!(Size::at_most(bytes).bytes(), expected, "{bytes}");
        }
        assert_eq!(Size::KIB_8.doubled(Size::KIB_16), Size::KIB_16);
        assert_eq!(Size::KIB_16.doubled(Size::KIB_16), Size::KIB_16);
        assert_eq!(Size::KIB_16.halved(Size::KIB_8), Size::KIB_8);
        assert_eq!(Size::SMALLEST.halved(Size::SMALLEST), Size::SMALLEST);
    }

    #[test]
    fn what_is_given_is_taken_again() {
        let mut shelves = Shelves::new();
        assert!(shelves.take(Size::KIB_8).is_none());
        let mut buffer = BytesMut::with_capacity(8192);
        let place = buffer.as_ptr();
        buffer.extend_from_slice(b"of somebody else");
        // A part that is used no more.
        drop(buffer.split_to(3).freeze());
        shelves.give(buffer, Size::KIB_8);
        let again = shelves.take(Size::KIB_8).unwrap();
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        assert_eq!(again.capacity(), 8192);
    }

    #[test]
    fn what_is_used_still_or_has_grown_is_not_kept() {
        let mut shelves = Shelves::new();
        let mut used = BytesMut::with_capacity(8192);
        used.extend_from_slice(b"GET / HTTP/1.1\r\n");
        let head = used.split_to(14).freeze();
        shelves.give(used, Size::KIB_8);
        assert_eq!(free(&shelves, Size::KIB_8), 0);
        assert_eq!(&head[..], b"GET / HTTP/1.1");
        let mut grown = BytesMut::with_capacity(8192);
        grown.extend_from_slice(&[7; 10_000]);
        drop(grown.split_to(9_000));
        shelves.give(grown, Size::KIB_8);
        shelves.give(BytesMut::with_capacity(100), Size::KIB_8);
        assert_eq!(free(&shelves, Size::KIB_8), 0);
    }

    #[test]
    fn what_was_not_needed_is_freed() {
        let mut shelves = Shelves::new();
        let give = |shelves: &mut Shelves| {
            shelves.give(BytesMut::with_capacity(4096), Size::SMALLEST);
        };
        (0..1000).for_each(|_| give(&mut shelves));
        assert_eq!(free(&shelves, Size::SMALLEST), 64);
        // They came since the last sweep.
        shelves.sweep();
        assert_eq!(free(&shelves, Size::SMALLEST), 64);
        let taken: Vec<_> = (0..3).map_while(|_| shelves.take(Size::SMALLEST)).collect();
        assert_eq!(taken.len(), 3);
        for buffer in taken {
            shelves.give(buffer, Size::SMALLEST);
        }
        shelves.sweep();
        assert_eq!(free(&shelves, Size::SMALLEST), 3);
        shelves.sweep();
        assert_eq!(free(&shelves, Size::SMALLEST), 0);
    }

    proptest! {
        /// Whatever is taken and given, what is free is bounded, and is empty.
        #[test]
        fn free_buffers_are_bounded(
            steps in proptest::collection::vec((0..SIZES, 0usize..20_000, 0u8..3), 0..300),
        ) {
            let mut shelves = Shelves::new();
            let mut held = Vec::new();
            for (size, bytes, step) in steps {
                let size = Size(size);
                match step {
                    0 => {
                        let taken = shelves.take(size);
                        let mut buffer =
                            taken.unwrap_or_else(|| BytesMut::with_capacity(size.bytes()));
                        prop_assert!(buffer.is_empty());
                        prop_assert_eq!(buffer.capacity(), size.bytes());
                        buffer.resize(bytes, 7);
                        held.push((buffer, size));
                    }
                    1 => if let Some((buffer, size)) = held.pop() {
                        shelves.give(buffer, size);
                    }
                    _ => shelves.sweep(),
                }
                for number in 0..SIZES {
                    let size = Size(number);
                    let most = (FREE_BYTES_MAX / size.bytes()).max(1);
                    prop_assert!(free(&shelves, size) <= most);
                }
            }
        }
    }
}
