//! Connections of others that carry requests to the application, and how the application is asked.

use std::error::Error;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Request, Response, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use weft_core::reason::Reason;
use weft_core::retry::is_idempotent;

use super::{Application, Caller, Http1, dial, key, request};
use crate::http::{
    ExchangeError, Incoming, ProxyBody, SendError, Trailers, WithTrailers, describe, origin_form,
    send_http2,
};
use crate::mesh::ServerSlot;
use crate::outbound::SingleExchange;
use crate::telemetry::metrics::HttpStats;
use crate::worker::Worker;

/// One connection of a caller.
pub(super) struct Conversation {
    pub(super) worker: Rc<Worker>,
    pub(super) application: Application,
    /// Who calls, where the mesh verified it.
    pub(super) caller: Option<Caller>,
    pub(super) stats: Arc<HttpStats>,
    /// What is enforced on the application's port.
    pub(super) server: Arc<ServerSlot>,
    /// Where responses go in HTTP/1.1.
    pub(super) trailers: Option<Trailers>,
}

/// Serves a connection; `caller` is who the mesh verified, `None` for the outside.
pub(super) async fn serve<IO>(
    worker: &Rc<Worker>,
    io: IO,
    application: Application,
    caller: Option<Caller>,
    http2: bool,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let shared = Arc::clone(&worker.shared);
    let key = key(&application, caller.as_ref().map(|caller| &caller.peer));
    let (io, trailers) = WithTrailers::new(io);
    let conversation = Rc::new(Conversation {
        worker: Rc::clone(worker),
        trailers: (!http2).then_some(trailers),
        stats: shared.metrics.http(key),
        server: shared.mesh.server_port(application.port).await,
        application,
        caller,
    });
    let handle = move |request| {
        let conversation = Rc::clone(&conversation);
        async move { request::exchange(&conversation, request).await }
    };
    crate::http::serve(io, http2, &shared.config, &shared.drain, handle).await;
}

impl Conversation {
    /// Asks the application, in HTTP/1.1 or in HTTP/2.
    pub(super) async fn ask(
        &self,
        http1: bool,
        request: Request<ProxyBody>,
    ) -> Result<Response<Incoming>, (Reason, String)> {
        match http1 {
            true => self.http1(request).await,
            false => self.http2(request).await,
        }
    }

    async fn http1(
        &self,
        request: Request<ProxyBody>,
    ) -> Result<Response<Incoming>, (Reason, String)> {
        let applications = &self.worker.applications;
        let port = self.application.port;
        let mut request = origin_form(request);
        // A kept connection may be closed by the application in the very moment it is used: what
        // was not sent, or can be repeated without harm, goes over a new one.
        while let Some(mut connection) = applications.idle(port) {
            let again = repeat(&request);
            match connection.send(request).await {
                Ok(response) => {
                    self.keep_when_ready(connection);
                    return Ok(response);
                }
                Err(SendError { unsent, error }) => match (unsent, again) {
                    (Some(unsent), _) => request = *unsent,
                    (None, Some(copy)) => request = copy,
                    (None, None) => return Err(broken(&error)),
                },
            }
        }
        let mut connection = applications.http1(&self.application).await?;
        let response = connection.send(request).await;
        let response = response.map_err(|failed| broken(&failed.error))?;
        self.keep_when_ready(connection);
        Ok(response)
    }

    /// Puts the connection back once the response has been read to its end.
    fn keep_when_ready(&self, mut connection: Http1) {
        let worker = Rc::clone(&self.worker);
        let port = self.application.port;
        if connection.is_ready() {
            return worker.applications.keep(port, connection);
        }
        tokio::task::spawn_local(async move {
            if connection.ready().await {
                worker.applications.keep(port, connection);
            }
        });
    }

    async fn http2(
        &self,
        mut request: Request<ProxyBody>,
    ) -> Result<Response<Incoming>, (Reason, String)> {
        let applications = &self.worker.applications;
        *request.version_mut() = Version::HTTP_2;
        for _attempt in 0..2 {
            let mut sender = applications.http2(&self.application).await?;
            match send_http2(&mut sender, request).await {
                Ok(response) => return Ok(response),
                Err(SendError { unsent, error }) => match unsent {
                    Some(unsent) => request = *unsent,
                    None => return Err(broken(&error)),
                },
            }
        }
        Err((
            Reason::UpstreamReset,
            "the application closes every connection".to_owned(),
        ))
    }

    /// Asks the application over a connection of its own, which may become a stream of bytes.
    pub(super) async fn upgrade(
        &self,
        request: Request<ProxyBody>,
    ) -> Result<Response<Incoming>, (Reason, String)> {
        let failed = |error: &dyn Error| (Reason::UpgradeFailed, describe(error));
        let stream = dial(&self.worker.shared, &self.application).await?;
        let config = &self.worker.shared.config;
        let exchange = SingleExchange::begin(TokioIo::new(stream), config).await;
        let mut exchange = exchange.map_err(|error| failed(&error))?;
        let connect = *request.method() == Method::CONNECT;
        let response = exchange.send(request).await;
        let response = response.map_err(|failure| failed(&failure.error))?;
        if connect && response.status().is_success() && has_content(response.headers()) {
            let detail = "the answer to CONNECT has content: no tunnel was opened";
            return Err((Reason::UpgradeFailed, detail.to_owned()));
        }
        Ok(response)
    }
}

/// Whether a response announces content. One to CONNECT that agrees does not (RFC 9110 section 9.3.6):
/// a server that does answers as to any request, and would read the tunnel's bytes as the next one.
fn has_content(headers: &HeaderMap) -> bool {
    headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING)
}

fn repeat(request: &Request<ProxyBody>) -> Option<Request<ProxyBody>> {
    let repeatable = matches!(request.body(), ProxyBody::Empty) && is_idempotent(request.method());
    if !repeatable {
        return None;
    }
    let mut copy = Request::new(ProxyBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

fn broken(error: &ExchangeError) -> (Reason, String) {
    (error.reason(), describe(error))
}
