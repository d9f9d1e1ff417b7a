//! Connections of the application to others.

mod admission;
mod admitted;
mod answered;
mod attempt;
mod choose;
mod connection;
mod exchange;
mod failed;
mod health;
mod hedge;
mod http;
mod outside;
mod patience;
mod prove;
mod request;
mod route;
mod routed;
mod sending;
mod upgrade;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::either::Either;
use weft_core::breaker::CallClass;
use weft_core::model::AppProtocol;
use weft_core::name::ServiceName;
use weft_core::policy::BreakerMode;
use weft_core::protocol::Verdict;
use weft_core::reason::Reason;
use weft_core::retry::Failure;

use crate::abort::Abort as _;
use crate::abort::reset;
use crate::connections::Permit;
use crate::drain::{Ends, Side};
use crate::first::{First, client_first, first_of, sniff};
use crate::http::none_came;
use crate::interception::OwnAnswer;
use crate::mesh::{Call, Counted, Destination, Endpoint, EndpointKey, PortView};
use crate::pool::{self, DialError};
use crate::relay::{Ended, Terms, relay};
use crate::telemetry::metrics::{Direction, HttpKey, TcpStats, Wire};
use crate::tls::{ALPN_TCP, Replayed};
use crate::worker::{Worker, is_direct, redirected};

use choose::{Avoid, Wish, pick};
pub(crate) use health::run as check_health;
pub(crate) use prove::run as prove_again;

/// What `0s` stands for.
const NO_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// A connection that interception redirected here.
pub async fn captured(worker: &Rc<Worker>, stream: TcpStream, client: SocketAddr, permit: Permit) {
    let Some(destination) = redirected(&stream, client) else {
        return;
    };
    if OwnAnswer::is_asked_at(destination) {
        return worker.shared.own_answer.send(stream).await;
    }
    if is_direct(&stream, destination) {
        let detail = format!("{destination} is this sidecar's own listener");
        return refuse(worker, &stream, NO_SERVICE, (Reason::LoopDetected, &detail));
    }
    if let Some(host) = &worker.shared.host
        && host.address == destination.ip().to_canonical()
    {
        let port = destination.port();
        if host.ports.contains(&port) {
            let loopback = SocketAddr::from(([127, 0, 0, 1], port));
            return Box::pin(outside(worker, stream, loopback)).await;
        }
        let detail = format!("{destination}: the host's port {port} was not opened (--host-port)");
        return refuse(
            worker,
            &stream,
            NO_SERVICE,
            (Reason::DestinationRefused, &detail),
        );
    }
    match worker.shared.mesh.resolve(destination).await {
        Ok(Destination::Mesh(port)) => serve(worker, stream, port, permit).await,
        Ok(Destination::Outside) => Box::pin(outside(worker, stream, destination)).await,
        Err(reason) => {
            let service = worker.shared.mesh.service_at(destination.ip());
            let service = service.map_or_else(|| NO_SERVICE.to_owned(), |name| name.to_string());
            let detail = destination.to_string();
            refuse(worker, &stream, &service, (reason, &detail));
        }
    }
}

/// A connection to a local listener that leads to a service.
pub async fn upstream(
    worker: &Rc<Worker>,
    stream: TcpStream,
    service: &ServiceName,
    port: Option<u16>,
    permit: Permit,
) {
    match find(worker, service, port).await {
        Ok(port) if leads_back(worker, &port) => {
            let detail = format!("an endpoint of {service} is this sidecar's own listener");
            let service = service.to_string();
            refuse(worker, &stream, &service, (Reason::LoopDetected, &detail));
        }
        Ok(port) => serve(worker, stream, port, permit).await,
        Err(reason) => {
            let service = service.to_string();
            let detail = port.map_or_else(|| service.clone(), |port| format!("{service}:{port}"));
            refuse(worker, &stream, &service, (reason, &detail));
        }
    }
}

/// Whether an endpoint is one of the local listeners that lead to services.
fn leads_back(worker: &Worker, port: &PortView) -> bool {
    let own = &worker.shared.config.upstreams;
    let mut endpoints = port.endpoints.iter();
    endpoints.any(|endpoint| {
        let address = endpoint.key.address;
        own.iter().any(|upstream| upstream.listen == address)
    })
}

async fn find(
    worker: &Worker,
    service: &ServiceName,
    port: Option<u16>,
) -> Result<Arc<PortView>, Reason> {
    let mesh = &worker.shared.mesh;
    let port = match port {
        Some(port) => port,
        None => {
            let view = mesh.service(&service.to_string()).await?;
            let view = view.ok_or(Reason::ServiceNotFound)?;
            // Which of several was meant has to be said.
            match view.model.ports.as_slice() {
                [only] => only.port,
                _ => return Err(Reason::PortNotDeclared),
            }
        }
    };
    mesh.resolve_service(service, port).await
}

/// Serves a connection; `permit` is held as long as it is open. On the heap, each way: a connection
/// needs no room for the others.
async fn serve(worker: &Rc<Worker>, stream: TcpStream, port: Arc<PortView>, permit: Permit) {
    if let Some(table) = &port.routes
        && table.is_about_connections()
    {
        return Box::pin(routed::serve(worker, stream, &port, table)).await;
    }
    match port.protocol {
        AppProtocol::Tcp | AppProtocol::Tls => {
            Box::pin(opaque(worker, unread(stream), &port)).await;
        }
        // A declared http port takes HTTP/2 with prior knowledge as well: only the client's first
        // bytes tell.
        AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => {
            Box::pin(http::serve(worker, unread(stream), port, None, permit)).await;
        }
        AppProtocol::Detect => Box::pin(detected(worker, stream, port, permit)).await,
    }
}

fn unread(stream: TcpStream) -> Replayed<TcpStream> {
    Replayed::new(Bytes::new(), stream)
}

/// A connection to a port of which nothing is declared. A silent client waits for the server to
/// speak: where the server does, it is opaque; where the client speaks after all, its bytes decide.
async fn detected(worker: &Rc<Worker>, mut stream: TcpStream, port: Arc<PortView>, permit: Permit) {
    let config = &worker.shared.config;
    let pause = config.timeouts.detect;
    let gone = |error| tracing::debug!(%error, "the client went away before it said anything");
    let (said, connected) = match client_first(&mut stream, pause).await {
        Ok(Some(said)) => (said, None),
        Ok(None) => {
            let connected = Box::pin(connect_any(worker, &stream, &port)).await;
            let Some(mut connected) = connected else {
                return;
            };
            let silence = limit(config.timeouts.tcp_idle);
            let ends = Ends::new(&worker.shared.drain, Side::Outbound, None);
            let first = tokio::select! {
                biased;
                first = first_of(&mut stream, &mut connected.stream, silence) => first,
                () = none_came(&ends) => return,
            };
            match first {
                Ok(First::Client(said)) => (said, Some(connected)),
                Ok(First::Server(answered)) => {
                    let client = unread(stream);
                    let relayed = relay_opaque(worker, client, &port, connected, answered);
                    return Box::pin(relayed).await;
                }
                Ok(First::Silence) => {
                    let service = port.service.to_string();
                    note_cut(&connected.stats, &service, Reason::IdleTimeout);
                    connected.stream.abort();
                    return reset(&stream);
                }
                Err(error) => return gone(error),
            }
        }
        Err(error) => return gone(error),
    };
    let (verdict, said) = match sniff(worker, &mut stream, said, pause).await {
        Ok(found) => found,
        Err(error) => return gone(error),
    };
    let client = Replayed::new(said, stream);
    match (verdict, connected) {
        (Verdict::Http1, _) => {
            Box::pin(http::serve(worker, client, port, Some(false), permit)).await;
        }
        // What the server speaks is known to nobody, and what the client says can be had as it is:
        // no route reads it.
        (Verdict::Http2, None) if port.is_plain() && port.routes.is_none() => {
            Box::pin(opaque(worker, client, &port)).await;
        }
        (Verdict::Http2, _) => {
            Box::pin(http::serve(worker, client, port, Some(true), permit)).await;
        }
        (_, Some(connected)) => {
            let relayed = relay_opaque(worker, client, &port, connected, Bytes::new());
            Box::pin(relayed).await;
        }
        (_, None) => Box::pin(opaque(worker, client, &port)).await,
    }
}

/// What a time that is configured allows; zero is no limit.
fn limit(configured: Duration) -> Duration {
    match configured {
        Duration::ZERO => NO_LIMIT,
        limit => limit,
    }
}

/// Opaque bytes, one mTLS connection each.
async fn opaque(worker: &Rc<Worker>, client: Replayed<TcpStream>, port: &Arc<PortView>) {
    let connecting = Box::pin(connect_any(worker, client.get_ref(), port));
    if let Some(connected) = connecting.await {
        relay_opaque(worker, client, port, connected, Bytes::new()).await;
    }
}

/// A connection to one of a port's endpoints for opaque bytes.
struct Connected {
    stream: ServerStream,
    wire: Wire,
    call: Call,
    stats: Arc<TcpStats>,
    /// Its place within the limit on connections, where there is one.
    counted: Counted,
}

/// Connects to an endpoint of the port, and to another where that fails; `None` where the client was
/// refused.
async fn connect_any(
    worker: &Rc<Worker>,
    client: &TcpStream,
    port: &Arc<PortView>,
) -> Option<Connected> {
    let shared = &worker.shared;
    let service = port.service.to_string();
    let refused = |reason, detail: &str| {
        refuse(worker, client, &service, (reason, detail));
        None
    };
    let port = match outside::resolved(worker, Arc::clone(port), None).await {
        Ok(port) => port,
        Err(failed) => return refused(failed.reason, &failed.detail),
    };
    let port = &*port;
    let stats = shared.metrics.tcp(tcp_key(&service));
    let Some(counted) = worker.pool.admit_connection(port) else {
        let limit = port.policy.max_connections.unwrap_or_default();
        let detail = format!("{}: {limit} connections are open", port.service);
        return refused(Reason::ConnectionLimit, &detail);
    };
    if port.policy.breaker_mode == BreakerMode::ForceOpen {
        return refused(Reason::CircuitOpen, &service);
    }
    let wish = Wish::of_connection(worker, port);
    let mut tried: Vec<EndpointKey> = Vec::new();
    // Nothing has been sent before the connection stands: trying another endpoint is safe.
    loop {
        let avoid = Avoid {
            tried: &tried,
            ..Avoid::default()
        };
        let (endpoint, mut call) = match pick(port, avoid, wish) {
            Ok(picked) => picked,
            Err(reason) => return refused(reason, &port.nobody()),
        };
        match connect(worker, port, &endpoint).await {
            Ok((stream, wire)) => {
                call.on_response(crate::clock::now());
                return Some(Connected {
                    stream,
                    wire,
                    call,
                    stats,
                    counted,
                });
            }
            Err((reason, detail)) => {
                let class = port.policy.failures.of_failure(Failure::ConnectFailed);
                call.finish(class, crate::clock::now());
                tried.push(endpoint.key.clone());
                if tried.len() >= port.endpoints.len().min(3) {
                    return refused(reason, &detail);
                }
            }
        }
    }
}

/// Relays a connection to its end; `answered` is what the server has said already.
async fn relay_opaque(
    worker: &Rc<Worker>,
    mut client: Replayed<TcpStream>,
    port: &PortView,
    connected: Connected,
    answered: Bytes,
) {
    let shared = &worker.shared;
    let Connected {
        stream,
        wire,
        call,
        stats,
        counted: _counted,
    } = connected;
    let signal = match &stream {
        Either::Left(peer) => peer.signal(),
        Either::Right(_outside) => None,
    };
    let mut server = Replayed::new(answered, stream);
    let opened = stats.open(wire);
    let ends = Ends::new(&shared.drain, Side::Outbound, signal.as_deref());
    let terms = Terms {
        config: &shared.config,
        ends: &ends,
        idle: port.policy.idle_timeout,
        watch: None,
    };
    let (moved, ended) = relay(&mut client, &mut server, terms).await;
    opened.received(moved.forward);
    opened.sent(moved.backward);
    if !matches!(ended, Ended::Clean) {
        client.abort();
        server.abort();
    }
    match ended {
        Ended::Clean => drop(call.finish(CallClass::Success, crate::clock::now())),
        Ended::Idle => note_cut(&stats, &port.service.to_string(), Reason::IdleTimeout),
        Ended::Broken(_) | Ended::Cut | Ended::Suspicious(_) => {
            // One that is cut is broken to whoever reads from it.
            match ends.cut_reason() {
                Some(reason) => note_cut(&stats, &port.service.to_string(), reason),
                None => tracing::debug!(?ended, service = %port.service, "TCP relay broke"),
            }
        }
    }
}

/// The far side of an opaque relay: another sidecar, or a server outside the mesh.
type ServerStream = Either<Box<pool::PeerStream>, pool::OutsideStream>;

async fn connect(
    worker: &Worker,
    port: &PortView,
    endpoint: &Endpoint,
) -> Result<(ServerStream, Wire), (Reason, String)> {
    let shared = &worker.shared;
    let limit = port.connect_timeout(&shared.config);
    let told = |error: DialError| (error.reason(), error.to_string());
    let metrics = &shared.metrics;
    if let Some(outside) = port.outside_of(endpoint) {
        let address = endpoint.key.address;
        let stream = pool::dial_outside(outside, address, |tls| &tls.opaque, limit, metrics).await;
        return Ok((Either::Right(stream.map_err(told)?), port.wire(endpoint)));
    }
    let material = shared.tls.current().ok_or(DialError::NoCertificate);
    let material = material.map_err(told)?;
    let stream = pool::dial(port, endpoint, &material, ALPN_TCP, limit, metrics).await;
    let stream = Box::new(stream.map_err(told)?);
    Ok((Either::Left(stream), Wire::Mtls))
}

/// Declared to be outside the mesh: bytes go through untouched.
async fn outside(worker: &Rc<Worker>, mut client: TcpStream, destination: SocketAddr) {
    let shared = &worker.shared;
    let limit = shared.config.timeouts.connect;
    let mut server = match timeout(limit, pool::connect(destination)).await {
        Ok(Ok(server)) => server,
        Ok(Err(error)) => {
            let detail = error.to_string();
            return refuse(worker, &client, OUTSIDE, (error.reason(), &detail));
        }
        Err(_elapsed) => {
            let detail = format!("{destination}: no answer in {limit:?}");
            return refuse(worker, &client, OUTSIDE, (Reason::ConnectTimeout, &detail));
        }
    };
    shared
        .metrics
        .connection(Direction::Outbound, Wire::Plaintext);
    let stats = shared.metrics.tcp(tcp_key(OUTSIDE));
    let opened = stats.open(Wire::Plaintext);
    let ends = Ends::new(&shared.drain, Side::Outbound, None);
    let terms = Terms {
        config: &shared.config,
        ends: &ends,
        idle: None,
        watch: None,
    };
    let (moved, ended) = relay(&mut client, &mut server, terms).await;
    opened.received(moved.forward);
    opened.sent(moved.backward);
    match ended {
        Ended::Idle => note_cut(&stats, OUTSIDE, Reason::IdleTimeout),
        Ended::Cut => note_cut(&stats, OUTSIDE, Reason::Draining),
        Ended::Clean | Ended::Broken(_) | Ended::Suspicious(_) => {}
    }
    if !matches!(ended, Ended::Clean) {
        reset(&client);
        reset(&server);
    }
}

/// Says why the sidecar has cut a connection.
fn note_cut(stats: &TcpStats, service: &str, reason: Reason) {
    let reason = reason.as_str();
    stats.refused(reason);
    tracing::info!(reason, service, "connection cut");
}

/// What the metrics call the destination of a connection that is refused where no service is known.
const NO_SERVICE: &str = "refused";
/// What they call one that is outside the mesh and not declared.
const OUTSIDE: &str = "outside";

/// A failed dial is a reset to the program: on opaque bytes there is no other way to say no.
fn refuse(worker: &Worker, client: &TcpStream, service: &str, (reason, detail): (Reason, &str)) {
    let word = reason.as_str();
    tracing::info!(reason = word, service, detail, "connection refused");
    worker.shared.metrics.tcp(tcp_key(service)).refused(word);
    reset(client);
}

fn tcp_key(service: &str) -> HttpKey {
    HttpKey {
        direction: Direction::Outbound,
        service: service.into(),
        peer: "".into(),
    }
}
