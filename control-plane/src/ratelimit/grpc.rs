//! The stream of leases.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use weft_core::rate::lease::{Grant, Report};
use weft_proto::ratelimit::rate_limits_server::RateLimits as Service;
use weft_proto::ratelimit::{Grants, Reports};

use super::Leases;
use crate::plane::Plane;
use crate::tls::PeerIdentity;

/// Messages on their way to one sidecar; there is one of each limit at most.
const GRANTS_MAX: usize = 256;
/// Limits in one message.
const REPORTS_MAX: usize = 1024;

/// The service.
#[derive(Debug, Clone)]
pub struct RateLimitService {
    /// The control plane.
    pub plane: Arc<Plane>,
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
        let peer = PeerIdentity::of(&request)?;
        let revoked = || Status::unauthenticated("the instance was revoked");
        // Before it is looked whether the instance is revoked: none is missed.
        let mut watch = self.plane.identities().watch_revoked();
        if self.plane.identities().is_revoked(&peer.instance) {
            return Err(revoked());
        }
        let mut told = request.into_inner();
        let (answers, outgoing) = mpsc::channel(1);
        let (grants, mut granted) = mpsc::channel::<Vec<Grant>>(GRANTS_MAX);
        let stream = self.plane.next_stream();
        let (plane, leases) = (Arc::clone(&self.plane), Arc::clone(&self.leases));
        let end = leases.open(stream, grants);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    message = told.next() => {
                        let Some(Ok(message)) = message else { break };
                        match reports(message) {
                            Ok(reports) => leases.handle(&peer.instance, stream, reports),
                            Err(status) => {
                                let _gone_anyway = answers.send(Err(status)).await;
                                break;
                            }
                        }
                    }
                    Some(due) = granted.recv() => {
                        let due = Grants { grants: due.iter().map(Into::into).collect() };
                        if answers.send(Ok(due)).await.is_err() {
                            break;
                        }
                    }
                    _ = watch.changed() => {
                        if plane.identities().is_revoked(&peer.instance) {
                            let _gone_anyway = answers.send(Err(revoked())).await;
                            break;
                        }
                    }
                    () = end.cancelled() => break,
                    () = answers.closed() => break,
                }
            }
            leases.close(&peer.instance, stream);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
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
