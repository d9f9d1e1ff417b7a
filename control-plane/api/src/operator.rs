//! The operator's file: a key, its certificate, and the authority to believe.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// An operator's file: a key and three certificates have some 3 KB.
const FILE_MAX_BYTES: u64 = 64 * 1024;

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
    pub fn read(path: &Path) -> Result<Self, String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
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
}
