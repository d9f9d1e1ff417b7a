//! A start with everything in the store.

use std::time::Duration;

use super::on_disk;
use crate::options::Options;
use crate::program::ControlPlane;
use crate::stock::ENDPOINTS_EACH;
use crate::table::{Row, mebi, span};
use crate::world::World;

const TARGET: Duration = Duration::from_secs(10);

/// From the start of the process until it answers and accepts sidecars.
pub(super) async fn run(options: &Options) -> Row {
    let dir = on_disk();
    let world = World {
        services: options.worlds[1],
        proxies: 0,
    };
    let (control_plane, [took, _commit]) =
        ControlPlane::stocked(&options.program, dir.path(), world).await;
    Row {
        what: format!(
            "start with {} services, a policy each, and {} endpoints in the store; page cache warm",
            world.services,
            world.services * ENDPOINTS_EACH
        ),
        target: format!("≤ {}", span(TARGET)),
        found: span(took),
        reached: Some(took <= TARGET),
        cpu: span(control_plane.cpu()),
        memory: format!(
            "{} (RSS {})",
            mebi(control_plane.pss_kib()),
            mebi(control_plane.rss_kib())
        ),
        ..Row::default()
    }
}
