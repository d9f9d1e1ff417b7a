//! Chains made on the spot, checked as a finished handshake would.

use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};
use weft_core::name::CONTROL_PLANE_USAGE;

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        Self::with(KeyPair::generate().unwrap())
    }

    /// A root for a key.
    fn with(key: KeyPair) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.serial_number = Some(fastrand::u64(1..).into());
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    fn trust(&self, revoked: &[&str]) -> Trust {
        Trust::new(&TrustBundle {
            trust_domain: "weft.local".parse().unwrap(),
            roots: vec![self.issuer.der().to_vec()],
            revoked_instances: revoked.iter().map(|s| (*s).to_owned()).collect(),
        })
        .unwrap()
    }

    fn leaf(&self, uris: &[&str], instance: &str) -> CertificateDer<'static> {
        self.leaf_for(uris, instance, None)
    }

    /// A leaf with one more usage.
    fn leaf_for(
        &self,
        uris: &[&str],
        instance: &str,
        usage: Option<&[u64]>,
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, instance);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let more = usage.map(|usage| ExtendedKeyUsagePurpose::Other(usage.to_vec()));
        params.extended_key_usages.extend(more);
        params.subject_alt_names = uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().unwrap()))
            .collect();
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, &self.issuer).unwrap().der().clone()
    }
}

const WEB: &str = "spiffe://weft.local/ns/shop/sa/web";

fn check(chain: &[CertificateDer<'_>], trust: &Trust) -> Result<VerifiedPeer, PeerError> {
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
    verify_peer(Some(chain), KeyUsage::client_auth(), trust, now)
}

#[test]
fn the_right_one_is_believed() {
    let authority = Authority::new();
    let leaf = authority.leaf(&[WEB], "i-1");
    let peer = check(&[leaf], &authority.trust(&[])).unwrap();
    assert_eq!(peer.identity().as_str(), WEB);
    assert_eq!(&**peer.instance(), "i-1");
    assert_eq!(peer.certificate_hash().len(), 64);
    let other: SpiffeId = "spiffe://weft.local/ns/shop/sa/orders".parse().unwrap();
    assert!(matches!(peer.expect(&other), Err(OtherPeer { .. })));
}

#[test]
fn everyone_else_is_not() {
    let authority = Authority::new();
    let trust = authority.trust(&["i-revoked"]);
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
    assert_eq!(
        verify_peer(None, KeyUsage::client_auth(), &trust, now).unwrap_err(),
        PeerError::NoCertificate
    );
    let foreign_root = Authority::new().leaf(&[WEB], "i-1");
    assert!(matches!(
        check(&[foreign_root], &trust),
        Err(PeerError::Chain(_))
    ));
    for uris in [
        &[][..],
        &[WEB, WEB],
        &["spiffe://weft.local/x"],
        &["https://weft.local/"],
    ] {
        let leaf = authority.leaf(uris, "i-1");
        assert!(
            matches!(check(&[leaf], &trust), Err(PeerError::NoIdentity { .. })),
            "{uris:?}"
        );
    }
    let elsewhere = authority.leaf(&["spiffe://other/ns/shop/sa/web"], "i-1");
    assert!(matches!(
        check(&[elsewhere], &trust),
        Err(PeerError::TrustDomain { .. })
    ));
    let revoked = authority.leaf(&[WEB], "i-revoked");
    assert!(matches!(
        check(&[revoked], &trust),
        Err(PeerError::Revoked { .. })
    ));
    let garbage = CertificateDer::from(vec![1, 2, 3]);
    assert!(matches!(
        check(&[garbage], &trust),
        Err(PeerError::Chain(_))
    ));
}

/// A workload's leaf may have the control plane's name, if the authority was made to sign it: it has
/// not the usage.
#[test]
fn a_workload_with_the_name_is_no_control_plane() {
    let authority = Authority::new();
    let ours = "spiffe://weft.local/ns/weft-system/sa/control-plane";
    let trust = authority.trust(&[]);
    let check = |leaf| trust.check_control_plane(&[leaf], UnixTime::now());
    let refused = check(authority.leaf(&[ours], "i-1")).unwrap_err();
    assert!(
        matches!(refused, PeerError::NotControlPlane { .. }),
        "{refused}"
    );
    let real = check(authority.leaf_for(&[ours], "control-plane", Some(CONTROL_PLANE_USAGE)));
    assert_eq!(real.unwrap().identity().as_str(), ours);
}

#[test]
fn a_root_is_known_by_its_name_and_key() {
    let key = KeyPair::generate().unwrap();
    let again = KeyPair::from_pem(&key.serialize_pem()).unwrap();
    let (first, again) = (Authority::with(key), Authority::with(again));
    assert_ne!(first.issuer.der(), again.issuer.der());
    let other = Authority::new();
    let peer = check(&[first.leaf(&[WEB], "i-1")], &first.trust(&[])).unwrap();
    assert!(first.trust(&[]).has(peer.anchor()));
    assert!(again.trust(&[]).has(peer.anchor()), "issued again");
    assert!(!other.trust(&[]).has(peer.anchor()), "of the same name");

    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
    let anchor = |chain: &[CertificateDer<'_>], trust: &Trust| trust.anchor_of(chain, at);
    let chain = [first.leaf(&[WEB], "i-1")];
    assert_eq!(anchor(&chain, &again.trust(&[])), Some(peer.anchor()));
    assert_eq!(anchor(&chain, &other.trust(&[])), None);
    assert_eq!(anchor(&[], &other.trust(&[])), None);
}

/// rustls hands the verifier's error out as one of the connection: it stays what it is.
#[test]
fn what_the_verifier_finds_is_about_the_peer() {
    let authority = Authority::new();
    let leaf = authority.leaf(&[WEB], "web-1");
    let refused = |trust: Trust| {
        let judge = MeshJudge(Arc::new(trust));
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
        let error = judge.judge(&leaf, &[], KeyUsage::client_auth(), now);
        // As tokio-rustls does.
        let error = io::Error::new(io::ErrorKind::InvalidData, error.unwrap_err());
        crate::tls::OpenError::from(error)
    };
    let revoked = refused(authority.trust(&["web-1"]));
    let expected = format!("the peer {WEB} is the revoked instance web-1");
    assert_eq!(revoked.to_string(), expected);
    let untrusted = refused(Authority::new().trust(&[]));
    for error in [revoked, untrusted] {
        assert!(matches!(error, crate::tls::OpenError::Peer(_)), "{error:?}");
    }
}
