//! Serves gRPC on a sidecar's connection: who may call what, for how long, and what ends it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body as GrpcBody;
use tonic::service::Routes;
use tower::ServiceExt as _;
use weft_proto::identity::identity_server::SERVICE_NAME as IDENTITY_SERVICE;

use super::Connection;
use super::connection::Place;
use crate::budget::{
    AnonymousLife, CALL_TIMEOUT, HEADERS_MAX_BYTES, Refusal, STREAMS_PER_CONNECTION,
};
use crate::identity::Identities;
use crate::peer::PeerInfo;
use crate::peers::{AnonymousPlace, CallGuard, PeerConnection, Peers};

/// A peer that answers no ping for an interval and this long is gone.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// What a stream, and a connection, may send ahead of what is read, bytes. A connection has room for
/// every stream of a sidecar, so that one that is not read does not stop the others.
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What is buffered for one stream whose peer does not read, bytes.
const SEND_BUFFER: usize = 64 * 1024;
/// How long the reasons of streams that end by revocation may take to be read.
const REVOKED_DRAIN: Duration = Duration::from_millis(500);
/// How often the deadlines of a connection without a certificate are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Calls that are refused on one connection before it is cut.
const REFUSALS_MAX: u32 = 1_000;

/// What serving a sidecar needs.
#[derive(Debug, Clone)]
pub struct Sidecars {
    /// All services.
    pub routes: Routes,
    /// Who is connected.
    pub peers: Arc<Peers>,
    /// Who is revoked.
    pub identities: Arc<Identities>,
}

/// Serves a connection to its end, which comes at the latest some seconds after `stop`.
pub async fn serve(mut connection: Connection, sidecars: Sidecars, stop: CancellationToken) {
    let gate = Arc::new(Gate::new(&mut connection, sidecars));
    let service = {
        let gate = Arc::clone(&gate);
        service_fn(move |request| {
            let gate = Arc::clone(&gate);
            async move { Ok::<_, Infallible>(gate.call(request).await) }
        })
    };
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .max_header_list_size(HEADERS_MAX_BYTES)
        .max_send_buf_size(SEND_BUFFER)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let serving = builder.serve_connection(TokioIo::new(connection), service);
    let mut serving = std::pin::pin!(serving);
    let mut over = std::pin::pin!(gate.over());
    let mut draining = false;
    loop {
        tokio::select! {
            result = serving.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(address = %gate.info.address, %error, "connection");
                }
                return;
            }
            () = gate.drained(&stop), if !draining => {
                draining = true;
                serving.as_mut().graceful_shutdown();
            }
            () = over.as_mut() => return,
        }
    }
}

/// Lets calls of one connection through, or says why not.
#[derive(Debug)]
struct Gate {
    sidecars: Sidecars,
    info: PeerInfo,
    access: Access,
    refusals: AtomicU32,
    /// Fires when it has refused too often.
    enough: CancellationToken,
}

#[derive(Debug)]
enum Access {
    /// To everything.
    Peer(Arc<PeerConnection>),
    /// To certificates only.
    Anonymous(Waiting),
    /// To nothing, for a reason that every call is told.
    Refused(Status, Waiting),
}

/// A connection in the budget of its source address.
#[derive(Debug)]
struct Waiting {
    place: Arc<AnonymousPlace>,
    life: Mutex<AnonymousLife>,
}

impl Gate {
    fn new(connection: &mut Connection, sidecars: Sidecars) -> Self {
        let peer = connection.peer();
        let info = PeerInfo {
            address: connection.address(),
            peer: peer.clone(),
        };
        let access = match (peer, connection.place().clone()) {
            (_, Place::Peer(peer)) => Access::Peer(peer),
            (None, Place::Anonymous(place)) => Access::Anonymous(Waiting::new(place)),
            (Some(peer), Place::Anonymous(place)) => {
                let begun = sidecars
                    .peers
                    .begin_connection(&peer.instance, peer.not_after);
                let begun = begun.map_err(Status::from).and_then(|begun| {
                    // Looked up when it can be ended already: no revocation is missed.
                    match sidecars.identities.is_revoked(&peer.instance) {
                        true => Err(Status::unauthenticated("the instance was revoked")),
                        false => Ok(Arc::new(begun)),
                    }
                });
                match begun {
                    Ok(peer) => {
                        connection.belongs_to(Arc::clone(&peer));
                        Access::Peer(peer)
                    }
                    Err(status) => Access::Refused(status, Waiting::new(place)),
                }
            }
        };
        Self {
            sidecars,
            info,
            access,
            refusals: AtomicU32::new(0),
            enough: CancellationToken::new(),
        }
    }

    /// Waits until nothing may begin on the connection any more.
    async fn drained(&self, stop: &CancellationToken) {
        match &self.access {
            Access::Peer(peer) => tokio::select! {
                () = stop.cancelled() => {}
                () = peer.drain().cancelled() => {}
            },
            Access::Anonymous(_) | Access::Refused(..) => stop.cancelled().await,
        }
    }

    /// Waits until the connection has to be cut.
    async fn over(&self) {
        let by_place = async {
            match &self.access {
                Access::Peer(peer) => tokio::select! {
                    () = peer.cut().cancelled() => {}
                    () = peer.revoked().cancelled() => sleep(REVOKED_DRAIN).await,
                },
                Access::Anonymous(waiting) | Access::Refused(_, waiting) => {
                    if waiting.over().await {
                        let what = "nothing asked for in time, without a certificate";
                        self.sidecars.peers.note_late(self.info.address, what);
                    }
                }
            }
        };
        tokio::select! {
            () = by_place => {}
            // The refusals that are on their way are worth a moment.
            () = self.enough.cancelled() => sleep(REVOKED_DRAIN).await,
        }
    }

    async fn call(self: Arc<Self>, mut request: Request<Incoming>) -> Response<Answer> {
        let guard = match self.admit(request.uri().path()) {
            Ok(guard) => guard,
            Err(status) => {
                let refusals = self.refusals.fetch_add(1, Ordering::Relaxed) + 1;
                if refusals >= REFUSALS_MAX {
                    self.enough.cancel();
                }
                return status.into_http::<GrpcBody>().map(Answer::unguarded);
            }
        };
        let extensions = request.extensions_mut();
        extensions.insert(self.info.clone());
        if let Guard::Peer(call) = &guard {
            extensions.insert(Arc::clone(call));
        }
        let routes = self.sidecars.routes.clone();
        let answered = timeout(CALL_TIMEOUT, routes.oneshot(request.map(GrpcBody::new)));
        let response = match answered.await {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_elapsed) => {
                let text = format!(
                    "the call has not begun to be answered within {} s: what it waits for may be \
                     its first message",
                    CALL_TIMEOUT.as_secs()
                );
                Status::deadline_exceeded(text).into_http()
            }
        };
        response.map(|body| Answer {
            body,
            _guard: Some(guard),
        })
    }

    fn admit(self: &Arc<Self>, path: &str) -> Result<Guard, Status> {
        match &self.access {
            Access::Peer(peer) => Ok(Guard::Peer(peer.begin_call()?)),
            Access::Anonymous(waiting) => {
                let service = path.trim_start_matches('/').split('/').next();
                if service != Some(IDENTITY_SERVICE) {
                    return Err(Status::unauthenticated(
                        "this call needs a client certificate: a connection without one may only \
                         ask for a certificate",
                    ));
                }
                self.begin_anonymous(waiting)?;
                Ok(Guard::Anonymous(Arc::clone(self)))
            }
            Access::Refused(status, _) => Err(status.clone()),
        }
    }

    fn begin_anonymous(&self, waiting: &Waiting) -> Result<(), Refusal> {
        let begun = waiting.life().begin_call();
        begun.inspect_err(|refusal| {
            self.sidecars
                .peers
                .note_refused(&self.info.address, refusal);
        })?;
        waiting.place.set_busy(true);
        Ok(())
    }
}

impl Waiting {
    fn new(place: Arc<AnonymousPlace>) -> Self {
        Self {
            place,
            life: Mutex::new(AnonymousLife::new(Instant::now())),
        }
    }

    fn life(&self) -> std::sync::MutexGuard<'_, AnonymousLife> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it has to be cut; whether that is because of a deadline.
    async fn over(&self) -> bool {
        loop {
            let left = self
                .life()
                .closes()
                .saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            tokio::select! {
                () = sleep(left.min(LOOK_EVERY)) => {}
                () = self.place.cut().cancelled() => return false,
            }
        }
    }

    fn end_call(&self) {
        if self.life().end_call(Instant::now()) {
            self.place.set_busy(false);
        }
    }
}

/// A call that counts until its answer has ended.
#[derive(Debug)]
enum Guard {
    Peer(Arc<CallGuard>),
    Anonymous(Arc<Gate>),
}

impl Drop for Guard {
    fn drop(&mut self) {
        match self {
            // Counted by itself.
            Self::Peer(_) => {}
            Self::Anonymous(gate) => match &gate.access {
                Access::Anonymous(waiting) | Access::Refused(_, waiting) => waiting.end_call(),
                Access::Peer(_) => {}
            },
        }
    }
}

/// The body of an answer, with the call that it is of.
#[derive(Debug)]
struct Answer {
    body: GrpcBody,
    /// Counts until the answer has ended.
    _guard: Option<Guard>,
}

impl Answer {
    fn unguarded(body: GrpcBody) -> Self {
        Self { body, _guard: None }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
