//! The streams of a connection: a slab, and an index by identifier.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use http::Method;

use super::super::flow::{ReceiveWindow, SendWindow};
use super::super::frame::{StreamId, WindowSize};
use super::super::message::Length;

/// A stream of a connection. It stays valid after the stream has ended: then it names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamKey {
    /// Its place in the slab.
    slot: u32,
    id: StreamId,
}

impl StreamKey {
    /// The identifier on the wire.
    pub fn id(self) -> StreamId {
        self.id
    }

    /// A small number that no other stream of the connection has at the same time, for tables of
    /// whoever drives the connection. Nothing tells when another stream has it: what is in such a table
    /// belongs to a stream only where its whole key is the same.
    pub fn slot(self) -> usize {
        self.slot as usize
    }
}

/// How far one direction of a stream has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    /// No head yet, or only interim ones.
    Head,
    /// The head is through; data or trailers may follow.
    Body,
    /// END_STREAM.
    Ended,
}

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) receive: Half,
    pub(super) send: Half,
    pub(super) receive_window: ReceiveWindow,
    pub(super) send_window: SendWindow,
    /// How much data is to come.
    pub(super) length: Length,
    /// The method of the request.
    pub(super) method: Method,
    /// Whether nobody reads it any more.
    pub(super) is_discarded: bool,
    /// Whether its sender was refused room and is to be told when there is some.
    pub(super) is_blocked: bool,
    /// Whether it is in the queue of those that wait for room.
    pub(super) is_queued: bool,
    /// Room that is kept for it since it was told that it may go on.
    pub(super) reserved: u32,
}

impl Stream {
    /// A stream that is opened with a head of one side: `receive` and `send` say of which.
    pub(super) fn new(
        (receive, send): (Half, Half),
        (receive_window, send_window): (WindowSize, WindowSize),
        length: Length,
        method: Method,
    ) -> Self {
        Self {
            receive,
            send,
            receive_window: ReceiveWindow::new(receive_window),
            send_window: SendWindow::new(send_window),
            length,
            method,
            is_discarded: false,
            is_blocked: false,
            is_queued: false,
            reserved: 0,
        }
    }

    /// Queues a stream that was blocked by its own window, which may have opened.
    pub(super) fn enqueue_if_blocked(&mut self, key: StreamKey, queue: &mut VecDeque<StreamKey>) {
        let waits = self.is_blocked && !self.is_queued && self.reserved == 0;
        if waits && self.send_window.available() > 0 {
            self.is_queued = true;
            queue.push_back(key);
        }
    }

    /// Whether both directions have ended; it is kept while data of it is held.
    pub(super) fn is_closed(&self) -> bool {
        self.receive == Half::Ended && self.send == Half::Ended
    }
}

#[derive(Debug)]
enum Slot {
    /// The next free one.
    Free(Option<u32>),
    Used(StreamId, Stream),
}

/// Hashes identifiers. A peer may choose them so that some collide, but only among as many as may be
/// open at a time.
#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

/// Builds [`IdHasher`].
pub(super) type HashIds = BuildHasherDefault<IdHasher>;

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        /// 2^64 divided by the golden ratio, as in Fibonacci hashing.
        const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
        let mixed = (self.0 ^ u64::from(number)).wrapping_mul(FACTOR);
        self.0 = mixed ^ (mixed >> 32);
    }
}

/// All streams that have not ended, and those of which data is held.
#[derive(Debug, Default)]
pub(super) struct Streams {
    slots: Vec<Slot>,
    free: Option<u32>,
    index: HashMap<StreamId, u32, HashIds>,
    /// Streams that count as open (RFC 9113 section 5.1.2).
    open: u32,
}

impl Streams {
    /// Streams that are open or half-closed.
    pub(super) fn open(&self) -> u32 {
        self.open
    }

    /// Streams, those of which only data is held included.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    pub(super) fn find(&self, id: StreamId) -> Option<StreamKey> {
        let slot = *self.index.get(&id)?;
        Some(StreamKey { slot, id })
    }

    pub(super) fn get(&self, key: StreamKey) -> Option<&Stream> {
        match self.slots.get(key.slot()) {
            Some(Slot::Used(id, stream)) if *id == key.id => Some(stream),
            Some(Slot::Used(..) | Slot::Free(_)) | None => None,
        }
    }

    pub(super) fn get_mut(&mut self, key: StreamKey) -> Option<&mut Stream> {
        match self.slots.get_mut(key.slot()) {
            Some(Slot::Used(id, stream)) if *id == key.id => Some(stream),
            Some(Slot::Used(..) | Slot::Free(_)) | None => None,
        }
    }

    /// Adds a stream that is open; its identifier must be new.
    pub(super) fn insert(&mut self, id: StreamId, stream: Stream) -> StreamKey {
        self.open += u32::from(!stream.is_closed());
        let used = Slot::Used(id, stream);
        let slot = match self.free {
            Some(slot) => {
                let place = std::mem::replace(&mut self.slots[slot as usize], used);
                self.free = match place {
                    Slot::Free(next) => next,
                    Slot::Used(..) => None,
                };
                slot
            }
            None => {
                self.slots.push(used);
                // There are fewer streams than identifiers.
                (self.slots.len() - 1) as u32
            }
        };
        self.index.insert(id, slot);
        StreamKey { slot, id }
    }

    /// A direction of the stream has ended: it no longer counts as open where both have.
    pub(super) fn on_half_ended(&mut self, key: StreamKey) {
        if self.get(key).is_some_and(Stream::is_closed) {
            self.open -= 1;
        }
    }

    pub(super) fn remove(&mut self, key: StreamKey) -> Option<Stream> {
        self.get(key)?;
        let freed = Slot::Free(self.free.replace(key.slot));
        self.index.remove(&key.id);
        match std::mem::replace(&mut self.slots[key.slot()], freed) {
            Slot::Used(_, stream) => {
                self.open -= u32::from(!stream.is_closed());
                if self.index.is_empty() {
                    self.forget_slots();
                }
                Some(stream)
            }
            Slot::Free(_) => None,
        }
    }

    /// Gives back the memory of a burst.
    fn forget_slots(&mut self) {
        /// Slots that an idle connection keeps.
        const KEPT: usize = 32;
        if self.slots.capacity() > KEPT {
            self.slots = Vec::new();
            self.index = HashMap::default();
            self.free = None;
        }
    }

    /// Places, free ones included: what [`Self::for_each`] costs.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Calls `act` with every stream.
    pub(super) fn for_each(&mut self, mut act: impl FnMut(StreamKey, &mut Stream)) {
        for (slot, place) in self.slots.iter_mut().enumerate() {
            if let Slot::Used(id, stream) = place {
                let slot = slot as u32;
                act(StreamKey { slot, id: *id }, stream);
            }
        }
    }
}
