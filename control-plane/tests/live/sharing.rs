//! A global limit is one limit for the sidecars of all control planes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use weft_core::rate::WHOLE;
use weft_core::rate::lease::{Lapse, Shares as Held};
use weft_proto::ratelimit::rate_limits_client::RateLimitsClient;
use weft_proto::ratelimit::{Demand, Grants, Report, Reports, Rule, Shares};
use weft_proto::replica::replicas_client::ReplicasClient;

use crate::kubernetes::Site;
use crate::support::{ControlPlane, Sidecar};

const POLICY: &str = "apiVersion: weft-mesh.io/v1alpha1
kind: RateLimitPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRef: {kind: Service, name: web}
  scope: global
  rules: [{requests: 100, per: 1s}]
";
/// Nothing here takes longer, unless it is broken: a lease that nobody gave back, and a grace.
const LIMIT: Duration = Duration::from_secs(120);
const REPORT_EVERY: Duration = Duration::from_millis(200);
/// Who begins to keep the books raises nothing for 7 s (`support.rs`). The limit holds if everybody has
/// tried again and said what it uses within that, for which this between two signs of life is enough.
const PROMPT: Duration = Duration::from_secs(3);
/// How often it is begun again where the machine stood still.
const ATTEMPTS: usize = 3;
const NEARLY_ALL: u32 = WHOLE / 10 * 8;

/// What all sidecars use, each by its place: changed under one lock, so that the sum is exact.
#[derive(Debug, Default)]
struct Uses {
    shares: Vec<u32>,
    wants: Vec<u64>,
    /// The largest sum that there ever was.
    most: u64,
    /// The longest time between two signs of life of one of them: reports, or attempts to begin a stream.
    gap: Duration,
    /// Streams that were refused or ended because the books were not reached.
    unreached: usize,
}

type Shared = Arc<Mutex<Uses>>;

impl Uses {
    fn set(&mut self, index: usize, share: u32) {
        self.shares[index] = share;
        let sum = self.shares.iter().map(|share| u64::from(*share)).sum();
        self.most = self.most.max(sum);
    }
}

/// A sidecar that holds one limit as `weft-proxy` does: it says what it uses, takes what it is granted,
/// and uses less when it has been out of touch for long.
struct Holder {
    index: usize,
    sidecar: Sidecar,
    /// The control planes that it tries in turn, the one that it uses first.
    addresses: Vec<SocketAddr>,
    uses: Shared,
    out_of_touch: Option<Instant>,
    alive: Instant,
}

impl Holder {
    /// It has reported, or has tried again.
    fn lives(&mut self) {
        let now = Instant::now();
        let mut uses = self.uses.lock().unwrap();
        uses.gap = uses.gap.max(now - self.alive);
        self.alive = now;
    }

    async fn run(mut self) {
        loop {
            let Err(status) = self.session().await;
            self.lives();
            if status.message().contains("keeps the books") {
                assert_eq!(status.code(), Code::Unavailable, "{status}");
                self.uses.lock().unwrap().unreached += 1;
            } else {
                // Its control plane is not there any more.
                self.addresses.rotate_left(1);
            }
            self.out_of_touch.get_or_insert_with(Instant::now);
            self.lapse();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn lapse(&self) {
        let Some(since) = self.out_of_touch else {
            return;
        };
        let mut uses = self.uses.lock().unwrap();
        let all = u32::try_from(uses.shares.len()).unwrap();
        let held = Held {
            base: uses.shares[self.index],
            ..Held::WHOLE
        };
        let share = held.lapsed(Lapse::after(since.elapsed()), all).base;
        uses.set(self.index, share);
    }

    async fn session(&mut self) -> Result<std::convert::Infallible, Status> {
        self.sidecar.goes_to(self.addresses[0]);
        let channel = self.sidecar.connect().await;
        let channel = channel.map_err(|error| Status::unknown(error.to_string()))?;
        let (told, outgoing) = mpsc::channel(64);
        let mut client = RateLimitsClient::new(channel);
        let mut grants = client
            .lease(ReceiverStream::new(outgoing))
            .await?
            .into_inner();
        self.lapse();
        self.out_of_touch = None;
        let mut version = 0;
        let mut tick = tokio::time::interval(REPORT_EVERY);
        loop {
            let demand = tokio::select! {
                message = grants.message() => {
                    let message = message?.ok_or_else(|| Status::unknown("it has ended"))?;
                    version = self.take(&message).unwrap_or(version);
                    None
                }
                _ = tick.tick() => Some(self.uses.lock().unwrap().wants[self.index]),
            };
            let share = self.uses.lock().unwrap().shares[self.index];
            let report = report(version, share, demand);
            let told = told.send(Reports {
                reports: vec![report],
            });
            told.await.map_err(|_| Status::unknown("it has ended"))?;
            self.lives();
        }
    }

    fn take(&self, message: &Grants) -> Option<u64> {
        let grant = message.grants.last()?;
        let share = grant.shares.as_ref().unwrap().base;
        self.uses.lock().unwrap().set(self.index, share);
        Some(grant.version)
    }
}

fn report(version: u64, share: u32, demand: Option<u64>) -> Report {
    Report {
        rule: Some(Rule {
            namespace: "shop".to_owned(),
            policy: "web".to_owned(),
            rule: 0,
        }),
        version,
        holds: Some(Shares {
            base: share,
            keys: Vec::new(),
        }),
        demand: demand.map(|base| Demand {
            base,
            keys: Vec::new(),
        }),
    }
}

/// All of the demand is at one of them from now on: it gets nearly all of the limit.
async fn moves_to(uses: &Shared, index: usize) {
    let began = Instant::now();
    let count = uses.lock().unwrap().wants.len();
    uses.lock().unwrap().wants = (0..count)
        .map(|n| if n == index { 50 } else { 0 })
        .collect();
    while uses.lock().unwrap().shares[index] < NEARLY_ALL {
        assert!(
            began.elapsed() < LIMIT,
            "{index}: {:?}",
            uses.lock().unwrap()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// All together have never used more than the limit; how often they were told that the books were not
/// reached. Nothing where they have used more, but stood still for so long that this may be.
fn never_too_much(uses: &Shared) -> Option<usize> {
    let uses = uses.lock().unwrap();
    let is_kept = uses.most <= u64::from(WHOLE);
    assert!(is_kept || uses.gap > PROMPT, "{uses:?}");
    is_kept.then_some(uses.unreached)
}

/// Waits until the books are kept by one, and reached by the others; which one that is.
async fn keeper(all: &[&ControlPlane]) -> usize {
    let began = Instant::now();
    loop {
        let mut kept = Vec::new();
        let mut relayed = 0;
        for (n, control_plane) in all.iter().enumerate() {
            let metrics = control_plane.http("/metrics").await;
            let is = |state: &str| {
                let line = format!("weft_control_plane_global_limits{{state=\"{state}\"}} 1");
                metrics.lines().any(|found| found == line)
            };
            relayed += usize::from(is("relayed"));
            if is("kept") {
                kept.push(n);
            }
        }
        if kept.len() == 1 && relayed == all.len() - 1 {
            return kept[0];
        }
        assert!(began.elapsed() < LIMIT, "{kept:?}, {relayed} relay");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_limit_for_the_sidecars_of_all_which_outlives_who_keeps_the_books() {
    for _attempt in 0..ATTEMPTS {
        let Some(site) = Site::start().await else {
            return;
        };
        if let Some(unreached) = keeper_is_killed(&site).await {
            assert!(unreached >= 2, "the books were kept without a break");
            return;
        }
    }
    panic!("the machine has stood still for more than {PROMPT:?} in each of {ATTEMPTS} attempts");
}

/// How often sidecars were told that the books were not reached; nothing where this proves nothing.
async fn keeper_is_killed(site: &Site) -> Option<usize> {
    let [one, two] = site.two().await;
    site.apply(POLICY);
    let mut both = vec![one, two];
    let uses = Shared::default();
    let even = Held::even(4).base;
    *uses.lock().unwrap() = Uses {
        shares: vec![even; 4],
        wants: vec![0; 4],
        ..Uses::default()
    };
    // Two at each.
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..4 {
        let mut addresses: Vec<SocketAddr> = both.iter().map(|one| one.grpc).collect();
        addresses.rotate_left(index % 2);
        tasks.spawn(
            Holder {
                index,
                sidecar: both[index % 2].enrol("shop/web", &[80]).await,
                addresses,
                uses: Arc::clone(&uses),
                out_of_touch: None,
                alive: Instant::now(),
            }
            .run(),
        );
    }
    keeper(&both.iter().collect::<Vec<_>>()).await;
    // From sidecars of both to one of the one, and to one of the other.
    for index in [0, 1, 2] {
        moves_to(&uses, index).await;
    }
    never_too_much(&uses)?;

    // Who keeps the books is killed: its sidecars go to the other one, which keeps them from then on.
    let dies = keeper(&both.iter().collect::<Vec<_>>()).await;
    drop(both.remove(dies).stop());
    moves_to(&uses, 3).await;
    assert_eq!(keeper(&[&both[0]]).await, 0);
    moves_to(&uses, 0).await;
    let unreached = never_too_much(&uses)?;
    assert!(tasks.try_join_next().is_none(), "a sidecar has ended");
    Some(unreached)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_control_plane_relays() {
    let Some(site) = Site::start().await else {
        return;
    };
    let control_plane = site.control_plane().await;
    let sidecar = control_plane.enrol("shop/caller", &[]).await;
    let mut client = ReplicasClient::new(sidecar.connect().await.unwrap());
    let refused = client.relay(tokio_stream::pending()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
}
