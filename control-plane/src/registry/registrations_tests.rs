//! Registrations on a real store, with clocks that tests set.

use super::*;
use crate::budget::Limits;
use crate::clock::TestClock;
use crate::identity::Credential;
use crate::identity::ca::Authority;
use crate::identity::token::Binding;
use crate::store::RedbStore;
use weft_core::model::{AppProtocol, RegisteredPort};

const GRACE: Duration = Duration::from_secs(10);

struct Bed {
    store: Arc<dyn Store>,
    identities: Arc<Identities>,
    clock: Arc<TestClock>,
    all: Arc<Registrations>,
    _dir: tempfile::TempDir,
}

fn open(
    store: &Arc<dyn Store>,
    identities: &Arc<Identities>,
    clock: &Arc<TestClock>,
) -> Arc<Registrations> {
    let settings = Settings {
        grace: GRACE,
        virtual_ranges: Vec::new(),
    };
    let peers = Peers::new(Limits::default());
    let clock = Arc::clone(clock);
    let (store, identities) = (Arc::clone(store), Arc::clone(identities));
    Registrations::open(store, identities, peers, settings, clock).unwrap()
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = RedbStore::open(dir.path()).unwrap();
        let domain = "weft.test".parse().unwrap();
        let authority = Arc::new(Authority::open(&dir.path().join("ca"), domain).unwrap());
        let hour = Duration::from_secs(3600);
        let clock = TestClock::start();
        let identities = Identities::open(
            Arc::clone(&store),
            authority,
            hour,
            Arc::<TestClock>::clone(&clock),
        );
        let identities = identities.unwrap();
        let all = open(&store, &identities, &clock);
        Self {
            store,
            identities,
            clock,
            all,
            _dir: dir,
        }
    }

    /// An attested instance of `shop/web`.
    async fn peer(&self) -> PeerIdentity {
        let binding = Binding {
            workload: "shop/web".parse().unwrap(),
            service_account: "web".to_owned(),
            services: vec![],
            ports: vec![80],
            addresses: vec![],
        };
        let minute = Duration::from_secs(60);
        let (token, _) = self.identities.create_token(binding, minute).await.unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let csr = rcgen::CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        let credential = Credential::JoinToken(token);
        let signed = self
            .identities
            .sign(credential, csr.der(), [127, 0, 0, 1].into())
            .await
            .unwrap();
        PeerIdentity {
            identity: signed.identity,
            instance: signed.instance.into(),
            not_after: signed.leaf.not_after,
        }
    }

    async fn register(&self, peer: &PeerIdentity, stream: u64) {
        let from = "127.0.0.1:50000".parse().unwrap();
        let registered = self.all.register(peer, from, stream, registration());
        registered.await.unwrap();
    }

    fn on_record(&self) -> Vec<String> {
        let records = read_records::<Entry>(&*self.store, ENTRIES).unwrap();
        records.into_iter().map(|(name, _)| name).collect()
    }
}

fn registration() -> Registration {
    Registration {
        workload: "shop/web".parse().unwrap(),
        services: vec![],
        addresses: vec![],
        ports: vec![RegisteredPort {
            port: 80,
            protocol: AppProtocol::Http,
            advertised: "127.0.0.1:4000".parse().unwrap(),
            ready: true,
        }],
        labels: Default::default(),
        zone: String::new(),
        weight: 100,
        metrics_target: String::new(),
        version: String::new(),
    }
}

fn entry(peer: &PeerIdentity, stream: u64) -> Entry {
    Entry {
        instance: Arc::clone(&peer.instance),
        identity: peer.identity.clone(),
        registration: registration(),
        stream: Some(stream),
        expires: Default::default(),
    }
}

#[tokio::test]
async fn a_step_of_the_wall_clock_expires_nobody() {
    let bed = Bed::new();
    let peer = bed.peer().await;
    bed.register(&peer, 1).await;
    bed.all.disconnected(1);
    bed.clock.step(Duration::from_secs(365 * 24 * 3600));
    bed.all.expire().await;
    assert_eq!(bed.all.len(), 1);
    bed.clock.pass(GRACE - Duration::from_millis(1));
    bed.all.expire().await;
    assert_eq!(bed.all.len(), 1);
    bed.clock.pass(Duration::from_millis(1));
    bed.all.expire().await;
    assert!(bed.all.is_empty());
    assert_eq!(bed.on_record(), [""; 0]);
}

#[tokio::test]
async fn what_is_taken_out_meanwhile_does_not_take_a_newer_record_along() {
    let bed = Bed::new();
    let peer = bed.peer().await;
    bed.register(&peer, 1).await;
    bed.all.disconnected(1);
    bed.clock.pass(GRACE);
    // The sidecar comes back in the moment in which its grace ends.
    let newer = entry(&peer, 2);
    let (mut under_way, written) = bed.all.begin_writing(&newer).unwrap();
    bed.all.expire().await;
    written.await.unwrap();
    if let Some(again) = under_way.put(newer).unwrap().1 {
        again.await.unwrap();
    }
    assert_eq!(bed.all.len(), 1);
    assert_eq!(bed.on_record(), ["shop/web"]);
    assert!(bed.all.state().writing.is_empty());
}

#[tokio::test]
async fn a_registration_that_is_given_up_leaves_no_record() {
    let bed = Bed::new();
    let peer = bed.peer().await;
    let given_up = entry(&peer, 1);
    let (under_way, written) = bed.all.begin_writing(&given_up).unwrap();
    drop(under_way);
    written.await.unwrap();
    bed.store.write(Vec::new()).await.unwrap();
    assert_eq!(bed.on_record(), [""; 0]);
    // One that came meanwhile is not undone.
    let (under_way, _) = bed.all.begin_writing(&given_up).unwrap();
    bed.register(&peer, 2).await;
    drop(under_way);
    bed.store.write(Vec::new()).await.unwrap();
    assert_eq!(bed.on_record(), ["shop/web"]);
    assert!(bed.all.state().writing.is_empty());
}

#[tokio::test]
async fn a_revocation_that_was_half_written_is_completed() {
    let bed = Bed::new();
    let peer = bed.peer().await;
    bed.register(&peer, 1).await;
    // The process ends before the entry is taken out.
    bed.identities
        .revoke(&peer.instance)
        .unwrap()
        .await
        .unwrap();
    assert_eq!(bed.on_record(), ["shop/web"]);
    let all = open(&bed.store, &bed.identities, &bed.clock);
    assert!(all.is_empty());
    let (told, _) = all.changes().try_take();
    assert_eq!(told, [RegistryDelta::Removed("shop/web".parse().unwrap())]);
    bed.store.write(Vec::new()).await.unwrap();
    assert_eq!(bed.on_record(), [""; 0]);
}
