//! Who may be the control plane.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use weft_core::model::TrustBundle;
use weft_core::name::TrustDomain;

use super::{Trusting, control_plane_identity};
use crate::tls::{PeerError, Trust, provider, sha256_hex};

/// Why a control plane is not believed on first contact.
#[derive(Debug, thiserror::Error)]
pub enum FirstContactError {
    /// None of the certificates is the root that the token names.
    #[error(
        "none of the {shown} certificates shown is the root {expected} that the join token names: this is another control plane, or its root was replaced since the token was made"
    )]
    Root {
        /// How many certificates were shown.
        shown: usize,
        /// The digest in the token.
        expected: Arc<str>,
    },
    /// Its certificate does not say that it is a control plane.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The root in it cannot be read.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    /// Its certificate names no trust domain.
    #[error("the certificate shown names no SPIFFE ID")]
    NoIdentity,
}

#[derive(Debug)]
pub(super) struct ControlPlaneVerifier {
    trusting: Trusting,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ControlPlaneVerifier {
    pub(super) fn new(trusting: Trusting) -> Self {
        Self {
            trusting,
            algorithms: provider().signature_verification_algorithms,
        }
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), FirstContactError> {
        let mut chain = vec![leaf.clone()];
        chain.extend(others.iter().cloned());
        let check = |trust: &Trust, trust_domain: &TrustDomain| {
            let peer = trust.check_control_plane(&chain, now)?;
            let expected = peer.expect(&control_plane_identity(trust_domain));
            expected.map(drop).map_err(PeerError::from)
        };
        match &self.trusting {
            Trusting::RootDigest(digest) => {
                let root = others.iter().find(|der| sha256_hex(der) == **digest);
                let root = root.ok_or_else(|| FirstContactError::Root {
                    shown: chain.len(),
                    expected: Arc::clone(digest),
                })?;
                check_first(leaf, vec![root.to_vec()], check)?;
            }
            Trusting::Roots(roots) => check_first(leaf, roots.to_vec(), check)?,
            Trusting::Bundle(trust, trust_domain) => {
                check(trust, trust_domain)?;
            }
            Trusting::Mutual(trust, _) => {
                check(trust, trust.trust_domain())?;
            }
        }
        Ok(())
    }
}

/// Checks a control plane of which nothing is known but the roots that it may lead to: it says itself
/// which trust domain it is of.
fn check_first(
    leaf: &CertificateDer<'_>,
    roots: Vec<Vec<u8>>,
    check: impl Fn(&Trust, &TrustDomain) -> Result<(), PeerError>,
) -> Result<(), FirstContactError> {
    let trust_domain = trust_domain_of(leaf).ok_or(FirstContactError::NoIdentity)?;
    let trust = Trust::new(&TrustBundle {
        trust_domain: trust_domain.clone(),
        roots,
        revoked_instances: std::collections::BTreeSet::new(),
    })?;
    Ok(check(&trust, &trust_domain)?)
}

/// The trust domain that an unverified certificate claims; only to build the expectation that it
/// is then verified against.
fn trust_domain_of(leaf: &CertificateDer<'_>) -> Option<TrustDomain> {
    let end_entity = webpki::EndEntityCert::try_from(leaf).ok()?;
    let uri = end_entity.valid_uri_names().next()?;
    let identity: weft_core::name::SpiffeId = uri.parse().ok()?;
    identity.trust_domain().parse().ok()
}

impl ServerCertVerifier for ControlPlaneVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.check(leaf, intermediates, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(error) => Err(rustls::Error::InvalidCertificate(CertificateError::Other(
                rustls::OtherError(Arc::new(error)),
            ))),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(
            rustls::PeerIncompatible::Tls12NotOffered,
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
