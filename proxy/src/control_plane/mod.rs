//! The connection to the control plane: TLS 1.3, and the control plane has to prove who it is.

mod verify;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use weft_core::name::{SpiffeId, TrustDomain};

use crate::tls::{Credentials, Trust, provider};
pub use verify::FirstContactError;

/// Namespace and service account of every control plane.
const CONTROL_PLANE_NAMESPACE: &str = "weft-system";
const CONTROL_PLANE_ACCOUNT: &str = "control-plane";

/// How long connecting, TLS included, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A dead peer is noticed after one interval and one timeout.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
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
    #[error("control plane {address}: {source}")]
    Transport {
        /// Where it was looked for.
        address: String,
        /// What happened.
        source: tonic::transport::Error,
    },
}

/// Whom we take for the control plane, and as whom we come.
#[derive(Debug, Clone)]
pub enum Trusting {
    /// Nothing is known but the digest of the root: what a join token carries.
    RootDigest(Arc<str>),
    /// The bundle is known, but our certificate has expired or is missing.
    Bundle(Arc<Trust>, TrustDomain),
    /// We have a certificate.
    Mutual(Arc<Trust>, Arc<Credentials>),
}

/// The SPIFFE ID of the control plane of a trust domain.
pub fn control_plane_identity(trust_domain: &TrustDomain) -> SpiffeId {
    SpiffeId::new(trust_domain, CONTROL_PLANE_NAMESPACE, CONTROL_PLANE_ACCOUNT)
        .unwrap_or_else(|_| unreachable!("both constants are DNS labels"))
}

/// Connects once. The channel does not reconnect with another certificate: for that, connect anew.
pub async fn connect(address: &str, trusting: &Trusting) -> Result<Channel, ConnectError> {
    let bad_address = || ConnectError::Address {
        address: address.to_owned(),
    };
    let tls = TlsConnector::from(Arc::new(client_config(trusting)?));
    let uri: Uri = format!("http://{address}")
        .parse()
        .map_err(|_| bad_address())?;
    if uri.port().is_none() {
        return Err(bad_address());
    }
    let dialled: Arc<str> = address.into();
    let connector = tower::service_fn(move |_uri: Uri| {
        let (tls, address) = (tls.clone(), Arc::clone(&dialled));
        async move {
            let tcp = TcpStream::connect(&*address).await?;
            tcp.set_nodelay(true)?;
            // The name only has to be one: the certificate is checked for the SPIFFE ID.
            let name = ServerName::try_from("control-plane.weft").map_err(io::Error::other)?;
            tls.connect(name, tcp).await.map(TokioIo::new)
        }
    });
    let endpoint = Endpoint::from(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let connecting = endpoint.connect_with_connector(connector);
    connecting.await.map_err(|source| ConnectError::Transport {
        address: address.to_owned(),
        source,
    })
}

fn client_config(trusting: &Trusting) -> Result<ClientConfig, ConnectError> {
    let verifier = verify::ControlPlaneVerifier::new(trusting.clone());
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(ConnectError::Own)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match trusting {
        Trusting::RootDigest(_) | Trusting::Bundle(..) => builder.with_no_client_auth(),
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
