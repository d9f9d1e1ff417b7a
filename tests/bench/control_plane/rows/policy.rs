//! One policy change in worlds of different size, through the admin API, until the sidecar that
//! subscribes to it has it. The store is in memory where that is possible: the disk is not measured.

use std::time::{Duration, Instant};

use super::in_memory;
use crate::enrolment::enrol;
use crate::fleet::{Fleet, histogram};
use crate::options::Options;
use crate::program::{ControlPlane, cpu_of};
use crate::stock::ENDPOINTS_EACH;
use crate::table::{Row, mebi, micros, span};
use crate::world::{World, policy};

/// What is to be reached, from the request until the sidecar has taken it, microseconds.
const TARGET_MICROS: u64 = 2_000;
/// How much longer it may take in the larger world.
const TARGET_FACTOR: f64 = 2.0;
/// The service that changes.
const CHANGED: usize = 0;
/// Between changes: one that comes at the heels of another waits for its turn.
const PAUSE: Duration = Duration::from_millis(40);
const LIMIT: Duration = Duration::from_secs(30);

/// Changes the policy of one service again and again; with the row, the median in microseconds.
pub(super) async fn run(options: &Options, services: usize) -> (Row, u64) {
    let rounds = options.rounds;
    let dir = in_memory();
    // The world has as many services; one sidecar looks at it.
    let world = World {
        services,
        proxies: 1,
    };
    let (control_plane, [started_in, commit]) =
        ControlPlane::stocked(&options.program, dir.path(), world).await;
    let admin = control_plane.admin();
    let fleet = Fleet::new(
        world,
        control_plane.port(),
        &enrol(&control_plane, world).await,
    );
    fleet.connect().await;
    let mut answers = Vec::new();
    let before = (control_plane.cpu(), cpu_of("self"));
    for round in 0..rounds {
        tokio::time::sleep(PAUSE).await;
        fleet.expect(CHANGED, &[0]);
        let began = Instant::now();
        let applied = admin.apply(&[policy(CHANGED, round + 1)]).await;
        applied.expect("a policy is applied");
        answers.push(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
        assert_eq!(fleet.all_heard(LIMIT).await, 0, "nothing was pushed");
    }
    let times = fleet.take_lags();
    let median = times.value_at_quantile(0.5);
    let each = |time: Duration| micros(time.as_micros() as u64 / rounds as u64);
    let row = Row {
        what: format!(
            "one policy change at a time, {services} services with a policy each, {} endpoints, \
             store in memory",
            services * ENDPOINTS_EACH
        ),
        target: format!(
            "≤ {} until the sidecar has taken it, beside the store",
            micros(TARGET_MICROS)
        ),
        found: format!(
            "{}, of which the store takes {}; answered after {}; started in {}",
            micros(median),
            span(commit),
            micros(histogram(&answers).value_at_quantile(0.5)),
            span(started_in)
        ),
        reached: Some(median.saturating_sub(commit.as_micros() as u64) <= TARGET_MICROS),
        cpu: each(control_plane.cpu() - before.0),
        own_cpu: each(cpu_of("self") - before.1),
        memory: mebi(control_plane.pss_kib()),
        ..Row::default()
    };
    (row.percentiles(&times), median)
}

/// Whether the larger world takes about as long as the smaller one: their medians, microseconds.
pub(super) fn compare(small: u64, large: u64) -> Row {
    let factor = large as f64 / small.max(1) as f64;
    Row {
        what: "the same, larger ÷ smaller world".to_owned(),
        target: format!("≤ {TARGET_FACTOR} ×"),
        found: format!("{factor:.1} ×"),
        reached: Some(factor <= TARGET_FACTOR),
        ..Row::default()
    }
}
