//! Who a peer is. The only place that vouches for anyone.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use rustls::CertificateError;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use weft_core::model::TrustBundle;
use weft_core::name::{CONTROL_PLANE_USAGE_DER, SpiffeId, TrustDomain};
use weft_core::peer::{AnchorId, OtherPeer, VerifiedPeer};

use super::judge::{Judge, JudgesClients};
use super::words::{chain, of_peer};
use super::{TlsError, provider};

/// Whom we believe, ready for verification.
#[derive(Debug)]
pub struct Trust {
    trust_domain: TrustDomain,
    anchors: Vec<TrustAnchor<'static>>,
    ids: BTreeSet<AnchorId>,
    revoked_instances: BTreeSet<String>,
}

impl Trust {
    /// Reads the roots of a bundle; one that is not a certificate rejects the whole bundle.
    pub fn new(bundle: &TrustBundle) -> Result<Self, TlsError> {
        let anchors = bundle.roots.iter().enumerate().map(|(index, der)| {
            let der = CertificateDer::from(der.as_slice());
            let anchor = anchor_from_trusted_cert(&der).map_err(|source| TlsError::Root {
                trust_domain: bundle.trust_domain.to_string(),
                index,
                source,
            })?;
            Ok(anchor.to_owned())
        });
        let anchors: Vec<TrustAnchor<'_>> = anchors.collect::<Result<_, _>>()?;
        Ok(Self {
            trust_domain: bundle.trust_domain.clone(),
            ids: anchors.iter().map(id_of).collect(),
            anchors,
            revoked_instances: bundle.revoked_instances.clone(),
        })
    }

    /// The trust domain whose members are believed.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Checks the certificates of somebody who claims to be the control plane: beside the name, by
    /// the usage that the authority gives to no workload.
    pub(crate) fn check_control_plane(
        &self,
        certificates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<VerifiedPeer, PeerError> {
        let peer = verify_peer(Some(certificates), KeyUsage::server_auth(), self, now)?;
        match certificates.first().is_some_and(says_control_plane) {
            true => Ok(peer),
            false => Err(PeerError::NotControlPlane {
                found: peer.identity().clone(),
            }),
        }
    }

    /// Whether a root is in the bundle.
    pub fn has(&self, anchor: AnchorId) -> bool {
        self.ids.contains(&anchor)
    }

    /// The root that a chain (the leaf first) leads to at a time; `None` where it leads to none.
    pub(super) fn anchor_of(&self, chain: &[CertificateDer<'_>], at: UnixTime) -> Option<AnchorId> {
        let (leaf, intermediates) = chain.split_first()?;
        let end_entity = EndEntityCert::try_from(leaf).ok()?;
        let usage = KeyUsage::client_auth();
        self.verify_chain(&end_entity, intermediates, at, usage)
            .ok()
    }

    fn verify_chain(
        &self,
        end_entity: &EndEntityCert<'_>,
        intermediates: &[CertificateDer<'_>],
        at: UnixTime,
        usage: KeyUsage,
    ) -> Result<AnchorId, webpki::Error> {
        let algorithms = provider().signature_verification_algorithms.all;
        let anchors = &self.anchors;
        let path = end_entity.verify_for_usage(
            algorithms,
            anchors,
            intermediates,
            at,
            usage,
            None,
            None,
        )?;
        Ok(id_of(path.anchor()))
    }

    /// Whether the certificates of `instance` are refused.
    pub fn is_revoked(&self, instance: &str) -> bool {
        self.revoked_instances.contains(instance)
    }
}

/// Why a peer is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It showed no certificate.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// Its certificate does not lead to a root that we trust, or is not valid now.
    #[error("the peer's certificate is not valid: {}", chain(.0))]
    Chain(webpki::Error),
    /// Its certificate does not name exactly one workload.
    #[error("the peer's certificate has to name exactly one SPIFFE ID, found {found:?}")]
    NoIdentity {
        /// The URI names in it.
        found: Vec<String>,
    },
    /// It belongs to somebody else's mesh.
    #[error("the peer {found} is not of the trust domain {expected}")]
    TrustDomain {
        /// Who it is.
        found: SpiffeId,
        /// Where it would have to be from.
        expected: TrustDomain,
    },
    /// Its instance was revoked.
    #[error("the peer {identity} is the revoked instance {instance}")]
    Revoked {
        /// Who it is.
        identity: SpiffeId,
        /// Its instance.
        instance: String,
    },
    /// Its certificate is not one that the authority makes for control planes.
    #[error(
        "the certificate of {found} is no control plane's: it lacks the extended key usage that the authority gives to no workload"
    )]
    NotControlPlane {
        /// Who it is.
        found: SpiffeId,
    },
    /// It is not the one that was meant.
    #[error(transparent)]
    Mismatch(#[from] OtherPeer),
}

impl PeerError {
    /// Why a handshake failed, where that is what our own verifier found.
    pub(crate) fn of_handshake(error: &io::Error) -> Option<Self> {
        of_peer(error).cloned()
    }
}

/// Checks the certificates that a finished handshake left. Also to be called after a resumed
/// one, where rustls ran no verifier and hands out the certificates of the ticket.
pub(super) fn verify_peer(
    certificates: Option<&[CertificateDer<'_>]>,
    usage: KeyUsage,
    trust: &Trust,
    now: UnixTime,
) -> Result<VerifiedPeer, PeerError> {
    let Some((leaf, intermediates)) = certificates.and_then(<[_]>::split_first) else {
        return Err(PeerError::NoCertificate);
    };
    let end_entity = EndEntityCert::try_from(leaf).map_err(PeerError::Chain)?;
    let anchor = trust
        .verify_chain(&end_entity, intermediates, now, usage)
        .map_err(PeerError::Chain)?;
    let names: Vec<&str> = end_entity.valid_uri_names().collect();
    let [name] = names.as_slice() else {
        return Err(no_identity(&names));
    };
    let identity: SpiffeId = name.parse().map_err(|_ignored| no_identity(&names))?;
    if identity.trust_domain() != trust.trust_domain.as_str() {
        return Err(PeerError::TrustDomain {
            found: identity,
            expected: trust.trust_domain.clone(),
        });
    }
    let (instance, not_after) = instance_of(leaf).ok_or_else(|| no_identity(&names))?;
    if trust.is_revoked(&instance) {
        return Err(PeerError::Revoked { identity, instance });
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that vouches: the chain, its time, its name and its instance are checked above"
    )]
    let peer = VerifiedPeer::assertion(identity, &instance, &sha256_hex(leaf), not_after, anchor);
    Ok(peer)
}

fn no_identity(names: &[&str]) -> PeerError {
    PeerError::NoIdentity {
        found: names.iter().map(|name| (*name).to_owned()).collect(),
    }
}

/// The subject's common name, where the authority writes the instance, and the end of validity.
fn instance_of(leaf: &CertificateDer<'_>) -> Option<(String, i64)> {
    let (_rest, parsed) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let name = parsed.subject().iter_common_name().next()?;
    let not_after = parsed.validity().not_after.timestamp();
    Some((name.as_str().ok()?.to_owned(), not_after))
}

/// Whether a certificate has [`CONTROL_PLANE_USAGE_DER`] among its extended key usages. Asked of the
/// leaf alone: its issuer is the authority's own, and has none.
fn says_control_plane(leaf: &CertificateDer<'_>) -> bool {
    let Ok((_rest, parsed)) = x509_parser::parse_x509_certificate(leaf) else {
        return false;
    };
    let usages = parsed.extended_key_usage().ok().flatten();
    usages.is_some_and(|usages| {
        let mut others = usages.value.other.iter();
        others.any(|usage| usage.as_bytes() == CONTROL_PLANE_USAGE_DER)
    })
}

/// Names a root by its subject, with the length before it, and its public key.
fn id_of(anchor: &TrustAnchor<'_>) -> AnchorId {
    let mut bytes =
        Vec::with_capacity(anchor.subject.len() + anchor.subject_public_key_info.len() + 8);
    bytes.extend((anchor.subject.len() as u64).to_be_bytes());
    bytes.extend_from_slice(&anchor.subject);
    bytes.extend_from_slice(&anchor.subject_public_key_info);
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
    let mut id = [0; 32];
    id.copy_from_slice(digest.as_ref());
    AnchorId::new(id)
}

/// SHA-256, hexadecimal.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut text = String::with_capacity(64);
    for byte in digest.as_ref() {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

/// rustls' side of verification, for both ends: chain, time, trust domain and revocation. Whether
/// the peer is the one that was meant is decided after the handshake, through [`VerifiedPeer`].
#[derive(Debug)]
pub(super) struct MeshJudge(pub(super) Arc<Trust>);

impl Judge for MeshJudge {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: KeyUsage,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let mut chain = vec![leaf.clone()];
        chain.extend(intermediates.iter().cloned());
        match verify_peer(Some(&chain), usage, &self.0, now) {
            Ok(_verified_again_after_the_handshake) => Ok(()),
            Err(error) => Err(rustls::Error::InvalidCertificate(CertificateError::Other(
                rustls::OtherError(Arc::new(error)),
            ))),
        }
    }
}

impl JudgesClients for MeshJudge {}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
