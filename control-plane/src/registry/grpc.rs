//! The stream on which a sidecar announces its workload.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_core::model::{ObservedBreaker, Registration};
use weft_proto::interception;
use weft_proto::registry::register_request::Message as Asked;
use weft_proto::registry::register_response::Message as Answer;
use weft_proto::registry::registry_server::Registry as Service;
use weft_proto::registry::{
    Accepted, ObserveEnd, Observed, RegisterRequest, RegisterResponse, Released,
};

use super::observed::Told;
use super::{Departures, Observations, Refused, RegisterError, Registrations};
use crate::budget::StreamKind;
use crate::identity::Identities;
use crate::peer::{PeerIdentity, PeerInfo};
use crate::peers::LiveStream;

/// The service.
#[derive(Debug, Clone)]
pub struct RegistryService {
    /// Who is there.
    pub registrations: Arc<Registrations>,
    /// Who is revoked.
    pub identities: Arc<Identities>,
    /// What sidecars see.
    pub observations: Arc<Observations>,
    /// Who is told of those that leave.
    pub departures: Arc<dyn Departures>,
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
        let (peer, live) = self.open(&request, StreamKind::Registration)?;
        let address = PeerInfo::of(&request)?.address;
        let mut asked = request.into_inner();
        let (answers, outgoing) = mpsc::channel(8);
        let service = self.clone();
        let held = Held {
            registrations: Arc::clone(&self.registrations),
            stream: live.number(),
        };
        // The first message decides: a refusal is the status of the call.
        let first = live.receive(&mut asked).await.transpose()?;
        let Some(Asked::Registration(first)) = first.and_then(|message| message.message) else {
            return Err(Status::invalid_argument(
                "the first message has to be a registration",
            ));
        };
        let accepted = take(&service, &peer, address, live.number(), first).await?;
        let _room = answers.try_send(Ok(accepted));
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = service.converse(&peer, address, &live, asked, &answers) => ended,
                status = service.ended(&live) => Err(status),
                () = answers.closed() => Ok(()),
            };
            // Its grace begins before its last word is read.
            drop(held);
            if let Err(status) = ended {
                live.finish(&answers, status).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn observe(
        &self,
        request: Request<Streaming<Observed>>,
    ) -> Result<Response<Ends>, Status> {
        let (peer, live) = self.open(&request, StreamKind::Observation)?;
        let (end, outgoing) = mpsc::channel(1);
        let told = request.into_inner();
        let service = self.clone();
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = service.note_observed(peer, &live, told) => ended,
                status = live.ended() => Err(status),
                () = end.closed() => Ok(()),
            };
            if let Err(status) = ended {
                live.finish(&end, status).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

impl RegistryService {
    fn open<T>(
        &self,
        request: &Request<T>,
        kind: StreamKind,
    ) -> Result<(PeerIdentity, LiveStream), Status> {
        let peers = self.registrations.peers();
        peers.open_stream(&self.identities, request, kind)
    }

    /// Waits until a stream of registrations has to end. One that was superseded may end by itself:
    /// its sidecar moves to another connection.
    async fn ended(&self, live: &LiveStream) -> Status {
        let status = live.ended().await;
        if live.is_superseded() {
            tokio::time::sleep(self.registrations.superseded_kept()).await;
        }
        status
    }

    /// Answers registrations until the stream ends; an error is its status.
    async fn converse(
        &self,
        peer: &PeerIdentity,
        address: SocketAddr,
        live: &LiveStream,
        mut asked: Streaming<RegisterRequest>,
        answers: &mpsc::Sender<Result<RegisterResponse, Status>>,
    ) -> Result<(), Status> {
        while let Some(request) = live.receive(&mut asked).await.transpose()? {
            match request.message {
                Some(Asked::Registration(next)) => {
                    let answer = take(self, peer, address, live.number(), next).await?;
                    live.send(answers, answer).await?;
                }
                Some(Asked::Goodbye(_)) => {
                    let acknowledged = self.leave(live.number()).await;
                    let released = respond(Answer::Released(Released { acknowledged }));
                    return live.send(answers, released).await;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Notes what one sidecar tells until its stream ends; an error is its status.
    async fn note_observed(
        &self,
        peer: PeerIdentity,
        live: &LiveStream,
        mut told: Streaming<Observed>,
    ) -> Result<(), Status> {
        let stream = live.number();
        // Dropped with the stream, however that ends.
        let _forgotten = Forgotten {
            observations: Arc::clone(&self.observations),
            peer: peer.clone(),
            stream,
        };
        while let Some(observed) = live.receive(&mut told).await.transpose()? {
            let interception = interception(&observed);
            let breakers = observed.breakers.into_iter().map(ObservedBreaker::try_from);
            let breakers = breakers.collect::<Result<_, _>>();
            let breakers = breakers
                .map_err(|rejection| Status::invalid_argument(format!("observed: {rejection}")))?;
            let told = Told {
                breakers,
                interception,
            };
            self.observations.note(stream, &peer, Some(told));
        }
        Ok(())
    }

    /// Takes out what a stream registered and waits until every sidecar knows; false when that took
    /// too long.
    async fn leave(&self, stream: u64) -> bool {
        match self.registrations.leave(stream).await {
            Some(departed) => self.departures.told(departed).await,
            None => true,
        }
    }
}

/// Notes the end of a stream of registrations, however it ends: the grace of what it registered
/// begins.
struct Held {
    registrations: Arc<Registrations>,
    stream: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.registrations.disconnected(self.stream);
    }
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
    address: SocketAddr,
    stream: u64,
    wire: weft_proto::registry::Registration,
) -> Result<RegisterResponse, Status> {
    let registration = Registration::try_from(wire)
        .map_err(|rejection| Status::invalid_argument(format!("registration: {rejection}")))?;
    let registered = service
        .registrations
        .register(peer, address, stream, registration);
    let revision = registered.await.map_err(|error| match error {
        // The sidecar tries again: the holder may be gone for good.
        RegisterError::Refused(
            refused @ Refused::AddressTaken {
                connected: false, ..
            },
        ) => Status::failed_precondition(refused.to_string()),
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
    Ok(respond(Answer::Accepted(Accepted { revision })))
}

fn respond(message: Answer) -> RegisterResponse {
    RegisterResponse {
        message: Some(message),
    }
}
