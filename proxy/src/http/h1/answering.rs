//! Answers on a server's side: interim ones, the final one, and what a client is told whose request is
//! given up.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Method, Response, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use weft_core::h1::{Framing, Malformed, RequestHead, ResponseOptions, encode_response};
use weft_core::headers::is_grpc;
use weft_core::interim::Interims;
use weft_core::reason::Reason;

use super::outgoing::{Cut, Outgoing, framing};
use super::server::{Answer, CONTINUE, Connection, End, HALF_CLOSED_SILENCE, earlier};
use super::upload::Upload;
use crate::http::{BodyGuard, ProxyBody, answer};

/// What an answer has to know of its request.
pub(super) struct Asked {
    pub(super) method: Method,
    version: Version,
    pub(super) keep_alive: bool,
    pub(super) grpc: bool,
}

impl Asked {
    pub(super) fn of(head: &RequestHead) -> Self {
        Self {
            method: head.parts.method.clone(),
            version: head.parts.version,
            keep_alive: head.keep_alive,
            grpc: head.parts.method != Method::CONNECT && is_grpc(&head.parts.headers),
        }
    }
}

/// The wait for an answer.
pub(super) struct Waiting<'a> {
    asked: &'a Asked,
    /// Since when one whose client has ended its sending is waited for.
    pub(super) since: Option<Instant>,
    /// Those that have come before it.
    pub(super) interims: Interims,
}

impl<'a> Waiting<'a> {
    pub(super) fn of(asked: &'a Asked) -> Self {
        Self {
            asked,
            since: None,
            interims: Interims::default(),
        }
    }
}

/// Why a request is not answered to its end.
#[derive(Debug)]
pub(super) enum Gone {
    /// The client went away.
    Client,
    /// The client's body is broken.
    Malformed(Malformed),
    /// The client's body was waited for in vain.
    Stalled(Duration),
    /// The answer's own body ended early.
    Answer,
}

/// What a client is told whose request is given up.
pub(super) struct Told {
    pub(super) reason: Reason,
    pub(super) status: StatusCode,
    detail: String,
}

impl Told {
    /// `None` where there is nobody to tell.
    pub(super) fn of(gone: Gone, grpc: bool) -> Option<Self> {
        let (reason, status, detail) = match gone {
            Gone::Client | Gone::Answer => return None,
            Gone::Malformed(malformed) => {
                let detail = malformed.to_string();
                (malformed.reason(), malformed.status(), detail)
            }
            Gone::Stalled(limit) => {
                let detail = format!("nothing came of the body within {limit:?}");
                (Reason::ClientTimeout, 408, detail)
            }
        };
        let status = match grpc {
            true => StatusCode::OK,
            false => StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST),
        };
        Some(Self {
            reason,
            status,
            detail,
        })
    }
}

impl From<io::Error> for Gone {
    fn from(_error: io::Error) -> Self {
        Self::Client
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Connection<IO> {
    /// Tells a client that can still be told why its request is not answered.
    pub(super) async fn give_up(&mut self, told: Option<Told>, asked: &Asked) -> End {
        let Some(told) = told else {
            return End::Closed;
        };
        let mut answer: Answer<()> = answer(told.reason, &told.detail, asked.grpc);
        *answer.status_mut() = told.status;
        self.last_answer(&asked.method, answer).await
    }

    /// Writes the interim responses that have come; whether there were any. 100 goes to a client
    /// that still waits for it; nothing goes to one that speaks HTTP/1.0.
    pub(super) fn write_interims(
        &mut self,
        waiting: &mut Waiting<'_>,
        upload: &mut Option<Upload>,
    ) -> bool {
        let (interims, asked) = (waiting.interims.take(), waiting.asked);
        let are_any = !interims.is_empty();
        for interim in interims {
            let (status, headers) = interim.into_parts();
            if status == StatusCode::CONTINUE {
                let waits = |upload: &mut Upload| std::mem::take(&mut upload.expected);
                if upload.as_mut().is_some_and(waits) {
                    self.wire.out().extend_from_slice(CONTINUE);
                }
                continue;
            }
            let mut head = Response::new(());
            *head.status_mut() = status;
            *head.headers_mut() = headers;
            let options = ResponseOptions {
                request_method: &asked.method,
                client_version: asked.version,
                keep_alive: true,
                date: None,
            };
            let (parts, ()) = head.into_parts();
            encode_response(&parts, Framing::None, options, self.wire.out());
        }
        are_any
    }

    pub(super) async fn last_answer<G: BodyGuard>(
        &mut self,
        method: &Method,
        answer: Answer<G>,
    ) -> End {
        let asked = Asked {
            method: method.clone(),
            version: Version::HTTP_11,
            keep_alive: false,
            grpc: false,
        };
        match self.answer(answer, &asked, false, &mut None).await {
            Ok(_never_kept) => End::Unread,
            Err(_gone) => End::Closed,
        }
    }

    /// Writes an answer; whether the connection goes on.
    pub(super) async fn answer<G: BodyGuard>(
        &mut self,
        answer: Answer<G>,
        asked: &Asked,
        keep_alive: bool,
        upload: &mut Option<Upload>,
    ) -> Result<bool, Gone> {
        let (parts, body) = answer.into_parts();
        let options = ResponseOptions {
            request_method: &asked.method,
            client_version: asked.version,
            keep_alive,
            date: None,
        };
        let known = framing(&parts.headers, &body);
        let written = encode_response(&parts, known, options, self.wire.out());
        let mut outgoing = Outgoing::new(body, written.framing);
        let mut progress = (self.wire.written, None);
        poll_fn(|cx| self.poll_write(cx, upload, &mut outgoing, &mut progress)).await?;
        Ok(written.keep_alive)
    }

    fn poll_write<G: BodyGuard>(
        &mut self,
        cx: &mut Context<'_>,
        upload: &mut Option<Upload>,
        outgoing: &mut Outgoing<ProxyBody<G>>,
        progress: &mut (u64, Option<Instant>),
    ) -> Poll<Result<(), Gone>> {
        loop {
            // Before anything is received, which flushes: the head leaves with the body's beginning.
            match outgoing.poll(cx, &mut self.wire) {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(Cut::Io(_))) => return Poll::Ready(Err(Gone::Client)),
                Poll::Ready(Err(Cut::Body(_))) => return Poll::Ready(Err(Gone::Answer)),
                Poll::Pending => {}
            }
            if !self.receive(cx, upload)? {
                break;
            }
        }
        if progress.0 != self.wire.written {
            *progress = (self.wire.written, None);
        }
        let unread = self.settings.stall.filter(|_| !self.wire.is_drained());
        let mut after = |limit| *progress.1.get_or_insert_with(Instant::now) + limit;
        let unread = unread.map(&mut after);
        let closed = self.half_closed.map(|_| after(HALF_CLOSED_SILENCE));
        let stalled = self.stalls_at(upload.as_ref());
        self.timer.set(earlier(earlier(unread, closed), stalled));
        ready!(self.timer.poll(cx));
        Poll::Ready(Err(self.overdue(upload, stalled)))
    }
}
