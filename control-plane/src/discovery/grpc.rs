//! The loop of a delta discovery stream: the only place in the control plane that names its
//! envelopes.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_proto::envelope::DeltaResponse;
use weft_proto::resource::Kind;
use weft_proto::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use weft_proto::xds_core::node::UserAgentVersionType;

use super::names::check_versions;
use super::{Answer, Answered, Push, Rejection, Request as Asked, Session, SessionError, reasons};
use crate::budget::{NAMES_PER_TURN, Reason, Refusal, StreamKind};
use crate::identity::Identities;
use crate::peers::{LiveStream, Peers};
use crate::pipeline::Pipeline;
use crate::publish::{Publisher, Subscription};
use crate::unix_millis;

/// Responses on their way: one per kind is outstanding at most.
const RESPONSES_MAX: usize = 8;
/// In a storm of changes, those to one stream are told at least this far apart: what comes meanwhile
/// is told together. What is asked for is told at once.
const PUSH_PAUSE: Duration = Duration::from_millis(20);
/// What is kept of a sidecar's version, characters.
const VERSION_MAX_CHARS: usize = 64;

/// The service.
#[derive(Debug, Clone)]
pub struct DiscoveryService {
    /// What it tells.
    pub pipeline: Arc<Pipeline>,
    /// Whom.
    pub publisher: Arc<Publisher>,
    /// Whose streams stand, and what they may use.
    pub peers: Arc<Peers>,
    /// Who is revoked.
    pub identities: Arc<Identities>,
}

/// The responses of a stream.
pub type Responses = Pin<Box<dyn Stream<Item = Result<DeltaResponse, Status>> + Send>>;

impl DiscoveryService {
    /// Begins a stream.
    pub(super) fn begin(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let kind = StreamKind::Discovery;
        let (peer, live) = self.peers.open_stream(&self.identities, &request, kind)?;
        let (responses, outgoing) = mpsc::channel(RESPONSES_MAX);
        let conversation = Conversation {
            pipeline: Arc::clone(&self.pipeline),
            subscription: self.publisher.open(peer, unix_millis()),
            publisher: Arc::clone(&self.publisher),
            session: Session::default(),
            unanswered: BTreeMap::new(),
            began_with_versions: false,
            shown_holds: 0,
            responses,
        };
        tokio::spawn(conversation.run(request.into_inner(), live));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

struct Conversation {
    pipeline: Arc<Pipeline>,
    publisher: Arc<Publisher>,
    subscription: Subscription,
    session: Session,
    /// Bytes of responses that are not answered yet, by nonce.
    unanswered: BTreeMap<String, usize>,
    /// Whether a request said what the sidecar holds from an earlier stream.
    began_with_versions: bool,
    /// How many resources others see that the sidecar holds.
    shown_holds: usize,
    responses: mpsc::Sender<Result<DeltaResponse, Status>>,
}

impl Conversation {
    async fn run(mut self, requests: Streaming<DeltaDiscoveryRequest>, live: LiveStream) {
        let responses = self.responses.clone();
        let ended = tokio::select! {
            ended = self.converse(requests, &live) => ended,
            status = live.ended() => Err(status),
            () = responses.closed() => Ok(()),
        };
        if let Err(status) = ended {
            live.finish(&responses, status).await;
        }
    }

    /// Answers requests and pushes changes until the stream ends; an error is its status.
    async fn converse(
        &mut self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        live: &LiveStream,
    ) -> Result<(), Status> {
        let mut earliest = Instant::now();
        let mut due: Option<Instant> = None;
        loop {
            let at = due.unwrap_or(earliest);
            let (now, later) = tokio::select! {
                request = live.receive(&mut requests) => match request {
                    Some(request) => {
                        let asked = self.handle(request?, live).await?;
                        (asked, self.session.has_more())
                    }
                    None => return Ok(()),
                },
                // After a while without changes, at once.
                () = self.subscription.woken() => (Instant::now() >= earliest, true),
                () = sleep_until(at), if due.is_some() => (true, false),
            };
            if now {
                self.push(live).await?;
                earliest = Instant::now() + PUSH_PAUSE;
                due = None;
            } else {
                if later {
                    due = Some(at.max(earliest));
                }
                self.report();
            }
        }
    }

    /// Takes a request; whether it asks for anything.
    async fn handle(
        &mut self,
        request: DeltaDiscoveryRequest,
        live: &LiveStream,
    ) -> Result<bool, Status> {
        let bytes = self.unanswered.remove(&request.response_nonce);
        live.answered(bytes.unwrap_or(0));
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
            let version = version.chars().take(VERSION_MAX_CHARS).collect();
            self.subscription.show(|view| view.version = version);
        }
        let versions = request.initial_resource_versions.len();
        self.began_with_versions |= versions > 0;
        check_versions(kind, versions).map_err(|error| refusal(error, live))?;
        let mut asked = false;
        for (index, piece) in pieces(request).into_iter().enumerate() {
            if index > 0 {
                tokio::task::yield_now().await;
            }
            let more = piece.subscribe.len() + piece.initial_versions.len();
            let added = live.add_names(more);
            added.map_err(|refusal| self.too_many_names(&refusal, live, more))?;
            asked |= self.take(kind, piece, live)?;
        }
        let set = live.set_names(self.session.names());
        set.map_err(|refusal| self.too_many_names(&refusal, live, 0))?;
        Ok(asked)
    }

    /// The status of a stream whose names are refused. One that began with resources from before,
    /// and is too much by itself, is mended by beginning without their versions. Where other
    /// streams of the instance have a part in it, what is held is worth keeping: those may end.
    fn too_many_names(&self, refusal: &Refusal, live: &LiveStream, more: usize) -> Status {
        match self.began_with_versions && live.exceeds_alone(more) {
            true => Status::out_of_range(format!("{refusal}; or begin without versions")),
            false => Status::resource_exhausted(refusal.to_string()),
        }
    }

    /// Takes a piece of a request; whether it asks for anything.
    fn take(&mut self, kind: Kind, piece: Asked, live: &LiveStream) -> Result<bool, Status> {
        let asks = !piece.subscribe.is_empty();
        let handled = self.session.handle_request(kind, piece);
        let handled = handled.map_err(|error| refusal(error, live))?;
        if handled.opened && !kind.on_demand() {
            self.subscription.subscribe_kind(kind);
        }
        self.subscription.subscribe(kind, &handled.subscribed);
        self.subscription.unsubscribe(kind, &handled.unsubscribed);
        let counters = &self.publisher.counters;
        match handled.answered {
            Answered::No => {}
            Answered::Acknowledged => {
                counters.acks.fetch_add(1, Ordering::Relaxed);
            }
            Answered::Rejected => {
                counters.nacks.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.show_rejected(live);
        Ok(handled.opened || asks)
    }

    fn show_rejected(&mut self, live: &LiveStream) {
        let rejections = self.session.take_rejections();
        if rejections.is_empty() {
            return;
        }
        if let Some(summary) = reasons::summary(&rejections) {
            live.note_rejection(&summary);
        }
        self.subscription.show(|view| {
            for Rejection { kind, name, reason } in rejections {
                let resource = format!("{}/{name}", kind.as_str());
                match reason {
                    Some(reason) => {
                        let text = Arc::clone(reason.text());
                        view.rejected.insert(resource, text)
                    }
                    None => view.rejected.remove(&resource),
                };
            }
        });
    }

    /// Sends what is due.
    async fn push(&mut self, live: &LiveStream) -> Result<(), Status> {
        for (kind, name) in self.subscription.take_due() {
            self.session.mark(kind, name);
        }
        // Read after what is due was taken, and after everything was subscribed.
        let snapshot = self.pipeline.snapshot();
        while live.may_push()
            && let Some(push) = self.session.poll_push(&snapshot.compiled)
        {
            let nonce = push.nonce.clone();
            let response = response(push);
            let bytes = response.encoded_len();
            let counters = &self.publisher.counters;
            counters.pushes.fetch_add(1, Ordering::Relaxed);
            let counted = u64::try_from(bytes).unwrap_or(u64::MAX);
            counters.bytes.fetch_add(counted, Ordering::Relaxed);
            self.unanswered.insert(nonce, bytes);
            live.pushed(bytes);
            live.send(&self.responses, response).await?;
        }
        let holds = self.session.holds();
        if std::mem::replace(&mut self.shown_holds, holds) != holds {
            self.subscription.show(|view| view.holds = holds);
        }
        self.report();
        Ok(())
    }

    /// Tells how far the sidecar has come.
    fn report(&self) {
        let (is_idle, applied) = (self.session.is_idle(), self.session.applied());
        self.subscription.report(is_idle, applied);
    }
}

/// The status that a stream ends with. What exceeds a limit is counted.
fn refusal(error: SessionError, live: &LiveStream) -> Status {
    let text = error.to_string();
    match error {
        SessionError::TooManyNames { .. } => {
            live.note(Reason::Names, &text);
            Status::resource_exhausted(text)
        }
        // The code of a message that is too long: both are mended by beginning without versions.
        SessionError::TooManyVersions { .. } => {
            live.note(Reason::Names, &text);
            Status::out_of_range(text)
        }
        SessionError::NameTooLong { .. }
        | SessionError::Wildcard { .. }
        | SessionError::SliceByName => Status::invalid_argument(text),
    }
}

/// A request in pieces that take a bounded time each; everything but names is in the first one.
fn pieces(request: DeltaDiscoveryRequest) -> Vec<Asked> {
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
    let mut pieces = vec![Asked {
        initial_versions: request.initial_resource_versions,
        answer,
        ..Asked::default()
    }];
    let continued = || Asked {
        continues: true,
        ..Asked::default()
    };
    for names in request.resource_names_unsubscribe.chunks(NAMES_PER_TURN) {
        pieces.push(Asked {
            unsubscribe: names.to_vec(),
            ..continued()
        });
    }
    for names in request.resource_names_subscribe.chunks(NAMES_PER_TURN) {
        pieces.push(Asked {
            subscribe: names.to_vec(),
            ..continued()
        });
    }
    pieces
}

fn response(push: Push) -> DeltaResponse {
    let resources = push.resources.iter();
    DeltaResponse {
        head: DeltaDiscoveryResponse {
            system_version_info: push.generation.to_string(),
            type_url: push.kind.type_url().to_owned(),
            removed_resources: push.removed,
            nonce: push.nonce,
            ..DeltaDiscoveryResponse::default()
        },
        resources: resources.map(|encoded| encoded.envelope.clone()).collect(),
    }
}
