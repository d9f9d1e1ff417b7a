//! The certificate authority: a root made on first start, an intermediate, leaves from CSRs.
//!
//! From a request only the public key is taken; every name in a certificate is written here.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use weft_core::name::{SpiffeId, TrustDomain};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::operator;
use crate::sha256_hex;

/// Clocks of workloads may be this far behind.
const BACKDATE: Duration = Duration::from_secs(300);
const DAY: Duration = Duration::from_secs(24 * 3600);
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const INTERMEDIATE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// The intermediate's files are called this.
const INTERMEDIATE: &str = "intermediate";
/// A CSR with a P-256 key has some 300 bytes.
const CSR_MAX_BYTES: usize = 8 * 1024;
/// The DNS name in the control plane's own certificate, whatever it is reached at.
pub const OWN_DNS_NAME: &str = weft_api::SERVER_NAME;
/// Shortest and longest life of a leaf.
pub const LEAF_TTL_MIN: Duration = Duration::from_secs(10);
/// See [`LEAF_TTL_MIN`].
pub const LEAF_TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why nothing is signed.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The authority's files cannot be read or written.
    #[error("certificate authority: {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// A file of the authority is not what it should be.
    #[error("certificate authority: {}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The directory belongs to another mesh, or its root has ended.
    #[error(
        "certificate authority: the root in {} is {found}; expected {expected} (choose another --data-dir, or the --trust-domain that it was made for)",
        path.display()
    )]
    Root {
        /// The file.
        path: PathBuf,
        /// Whose it is, or since when it is over.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// The request is not one that is signed.
    #[error("certificate request: {0}")]
    Request(String),
    /// Signing failed.
    #[error("signing: {0}")]
    Sign(#[from] rcgen::Error),
}

/// Root and intermediate.
pub struct Authority {
    dir: PathBuf,
    trust_domain: TrustDomain,
    root: CertificateDer<'static>,
    root_issuer: Issuer<'static, KeyPair>,
    intermediate: ArcSwap<Intermediate>,
}

/// What leaves are signed with; replaced when half of its life is over.
struct Intermediate {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

/// A signed certificate.
#[derive(Debug)]
pub struct SignedLeaf {
    /// DER: leaf and intermediate.
    pub chain: Vec<Vec<u8>>,
    /// Time of issue, seconds since the Unix epoch.
    pub issued: i64,
    /// End of validity.
    pub not_after: i64,
}

impl Authority {
    /// Opens the authority in a directory; on first start makes its root (0600).
    pub fn open(dir: &Path, trust_domain: TrustDomain) -> Result<Self, CaError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|source| file("creating", dir, source))?;
        let (root_pem, root_key) = pair(dir, "root", || {
            let key = KeyPair::generate()?;
            let params = ca_params(&trust_domain, "root", ROOT_LIFE);
            Ok((params.self_signed(&key)?.pem(), key))
        })?;
        let root_issuer = Issuer::from_ca_cert_pem(&root_pem, root_key)?;
        let root = from_pem(dir, "root", &root_pem)?;
        check_root(dir, &root, &trust_domain)?;
        let intermediate = Intermediate::open(dir, &trust_domain, &root_issuer)?;
        Ok(Self {
            dir: dir.to_owned(),
            trust_domain,
            root,
            root_issuer,
            intermediate: ArcSwap::from_pointee(intermediate),
        })
    }

    /// Replaces the intermediate if half of its life is over.
    pub fn renew(&self) -> Result<(), CaError> {
        if due(&self.dir, INTERMEDIATE) {
            let fresh = Intermediate::open(&self.dir, &self.trust_domain, &self.root_issuer)?;
            self.intermediate.store(Arc::new(fresh));
        }
        Ok(())
    }

    /// Whom it speaks for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root, DER.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// SHA-256 of the root, hexadecimal: what a join token carries.
    pub fn root_digest(&self) -> String {
        sha256_hex(&self.root)
    }

    /// Signs a certificate for the public key of a request (PKCS #10, DER), which says who it is
    /// for. `now` is the time of issue.
    pub fn sign(
        &self,
        csr: &[u8],
        identity: &SpiffeId,
        instance: &str,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<SignedLeaf, CaError> {
        let params = leaf_params(identity.as_str(), instance, ttl, now, &[])?;
        self.sign_with(csr, params, ttl, now)
    }

    /// Signs a certificate for an operator (see [`crate::identity::operator`]): good for calling only.
    pub fn sign_operator(
        &self,
        csr: &[u8],
        name: &str,
        id: &str,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<SignedLeaf, CaError> {
        let identity = operator::identity(&self.trust_domain, name);
        let identity = identity.map_err(|error| CaError::Request(error.to_string()))?;
        let mut params = leaf_params(&identity, id, ttl, now, &[])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign_with(csr, params, ttl, now)
    }

    fn sign_with(
        &self,
        csr: &[u8],
        params: CertificateParams,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<SignedLeaf, CaError> {
        let mut request = read_request(csr)?;
        request.params = params;
        let intermediate = self.intermediate.load();
        let certificate = request.signed_by(&intermediate.issuer)?;
        Ok(SignedLeaf {
            chain: vec![certificate.der().to_vec(), intermediate.der.to_vec()],
            issued: seconds(now),
            not_after: seconds(now + ttl),
        })
    }

    /// The control plane's own certificate: leaf, intermediate and root, so that first contact can
    /// compare the root with its token.
    pub fn own(
        &self,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CaError> {
        let identity = SpiffeId::new(&self.trust_domain, "weft-system", "control-plane");
        let identity = identity.map_err(|error| CaError::Request(error.to_string()))?;
        let key = KeyPair::generate()?;
        let params = leaf_params(
            identity.as_str(),
            "control-plane",
            ttl,
            now,
            &[OWN_DNS_NAME],
        )?;
        let intermediate = self.intermediate.load();
        let leaf = params.signed_by(&key, &intermediate.issuer)?;
        let chain = vec![
            leaf.der().clone(),
            intermediate.der.clone(),
            self.root.clone(),
        ];
        let key = PrivateKeyDer::try_from(key.serialize_der());
        let key = key.map_err(|error| CaError::Request(error.to_owned()))?;
        Ok((chain, key))
    }
}

impl Intermediate {
    fn open(
        dir: &Path,
        trust_domain: &TrustDomain,
        root: &Issuer<'static, KeyPair>,
    ) -> Result<Self, CaError> {
        if due(dir, INTERMEDIATE) {
            let _missing_is_fine = fs::remove_file(dir.join(format!("{INTERMEDIATE}.pem")));
        }
        let (pem, key) = pair(dir, INTERMEDIATE, || {
            let key = KeyPair::generate()?;
            let params = ca_params(trust_domain, INTERMEDIATE, INTERMEDIATE_LIFE);
            Ok((params.signed_by(&key, root)?.pem(), key))
        })?;
        Ok(Self {
            der: from_pem(dir, INTERMEDIATE, &pem)?,
            issuer: Issuer::from_ca_cert_pem(&pem, key)?,
        })
    }
}

fn from_pem(dir: &Path, name: &str, pem: &str) -> Result<CertificateDer<'static>, CaError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| CaError::Content {
        path: dir.join(format!("{name}.pem")),
        reason: error.to_string(),
    })
}

/// A root of another trust domain, or one that has ended, vouches for nobody here.
fn check_root(dir: &Path, root: &CertificateDer<'_>, ours: &TrustDomain) -> Result<(), CaError> {
    let path = dir.join("root.pem");
    let (_rest, parsed) =
        x509_parser::parse_x509_certificate(root).map_err(|error| CaError::Content {
            path: path.clone(),
            reason: error.to_string(),
        })?;
    let name = parsed.subject().iter_common_name().next();
    let found = name.and_then(|name| name.as_str().ok()).unwrap_or_default();
    let expected = format!("{ours} root");
    if found != expected {
        return Err(CaError::Root {
            path,
            found: format!("{found:?}"),
            expected: format!("{expected:?}"),
        });
    }
    let ends = parsed.validity().not_after;
    if ends.timestamp() <= seconds(SystemTime::now()) {
        return Err(CaError::Root {
            path,
            found: format!("over since {ends}"),
            expected: "one that is valid now".to_owned(),
        });
    }
    Ok(())
}

/// SHA-256 of the public key in a request: what tells a repeated redemption from a second one.
pub fn public_key_hash(csr: &[u8]) -> Result<String, CaError> {
    Ok(sha256_hex(read_request(csr)?.public_key.der_bytes()))
}

fn read_request(csr: &[u8]) -> Result<CertificateSigningRequestParams, CaError> {
    if csr.len() > CSR_MAX_BYTES {
        let reason = format!("has {} bytes; allowed are {CSR_MAX_BYTES}", csr.len());
        return Err(CaError::Request(reason));
    }
    let request =
        CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
            .map_err(|error| CaError::Request(format!("not a signed PKCS #10 request: {error}")))?;
    let allowed = [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
    ];
    let algorithm = request.public_key.algorithm();
    if !allowed.contains(&algorithm) {
        let reason = "its key is neither ECDSA P-256, ECDSA P-384 nor Ed25519";
        return Err(CaError::Request(reason.to_owned()));
    }
    // rcgen takes the signature's algorithm for the key's: a key of another curve would be
    // written down as what it is not.
    if key_algorithm(csr) != Some(algorithm) {
        let reason = "its signature's algorithm does not belong to its key";
        return Err(CaError::Request(reason.to_owned()));
    }
    Ok(request)
}

fn key_algorithm(csr: &[u8]) -> Option<&'static rcgen::SignatureAlgorithm> {
    let (_rest, request) = X509CertificationRequest::from_der(csr).ok()?;
    let key = request.certification_request_info.subject_pki.raw;
    let key = SubjectPublicKeyInfo::from_der(key).ok()?;
    Some(key.algorithm())
}

fn leaf_params(
    identity: &str,
    instance: &str,
    ttl: Duration,
    now: SystemTime,
    dns: &[&str],
) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, instance);
    params.distinguished_name = name;
    let uri = identity.try_into()?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    for name in dns {
        params
            .subject_alt_names
            .push(SanType::DnsName((*name).try_into()?));
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + ttl).into();
    params.serial_number = Some(serial());
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn ca_params(trust_domain: &TrustDomain, kind: &str, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Weft");
    name.push(DnType::CommonName, format!("{trust_domain} {kind}"));
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(match kind {
        "root" => BasicConstraints::Unconstrained,
        _ => BasicConstraints::Constrained(0),
    });
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    let now = SystemTime::now();
    params.not_before = (now - DAY).into();
    params.not_after = (now + life).into();
    params.serial_number = Some(serial());
    params.use_authority_key_identifier_extension = kind != "root";
    params
}

/// 127 random bits, positive (RFC 5280 section 4.1.2.2).
fn serial() -> SerialNumber {
    let mut bytes = crate::random::<16>();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// A certificate is renewed at start when half of its life is over, by its file's age.
fn due(dir: &Path, name: &str) -> bool {
    let metadata = fs::metadata(dir.join(format!("{name}.pem")));
    let age = metadata
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|made| made.elapsed().ok());
    age.is_some_and(|age| age > INTERMEDIATE_LIFE / 2)
}

/// Reads certificate and key, or makes and keeps them.
fn pair(
    dir: &Path,
    name: &str,
    make: impl FnOnce() -> Result<(String, KeyPair), CaError>,
) -> Result<(String, KeyPair), CaError> {
    let (certificate, key) = (
        dir.join(format!("{name}.pem")),
        dir.join(format!("{name}.key")),
    );
    match fs::read_to_string(&certificate) {
        Ok(pem) => {
            let text = fs::read_to_string(&key).map_err(|source| file("reading", &key, source))?;
            let pair = KeyPair::from_pem(&text).map_err(|error| CaError::Content {
                path: key,
                reason: error.to_string(),
            })?;
            Ok((pem, pair))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (pem, pair) = make()?;
            // The key first: a certificate without its key would be worth nothing.
            write_private(&key, pair.serialize_pem().as_bytes())?;
            write_private(&certificate, pem.as_bytes())?;
            Ok((pem, pair))
        }
        Err(source) => Err(file("reading", &certificate, source)),
    }
}

fn write_private(path: &Path, content: &[u8]) -> Result<(), CaError> {
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut out = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        out.write_all(content)?;
        out.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent()
            .map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().map_err(|source| file("writing", path, source))
}

fn file(action: &'static str, path: &Path, source: io::Error) -> CaError {
    CaError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

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
    fn the_intermediate_is_replaced_while_running() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        let before = authority.intermediate.load().der.clone();
        authority.renew().unwrap();
        assert_eq!(before, authority.intermediate.load().der, "not due");
        let made = SystemTime::now() - INTERMEDIATE_LIFE / 2 - DAY;
        let file = File::options()
            .write(true)
            .open(dir.path().join("intermediate.pem"))
            .unwrap();
        file.set_modified(made).unwrap();
        authority.renew().unwrap();
        assert_ne!(before, authority.intermediate.load().der);
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
}
