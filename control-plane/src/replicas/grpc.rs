//! The service that other control planes follow.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::unfold;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::sleep;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_core::name::SpiffeId;
use weft_proto::replica::replicas_server::Replicas as Service;
use weft_proto::replica::{FollowRequest, RelayedGrants, RelayedReports, Report};

use super::reporter::{OwnState, Reporter};
use super::{OTHERS_MAX, Replicas, relay};
use crate::peer::PeerIdentity;
use crate::ratelimit::LinkOfRelay;

/// Within this time there is another message.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(2);
/// Changes within this time are told together.
const TOGETHER: Duration = Duration::from_millis(100);

/// The service.
#[derive(Debug, Clone)]
pub struct ReplicaService {
    replicas: Arc<Replicas>,
    /// The identity that may call it.
    allowed: SpiffeId,
    /// One for each stream that may stand, of either call.
    following: Arc<Semaphore>,
    relaying: Arc<Semaphore>,
}

impl ReplicaService {
    /// Answers those who have this identity: that of the mesh's control planes.
    pub fn new(replicas: Arc<Replicas>, allowed: SpiffeId) -> Self {
        // One that connects anew may come before its old connection is seen to have ended.
        let places = || Arc::new(Semaphore::new(2 * OTHERS_MAX));
        Self {
            replicas,
            allowed,
            following: places(),
            relaying: places(),
        }
    }

    /// A place for a stream, if a control plane of the mesh asks for it.
    fn admit<T>(
        &self,
        request: &Request<T>,
        places: &Arc<Semaphore>,
    ) -> Result<OwnedSemaphorePermit, Status> {
        let peer = PeerIdentity::of(request)?;
        if peer.identity != self.allowed {
            let text = format!(
                "only a control plane of the mesh may call this, not {}",
                peer.identity
            );
            return Err(Status::permission_denied(text));
        }
        let place = Arc::clone(places).try_acquire_owned();
        place.map_err(|_full| {
            Status::resource_exhausted(format!("{} streams stand already", 2 * OTHERS_MAX))
        })
    }
}

/// A stream that another control plane follows.
struct Followed {
    replicas: Arc<Replicas>,
    reporter: Reporter,
    /// Changes with this control plane's own sidecars: what the others tell is not told on.
    moved: watch::Receiver<()>,
    books: watch::Receiver<Option<u64>>,
    queue: VecDeque<Report>,
    is_first: bool,
    _place: OwnedSemaphorePermit,
}

impl Followed {
    async fn next(&mut self) -> Report {
        loop {
            if let Some(message) = self.queue.pop_front() {
                return message;
            }
            if !std::mem::replace(&mut self.is_first, false) {
                // Sidecars wait for who keeps the books: that is told at once.
                tokio::select! {
                    _ended = self.books.changed() => {}
                    () = async {
                        tokio::select! {
                            _ended = self.moved.changed() => {}
                            () = sleep(HEARTBEAT) => {}
                        }
                        sleep(TOGETHER).await;
                    } => {}
                }
            }
            self.moved.borrow_and_update();
            let replicas = &self.replicas;
            let positions = replicas.store.positions();
            let refusals = replicas.store.refusals();
            let (published, sidecars) = replicas.reports();
            let name = replicas.name();
            let standing = OwnState {
                published,
                positions: &positions,
                refusals,
                books_term: *self.books.borrow_and_update(),
            };
            let report = self.reporter.report(name, sidecars, &standing);
            self.queue.extend(report.into_messages());
        }
    }
}

#[tonic::async_trait]
impl Service for ReplicaService {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<Report, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let place = self.admit(&request, &self.following)?;
        let followed = Followed {
            moved: self.replicas.publisher.watch_here(),
            books: self.replicas.leases.watch_term(),
            replicas: Arc::clone(&self.replicas),
            reporter: Reporter::default(),
            queue: VecDeque::new(),
            is_first: true,
            _place: place,
        };
        let messages = unfold(followed, async |mut followed| {
            let message = followed.next().await;
            Some((Ok(message), followed))
        });
        Ok(Response::new(Box::pin(messages)))
    }

    type RelayStream = ReceiverStream<Result<RelayedGrants, Status>>;

    async fn relay(
        &self,
        request: Request<Streaming<RelayedReports>>,
    ) -> Result<Response<Self::RelayStream>, Status> {
        let place = self.admit(&request, &self.relaying)?;
        let link = LinkOfRelay::begin(&self.replicas.leases).ok_or_else(|| {
            Status::failed_precondition("this control plane keeps no books of global limits")
        })?;
        let (answers, outgoing) = mpsc::channel(1);
        tokio::spawn(relay::serve(link, request.into_inner(), answers, place));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}
