//! Connections in HTTP/2 on every edge: what they may cost, how clients are served, how servers are
//! asked.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::{Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::sleep;
use weft_core::h2::connection::{Config, ConnectionViolation};
use weft_core::h2::frame::{ErrorCode, WindowSize};
use weft_core::h2::hpack::DEFAULT_TABLE_SIZE;
use weft_core::h2::message::{ExtendedConnect, HeadLimits, Malformed};
use weft_core::headers::is_grpc;
use weft_core::reason::Reason;

use super::body::{BodyGuard, ProxyBody};
use super::extended::Opening;
use super::h1::Refusal;
use super::h2::{DriveError, Handle, Patience, Probing, Service, Serving, StreamBody, tunnel};
use super::head::head_limits;
use super::http2_body::Http2Body;
use super::incoming::{Incoming, SendError};
use super::open::{Held, HeldBody, OpenRequests};
use super::paced::{Client, Pace, Unanswered};
use super::upgrade::Upgrade;
use crate::config::ProxyConfig;
use crate::drain::Ends;

/// How long the answer to a probe may take, and the one to a PING behind GOAWAY.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// So many times what is accepted of a head is decoded in HTTP/2, and announced
/// (SETTINGS_MAX_HEADER_LIST_SIZE). Trailers that nobody reads stay in memory with their stream, so
/// it is little where the other side is not the workload's own application.
const DECODED_HEADS: usize = 4;
/// The same for the workload's own application, which loses nobody's memory but its own sidecar's.
const DECODED_HEADS_APPLICATION: usize = 16;
/// The debug data of GOAWAY for a client that has spent its budget.
const TOO_MANY_RESETS: &str = "too many requests were reset before they were answered";

/// Who is on the other side of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Party {
    /// The application beside this sidecar.
    Application,
    /// A client or a server outside the mesh.
    External,
    /// Another sidecar.
    Peer,
}

/// What a connection may cost, on either side.
fn config(config: &ProxyConfig, party: Party, heads: HeadLimits) -> Config {
    let limits = &config.limits;
    let window = |bytes| WindowSize::new(bytes).unwrap_or(WindowSize::MAX);
    Config {
        max_streams: limits.max_concurrent_streams,
        stream_window: window(limits.stream_window.window()),
        connection_window: window(limits.connection_window.window()),
        // Between sidecars compressing costs more than it saves. What is allowed to receive stays as it
        // is without settings: it costs nothing as long as nobody uses it.
        send_table: match party {
            Party::Peer => 0,
            Party::Application | Party::External => DEFAULT_TABLE_SIZE,
        },
        heads,
        header_list: header_list(config, party),
        // Streams of bytes between sidecars have connections of their own.
        extended_connect: match party {
            Party::Peer => ExtendedConnect::NotAnnounced,
            Party::Application | Party::External => ExtendedConnect::Announced,
        },
        keeps_form: party == Party::Peer,
        ..Config::default()
    }
}

/// What is decoded of a head or of trailers in HTTP/2. Much larger than what is accepted ([`HeadLimits`]),
/// so that those that are too large are answered with their reason, as the rest of their list is skipped.
pub(super) fn header_list(config: &ProxyConfig, party: Party) -> u32 {
    let bytes = config.limits.max_header_bytes.bytes();
    let times = match party {
        Party::Application => DECODED_HEADS_APPLICATION,
        Party::External | Party::Peer => DECODED_HEADS,
    };
    u32::try_from(bytes.saturating_mul(times)).unwrap_or(u32::MAX)
}

/// A connection to a server. What the application behind another sidecar may send is that one's to say.
pub(crate) fn client_config(of: &ProxyConfig, party: Party) -> Config {
    let heads = match party {
        Party::Peer => HeadLimits::NONE,
        Party::Application | Party::External => head_limits(of, false),
    };
    Config {
        // As many as the server takes.
        max_streams: u32::MAX,
        ..config(of, party, heads)
    }
}

/// When a connection is probed. Servers of gRPC end the connection of whoever sends them more PINGs than
/// they like (gRFC A8), and the end of a program on this machine is seen at once.
pub(crate) fn probing(config: &ProxyConfig, party: Party) -> Option<Probing> {
    let interval = config.timeouts.peer_keepalive;
    let is_probed = party == Party::Peer && interval > Duration::ZERO;
    is_probed.then_some(Probing {
        interval,
        timeout: PING_TIMEOUT,
        while_unused: false,
    })
}

/// How long a client may be silent. What a peer does not read, its program may read yet.
fn patience(config: &ProxyConfig, party: Party) -> Patience {
    let timeouts = &config.timeouts;
    let some = |time: Duration| (time > Duration::ZERO).then_some(time);
    let interval = some(timeouts.peer_keepalive).filter(|_| party != Party::Application);
    Patience {
        probing: interval.map(|interval| Probing {
            interval,
            timeout: PING_TIMEOUT,
            while_unused: true,
        }),
        stall: some(timeouts.client_stall).filter(|_| party != Party::Peer),
    }
}

/// Sends a request; the error gives it back where nothing of it was sent. The response to `CONNECT` that
/// opens a tunnel has an [`Upgrade`] among its extensions.
pub(crate) async fn send_http2(
    line: &Handle<ProxyBody>,
    request: Box<Request<ProxyBody>>,
) -> Result<Response<Incoming>, SendError> {
    if *request.method() == Method::CONNECT {
        return Box::pin(connect(line, request)).await;
    }
    let response = line.send(request).await?;
    let grpc = is_grpc(response.headers());
    Ok(response.map(|body| Incoming::http2(Http2Body::response(body, grpc))))
}

async fn connect(
    line: &Handle<ProxyBody>,
    request: Box<Request<ProxyBody>>,
) -> Result<Response<Incoming>, SendError> {
    let (writer, bytes) = tunnel();
    let response = line.send(Box::new(request.map(|_none| ProxyBody::Tunnel(bytes))));
    let response = response.await?;
    if !response.status().is_success() {
        return Ok(response.map(Incoming::from));
    }
    let (mut parts, body) = response.into_parts();
    parts.extensions.insert(Upgrade::ready(writer.with(body)));
    Ok(Response::from_parts(
        parts,
        Incoming::from(StreamBody::EMPTY),
    ))
}

/// What answers a client's requests.
struct Handlers<H, R> {
    handle: H,
    refuse: R,
    is_peer: bool,
    pace: Rc<Pace>,
    open: Rc<OpenRequests>,
    /// Whether the client was told that the connection ends: that it ends it then is no offence.
    is_told: Cell<bool>,
}

/// A request that has not been answered.
struct Guard {
    unanswered: Unanswered,
    held: Held,
    /// What its stream becomes when the answer says so.
    opening: Option<Opening>,
}

impl<H, F, R, G> Service for Rc<Handlers<H, R>>
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<ProxyBody<G>>>,
    R: Fn(Refusal) -> Response<ProxyBody<G>>,
    G: BodyGuard + 'static,
{
    type Body = HeldBody<G>;
    type Answer = F;
    type Guard = Guard;

    fn admit(&self, request: &mut Request<StreamBody>) -> Result<Guard, Response<HeldBody<G>>> {
        let opening = match *request.method() == Method::CONNECT {
            false => None,
            true if self.is_peer => {
                // Streams of bytes have connections of their own.
                let detail = "CONNECT between sidecars is sent in HTTP/1.1".to_owned();
                let status = StatusCode::NOT_IMPLEMENTED;
                let refusal = Refusal::of(request, Reason::BadRequest, status, detail);
                return Err(self.refused(refusal, false));
            }
            true => match Opening::take(request) {
                Ok(opening) => Some(opening),
                Err(refusal) => return Err(self.refused(refusal, false)),
            },
        };
        Ok(Guard {
            unanswered: self.pace.begin(),
            held: self.open.begin(),
            opening,
        })
    }

    fn call(&self, request: Request<StreamBody>) -> F {
        (self.handle)(request.map(Incoming::from))
    }

    fn answered(&self, guard: Guard, response: Response<ProxyBody<G>>) -> Response<HeldBody<G>> {
        guard.unanswered.answered();
        let held = guard.held;
        match guard.opening {
            Some(opening) if response.status().is_success() => {
                let body = opening.open(Rc::clone(&self.pace), self.open.begin());
                response.map(|_none| held.until_end(ProxyBody::Tunnel(body)))
            }
            Some(_) | None => response.map(|body| held.until_end(body)),
        }
    }

    fn refuse(&self, malformed: &Malformed) -> Option<Response<HeldBody<G>>> {
        let answerable = malformed.answerable?;
        let refusal = Refusal::answerable(malformed, answerable.grpc);
        Some(self.refused(refusal, answerable.head))
    }

    fn on_refused(&self) {
        self.pace.on_reset();
    }

    fn on_end(&self, by_client: bool) {
        if by_client && !self.is_told.get() {
            self.pace.left();
        }
        self.pace.end();
    }

    fn turn(&self) -> Result<usize, Duration> {
        self.pace.turn()
    }
}

impl<H, R> Handlers<H, R> {
    fn refused<G: BodyGuard>(&self, refusal: Refusal, head: bool) -> Response<HeldBody<G>>
    where
        R: Fn(Refusal) -> Response<ProxyBody<G>>,
    {
        let held = self.open.begin();
        (self.refuse)(refusal).map(|body| match head {
            true => held.until_end(ProxyBody::Empty),
            false => held.until_end(body),
        })
    }
}

/// What brings a connection to its end from outside of it.
enum End {
    /// The client is told that it comes to an end.
    Told,
    /// The client has spent its budget.
    Excess,
    /// It is over.
    Cut,
}

impl End {
    /// Until the connection has to come to its end.
    async fn of(
        (open, pace): (&OpenRequests, &Pace),
        config: &ProxyConfig,
        ends: &Ends<'_>,
    ) -> Self {
        tokio::select! {
            () = open.leave(ends) => Self::Told,
            () = open.idle_for(config.timeouts.client_idle) => Self::Told,
            () = pace.exceeded() => Self::Excess,
            () = ends.cut() => Self::Cut,
        }
    }
}

/// Serves a client's connection to its end. When it has to come to one, the client is told, and cut when
/// the time for that is over.
pub(crate) async fn serve_http2<IO, H, F, R, G>(
    io: IO,
    client: &Client,
    (proxy, ends): (&ProxyConfig, &Ends<'_>),
    handle: H,
    refuse: R,
) where
    IO: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<ProxyBody<G>>>,
    R: Fn(Refusal) -> Response<ProxyBody<G>>,
    G: BodyGuard + 'static,
{
    let (open, pace) = (OpenRequests::new(), Pace::new(client.clone()));
    let handlers = Rc::new(Handlers {
        handle,
        refuse,
        is_peer: client.is_peer(),
        pace: Rc::clone(&pace),
        open: Rc::clone(&open),
        is_told: Cell::new(false),
    });
    let party = client.party();
    let config = config(proxy, party, head_limits(proxy, party == Party::Peer));
    let mut serving = Serving::new(io, config, patience(proxy, party), Rc::clone(&handlers));
    // Looked at only when something of it happens, not with every byte of the connection.
    let mut watch = FuturesUnordered::from_iter([End::of((&open, &pace), proxy, ends)]);
    let result = tokio::select! {
        result = &mut serving => result,
        Some(end) = watch.next() => match end {
            End::Told => {
                handlers.is_told.set(true);
                tokio::select! {
                    result = leave(&mut serving) => result,
                    () = pace.exceeded() => enough(&mut serving).await,
                    () = ends.cut() => Ok(()),
                }
            }
            End::Excess => tokio::select! {
                result = enough(&mut serving) => result,
                () = ends.cut() => Ok(()),
            },
            End::Cut => Ok(()),
        }
    };
    handlers.on_end(false);
    match result {
        Ok(()) => {}
        Err(DriveError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        Err(DriveError::Violation(violation)) if is_of_resets(&violation) => {
            tracing::info!("a client's connection is closed: too many requests were reset");
        }
        Err(error) => tracing::debug!(%error, "a client's connection ended"),
    }
}

fn is_of_resets(violation: &ConnectionViolation) -> bool {
    matches!(violation, ConnectionViolation::Aborted { reason, .. } if *reason == TOO_MANY_RESETS)
}

/// Tells the client that the connection comes to its end; one that does not answer opens no more streams
/// after a while.
async fn leave<IO, S>(serving: &mut Serving<IO, S>) -> Result<(), DriveError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: Service + Unpin,
{
    serving.shut_down();
    tokio::select! {
        result = &mut *serving => return result,
        () = sleep(PING_TIMEOUT) => {}
    }
    serving.stop_waiting();
    serving.await
}

/// Ends the connection of a client that has spent its budget.
async fn enough<IO, S>(serving: &mut Serving<IO, S>) -> Result<(), DriveError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: Service + Unpin,
{
    serving.abort(ErrorCode::ENHANCE_YOUR_CALM, TOO_MANY_RESETS);
    serving.await
}

#[cfg(test)]
mod tests;
