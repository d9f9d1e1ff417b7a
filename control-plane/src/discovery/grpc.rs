//! The delta xDS stream: the only place in the control plane that names its envelopes.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    Resource as Envelope,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use weft_proto::resource::Kind;

use super::{Push, Session};
use crate::plane::{Plane, ProxyView};
use crate::tls::PeerIdentity;
use crate::unix_millis;

/// Responses on their way: one per kind is outstanding at most.
const RESPONSES_MAX: usize = 8;

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
        if self.plane.is_revoked(&peer.instance) {
            return Err(Status::unauthenticated("the instance was revoked"));
        }
        let (responses, outgoing) = mpsc::channel(RESPONSES_MAX);
        let conversation = Conversation {
            stream: self.plane.next_stream(),
            plane: Arc::clone(&self.plane),
            sessions: BTreeMap::new(),
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
        tokio::spawn(conversation.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

struct Conversation {
    stream: u64,
    plane: Arc<Plane>,
    sessions: BTreeMap<Kind, Session>,
    view: ProxyView,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Conversation {
    async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        let mut published = self.plane.published();
        let mut revoked = self.plane.watch_revoked();
        self.plane.note_proxy(self.stream, Some(self.view.clone()));
        let responses = self.responses.clone();
        loop {
            tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => self.handle(request),
                    Some(Err(_)) | None => break,
                },
                Ok(()) = published.changed() => {}
                Ok(()) = revoked.changed() => {
                    if self.plane.is_revoked(&self.view.peer.instance) {
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

    fn handle(&mut self, request: DeltaDiscoveryRequest) {
        let Some(kind) = Kind::from_type_url(&request.type_url) else {
            tracing::debug!(type_url = request.type_url, "an unknown type was asked for");
            return;
        };
        if let Some(node) = request.node
            && let Some(UserAgentVersionType::UserAgentVersion(version)) =
                node.user_agent_version_type
        {
            self.view.version = version;
        }
        let session = self
            .sessions
            .entry(kind)
            .or_insert_with(|| Session::new(kind));
        session.handle_request(
            request.initial_resource_versions,
            request.resource_names_subscribe,
            &request.resource_names_unsubscribe,
        );
        if request.response_nonce.is_empty() {
            return;
        }
        let error = request.error_detail.map(|status| status.message);
        let counters = &self.plane.counters;
        match &error {
            Some(reasons) => {
                counters.nacks.fetch_add(1, Ordering::Relaxed);
                let instance = &self.view.peer.instance;
                tracing::warn!(%instance, kind = kind.as_str(), reasons, "rejected by a sidecar");
            }
            None => {
                counters.acks.fetch_add(1, Ordering::Relaxed);
            }
        }
        session.handle_answer(
            &request.response_nonce,
            error.as_deref().unwrap_or_default(),
        );
    }

    /// Sends what is due; false when the stream has ended.
    async fn push(&mut self) -> bool {
        let compiled = self.plane.compiled();
        for (kind, session) in &mut self.sessions {
            if let Some(push) = session.poll_push(&compiled) {
                self.plane.counters.pushes.fetch_add(1, Ordering::Relaxed);
                let response = response(*kind, push, compiled.generation);
                if self.responses.send(Ok(response)).await.is_err() {
                    return false;
                }
            }
        }
        let applied: Option<u64> = self.sessions.values().map(Session::applied).min().flatten();
        if let Some(generation) = applied
            && generation == compiled.generation
        {
            self.view.applied_generation = generation;
            self.view.applied_revision = compiled.revision;
        }
        self.view.holds = self.sessions.values().map(Session::holds).sum();
        self.view.rejected = self
            .sessions
            .iter()
            .flat_map(|(kind, session)| {
                let named = |(name, reason): (&String, &String)| {
                    (format!("{}/{name}", kind.as_str()), reason.clone())
                };
                session.rejected().iter().map(named)
            })
            .collect();
        self.plane.note_proxy(self.stream, Some(self.view.clone()));
        true
    }
}

fn response(kind: Kind, push: Push, generation: u64) -> DeltaDiscoveryResponse {
    let resources = push.resources.into_iter().map(|encoded| Envelope {
        name: encoded.name.clone(),
        version: encoded.version.clone(),
        aliases: encoded.aliases.clone(),
        resource: Some(encoded.any.clone()),
        ..Envelope::default()
    });
    DeltaDiscoveryResponse {
        system_version_info: generation.to_string(),
        resources: resources.collect(),
        type_url: kind.type_url().to_owned(),
        removed_resources: push.removed,
        nonce: push.nonce,
        ..DeltaDiscoveryResponse::default()
    }
}
