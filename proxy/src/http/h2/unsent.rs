//! Requests on a client's connection that were answered before all of them was sent. A server may still
//! read them; one that does not would keep what is queued of them.

use std::collections::VecDeque;
use std::task::Context;
use std::time::Duration;

use http::Method;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use weft_core::h2::connection::StreamKey;

use super::answering::Stalls;
use super::client::{Driving, upload};
use super::outgoing::Outbound;

/// How long a server that has answered a request may take nothing of what is queued of it.
const UNTAKEN: Duration = Duration::from_secs(10);
/// So many answered requests may be under way on a connection: up to a stream's window is queued of each.
const UNSENT: usize = 256;

/// Answered requests of which something is still sent.
#[derive(Debug)]
pub(super) struct Unsent {
    /// Their streams, the oldest first, and some that have ended.
    streams: VecDeque<StreamKey>,
    stalls: Stalls,
}

impl Unsent {
    pub(super) fn new() -> Self {
        Self {
            streams: VecDeque::new(),
            stalls: Stalls::new(Some(UNTAKEN)),
        }
    }

    /// The server takes nothing since then.
    pub(super) fn on_blocked(&mut self, since: Instant) {
        self.stalls.begin(since);
    }
}

impl<IO, B> Driving<IO, B>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    B: Outbound,
{
    /// Bounds what is queued of a request that is answered. A tunnel whose other side has ended goes on.
    pub(super) fn bound_unsent(&mut self, stream: StreamKey) {
        let Some(upload) = upload(&mut self.uploads, stream) else {
            return;
        };
        let Some(body) = upload
            .body
            .as_mut()
            .filter(|_| upload.method != Method::CONNECT)
        else {
            return;
        };
        body.bound();
        if let Some(since) = body.untaken_since() {
            self.unsent.on_blocked(since);
        }
        self.unsent.streams.push_back(stream);
        if self.unsent.streams.len() > UNSENT {
            self.end_oldest_unsent();
        }
    }

    /// Gives up the oldest request where there are too many that are not sent.
    fn end_oldest_unsent(&mut self) {
        let (uploads, streams) = (&mut self.uploads, &mut self.unsent.streams);
        streams.retain(|stream| upload(uploads, *stream).is_some_and(|upload| upload.is_sending()));
        if streams.len() > UNSENT
            && let Some(oldest) = streams.pop_front()
            && let Some(upload) = upload(uploads, oldest)
        {
            upload.give_up(&mut self.turns.wire.connection, oldest);
        }
    }

    /// Gives up answered requests of which their server has taken nothing for too long.
    pub(super) fn cut_unsent(&mut self, cx: &mut Context<'_>) {
        while let Some(limit) = self.unsent.stalls.poll(cx) {
            let now = Instant::now();
            let mut first: Option<Instant> = None;
            let (uploads, connection) = (&mut self.uploads, &mut self.turns.wire.connection);
            self.unsent.streams.retain(|stream| {
                let Some(upload) = upload(uploads, *stream) else {
                    return false;
                };
                let since = upload.body.as_ref().and_then(|body| body.untaken_since());
                let Some(since) = since else {
                    return upload.is_sending();
                };
                if now >= since + limit {
                    upload.give_up(connection, *stream);
                    return false;
                }
                first = Some(first.map_or(since, |first| first.min(since)));
                true
            });
            if let Some(since) = first {
                self.unsent.on_blocked(since);
            }
        }
    }
}
