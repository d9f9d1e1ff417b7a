//! Connections of the application that carry requests to a service.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::HOST;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Uri, Version};
use tokio::net::TcpStream;
use tokio::time::timeout;
use weft_core::h1::{BadHost, TargetForm, authority};
use weft_core::headers::{APP_HTTP1_FORM, WEFT_APP_PROTOCOL, remove_untrusted};
use weft_core::hops::{HOPS_MAX, Hops};
use weft_core::reason::Reason;
use weft_core::resets::ResetClient;

use super::failed::Failed;
use super::request;
use crate::abort::reset;
use crate::config::ProxyConfig;
use crate::connections::{Guarded, Permit};
use crate::drain::{Ends, Side};
use crate::http::h1::{Refusal, Settings, serve as serve_http1};
use crate::http::{Client, none_came, patience, serve_http2};
use crate::mesh::PortView;
use crate::tls::Replayed;
use crate::worker::Worker;

/// One connection of the application, with what it remembers between requests.
pub(super) struct Conversation {
    pub(super) worker: Rc<Worker>,
    /// The program, as what it resets is charged.
    pub(super) client: Client,
    port: RefCell<Arc<PortView>>,
    generation: Cell<u64>,
    /// The last Host, parsed: it is nearly always the same.
    authority: RefCell<Option<(HeaderValue, Authority)>>,
}

/// Serves a connection. `http2` is `None` where the client's first bytes have not been read.
pub(super) async fn serve(
    worker: &Rc<Worker>,
    mut stream: Replayed<TcpStream>,
    port: Arc<PortView>,
    http2: Option<bool>,
    permit: Permit,
) {
    let shared = Arc::clone(&worker.shared);
    let ends = Ends::new(&shared.drain, Side::Outbound, None);
    let http2 = match http2 {
        Some(known) => known,
        None => {
            let read = tokio::select! {
                biased;
                read = first_bytes(&mut stream, &shared.config) => read,
                () = none_came(&ends) => return,
            };
            match read {
                Ok(http2) => http2,
                Err(error) => {
                    tracing::debug!(%error, "the client went away before it said anything");
                    return;
                }
            }
        }
    };
    let stream = Guarded::accepted(stream, permit, None);
    let stream = Guarded::patient(stream, patience(&shared.config, http2));
    let conversation = Rc::new(Conversation {
        worker: Rc::clone(worker),
        client: Client::new(ResetClient::Program, &shared.resets),
        port: RefCell::new(port),
        generation: Cell::new(shared.mesh.generation()),
        authority: RefCell::new(None),
    });
    let config = &shared.config;
    if http2 {
        let client = conversation.client.clone();
        let refusing = Rc::clone(&conversation);
        let refuse = move |refusal: Refusal| request::refuse(&refusing, &refusal);
        let handle = move |request| {
            let conversation = Rc::clone(&conversation);
            async move { request::exchange(&conversation, request).await }
        };
        // On the heap, each: a connection needs no room for the other.
        Box::pin(serve_http2(
            stream,
            &client,
            (config, &ends),
            handle,
            refuse,
        ))
        .await;
    } else {
        // How slow the application may be is its own to say.
        let settings = Settings::of(config, false);
        let handle = |request| request::exchange(&conversation, request);
        let refuse = |refusal: Refusal| request::refuse(&conversation, &refusal);
        let broken = |stream: &Guarded<Guarded<Replayed<TcpStream>>>| {
            reset(stream.get_ref().get_ref().get_ref());
        };
        let serving = serve_http1(stream, settings, &ends, (handle, refuse), broken);
        let tunnel = Box::pin(serving).await;
        if let Some(used) = tunnel {
            conversation.client.on_tunnel_end(&used);
        }
    }
}

/// Whether the client speaks HTTP/2. One that says nothing is idle from the start.
async fn first_bytes(stream: &mut Replayed<TcpStream>, config: &ProxyConfig) -> io::Result<bool> {
    let reading = stream.read_preface();
    match config.timeouts.client_idle {
        Duration::ZERO => reading.await,
        limit => timeout(limit, reading)
            .await
            .unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())),
    }
}

/// Removes what only the mesh may say from the application's request, and counts this sidecar among
/// those that it has passed.
pub(super) fn one_more(headers: &mut HeaderMap) -> Result<(), Failed> {
    let hops = Hops::read(headers);
    remove_untrusted(headers);
    let Some(hops) = hops.next() else {
        let detail = format!("it has passed {HOPS_MAX} sidecars");
        return Err(Failed::new(Reason::LoopDetected, detail));
    };
    hops.write(headers);
    Ok(())
}

impl Conversation {
    /// The port in the configuration of now.
    pub(super) fn port(&self) -> Arc<PortView> {
        let mesh = &self.worker.shared.mesh;
        let generation = mesh.generation();
        if generation != self.generation.get() {
            self.generation.set(generation);
            let now = self.fresh(Arc::clone(&self.port.borrow()));
            *self.port.borrow_mut() = now;
        }
        Arc::clone(&self.port.borrow())
    }

    /// The port in the configuration of now.
    pub(super) fn fresh(&self, port: Arc<PortView>) -> Arc<PortView> {
        let fresh = self.worker.shared.mesh.refresh(&port);
        fresh.unwrap_or_else(|| Arc::new(port.without_endpoints()))
    }

    /// Notes what the application is to be spoken to in, and makes the request one in HTTP/2, as it
    /// goes between sidecars.
    pub(super) fn note_protocol(parts: &mut Parts) {
        if parts.version != Version::HTTP_2 {
            let http1 = HeaderValue::from_static(APP_HTTP1_FORM);
            parts.headers.insert(WEFT_APP_PROTOCOL, http1);
        }
        parts.version = Version::HTTP_2;
    }

    /// Gives the URI the host, which is taken from its field.
    pub(super) fn make_absolute(&self, parts: &mut Parts) -> Result<(), Failed> {
        let bad = |detail: &str| Failed::new(Reason::BadRequest, detail);
        let authority = match (parts.headers.remove(HOST), parts.uri.authority()) {
            (_, Some(authority)) => authority.clone(),
            (Some(host), None) => self.parsed(host).map_err(|host| bad(&host.to_string()))?,
            // HTTP/1.0 and HTTP/2 may leave it out.
            (None, None) => {
                let hostname = HeaderValue::from_str(&self.port.borrow().hostname);
                let hostname = hostname.map_err(|_| bad("the service has no hostname"))?;
                self.parsed(hostname)
                    .map_err(|host| bad(&host.to_string()))?
            }
        };
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        // A forward proxy is told the scheme.
        let told = parts.extensions.get() == Some(&TargetForm::Absolute);
        uri.scheme = uri.scheme.filter(|_| told).or(Some(Scheme::HTTP));
        uri.authority = Some(authority);
        if uri.path_and_query.is_none() {
            uri.path_and_query = Some(PathAndQuery::from_static("/"));
        }
        parts.uri = Uri::from_parts(uri).map_err(|error| bad(&error.to_string()))?;
        Ok(())
    }

    fn parsed(&self, host: HeaderValue) -> Result<Authority, BadHost> {
        let mut last = self.authority.borrow_mut();
        if let Some((seen, authority)) = &*last
            && *seen == host
        {
            return Ok(authority.clone());
        }
        let authority = authority(host.as_bytes())?;
        // A copy: what is kept holds no buffer of the connection.
        *last = HeaderValue::from_bytes(host.as_bytes())
            .ok()
            .map(|host| (host, authority.clone()));
        Ok(authority)
    }
}
