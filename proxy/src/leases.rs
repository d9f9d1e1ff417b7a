//! Shares of limits that hold for all sidecars of a service together: says what this one uses and is
//! asked for, and takes what the control plane gives. Without it, what was given last holds for a
//! while ([`weft_core::rate::lease::Lapse`]).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use weft_core::rate::lease::{Grant, Report};
use weft_proto::ratelimit::Reports;
use weft_proto::ratelimit::rate_limits_client::RateLimitsClient;

use crate::control_plane::{self, Trusting};
use crate::identity::Manager;
use crate::mesh::Mesh;
use crate::tls::Trust;

/// How often demand is told.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// After so many reports of no demand at all, nothing is told until there is some.
const QUIET_AFTER: u32 = 5;
/// Reconnecting: first wait, doubled up to the cap.
const RECONNECT_FIRST: Duration = Duration::from_millis(100);
const RECONNECT_MAX: Duration = Duration::from_secs(3);

/// Runs until the task is dropped. There is a stream only while there are such limits.
pub async fn run(address: String, mesh: Arc<Mesh>, identity: Arc<Manager>) {
    let mut changes = mesh.changes();
    let mut wait = RECONNECT_FIRST;
    loop {
        changes.mark_unchanged();
        if mesh.shared_rates().is_empty() {
            if changes.changed().await.is_err() {
                return;
            }
            continue;
        }
        let ended = stream(&address, &mesh, &identity).await;
        mesh.leases_in_touch(false);
        match ended {
            Ok(()) => wait = RECONNECT_FIRST,
            Err(reason) => {
                tracing::info!(
                    reason,
                    "no leases of rate limits: the last ones hold for a while"
                );
            }
        }
        sleep(wait.mul_f64(0.75 + fastrand::f64() * 0.5)).await;
        wait = (wait * 2).min(RECONNECT_MAX);
    }
}

/// One stream to its end; `Ok` when it had begun, or is not needed any more.
async fn stream(address: &str, mesh: &Mesh, identity: &Manager) -> Result<(), String> {
    let identity = identity.subscribe().borrow().clone();
    let identity = identity.ok_or("no certificate yet")?;
    let trust = Trust::new(&identity.bundle).map_err(|error| error.to_string())?;
    let trusting = Trusting::Mutual(Arc::new(trust), Arc::clone(&identity.credentials));
    let channel = control_plane::connect(address, &trusting).await;
    let channel = channel.map_err(|error| error.to_string())?;
    let (told, outgoing) = mpsc::channel(4);
    mesh.begin_leases();
    let mut changes = mesh.changes();
    let mut known = mesh.shared_rates();
    let _room = told.try_send(reports(&mesh.rate_reports(true)));
    let mut client = RateLimitsClient::new(channel);
    let opened = client.lease(ReceiverStream::new(outgoing)).await;
    let mut grants = opened
        .map_err(|status| status.message().to_owned())?
        .into_inner();
    mesh.leases_in_touch(true);
    let mut tick = interval(REPORT_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut quiet = 0;
    loop {
        let report = tokio::select! {
            message = grants.next() => {
                let Some(Ok(message)) = message else { return Ok(()) };
                for grant in message.grants {
                    match Grant::try_from(grant) {
                        Ok(grant) => mesh.take_lease(grant),
                        Err(rejection) => tracing::error!(%rejection, "lease rejected"),
                    }
                }
                mesh.rate_reports(false)
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
        if told.send(reports(&report)).await.is_err() {
            return Ok(());
        }
    }
}

fn reports(reports: &[Report]) -> Reports {
    Reports {
        reports: reports.iter().map(Into::into).collect(),
    }
}
