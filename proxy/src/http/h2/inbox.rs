//! What arrives on a connection's streams and was not read yet, between the task that drives the
//! connection and those who read.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use weft_core::h2::connection::StreamKey;
use weft_core::h2::message::ResponseHead;
use weft_core::interim::Interim;

use super::arrived::{Come, End, Inbox};
use super::failure::StreamFailure;
use super::ready::Ready;
use crate::http::interims;

/// All inboxes of one connection.
///
/// The lock is that of one connection and held for a few instructions. Only where requests of several
/// workers go over one connection do two threads ever want it.
#[derive(Debug)]
pub(super) struct Inboxes {
    table: Mutex<Table>,
    ready: Arc<Ready>,
}

#[derive(Debug)]
struct Table {
    slots: Vec<Inbox>,
    free: Vec<u32>,
    /// Inboxes of which something was taken, or that were given up.
    touched: Vec<u32>,
}

/// The number of an inbox. It names nothing any more once the inbox was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InboxId {
    slot: u32,
    generation: u32,
}

/// What a reader has done since the last time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Touched {
    pub(super) inbox: InboxId,
    pub(super) stream: Option<StreamKey>,
    /// Bytes that it took.
    pub(super) taken: usize,
    /// Whether it reads no more.
    pub(super) is_dropped: bool,
    /// What had come of the message.
    pub(super) come: Come,
}

impl Inboxes {
    pub(super) fn new(ready: &Arc<Ready>) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::new(Table {
                slots: Vec::new(),
                free: Vec::new(),
                touched: Vec::new(),
            }),
            ready: Arc::clone(ready),
        })
    }

    /// A new inbox, of a message with so many bytes where the head says it.
    pub(super) fn open(&self, stream: Option<StreamKey>, remaining: Option<u64>) -> InboxId {
        let mut table = self.lock();
        let slot = match table.free.pop() {
            Some(slot) => slot,
            None => {
                table.slots.push(Inbox::new(0));
                // There are fewer than streams.
                (table.slots.len() - 1) as u32
            }
        };
        let inbox = &mut table.slots[slot as usize];
        inbox.stream = stream;
        inbox.remaining = remaining;
        let generation = inbox.generation;
        InboxId { slot, generation }
    }

    /// Nothing more is put into the inbox, and nobody reads: its place is another's from now on.
    pub(super) fn close(&self, id: InboxId) {
        let mut table = self.lock();
        let Some(inbox) = table.get(id) else { return };
        let generation = inbox.generation.wrapping_add(1);
        let is_touched = inbox.is_touched;
        *inbox = Inbox {
            is_touched,
            ..Inbox::new(generation)
        };
        table.free.push(id.slot);
    }

    /// The stream that the message comes on.
    pub(super) fn set_stream(&self, id: InboxId, stream: StreamKey) {
        if let Some(inbox) = self.lock().get(id) {
            inbox.stream = Some(stream);
        }
    }

    /// Whether nobody reads any more.
    pub(super) fn is_dropped(&self, id: InboxId) -> bool {
        self.lock().get(id).is_none_or(|inbox| inbox.is_dropped)
    }

    /// An interim response has come. Nobody is woken for those beyond the limits.
    pub(super) fn put_interim(&self, id: InboxId, head: ResponseHead) {
        let interim = Interim::received(head.parts.status, head.parts.headers);
        let mut table = self.lock();
        let Some(inbox) = table.get(id) else { return };
        let is_kept = !inbox.is_dropped && inbox.interims.push(interim);
        let reader = is_kept.then(|| inbox.reader.take()).flatten();
        drop(table);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// The response has come; `come`: what of it has with its head.
    pub(super) fn put_head(&self, id: InboxId, head: Box<ResponseHead>, come: Come) {
        self.put(id, |inbox| {
            inbox.remaining = head.content_length;
            inbox.head = Some(head);
            inbox.is_end_told = come != Come::Part;
            inbox.end = match come {
                Come::Part => return,
                Come::Whole => End::Whole,
                Come::Ended => End::Ended,
            };
        });
    }

    /// Data has come.
    pub(super) fn put_data(&self, id: InboxId, data: Bytes, end: bool) {
        self.put(id, |inbox| {
            if let Some(remaining) = &mut inbox.remaining {
                *remaining = remaining.saturating_sub(data.len() as u64);
            }
            inbox.push(data);
            if end {
                inbox.end = End::Ended;
            }
        });
    }

    /// Trailers have come, which end the message.
    pub(super) fn put_trailers(&self, id: InboxId, trailers: HeaderMap) {
        self.put(id, |inbox| {
            if !inbox.is_whole() {
                inbox.trailers = Some(trailers);
            }
            inbox.end = End::Ended;
        });
    }

    /// The stream has failed: what was not read is dropped.
    pub(super) fn fail(&self, id: InboxId, failure: StreamFailure) {
        self.put(id, |inbox| {
            // What has come whole is in order.
            if inbox.is_whole() {
                return;
            }
            inbox.drop_content();
            inbox.end = End::Failed(failure);
        });
    }

    /// The message is broken at its end: what has come before can be read.
    pub(super) fn fail_at_end(&self, id: InboxId, failure: StreamFailure) {
        self.put(id, |inbox| {
            inbox.end = match inbox.is_whole() {
                true => End::Ended,
                false => End::BadTrailers(failure),
            };
        });
    }

    /// All streams have failed.
    pub(super) fn fail_all(&self, failure: &StreamFailure) {
        let mut readers = Vec::new();
        for inbox in &mut self.lock().slots {
            if matches!(inbox.end, End::Open) {
                inbox.drop_content();
                inbox.end = End::Failed(failure.clone());
            }
            readers.extend(inbox.reader.take());
        }
        readers.into_iter().for_each(Waker::wake);
    }

    fn put(&self, id: InboxId, put: impl FnOnce(&mut Inbox)) {
        let mut table = self.lock();
        let Some(inbox) = table.get(id) else { return };
        put(inbox);
        let reader = inbox.reader.take();
        drop(table);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// What readers have done since the last time, added to `touched`.
    pub(super) fn take_touched(&self, touched: &mut Vec<Touched>) {
        let mut table = self.lock();
        while let Some(slot) = table.touched.pop() {
            let inbox = &mut table.slots[slot as usize];
            inbox.is_touched = false;
            let generation = inbox.generation;
            touched.push(Touched {
                inbox: InboxId { slot, generation },
                stream: inbox.stream,
                taken: std::mem::take(&mut inbox.taken),
                is_dropped: inbox.is_dropped,
                come: match inbox.end {
                    End::Ended => Come::Ended,
                    End::Whole => Come::Whole,
                    End::Open | End::Failed(_) | End::BadTrailers(_) => Come::Part,
                },
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn get(&mut self, id: InboxId) -> Option<&mut Inbox> {
        let inbox = self.slots.get_mut(id.slot as usize)?;
        (inbox.generation == id.generation).then_some(inbox)
    }

    /// A reader has done something that the connection has to know.
    fn touch(&mut self, id: InboxId) {
        if let Some(inbox) = self.get(id)
            && !std::mem::replace(&mut inbox.is_touched, true)
        {
            self.touched.push(id.slot);
        }
    }
}

/// The reader of an inbox. Dropped, it reads no more.
#[derive(Debug)]
pub(super) struct Reader {
    inboxes: Arc<Inboxes>,
    id: InboxId,
}

impl Reader {
    pub(super) fn id(&self) -> InboxId {
        self.id
    }

    pub(super) fn new(inboxes: &Arc<Inboxes>, id: InboxId) -> Self {
        Self {
            inboxes: Arc::clone(inboxes),
            id,
        }
    }

    /// The response, once it is there. The interim ones before it are passed on.
    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Box<ResponseHead>, StreamFailure>> {
        let mut table = self.inboxes.lock();
        let Some(inbox) = table.get(self.id) else {
            return Poll::Ready(Err(StreamFailure::Ended));
        };
        let arrived = inbox.interims.take();
        let polled = match (inbox.head.take(), &inbox.end) {
            // Also where a head came before: nothing of it has gone on, and this says more.
            (_, End::Failed(failure) | End::BadTrailers(failure)) => {
                Poll::Ready(Err(failure.clone()))
            }
            (Some(head), End::Open | End::Ended | End::Whole) => Poll::Ready(Ok(head)),
            (None, End::Ended | End::Whole) => Poll::Ready(Err(StreamFailure::Ended)),
            (None, End::Open) => {
                inbox.wait(cx);
                Poll::Pending
            }
        };
        drop(table);
        arrived.into_iter().for_each(interims::pass_on);
        polled
    }

    /// The next piece of the body.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamFailure>>> {
        let mut table = self.inboxes.lock();
        let Some(inbox) = table.get(self.id) else {
            return Poll::Ready(Some(Err(StreamFailure::Ended)));
        };
        if let Some(piece) = inbox.pop() {
            inbox.taken += piece.len();
            inbox.is_end_told = true;
            table.touch(self.id);
            drop(table);
            self.inboxes.ready.nudge();
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if let Some(trailers) = inbox.trailers.take() {
            inbox.is_end_told = true;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        match &inbox.end {
            End::Open => {
                inbox.wait(cx);
                Poll::Pending
            }
            End::Ended | End::Whole => {
                inbox.is_end_told = true;
                Poll::Ready(None)
            }
            End::Failed(failure) | End::BadTrailers(failure) => {
                Poll::Ready(Some(Err(failure.clone())))
            }
        }
    }

    /// Why nothing more comes, where the stream has failed: nothing is taken.
    pub(super) fn poll_failed(&mut self, cx: &mut Context<'_>) -> Poll<StreamFailure> {
        let mut table = self.inboxes.lock();
        let Some(inbox) = table.get(self.id) else {
            return Poll::Ready(StreamFailure::Ended);
        };
        match &inbox.end {
            End::Failed(failure) => Poll::Ready(failure.clone()),
            End::Open => {
                inbox.wait(cx);
                Poll::Pending
            }
            End::Ended | End::Whole | End::BadTrailers(_) => Poll::Pending,
        }
    }

    /// The content, where its head has said its length and all of it is here in one piece: then nothing is
    /// left to be read.
    pub(super) fn take_whole(&mut self) -> Option<Bytes> {
        let mut table = self.inboxes.lock();
        let inbox = table.get(self.id)?;
        let is_whole = matches!(inbox.end, End::Ended)
            && inbox.remaining == Some(0)
            && inbox.trailers.is_none()
            && inbox.pieces.is_empty()
            && inbox.small.is_empty();
        let whole = inbox.first.take_if(|_| is_whole)?;
        inbox.taken += whole.len();
        inbox.is_end_told = true;
        Some(whole)
    }

    /// Whether all of it was read.
    pub(super) fn is_end_stream(&self) -> bool {
        let mut table = self.inboxes.lock();
        table.get(self.id).is_none_or(|inbox| {
            let is_read = inbox.held() == 0 && inbox.trailers.is_none();
            is_read && inbox.is_end_told && inbox.is_whole()
        })
    }

    /// How much is still to be read, where the head says it.
    pub(super) fn size_hint(&self) -> SizeHint {
        let mut table = self.inboxes.lock();
        let Some(inbox) = table.get(self.id) else {
            return SizeHint::with_exact(0);
        };
        let here = inbox.held();
        match inbox.remaining {
            Some(remaining) => SizeHint::with_exact(remaining + here as u64),
            // Also where all of it is here: whoever takes its size for a length drops its trailers.
            None => {
                let mut hint = SizeHint::new();
                hint.set_lower(here as u64);
                hint
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut table = self.inboxes.lock();
        let Some(inbox) = table.get(self.id) else {
            return;
        };
        inbox.is_dropped = true;
        inbox.reader = None;
        inbox.drop_content();
        table.touch(self.id);
        drop(table);
        self.inboxes.ready.nudge();
    }
}
