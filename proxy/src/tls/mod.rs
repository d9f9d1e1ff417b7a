//! Mutual TLS 1.3 between sidecars: who we are, whom we believe, and the proof of who a peer is.
//!
//! Certificates and bundles are exchanged while connections run: a new [`Material`] replaces the
//! old one whole, connections made before keep theirs.

mod accept;
mod judge;
mod standing;
mod verify;
mod words;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use weft_core::name::SpiffeId;
use weft_core::peer::{AnchorId, VerifiedPeer};
use weft_core::standing::Leaf;

pub use accept::{OpenError, Opened, Replayed, ServerName, open, peer_of_client, read_server_name};
pub(crate) use judge::{Judge, Verifier};
pub use standing::{Dialled, Signal, StandingPeer, StandingPeers};
use verify::MeshJudge;
pub(crate) use verify::sha256_hex;
pub use verify::{PeerError, Trust};
pub(crate) use words::in_words;

/// Requests of HTTP/1.x, HTTP/2 and gRPC as streams on shared connections.
pub const ALPN_H2: &[u8] = b"weft-h2";
/// One HTTP/1.1 exchange that turns into a byte stream of its own: upgrades and CONNECT.
pub const ALPN_H1: &[u8] = b"weft-h1";
/// Opaque bytes, one connection each.
pub const ALPN_TCP: &[u8] = b"weft-tcp";

/// What the sidecars' ALPN names begin with: a ClientHello that offers one is mesh traffic.
const ALPN_PREFIX: &[u8] = b"weft-";

/// How long a connection outlives the newest certificate of its peer, unless configured.
pub const EXPIRED_GRACE: Duration = Duration::from_secs(300);

/// TLS sessions kept per endpoint to resume; enough for a burst of new connections.
const SESSIONS_PER_ENDPOINT: usize = 8;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Our own certificate or key is not usable.
    #[error("own certificate: {0}")]
    Own(rustls::Error),
    /// A root certificate of the trust bundle is not one.
    #[error("trust bundle of {trust_domain}: root {index}: {source}")]
    Root {
        /// The trust domain.
        trust_domain: String,
        /// Its place in the bundle.
        index: usize,
        /// What is wrong with it.
        source: webpki::Error,
    },
}

/// Our own certificate with its key.
#[derive(Debug)]
pub struct Credentials {
    /// DER; the leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
    /// What the leaf names.
    pub identity: SpiffeId,
    /// The instance that it was issued to.
    pub instance: Arc<str>,
    /// End of validity, seconds since the Unix epoch.
    pub not_after: i64,
}

/// Everything a handshake needs, consistent in itself.
#[derive(Debug)]
pub struct Material {
    /// Grows with every exchange: connections remember under which one they were made.
    pub generation: u64,
    /// Whom we believe.
    pub trust: Arc<Trust>,
    /// Who we are.
    pub identity: SpiffeId,
    /// For inbound handshakes.
    pub server: Arc<ServerConfig>,
    client: ClientConfig,
    /// End of our certificate, seconds since the Unix epoch.
    not_after: i64,
    /// The root of the bundle that our certificate leads to; `None` where it leads to none.
    anchor: Option<AnchorId>,
    /// Connections that were made under this material and any other one of this process.
    standing: Arc<StandingPeers>,
}

impl Material {
    /// Builds both sides' configurations from our credentials and the bundle.
    pub fn new(
        generation: u64,
        credentials: &Credentials,
        trust: Arc<Trust>,
    ) -> Result<Self, TlsError> {
        let provider = provider();
        let versions = &[&rustls::version::TLS13];
        let verifier = Verifier::tls13(MeshJudge(Arc::clone(&trust)));
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(TlsError::Own)?
            .with_client_cert_verifier(Arc::clone(&verifier) as _)
            .with_single_cert(credentials.chain.clone(), credentials.key.clone_key())
            .map_err(TlsError::Own)?;
        server.alpn_protocols = [ALPN_H2, ALPN_H1, ALPN_TCP].map(<[u8]>::to_vec).into();
        // One ticket is enough for the connections we make; each costs a write.
        server.send_tls13_tickets = 1;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(TlsError::Own)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(credentials.chain.clone(), credentials.key.clone_key())
            .map_err(TlsError::Own)?;
        // While it is valid: whether it has ended is another question.
        let valid = u64::try_from(credentials.not_after.saturating_sub(1)).unwrap_or_default();
        let valid = UnixTime::since_unix_epoch(Duration::from_secs(valid));
        let anchor = trust.anchor_of(&credentials.chain, valid);
        Ok(Self {
            generation,
            trust,
            identity: credentials.identity.clone(),
            server: Arc::new(server),
            client,
            not_after: credentials.not_after,
            anchor,
            standing: Arc::new(StandingPeers::new(EXPIRED_GRACE)),
        })
    }

    /// A connection to `peer` stands until what is returned is dropped; `dialled` says where, if we
    /// made it.
    ///
    /// # Errors
    ///
    /// When the peer was revoked, or the root of its certificates left the trust bundle, since its
    /// certificates were checked.
    pub fn join(
        &self,
        peer: &VerifiedPeer,
        dialled: Option<Dialled>,
    ) -> Result<StandingPeer, PeerError> {
        let not_after = self.not_after;
        let own = self.anchor.map(|anchor| Leaf { not_after, anchor });
        self.standing.join(peer, own, dialled)
    }

    /// Whether our certificate leads to a root of the bundle: otherwise nobody who has the same bundle
    /// believes us.
    pub fn is_believed(&self) -> bool {
        self.anchor.is_some()
    }

    /// Whether our certificate has ended, so that nobody would believe it.
    pub fn has_ended(&self) -> bool {
        crate::clock::unix_now() >= self.not_after
    }

    /// A configuration for one endpoint and one ALPN name, with session tickets of its own:
    /// replicas share a name but not their ticket keys.
    pub fn client_for(&self, alpn: &[u8]) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = if alpn == ALPN_TCP {
            Resumption::in_memory_sessions(SESSIONS_PER_ENDPOINT)
        } else {
            Resumption::disabled()
        };
        Arc::new(config)
    }
}

/// The material in force; empty until the first certificate came.
#[derive(Debug)]
pub struct TlsContext {
    current: ArcSwapOption<Material>,
    standing: Arc<StandingPeers>,
}

impl Default for TlsContext {
    fn default() -> Self {
        Self::new(EXPIRED_GRACE)
    }
}

impl TlsContext {
    /// Nothing is in force. Connections end `expired_grace` after the newest certificate that their
    /// peer has proved.
    pub fn new(expired_grace: Duration) -> Self {
        Self {
            current: ArcSwapOption::empty(),
            standing: Arc::new(StandingPeers::new(expired_grace)),
        }
    }

    /// What is in force now.
    pub fn current(&self) -> Option<Arc<Material>> {
        self.current.load_full()
    }

    /// The connections to authenticated peers.
    pub fn standing(&self) -> &Arc<StandingPeers> {
        &self.standing
    }

    /// Puts new material in force. Connections that run keep what they were made with, but for those
    /// to revoked instances, which are cut, and those whose peers' certificates lead to a root that is
    /// in the bundle no more, which end unless their peers prove others.
    pub fn replace(&self, mut material: Material) {
        material.standing = Arc::clone(&self.standing);
        let trust = Arc::clone(&material.trust);
        // In this order: whoever was verified with the new bundle is not held to the old one.
        self.standing.trust(trust);
        self.current.store(Some(Arc::new(material)));
    }
}

/// aws-lc-rs with the hybrid post-quantum key exchange first.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
