//! The server's side on 15010: TLS 1.3, client certificates where there are some, and who shows
//! them.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;

use crate::identity::ca::{Authority, CaError};
use crate::peer::PeerIdentity;

/// Our own certificate, exchanged while connections run.
pub type ServerTls = Arc<ArcSwap<ServerConfig>>;

/// Whom a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Sidecars: gRPC, and a certificate where they have one already.
    Sidecars,
    /// Operators: HTTP/1.1, and never without a certificate.
    Operators,
}

/// A configuration with a fresh certificate of our own.
pub fn server_config(
    authority: &Authority,
    purpose: Purpose,
    ttl: Duration,
) -> Result<ServerConfig, CaError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let bad = |error: &dyn std::fmt::Display| CaError::Request(error.to_string());
    let (chain, key) = authority.own(ttl, std::time::SystemTime::now())?;
    let mut roots = RootCertStore::empty();
    let added = roots.add(authority.root().clone());
    added.map_err(|error| bad(&error))?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let (verifier, protocol) = match purpose {
        Purpose::Sidecars => (verifier.allow_unauthenticated(), b"h2".to_vec()),
        Purpose::Operators => (verifier, b"http/1.1".to_vec()),
    };
    let verifier = verifier.build().map_err(|error| bad(&error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| bad(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| bad(&error))?;
    config.alpn_protocols = vec![protocol];
    // No resumption: on a resumed handshake no verifier runs.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}

/// A configuration for the API server, which calls the webhook at one of these DNS names and shows no
/// certificate.
pub fn webhook_config(
    authority: &Authority,
    names: &[&str],
    ttl: Duration,
) -> Result<ServerConfig, CaError> {
    let bad = |error: rustls::Error| CaError::Request(error.to_string());
    let (chain, key) = authority.own_webhook(names, ttl, std::time::SystemTime::now())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(bad)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(bad)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Read from a certificate that rustls has verified in the handshake of the connection that it is
/// asked about.
pub(crate) fn peer_of(leaf: &CertificateDer<'_>) -> Option<PeerIdentity> {
    let end_entity = webpki::EndEntityCert::try_from(leaf).ok()?;
    let identity = end_entity.valid_uri_names().next()?.parse().ok()?;
    let (_rest, parsed) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let name = parsed.subject().iter_common_name().next()?;
    let instance = name.as_str().ok()?.into();
    Some(PeerIdentity {
        identity,
        instance,
        not_after: parsed.validity().not_after.timestamp(),
    })
}
