//! Identities on a real store, with clocks that tests set.

use futures_util::future::BoxFuture;

use super::*;
use crate::clock::TestClock;
use crate::identity::ca::{Authority, LEAF_TTL_MAX};
use crate::identity::records::{INSTANCES_MAX, TOKEN_KEPT};
use crate::identity::token::{CLOCK_SKEW, INSTANCE_KEY_LIFE};
use crate::identity::{on_record, with_cluster};
use crate::kubernetes::{PodFacts, Review, TokenReviews, TokenUser};
use crate::store::{Fault, FaultyStore, RedbStore};

const HOUR: Duration = Duration::from_secs(3600);
const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

struct Bed {
    store: Arc<dyn Store>,
    authority: Arc<Authority>,
    clock: Arc<TestClock>,
    all: Arc<Identities>,
    _dir: tempfile::TempDir,
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
        let clock = TestClock::start();
        let all = open(&store, &authority, &clock);
        Self {
            store,
            authority,
            clock,
            all,
            _dir: dir,
        }
    }

    async fn token(&self) -> String {
        let made = self.all.create_token(binding("shop/web"), HOUR).await;
        made.unwrap().0
    }

    fn on_record(&self) -> [usize; 3] {
        [TOKENS, INSTANCES, OPERATORS].map(|table| self.store.records(table).unwrap().len())
    }
}

fn open(
    store: &Arc<dyn Store>,
    authority: &Arc<Authority>,
    clock: &Arc<TestClock>,
) -> Arc<Identities> {
    open_with(store, authority, clock, on_record())
}

fn open_with(
    store: &Arc<dyn Store>,
    authority: &Arc<Authority>,
    clock: &Arc<TestClock>,
    attestors: Vec<Box<dyn Attestor>>,
) -> Arc<Identities> {
    let clock = Arc::<TestClock>::clone(clock);
    let signer = Arc::<Authority>::clone(authority);
    Identities::open(Arc::clone(store), signer, attestors, HOUR, clock).unwrap()
}

fn binding(workload: &str) -> Binding {
    Binding {
        workload: workload.parse().unwrap(),
        service_account: "web".to_owned(),
        services: vec![],
        ports: vec![],
        addresses: vec![],
    }
}

fn csr() -> Vec<u8> {
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key);
    request.unwrap().der().to_vec()
}

fn key_of(csr: &[u8]) -> String {
    ca::public_key_hash(csr).unwrap()
}

#[tokio::test]
async fn of_two_redemptions_at_the_same_moment_one_succeeds() {
    let bed = Bed::new();
    let credential = Credential::JoinToken(bed.token().await);
    let (first, second) = (csr(), csr());
    let reserved = bed.all.reserve(&credential, &key_of(&first)).unwrap();
    // While the first is signed for.
    let refused = bed.all.reserve(&credential, &key_of(&second)).unwrap_err();
    assert!(
        matches!(refused, IdentityError::Token(TokenError::Redeemed)),
        "{refused}"
    );
    // Signing failed: the token is as good as before.
    bed.all.unreserve(reserved);
    bed.all.reserve(&credential, &key_of(&second)).unwrap();
    assert_eq!(bed.all.instances().len(), 1);
}

#[tokio::test]
async fn a_renewal_does_not_undo_a_revocation_that_came_meanwhile() {
    let bed = Bed::new();
    let credential = Credential::JoinToken(bed.token().await);
    let signed = bed.all.sign(credential, &csr(), SOURCE).await.unwrap();
    let renewal = Credential::InstanceKey(signed.instance_key.unwrap());
    let request = csr();
    let reserved = bed.all.reserve(&renewal, &key_of(&request)).unwrap();
    let (leaf, identity) = bed
        .all
        .sign_for(&reserved.attested.instance, &request)
        .unwrap();
    bed.all.revoke(&signed.instance).unwrap().await.unwrap();
    let refused = bed.all.commit(&reserved, leaf, identity).map(drop);
    assert!(
        matches!(refused, Err(IdentityError::Token(TokenError::Revoked(_)))),
        "{refused:?}"
    );
    assert!(bed.all.is_revoked(&signed.instance));
    let again = open(&bed.store, &bed.authority, &bed.clock);
    assert!(again.is_revoked(&signed.instance));
}

#[tokio::test]
async fn wrong_credentials_take_nothing_from_right_ones() {
    let bed = Bed::new();
    let token = bed.token().await;
    let mut over = 0;
    for guess in 0..1_000 {
        let text = format!("weft1.weft.test.x.{guess}.secret");
        let refused = bed.all.sign(Credential::JoinToken(text), b"", SOURCE).await;
        let refused = refused.unwrap_err();
        if matches!(refused, IdentityError::Exceeded(_)) {
            over += 1;
        } else {
            let unknown = matches!(refused, IdentityError::Token(TokenError::Unknown));
            assert!(unknown, "{refused}");
        }
    }
    assert!(over > 900, "{over}");
    let credential = Credential::JoinToken(token);
    bed.all.sign(credential, &csr(), SOURCE).await.unwrap();
}

#[tokio::test]
async fn one_instance_has_its_own_budget() {
    let bed = Bed::new();
    let credential = Credential::JoinToken(bed.token().await);
    let greedy = bed.all.sign(credential, &csr(), SOURCE).await.unwrap();
    let key = greedy.instance_key.unwrap();
    let request = csr();
    let mut refused = None;
    for _ in 0..30 {
        let renewal = Credential::InstanceKey(key.clone());
        refused = bed.all.sign(renewal, &request, SOURCE).await.err();
    }
    let refused = refused.unwrap().to_string();
    let expected = format!(
        "too many certificates for {}: allowed are 1",
        greedy.instance
    );
    assert!(refused.starts_with(&expected), "{refused}");
    let credential = Credential::JoinToken(bed.token().await);
    bed.all.sign(credential, &csr(), SOURCE).await.unwrap();
}

#[tokio::test]
async fn names_of_the_mesh_itself_are_nobodys() {
    let bed = Bed::new();
    let refused = bed
        .all
        .create_token(binding("weft-system/control-plane"), HOUR)
        .await;
    let expected = "workload: weft-system/control-plane is in the namespace weft-system, which is \
                    the mesh's own; allowed: any other";
    assert_eq!(refused.unwrap_err().to_string(), expected);
    let mut serving = binding("shop/web");
    serving.services = vec!["weft-system/web".parse().unwrap()];
    let refused = bed.all.create_join_token(1000, serving, HOUR).await;
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.starts_with("services: weft-system/web"),
        "{refused}"
    );
}

#[tokio::test]
async fn what_can_never_be_used_again_is_cleared_away() {
    let bed = Bed::new();
    let clear = async || {
        let writes = bed.all.records().clear(bed.clock.unix_seconds(), 1_000);
        bed.store.write(writes).await.unwrap();
    };
    let seconds = |seconds: i64| Duration::from_secs(seconds.unsigned_abs());
    let (kept, revoked) = (bed.token().await, bed.token().await);
    let _unused = bed.token().await;
    let kept = Credential::JoinToken(kept);
    let kept = bed.all.sign(kept, &csr(), SOURCE).await.unwrap();
    let revoked = Credential::JoinToken(revoked);
    let revoked = bed.all.sign(revoked, &csr(), SOURCE).await.unwrap();
    let request = csr();
    let operator = bed.all.sign_operator("alice", &request, HOUR);
    operator.await.unwrap();
    bed.all.revoke(&revoked.instance).unwrap().await.unwrap();
    clear().await;
    assert_eq!(bed.on_record(), [3, 2, 1]);

    bed.clock.pass(HOUR + seconds(TOKEN_KEPT + 1));
    clear().await;
    assert_eq!(bed.on_record(), [0, 2, 0], "tokens and operators");
    // The record of its last certificate may be older than that certificate.
    assert_eq!(bed.all.bundle().revoked_instances.len(), 1);

    bed.clock
        .pass(LEAF_TTL_MAX - HOUR - seconds(TOKEN_KEPT + 1));
    let key = Credential::InstanceKey(kept.instance_key.clone().unwrap());
    bed.all.sign(key, &csr(), SOURCE).await.unwrap();
    clear().await;
    assert_eq!(bed.on_record(), [0, 2, 0]);
    assert_eq!(bed.all.bundle().revoked_instances.len(), 1);
    bed.clock.pass(seconds(CLOCK_SKEW + 1));
    clear().await;
    assert_eq!(bed.on_record(), [0, 1, 0], "the revocation");
    assert!(bed.all.bundle().revoked_instances.is_empty());

    bed.clock.pass(seconds(INSTANCE_KEY_LIFE));
    clear().await;
    assert_eq!(bed.on_record(), [0, 0, 0], "the instance");
    let key = Credential::InstanceKey(kept.instance_key.unwrap());
    let refused = bed.all.sign(key, &csr(), SOURCE).await.unwrap_err();
    assert!(
        matches!(refused, IdentityError::Token(TokenError::UnknownInstance)),
        "{refused}"
    );
}

/// The record of an instance that was forgotten to make room goes with the write of the newcomer's: a
/// restart does not bring it back. Where that write fails, nobody was forgotten.
#[tokio::test]
async fn whom_a_newcomer_took_the_place_of_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = FaultyStore::new();
    let bed = Bed::on(Arc::<FaultyStore>::clone(&store), dir);
    let credential = Credential::JoinToken(bed.token().await);
    let oldest = bed.all.sign(credential, &csr(), SOURCE).await.unwrap();
    bed.clock.pass(HOUR + Duration::from_secs(400));
    {
        let mut records = bed.all.records();
        let mut filler = records.instances[&oldest.instance].clone();
        filler.last_not_after = i64::MAX / 2;
        for number in 1..INSTANCES_MAX {
            filler.instance = format!("i-{number}");
            records
                .instances
                .insert(filler.instance.clone(), filler.clone());
        }
    }
    let (token, request) = (bed.token().await, csr());
    store.set(Fault::DiskFull);
    let credential = Credential::JoinToken(token.clone());
    bed.all
        .sign(credential, &request, SOURCE)
        .await
        .unwrap_err();
    bed.all.binding_of(&oldest.instance).unwrap();
    assert_eq!(bed.all.records().instances.len(), INSTANCES_MAX);

    store.set(Fault::None);
    let credential = Credential::JoinToken(token);
    let newcomer = bed.all.sign(credential, &request, SOURCE).await.unwrap();
    assert_eq!(bed.on_record(), [2, 1, 0]);
    let again = open(&bed.store, &bed.authority, &bed.clock);
    again.binding_of(&newcomer.instance).unwrap();
    let key = Credential::InstanceKey(oldest.instance_key.unwrap());
    let refused = again.sign(key, &csr(), SOURCE).await.unwrap_err();
    assert!(
        matches!(refused, IdentityError::Token(TokenError::UnknownInstance)),
        "{refused}"
    );
}

/// Asks elsewhere which join token a text stands for; the answer comes when it is let go.
#[derive(Debug)]
struct Elsewhere {
    asked: Arc<tokio::sync::Notify>,
    answer: Arc<tokio::sync::Notify>,
    token: String,
}

impl Attestor for Elsewhere {
    fn prove(&self, credential: Credential) -> BoxFuture<'_, Result<Credential, ProveError>> {
        Box::pin(async move {
            let Credential::JoinToken(text) = &credential else {
                return Ok(credential);
            };
            match text.as_str() {
                "from elsewhere" => {
                    self.asked.notify_one();
                    self.answer.notified().await;
                    Ok(Credential::JoinToken(self.token.clone()))
                }
                "false" => Err(TokenError::Unknown.into()),
                _ => Ok(credential),
            }
        })
    }

    fn authenticate(
        &self,
        _records: &Records,
        _credential: &Credential,
        _now: i64,
    ) -> Option<Result<String, TokenError>> {
        None
    }

    fn attest(
        &self,
        _records: &Records,
        _credential: &Credential,
        _key_hash: &str,
        _now: i64,
    ) -> Option<Result<Attested, TokenError>> {
        None
    }
}

/// An attestor that asks another service holds nobody up, and what that denies is a failed attempt.
#[tokio::test]
async fn what_has_to_be_asked_elsewhere_is_asked_without_a_lock() {
    let bed = Bed::new();
    let (asked, answer) = <(Arc<tokio::sync::Notify>, Arc<tokio::sync::Notify>)>::default();
    let elsewhere = Elsewhere {
        asked: Arc::clone(&asked),
        answer: Arc::clone(&answer),
        token: bed.token().await,
    };
    let mut attestors = on_record();
    attestors.push(Box::new(elsewhere));
    let other = Credential::JoinToken(bed.token().await);
    // As it is opened now, it has both tokens on record.
    let all = open_with(&bed.store, &bed.authority, &bed.clock, attestors);
    let slow = tokio::spawn({
        let all = Arc::clone(&all);
        async move {
            let credential = Credential::JoinToken("from elsewhere".to_owned());
            all.sign(credential, &csr(), SOURCE).await
        }
    });
    asked.notified().await;
    all.sign(other, &csr(), SOURCE).await.unwrap();
    assert!(!slow.is_finished());
    answer.notify_one();
    slow.await.unwrap().unwrap();
    let denied = Credential::JoinToken("false".to_owned());
    let denied = all.sign(denied, &csr(), SOURCE).await.unwrap_err();
    assert!(
        matches!(denied, IdentityError::Token(TokenError::Unknown)),
        "{denied}"
    );
}

/// A cluster with one pod, `shop/web-0`, which its token proves.
#[derive(Debug)]
struct OnePod;

const POD: &str = "pod-0b1a4e2c-7d1f-4c55-9a1d-0f5e2c3b4a59";

impl TokenReviews for OnePod {
    fn review<'a>(
        &'a self,
        _token: &'a str,
        audience: &'a str,
    ) -> BoxFuture<'a, Result<Review, String>> {
        let (key, uid) = ("authentication.kubernetes.io", &POD[4..]);
        let user = TokenUser {
            username: "system:serviceaccount:shop:web".to_owned(),
            audiences: vec![audience.to_owned()],
            extra: [("name", "web-0"), ("uid", uid)]
                .map(|(what, value)| (format!("{key}/pod-{what}"), vec![value.to_owned()]))
                .into(),
        };
        Box::pin(std::future::ready(Ok(Review::Authenticated(user))))
    }

    fn pod<'a>(
        &'a self,
        _namespace: &'a str,
        _name: &'a str,
    ) -> BoxFuture<'a, Result<Option<PodFacts>, String>> {
        let pod = PodFacts {
            uid: POD[4..].to_owned(),
            service_account: "web".to_owned(),
            containers: vec!["weft-proxy".to_owned()],
            ..PodFacts::default()
        };
        Box::pin(std::future::ready(Ok(Some(pod))))
    }
}

#[tokio::test]
async fn of_a_pod_nothing_is_stored_but_its_revocation() {
    let bed = Bed::new();
    let reopen = || {
        let attestors = with_cluster(Arc::new(OnePod));
        open_with(&bed.store, &bed.authority, &bed.clock, attestors)
    };
    let token = || Credential::ServiceAccountToken("token".to_owned());
    let all = reopen();
    let signed = all.sign(token(), &csr(), SOURCE).await.unwrap();
    assert_eq!(signed.instance, POD);
    assert_eq!(
        signed.identity.to_string(),
        "spiffe://weft.test/ns/shop/sa/web"
    );
    assert_eq!(signed.instance_key, None);
    assert_eq!(bed.on_record(), [0, 0, 0]);
    let workload = all.workload_of(POD).unwrap();
    assert_eq!(workload.to_string(), "shop/web-0");
    // Each certificate needs the token: the one that is valid does not do.
    let peer = crate::peer::PeerIdentity {
        identity: signed.identity.clone(),
        instance: POD.into(),
        not_after: signed.leaf.not_after,
    };
    let request = csr();
    let shown = all.sign(Credential::Certificate(peer), &request, SOURCE);
    let error = shown.await.unwrap_err();
    assert!(
        matches!(error, IdentityError::Token(TokenError::ShowAgain)),
        "{error}"
    );
    // A process that begins anew knows nothing of it, and still can revoke it.
    let all = reopen();
    assert_eq!(all.workload_of(POD), None);
    all.revoke(POD).unwrap().await.unwrap();
    assert_eq!(bed.on_record(), [0, 1, 0]);
    assert!(reopen().bundle().revoked_instances.contains(POD));
    for all in [all, reopen()] {
        let error = all.sign(token(), &csr(), SOURCE).await.unwrap_err();
        assert!(
            matches!(error, IdentityError::Token(TokenError::Revoked(_))),
            "{error}"
        );
    }
    // Nobody has a certificate of it any more; the pod may still run, and gets none.
    bed.clock.pass(LEAF_TTL_MAX * 2);
    let all = reopen();
    all.records().clear(bed.clock.unix_seconds(), 100);
    assert!(all.bundle().revoked_instances.is_empty());
    assert!(all.sign(token(), &csr(), SOURCE).await.is_err());
}

#[tokio::test]
async fn the_token_of_a_service_account_needs_a_cluster() {
    let bed = Bed::new();
    let token = Credential::ServiceAccountToken("token".to_owned());
    let error = bed.all.sign(token, &csr(), SOURCE).await.unwrap_err();
    assert!(matches!(error, IdentityError::NoCluster), "{error}");
}
