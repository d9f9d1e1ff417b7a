use std::collections::BTreeSet;

use rcgen::{BasicConstraints, CertifiedIssuer, IsCa};
use tokio::sync::Notify;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use weft_proto::identity::identity_server::{self, IdentityServer};

use super::*;
use crate::control_plane::testing;

const WEB: &str = "spiffe://weft.local/ns/shop/sa/web";
const LIFE: i64 = 3600;

#[test]
fn digest_of_a_token() {
    let digest = "ab".repeat(32);
    let token = format!("weft1.weft.local.{digest}.id.secret");
    assert_eq!(root_digest(&token), Some(digest.as_str()));
    for bad in [
        "",
        "weft1",
        "weft1.a.b.c.d",
        &format!("weft2.a.{digest}.i.s"),
    ] {
        assert_eq!(root_digest(bad), None, "{bad}");
    }
}

/// A control plane that signs when it is told to.
#[derive(Clone)]
struct Authority {
    issuer: Arc<CertifiedIssuer<'static, KeyPair>>,
    asked: Arc<Notify>,
    signs: Arc<Notify>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: Arc::new(CertifiedIssuer::self_signed(params, key).unwrap()),
            asked: Arc::default(),
            signs: Arc::default(),
        }
    }

    fn root(&self) -> Vec<u8> {
        self.issuer.der().to_vec()
    }

    /// The identity of a sidecar that has enrolled.
    fn enrolled(&self) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::default();
        let leaf = params.signed_by(&key, &*self.issuer).unwrap();
        identity_from(self.answer(leaf.der().to_vec()), &key, None).unwrap()
    }

    fn answer(&self, leaf: Vec<u8>) -> SignResponse {
        SignResponse {
            chain: vec![leaf],
            roots: vec![self.root()],
            identity: WEB.to_owned(),
            trust_domain: "weft.local".to_owned(),
            workload: "shop/web".to_owned(),
            instance: "i-1".to_owned(),
            issued: unix_now(),
            not_after: unix_now() + LIFE,
            ..SignResponse::default()
        }
    }
}

#[tonic::async_trait]
impl identity_server::Identity for Authority {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        self.asked.notify_one();
        self.signs.notified().await;
        let csr = request.into_inner().csr;
        let csr = rcgen::CertificateSigningRequestParams::from_der(&csr.into()).unwrap();
        let leaf = csr.signed_by(&*self.issuer).unwrap();
        Ok(Response::new(self.answer(leaf.der().to_vec())))
    }
}

/// One that knows no control plane but the connection that it is given.
fn manager(state: StateDir) -> Manager {
    let tls = Arc::new(TlsContext::new(Duration::ZERO));
    Manager::new(
        String::new(),
        Proof::JoinToken(None),
        state,
        tls,
        Metrics::new(10),
    )
}

#[tokio::test]
async fn a_renewal_does_not_undo_a_revocation() {
    let authority = Authority::new();
    let server = Server::builder().add_service(IdentityServer::new(authority.clone()));
    let (held_open, mut lines) = testing::lines();
    held_open.send_replace(Some(testing::line(server).await));

    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(&directory.path().join("state")).unwrap();
    let manager = manager(state.clone());
    let enrolled = authority.enrolled();
    let before = Arc::clone(&enrolled.credentials);
    manager.keep(enrolled.clone(), None).await.unwrap();

    let revoked = TrustBundle {
        revoked_instances: BTreeSet::from(["i-7".to_owned()]),
        ..enrolled.bundle
    };
    let revocation = async {
        authority.asked.notified().await;
        manager.trust(revoked.clone()).unwrap();
        authority.signs.notify_one();
    };
    let (signed, ()) = tokio::join!(manager.sign(Some(&mut lines)), revocation);
    signed.unwrap();

    let current = manager.subscribe().borrow().clone().unwrap();
    assert!(!Arc::ptr_eq(&current.credentials, &before), "renewed");
    assert_eq!(current.bundle, revoked);
    let saved = Saved::read(&state).unwrap().unwrap();
    let saved = saved.into_identity().unwrap();
    assert_eq!(saved.bundle, revoked);
    assert_eq!(saved.credentials.chain, current.credentials.chain);
}

/// Half of its life is not waited for.
#[tokio::test]
async fn a_certificate_whose_root_leaves_is_renewed_at_once() {
    let authority = Authority::new();
    let server = Server::builder().add_service(IdentityServer::new(authority.clone()));
    let (held_open, lines) = testing::lines();
    held_open.send_replace(Some(testing::line(server).await));
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(&directory.path().join("state")).unwrap();
    let manager = manager(state);
    let enrolled = authority.enrolled();
    manager.keep(enrolled.clone(), None).await.unwrap();
    manager.check_believed().unwrap();

    let changes = async {
        tokio::task::yield_now().await;
        let mut bundle = enrolled.bundle.clone();
        bundle.roots.push(Authority::new().root());
        manager.trust(bundle.clone()).unwrap();
        manager.check_believed().unwrap();
        bundle.roots.remove(0);
        manager.trust(bundle).unwrap();
        assert!(manager.check_believed().is_err());
        authority.asked.notified().await;
    };
    let asked = timeout(RENEW_SPREAD + SIGN_TIMEOUT, changes);
    tokio::select! {
        asked = asked => asked.unwrap(),
        () = manager.keep_fresh(lines) => {}
    }
}
