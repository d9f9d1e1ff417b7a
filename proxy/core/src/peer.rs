//! Proof of who is at the other end of a connection.

use std::sync::Arc;

use crate::name::SpiffeId;

/// Names a root that a trust bundle may have, by its subject and its public key: a root that was
/// issued again for the same key is the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AnchorId([u8; 32]);

impl AnchorId {
    /// The root whose subject and public key have this SHA-256.
    pub const fn new(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

/// The workload at the other end of a mutual TLS connection.
///
/// A value exists only after a handshake whose certificates were checked with the bundle and the
/// time of then: [`VerifiedPeer::assertion`] is called by the TLS module alone, and a lint
/// (`disallowed-methods`) refuses every other call. What decides by identity takes this type and
/// not a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPeer {
    identity: SpiffeId,
    instance: Arc<str>,
    certificate_hash: Arc<str>,
    not_after: i64,
    /// On the heap: many futures hold the peer.
    anchor: Arc<AnchorId>,
}

/// The peer is not the one that was meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the peer is {found}, expected {expected}")]
pub struct OtherPeer {
    /// Who it is.
    pub found: SpiffeId,
    /// Who was meant.
    pub expected: SpiffeId,
}

impl VerifiedPeer {
    /// Asserts that the certificates of a finished handshake were verified and name this workload.
    /// `instance` is the subject's common name, `certificate_hash` the leaf's SHA-256 in
    /// hexadecimal digits, `not_after` the end of its validity in seconds since the Unix epoch,
    /// `anchor` the root that the chain leads to.
    pub fn assertion(
        identity: SpiffeId,
        instance: &str,
        certificate_hash: &str,
        not_after: i64,
        anchor: AnchorId,
    ) -> Self {
        Self {
            identity,
            instance: instance.into(),
            certificate_hash: certificate_hash.into(),
            not_after,
            anchor: Arc::new(anchor),
        }
    }

    /// Its SPIFFE ID.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// Its instance.
    pub fn instance(&self) -> &Arc<str> {
        &self.instance
    }

    /// SHA-256 of its certificate, hexadecimal.
    pub fn certificate_hash(&self) -> &str {
        &self.certificate_hash
    }

    /// The end of its certificate, seconds since the Unix epoch.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// The root that its certificates lead to.
    pub fn anchor(&self) -> AnchorId {
        *self.anchor
    }

    /// Refuses everyone but `expected`.
    ///
    /// # Errors
    ///
    /// When the peer is somebody else.
    pub fn expect(self, expected: &SpiffeId) -> Result<Self, OtherPeer> {
        if self.identity == *expected {
            Ok(self)
        } else {
            Err(OtherPeer {
                found: self.identity,
                expected: expected.clone(),
            })
        }
    }
}
