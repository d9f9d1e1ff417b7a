//! Roots that an ExternalService names: certificates in PEM.

use rustls_pki_types::CertificateDer;

use super::shown;

/// Bytes of `caCertificates`.
pub(super) const ROOTS_MAX_BYTES: usize = 64 * 1024;
/// Certificates in it.
const ROOTS_MAX: usize = 16;

/// The certificates of a PEM text; none where there is no text.
pub(super) fn roots(text: Option<&str>) -> Result<Vec<Vec<u8>>, String> {
    let Some(text) = text else {
        return Ok(Vec::new());
    };
    if text.len() > ROOTS_MAX_BYTES {
        return Err(format!("{} bytes", text.len()));
    }
    let blocks = pem::parse_many(text).map_err(|error| error.to_string())?;
    if blocks.is_empty() || blocks.len() > ROOTS_MAX {
        return Err(format!("{} blocks", blocks.len()));
    }
    let mut roots = Vec::with_capacity(blocks.len());
    for (index, block) in blocks.into_iter().enumerate() {
        if block.tag() != "CERTIFICATE" {
            return Err(format!("block {index}: a {}", shown(block.tag())));
        }
        let der = CertificateDer::from(block.into_contents());
        webpki::anchor_from_trusted_cert(&der)
            .map_err(|error| format!("block {index}: {error}"))?;
        roots.push(der.to_vec());
    }
    Ok(roots)
}
