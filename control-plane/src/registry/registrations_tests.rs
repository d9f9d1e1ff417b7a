//! Registrations on a real store, with clocks that tests set.

use super::*;
use crate::budget::Limits;
use crate::clock::TestClock;
use crate::identity::Credential;
use crate::identity::ca::Authority;
use crate::identity::token::Binding;
use crate::store::{Fault, FaultyStore, RedbStore};
use futures_util::FutureExt as _;
use weft_core::model::{AppProtocol, RegisteredPort};

const GRACE: Duration = Duration::from_secs(10);
const RESTART_GRACE: Duration = Duration::from_secs(90);

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
        restart_grace: RESTART_GRACE,
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
        let store = RedbStore::open(dir.path()).unwrap();
        Self::on(store, dir)
    }

    fn on(store: Arc<dyn Store>, dir: tempfile::TempDir) -> Self {
        let domain = "weft.test".parse().unwrap();
        let authority = Arc::new(Authority::open(&dir.path().join("ca"), domain).unwrap());
        let hour = Duration::from_secs(3600);
        let clock = TestClock::start();
        let identities = Identities::open(
            Arc::clone(&store),
            authority,
            crate::identity::on_record(),
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

/// Nobody has seen it go: that the control plane was away says nothing about the workload.
#[tokio::test]
async fn what_was_on_record_at_the_start_is_kept_for_longer() {
    let bed = Bed::new();
    let peer = bed.peer().await;
    bed.register(&peer, 1).await;
    let again = open(&bed.store, &bed.identities, &bed.clock);
    bed.clock.pass(RESTART_GRACE - Duration::from_millis(1));
    again.expire().await;
    assert_eq!(again.len(), 1);
    bed.clock.pass(Duration::from_millis(1));
    again.expire().await;
    assert!(again.is_empty());
    // One that has come back, and then goes, is not.
    let again = open(&bed.store, &bed.identities, &bed.clock);
    let from = "127.0.0.1:50000".parse().unwrap();
    let registered = again.register(&peer, from, 1, registration());
    registered.await.unwrap();
    again.disconnected(1);
    bed.clock.pass(GRACE);
    again.expire().await;
    assert!(again.is_empty());
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
        again.done().await.unwrap();
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
    bed.all.write_again().await.unwrap();
    assert_eq!(bed.on_record(), [""; 0]);
    // One that came meanwhile is not undone.
    let (under_way, _) = bed.all.begin_writing(&given_up).unwrap();
    bed.register(&peer, 2).await;
    drop(under_way);
    bed.all.write_again().await.unwrap();
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
    all.write_again().await.unwrap();
    assert_eq!(bed.on_record(), [""; 0]);
}

/// A store whose writer's queue is full takes nothing and answers at once: what was not written is
/// written as soon as it takes something again, by the task that runs all the time.
#[tokio::test(start_paused = true)]
async fn records_that_a_full_queue_refused_are_written_later() {
    let store = FaultyStore::new();
    let bed = Bed::on(
        Arc::<FaultyStore>::clone(&store),
        tempfile::tempdir().unwrap(),
    );
    let peer = bed.peer().await;
    let keeping = tokio::spawn(Arc::clone(&bed.all).keep());
    let settled = || tokio::time::sleep(2 * WRITE_AGAIN_AFTER);

    // A refused registration that is on the disk already.
    let refused = entry(&peer, 1);
    let (under_way, written) = bed.all.begin_writing(&refused).unwrap();
    written.await.unwrap();
    store.set(Fault::QueueFull);
    drop(under_way);
    settled().await;
    assert_eq!(bed.on_record(), ["shop/web"]);
    store.set(Fault::None);
    settled().await;
    assert_eq!(bed.on_record(), [""; 0], "refused");

    // One that leaves, and whose sidecar does not wait for the answer.
    bed.register(&peer, 2).await;
    store.set(Fault::QueueFull);
    drop(bed.all.leave(2).now_or_never());
    settled().await;
    assert_eq!(bed.on_record(), ["shop/web"]);
    store.set(Fault::None);
    settled().await;
    assert_eq!(bed.on_record(), [""; 0], "left");

    // One whose grace ends, on a full disk.
    bed.clock.pass(GRACE);
    bed.register(&peer, 3).await;
    bed.all.disconnected(3);
    store.set(Fault::DiskFull);
    bed.clock.pass(GRACE);
    settled().await;
    assert!(bed.all.is_empty());
    assert_eq!(bed.on_record(), ["shop/web"]);
    store.set(Fault::None);
    settled().await;
    assert_eq!(bed.on_record(), [""; 0], "expired");
    assert!(bed.all.state().unwritten.is_empty());
    keeping.abort();
}

/// A newer registration is on record in the end, however writes before it failed.
#[tokio::test]
async fn what_is_written_again_is_what_is_in_force() {
    let store = FaultyStore::new();
    let bed = Bed::on(
        Arc::<FaultyStore>::clone(&store),
        tempfile::tempdir().unwrap(),
    );
    let peer = bed.peer().await;
    bed.register(&peer, 1).await;
    store.set(Fault::QueueFull);
    bed.all.leave(1).await.unwrap();
    store.set(Fault::None);
    bed.clock.pass(GRACE);
    bed.register(&peer, 2).await;
    bed.all.write_again().await.unwrap();
    assert_eq!(bed.on_record(), ["shop/web"]);
    assert!(bed.all.state().unwritten.is_empty());
}

/// More registrations than the queue of the store's writer has places for.
#[tokio::test]
async fn registrations_of_many_who_were_revoked_are_taken_out() {
    let bed = Bed::new();
    let peer = bed.peer().await;
    let entries = (0..1_500).map(|number| {
        let mut entry = entry(&peer, number);
        let (name, instance) = (format!("shop/w{number}"), format!("i-{number}"));
        entry.registration.workload = name.parse().unwrap();
        entry.instance = instance.into();
        write_of(&entry)
    });
    bed.store.write(entries.collect()).await.unwrap();
    let all = open(&bed.store, &bed.identities, &bed.clock);
    assert!(all.is_empty());
    all.write_again().await.unwrap();
    assert_eq!(bed.on_record(), [""; 0]);
}
