//! The authority's files: certificates with their keys, and what may be wrong with them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use weft_core::name::TrustDomain;

use super::{CaError, seconds};

/// Makes the authority's directory, which only its owner may look into.
pub(super) fn make_dir(dir: &Path) -> Result<(), CaError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| file("creating", dir, source))
}

/// Refuses a key whose certificate is missing: a new pair would take its place, and what the mesh
/// trusts would be lost for good.
pub(super) fn refuse_key_alone(dir: &Path, name: &str) -> Result<(), CaError> {
    let [certificate, key] = ["pem", "key"].map(|end| dir.join(format!("{name}.{end}")));
    let exists = |path: &Path| fs::exists(path).map_err(|source| file("reading", path, source));
    if exists(&key)? && !exists(&certificate)? {
        return Err(CaError::Content {
            reason: format!(
                "its certificate {} is missing: put it back, or restore a backup with `weft restore`",
                certificate.display()
            ),
            path: key,
        });
    }
    Ok(())
}

/// Reads certificate and key, or makes and keeps them.
pub(super) fn pair(
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

pub(super) fn write_private(path: &Path, content: &[u8]) -> Result<(), CaError> {
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

pub(super) fn from_pem(
    dir: &Path,
    name: &str,
    pem: &str,
) -> Result<CertificateDer<'static>, CaError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| CaError::Content {
        path: dir.join(format!("{name}.pem")),
        reason: error.to_string(),
    })
}

/// A root of another trust domain, or one that has ended, vouches for nobody here.
pub(super) fn check_root(
    dir: &Path,
    root: &CertificateDer<'_>,
    ours: &TrustDomain,
) -> Result<(), CaError> {
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

/// The end of a certificate's validity.
pub(super) fn end_of(path: &Path, certificate: &CertificateDer<'_>) -> Result<SystemTime, CaError> {
    let (_rest, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|error| CaError::Content {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    let ends = parsed.validity().not_after.timestamp();
    Ok(UNIX_EPOCH + Duration::from_secs(u64::try_from(ends).unwrap_or(0)))
}

pub(super) fn file(action: &'static str, path: &Path, source: io::Error) -> CaError {
    CaError::File {
        action,
        path: path.to_owned(),
        source,
    }
}
