//! What has arrived of one message and was not read yet.

use std::collections::VecDeque;
use std::task::{Context, Waker};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use weft_core::h2::connection::StreamKey;
use weft_core::h2::message::ResponseHead;
use weft_core::interim::Interims;

use super::failure::StreamFailure;

/// What arrives of one message.
#[derive(Debug)]
pub(super) struct Inbox {
    /// Counts the messages that the place has been for.
    pub(super) generation: u32,
    pub(super) stream: Option<StreamKey>,
    /// The response, where one is waited for.
    pub(super) head: Option<Box<ResponseHead>>,
    /// What came before it and was not passed on.
    pub(super) interims: Interims,
    /// The first piece: most messages have no other.
    pub(super) first: Option<Bytes>,
    pub(super) pieces: VecDeque<Bytes>,
    /// Small pieces behind them, copied together: a piece keeps the whole buffer that it came in.
    pub(super) small: BytesMut,
    pub(super) trailers: Option<HeaderMap>,
    pub(super) end: End,
    /// Whether that it has ended may be told before it is read: something of it was, or its head said so.
    /// A message whose head did not say it goes on as one: servers of gRPC in Go wait for ever where
    /// the head of a streaming call without messages ends it.
    pub(super) is_end_told: bool,
    /// Bytes that are still to come, where the head says it.
    pub(super) remaining: Option<u64>,
    /// Who waits for more.
    pub(super) reader: Option<Waker>,
    /// Bytes that were taken, and the connection was not told of.
    pub(super) taken: usize,
    /// Whether nobody reads any more.
    pub(super) is_dropped: bool,
    pub(super) is_touched: bool,
}

#[derive(Debug)]
pub(super) enum End {
    Open,
    /// In order.
    Ended,
    /// The message is whole with its head, as it has no content; its stream has not ended.
    Whole,
    /// What was not read is dropped.
    Failed(StreamFailure),
    /// The message is broken at its end: what has come before can be read.
    BadTrailers(StreamFailure),
}

/// What has come of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Come {
    /// Not all of it.
    Part,
    /// All of it, but not the end of its stream.
    Whole,
    /// All of it, with the end of its stream.
    Ended,
}

/// Pieces that are shorter are copied together as long as nobody reads them: each keeps the buffer that it
/// came in, which is four times as large.
const SMALL_BYTES: usize = 4 * 1024;

impl Inbox {
    pub(super) fn new(generation: u32) -> Self {
        Self {
            generation,
            stream: None,
            head: None,
            interims: Interims::default(),
            first: None,
            pieces: VecDeque::new(),
            small: BytesMut::new(),
            trailers: None,
            end: End::Open,
            is_end_told: false,
            remaining: None,
            reader: None,
            taken: 0,
            is_dropped: false,
            is_touched: false,
        }
    }

    pub(super) fn wait(&mut self, cx: &Context<'_>) {
        match &mut self.reader {
            Some(reader) => reader.clone_from(cx.waker()),
            None => self.reader = Some(cx.waker().clone()),
        }
    }

    pub(super) fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        if self.first.is_none() && self.pieces.is_empty() && self.small.is_empty() {
            self.first = Some(data);
            return;
        }
        if data.len() < SMALL_BYTES {
            return self.small.extend_from_slice(&data);
        }
        if !self.small.is_empty() {
            self.pieces.push_back(self.small.split().freeze());
        }
        self.pieces.push_back(data);
    }

    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let piece = self.first.take().or_else(|| self.pieces.pop_front());
        piece.or_else(|| (!self.small.is_empty()).then(|| self.small.split().freeze()))
    }

    /// Whether all of the message has come.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.end, End::Ended | End::Whole)
    }

    /// Bytes that were not read.
    pub(super) fn held(&self) -> usize {
        let pieces = self.first.iter().chain(&self.pieces);
        pieces.map(Bytes::len).sum::<usize>() + self.small.len()
    }

    pub(super) fn drop_content(&mut self) {
        self.first = None;
        self.pieces = VecDeque::new();
        self.small = BytesMut::new();
        self.trailers = None;
    }
}
