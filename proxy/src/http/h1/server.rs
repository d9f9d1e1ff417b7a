//! A server's side of connections in HTTP/1.1: one task each, which has requests answered one after
//! the other.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::Instant;
use weft_core::h1::{HeadScan, Message, RequestHead, TargetForm, parse_request};
use weft_core::headers::is_upgrade;
use weft_core::http1_form;
use weft_core::resets::TunnelUse;

use super::answering::{Asked, Gone, Told, Waiting};
use super::body::Broken;
use super::timer::Timer;
use super::upload::{Fed, Upload};
use super::wire::{HEAD_READ_BYTES, Wire};
use super::{Refusal, Settings};
use crate::clock::in_turns;
use crate::drain::Ends;
use crate::http::tunnel::Carried;
use crate::http::{
    BodyGuard, FIRST_REQUEST_WAIT, Incoming, Io, ProxyBody, Upgrade, Upgraded, interims,
};
use crate::telemetry::ledger::GivenUp;

/// A response on its way to the client.
pub(super) type Answer<G> = Response<ProxyBody<G>>;

/// Of what a client sends while its request is answered, this much is read ahead. Reading is what
/// tells that it has gone.
pub(super) const READ_AHEAD_BYTES: usize = 64 * 1024;
/// A client that has ended its sending may still read (RFC 9112 section 9.6). If nothing has been
/// answered after this long, it is taken to be gone.
const HALF_CLOSED_GRACE: Duration = Duration::from_secs(1);
/// The same once the answer has begun, since the last byte of it was written.
pub(super) const HALF_CLOSED_SILENCE: Duration = Duration::from_secs(60);

pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Serves a client's connection to its end. While the sidecar leaves, answers say that the
/// connection ends, and one that waits for another request is closed.
///
/// `reset` has a client see a reset where the end of the connection would look like that of an
/// answer, which is what HTTP/1.0 ends with. Answers how the connection was used as a tunnel, where it
/// became one.
pub(crate) async fn serve<IO, H, F, R, G>(
    io: IO,
    settings: Settings,
    ends: &Ends<'_>,
    (handle, refuse): (H, R),
    reset: impl FnOnce(&IO),
) -> Option<TunnelUse>
where
    IO: Io + 'static,
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Answer<G>>,
    R: Fn(Refusal) -> Answer<G>,
    G: BodyGuard,
{
    let mut connection = Connection {
        wire: Wire::new(io),
        scan: HeadScan::default(),
        timer: Timer::default(),
        settings,
        served: 0,
        half_closed: None,
    };
    let end = {
        let mut running = pin!(in_turns(connection.run(ends, handle, refuse)));
        tokio::select! {
            biased;
            end = &mut running => end,
            () = ends.cut() => End::Broken,
        }
    };
    match end {
        End::Closed => {}
        End::Abandoned => return Some(TunnelUse::UNOPENED),
        End::Broken => reset(connection.wire.io()),
        End::Unread => connection.linger().await,
        End::Upgraded(to) => {
            let (io, first) = connection.wire.into_parts();
            let (upgraded, used) = Upgraded::of_client(io, first, Carried::Connection);
            if to.send(upgraded).is_ok() {
                // A stream of bytes is this connection still.
                return used.await.ok();
            }
        }
    }
    None
}

pub(super) struct Connection<IO> {
    pub(super) wire: Wire<IO>,
    scan: HeadScan,
    pub(super) timer: Timer,
    pub(super) settings: Settings,
    /// Requests answered.
    served: u64,
    /// When the client ended its sending.
    pub(super) half_closed: Option<Instant>,
}

/// How a connection ends.
pub(super) enum End {
    /// Nothing more is to be done.
    Closed,
    /// Its client went away before it had an answer to its request for a stream of bytes.
    Abandoned,
    /// The answer is not whole.
    Broken,
    /// The client may be sending still.
    Unread,
    /// It goes on as a stream of bytes.
    Upgraded(oneshot::Sender<Upgraded>),
}

/// What comes next on a connection.
enum Next {
    Request(Box<RequestHead>),
    Refused(Refusal),
    Ended,
}

/// Waits for the sidecar to leave, and remembers that it does.
struct Leaving<'a, L> {
    future: Pin<&'a mut L>,
    /// Since when.
    reached: Option<Instant>,
}

impl<L: Future<Output = ()>> Leaving<'_, L> {
    /// Since when the connection has to come to its end, if it has to.
    fn poll(&mut self, cx: &mut Context<'_>) -> Option<Instant> {
        if self.reached.is_none() && self.future.as_mut().poll(cx).is_ready() {
            self.reached = Some(Instant::now());
        }
        self.reached
    }
}

/// A future on the heap, made there: its room is allocated first, so that it is not copied.
fn boxed<F>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    Box::into_pin(Box::write(Box::new_uninit(), make()))
}

/// What becomes of a connection after an exchange.
enum After {
    Next,
    End(End),
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Connection<IO> {
    async fn run<H, F, R, G>(&mut self, ends: &Ends<'_>, handle: H, refuse: R) -> End
    where
        H: Fn(Request<Incoming>) -> F,
        F: Future<Output = Answer<G>>,
        R: Fn(Refusal) -> Answer<G>,
        G: BodyGuard,
    {
        let mut leaving = Leaving {
            future: pin!(ends.leaving()),
            reached: None,
        };
        loop {
            let head = match self.next(&mut leaving).await {
                Next::Request(head) => head,
                Next::Refused(refusal) => {
                    let answer = refuse(refusal);
                    return self.last_answer(&Method::GET, answer).await;
                }
                Next::Ended => return End::Closed,
            };
            match self.exchange(*head, ends, &handle).await {
                After::Next => self.served += 1,
                After::End(end) => return end,
            }
        }
    }

    /// Waits for a request.
    async fn next<L: Future<Output = ()>>(&mut self, leaving: &mut Leaving<'_, L>) -> Next {
        let (mut idle_since, mut begun) = (None, None);
        poll_fn(|cx| {
            loop {
                let received = &mut self.wire.read;
                match parse_request(received, &mut self.scan, &self.settings.limits) {
                    Ok(Some(mut head)) => {
                        http1_form::put(head.form.take(), &mut head.parts.headers);
                        return Poll::Ready(Next::Request(Box::new(head)));
                    }
                    Ok(None) => {}
                    Err(malformed) => {
                        let refusal = Refusal::malformed(&malformed, received);
                        return Poll::Ready(Next::Refused(refusal));
                    }
                }
                let idle = self.scan.is_idle(received);
                if !idle {
                    begun.get_or_insert_with(Instant::now);
                }
                match self.wire.poll_fill(cx, HEAD_READ_BYTES) {
                    Poll::Ready(Ok(1..)) => continue,
                    Poll::Ready(Ok(0)) => return Poll::Ready(self.ended_before_request()),
                    Poll::Ready(Err(_gone)) => return Poll::Ready(Next::Ended),
                    Poll::Pending => {}
                }
                let leaving = leaving.poll(cx);
                if leaving.is_some() && idle && self.served > 0 {
                    return Poll::Ready(Next::Ended);
                }
                // The first request of one that has just been accepted may be on the way.
                let first = leaving.map(|since| since + FIRST_REQUEST_WAIT);
                let limit = match begun {
                    Some(begun) => Some(begun + self.settings.head),
                    None => {
                        let since = *idle_since.get_or_insert_with(Instant::now);
                        let idle = self.settings.idle.map(|idle| since + idle);
                        idle.into_iter().chain(first).min()
                    }
                };
                self.timer.set(limit);
                ready!(self.timer.poll(cx));
                return Poll::Ready(match begun {
                    None => Next::Ended,
                    Some(_) => Next::Refused(Refusal::late(self.settings.head, &self.wire.read)),
                });
            }
        })
        .await
    }

    /// A client that ends its sending within a head may still read.
    fn ended_before_request(&self) -> Next {
        let received = &self.wire.read;
        match self.scan.on_eof(received, Message::Request) {
            Ok(()) => Next::Ended,
            Err(malformed) => Next::Refused(Refusal::malformed(&malformed, received)),
        }
    }

    async fn exchange<H, F, G>(&mut self, head: RequestHead, ends: &Ends<'_>, handle: &H) -> After
    where
        H: Fn(Request<Incoming>) -> F,
        F: Future<Output = Answer<G>>,
        G: BodyGuard,
    {
        let asked = Asked::of(&head);
        let (body, mut upload) = Upload::of(&head, &mut self.wire.read, &self.settings.limits);
        let mut request = Request::from_parts(head.parts, Incoming::from(body));
        if head.target_form == TargetForm::Absolute {
            request.extensions_mut().insert(head.target_form);
        }
        if let Some(expectation) = upload.as_ref().and_then(Upload::expectation) {
            request.extensions_mut().insert(expectation);
        }
        let asks = is_upgrade(request.version(), request.method(), request.headers());
        let upgrade = asks.then(|| {
            let (to, upgrade) = Upgrade::pending();
            request.extensions_mut().insert(upgrade);
            to
        });
        // Told before the request is dropped.
        let given_up = upload.is_some().then(GivenUp::default);
        if let Some(given_up) = &given_up {
            request.extensions_mut().insert(given_up.clone());
        }
        let answered = {
            // On the heap: a connection that waits for a request needs no room for one.
            let (mut handling, mut waiting) = (boxed(|| handle(request)), Waiting::of(&asked));
            let answered =
                poll_fn(|cx| self.poll_answer(cx, &mut upload, handling.as_mut(), &mut waiting))
                    .await;
            answered.map_err(|gone| {
                let told = Told::of(gone, asked.grpc);
                if let (Some(told), Some(given_up)) = (&told, &given_up) {
                    given_up.tell(told.reason, told.status);
                }
                told
            })
        };
        let answer = match answered {
            Ok(answer) => answer,
            Err(None) if upgrade.is_some() => return After::End(End::Abandoned),
            Err(told) => return After::End(self.give_up(told, &asked).await),
        };
        let status = answer.status();
        // A client that still waits for 100 is not asked for the body any more.
        let withheld = upload.take_if(|upload| upload.expected);
        let keep_alive = asked.keep_alive
            && withheld.is_none()
            && !ends.is_leaving()
            && (self.half_closed.is_none() || !self.wire.read.is_empty());
        let kept = match self.answer(answer, &asked, keep_alive, &mut upload).await {
            Ok(kept) => kept,
            Err(_gone) => return After::End(End::Broken),
        };
        let tunnel = status == StatusCode::SWITCHING_PROTOCOLS
            || (asked.method == Method::CONNECT && status.is_success());
        if tunnel {
            return After::End(upgrade.map_or(End::Closed, End::Upgraded));
        }
        let read = match &mut upload {
            None => withheld.is_none(),
            Some(upload) => self.finish(upload).await,
        };
        if let Some(upload) = upload.or(withheld) {
            upload.fail(Broken::Answered);
        }
        match (kept, read && self.wire.read.is_empty()) {
            (true, _) if read => After::Next,
            (false, true) => After::End(self.close().await),
            _ => After::End(End::Unread),
        }
    }

    /// Has the request answered, and gives up when its client has gone.
    fn poll_answer<F: Future<Output = Answer<G>>, G>(
        &mut self,
        cx: &mut Context<'_>,
        upload: &mut Option<Upload>,
        mut handling: Pin<&mut F>,
        waiting: &mut Waiting<'_>,
    ) -> Poll<Result<Answer<G>, Gone>> {
        self.receive(cx, upload)?;
        loop {
            let polled = interims::collect(&mut waiting.interims, || handling.as_mut().poll(cx));
            let has_written = self.write_interims(waiting, upload);
            if let Poll::Ready(answer) = polled {
                return Poll::Ready(Ok(answer));
            }
            // It may have asked for more of the body; what was written is to leave.
            if (upload.is_none() && !has_written) || !self.receive(cx, upload)? {
                break;
            }
        }
        let stalled = self.stalls_at(upload.as_ref());
        let closed = self.half_closed.map(|since| {
            let waiting = *waiting.since.get_or_insert_with(Instant::now);
            since.max(waiting) + HALF_CLOSED_GRACE
        });
        self.timer.set(earlier(stalled, closed));
        ready!(self.timer.poll(cx));
        Poll::Ready(Err(self.overdue(upload, stalled)))
    }

    /// When a body that its reader waits for is given up.
    pub(super) fn stalls_at(&self, upload: Option<&Upload>) -> Option<Instant> {
        Some(upload?.waiting_since()? + self.settings.stall?)
    }

    pub(super) fn overdue(&self, upload: &Option<Upload>, stalled: Option<Instant>) -> Gone {
        match (stalled, upload, self.settings.stall) {
            (Some(at), Some(upload), Some(limit)) if at <= Instant::now() => {
                upload.fail(Broken::Stalled(limit));
                Gone::Stalled(limit)
            }
            _ => Gone::Client,
        }
    }

    /// Receives what the body's reader wants, and what tells that the client has gone. Whether the
    /// reader got something.
    pub(super) fn receive(
        &mut self,
        cx: &mut Context<'_>,
        upload: &mut Option<Upload>,
    ) -> Result<bool, Gone> {
        let mut fed_any = false;
        loop {
            let mut starved = false;
            if let Some(upload) = upload {
                match upload
                    .feed(cx, &mut self.wire.read)
                    .map_err(Gone::Malformed)?
                {
                    Fed::Some => {
                        fed_any = true;
                        continue;
                    }
                    Fed::Starved => starved = true,
                    Fed::Full | Fed::Done | Fed::Unwanted => {}
                }
                if starved && std::mem::take(&mut upload.expected) {
                    self.wire.out().extend_from_slice(CONTINUE);
                }
            }
            if !self.wire.is_drained()
                && let Poll::Ready(flushed) = self.wire.poll_flush(cx)
            {
                flushed?;
            }
            if !starved && self.wire.read.len() >= READ_AHEAD_BYTES {
                return Ok(fed_any);
            }
            let filled = match starved {
                true => self.wire.poll_fill_body(cx),
                false => self.wire.poll_fill_ahead(cx),
            };
            match filled {
                Poll::Pending => return Ok(fed_any),
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0)) => {
                    if let Some(upload) = upload
                        && let Some(_cut) = upload.on_eof(&self.wire.read)
                    {
                        return Err(Gone::Client);
                    }
                    self.half_closed.get_or_insert_with(Instant::now);
                    return Ok(fed_any);
                }
                Poll::Ready(Err(error)) => {
                    if let Some(upload) = upload {
                        upload.fail(Broken::Reset(error.kind()));
                    }
                    return Err(Gone::Client);
                }
            }
        }
    }
}

pub(super) fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
