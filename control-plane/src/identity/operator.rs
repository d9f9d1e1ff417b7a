//! Operators: people and programs who administer the mesh from elsewhere, each with a certificate
//! of their own. Its name is `spiffe://TRUST-DOMAIN/operator/NAME`, which is no workload's: it opens
//! the admin API and nothing else, and a workload's certificate does not open that.

use std::time::Duration;

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use weft_api::types::OperatorInfo;
use weft_core::name::{NameError, TrustDomain, check_label};

/// How long an operator's certificate lives, at least and at most.
pub const TTL_MIN: Duration = Duration::from_secs(60);
/// See [`TTL_MIN`].
pub const TTL_MAX: Duration = Duration::from_secs(90 * 24 * 3600);

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

impl From<OperatorRecord> for OperatorInfo {
    fn from(record: OperatorRecord) -> Self {
        Self {
            id: record.id,
            name: record.name,
            created: record.created,
            not_after: record.not_after,
            revoked: record.revoked,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
