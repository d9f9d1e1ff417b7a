//! The delta xDS stream: the only place in the control plane that names its envelopes.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use weft_proto::resource::Kind;
use weft_proto::xds::aggregated_discovery_service_server::AggregatedDiscoveryService;
use weft_proto::xds::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    Resource as Envelope,
};
use weft_proto::xds_core::node::UserAgentVersionType;

use super::{Answer, Answered, Push, Request as Asked, Session};
use crate::plane::{Plane, ProxyView};
use crate::tls::PeerIdentity;
use crate::unix_millis;

/// Responses on their way: one per kind is outstanding at most.
const RESPONSES_MAX: usize = 8;

/// What is kept of a sidecar's version, characters.
const VERSION_MAX_CHARS: usize = 64;

/// The service.
#[derive(Debug, Clone)]
pub struct DiscoveryService {
    /// What it tells.
    pub plane: Arc<Plane>,
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for DiscoveryService {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented(
            "state of the world is not served: use delta_aggregated_resources",
        ))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let peer = PeerIdentity::of(&request)?;
        // Before it is looked whether the instance is revoked: none is missed.
        let revoked = self.plane.identities().watch_revoked();
        if self.plane.identities().is_revoked(&peer.instance) {
            return Err(Status::unauthenticated("the instance was revoked"));
        }
        let (responses, outgoing) = mpsc::channel(RESPONSES_MAX);
        let conversation = Conversation {
            stream: self.plane.next_stream(),
            plane: Arc::clone(&self.plane),
            session: Session::default(),
            view: ProxyView {
                peer,
                version: String::new(),
                since: unix_millis(),
                applied_generation: 0,
                applied_revision: 0,
                holds: 0,
                rejected: BTreeMap::new(),
            },
            responses,
        };
        tokio::spawn(conversation.run(request.into_inner(), revoked));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

struct Conversation {
    stream: u64,
    plane: Arc<Plane>,
    session: Session,
    view: ProxyView,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Conversation {
    async fn run(
        mut self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        mut revoked: watch::Receiver<u64>,
    ) {
        let mut published = self.plane.published();
        self.plane.note_proxy(self.stream, Some(self.view.clone()));
        let responses = self.responses.clone();
        loop {
            tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => {
                        if let Err(status) = self.handle(request) {
                            let _gone_anyway = self.responses.send(Err(status)).await;
                            break;
                        }
                    }
                    Some(Err(_)) | None => break,
                },
                Ok(()) = published.changed() => {}
                Ok(()) = revoked.changed() => {
                    if self.plane.identities().is_revoked(&self.view.peer.instance) {
                        let status = Status::unauthenticated("the instance was revoked");
                        let _gone_anyway = self.responses.send(Err(status)).await;
                        break;
                    }
                }
                () = responses.closed() => break,
            }
            if !self.push().await {
                break;
            }
        }
        self.plane.note_proxy(self.stream, None);
    }

    fn handle(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let Some(kind) = Kind::from_type_url(&request.type_url) else {
            let known = Kind::ALL.map(Kind::type_url).join(", ");
            let found = &request.type_url;
            return Err(Status::invalid_argument(format!(
                "resource type: found {found:?}; allowed: {known}"
            )));
        };
        if let Some(node) = &request.node
            && let Some(UserAgentVersionType::UserAgentVersion(version)) =
                &node.user_agent_version_type
        {
            self.view.version = version.chars().take(VERSION_MAX_CHARS).collect();
        }
        let answered = self.session.handle_request(kind, asked(request));
        let answered = answered.map_err(|error| Status::resource_exhausted(error.to_string()))?;
        let counters = &self.plane.counters;
        match answered {
            Answered::No => {}
            Answered::Acknowledged => {
                counters.acks.fetch_add(1, Ordering::Relaxed);
            }
            Answered::Rejected => {
                counters.nacks.fetch_add(1, Ordering::Relaxed);
                let instance = &self.view.peer.instance;
                for (kind, name, reason) in self.session.rejected() {
                    let kind = kind.as_str();
                    tracing::warn!(%instance, kind, name, reason, "rejected by a sidecar");
                }
            }
        }
        Ok(())
    }

    /// Sends what is due; false when the stream has ended.
    async fn push(&mut self) -> bool {
        let compiled = self.plane.compiled();
        while let Some(push) = self.session.poll_push(&compiled) {
            self.plane.counters.pushes.fetch_add(1, Ordering::Relaxed);
            if self.responses.send(Ok(response(push))).await.is_err() {
                return false;
            }
        }
        if let Some(applied) = self.session.applied() {
            self.view.applied_generation = applied.generation;
            self.view.applied_revision = applied.revision;
        } else if self.session.is_new() {
            // Nothing was asked for yet, so there is nothing to wait for.
            self.view.applied_generation = compiled.generation;
        }
        self.view.holds = self.session.holds();
        let named = |(kind, name, reason): (Kind, &str, &str)| {
            (format!("{}/{name}", kind.as_str()), reason.to_owned())
        };
        self.view.rejected = self.session.rejected().map(named).collect();
        self.plane.note_proxy(self.stream, Some(self.view.clone()));
        true
    }
}

fn asked(request: DeltaDiscoveryRequest) -> Asked {
    let answer = (!request.response_nonce.is_empty()).then(|| Answer {
        nonce: request.response_nonce,
        error: request.error_detail.map(|status| {
            if status.message.is_empty() {
                format!("rejected with code {} and no reason", status.code)
            } else {
                status.message
            }
        }),
    });
    Asked {
        subscribe: request.resource_names_subscribe,
        unsubscribe: request.resource_names_unsubscribe,
        initial_versions: request.initial_resource_versions,
        answer,
    }
}

fn response(push: Push) -> DeltaDiscoveryResponse {
    let resources = push.resources.into_iter().map(|encoded| Envelope {
        name: encoded.name.clone(),
        version: encoded.version.clone(),
        aliases: encoded.aliases.clone(),
        resource: Some(encoded.any.clone()),
    });
    DeltaDiscoveryResponse {
        system_version_info: push.generation.to_string(),
        resources: resources.collect(),
        type_url: push.kind.type_url().to_owned(),
        removed_resources: push.removed,
        nonce: push.nonce,
    }
}
