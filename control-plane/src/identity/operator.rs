//! Operators: people and programs who administer the mesh from elsewhere, each with a certificate
//! of their own. Its name is `spiffe://TRUST-DOMAIN/operator/NAME`, which is no workload's: it opens
//! the admin API and nothing else, and a workload's certificate does not open that.

use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use weft_core::name::{NameError, TrustDomain, check_label};

/// How long an operator's certificate lives, at least and at most.
pub const TTL_MIN: Duration = Duration::from_secs(60);
/// See [`TTL_MIN`].
pub const TTL_MAX: Duration = Duration::from_secs(90 * 24 * 3600);
/// An operator's file: a key and three certificates have some 3 KB.
const FILE_MAX_BYTES: u64 = 64 * 1024;

/// An operator's certificate as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperatorRecord {
    /// Names the certificate: `o-…`.
    pub id: String,
    /// Whose it is.
    pub name: String,
    /// When it was signed, seconds since the Unix epoch.
    pub created: i64,
    /// When it ends.
    pub not_after: i64,
    /// When it was revoked.
    pub revoked: Option<i64>,
}

/// The name in the certificate of an operator.
///
/// # Errors
///
/// When `name` is no DNS label.
pub fn identity(trust_domain: &TrustDomain, name: &str) -> Result<String, NameError> {
    check_label(name)?;
    Ok(format!("spiffe://{trust_domain}/operator/{name}"))
}

/// The id in a certificate that rustls has verified, where it is an operator's.
pub fn id_of(certificate: &CertificateDer<'_>, trust_domain: &TrustDomain) -> Option<String> {
    let end_entity = webpki::EndEntityCert::try_from(certificate).ok()?;
    let prefix = format!("spiffe://{trust_domain}/operator/");
    let mut names = end_entity.valid_uri_names();
    names.next()?.strip_prefix(&prefix)?;
    let (_rest, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let id = parsed.subject().iter_common_name().next()?;
    Some(id.as_str().ok()?.to_owned())
}

/// A new key, and the request (PKCS #10, DER) for a certificate for it.
#[derive(Debug)]
pub struct NewKey {
    key_pem: String,
    /// What the authority is to sign.
    pub csr: Vec<u8>,
}

impl NewKey {
    /// Makes a key; it is in the operator's file only.
    ///
    /// # Errors
    ///
    /// When the cryptographic library refuses.
    pub fn generate() -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        // The authority writes every name itself.
        name.push(DnType::CommonName, "operator");
        params.distinguished_name = name;
        let csr = params.serialize_request(&key)?.der().to_vec();
        let key_pem = key.serialize_pem();
        Ok(Self { key_pem, csr })
    }

    /// The operator's file: the key, the certificate, the intermediate, the root.
    pub fn into_file(self, certificates_pem: &str) -> String {
        format!("{}{certificates_pem}", self.key_pem)
    }
}

/// What is in an operator's file.
#[derive(Debug)]
pub struct OperatorFile {
    /// The key.
    pub key: PrivateKeyDer<'static>,
    /// Leaf and intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    /// Whom the operator believes.
    pub root: CertificateDer<'static>,
}

impl OperatorFile {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// What is wrong with it, without its name.
    pub fn read(path: &std::path::Path) -> Result<Self, String> {
        use std::io::Read as _;
        let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
        let mut pem = Vec::new();
        let read = file.take(FILE_MAX_BYTES).read_to_end(&mut pem);
        read.map_err(|error| error.to_string())?;
        Self::parse(&pem)
    }

    fn parse(pem: &[u8]) -> Result<Self, String> {
        let expected = "expected the output of `weft operator create`: a private key and three \
                        certificates in PEM";
        let mut key = None;
        let mut chain = Vec::new();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
            match section.map_err(|error| format!("{error}; {expected}"))? {
                (SectionKind::PrivateKey, der) => key = Some(PrivateKeyDer::Pkcs8(der.into())),
                (SectionKind::Certificate, der) => chain.push(CertificateDer::from(der)),
                (other, _) => return Err(format!("found {other:?}; {expected}")),
            }
        }
        match (key, chain.len()) {
            (Some(key), 3) => {
                let root = chain.remove(2);
                Ok(Self { key, chain, root })
            }
            (key, found) => {
                let key = key.map_or("no", |_| "a");
                Err(format!(
                    "found {key} private key and {found} certificates; {expected}"
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_or_refused() {
        let refused = |text: &str, part: &str| {
            let error = OperatorFile::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(part), "{text:?}: {error}");
        };
        refused("", "no private key and 0 certificates");
        refused("hello", "no private key and 0 certificates");
        let key = NewKey::generate().unwrap();
        let file = key.into_file("");
        refused(&file, "a private key and 0 certificates");
        refused(&file[..file.len() - 30], "expected");
    }

    #[test]
    fn names_are_labels() {
        let domain: TrustDomain = "weft.local".parse().unwrap();
        assert_eq!(
            identity(&domain, "alice").unwrap(),
            "spiffe://weft.local/operator/alice"
        );
        for bad in ["", "a/b", "Alice", "../ns/a/sa/b"] {
            assert!(identity(&domain, bad).is_err(), "{bad:?}");
        }
    }
}
