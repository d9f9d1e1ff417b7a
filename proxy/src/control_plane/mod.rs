//! The connection to the control plane: TLS 1.3, and the control plane has to prove who it is.
//!
//! A sidecar with a certificate has one connection ([`Keeper`]); discovery, registration,
//! observation, leases and renewals are calls on it. Only enrolment, which has no certificate yet,
//! makes one of its own ([`connect`]) and closes it.

mod backoff;
mod keeper;
mod line;
mod moves;
#[cfg(test)]
pub(crate) mod testing;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::{Status, Streaming};
use weft_core::name::{CONTROL_PLANE_ACCOUNT, RESERVED_NAMESPACE, SpiffeId, TrustDomain};

use crate::tls::{Credentials, Trust, Verifier, in_words, provider};
pub use backoff::Backoff;
pub use keeper::{Keeper, Lines};
pub use line::Line;
pub use moves::Moves;
pub use verify::FirstContactError;

/// How long connecting, TLS included, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a stream may take to be opened. Above the 10 s after which the control plane itself
/// gives up a call, so that its reason is what is heard.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the status is waited for of a stream that has ended.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// One service with thousands of endpoints fits; more than that is not ours.
pub const MESSAGE_MAX_BYTES: usize = 32 * 1024 * 1024;

/// Why the control plane is not reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is not one.
    #[error("control plane address {address:?} is not HOST:PORT")]
    Address {
        /// What was given.
        address: String,
    },
    /// Our own certificate is not usable.
    #[error("own certificate: {0}")]
    Own(rustls::Error),
    /// Not reached, or not believed.
    #[error("control plane {address}: {reason}")]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// What happened.
        reason: String,
    },
}

/// Whom we take for the control plane, and as whom we come.
#[derive(Debug, Clone)]
pub enum Trusting {
    /// Nothing is known but the digest of the root: what a join token carries.
    RootDigest(Arc<str>),
    /// Nothing is known but the roots of the mesh, DER: what a pod is given.
    Roots(Arc<[Vec<u8>]>),
    /// The bundle is known, but our certificate has expired or is missing.
    Bundle(Arc<Trust>, TrustDomain),
    /// We have a certificate.
    Mutual(Arc<Trust>, Arc<Credentials>),
}

impl Trusting {
    /// When the certificate that we show ends, seconds since the Unix epoch.
    fn not_after(&self) -> Option<i64> {
        match self {
            Self::RootDigest(_) | Self::Roots(_) | Self::Bundle(..) => None,
            Self::Mutual(_, credentials) => Some(credentials.not_after),
        }
    }
}

/// The SPIFFE ID of the control plane of a trust domain.
pub fn control_plane_identity(trust_domain: &TrustDomain) -> SpiffeId {
    SpiffeId::new(trust_domain, RESERVED_NAMESPACE, CONTROL_PLANE_ACCOUNT)
        .unwrap_or_else(|_| unreachable!("both constants are DNS labels"))
}

/// Connects once, for a call or two: the connection closes with the last clone of what is returned.
pub async fn connect(address: &str, trusting: &Trusting) -> Result<Line, ConnectError> {
    let (line, standing) = dial(address, trusting).await?;
    tokio::spawn(standing);
    Ok(line)
}

/// Connects; with the connection comes what has to be driven for it, and what that returns when it
/// has ended.
async fn dial(
    address: &str,
    trusting: &Trusting,
) -> Result<(Line, impl Future<Output = String> + Send + use<>), ConnectError> {
    let host = address.rsplit_once(':');
    let valid = host.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !valid {
        return Err(ConnectError::Address {
            address: address.to_owned(),
        });
    }
    let tls = TlsConnector::from(Arc::new(client_config(trusting)?));
    let unreachable = |reason: String| ConnectError::Unreachable {
        address: address.to_owned(),
        reason,
    };
    let connecting = async {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        // The name only has to be one: the certificate is checked for the SPIFFE ID.
        let name = ServerName::try_from(line::HOST).map_err(std::io::Error::other)?;
        tls.connect(name, tcp).await
    };
    let connected = timeout(CONNECT_TIMEOUT, connecting).await;
    let connected = connected
        .map_err(|_elapsed| unreachable(format!("not connected within {CONNECT_TIMEOUT:?}")))?
        .map_err(|error| unreachable(in_words(&error).into_owned()))?;
    let opened = line::open(connected).await;
    opened.map_err(|error| unreachable(error.to_string()))
}

/// What opens a stream, within a limit.
pub async fn opened<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let opened = timeout(OPEN_TIMEOUT, call).await;
    opened.unwrap_or_else(|_elapsed| {
        Err(Status::deadline_exceeded(format!(
            "the control plane has not answered within {OPEN_TIMEOUT:?}"
        )))
    })
}

/// What a status says, for the log.
pub fn described(status: &Status) -> String {
    format!("{} ({:?})", status.message(), status.code())
}

/// The status of a stream that the control plane has ended.
pub fn ended() -> Status {
    Status::unavailable("the control plane ended the stream")
}

/// The status that a stream ended with, on which nothing can be sent any more. Messages that come
/// before it are lost.
pub async fn end_status<T>(messages: &mut Streaming<T>) -> Status {
    let end = async {
        loop {
            match messages.message().await {
                Ok(Some(_lost)) => {}
                Ok(None) => return ended(),
                Err(status) => return status,
            }
        }
    };
    let status = timeout(END_TIMEOUT, end).await;
    status.unwrap_or_else(|_elapsed| Status::unavailable("the control plane reads no more"))
}

fn client_config(trusting: &Trusting) -> Result<ClientConfig, ConnectError> {
    let verifier = Verifier::tls13(verify::ControlPlaneJudge(trusting.clone()));
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(ConnectError::Own)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match trusting {
        Trusting::RootDigest(_) | Trusting::Roots(_) | Trusting::Bundle(..) => {
            builder.with_no_client_auth()
        }
        Trusting::Mutual(_, credentials) => {
            let chain: Vec<CertificateDer<'static>> = credentials.chain.clone();
            let key: PrivateKeyDer<'static> = credentials.key.clone_key();
            builder
                .with_client_auth_cert(chain, key)
                .map_err(ConnectError::Own)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Every connection proves itself anew: there are few of them.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}
