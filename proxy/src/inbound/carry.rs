//! Byte streams to the application: plaintext from outside the mesh, and what other sidecars carry
//! as `weft-tcp`. Bytes that nobody parses carry nobody's word: a port that takes requests only gets
//! requests, and a port of which nothing is declared gets opaque bytes only as long as no HTTP
//! server could take them for a request.

use std::future::pending;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use weft_core::model::AppProtocol;
use weft_core::opaque::{OpaqueWatch, speaks_http};
use weft_core::peer::VerifiedPeer;
use weft_core::protocol::Verdict;
use weft_core::reason::Reason;

use super::{Application, Caller, Socket, dial, http, key};
use crate::abort::reset;
use crate::drain::{Ends, Side};
use crate::first::{First, client_first, first_of, sniff};
use crate::http::{Io, none_came};
use crate::relay::{Ended, Terms, relay};
use crate::telemetry::metrics::Wire;
use crate::tls::Replayed;
use crate::worker::Worker;

/// What `0s` stands for.
const NO_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a port takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// Requests only: it is declared so, or something about it depends on requests.
    Requests,
    /// Requests, and bytes that no server could take for a request: nothing is declared.
    Detected,
    /// Bytes: it is declared so.
    Bytes,
}

impl Takes {
    /// What a port of the application takes now. The control plane's word on limits is waited for as
    /// for a request.
    pub(super) async fn of(worker: &Worker, application: &Application) -> Self {
        match application.protocol {
            AppProtocol::Tcp | AppProtocol::Tls => Self::Bytes,
            AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => Self::Requests,
            AppProtocol::Detect => {
                let server = worker.shared.mesh.server_port(application.port).await;
                let view = server.load();
                match view.as_ref().is_some_and(|view| view.limits_requests()) {
                    true => Self::Requests,
                    false => Self::Detected,
                }
            }
        }
    }
}

/// A connection on which somebody has spoken.
#[derive(Debug)]
pub(super) struct Greeting {
    /// What the client said; nothing where the server spoke first.
    pub(super) said: Bytes,
    /// The application, where it was dialled already, and what it said.
    pub(super) application: Option<Replayed<TcpStream>>,
    /// What the port takes, as far as it is known now.
    pub(super) takes: Takes,
}

/// Why there is no greeting.
#[derive(Debug)]
pub(super) enum Unspoken {
    /// The client went away.
    Gone,
    /// The client said nothing for too long: its connection is closed in good order.
    Silent(Reason, Duration),
    /// The application cannot be reached.
    Refused(Reason, String),
}

impl From<io::Error> for Unspoken {
    fn from(_broken: io::Error) -> Self {
        Self::Gone
    }
}

/// How long a client's first bytes are waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Silence {
    /// Until the application is dialled, so that it may speak first.
    pub(super) pause: Duration,
    /// In all, where only a request may come; zero is no limit.
    pub(super) request: Duration,
}

/// Waits for the client's first bytes. Where it is silent for the pause and the port takes more than
/// requests, the application is dialled and may speak first; the pause decides nothing else.
pub(super) async fn greet<IO>(
    worker: &Worker,
    client: &mut IO,
    application: &Application,
    takes: Takes,
    silence: Silence,
) -> Result<Greeting, Unspoken>
where
    IO: AsyncRead + Unpin,
{
    let greeting = |said, application| Greeting {
        said,
        application,
        takes,
    };
    if takes == Takes::Requests {
        return first_request(worker, client, silence.request).await;
    }
    if let Some(said) = client_first(client, silence.pause).await? {
        return Ok(greeting(said, None));
    }
    let shared = &worker.shared;
    let dialled = dial(shared, application).await;
    let mut server = dialled.map_err(|(reason, detail)| Unspoken::Refused(reason, detail))?;
    let idle = no_limit(shared.config.timeouts.tcp_idle);
    let ends = Ends::new(&shared.drain, Side::Inbound, None);
    let first = tokio::select! {
        first = first_of(client, &mut server, idle) => first?,
        () = none_came(&ends) => return Err(Unspoken::Gone),
    };
    match first {
        First::Client(said) => {
            let server = Replayed::new(Bytes::new(), server);
            Ok(greeting(said, Some(server)))
        }
        // A server of HTTP that got tired of the silence, or announces its settings.
        First::Server(answered)
            if takes == Takes::Detected && speaks_http(&answered, true) == Some(true) =>
        {
            drop(server);
            first_request(worker, client, silence.request).await
        }
        First::Server(answered) => {
            let server = Replayed::new(answered, server);
            Ok(greeting(Bytes::new(), Some(server)))
        }
        First::Silence => Err(Unspoken::Silent(Reason::IdleTimeout, idle)),
    }
}

/// Waits for the first bytes of a client that has to send a request.
async fn first_request<IO>(
    worker: &Worker,
    client: &mut IO,
    limit: Duration,
) -> Result<Greeting, Unspoken>
where
    IO: AsyncRead + Unpin,
{
    let silent = Unspoken::Silent(Reason::ClientTimeout, limit);
    let ends = Ends::new(&worker.shared.drain, Side::Inbound, None);
    let said = tokio::select! {
        said = client_first(client, no_limit(limit)) => said?.ok_or(silent)?,
        () = none_came(&ends) => return Err(Unspoken::Gone),
    };
    Ok(Greeting {
        said,
        application: None,
        takes: Takes::Requests,
    })
}

fn no_limit(limit: Duration) -> Duration {
    match limit {
        Duration::ZERO => NO_LIMIT,
        limit => limit,
    }
}

/// Carries a connection that has begun so to the application: its requests, or its bytes.
pub(super) async fn carry<IO>(
    worker: &Rc<Worker>,
    mut client: IO,
    application: Application,
    caller: Option<Caller>,
    greeting: Greeting,
) where
    IO: Io + Socket + 'static,
{
    let Greeting {
        said,
        application: server,
        takes,
    } = greeting;
    let answered = server
        .as_ref()
        .is_some_and(|server| !server.first().is_empty());
    if takes == Takes::Bytes || answered || (said.is_empty() && takes == Takes::Detected) {
        let client = Replayed::new(said, client);
        let watched = takes == Takes::Detected;
        // On the heap, each way: a connection needs no room for the others.
        return Box::pin(relayed(
            worker,
            client,
            server,
            &application,
            caller.as_ref(),
            watched,
        ))
        .await;
    }
    let timeouts = &worker.shared.config.timeouts;
    // Where only a request may come, the rest of its line is waited for as the rest of a handshake.
    let limit = match takes {
        Takes::Requests => timeouts.handshake,
        Takes::Detected | Takes::Bytes => timeouts.detect,
    };
    let Ok((verdict, said)) = sniff(worker, &mut client, said, limit).await else {
        return tracing::debug!("the client went away");
    };
    let ended = said.is_empty();
    let client = Replayed::new(said, client);
    match verdict {
        Verdict::Http1 => {
            Box::pin(http::serve(worker, client, application, caller, false)).await;
        }
        Verdict::Http2 => {
            Box::pin(http::serve(worker, client, application, caller, true)).await;
        }
        Verdict::Tls | Verdict::Opaque | Verdict::NeedMore => match takes {
            Takes::Requests if ended => {}
            Takes::Requests => {
                refuse(worker, &application, caller.as_ref(), Reason::NotHttp, "");
                reset(client.socket());
            }
            Takes::Detected | Takes::Bytes => {
                let caller = caller.as_ref();
                Box::pin(relayed(worker, client, server, &application, caller, true)).await;
            }
        },
    }
}

/// Relays bytes that nobody parses; `watched` where they must be none of HTTP.
async fn relayed<IO>(
    worker: &Rc<Worker>,
    mut client: Replayed<IO>,
    server: Option<Replayed<TcpStream>>,
    application: &Application,
    caller: Option<&Caller>,
    watched: bool,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Socket,
{
    let shared = &worker.shared;
    if let Some(asked) = shared.mesh.unenforceable() {
        refuse(
            worker,
            application,
            caller,
            Reason::DiscoveryUnavailable,
            &asked,
        );
        return reset(client.socket());
    }
    let mut server = match server {
        Some(server) => server,
        None => match Box::pin(dial(shared, application)).await {
            Ok(server) => Replayed::new(Bytes::new(), server),
            Err((reason, detail)) => {
                refuse(worker, application, caller, reason, &detail);
                return reset(client.socket());
            }
        },
    };
    let peer = caller.map(|caller| &caller.peer);
    let stats = shared.metrics.tcp(key(application, peer));
    let opened = stats.open(peer.map_or(Wire::Plaintext, |_peer| Wire::Mtls));
    let signal = client.signal();
    let ends = Ends::new(&shared.drain, Side::Inbound, signal.as_deref());
    let terms = Terms {
        config: &shared.config,
        ends: &ends,
        idle: None,
        watch: watched.then(OpaqueWatch::new),
    };
    // Where nothing is declared a policy may come that is about requests: what nobody parses could
    // not be held to it.
    let restricted = async {
        if !watched {
            return pending().await;
        }
        let slot = shared.mesh.server_port(application.port).await;
        slot.limits_requests().await;
    };
    let (moved, ended) = tokio::select! {
        done = relay(&mut client, &mut server, terms) => done,
        () = restricted => {
            let detail = "a policy limits the requests of this port now";
            refuse(worker, application, caller, Reason::NotHttp, detail);
            reset(server.socket());
            return reset(client.socket());
        }
    };
    opened.received(moved.forward);
    opened.sent(moved.backward);
    match ended {
        Ended::Clean => return,
        Ended::Suspicious(suspicion) => {
            let detail = suspicion.to_string();
            refuse(worker, application, caller, Reason::HiddenHttp, &detail);
        }
        Ended::Idle => refuse(worker, application, caller, Reason::IdleTimeout, ""),
        // One that is cut is broken to whoever reads from it.
        Ended::Broken(_) | Ended::Cut => match ends.cut_reason() {
            Some(reason) => refuse(worker, application, caller, reason, ""),
            None => tracing::debug!(?ended, port = application.port, "TCP relay ended"),
        },
    }
    reset(server.socket());
    reset(client.socket());
}

/// Says why a connection of a client that did not speak is closed, or just goes.
pub(super) fn unspoken(
    worker: &Worker,
    application: &Application,
    caller: Option<&Caller>,
    (why, stream): (Unspoken, &TcpStream),
) {
    match why {
        Unspoken::Gone => {}
        Unspoken::Silent(reason, limit) => {
            let detail = format!("nothing was said for {limit:?}");
            refuse(worker, application, caller, reason, &detail);
        }
        Unspoken::Refused(reason, detail) => {
            refuse(worker, application, caller, reason, &detail);
            reset(stream);
        }
    }
}

/// Says why a connection to the application is closed.
pub(super) fn refuse(
    worker: &Worker,
    application: &Application,
    caller: Option<&Caller>,
    reason: Reason,
    detail: &str,
) {
    let peer: Option<&VerifiedPeer> = caller.map(|caller| &caller.peer);
    let stats = worker.shared.metrics.tcp(key(application, peer));
    stats.refused(reason.as_str());
    let (port, reason) = (application.port, reason.as_str());
    let peer = peer.map_or("outside", |peer| peer.identity().as_str());
    tracing::info!(reason, port, peer, detail, "connection refused");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_no_limit() {
        assert_eq!(no_limit(Duration::ZERO), NO_LIMIT);
        assert_eq!(no_limit(Duration::from_secs(1)), Duration::from_secs(1));
    }
}
