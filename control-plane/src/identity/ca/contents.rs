//! What the authority writes into certificates.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType, SerialNumber,
};
use weft_core::name::TrustDomain;

use super::CaError;

/// Clocks of workloads may be this far behind.
const BACKDATE: Duration = Duration::from_secs(300);
/// Certificates that sign others are good from this long ago.
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

/// A certificate for one who calls and is called.
pub(super) fn leaf_params(
    identity: &str,
    instance: &str,
    (issued, ends): (SystemTime, SystemTime),
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
    params.not_before = (issued - BACKDATE).into();
    params.not_after = ends.into();
    params.serial_number = Some(serial());
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// A certificate that signs others; `kind` is `root` or `intermediate`.
pub(super) fn ca_params(
    trust_domain: &TrustDomain,
    kind: &str,
    now: SystemTime,
    ends: SystemTime,
) -> CertificateParams {
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
    params.not_before = (now - DAY).into();
    params.not_after = ends.into();
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
