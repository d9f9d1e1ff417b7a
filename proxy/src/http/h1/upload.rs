//! A request's body on the side of the connection that receives it.

use std::sync::Arc;
use std::task::Context;

use bytes::BytesMut;
use tokio::time::Instant;
use weft_core::h1::{Decoded, Decoder, Framing, Limits, Malformed, Message, RequestHead};

use super::body::{Broken, Demand, Expectation, Http1Body, RequestBody, Slot};

/// A body that was not received whole with its head.
#[derive(Debug)]
pub(super) struct Upload {
    slot: Arc<Slot>,
    decoder: Decoder,
    /// The client waits for 100 before it sends the body.
    pub(super) expected: bool,
    /// Since when the reader has waited for more.
    waiting: Option<Instant>,
}

/// What became of what was received.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fed {
    /// The reader got something.
    Some,
    /// The reader waits for more than has been received.
    Starved,
    /// The reader wants nothing now.
    Full,
    /// The body is complete.
    Done,
    /// The reader is gone, and the body is not complete.
    Unwanted,
}

impl Upload {
    /// The body of a request, and what is still to be received of it.
    pub(super) fn of(
        head: &RequestHead,
        received: &mut BytesMut,
        limits: &Limits,
    ) -> (Http1Body, Option<Self>) {
        let length = match head.framing {
            Framing::None | Framing::UntilClose => return (Http1Body::EMPTY, None),
            Framing::Length(length) => Some(length),
            Framing::Chunked => None,
        };
        if let Some(length) = length.and_then(|length| usize::try_from(length).ok())
            && length <= received.len()
        {
            return (Http1Body::Whole(received.split_to(length).freeze()), None);
        }
        let slot = Arc::<Slot>::default();
        let body = Http1Body::Request(RequestBody::new(&slot, length));
        let upload = Self {
            slot,
            decoder: Decoder::new(Message::Request, head.framing, limits),
            expected: head.expect_continue && received.is_empty(),
            waiting: None,
        };
        (body, Some(upload))
    }

    /// Where the client waits for 100: what decides when that is said.
    pub(super) fn expectation(&self) -> Option<Expectation> {
        self.expected.then(|| Expectation::new(&self.slot))
    }

    /// Whether all of it was received.
    pub(super) fn is_done(&self) -> bool {
        self.decoder.is_done()
    }

    /// Since when the reader has waited for more.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.waiting
    }

    /// Hands the reader what it wants of what was received.
    pub(super) fn feed(
        &mut self,
        cx: &Context<'_>,
        received: &mut BytesMut,
    ) -> Result<Fed, Malformed> {
        if self.is_done() {
            return Ok(Fed::Done);
        }
        let demand = self.slot.demand(cx);
        match demand {
            Demand::Gone => return Ok(Fed::Unwanted),
            Demand::None => {
                self.waiting = None;
                return Ok(Fed::Full);
            }
            Demand::Waiting | Demand::Ahead => {}
        }
        let decoded = self.decoder.decode(received).inspect_err(|malformed| {
            self.slot.fail(Broken::Malformed(malformed.clone()));
        })?;
        match decoded {
            Decoded::NeedMore => {
                if demand == Demand::Waiting && self.waiting.is_none() {
                    self.waiting = Some(Instant::now());
                }
                return Ok(Fed::Starved);
            }
            Decoded::Data(data) => self.slot.put(data, cx),
            Decoded::Trailers(trailers) => self.slot.end(Some(trailers), cx),
            Decoded::End => self.slot.end(None, cx),
        }
        self.waiting = None;
        if self.is_done() {
            // The last data of a known length, whose reader does not ask again.
            self.slot.end_if_open(cx);
        }
        Ok(Fed::Some)
    }

    /// Forgets what was received of a body that nobody reads; how many bytes of it.
    pub(super) fn discard(&mut self, received: &mut BytesMut) -> Result<usize, Malformed> {
        let before = received.len();
        loop {
            match self.decoder.decode(received)? {
                Decoded::NeedMore | Decoded::End => return Ok(before - received.len()),
                Decoded::Data(_) | Decoded::Trailers(_) => {}
            }
        }
    }

    /// Whether the end of the connection, of which this was received before, ends the body too
    /// early; `None` where that depends on what its reader has not taken yet.
    pub(super) fn on_eof(&mut self, received: &BytesMut) -> Option<Malformed> {
        let missing = self.decoder.remaining();
        let all_here = missing.is_none_or(|missing| missing <= received.len() as u64);
        if self.is_done() || (all_here && !received.is_empty()) {
            return None;
        }
        let malformed = self.decoder.on_eof().err()?;
        self.slot.fail(Broken::Malformed(malformed.clone()));
        Some(malformed)
    }

    /// The reader gets no more.
    pub(super) fn fail(&self, broken: Broken) {
        self.slot.fail(broken);
    }
}
