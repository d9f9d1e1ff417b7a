//! What is done on the streams of a server's connection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Waker;

use http::Method;
use tokio::time::Instant;
use weft_core::h2::connection::StreamKey;
use weft_core::interim::Interims;

use super::inbox::InboxId;
use super::outgoing::Outgoing;
use super::ready::{Part, Ready};
use super::service::Service;

/// Places for requests that a connection without any keeps.
const PLACES_KEPT: usize = 32;

/// What is done on one stream, in a place that one stream after the other has.
pub(super) struct Exchange<S: Service> {
    pub(super) part: Arc<Part>,
    pub(super) waker: Waker,
    pub(super) stream: Option<StreamKey>,
    pub(super) inbox: Option<InboxId>,
    /// Its place on the heap is there once, and not for each request.
    pub(super) handler: Pin<Box<Option<S::Answer>>>,
    pub(super) guard: Option<S::Guard>,
    /// The request's.
    pub(super) method: Method,
    pub(super) answer: Option<Outgoing<S::Body>>,
    /// What has come before the answer.
    pub(super) interims: Interims,
    /// Whether the client waits for 100 before it sends the request's body.
    pub(super) expects_continue: bool,
}

impl<S: Service> Exchange<S> {
    fn new(number: u32, ready: &Arc<Ready>) -> Self {
        let part = Part::new(number, ready);
        Self {
            waker: Waker::from(Arc::clone(&part)),
            part,
            stream: None,
            inbox: None,
            handler: Box::pin(None),
            guard: None,
            method: Method::GET,
            answer: None,
            interims: Interims::default(),
            expects_continue: false,
        }
    }

    /// Gives up what is done.
    pub(super) fn drop_work(&mut self) {
        self.handler.set(None);
        self.guard = None;
        self.answer = None;
    }

    /// Whether the answer has been sent.
    pub(super) fn is_over(&self) -> bool {
        self.handler.is_none() && self.answer.is_none()
    }

    /// Since when the client takes nothing of an answer that is bounded in that.
    pub(super) fn untaken_since(&self) -> Option<Instant> {
        self.answer.as_ref()?.untaken_since()
    }
}

/// All of a connection, by the slots of their streams.
pub(super) struct Exchanges<S: Service>(Vec<Exchange<S>>);

impl<S: Service> Exchanges<S> {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    /// The place of a new stream.
    pub(super) fn begin(&mut self, stream: StreamKey, ready: &Arc<Ready>) -> &mut Exchange<S> {
        while self.0.len() <= stream.slot() {
            // There are fewer than streams.
            let number = self.0.len() as u32;
            self.0.push(Exchange::new(number, ready));
        }
        let exchange = &mut self.0[stream.slot()];
        exchange.drop_work();
        exchange.stream = Some(stream);
        exchange.inbox = None;
        exchange.method = Method::GET;
        exchange.interims = Interims::default();
        exchange.expects_continue = false;
        exchange
    }

    /// That of a stream, unless it is over.
    pub(super) fn of(&mut self, stream: StreamKey) -> Option<&mut Exchange<S>> {
        let exchange = self.0.get_mut(stream.slot())?;
        (exchange.stream == Some(stream)).then_some(exchange)
    }

    /// That with the number of a part that was woken.
    pub(super) fn get_mut(&mut self, number: usize) -> Option<&mut Exchange<S>> {
        self.0.get_mut(number)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Exchange<S>> {
        self.0.iter_mut()
    }

    /// Gives back the memory of a burst: a place has room for a handler. What still wakes one of them
    /// wakes nobody.
    pub(super) fn forget_places(&mut self) {
        if self.0.len() > PLACES_KEPT {
            self.0 = Vec::new();
        }
    }
}
