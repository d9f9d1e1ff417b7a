//! The certificate authority: a root made on first start, an intermediate, leaves from CSRs.
//!
//! From a request only the public key is taken; every name in a certificate is written here.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use weft_core::name::{SpiffeId, TrustDomain};

use crate::{operator, sha256_hex};

/// Clocks of workloads may be this far behind.
const BACKDATE: Duration = Duration::from_secs(300);
const DAY: Duration = Duration::from_secs(24 * 3600);
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const INTERMEDIATE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// A CSR with a P-256 key has some 300 bytes.
const CSR_MAX_BYTES: usize = 8 * 1024;
/// The DNS name in the control plane's own certificate, whatever it is reached at.
pub const OWN_DNS_NAME: &str = "control-plane.weft";
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
    /// The request is not one that is signed.
    #[error("certificate request: {0}")]
    Request(String),
    /// Signing failed.
    #[error("signing: {0}")]
    Sign(#[from] rcgen::Error),
}

/// Root and intermediate.
pub struct Authority {
    trust_domain: TrustDomain,
    root: CertificateDer<'static>,
    intermediate: CertificateDer<'static>,
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
        if due(dir, "intermediate") {
            let _missing_is_fine = fs::remove_file(dir.join("intermediate.pem"));
        }
        let (intermediate_pem, key) = pair(dir, "intermediate", || {
            let key = KeyPair::generate()?;
            let params = ca_params(&trust_domain, "intermediate", INTERMEDIATE_LIFE);
            Ok((params.signed_by(&key, &root_issuer)?.pem(), key))
        })?;
        let der = |pem: &str, name: &str| {
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| CaError::Content {
                path: dir.join(format!("{name}.pem")),
                reason: error.to_string(),
            })
        };
        Ok(Self {
            trust_domain,
            root: der(&root_pem, "root")?,
            intermediate: der(&intermediate_pem, "intermediate")?,
            issuer: Issuer::from_ca_cert_pem(&intermediate_pem, key)?,
        })
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

    /// Signs a certificate for an operator (see [`crate::operator`]): good for calling only.
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
        let certificate = request.signed_by(&self.issuer)?;
        Ok(SignedLeaf {
            chain: vec![certificate.der().to_vec(), self.intermediate.to_vec()],
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
        let leaf = params.signed_by(&key, &self.issuer)?;
        let chain = vec![
            leaf.der().clone(),
            self.intermediate.clone(),
            self.root.clone(),
        ];
        let key = PrivateKeyDer::try_from(key.serialize_der());
        let key = key.map_err(|error| CaError::Request(error.to_owned()))?;
        Ok((chain, key))
    }
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
    Ok(request)
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
