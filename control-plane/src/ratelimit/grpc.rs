//! The stream of leases.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_core::rate::lease::{Grant, Report};
use weft_proto::ratelimit::rate_limits_server::RateLimits as Service;
use weft_proto::ratelimit::{Grants, Reports};

use super::{Ended, Leases};
use crate::budget::StreamKind;
use crate::identity::Identities;
use crate::peer::PeerIdentity;
use crate::peers::{LiveStream, Peers};

/// Messages on their way to one sidecar; there is one of each limit at most.
const GRANTS_MAX: usize = 256;
/// Limits in one message.
const REPORTS_MAX: usize = 1024;

/// What a sidecar is told that cannot be on the books.
const UNREACHED: &str = "the control plane that keeps the books of global limits is not reached, or \
                         has changed: what was leased last holds for a while; open the stream anew";

/// The service.
#[derive(Debug, Clone)]
pub struct RateLimitService {
    /// Whose streams stand.
    pub peers: Arc<Peers>,
    /// Who is revoked.
    pub identities: Arc<Identities>,
    /// The books.
    pub leases: Arc<Leases>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<Grants, Status>> + Send>>;

#[tonic::async_trait]
impl Service for RateLimitService {
    type LeaseStream = Answers;

    async fn lease(
        &self,
        request: Request<Streaming<Reports>>,
    ) -> Result<Response<Answers>, Status> {
        let peers = &self.peers;
        let (peer, live) = peers.open_stream(&self.identities, &request, StreamKind::Leases)?;
        let told = request.into_inner();
        let (answers, outgoing) = mpsc::channel(1);
        let (grants, granted) = mpsc::channel::<Vec<Grant>>(GRANTS_MAX);
        let leases = Arc::clone(&self.leases);
        let end = leases.open(&peer, live.number(), grants);
        let end = end.ok_or_else(|| Status::unavailable(UNREACHED))?;
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = converse(&leases, &peer, &live, told, granted, &answers) => ended,
                status = live.ended() => Err(status),
                why = end => Err(status_of(why.unwrap_or(Ended::Moved))),
                () = answers.closed() => Ok(()),
            };
            leases.close(live.number());
            if let Err(status) = ended {
                live.finish(&answers, status).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// Takes reports and sends grants until the stream ends; an error is its status.
async fn converse(
    leases: &Leases,
    peer: &PeerIdentity,
    live: &LiveStream,
    mut told: Streaming<Reports>,
    mut granted: mpsc::Receiver<Vec<Grant>>,
    answers: &mpsc::Sender<Result<Grants, Status>>,
) -> Result<(), Status> {
    loop {
        tokio::select! {
            message = live.receive(&mut told) => match message.transpose()? {
                Some(message) => {
                    let taken = leases.handle(peer, live.number(), reports(message)?);
                    taken.map_err(|excess| Status::resource_exhausted(excess.to_string()))?;
                }
                None => return Ok(()),
            },
            Some(due) = granted.recv() => {
                let due = Grants { grants: due.iter().map(Into::into).collect() };
                live.send(answers, due).await?;
            }
        }
    }
}

fn status_of(why: Ended) -> Status {
    match why {
        Ended::Unread => Status::aborted("grants are not read: begin anew"),
        Ended::Moved => Status::unavailable(UNREACHED),
    }
}

fn reports(message: Reports) -> Result<Vec<Report>, Status> {
    let found = message.reports.len();
    if found > REPORTS_MAX {
        let text = format!("reports: found {found}; allowed: {REPORTS_MAX} at most");
        return Err(Status::invalid_argument(text));
    }
    let reports = message.reports.into_iter().map(Report::try_from);
    let reports = reports.collect::<Result<_, _>>();
    reports.map_err(|rejection| Status::invalid_argument(format!("reports: {rejection}")))
}
