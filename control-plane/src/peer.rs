//! Who is at the other end of a connection.

use std::net::SocketAddr;
use std::sync::Arc;

use tonic::{Request, Status};
use weft_core::name::SpiffeId;

use crate::unix_seconds;

/// Who is at the other end, by a certificate that our authority signed.
#[derive(Debug, Clone)]
pub struct PeerIdentity {
    /// The SPIFFE ID.
    pub identity: SpiffeId,
    /// The instance.
    pub instance: Arc<str>,
    /// When the certificate ends, seconds since the Unix epoch.
    pub not_after: i64,
}

impl PeerIdentity {
    /// Who makes a request; the error is for the client. A connection may outlive the certificate
    /// that it was made with: nothing begins on it any more.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let info = request.extensions().get::<PeerInfo>();
        let peer = info.and_then(|info| info.peer.clone());
        let peer =
            peer.ok_or_else(|| Status::unauthenticated("this call needs a client certificate"))?;
        if peer.not_after <= unix_seconds() {
            return Err(Status::unauthenticated(
                "the certificate of this connection has ended: connect with a newer one",
            ));
        }
        Ok(peer)
    }
}

impl PeerInfo {
    /// What a request knows of its connection.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let info = request.extensions().get::<Self>();
        info.cloned()
            .ok_or_else(|| Status::internal("a request without its connection"))
    }
}

/// What a request knows of its connection.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Where it comes from.
    pub address: SocketAddr,
    /// Who it is, where a certificate was shown.
    pub peer: Option<PeerIdentity>,
}
