//! What is wrong with a certificate, in words: the texts of webpki and of rustls are names of variants
//! for the most part.

use std::borrow::Cow;
use std::io;

use rustls::CertificateError;

use super::PeerError;

/// Why a handshake failed.
pub(crate) fn in_words(error: &io::Error) -> Cow<'static, str> {
    match inner(error) {
        Some(rustls::Error::InvalidCertificate(wrong)) => {
            format!("the certificate shown is not valid: {}", certificate(wrong)).into()
        }
        Some(rustls::Error::AlertReceived(alert)) => {
            format!("the other side ended the handshake with the alert {alert:?}").into()
        }
        _ => error.to_string().into(),
    }
}

/// What our own verifier found wrong, where that is why a handshake failed: rustls hands it out as an
/// error of the connection.
pub(super) fn of_peer(error: &io::Error) -> Option<&PeerError> {
    match inner(error) {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) => {
            other.0.downcast_ref()
        }
        _ => None,
    }
}

fn inner(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls has texts of its own for the others"
)]
fn certificate(wrong: &CertificateError) -> Cow<'static, str> {
    match wrong {
        CertificateError::BadEncoding => "it cannot be read".into(),
        CertificateError::UnknownIssuer => chain(&webpki::Error::UnknownIssuer),
        CertificateError::BadSignature => chain(&webpki::Error::InvalidSignatureForPublicKey),
        CertificateError::UnhandledCriticalExtension => {
            chain(&webpki::Error::UnsupportedCriticalExtension)
        }
        CertificateError::Other(other) => match other.0.downcast_ref() {
            Some(wrong) => chain(wrong),
            None => other.to_string().into(),
        },
        wrong => wrong.to_string().into(),
    }
}

/// Why a chain of certificates leads to no root.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the others are rare, and webpki adds to them"
)]
pub(super) fn chain(wrong: &webpki::Error) -> Cow<'static, str> {
    use webpki::Error;
    match wrong {
        Error::UnknownIssuer => "its issuer is none of the roots that are trusted".into(),
        Error::CertExpired { time, not_after } => {
            let ago = time.as_secs().saturating_sub(not_after.as_secs());
            format!("it expired {ago} s ago").into()
        }
        Error::CertNotValidYet { time, not_before } => {
            let until = not_before.as_secs().saturating_sub(time.as_secs());
            format!("it is not valid before {until} s from now").into()
        }
        Error::CaUsedAsEndEntity => {
            "it is that of a certificate authority (basicConstraints CA:TRUE), which is taken from no \
             server or workload"
                .into()
        }
        Error::EndEntityUsedAsCa => "its issuer is no certificate authority".into(),
        Error::InvalidSignatureForPublicKey => "its signature is wrong".into(),
        Error::BadDer | Error::BadDerTime | Error::TrailingData(_) => "it cannot be read".into(),
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => {
            "its extended key usage does not allow this".into()
        }
        Error::UnsupportedCriticalExtension => {
            "it has a critical extension that is not supported".into()
        }
        Error::UnsupportedCertVersion => "it is not of X.509 version 3".into(),
        Error::NameConstraintViolation => "its issuer may not issue this name".into(),
        Error::PathLenConstraintViolated => "its chain is longer than an issuer allows".into(),
        wrong => format!("a rule of X.509 is not kept ({wrong})").into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::OtherError;

    use super::*;

    fn failed(wrong: CertificateError) -> io::Error {
        let error = rustls::Error::InvalidCertificate(wrong);
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    #[test]
    fn what_is_wrong_is_said_in_words() {
        let other = |wrong| CertificateError::Other(OtherError(Arc::new(wrong)));
        for (wrong, expected) in [
            (CertificateError::UnknownIssuer, "none of the roots"),
            (
                other(webpki::Error::CaUsedAsEndEntity),
                "that of a certificate authority",
            ),
            (
                other(webpki::Error::PathLenConstraintViolated),
                "longer than an issuer allows",
            ),
        ] {
            let text = in_words(&failed(wrong));
            assert!(text.contains(expected), "{text}");
        }
        let chain = PeerError::Chain(webpki::Error::UnknownIssuer).to_string();
        assert!(
            chain.ends_with("none of the roots that are trusted"),
            "{chain}"
        );
        let plain = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(in_words(&plain), plain.to_string());
    }
}
