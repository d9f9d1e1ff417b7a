//! Who may be the control plane.

use std::sync::Arc;

use rustls::CertificateError;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::KeyUsage;
use weft_core::model::TrustBundle;
use weft_core::name::TrustDomain;

use super::{Trusting, control_plane_identity};
use crate::tls::{Judge, PeerError, Trust, sha256_hex};

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

/// Believes a control plane of the mesh, as far as is known which that is.
#[derive(Debug)]
pub(super) struct ControlPlaneJudge(pub(super) Trusting);

impl ControlPlaneJudge {
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
        match &self.0 {
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

impl Judge for ControlPlaneJudge {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _what_the_authority_gives_to_no_workload_is_looked_at: KeyUsage,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        self.check(leaf, intermediates, now).map_err(|error| {
            rustls::Error::InvalidCertificate(CertificateError::Other(rustls::OtherError(
                Arc::new(error),
            )))
        })
    }
}
