//! The stream on which a sidecar announces its workload.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use weft_core::model::{ObservedBreaker, Registration};
use weft_proto::registry::register_request::Message as Asked;
use weft_proto::registry::register_response::Message as Answer;
use weft_proto::registry::registry_server::Registry as Service;
use weft_proto::registry::{
    Accepted, ObserveEnd, Observed, RegisterRequest, RegisterResponse, Released,
};

use super::{Observations, Refused, RegisterError, Registrations};
use crate::identity::Identities;
use crate::plane::Plane;
use crate::tls::PeerIdentity;

/// The service.
#[derive(Debug, Clone)]
pub struct RegistryService {
    /// Who is there.
    pub registrations: Arc<Registrations>,
    /// Who is revoked.
    pub identities: Arc<Identities>,
    /// What sidecars see.
    pub observations: Arc<Observations>,
    /// Who has been told what.
    pub plane: Arc<Plane>,
}

type Ends = Pin<Box<dyn Stream<Item = Result<ObserveEnd, Status>> + Send>>;
type Answers = Pin<Box<dyn Stream<Item = Result<RegisterResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Service for RegistryService {
    type RegisterStream = Answers;
    type ObserveStream = Ends;

    async fn register(
        &self,
        request: Request<Streaming<RegisterRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let peer = PeerIdentity::of(&request)?;
        // Before it is looked whether the instance is revoked: none is missed.
        let mut revoked = self.identities.watch_revoked();
        let mut asked = request.into_inner();
        let (answers, outgoing) = mpsc::channel(8);
        let service = self.clone();
        let mut live = self.registrations.begin(&peer);
        let stream = live.number();
        // The first message decides: a refusal is the status of the call.
        let first = asked.next().await.transpose()?;
        let Some(Asked::Registration(first)) = first.and_then(|message| message.message) else {
            return Err(Status::invalid_argument(
                "the first message has to be a registration",
            ));
        };
        let accepted = take(&service, &peer, stream, first).await?;
        let _room = answers.try_send(Ok(accepted));
        tokio::spawn(async move {
            let superseded = async {
                live.ended().await;
                tokio::time::sleep(service.registrations.superseded_kept()).await;
            };
            tokio::pin!(superseded);
            loop {
                tokio::select! {
                    message = asked.next() => match message {
                        Some(Ok(RegisterRequest { message: Some(Asked::Registration(next)) })) => {
                            let answer = take(&service, &peer, stream, next).await;
                            let failed = answer.is_err();
                            if answers.send(answer).await.is_err() || failed {
                                break;
                            }
                        }
                        Some(Ok(RegisterRequest { message: Some(Asked::Goodbye(_)) })) => {
                            let acknowledged = service.leave(stream).await;
                            let answer = respond(Answer::Released(Released { acknowledged }));
                            let _gone_anyway = answers.send(Ok(answer)).await;
                            break;
                        }
                        Some(Ok(RegisterRequest { message: None })) => {}
                        Some(Err(_)) | None => break,
                    },
                    _ = revoked.changed() => {
                        if service.identities.is_revoked(&peer.instance) {
                            let _gone_anyway = answers.send(Err(revoked_instance())).await;
                            break;
                        }
                    }
                    () = &mut superseded => {
                        let _gone_anyway = answers.send(Err(superseded_stream())).await;
                        break;
                    }
                    () = answers.closed() => break,
                }
            }
            service.registrations.disconnected(stream);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn observe(
        &self,
        request: Request<Streaming<Observed>>,
    ) -> Result<Response<Ends>, Status> {
        let peer = PeerIdentity::of(&request)?;
        let revoked = self.identities.watch_revoked();
        if self.identities.is_revoked(&peer.instance) {
            return Err(revoked_instance());
        }
        let (end, outgoing) = mpsc::channel(1);
        let told = request.into_inner();
        let service = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                ended = note_observed(&service, peer, told, revoked) => {
                    if let Err(status) = ended {
                        let _gone_anyway = end.send(Err(status)).await;
                    }
                }
                () = end.closed() => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

impl RegistryService {
    /// Takes out what a stream registered and waits until every sidecar knows; false when that took
    /// too long.
    async fn leave(&self, stream: u64) -> bool {
        !self.registrations.leave(stream).await || self.plane.all_know().await
    }
}

/// Notes what one sidecar tells until its stream ends; the error is for the sidecar.
async fn note_observed(
    service: &RegistryService,
    peer: PeerIdentity,
    mut told: Streaming<Observed>,
    mut revoked: watch::Receiver<u64>,
) -> Result<(), Status> {
    let mut live = service.observations.begin(&peer);
    let stream = live.number();
    // Dropped with the stream, however that ends.
    let _forgotten = Forgotten {
        observations: Arc::clone(&service.observations),
        peer: peer.clone(),
        stream,
    };
    loop {
        tokio::select! {
            message = told.next() => {
                let Some(observed) = message.transpose()? else {
                    return Ok(());
                };
                let breakers = observed.breakers.into_iter().map(ObservedBreaker::try_from);
                let breakers = breakers.collect::<Result<_, _>>();
                let breakers = breakers.map_err(|rejection| {
                    Status::invalid_argument(format!("observed: {rejection}"))
                })?;
                service.observations.note(stream, &peer, Some(breakers));
            }
            _ = revoked.changed() => {
                if service.identities.is_revoked(&peer.instance) {
                    return Err(revoked_instance());
                }
            }
            () = live.ended() => {
                let text = "the instance has opened newer streams; this one is over";
                return Err(Status::aborted(text));
            }
        }
    }
}

fn superseded_stream() -> Status {
    Status::aborted("another stream of this instance is newer; this one is over: register anew")
}

fn revoked_instance() -> Status {
    Status::unauthenticated("the instance was revoked")
}

/// Notes the end of a stream, after which what it told is forgotten.
struct Forgotten {
    observations: Arc<Observations>,
    peer: PeerIdentity,
    stream: u64,
}

impl Drop for Forgotten {
    fn drop(&mut self) {
        self.observations.note(self.stream, &self.peer, None);
    }
}

async fn take(
    service: &RegistryService,
    peer: &PeerIdentity,
    stream: u64,
    wire: weft_proto::registry::Registration,
) -> Result<RegisterResponse, Status> {
    let registration = Registration::try_from(wire)
        .map_err(|rejection| Status::invalid_argument(format!("registration: {rejection}")))?;
    let registered = service.registrations.register(peer, stream, registration);
    registered.await.map_err(|error| match error {
        RegisterError::Refused(
            refused @ (Refused::Taken { .. } | Refused::AddressTaken { .. }),
        ) => Status::already_exists(refused.to_string()),
        RegisterError::Refused(refused @ Refused::Superseded { .. }) => {
            Status::aborted(refused.to_string())
        }
        RegisterError::Refused(refused @ Refused::Value { .. }) => {
            Status::invalid_argument(refused.to_string())
        }
        RegisterError::Refused(refused) => Status::permission_denied(refused.to_string()),
        RegisterError::Token(error) => Status::unauthenticated(error.to_string()),
        RegisterError::Store(error) => Status::unavailable(error.to_string()),
    })?;
    let revision = service.plane.compiled().generation + 1;
    Ok(respond(Answer::Accepted(Accepted { revision })))
}

fn respond(message: Answer) -> RegisterResponse {
    RegisterResponse {
        message: Some(message),
    }
}
