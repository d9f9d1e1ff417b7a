//! Thousands of connected sidecars: what they cost idle, how fast changes reach them, what a restart
//! does. One control plane for all of these rows, its store on the disk.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{on_disk, signatures};
use crate::enrolment::enrol;
use crate::fleet::{Fleet, Received, histogram};
use crate::options::Options;
use crate::program::{ControlPlane, cpu_of};
use crate::table::{Row, mebi, micros, size, span};
use crate::world::{GROUP, OF_ALL, OF_GROUP, World, policy};

/// Their names.
pub(super) const ROWS: [&str; 7] = [
    "idle",
    "renew",
    "change-100",
    "flip-100",
    "change-all",
    "churn",
    "reconnect",
];

/// Before anything is measured at rest.
const REST: Duration = Duration::from_secs(12);
/// For a change to reach everybody.
const LIMIT: Duration = Duration::from_secs(30);
/// Between changes: each begins when the one before is done with.
const PAUSE: Duration = Duration::from_millis(40);
/// What is to be reached.
const IDLE_KIB: u64 = 100;
const LAST_MICROS: u64 = 50_000;
const PUSH_MICROS: f64 = 40.0;
const BEHIND_MICROS: u64 = 1_000_000;
const RECONNECT: Duration = Duration::from_secs(10);
/// Changes of endpoints per second.
const CHURN: u32 = 100;
/// Memory may grow by so much, of a hundred, after the first quarter, and count as flat.
const FLAT_PERCENT: u64 = 2;

/// A control plane with its crowd.
struct Crowd {
    control_plane: ControlPlane,
    world: World,
    fleet: Fleet,
}

/// What was used before something.
struct Before {
    at: Instant,
    cpu: Duration,
    own_cpu: Duration,
    received: Received,
}

/// What something took.
struct Took {
    wall: Duration,
    cpu: Duration,
    own_cpu: Duration,
    received: Received,
}

impl Crowd {
    fn before(&self) -> Before {
        Before {
            at: Instant::now(),
            cpu: self.control_plane.cpu(),
            own_cpu: cpu_of("self"),
            received: self.fleet.received(),
        }
    }

    fn since(&self, before: &Before) -> Took {
        Took {
            wall: before.at.elapsed(),
            cpu: self.control_plane.cpu().saturating_sub(before.cpu),
            own_cpu: cpu_of("self") - before.own_cpu,
            received: self.fleet.received() - before.received,
        }
    }

    async fn apply_policy(&self, service: usize, value: usize) {
        let documents = [policy(service, value)];
        let applied = self.control_plane.admin().apply(&documents).await;
        applied.expect("a policy is applied");
    }

    fn memory(&self) -> String {
        format!(
            "{} (RSS {})",
            mebi(self.control_plane.pss_kib()),
            mebi(self.control_plane.rss_kib())
        )
    }

    /// A row with what it took; processor time for each of so many.
    fn row(&self, took: &Took, each: u64, of: &str) -> Row {
        let per = |time: Duration| {
            let micros = time.as_micros() as f64 / each.max(1) as f64;
            format!("{micros:.1} µs per {of}")
        };
        Row {
            cpu: per(took.cpu),
            own_cpu: per(took.own_cpu),
            memory: self.memory(),
            bytes: size(took.received.bytes),
            ..Row::default()
        }
    }
}

/// Measures the rows that are wanted, in an order in which none spoils the next.
pub(super) async fn run(options: &Options) -> Vec<Row> {
    let dir = on_disk();
    let control_plane = ControlPlane::start(&options.program, dir.path()).await;
    let world = World {
        services: options.services,
        proxies: options.proxies,
    };
    let documents = world.documents();
    let applied = control_plane.admin().apply(&documents).await;
    applied.expect("services are applied");
    let began = Instant::now();
    let configs = enrol(&control_plane, world).await;
    eprintln!("{} enrolled in {}", configs.len(), span(began.elapsed()));
    let alone = control_plane.pss_kib();
    let fleet = Fleet::new(world, control_plane.port(), &configs);
    let mut crowd = Crowd {
        control_plane,
        world,
        fleet,
    };
    let before = crowd.before();
    let settled = crowd.fleet.connect().await;
    eprintln!(
        "connected in {}: {:?}",
        span(settled),
        crowd.fleet.failures()
    );
    let mut rows = Vec::new();
    let connected = crowd.since(&before);
    if options.wants("idle") {
        rows.push(idle(&crowd, alone, settled, &connected).await);
    }
    for (name, change) in [
        ("change-100", Change::Policy),
        ("flip-100", Change::Readiness),
    ] {
        if options.wants(name) {
            rows.push(hundred(&crowd, change, options.rounds).await);
        }
    }
    if options.wants("change-all") {
        rows.push(all(&crowd, options.rounds.div_ceil(5)).await);
    }
    if options.wants("churn") {
        rows.push(churn(&crowd, options.churn).await);
    }
    if options.wants("renew") {
        rows.push(renew(&crowd).await);
    }
    if options.wants("reconnect") {
        rows.push(reconnect(&mut crowd).await);
    }
    eprintln!("failures: {:?}", crowd.fleet.reasons());
    rows
}

async fn idle(crowd: &Crowd, alone: u64, settled: Duration, connected: &Took) -> Row {
    sleep(REST).await;
    let before = crowd.before();
    sleep(REST).await;
    let took = crowd.since(&before);
    let proxies = crowd.world.proxies as u64;
    let each = crowd.control_plane.pss_kib().saturating_sub(alone) / proxies;
    let rss = crowd.control_plane.rss_kib();
    let share = took.cpu.as_secs_f64() / took.wall.as_secs_f64() * 100.0;
    Row {
        what: format!(
            "{proxies} idle proxies, {} services; first connected in {}",
            crowd.world.services,
            span(settled)
        ),
        target: format!("≤ {IDLE_KIB} KiB per proxy"),
        found: format!("{each} KiB"),
        reached: Some(each <= IDLE_KIB),
        cpu: format!("{share:.1} % of a core"),
        own_cpu: format!(
            "{:.1} %",
            took.own_cpu.as_secs_f64() / took.wall.as_secs_f64() * 100.0
        ),
        memory: format!(
            "{} → {} (RSS {})",
            mebi(alone),
            mebi(crowd.control_plane.pss_kib()),
            mebi(rss)
        ),
        bytes: format!("{} to connect", size(connected.received.bytes)),
        ..Row::default()
    }
}

/// What changes for a hundred.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Policy,
    Readiness,
}

/// A change that concerns the callers of one service.
async fn hundred(crowd: &Crowd, change: Change, rounds: usize) -> Row {
    let callers = crowd.world.callers_of(OF_GROUP);
    let mut last = Vec::new();
    let before = crowd.before();
    for round in 0..rounds {
        sleep(PAUSE).await;
        crowd.fleet.expect(OF_GROUP, &callers);
        match change {
            Change::Policy => {
                crowd.apply_policy(OF_GROUP, round).await;
            }
            Change::Readiness => {
                let instance = OF_GROUP;
                let ready = crowd.fleet.is_ready(instance);
                crowd.fleet.set_ready(instance, !ready);
            }
        }
        let missing = crowd.fleet.all_heard(LIMIT).await;
        assert_eq!(
            missing,
            0,
            "of a change was not heard: {:?}",
            crowd.fleet.reasons()
        );
        last.push(crowd.fleet.take_longest());
    }
    let took = crowd.since(&before);
    let last = histogram(&last);
    let p99 = last.value_at_quantile(0.99);
    let what = match change {
        Change::Policy => "a policy change",
        Change::Readiness => "a readiness flip",
    };
    Row {
        what: format!(
            "{what} that concerns {} of {} proxies, {rounds} times: last one has taken it",
            callers.len().min(GROUP),
            crowd.world.proxies
        ),
        target: format!("p99 ≤ {}", micros(LAST_MICROS)),
        found: micros(p99),
        reached: Some(p99 <= LAST_MICROS),
        ..crowd.row(&took, (rounds * callers.len()) as u64, "push")
    }
    .percentiles(&last)
}

/// A change that concerns everybody.
async fn all(crowd: &Crowd, rounds: usize) -> Row {
    let callers = crowd.world.callers_of(OF_ALL);
    let mut last = Vec::new();
    let before = crowd.before();
    for round in 0..rounds {
        crowd.fleet.expect(OF_ALL, &callers);
        crowd.apply_policy(OF_ALL, round).await;
        let missing = crowd.fleet.all_heard(LIMIT).await;
        assert_eq!(
            missing,
            0,
            "of a change was not heard: {:?}",
            crowd.fleet.reasons()
        );
        last.push(crowd.fleet.take_longest());
    }
    let took = crowd.since(&before);
    let last = histogram(&last);
    let pushes = (rounds * callers.len()) as u64;
    let each = took.cpu.as_micros() as f64 / pushes as f64;
    Row {
        what: format!(
            "a policy change that concerns all {}, {rounds} times: last one has taken it",
            callers.len()
        ),
        target: format!("≤ {PUSH_MICROS:.0} µs CPU per push"),
        found: format!("{each:.1} µs"),
        reached: Some(each <= PUSH_MICROS),
        ..crowd.row(&took, pushes, "push")
    }
    .percentiles(&last)
}

/// Endpoints that become ready and unready, service after service.
async fn churn(crowd: &Crowd, time: Duration) -> Row {
    let changing = crowd.world.services.min(crowd.world.proxies);
    let callers: Vec<Vec<usize>> = (0..changing)
        .map(|service| crowd.world.callers_of(service))
        .collect();
    let at_rest = crowd.control_plane.pss_kib();
    // With buffers that have been used once, and the store's cache.
    let mut warm = at_rest;
    let mut peak = at_rest;
    let before = crowd.before();
    let mut ticks = interval(Duration::from_secs(1) / CHURN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut changes = 0_usize;
    while before.at.elapsed() < time {
        ticks.tick().await;
        let service = changes % changing;
        // The instance with the service's number serves it.
        crowd.fleet.expect(service, &callers[service]);
        let ready = crowd.fleet.is_ready(service);
        crowd.fleet.set_ready(service, !ready);
        changes += 1;
        if changes.is_multiple_of(10 * CHURN as usize) {
            let found = crowd.control_plane.pss_kib();
            peak = peak.max(found);
            if before.at.elapsed() < time / 4 {
                warm = found;
            }
        }
    }
    let missing = crowd.fleet.all_heard(LIMIT).await;
    let took = crowd.since(&before);
    let after = crowd.control_plane.pss_kib();
    let lags: Histogram<u64> = crowd.fleet.take_lags();
    let flat = after <= warm + warm * FLAT_PERCENT / 100;
    let reached = missing == 0 && flat && lags.max() <= BEHIND_MICROS;
    Row {
        what: format!(
            "{:.0} readiness flips a second for {} s",
            changes as f64 / took.wall.as_secs_f64(),
            time.as_secs()
        ),
        target: format!(
            "memory flat, nobody more than {} behind",
            micros(BEHIND_MICROS)
        ),
        found: format!("{} behind at most, {missing} never", micros(lags.max())),
        reached: Some(reached),
        memory: format!(
            "{} at rest, {} after the first quarter, {} at the end, peak {}",
            mebi(at_rest),
            mebi(warm),
            mebi(after),
            mebi(peak)
        ),
        cpu: format!(
            "{:.1} µs per push, {:.1} % of a core",
            took.cpu.as_micros() as f64 / took.received.pushes.max(1) as f64,
            took.cpu.as_secs_f64() / took.wall.as_secs_f64() * 100.0
        ),
        ..crowd.row(&took, took.received.pushes, "push")
    }
    .percentiles(&lags)
}

/// A new certificate for everybody.
async fn renew(crowd: &Crowd) -> Row {
    let refused = crowd.fleet.failures().1;
    let before = crowd.before();
    let time = crowd.fleet.renew().await;
    let took = crowd.since(&before);
    let proxies = crowd.world.proxies as u64;
    let per_second = proxies as f64 / took.cpu.as_secs_f64().max(0.01);
    Row {
        what: format!("all {proxies} renew their certificates at once"),
        target: format!("≥ {:.0}/s of processor time", signatures::TARGET),
        found: format!(
            "{per_second:.0}/s of processor time; done after {}, {} told to come later",
            span(time),
            crowd.fleet.failures().1 - refused
        ),
        reached: Some(per_second >= signatures::TARGET),
        ..crowd.row(&took, proxies, "certificate")
    }
}

/// Everybody at once, after a restart.
async fn reconnect(crowd: &mut Crowd) -> Row {
    let before_memory = crowd.control_plane.pss_kib();
    let killed = Instant::now();
    crowd.control_plane.kill_and_start().await;
    let start = killed.elapsed();
    let started = Instant::now();
    let before = Before {
        cpu: crowd.control_plane.cpu(),
        ..crowd.before()
    };
    let failures = crowd.fleet.failures();
    let settled = crowd.fleet.connect().await;
    let took = crowd.since(&before);
    let refused = crowd.fleet.failures().1 - failures.1;
    // Past the grace in which those who did not come back are expired.
    sleep(Duration::from_secs(11).saturating_sub(started.elapsed()) + Duration::from_secs(2)).await;
    let workloads = crowd.control_plane.admin().get("/v1/workloads").await;
    let workloads = workloads.expect("a list of workloads");
    let items = workloads.get("items").unwrap_or(&workloads);
    let there = items.as_array().map_or(0, Vec::len);
    let expired = crowd.world.proxies.saturating_sub(there);
    let proxies = crowd.world.proxies as u64;
    Row {
        what: format!("all {proxies} reconnect after SIGKILL and a start"),
        target: format!("settled in ≤ {}, nobody expired", span(RECONNECT)),
        found: format!(
            "{} after a start in {}, {expired} expired, {refused} connections refused, {} resources sent",
            span(settled),
            span(start),
            took.received.resources
        ),
        reached: Some(start + settled <= RECONNECT && expired == 0),
        memory: format!(
            "{} → {}",
            mebi(before_memory),
            mebi(crowd.control_plane.pss_kib())
        ),
        bytes: format!(
            "{} ({} with TLS and handshakes)",
            size(took.received.bytes),
            size(took.received.wire)
        ),
        ..crowd.row(&took, proxies, "proxy")
    }
}
