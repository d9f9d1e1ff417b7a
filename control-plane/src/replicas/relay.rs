//! Carries what sidecars say of global limits to the control plane that keeps the books of these, and
//! what it grants back. What is said is decided in [`crate::ratelimit`].

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use weft_proto::relays::{read_grants, read_reports, relayed_grants, relayed_reports};
use weft_proto::replica::replicas_client::ReplicasClient;
use weft_proto::replica::{RelayedGrants, RelayedReports};

use super::grpc::HEARTBEAT;
use crate::budget::SEND_TIMEOUT;
use crate::kubernetes::retry::{Backoff, Pauses};
use crate::ratelimit::{Leases, LinkOfRelay, LinkToKeeper, SILENT_AFTER};

/// What sidecars say within this time is relayed together.
const TOGETHER: Duration = Duration::from_millis(100);
/// Pauses between attempts to relay to one that says that it keeps the books.
const TRIED_AGAIN: Pauses = Pauses {
    first: Duration::from_millis(250),
    longest: Duration::from_secs(2),
};

/// Why nothing is relayed.
#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error("{}", .0.message())]
    Call(#[from] Status),
    #[error("what it grants cannot be read: {0}")]
    Grants(#[from] weft_proto::Rejection),
    #[error("nothing heard within {SILENT_AFTER:?}")]
    Silent,
    #[error("it has read nothing for {SILENT_AFTER:?}")]
    Unread,
    #[error("it has ended the stream")]
    Ended,
    #[error("another one keeps the books, too, or keeps them for a later term")]
    Elsewhere,
}

/// Relays to a control plane that says that it keeps the books, again and again, until the task is
/// dropped.
pub(super) async fn relay(leases: Arc<Leases>, name: String, channel: Channel) {
    let mut backoff = Backoff::new(TRIED_AGAIN);
    loop {
        let Err(error) = relay_once(&leases, &name, channel.clone(), &mut backoff).await;
        tracing::info!(
            name,
            %error,
            "the control plane that keeps the books of global limits is not reached"
        );
        sleep(backoff.next().unwrap_or(TRIED_AGAIN.longest)).await;
    }
}

async fn relay_once(
    leases: &Arc<Leases>,
    name: &str,
    channel: Channel,
    backoff: &mut Backoff,
) -> Result<std::convert::Infallible, RelayError> {
    let (told, outgoing) = mpsc::channel::<RelayedReports>(1);
    let mut client = ReplicasClient::new(channel);
    let begin = async {
        let answered = client.relay(ReceiverStream::new(outgoing)).await?;
        let mut grants = answered.into_inner();
        let first = grants.message().await?.ok_or(RelayError::Ended)?;
        Ok::<_, RelayError>((grants, read_grants(first)?.0))
    };
    let begun = timeout(SILENT_AFTER, begin).await;
    let (mut grants, term) = begun.map_err(|_elapsed| RelayError::Silent)??;
    let link = LinkToKeeper::begin(leases, term).ok_or(RelayError::Elsewhere)?;
    tracing::info!(
        name,
        "global limits are shared out by another control plane"
    );
    *backoff = Backoff::new(TRIED_AGAIN);
    let mut together = interval(TOGETHER);
    together.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut heard, mut said) = (Instant::now(), Instant::now());
    let mut has_more = false;
    loop {
        tokio::select! {
            message = grants.message() => {
                let message = message?.ok_or(RelayError::Ended)?;
                heard = Instant::now();
                link.granted(read_grants(message)?.1);
            }
            _ = together.tick() => has_more = true,
            // As fast as it is taken: what a large replica has to say must be there within the grace.
            room = told.reserve(), if has_more => {
                let room = room.map_err(|_closed| RelayError::Ended)?;
                let streams = link.next();
                has_more = !streams.is_empty();
                if has_more || said.elapsed() >= HEARTBEAT {
                    room.send(relayed_reports(streams));
                    said = Instant::now();
                }
            }
            () = sleep_until(heard + SILENT_AFTER) => return Err(RelayError::Silent),
            () = sleep_until(said + SILENT_AFTER) => return Err(RelayError::Unread),
            () = link.ended() => return Err(RelayError::Elsewhere),
        }
    }
}

/// Takes what another control plane relays and sends it what is granted, until either ends it.
pub(super) async fn serve(
    mut link: LinkOfRelay,
    mut told: Streaming<RelayedReports>,
    answers: mpsc::Sender<Result<RelayedGrants, Status>>,
    _place: OwnedSemaphorePermit,
) {
    let ended = tokio::select! {
        ended = converse(&mut link, &mut told, &answers) => ended,
        () = answers.closed() => return,
    };
    // The books are closed first: whoever reads the reason finds them so.
    drop(link);
    if let Err(status) = ended {
        let _best_effort = timeout(SEND_TIMEOUT, answers.send(Err(status))).await;
    }
}

async fn converse(
    link: &mut LinkOfRelay,
    told: &mut Streaming<RelayedReports>,
    answers: &mpsc::Sender<Result<RelayedGrants, Status>>,
) -> Result<(), Status> {
    let (term, end) = (link.term(), link.ended());
    let mut heartbeat = interval(HEARTBEAT);
    let mut heard = Instant::now();
    loop {
        let granted = tokio::select! {
            message = told.message() => {
                let Some(message) = message? else {
                    return Ok(());
                };
                heard = Instant::now();
                let streams = read_reports(message);
                let streams = streams.map_err(|error| Status::invalid_argument(error.to_string()))?;
                let taken = link.take(streams);
                taken.map_err(|excess| Status::resource_exhausted(excess.to_string()))?;
                continue;
            }
            granted = link.granted() => granted.ok_or_else(not_kept)?,
            _ = heartbeat.tick() => Vec::new(),
            () = end.cancelled() => return Err(not_kept()),
            () = sleep_until(heard + SILENT_AFTER) => {
                let text = format!("nothing was relayed for {SILENT_AFTER:?}");
                return Err(Status::deadline_exceeded(text));
            }
        };
        for message in relayed_grants(term, granted) {
            let sent = timeout(SILENT_AFTER, answers.send(Ok(message))).await;
            if !matches!(sent, Ok(Ok(()))) {
                return Err(Status::aborted("grants are not read: begin anew"));
            }
        }
    }
}

fn not_kept() -> Status {
    Status::unavailable(
        "the books of global limits are not kept here any more, or grants are not read",
    )
}
