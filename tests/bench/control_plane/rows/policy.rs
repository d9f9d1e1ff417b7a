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

/// What is to be reached, from the request to the sidecar's acknowledgment, microseconds.
const TARGET_MICROS: u64 = 2_000;
/// How much longer it may take in the larger world.
const TARGET_FACTOR: f64 = 2.0;
/// The service that changes.
const CHANGED: usize = 0;
/// Between changes: one that comes at the heels of another waits for its turn.
const PAUSE: Duration = Duration::from_millis(40);
const LIMIT: Duration = Duration::from_secs(30);

/// Changes the policy of one service again and again.
pub(super) async fn run(options: &Options, services: usize) -> Row {
    let rounds = options.rounds;
    let dir = in_memory();
    // The world has as many services; one sidecar looks at it.
    let world = World {
        services,
        proxies: 1,
    };
    let (control_plane, started_in) =
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
        fleet.expect(CHANGED, &[0]);
        let began = Instant::now();
        let applied = admin.apply(&[policy(CHANGED, round)]).await;
        applied.expect("a policy is applied");
        answers.push(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
        assert_eq!(fleet.all_heard(LIMIT).await, 0, "nothing was pushed");
        tokio::time::sleep(PAUSE).await;
    }
    let times = fleet.take_lags();
    let median = times.value_at_quantile(0.5);
    let each = |time: Duration| micros(time.as_micros() as u64 / rounds as u64);
    Row {
        what: format!(
            "one policy change, {services} services, {} endpoints, store in memory",
            services * ENDPOINTS_EACH
        ),
        target: format!(
            "≤ {} to the sidecar's acknowledgment",
            micros(TARGET_MICROS)
        ),
        found: format!(
            "{}; answered after {}; started in {}",
            micros(median),
            micros(histogram(&answers).value_at_quantile(0.5)),
            span(started_in)
        ),
        reached: Some(median <= TARGET_MICROS),
        cpu: each(control_plane.cpu() - before.0),
        own_cpu: each(cpu_of("self") - before.1),
        memory: mebi(control_plane.pss_kib()),
        ..Row::default()
    }
    .percentiles(&times)
}

/// Whether the larger world takes about as long as the smaller one; their rows begin at `first`.
pub(super) fn compare(rows: &mut Vec<Row>, first: usize) {
    let Some([small, large]) = rows.get(first..) else {
        return;
    };
    let number = |row: &Row| -> Option<f64> {
        let (value, unit) = row.p50.split_once(' ')?;
        let factor = match unit {
            "µs" => 1.0,
            "ms" => 1e3,
            _ => 1e6,
        };
        Some(value.parse::<f64>().ok()? * factor)
    };
    let (Some(small), Some(large)) = (number(small), number(large)) else {
        return;
    };
    let factor = large / small.max(1.0);
    rows.push(Row {
        what: "the same, larger ÷ smaller world".to_owned(),
        target: format!("≤ {TARGET_FACTOR} ×"),
        found: format!("{factor:.1} ×"),
        reached: Some(factor <= TARGET_FACTOR),
        ..Row::default()
    });
}
