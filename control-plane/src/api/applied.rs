//! Which sidecars run with a revision of resources, and which reject it.

use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use tokio::time::{Instant, sleep, timeout_at};

use super::Admin;
use super::refusal::Answer;
use super::types::{AppliedQuery, Progress, RefusedResource, RejectedResource};
use super::views::name_of;
use crate::publish;
use crate::store::Revision;

/// A request waits no longer than this for sidecars, whatever it asks for.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(20);
/// Requests that wait for sidecars at the same time; others are answered at once.
pub(super) const WAITING_MAX: usize = 16;
/// While sidecars answer one after the other, it is counted again after this time.
const COUNT_EVERY: Duration = Duration::from_millis(20);

/// How far a revision has come; waits until every sidecar that it concerns has applied it or one
/// has rejected it, as long as is asked for.
pub(super) async fn applied(
    State(admin): State<Admin>,
    Query(query): Query<AppliedQuery>,
) -> Answer<Progress> {
    let revision = query.revision;
    let wait = Duration::from_millis(query.wait_millis.unwrap_or_default());
    let end = Instant::now() + wait.min(WAIT_MAX);
    let place = match wait {
        Duration::ZERO => None,
        _ => admin.waiting.try_acquire().ok(),
    };
    let mut moved = admin.backend.proxies.watch();
    let (progress, refused) = loop {
        moved.borrow_and_update();
        let mut progress = admin.backend.proxies.progress(revision);
        // After the progress: whoever is said to have seen it has said by then what of it it refuses.
        let refused = refused(&admin, revision, &mut progress);
        let is_settled = !refused.is_empty() || progress.is_settled(revision);
        if place.is_none() || is_settled || Instant::now() >= end {
            break (progress, refused);
        }
        // Whether it changed or the time is over: it is counted once more.
        let _late = timeout_at(end, moved.changed()).await;
        sleep(COUNT_EVERY).await;
    };
    let name = |peer: &_| name_of(&admin.backend, peer);
    let rejected = progress.rejected.into_iter();
    Ok(Json(Progress {
        compiled_revision: progress.published,
        known: progress.is_known,
        applied: progress.applied.iter().map(name).collect(),
        waiting: { progress.waiting.iter() }
            .map(|waiting| name(&waiting.peer))
            .collect(),
        unknown: progress.unknown,
        rejected: rejected
            .map(|rejected| RejectedResource {
                workload: name(&rejected.peer),
                resource: rejected.resource,
                reason: rejected.reason,
            })
            .collect(),
        refused,
    }))
}

/// What other control planes refuse of a revision. One that refuses more than it tells of is unknown.
fn refused(
    admin: &Admin,
    revision: Revision,
    progress: &mut publish::Progress,
) -> Vec<RefusedResource> {
    let mut refused = Vec::new();
    for (key, generation) in admin.backend.store.changed_in(revision) {
        let Some(by) = admin.backend.proxies.refused(&key, generation) else {
            continue;
        };
        match by.why {
            Some(reason) => refused.push(RefusedResource {
                control_plane: by.control_plane,
                resource: key.to_string(),
                reason,
            }),
            None => progress.unknown.push(format!(
                "{} (it refuses more documents of {} than it tells of)",
                by.control_plane, key.namespace
            )),
        }
    }
    progress.unknown.dedup();
    refused
}
