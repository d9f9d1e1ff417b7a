//! Connections between sidecars: HTTP/2 of our own on both sides.

use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::{Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use weft_core::h2::connection::Config;
use weft_core::h2::frame::{ErrorCode, WindowSize};
use weft_core::h2::message::Malformed;
use weft_core::reason::Reason;

use super::body::{BodyGuard, ProxyBody};
use super::h1::Refusal;
use super::h2::{Called, Outbound, Probing, ServeError, Service, Serving, StreamBody};
use super::incoming::{BodyError, Incoming};
use super::open::{Held, HeldBody, OpenRequests};
use super::paced::{Client, Pace, Unanswered};
use super::{End, HeadLimits, PING_TIMEOUT, header_list, ping};
use crate::config::ProxyConfig;
use crate::drain::Ends;

/// What a connection between sidecars may cost, on either side.
fn config(config: &ProxyConfig, heads: HeadLimits) -> Config {
    let limits = &config.limits;
    let window = |bytes| WindowSize::new(bytes).unwrap_or(WindowSize::MAX);
    Config {
        max_streams: limits.max_concurrent_streams,
        stream_window: window(limits.stream_window.window()),
        connection_window: window(limits.connection_window.window()),
        // Between sidecars compressing costs more than it saves. What is allowed to receive stays as it
        // is without settings: it costs nothing as long as nobody uses it.
        send_table: 0,
        heads: heads.into(),
        header_list: header_list(config, false),
        ..Config::default()
    }
}

/// A connection to another sidecar. What its application may send is that one's own to say.
pub(crate) fn client(of: &ProxyConfig) -> Config {
    Config {
        // As many as the server takes.
        max_streams: u32::MAX,
        ..config(of, HeadLimits::NONE)
    }
}

/// When a connection to another sidecar is probed.
pub(crate) fn probing(config: &ProxyConfig) -> Option<Probing> {
    let interval = ping(config)?;
    Some(Probing {
        interval,
        timeout: PING_TIMEOUT,
        while_unused: false,
    })
}

/// What answers another sidecar's requests.
struct Handlers<H, R> {
    handle: H,
    refuse: R,
    pace: Rc<Pace>,
    open: Rc<OpenRequests>,
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
    type Guard = (Unanswered, Held);

    fn call(&self, request: Request<StreamBody>) -> Called<Self> {
        if *request.method() == Method::CONNECT {
            // Streams of bytes have connections of their own.
            let detail = "CONNECT between sidecars is sent in HTTP/1.1".to_owned();
            let status = StatusCode::NOT_IMPLEMENTED;
            let refusal = Refusal::of(&request, Reason::BadRequest, status, detail);
            return Err(self.refused(refusal, false));
        }
        let guard = (self.pace.begin_at_once(), self.open.begin());
        Ok((guard, (self.handle)(request.map(Incoming::from))))
    }

    fn answered(
        &self,
        (unanswered, held): Self::Guard,
        response: Response<ProxyBody<G>>,
    ) -> Response<HeldBody<G>> {
        unanswered.answered();
        response.map(|body| held.until_end(body, None))
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
        if by_client {
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
            true => held.until_end(ProxyBody::Empty, None),
            false => held.until_end(body, None),
        })
    }
}

impl<G: BodyGuard> Outbound for HeldBody<G> {
    fn reset_code(error: &BodyError) -> ErrorCode {
        ProxyBody::<G>::reset_code(error)
    }
}

/// Serves another sidecar's connection to its end. When it has to come to one, that sidecar is told, and
/// cut when the time for that is over.
pub(crate) async fn serve<IO, H, F, R, G>(
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
    let open = OpenRequests::new();
    let handlers = Rc::new(Handlers {
        handle,
        refuse,
        pace: Pace::new(client.clone()),
        open: Rc::clone(&open),
    });
    let probing = probing(proxy).map(|probing| Probing {
        while_unused: true,
        ..probing
    });
    let config = config(proxy, HeadLimits::of(proxy, true));
    let mut serving = Serving::new(io, config, probing, Rc::clone(&handlers));
    // Looked at only when something of it happens, not with every byte of the connection.
    let mut watch = FuturesUnordered::from_iter([End::of(&open, proxy, ends)]);
    let result = tokio::select! {
        result = &mut serving => result,
        Some(end) = watch.next() => match end {
            End::Told => {
                serving.shut_down();
                tokio::select! {
                    result = &mut serving => result,
                    () = ends.cut() => Ok(()),
                }
            }
            End::Cut => Ok(()),
        }
    };
    handlers.on_end(false);
    match result {
        Ok(()) => {}
        Err(ServeError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        Err(error) => tracing::debug!(%error, "the connection of another sidecar ended"),
    }
}
