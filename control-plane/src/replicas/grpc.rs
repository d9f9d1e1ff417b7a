//! The service that other control planes follow.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::unfold;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use weft_core::name::SpiffeId;
use weft_proto::replica::replicas_server::Replicas as Service;
use weft_proto::replica::{FollowRequest, Report};

use super::reporter::Reporter;
use super::{OTHERS_MAX, Replicas};
use crate::peer::PeerIdentity;

/// Within this time there is another message.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Changes within this time are told together.
const TOGETHER: Duration = Duration::from_millis(100);

/// The service.
#[derive(Debug, Clone)]
pub struct ReplicaService {
    replicas: Arc<Replicas>,
    /// The identity that may call it.
    allowed: SpiffeId,
    /// One for each stream that may stand.
    places: Arc<Semaphore>,
}

impl ReplicaService {
    /// Answers those who have this identity: that of the mesh's control planes.
    pub fn new(replicas: Arc<Replicas>, allowed: SpiffeId) -> Self {
        Self {
            replicas,
            allowed,
            // One that connects anew may come before its old connection is seen to have ended.
            places: Arc::new(Semaphore::new(2 * OTHERS_MAX)),
        }
    }
}

/// A stream that another control plane follows.
struct Followed {
    replicas: Arc<Replicas>,
    reporter: Reporter,
    moved: watch::Receiver<()>,
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
                let _nothing_has_changed = timeout(HEARTBEAT, self.moved.changed()).await;
                sleep(TOGETHER).await;
            }
            self.moved.borrow_and_update();
            let replicas = &self.replicas;
            let positions = replicas.store.positions();
            let (published, sidecars) = replicas.reports();
            let name = replicas.name();
            let report = self.reporter.report(name, sidecars, published, &positions);
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
        let peer = PeerIdentity::of(&request)?;
        if peer.identity != self.allowed {
            let text = format!(
                "only a control plane of the mesh follows another one, not {}",
                peer.identity
            );
            return Err(Status::permission_denied(text));
        }
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_full| {
            Status::resource_exhausted(format!("{} streams stand already", 2 * OTHERS_MAX))
        })?;
        let followed = Followed {
            moved: self.replicas.publisher.watch(),
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
}
