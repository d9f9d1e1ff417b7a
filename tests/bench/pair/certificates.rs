//! One authority and two leaves, ECDSA P-256, for the peers; ours makes its own.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// The name that the server side proves.
pub(crate) const SERVER_NAME: &str = "app.bench.mesh";

/// Files in PEM: certificate, key, and both in one for HAProxy.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    /// The certificate.
    pub(crate) certificate: PathBuf,
    /// Its key.
    pub(crate) key: PathBuf,
    /// Both.
    pub(crate) both: PathBuf,
}

/// What a pair needs for mutual TLS.
#[derive(Clone, Debug)]
pub(crate) struct Certificates {
    /// The authority's certificate.
    pub(crate) authority: PathBuf,
    /// The client side's.
    pub(crate) client: Leaf,
    /// The server side's.
    pub(crate) server: Leaf,
}

impl Certificates {
    /// Makes all of them in `dir`.
    pub(crate) fn make(dir: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "bench authority");
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(params, key).expect("sign the authority");
        let leaf = |name: &str| {
            let key = KeyPair::generate().expect("a key");
            let params = CertificateParams::new([name.to_owned()]).expect("a name");
            let certificate = params
                .signed_by(&key, &authority)
                .expect("sign a leaf")
                .pem();
            let both = format!("{certificate}{}", key.serialize_pem());
            Leaf {
                certificate: write(dir, &format!("{name}.crt"), &certificate),
                key: write(dir, &format!("{name}.key"), &key.serialize_pem()),
                both: write(dir, &format!("{name}.pem"), &both),
            }
        };
        Self {
            authority: write(dir, "authority.crt", &authority.pem()),
            client: leaf("caller.bench.mesh"),
            server: leaf(SERVER_NAME),
        }
    }
}

fn write(dir: &Path, name: &str, content: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).expect("write a certificate");
    path
}
