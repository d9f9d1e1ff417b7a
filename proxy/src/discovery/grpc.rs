//! The delta xDS stream: the only place in the sidecar that names its envelopes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use prost::Message;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use weft_proto::resource::{Kind, Resource};
use weft_proto::rpc::Status;
use weft_proto::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use weft_proto::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as Envelope};
use weft_proto::xds_core::Node;
use weft_proto::xds_core::node::UserAgentVersionType;

use super::held::{Applied, Holdings, Received};
use crate::control_plane::{Line, MESSAGE_MAX_BYTES, end_status, opened};

/// Requests on their way; the control plane answers before many more are due.
const REQUESTS_MAX: usize = 256;
/// A control plane that reads none of them for this long is asked on another stream.
const SEND_TIMEOUT: Duration = Duration::from_secs(15);
/// `google.rpc.Code.INVALID_ARGUMENT`.
const INVALID_ARGUMENT: i32 = 3;
/// Reasons sent back with a rejection, in bytes.
const REASONS_MAX_BYTES: usize = 8 * 1024;

/// One open stream.
pub(super) struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    node: Option<Node>,
    /// Names that were asked for when it was opened.
    asked: Vec<(Kind, Vec<String>)>,
}

/// A response with its kind and its content decoded.
pub(super) struct Response {
    pub(super) kind: Kind,
    pub(super) received: Vec<Received>,
    pub(super) removed: Vec<String>,
    nonce: String,
}

impl Stream {
    /// Opens the stream as `node` and says, for every kind, what is held and wanted. Slices have no
    /// names that are asked for: those of the services do.
    pub(super) fn open(
        line: Line,
        node: &str,
        holdings: &Holdings,
    ) -> impl Future<Output = Result<Self, tonic::Status>> + Send + use<> {
        let (requests, outgoing) = mpsc::channel(REQUESTS_MAX);
        let mut node = Some(Node {
            id: node.to_owned(),
            user_agent_name: "weft-proxy".to_owned(),
            user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(
                env!("CARGO_PKG_VERSION").to_owned(),
            )),
        });
        let mut asked = Vec::new();
        for kind in Kind::ALL {
            let names = match kind.on_demand() {
                true => holdings.subscriptions(kind),
                false => vec!["*".to_owned()],
            };
            if kind.on_demand() {
                asked.push((kind, names.clone()));
            }
            let request = DeltaDiscoveryRequest {
                node: node.take(),
                type_url: kind.type_url().to_owned(),
                resource_names_subscribe: names,
                initial_resource_versions: match kind {
                    // It comes on every stream: what is in force is kept beside what is held here,
                    // and a revocation that is missing there must not be missing for good.
                    Kind::TrustBundle => HashMap::new(),
                    Kind::EndpointSlice
                    | Kind::Service
                    | Kind::Workload
                    | Kind::MeshConfig
                    | Kind::Namespace
                    | Kind::ServerPolicy => holdings.versions(kind),
                },
                ..DeltaDiscoveryRequest::default()
            };
            // The channel has room for one of each kind.
            let _sent = requests.try_send(request);
        }
        async move {
            let mut client = AggregatedDiscoveryServiceClient::new(line)
                .max_decoding_message_size(MESSAGE_MAX_BYTES);
            let opening = client.delta_aggregated_resources(ReceiverStream::new(outgoing));
            let responses = opened(opening).await?.into_inner();
            Ok(Self {
                requests,
                responses,
                node,
                asked,
            })
        }
    }

    /// Asks for what has come to be wanted while it was opened, and gives up what is not wanted any
    /// more.
    pub(super) async fn catch_up(&mut self, holdings: &Holdings) -> Result<(), tonic::Status> {
        for (kind, before) in std::mem::take(&mut self.asked) {
            let now = holdings.subscriptions(kind);
            let without = |all: &[String], others: &[String]| -> Vec<String> {
                let others: HashSet<&String> = others.iter().collect();
                let rest = all.iter().filter(|name| !others.contains(name));
                rest.cloned().collect()
            };
            let (wanted, unwanted) = (without(&now, &before), without(&before, &now));
            if !wanted.is_empty() || !unwanted.is_empty() {
                self.subscribe(kind, wanted, unwanted).await?;
            }
        }
        Ok(())
    }

    /// The next response; `None` when the control plane ended the stream.
    pub(super) async fn next(&mut self) -> Result<Option<Response>, tonic::Status> {
        loop {
            let Some(response) = self.responses.message().await? else {
                return Ok(None);
            };
            if let Some(kind) = Kind::from_type_url(&response.type_url) {
                return Ok(Some(decode(kind, response)));
            }
            let error = format!("*: unknown resource type {:?}", response.type_url);
            self.answer(response.type_url, response.nonce, vec![error])
                .await?;
        }
    }

    /// Acknowledges a response, or says what of it was not taken.
    pub(super) async fn acknowledge(
        &mut self,
        response: &ResponseId,
        applied: &Applied,
    ) -> Result<(), tonic::Status> {
        let type_url = response.kind.type_url().to_owned();
        self.answer(type_url, response.nonce.clone(), applied.rejected.clone())
            .await
    }

    /// Asks for names, and says which are not wanted any more.
    pub(super) async fn subscribe(
        &mut self,
        kind: Kind,
        wanted: Vec<String>,
        unwanted: Vec<String>,
    ) -> Result<(), tonic::Status> {
        let request = DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: wanted,
            resource_names_unsubscribe: unwanted,
            ..DeltaDiscoveryRequest::default()
        };
        self.send(request).await
    }

    async fn answer(
        &mut self,
        type_url: String,
        nonce: String,
        rejected: Vec<String>,
    ) -> Result<(), tonic::Status> {
        let error_detail = (!rejected.is_empty()).then(|| {
            let mut message = rejected.join("\n");
            let end = message.floor_char_boundary(REASONS_MAX_BYTES.min(message.len()));
            message.truncate(end);
            Status {
                code: INVALID_ARGUMENT,
                message,
                details: Vec::new(),
            }
        });
        let request = DeltaDiscoveryRequest {
            type_url,
            response_nonce: nonce,
            error_detail,
            ..DeltaDiscoveryRequest::default()
        };
        self.send(request).await
    }

    async fn send(&mut self, mut request: DeltaDiscoveryRequest) -> Result<(), tonic::Status> {
        request.node = self.node.take();
        let sent = self.requests.send_timeout(request, SEND_TIMEOUT).await;
        match sent {
            Ok(()) => Ok(()),
            Err(SendTimeoutError::Closed(_)) => Err(end_status(&mut self.responses).await),
            Err(SendTimeoutError::Timeout(_)) => Err(tonic::Status::deadline_exceeded(format!(
                "the control plane has read nothing for {SEND_TIMEOUT:?}"
            ))),
        }
    }
}

/// What an acknowledgement refers to.
pub(super) struct ResponseId {
    kind: Kind,
    nonce: String,
}

impl Response {
    pub(super) fn id(&self) -> ResponseId {
        ResponseId {
            kind: self.kind,
            nonce: self.nonce.clone(),
        }
    }
}

fn decode(kind: Kind, response: DeltaDiscoveryResponse) -> Response {
    let received = response.resources.into_iter().map(from_envelope).collect();
    Response {
        kind,
        received,
        removed: response.removed_resources,
        nonce: response.nonce,
    }
}

fn from_envelope(envelope: Envelope) -> Received {
    let resource = match &envelope.resource {
        Some(any) => Resource::decode(any).map_err(|rejection| rejection.to_string()),
        None => Err("empty".to_owned()),
    };
    Received {
        name: envelope.name,
        version: envelope.version,
        aliases: envelope.aliases,
        resource,
    }
}

/// Everything in force, as bytes for the disk: one delta response per kind, length-delimited.
pub(super) fn to_bytes(holdings: &Holdings) -> Vec<u8> {
    let mut by_kind: BTreeMap<Kind, Vec<Envelope>> = BTreeMap::new();
    for held in holdings.in_force() {
        let envelope = Envelope {
            name: held.resource.name(),
            version: held.version.clone(),
            aliases: held.aliases.clone(),
            resource: Some(held.resource.encode()),
        };
        let kind = held.resource.kind();
        by_kind.entry(kind).or_default().push(envelope);
    }
    let mut bytes = Vec::new();
    for (kind, resources) in by_kind {
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().to_owned(),
            resources,
            ..DeltaDiscoveryResponse::default()
        };
        bytes.extend(response.encode_length_delimited_to_vec());
    }
    bytes
}

/// Takes up what [`to_bytes`] wrote; what is not readable any more is left out, with its reason.
pub(super) fn from_bytes(mut bytes: &[u8], holdings: &mut Holdings) -> Vec<String> {
    let mut rejected = Vec::new();
    while !bytes.is_empty() {
        match DeltaDiscoveryResponse::decode_length_delimited(&mut bytes) {
            Ok(response) => {
                let Some(kind) = Kind::from_type_url(&response.type_url) else {
                    continue;
                };
                let response = decode(kind, response);
                if kind.on_demand() && kind != Kind::EndpointSlice {
                    for received in &response.received {
                        holdings.subscribe(kind, &received.name);
                    }
                }
                let applied = holdings.handle_response(
                    kind,
                    response.received,
                    Vec::new(),
                    crate::clock::now(),
                );
                rejected.extend(applied.rejected);
            }
            Err(error) => {
                rejected.push(format!("snapshot: {error}"));
                break;
            }
        }
    }
    rejected
}
