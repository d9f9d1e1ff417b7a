//! Connections of others that carry requests to the application, and how the application is asked.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use http::header::HOST;
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use weft_core::h1::{BadHost, is_host_missing};
use weft_core::headers::{WEFT_CONTINUE, WEFT_EXPECT, is_any_of};
use weft_core::name::MESH_SUFFIX;
use weft_core::resets::ResetClient;
use weft_core::shares::ClientKey;

use super::request::Answer;
use super::{Application, Caller, Socket, key, request};
use crate::abort::reset;
use crate::application::Asked;
use crate::connections::Guarded;
use crate::drain::{Cutting, Ends, Side};
use crate::http::h1::{OnContinue, Refusal, Settings, serve as serve_http1};
use crate::http::{Client, Incoming, Io, ProxyBody, patience, serve_http2};
use crate::mesh::ServerSlot;
use crate::telemetry::metrics::HttpStats;
use crate::tls::Signal;
use crate::worker::Worker;

/// One connection of a caller.
pub(super) struct Conversation {
    pub(super) worker: Rc<Worker>,
    pub(super) application: Application,
    /// Who calls, where the mesh verified it.
    pub(super) caller: Option<Caller>,
    /// The address that the connection comes from; unspecified where it has gone.
    pub(super) address: IpAddr,
    /// Whom resets are charged to; `None` where it has gone.
    pub(super) client: Option<Client>,
    /// Whom connections to the application are counted for.
    pub(super) holder: ClientKey,
    pub(super) stats: Arc<HttpStats>,
    /// What is enforced on the application's port.
    pub(super) server: Arc<ServerSlot>,
    /// What ends the connection, where it is one to another sidecar.
    pub(super) signal: Option<Arc<Signal>>,
    /// Whether its requests were cut by the sidecar.
    pub(super) cutting: Cutting,
    /// Requests that expect 100, by the number that their caller's sidecar gave them.
    expecting: RefCell<HashMap<u64, OnContinue>>,
}

/// Serves a connection; `caller` is who the mesh verified, `None` for the outside.
pub(super) async fn serve<IO>(
    worker: &Rc<Worker>,
    io: IO,
    application: Application,
    caller: Option<Caller>,
    http2: bool,
) where
    IO: Io + Socket + 'static,
{
    let shared = Arc::clone(&worker.shared);
    // Before all else, so that nothing else is kept meanwhile.
    let server = shared.mesh.server_port(application.port).await;
    let signal = io.signal();
    let address = io.socket().peer_addr();
    let io = Guarded::patient(io, patience(&shared.config, http2));
    let unknown = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let from = address.as_ref().map_or(unknown, SocketAddr::ip);
    let peer = caller.as_ref().map(|caller| &caller.peer);
    let holder = worker.applications.client(peer, from);
    let key = key(&application, peer);
    let who = match (&caller, &address) {
        (Some(caller), _) => Some(ResetClient::Peer(Arc::clone(caller.peer.instance()))),
        (None, Ok(address)) => Some(ResetClient::outside(address.ip())),
        (None, Err(_)) => None,
    };
    let conversation = Rc::new(Conversation {
        worker: Rc::clone(worker),
        signal: signal.clone(),
        cutting: worker.cutting.of_connection(signal.clone()),
        expecting: RefCell::default(),
        stats: shared.metrics.http(key),
        server,
        application,
        caller,
        address: from,
        client: who.map(|who| Client::new(who, &shared.resets)),
        holder,
    });
    let config = &shared.config;
    let ends = Ends::new(&shared.drain, Side::Inbound, signal.as_deref());
    if http2 {
        let Some(client) = conversation.client.clone() else {
            return;
        };
        let refusing = Rc::clone(&conversation);
        let refuse = move |refusal: Refusal| request::refuse(&refusing, &refusal);
        let handle = move |request| {
            let conversation = Rc::clone(&conversation);
            async move { conversation.handle(request).await }
        };
        // On the heap, each: a connection needs no room for the other.
        Box::pin(serve_http2(io, &client, (config, &ends), handle, refuse)).await;
    } else {
        let settings = match &conversation.caller {
            Some(_peer) => Settings::of_peer(config),
            None => Settings::of(config, true),
        };
        let handle = |request| conversation.handle(request);
        let refuse = |refusal: Refusal| request::refuse(&conversation, &refusal);
        let broken = |io: &Guarded<IO>| reset(io.get_ref().socket());
        let serving = serve_http1(io, settings, &ends, (handle, refuse), broken);
        let tunnel = Box::pin(serving).await;
        if let (Some(used), Some(client)) = (tunnel, &conversation.client) {
            client.on_tunnel_end(&used);
        }
    }
}

impl Conversation {
    /// Answers a request, or says to another sidecar when the body of one may be sent.
    async fn handle(self: &Rc<Self>, mut request: Request<Incoming>) -> Answer {
        let headers = request.headers();
        if self.caller.is_some() && is_any_of(headers, [&WEFT_CONTINUE, &WEFT_EXPECT]) {
            if let Some(number) = request.headers_mut().remove(WEFT_CONTINUE) {
                return self.may_continue(parsed(&number)).await;
            }
            if let Some(number) = request.headers_mut().remove(WEFT_EXPECT) {
                let _expecting = self.expect(parsed(&number), &mut request);
                return request::exchange(self, request).await;
            }
        }
        request::exchange(self, request).await
    }

    /// Notes a request that expects 100.
    fn expect(&self, number: u64, request: &mut Request<Incoming>) -> Expecting<'_> {
        let told = OnContinue::default();
        request.extensions_mut().insert(told.clone());
        let mut expecting = self.expecting.borrow_mut();
        expecting.insert(number, told.clone());
        Expecting {
            all: &self.expecting,
            number,
            told,
        }
    }

    /// Answers when the body of the request with this number may be sent, or is not needed.
    async fn may_continue(&self, number: u64) -> Answer {
        let told = self.expecting.borrow().get(&number).cloned();
        if let Some(told) = told {
            told.0.notified().await;
        }
        Response::new(ProxyBody::Empty)
    }

    /// Gives a request that names no host that of the service that it is for (RFC 9112 section 3.2
    /// asks for one of what is sent in HTTP/1.1).
    pub(super) fn name_host(&self, parts: &mut Parts) -> Result<(), BadHost> {
        if !is_host_missing(&parts.uri, &parts.headers)? {
            return Ok(());
        }
        let shared = &self.worker.shared;
        let workload = &shared.config.workload;
        let hostname = match shared.mesh.called_service("") {
            Some(service) => service.hostname(),
            None => format!("{}.{}.{MESH_SUFFIX}", workload.name, workload.namespace),
        };
        if let Ok(hostname) = HeaderValue::from_str(&hostname) {
            parts.headers.insert(HOST, hostname);
        }
        Ok(())
    }

    /// Asks the application, in HTTP/1.1 or in HTTP/2.
    pub(super) async fn ask(&self, http1: bool, request: Box<Request<ProxyBody>>) -> Asked {
        let applications = &self.worker.applications;
        let asking = applications.ask(&self.application, self.holder, http1, request);
        asking.await
    }
}

/// A request that expects 100, until it has been answered.
struct Expecting<'a> {
    all: &'a RefCell<HashMap<u64, OnContinue>>,
    number: u64,
    told: OnContinue,
}

impl Drop for Expecting<'_> {
    fn drop(&mut self) {
        self.all.borrow_mut().remove(&self.number);
        self.told.0.notify_one();
    }
}

/// The number that a sidecar gave a request; 0 for what is none.
fn parsed(number: &HeaderValue) -> u64 {
    let number = number.to_str().ok();
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_default()
}
