//! Shares of limits that hold for all sidecars of a service together: says what this one uses and is
//! asked for, and takes what the control plane gives. Without it, what was given last holds for a
//! while ([`weft_core::rate::lease::Lapse`]).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use weft_core::rate::lease::{Grant, Report};
use weft_proto::ratelimit::rate_limits_client::RateLimitsClient;
use weft_proto::ratelimit::{Grants, Reports};

use crate::control_plane::{Backoff, Line, Lines, opened};
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
        let ended = stream(line, &mut lines, &mesh).await;
        mesh.leases_in_touch(false);
        match ended {
            Ok(()) => backoff.reset(),
            Err(reason) => {
                tracing::info!(
                    reason,
                    "no leases of rate limits: the last ones hold for a while"
                );
            }
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
    /// Says what is held and what is used; leases come on this stream from now on.
    async fn open(line: Line, mesh: &Mesh) -> Result<Self, String> {
        let (told, outgoing) = mpsc::channel(4);
        mesh.begin_leases();
        let _room = told.try_send(reports(&mesh.rate_reports(true)));
        let mut client = RateLimitsClient::new(line);
        let grants = opened(client.lease(ReceiverStream::new(outgoing))).await;
        let grants = grants.map_err(|status| status.message().to_owned())?;
        mesh.leases_in_touch(true);
        Ok(Self {
            told,
            grants: grants.into_inner(),
        })
    }
}

/// Leases to the end of their stream, over more than one connection where that is renewed; `Ok`
/// when there was a stream, or there are no such limits any more.
async fn stream(line: Line, lines: &mut Lines, mesh: &Mesh) -> Result<(), String> {
    let mut changes = mesh.changes();
    let mut known = mesh.shared_rates();
    let mut stream = Stream::open(line, mesh).await?;
    let mut tick = interval(REPORT_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut quiet = 0;
    loop {
        let report = tokio::select! {
            message = stream.grants.next() => {
                let Some(Ok(message)) = message else { return Ok(()) };
                for grant in message.grants {
                    match Grant::try_from(grant) {
                        Ok(grant) => mesh.take_lease(grant),
                        Err(rejection) => tracing::error!(%rejection, "lease rejected"),
                    }
                }
                mesh.rate_reports(false)
            }
            line = lines.next() => {
                stream = Stream::open(line, mesh).await?;
                continue;
            }
            _ = tick.tick() => {
                let reports = mesh.rate_reports(true);
                let idle = |report: &Report| report.demand.as_ref().is_none_or(|d| d.base == 0);
                quiet = if reports.iter().all(idle) { quiet + 1 } else { 0 };
                if quiet > QUIET_AFTER {
                    continue;
                }
                reports
            }
            Ok(()) = changes.changed() => {
                let now = mesh.shared_rates();
                if now == known {
                    continue;
                }
                if now.is_empty() {
                    return Ok(());
                }
                known = now;
                mesh.rate_reports(false)
            }
        };
        if stream.told.send(reports(&report)).await.is_err() {
            return Ok(());
        }
    }
}

fn reports(reports: &[Report]) -> Reports {
    Reports {
        reports: reports.iter().map(Into::into).collect(),
    }
}
