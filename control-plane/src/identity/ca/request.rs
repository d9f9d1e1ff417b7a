//! Requests for certificates (PKCS #10): which are signed.

use rcgen::{CertificateSigningRequestParams, PublicKeyData, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateSigningRequestDer;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::CaError;
use crate::sha256_hex;

/// A CSR with a P-256 key has some 300 bytes.
const CSR_MAX_BYTES: usize = 8 * 1024;

/// SHA-256 of the public key in a request: what tells a repeated redemption from a second one.
pub fn public_key_hash(csr: &[u8]) -> Result<String, CaError> {
    Ok(sha256_hex(read_request(csr)?.public_key.der_bytes()))
}

pub(super) fn read_request(csr: &[u8]) -> Result<CertificateSigningRequestParams, CaError> {
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
