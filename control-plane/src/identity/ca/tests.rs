//! The authority in directories of its own.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;

use rcgen::SanType;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::contents::DAY;
use super::*;

fn open(dir: &Path) -> Authority {
    authority(dir)
}

fn authority(dir: &Path) -> Authority {
    Authority::open(dir, "weft.local".parse().unwrap()).unwrap()
}

fn identity() -> SpiffeId {
    "spiffe://weft.local/ns/shop/sa/web".parse().unwrap()
}

#[test]
fn a_leaf_leads_to_the_root_and_says_only_what_we_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let key = KeyPair::generate().unwrap();
    let mut wishes = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    let other = "spiffe://weft.local/ns/weft-system/sa/control-plane";
    wishes
        .subject_alt_names
        .push(SanType::URI(other.try_into().unwrap()));
    let csr = wishes.serialize_request(&key).unwrap();
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let leaf = authority
        .sign(csr.der(), &identity(), "i-1", hour, now)
        .unwrap();
    assert_eq!(leaf.not_after - leaf.issued, 3600);
    let der = CertificateDer::from(leaf.chain[0].as_slice());
    let between = CertificateDer::from(leaf.chain[1].as_slice());
    let end = EndEntityCert::try_from(&der).unwrap();
    let anchors = [anchor_from_trusted_cert(authority.root()).unwrap()];
    let algorithms =
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
    end.verify_for_usage(
        algorithms.all,
        &anchors,
        &[between],
        rustls_pki_types::UnixTime::now(),
        KeyUsage::client_auth(),
        None,
        None,
    )
    .unwrap();
    let names: Vec<_> = end.valid_uri_names().collect();
    assert_eq!(names, [identity().as_str()]);
    assert_eq!(end.valid_dns_names().count(), 0);
}

#[test]
fn what_is_not_a_request_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    let mut forged = csr.der().to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    for bad in [vec![], vec![1; 50], vec![0; 9000], forged] {
        let minute = Duration::from_secs(60);
        let error = authority
            .sign(&bad, &identity(), "i", minute, SystemTime::now())
            .unwrap_err();
        assert!(matches!(error, CaError::Request(_)), "{error}");
    }
}

#[test]
fn keys_that_are_signed() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let sign = |algorithm| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let csr = CertificateParams::default().serialize_request(&key);
        let minute = Duration::from_secs(60);
        let now = SystemTime::now();
        authority.sign(csr.unwrap().der(), &identity(), "i", minute, now)
    };
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
    ] {
        sign(algorithm).unwrap();
    }
    let rsa = sign(&rcgen::PKCS_RSA_SHA256).unwrap_err();
    assert!(rsa.to_string().contains("neither ECDSA P-256"), "{rsa}");
}

#[test]
fn the_root_of_another_mesh() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path());
    let other = Authority::open(dir.path(), "other.example".parse().unwrap());
    let error = other.unwrap_err().to_string();
    assert!(error.contains("\"weft.local root\""), "{error}");
}

#[test]
fn the_intermediate_is_replaced_by_what_it_says_itself() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let now = SystemTime::now();
    let before = authority.intermediate.load().der.clone();
    // A copied directory has files of today, a restored one files of long ago.
    let path = dir.path().join("intermediate.pem");
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(now - INTERMEDIATE_LIFE).unwrap();
    authority.renew(now).unwrap();
    assert_eq!(before, authority.intermediate.load().der, "not due");
    let reopened = open(dir.path());
    assert_eq!(before, reopened.intermediate.load().der, "not due");
    file.set_modified(now + INTERMEDIATE_LIFE).unwrap();
    let later = now + INTERMEDIATE_LIFE / 2 + DAY;
    authority.renew(later).unwrap();
    assert_ne!(before, authority.intermediate.load().der);
    let leaf = sign(&authority, &identity(), later);
    assert_chain(&authority, &leaf, later);
}

#[test]
fn no_leaf_outlives_its_issuer() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let ends = authority.intermediate.load().not_after;
    // Nobody has renewed it.
    let late = ends - Duration::from_secs(60);
    let leaf = sign(&authority, &identity(), late);
    assert_eq!(leaf.not_after, seconds(ends));
    let der = CertificateDer::from(leaf.chain[0].as_slice());
    assert_eq!(end_of(Path::new("leaf"), &der).unwrap(), ends);
    let (own, _) = authority.own(DAY, late).unwrap();
    assert_eq!(end_of(Path::new("own"), &own[0]).unwrap(), ends);
    // Nor does the intermediate the root.
    let last = authority.root_ends - DAY;
    authority.renew(last).unwrap();
    assert_eq!(authority.intermediate.load().not_after, authority.root_ends);
    authority.renew(last).unwrap();
}

#[test]
fn a_workload_is_no_control_plane() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let now = SystemTime::now();
    let ours = "spiffe://weft.local/ns/weft-system/sa/control-plane";
    let ours: SpiffeId = ours.parse().unwrap();
    let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap());
    let error = authority
        .sign(csr.unwrap().der(), &ours, "i-1", DAY, now)
        .unwrap_err();
    assert!(error.to_string().contains("weft-system"), "{error}");

    let is_control_plane = |chain: &[CertificateDer<'_>]| {
        let (_rest, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        let usages = leaf.extended_key_usage().unwrap().unwrap();
        let mut others = usages.value.other.iter();
        others.any(|usage| usage.as_bytes() == weft_core::name::CONTROL_PLANE_USAGE_DER)
    };
    let (own, _) = authority.own(DAY, now).unwrap();
    assert!(is_control_plane(&own));
    verify(&authority, &own, KeyUsage::server_auth(), now).unwrap();
    verify(&authority, &own, KeyUsage::client_auth(), now).unwrap_err();
    let leaf = sign(&authority, &identity(), now);
    let chain: Vec<CertificateDer<'_>> =
        leaf.chain.iter().map(|der| der.as_slice().into()).collect();
    assert!(!is_control_plane(&chain));
}

fn sign(authority: &Authority, identity: &SpiffeId, now: SystemTime) -> SignedLeaf {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key);
    let hour = Duration::from_secs(3600);
    authority
        .sign(csr.unwrap().der(), identity, "i-1", hour, now)
        .unwrap()
}

fn assert_chain(authority: &Authority, leaf: &SignedLeaf, now: SystemTime) {
    let chain: Vec<CertificateDer<'_>> =
        leaf.chain.iter().map(|der| der.as_slice().into()).collect();
    verify(authority, &chain, KeyUsage::client_auth(), now).unwrap();
}

fn verify(
    authority: &Authority,
    chain: &[CertificateDer<'_>],
    usage: KeyUsage,
    now: SystemTime,
) -> Result<(), webpki::Error> {
    let anchors = [anchor_from_trusted_cert(authority.root()).unwrap()];
    let algorithms =
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
    let now = now.duration_since(UNIX_EPOCH).unwrap();
    let now = rustls_pki_types::UnixTime::since_unix_epoch(now);
    let end = EndEntityCert::try_from(&chain[0]).unwrap();
    let between = &chain[1..2];
    end.verify_for_usage(algorithms.all, &anchors, between, now, usage, None, None)
        .map(drop)
}

#[test]
fn the_root_stays_and_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let first = authority(dir.path()).root_digest();
    assert_eq!(authority(dir.path()).root_digest(), first);
    let mode = fs::metadata(dir.path().join("root.key"))
        .unwrap()
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
}
