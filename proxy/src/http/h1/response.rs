//! A response's body on a client's side: it drives its connection, and gives it back at its end.

use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::Frame;
use tokio::task::{AbortHandle, spawn_local};
use weft_core::h1::{Decoded, Decoder, Malformed};

use super::body::Broken;
use super::client::{Connection, Home, Upload, lock};
use super::wire::Wire;
use crate::http::{BodyError, Io};

/// A read of a connection.
type Fill = fn(&mut Wire<Box<dyn Io>>, &mut Context<'_>) -> Poll<io::Result<usize>>;

/// An exchange whose response has begun.
#[derive(Debug)]
pub(super) struct Exchange {
    driver: Driver,
}

/// Who drives the connection.
#[derive(Debug)]
enum Driver {
    /// The response alone.
    Response(Box<Connection>, Ending),
    /// The response and, until the request's body is sent, a task.
    Both(Arc<Mutex<Shared>>, AbortHandle),
}

/// What becomes of the connection.
#[derive(Debug)]
struct Ending {
    home: Home,
    reusable: bool,
}

/// A connection while both bodies move.
#[derive(Debug)]
struct Shared {
    /// `None` once nobody needs it.
    connection: Option<Box<Connection>>,
    ending: Option<Ending>,
    sent: bool,
    received: bool,
    /// Why the exchange was given up, where the request's body has stalled.
    given_up: Option<Broken>,
    /// The response's reader, while it waits.
    reader: Option<Waker>,
}

impl Exchange {
    pub(super) fn new(
        connection: Box<Connection>,
        upload: Upload,
        home: Home,
        keep_alive: bool,
    ) -> Self {
        let reusable = keep_alive && !upload.failed;
        let ending = Ending { home, reusable };
        if upload.is_done(&connection.wire) || upload.failed {
            return Self {
                driver: Driver::Response(connection, ending),
            };
        }
        let shared = Arc::new(Mutex::new(Shared {
            connection: Some(connection),
            ending: Some(ending),
            sent: false,
            received: false,
            given_up: None,
            reader: None,
        }));
        let task = spawn_local(send_rest(Arc::clone(&shared), upload));
        Self {
            driver: Driver::Both(shared, task.abort_handle()),
        }
    }

    /// The response has been received.
    pub(super) fn finish(self) {
        match self.driver {
            Driver::Response(connection, ending) => ending.end(connection),
            Driver::Both(shared, task) => {
                let mut shared = lock(&shared);
                shared.received = true;
                let closes = shared.ending.as_ref().is_none_or(|ending| !ending.reusable);
                if closes {
                    task.abort();
                    shared.connection = None;
                }
                shared.end();
            }
        }
    }

    /// The response is given up.
    fn abandon(self) {
        if let Driver::Both(shared, task) = self.driver {
            task.abort();
            lock(&shared).connection = None;
        }
    }

    /// Receives more with `fill`; `None` once the connection has been given up.
    fn poll_fill(&mut self, cx: &mut Context<'_>, fill: Fill) -> Option<Poll<io::Result<usize>>> {
        match &mut self.driver {
            Driver::Response(connection, _) => Some(fill(&mut connection.wire, cx)),
            Driver::Both(shared, _) => {
                let mut shared = lock(shared);
                shared.reader = Some(cx.waker().clone());
                let connection = shared.connection.as_mut()?;
                Some(fill(&mut connection.wire, cx))
            }
        }
    }

    /// Why it was given up, where the request's body has stalled.
    fn given_up(&self) -> Option<Broken> {
        match &self.driver {
            Driver::Response(..) => None,
            Driver::Both(shared, _) => lock(shared).given_up.clone(),
        }
    }

    fn with<T>(&mut self, f: impl FnOnce(&mut Connection) -> T) -> Option<T> {
        match &mut self.driver {
            Driver::Response(connection, _) => Some(f(connection)),
            Driver::Both(shared, _) => lock(shared).connection.as_mut().map(|c| f(c)),
        }
    }
}

impl Ending {
    fn end(self, connection: Box<Connection>) {
        let wire = &connection.wire;
        if self.reusable && wire.read.is_empty() && !wire.eof && wire.is_flushed() {
            self.home.give_back(connection);
        }
    }
}

impl Shared {
    fn end(&mut self) {
        if self.sent
            && self.received
            && let (Some(connection), Some(ending)) = (self.connection.take(), self.ending.take())
        {
            ending.end(connection);
        }
    }
}

/// Sends the rest of a request's body while its response comes already.
async fn send_rest(shared: Arc<Mutex<Shared>>, mut upload: Upload) {
    let sent = poll_fn(|cx| match &mut lock(&shared).connection {
        Some(connection) => upload.poll(cx, &mut connection.wire),
        None => Poll::Ready(Ok(())),
    })
    .await;
    let mut shared = lock(&shared);
    shared.sent = true;
    if let Err(BodyError::Http1 {
        broken: broken @ Broken::Stalled(_),
        ..
    }) = &sent
    {
        shared.connection = None;
        shared.given_up = Some(broken.clone());
        if let Some(reader) = shared.reader.take() {
            reader.wake();
        }
    }
    if (sent.is_err() || upload.failed)
        && let Some(ending) = &mut shared.ending
    {
        ending.reusable = false;
    }
    shared.end();
}

/// A response's body, which reads from its connection when it is asked for more.
#[derive(Debug)]
pub struct Response {
    /// `None` once the body has ended.
    exchange: Option<Exchange>,
    decoder: Decoder,
    /// Received with what came before, and not given yet.
    next: Option<Result<Decoded, Malformed>>,
}

impl Response {
    /// The body of a response whose head has been received.
    pub(super) fn new(exchange: Exchange, decoder: Decoder) -> Self {
        Self {
            exchange: Some(exchange),
            decoder,
            next: None,
        }
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let decoded = match self.next.take() {
                Some(next) => next,
                None => self.decode(),
            };
            match decoded {
                Ok(Decoded::Data(data)) => {
                    self.look_ahead();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Decoded::Trailers(trailers)) => {
                    self.look_ahead();
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Ok(Decoded::End) => {
                    self.finish();
                    return Poll::Ready(None);
                }
                Ok(Decoded::NeedMore) => {}
                Err(malformed) => return self.fail(malformed.into()),
            }
            let exchange = self.exchange.as_mut();
            if let Some(stalled) = exchange.as_ref().and_then(|exchange| exchange.given_up()) {
                self.exchange = None;
                // The caller's doing, not the server's.
                return Poll::Ready(Some(Err(BodyError::of_request(stalled))));
            }
            match exchange.and_then(|exchange| exchange.poll_fill(cx, Wire::poll_fill_body)) {
                Some(Poll::Pending) => return Poll::Pending,
                Some(Poll::Ready(Ok(1..))) => {}
                Some(Poll::Ready(Ok(0))) | None => match self.decoder.on_eof() {
                    Ok(()) => {}
                    Err(malformed) => return self.fail(malformed.into()),
                },
                Some(Poll::Ready(Err(error))) => return self.fail(Broken::Reset(error.kind())),
            }
        }
    }

    /// Why it has broken, where that is known already: nothing is taken. While nothing that was received
    /// waits to be taken, a little more is received, which alone tells that the server has gone.
    pub(super) fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        if let Some(Err(malformed)) = self.next.take_if(|next| next.is_err()) {
            return Poll::Ready(self.broken(malformed.into()));
        }
        let Some(exchange) = &mut self.exchange else {
            return Poll::Pending;
        };
        if let Some(stalled) = exchange.given_up() {
            self.exchange = None;
            return Poll::Ready(BodyError::of_request(stalled));
        }
        if exchange.with(|connection| !connection.wire.read.is_empty()) == Some(true) {
            return Poll::Pending;
        }
        match exchange.poll_fill(cx, Wire::poll_fill_ahead) {
            Some(Poll::Pending | Poll::Ready(Ok(1..))) => Poll::Pending,
            Some(Poll::Ready(Ok(0))) | None => match self.decoder.on_eof() {
                Ok(()) => Poll::Pending,
                Err(malformed) => Poll::Ready(self.broken(malformed.into())),
            },
            Some(Poll::Ready(Err(error))) => Poll::Ready(self.broken(Broken::Reset(error.kind()))),
        }
    }

    fn decode(&mut self) -> Result<Decoded, Malformed> {
        let decoder = &mut self.decoder;
        let decode = |connection: &mut Connection| decoder.decode(&mut connection.wire.read);
        match &mut self.exchange {
            Some(exchange) => exchange.with(decode).unwrap_or(Ok(Decoded::NeedMore)),
            None => Ok(Decoded::End),
        }
    }

    /// The end may have been received with what came before it: then the reader is told with that,
    /// and the connection is free.
    fn look_ahead(&mut self) {
        match self.decode() {
            Ok(Decoded::NeedMore) => {}
            Ok(Decoded::End) => self.finish(),
            next @ (Ok(Decoded::Data(_) | Decoded::Trailers(_)) | Err(_)) => self.next = Some(next),
        }
    }

    fn finish(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.finish();
        }
    }

    fn fail(&mut self, broken: Broken) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(Some(Err(self.broken(broken))))
    }

    fn broken(&mut self, broken: Broken) -> BodyError {
        if let Some(exchange) = self.exchange.take() {
            exchange.abandon();
        }
        BodyError::of_response(broken)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.exchange.is_none() && self.next.is_none()
    }

    pub(super) fn remaining(&self) -> Option<u64> {
        let next = match &self.next {
            Some(Ok(Decoded::Data(data))) => data.len() as u64,
            Some(_) | None => 0,
        };
        Some(self.decoder.remaining()? + next)
    }
}

impl Drop for Response {
    fn drop(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.abandon();
        }
    }
}
