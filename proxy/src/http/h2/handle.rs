//! What sends requests over a connection, from any thread.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use http::{Request, Response};

use super::body::StreamBody;
use super::failure::StreamFailure;
use super::inbox::{InboxId, Inboxes, Reader};
use super::ready::Ready;

/// Sends requests over a connection. When the last one is dropped, the connection ends after the
/// requests that are under way.
#[derive(Debug)]
pub struct Handle<B>(Arc<Last<B>>);

impl<B> Clone for Handle<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Tells the connection that it was the last handle.
#[derive(Debug)]
struct Last<B>(Arc<Shared<B>>);

impl<B> Drop for Last<B> {
    fn drop(&mut self) {
        self.0.lock().is_abandoned = true;
        self.0.ready.nudge();
    }
}

/// What handles and the task that drives the connection share.
#[derive(Debug)]
pub(super) struct Shared<B> {
    queue: Mutex<Queue<B>>,
    pub(super) ready: Arc<Ready>,
    pub(super) inboxes: Arc<Inboxes>,
}

/// What the task that drives the connection is to do.
#[derive(Debug)]
pub(super) struct Queue<B> {
    /// Requests that have no stream yet.
    pub(super) requests: VecDeque<(InboxId, Box<Request<B>>)>,
    /// Requests of which nothing was sent, for those who wait for their responses.
    unsent: Vec<(InboxId, Box<Request<B>>)>,
    /// Why there are no new ones.
    closed: Option<StreamFailure>,
    /// Whether nobody can send any more.
    pub(super) is_abandoned: bool,
}

impl<B> Shared<B> {
    pub(super) fn new() -> Arc<Self> {
        let ready = Arc::<Ready>::default();
        Arc::new(Self {
            queue: Mutex::new(Queue {
                requests: VecDeque::new(),
                unsent: Vec::new(),
                closed: None,
                is_abandoned: false,
            }),
            inboxes: Inboxes::new(&ready),
            ready,
        })
    }

    /// Takes no more requests; those without a stream are given back.
    pub(super) fn close(&self, failure: &StreamFailure) {
        let mut queue = self.lock();
        queue.closed.get_or_insert_with(|| failure.clone());
        let requests = std::mem::take(&mut queue.requests);
        drop(queue);
        for (inbox, request) in requests {
            self.give_back(inbox, request, failure.clone());
        }
    }

    /// Nothing of a request was sent.
    pub(super) fn give_back(
        &self,
        inbox: InboxId,
        request: Box<Request<B>>,
        failure: StreamFailure,
    ) {
        if self.inboxes.is_dropped(inbox) {
            return;
        }
        self.lock().unsent.push((inbox, request));
        self.inboxes.fail(inbox, failure);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Queue<B>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> Handle<B> {
    pub(super) fn new(shared: Arc<Shared<B>>) -> Self {
        Self(Arc::new(Last(shared)))
    }

    /// Whether the connection takes no more requests.
    pub fn is_closed(&self) -> bool {
        self.0.0.lock().closed.is_some()
    }

    /// Sends a request; a [`Protocol`] among its extensions makes it an extended CONNECT. Dropped before
    /// it is answered, the request is given up.
    pub fn send(&self, request: Box<Request<B>>) -> Exchange<B> {
        let shared = &self.0.0;
        let inbox = shared.inboxes.open(None, None);
        let reader = Reader::new(&shared.inboxes, inbox);
        let mut queue = shared.lock();
        let closed = queue.closed.clone();
        match closed {
            None => queue.requests.push_back((inbox, request)),
            Some(_) => queue.unsent.push((inbox, request)),
        }
        drop(queue);
        match closed {
            None => shared.ready.nudge(),
            Some(failure) => shared.inboxes.fail(inbox, failure),
        }
        Exchange {
            shared: Arc::clone(shared),
            reader: Some(reader),
        }
    }
}

/// A request that waits for its response.
#[derive(Debug)]
pub struct Exchange<B> {
    shared: Arc<Shared<B>>,
    /// Until the response is there.
    reader: Option<Reader>,
}

/// A request that got no response.
#[derive(Debug)]
pub struct Failed<B> {
    /// Why.
    pub failure: StreamFailure,
    /// The request, where nothing of it was sent.
    pub unsent: Option<Box<Request<B>>>,
}

impl<B> Future for Exchange<B> {
    type Output = Result<Response<StreamBody>, Failed<B>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(reader) = &mut self.reader else {
            let (failure, unsent) = (StreamFailure::Ended, None);
            return Poll::Ready(Err(Failed { failure, unsent }));
        };
        let head = match ready!(reader.poll_head(cx)) {
            Ok(head) => head,
            Err(failure) => {
                let unsent = self.take_unsent();
                return Poll::Ready(Err(Failed { failure, unsent }));
            }
        };
        let body = self.reader.take().map(StreamBody::behind_head);
        let body = body.unwrap_or(StreamBody::EMPTY);
        Poll::Ready(Ok(Response::from_parts(head.parts, body)))
    }
}

impl<B> Exchange<B> {
    /// The request, if nothing of it was sent.
    fn take_unsent(&self) -> Option<Box<Request<B>>> {
        let inbox = self.reader.as_ref()?.id();
        let mut queue = self.shared.lock();
        let place = queue.unsent.iter().position(|(of, _)| *of == inbox)?;
        Some(queue.unsent.swap_remove(place).1)
    }
}

impl<B> Drop for Exchange<B> {
    fn drop(&mut self) {
        drop(self.take_unsent());
    }
}
