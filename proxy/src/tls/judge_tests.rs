//! Whole handshakes in memory, in which one side shows a certificate and signs with some key.

use rcgen::{CertificateParams, KeyPair};
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, ServerConfig, ServerConnection,
    SupportedProtocolVersion,
};
use rustls_pki_types::PrivateKeyDer;

use super::*;

/// Believes every certificate, so that the signature alone decides.
#[derive(Debug)]
struct Everybody;

impl Judge for Everybody {
    fn judge(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _usage: KeyUsage,
        _now: UnixTime,
    ) -> Result<(), rustls::Error> {
        Ok(())
    }
}

impl JudgesClients for Everybody {}

/// Shows a certificate, and signs with a key that may not be the certificate's.
#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl Shown {
    fn new(is_own_key: bool) -> Arc<Self> {
        let [own, other] = [(); 2].map(|()| KeyPair::generate().unwrap());
        let leaf = CertificateParams::default().self_signed(&own).unwrap();
        let key = if is_own_key { own } else { other };
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let key = provider().key_provider.load_private_key(key).unwrap();
        let shown = CertifiedKey::new(vec![leaf.der().clone()], key);
        Arc::new(Self(Arc::new(shown)))
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A handshake in this version, in which client and server show these, to its end. The error is that of
/// whoever noticed it first.
fn handshake(
    version: &'static SupportedProtocolVersion,
    [client, server]: [Arc<Shown>; 2],
) -> Result<(), rustls::Error> {
    let verifier = Verifier::new(Everybody, version == &TLS12);
    let client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
        .with_client_cert_resolver(client);
    let server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(server);
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name)?;
    let mut server = ServerConnection::new(Arc::new(server))?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    Ok(())
}

#[test]
fn whoever_has_not_the_key_of_his_certificate_is_refused() {
    let bad = || {
        Err(rustls::Error::InvalidCertificate(
            CertificateError::BadSignature,
        ))
    };
    for version in [&TLS13, &TLS12] {
        for (of_client, of_server, expected) in [
            (true, true, Ok(())),
            (true, false, bad()),
            (false, true, bad()),
        ] {
            let shown = [of_client, of_server].map(Shown::new);
            let found = handshake(version, shown);
            assert_eq!(found, expected, "{version:?} {of_client} {of_server}");
        }
    }
}
