//! Certificates: each sidecar redeems a token of its own on a connection of its own.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use weft_proto::identity::sign_request::Credential;
use weft_proto::identity::{SignRequest, SignResponse};

use crate::admin::Admin;
use crate::grpc::{Failed, Line};
use crate::program::ControlPlane;
use crate::world::{TARGET_PORT, World};

pub(crate) const SIGN: &str = "/weft.identity.v1.Identity/Sign";
/// Enrolments at the same time; one user has 32 connections to the admin socket.
const AT_ONCE: usize = 16;
/// Between attempts of one that was told to come later: signatures have a budget.
pub(crate) const LATER: Duration = Duration::from_millis(250);

/// The TLS side of every sidecar of a world, in order.
pub(crate) async fn enrol(control_plane: &ControlPlane, world: World) -> Vec<Arc<ClientConfig>> {
    let root = root(&control_plane.data_dir());
    let anonymous = Arc::new(config(root.clone(), None));
    let permits = Rc::new(Semaphore::new(AT_ONCE));
    let mut enrolling = JoinSet::new();
    for proxy in 0..world.proxies {
        let (admin, port) = (control_plane.admin().clone(), control_plane.port());
        let (anonymous, root) = (Arc::clone(&anonymous), root.clone());
        let permits = Rc::clone(&permits);
        enrolling.spawn_local(async move {
            let _permit = permits.acquire().await;
            let service = World::service(world.served_by(proxy));
            let workload = World::workload(proxy);
            let enrolled = one(&admin, port, &anonymous, &workload, &service).await;
            let (key, signed) =
                enrolled.unwrap_or_else(|error| panic!("no certificate for {workload}: {error}"));
            (proxy, Arc::new(config(root, Some((key, signed)))))
        });
    }
    let mut enrolled = enrolling.join_all().await;
    enrolled.sort_by_key(|(proxy, _)| *proxy);
    enrolled.into_iter().map(|(_, config)| config).collect()
}

async fn one(
    admin: &Admin,
    port: u16,
    anonymous: &Arc<ClientConfig>,
    workload: &str,
    service: &str,
) -> Result<(KeyPair, SignResponse), String> {
    let token = admin.token(workload, service, TARGET_PORT).await?;
    let (key, csr) = request().map_err(|error| error.to_string())?;
    let request = SignRequest {
        csr,
        credential: Some(Credential::JoinToken(token)),
    };
    loop {
        let signing = async {
            let meter = Rc::new(Cell::new(0));
            let line = Line::connect(port, Arc::clone(anonymous), meter).await?;
            let mut call = line.call(SIGN, &request, true).await?;
            call.next::<SignResponse>().await
        };
        match signing.await {
            Ok((signed, _)) => return Ok((key, signed)),
            Err(error) if error.is_passing() => tokio::time::sleep(LATER).await,
            Err(error @ Failed { .. }) => return Err(error.to_string()),
        }
    }
}

/// A new key and what asks for a certificate for it (PKCS #10, DER).
pub(crate) fn request() -> Result<(KeyPair, Vec<u8>), rcgen::Error> {
    let key = KeyPair::generate()?;
    let csr = CertificateParams::default().serialize_request(&key)?;
    Ok((key, csr.der().to_vec()))
}

fn root(data_dir: &Path) -> CertificateDer<'static> {
    let path = data_dir.join("ca/root.pem");
    CertificateDer::from_pem_file(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn config(root: CertificateDer<'static>, own: Option<(KeyPair, SignResponse)>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(root).expect("a root certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((key, signed)) => {
            let chain = signed.chain.into_iter().map(Into::into).collect();
            let key = PrivatePkcs8KeyDer::from(key.serialize_der());
            builder
                .with_client_auth_cert(chain, PrivateKeyDer::Pkcs8(key))
                .expect("the certificate of the key")
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config
}
