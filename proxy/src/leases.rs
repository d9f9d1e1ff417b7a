//! Shares of limits that hold for all sidecars of a service together: says what this one uses and is
//! asked for, and takes what the control plane gives. Without it, what was given last holds for a
//! while ([`weft_core::rate::lease::Lapse`]).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use weft_core::rate::lease::{Grant, Report};
use weft_proto::ratelimit::rate_limits_client::RateLimitsClient;
use weft_proto::ratelimit::{Grants, Reports};

use crate::control_plane::{Backoff, Line, Lines, Moves, described, end_status, ended, opened};
use crate::mesh::Mesh;

/// How often demand is told.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// After so many reports of no demand at all, nothing is told until there is some.
const QUIET_AFTER: u32 = 5;

/// Runs until the task is dropped. There is a stream only while there are such limits.
pub async fn run(mut lines: Lines, mesh: Arc<Mesh>) {
    let mut changes = mesh.changes();
    let mut backoff = Backoff::new();
    loop {
        changes.mark_unchanged();
        if mesh.shared_rates().is_empty() {
            if changes.changed().await.is_err() {
                return;
            }
            continue;
        }
        let line = lines.current().await;
        let end = match Stream::open(line).await {
            Ok(stream) => {
                let since = tokio::time::Instant::now();
                let end = session(stream, &mut lines, &mesh).await;
                backoff.stood(since.elapsed());
                end
            }
            Err(status) => Some(status),
        };
        mesh.leases_in_touch(false);
        if let Some(status) = end {
            let reason = described(&status);
            let text = "stream of leases ended: the last ones hold for a while";
            tracing::info!(reason, "{text}");
        }
        lines.pause(backoff.next(fastrand::f64())).await;
    }
}

/// The stream on one connection.
struct Stream {
    told: mpsc::Sender<Reports>,
    grants: Streaming<Grants>,
}

impl Stream {
    async fn open(line: Line) -> Result<Self, Status> {
        let (told, outgoing) = mpsc::channel(4);
        let mut client = RateLimitsClient::new(line);
        let grants = opened(client.lease(ReceiverStream::new(outgoing))).await?;
        Ok(Self {
            told,
            grants: grants.into_inner(),
        })
    }
}

/// Leases come on a new stream from now on: what is held and what is used, which is to be said on it.
/// Before its first message nobody may have heard that who keeps the books: the control plane at the other
/// end does not, or does not know yet that it does not reach who does.
fn begin(mesh: &Mesh) -> Vec<Report> {
    mesh.begin_leases();
    mesh.leases_in_touch(false);
    mesh.rate_reports(true)
}

/// Leases to the end of their stream, over more than one connection where that is renewed. Why it
/// ended; `None` when there are no such limits any more.
async fn session(mut stream: Stream, lines: &mut Lines, mesh: &Mesh) -> Option<Status> {
    let mut changes = mesh.changes();
    let mut known = mesh.shared_rates();
    let mut moves = Moves::new("leases", lines);
    let mut tick = interval(REPORT_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut quiet = 0;
    let mut report = begin(mesh);
    loop {
        if stream.told.send(reports(&report)).await.is_err() {
            return Some(end_status(&mut stream.grants).await);
        }
        report = loop {
            tokio::select! {
                message = stream.grants.next() => {
                    let message = match message {
                        Some(Ok(message)) => message,
                        Some(Err(status)) => return Some(status),
                        None => return Some(ended()),
                    };
                    mesh.leases_in_touch(true);
                    for grant in message.grants {
                        match Grant::try_from(grant) {
                            Ok(grant) => mesh.take_lease(grant),
                            Err(rejection) => tracing::error!(%rejection, "lease rejected"),
                        }
                    }
                    break mesh.rate_reports(false);
                }
                next = moves.next(Stream::open) => {
                    stream = next;
                    break begin(mesh);
                }
                _ = tick.tick() => {
                    let reports = mesh.rate_reports(true);
                    let idle = |report: &Report| report.demand.as_ref().is_none_or(|d| d.base == 0);
                    quiet = if reports.iter().all(idle) { quiet + 1 } else { 0 };
                    if quiet <= QUIET_AFTER {
                        break reports;
                    }
                }
                Ok(()) = changes.changed() => {
                    let now = mesh.shared_rates();
                    if now.is_empty() {
                        return None;
                    }
                    if now != known {
                        known = now;
                        break mesh.rate_reports(false);
                    }
                }
            }
        };
    }
}

fn reports(reports: &[Report]) -> Reports {
    Reports {
        reports: reports.iter().map(Into::into).collect(),
    }
}
