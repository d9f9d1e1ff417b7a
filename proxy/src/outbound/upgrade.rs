//! A connection of its own for an upgrade (WebSocket) or CONNECT, which becomes a stream of bytes.

use std::rc::Rc;
use std::sync::Arc;

use http::{Request, Response};
use tokio_util::either::Either;
use weft_core::headers::remove_untrusted;
use weft_core::reason::Reason;

use crate::http::{Incoming, ProxyBody, SendError};
use crate::mesh::{Counted, Endpoint, PortView};
use crate::pool::{self, DialError, OutsideStream, PeerStream};
use crate::shared::Shared;
use crate::tls::{ALPN_H1, Signal};
use crate::upgrade::SingleExchange;
use crate::worker::Worker;

/// A connection for one exchange in HTTP/1.1, which may then be taken over.
#[derive(Debug)]
pub(super) struct OwnConnection {
    exchange: SingleExchange,
    /// Whether it leaves the mesh.
    outside: bool,
    /// What ends it, where it is one to another sidecar.
    signal: Option<Arc<Signal>>,
    /// Its place among the port's connections.
    _counted: Counted,
}

impl OwnConnection {
    /// Dials an endpoint, within the port's limit on connections.
    pub(super) async fn open(
        worker: &Rc<Worker>,
        port: &PortView,
        endpoint: &Endpoint,
    ) -> Result<Self, DialError> {
        let shared = &worker.shared;
        let counted = worker.pool.admit_connection(port);
        let counted = counted.ok_or_else(|| DialError::Limited {
            address: endpoint.key.address,
            limit: port.policy.max_connections.unwrap_or_default(),
        })?;
        let stream = dial(shared, port, endpoint).await?;
        let config = &shared.config;
        let (exchange, signal) = match stream {
            Either::Left(outside) => (SingleExchange::begin(outside, config), None),
            Either::Right(peer) => {
                let signal = peer.signal();
                (SingleExchange::begin_with_peer(peer, config), signal)
            }
        };
        Ok(Self {
            exchange,
            outside: port.outside_of(endpoint).is_some(),
            signal,
            _counted: counted,
        })
    }

    /// What ends it, where it is one to another sidecar.
    pub(super) fn signal(&self) -> Option<Arc<Signal>> {
        self.signal.clone()
    }

    /// Why it is cut; `None` where it is not.
    pub(super) fn cut_reason(&self) -> Option<Reason> {
        self.signal.as_ref()?.cut_reason()
    }

    /// Sends a request.
    pub(super) async fn send(
        &mut self,
        mut request: Box<Request<ProxyBody>>,
    ) -> Result<Response<Incoming>, SendError> {
        if !self.outside {
            return self.exchange.send(request).await;
        }
        // Nothing that is the mesh's own leaves it, and nothing that comes back speaks for it.
        remove_untrusted(request.headers_mut());
        let mut response = self.exchange.send(request).await?;
        remove_untrusted(response.headers_mut());
        Ok(response)
    }
}

async fn dial(
    shared: &Shared,
    port: &PortView,
    endpoint: &Endpoint,
) -> Result<Either<OutsideStream, Box<PeerStream>>, DialError> {
    let (limit, metrics) = (port.connect_timeout(&shared.config), &shared.metrics);
    if let Some(outside) = port.outside_of(endpoint) {
        let address = endpoint.key.address;
        let stream =
            pool::dial_outside(outside, address, |tls| &tls.upgrade, limit, metrics).await?;
        return Ok(Either::Left(stream));
    }
    let material = shared.tls.current().ok_or(DialError::NoCertificate)?;
    let stream = pool::dial(port, endpoint, &material, ALPN_H1, limit, metrics).await?;
    Ok(Either::Right(Box::new(stream)))
}
