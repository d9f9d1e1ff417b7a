//! Connections of the application to others.

mod admission;
mod allowed;
mod attempt;
mod health;
mod hedge;
mod heed;
mod http;
mod outside;
mod pool;
mod route;
mod upgrade;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::HeaderMap;
use ::http::request::Parts;
use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use weft_core::balance::{Candidates, hash::HashOn, slow_start_share};
use weft_core::breaker::CallClass;
use weft_core::model::{AppProtocol, Transport};
use weft_core::name::ServiceName;
use weft_core::policy::BreakerMode;
use weft_core::protocol::{DETECT_MAX_BYTES, Verdict, detect};
use weft_core::reason::Reason;
use weft_core::retry::Failure;
use weft_core::route::RouteTable;
use weft_core::time::Instant;

use crate::config::ProxyConfig;
use crate::mesh::{Call, Destination, Endpoint, EndpointKey, PortView};
use crate::relay::{Ended, relay};
use crate::telemetry::metrics::{Direction, HttpKey, Wire};
use crate::tls::{ALPN_TCP, Replayed, read_server_name};
use crate::worker::{Worker, redirected, reset};

pub(crate) use health::run as check_health;
use heed::{Heed, Place, heed_of, place_of};
pub(crate) use http::{chunks, describe, relayed};
pub use pool::{DialError, Limited, Pool, Slot};
pub(crate) use upgrade::{finish as finish_upgrade, origin_form, send as send_upgrade};

/// A connection that interception redirected here.
pub async fn captured(worker: &Rc<Worker>, stream: TcpStream, client: SocketAddr) {
    let Some(destination) = redirected(&stream, client) else {
        return;
    };
    if let Some(host) = &worker.shared.host
        && host.address == destination.ip().to_canonical()
    {
        let port = destination.port();
        if host.ports.contains(&port) {
            let loopback = SocketAddr::from(([127, 0, 0, 1], port));
            return outside(worker, stream, loopback).await;
        }
        let detail = format!("{destination}: the host's port {port} was not opened (--host-port)");
        return refuse(worker, &stream, Reason::DestinationRefused, &detail);
    }
    match worker.shared.mesh.resolve(destination).await {
        Ok(Destination::Mesh(port)) => serve(worker, stream, port).await,
        Ok(Destination::Outside) => outside(worker, stream, destination).await,
        Err(reason) => refuse(worker, &stream, reason, &destination.to_string()),
    }
}

/// A connection to a local listener that leads to a service.
pub async fn upstream(
    worker: &Rc<Worker>,
    stream: TcpStream,
    service: &ServiceName,
    port: Option<u16>,
) {
    match find(worker, service, port).await {
        Ok(port) => serve(worker, stream, port).await,
        Err(reason) => refuse(worker, &stream, reason, &service.to_string()),
    }
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

async fn serve(worker: &Rc<Worker>, mut stream: TcpStream, port: Arc<PortView>) {
    if let Some(table) = &port.routes
        && table.is_about_connections()
    {
        return routed(worker, stream, &port, table).await;
    }
    let plain = port.outside.is_none()
        && port
            .endpoints
            .iter()
            .any(|endpoint| endpoint.model.transport == Transport::Plain);
    let (verdict, first) = match port.protocol {
        AppProtocol::Tcp | AppProtocol::Tls => (Verdict::Opaque, Bytes::new()),
        _ if plain => (Verdict::Opaque, Bytes::new()),
        AppProtocol::Http => (Verdict::Http1, Bytes::new()),
        AppProtocol::Http2 | AppProtocol::Grpc => (Verdict::Http2, Bytes::new()),
        AppProtocol::Detect => match sniff(worker, &mut stream, Bytes::new()).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "the client went away before it said anything");
                return;
            }
        },
    };
    match verdict {
        Verdict::Http1 | Verdict::Http2 => {
            // A declared http port takes HTTP/2 with prior knowledge as well: only the client's
            // first bytes tell.
            let http2 = match (verdict, first.is_empty()) {
                (Verdict::Http2, false) => Some(true),
                (Verdict::Http1, false) => Some(false),
                _ => None,
            };
            http::serve(worker, Replayed::new(first, stream), port, http2).await;
        }
        Verdict::Tls | Verdict::Opaque | Verdict::NeedMore => {
            opaque(worker, Replayed::new(first, stream), &port).await;
        }
    }
}

/// A connection whose port has routes about connections.
async fn routed(worker: &Rc<Worker>, stream: TcpStream, port: &Arc<PortView>, table: &RouteTable) {
    let (stream, host) = if table.reads_hosts() {
        let limit = worker.shared.config.timeouts.detect;
        match read_server_name(stream, limit).await {
            Ok(read) => read,
            Err(error) => {
                tracing::debug!(%error, "the client went away within its ClientHello");
                return;
            }
        }
    } else {
        (Replayed::new(Bytes::new(), stream), None)
    };
    let Some(connection) = table.connection(host.as_deref(), fastrand::u64(..)) else {
        let host = host.as_deref().unwrap_or("no host");
        let detail = format!("{}:{}: {host}", port.service, port.port);
        return refuse(worker, stream.get_ref(), Reason::RouteNotFound, &detail);
    };
    let service = connection.backend.and_then(|b| b.service.as_ref());
    let number = connection.backend.map_or(0, |backend| backend.port);
    match route::target(worker, port, service, number).await {
        Ok(target) => opaque(worker, stream, &target).await,
        Err(failed) => refuse(worker, stream.get_ref(), failed.reason, &failed.detail),
    }
}

/// Reads just enough to know the protocol. A client that stays silent waits for the server to
/// speak: opaque.
pub(crate) async fn sniff(
    worker: &Worker,
    stream: &mut TcpStream,
    first: Bytes,
) -> std::io::Result<(Verdict, Bytes)> {
    let mut bytes = BytesMut::from(&*first);
    let limit_bytes = worker
        .shared
        .config
        .limits
        .detect_bytes
        .bytes()
        .min(DETECT_MAX_BYTES);
    let reading = async {
        loop {
            let verdict = detect(&bytes);
            if verdict != Verdict::NeedMore || bytes.len() >= limit_bytes {
                return Ok::<_, std::io::Error>(verdict);
            }
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(Verdict::Opaque);
            }
        }
    };
    let limit = worker.shared.config.timeouts.detect;
    let verdict = match timeout(limit, reading).await {
        Ok(result) => result?,
        Err(_elapsed) => {
            worker.shared.metrics.totals().detection_timeouts.inc();
            Verdict::Opaque
        }
    };
    Ok((verdict, bytes.freeze()))
}

/// Opaque bytes, one mTLS connection each.
async fn opaque(worker: &Rc<Worker>, mut client: Replayed<TcpStream>, port: &Arc<PortView>) {
    let shared = &worker.shared;
    let port = match outside::resolved(worker, Arc::clone(port), None).await {
        Ok(port) => port,
        Err(failed) => return refuse(worker, client.get_ref(), failed.reason, &failed.detail),
    };
    let port = &*port;
    let stats = shared.metrics.tcp(tcp_key(&port.service.to_string()));
    let Some(_counted) = worker.pool.admit_connection(port) else {
        let limit = port.policy.max_connections.unwrap_or_default();
        let detail = format!("{}: {limit} connections are open", port.service);
        return refuse(worker, client.get_ref(), Reason::ConnectionLimit, &detail);
    };
    if port.policy.breaker_mode == BreakerMode::ForceOpen {
        let detail = port.service.to_string();
        return refuse(worker, client.get_ref(), Reason::CircuitOpen, &detail);
    }
    let mesh = &shared.mesh;
    let hash_on = port.policy.hash_on.as_ref();
    let wish = Wish {
        key: hash_on.and_then(|on| on.key(&HeaderMap::new(), None, mesh.source())),
        zone: mesh.zone(),
    };
    let mut tried: Vec<EndpointKey> = Vec::new();
    // Nothing has been sent before the connection stands: trying another endpoint is safe.
    let (mut server, mut call) = loop {
        let picked = match pick(port, &tried, wish) {
            Ok(picked) => picked,
            Err(reason) => {
                return refuse(worker, client.get_ref(), reason, &port.service.to_string());
            }
        };
        let (endpoint, call) = picked;
        match connect(worker, port, &endpoint).await {
            Ok(server) => break (server, call),
            Err((reason, detail)) => {
                let class = port.policy.failures.of_failure(Failure::ConnectFailed);
                call.finish(class, crate::clock::now());
                tried.push(endpoint.key.clone());
                if tried.len() >= port.endpoints.len().min(3) {
                    return refuse(worker, client.get_ref(), reason, &detail);
                }
            }
        }
    };
    call.on_response(crate::clock::now());
    let opened = stats.open(server.wire());
    let (moved, ended) = {
        let drain = shared.drain.cut();
        tokio::select! {
            done = server.relay(&mut client, &shared.config, port.policy.idle_timeout) => done,
            () = drain => return reset(client.get_ref()),
        }
    };
    opened.received(moved.forward);
    opened.sent(moved.backward);
    match ended {
        Ended::Clean => drop(call.finish(CallClass::Success, crate::clock::now())),
        Ended::Idle => {
            stats.refused(Reason::IdleTimeout.as_str());
            reset(client.get_ref());
        }
        Ended::Broken(error) => {
            tracing::debug!(%error, service = %port.service, "TCP relay broke");
            reset(client.get_ref());
        }
    }
}

/// The far side of an opaque relay.
enum Server {
    Mesh(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    Outside(pool::OutsideStream, Wire),
    Plain(TcpStream),
}

impl Server {
    fn wire(&self) -> Wire {
        match self {
            Self::Mesh(_) => Wire::Mtls,
            Self::Outside(_, wire) => *wire,
            Self::Plain(_) => Wire::Plaintext,
        }
    }

    async fn relay(
        &mut self,
        client: &mut Replayed<TcpStream>,
        config: &ProxyConfig,
        idle: Option<Duration>,
    ) -> (crate::relay::Moved, Ended) {
        match self {
            Self::Mesh(stream) => relay(client, &mut **stream, config, idle).await,
            Self::Outside(stream, _) => relay(client, stream, config, idle).await,
            Self::Plain(stream) => relay(client, stream, config, idle).await,
        }
    }
}

async fn connect(
    worker: &Worker,
    port: &PortView,
    endpoint: &Endpoint,
) -> Result<Server, (Reason, String)> {
    let shared = &worker.shared;
    let limit = port.connect_timeout(&shared.config);
    let told = |error: DialError| (error.reason(), error.to_string());
    if let Some(outside) = &port.outside {
        let address = endpoint.key.address;
        let stream = pool::dial_outside(outside, address, |tls| &tls.opaque, limit).await;
        return Ok(Server::Outside(stream.map_err(told)?, port.wire()));
    }
    match endpoint.model.transport {
        Transport::Mesh => {
            let material = shared.tls.current().ok_or(DialError::NoCertificate);
            let material = material.map_err(told)?;
            let stream = pool::dial(port, endpoint, &material, ALPN_TCP, limit).await;
            Ok(Server::Mesh(Box::new(stream.map_err(told)?)))
        }
        Transport::Plain => match timeout(limit, pool::connect(endpoint.key.address)).await {
            Ok(stream) => Ok(Server::Plain(stream.map_err(told)?)),
            Err(_elapsed) => Err((Reason::ConnectTimeout, endpoint.key.address.to_string())),
        },
    }
}

/// Declared to be outside the mesh: bytes go through untouched.
async fn outside(worker: &Rc<Worker>, mut client: TcpStream, destination: SocketAddr) {
    let shared = &worker.shared;
    let limit = shared.config.timeouts.connect;
    let mut server = match timeout(limit, pool::connect(destination)).await {
        Ok(Ok(server)) => server,
        Ok(Err(error)) => {
            tracing::debug!(%error, "outside the mesh");
            return reset(&client);
        }
        Err(_elapsed) => return reset(&client),
    };
    let stats = shared.metrics.tcp(tcp_key("outside"));
    let opened = stats.open(Wire::Plaintext);
    let (moved, ended) = tokio::select! {
        done = relay(&mut client, &mut server, &shared.config, None) => done,
        () = shared.drain.cut() => return reset(&client),
    };
    opened.received(moved.forward);
    opened.sent(moved.backward);
    if !matches!(ended, Ended::Clean) {
        reset(&client);
        reset(&server);
    }
}

/// A failed dial is a reset to the program: on opaque bytes there is no other way to say no.
fn refuse(worker: &Worker, client: &TcpStream, reason: Reason, detail: &str) {
    tracing::info!(reason = reason.as_str(), detail, "connection refused");
    let stats = worker.shared.metrics.tcp(tcp_key("refused"));
    stats.refused(reason.as_str());
    reset(client);
}

fn tcp_key(service: &str) -> HttpKey {
    HttpKey {
        direction: Direction::Outbound,
        service: service.into(),
        peer: "".into(),
    }
}

/// What a request is balanced by, beside the endpoints' own state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish<'a> {
    /// The hash of its key, where it has one.
    pub(crate) key: Option<u64>,
    /// Where the caller is; empty when unknown.
    pub(crate) zone: &'a str,
}

impl<'a> Wish<'a> {
    /// What a request is balanced by; one without a key may go anywhere.
    pub(crate) fn of(worker: &'a Worker, port: &PortView, parts: &Parts) -> Self {
        let mesh = &worker.shared.mesh;
        let hash_on = port.policy.hash_on.as_ref();
        let key = |on: &HashOn| on.key(&parts.headers, parts.uri.query(), mesh.source());
        Self {
            key: hash_on.and_then(key),
            zone: mesh.zone(),
        }
    }
}

/// Chooses an endpoint that was not tried yet, as the port's policy says, and begins a call on it.
/// When every breaker is open, one is tried all the same: ejecting all would be an outage of our
/// own making.
pub(crate) fn pick(
    port: &PortView,
    tried: &[EndpointKey],
    wish: Wish<'_>,
) -> Result<(Arc<Endpoint>, Call), Reason> {
    let endpoints = &port.endpoints;
    if endpoints.is_empty() {
        return Err(Reason::NoEndpoints);
    }
    let now = crate::clock::now();
    if let ([only], true) = (endpoints.as_slice(), tried.is_empty()) {
        let call = match only.live.begin(now) {
            Ok(call) => call,
            Err(_open) => only.live.begin_forced(now),
        };
        return Ok((Arc::clone(only), call));
    }
    let heed = heed_of(port, now);
    let place = place_of(port, wish.zone, heed, now);
    let choose = |tried, heed| {
        let of_place = |place| {
            let view = View {
                port,
                tried,
                heed,
                place,
                now,
            };
            if let (Some(key), Some(table)) = (wish.key, port.table()) {
                return table.pick(key, |index| view.excluded(index));
            }
            let balancing = port.policy.balancing;
            balancing.pick(&view, fastrand::u64(..), port.next_turn())
        };
        match place {
            Place::Anywhere => of_place(place),
            Place::In(_) | Place::OutOf(_) => of_place(place).or_else(|| of_place(Place::Anywhere)),
        }
    };
    if heed != Heed::Nothing {
        for _attempt in 0..2 {
            let Some(index) = choose(tried, heed) else {
                break;
            };
            let endpoint = &endpoints[index];
            let call = match endpoint.live.begin(now) {
                Ok(call) => call,
                // A breaker that is only observed keeps nothing away.
                Err(_open) if heed == Heed::Checks => endpoint.live.begin_forced(now),
                Err(_open) => continue,
            };
            return Ok((Arc::clone(endpoint), call));
        }
    }
    let index = choose(tried, Heed::Nothing).or_else(|| choose(&[], Heed::Nothing));
    let endpoint = &endpoints[index.ok_or(Reason::NoHealthyEndpoint)?];
    let call = match endpoint.live.begin(now) {
        Ok(call) => call,
        Err(_open) => endpoint.live.begin_forced(now),
    };
    Ok((Arc::clone(endpoint), call))
}

/// A port's endpoints for one request.
struct View<'a> {
    port: &'a PortView,
    tried: &'a [EndpointKey],
    heed: Heed,
    place: Place<'a>,
    now: Instant,
}

impl Candidates for View<'_> {
    fn count(&self) -> usize {
        self.port.endpoints.len()
    }

    fn excluded(&self, index: usize) -> bool {
        let endpoint = &self.port.endpoints[index];
        self.tried.contains(&endpoint.key)
            || self.place.excludes(&endpoint.model.zone)
            || self.heed.excludes(endpoint, self.now)
    }

    fn score(&self, index: usize) -> f64 {
        self.port.endpoints[index].live.score(self.now)
    }

    fn in_flight(&self, index: usize) -> u32 {
        self.port.endpoints[index].live.in_flight()
    }

    fn weight(&self, index: usize) -> u32 {
        // Finer, so that one of weight 1 starts slowly too.
        const FINER: f64 = 10.0;
        let endpoint = &self.port.endpoints[index];
        let weight = endpoint.model.weight;
        let Some(time) = self.port.policy.slow_start else {
            return weight;
        };
        let share = slow_start_share(endpoint.live.age(self.now), time);
        let weight = f64::from(weight) * FINER * share;
        weight.round().max(1.0) as u32
    }

    fn heaviest(&self) -> Option<u32> {
        self.port.heaviest(self.now)
    }
}
