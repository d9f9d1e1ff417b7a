//! Announces the workload to the control plane, for as long as the sidecar runs.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use weft_core::model::Registration;
use weft_proto::registry::register_request::Message as Request;
use weft_proto::registry::register_response::Message as Response;
use weft_proto::registry::registry_client::RegistryClient;
use weft_proto::registry::{Goodbye, RegisterRequest, RegisterResponse};

use crate::control_plane::{Backoff, Line, Lines, opened};

/// How long leaving waits for the control plane's word that nobody is sent here any more.
const GOODBYE_MAX: Duration = Duration::from_secs(5);

/// Where the registration stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Not announced yet.
    Pending,
    /// The control plane has it on record.
    Accepted,
    /// The control plane refused it; retried all the same.
    Refused(String),
}

/// Keeps one registration up to date.
#[derive(Debug)]
pub struct Registrar {
    lines: Lines,
    wanted: watch::Receiver<Registration>,
    standing: watch::Sender<Standing>,
}

impl Registrar {
    /// Announces what `wanted` says, and whatever it changes to.
    pub fn new(lines: Lines, wanted: watch::Receiver<Registration>) -> Self {
        Self {
            lines,
            wanted,
            standing: watch::Sender::new(Standing::Pending),
        }
    }

    /// Where it stands.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Runs until `leave` fires, then takes the workload out, waits for the acknowledgement (5 s
    /// at most) and answers through the sender.
    pub async fn run(mut self, mut leave: oneshot::Receiver<oneshot::Sender<bool>>) {
        let mut backoff = Backoff::new();
        loop {
            let end = tokio::select! {
                line = self.lines.current() => self.session(line, &mut leave).await,
                asked = &mut leave => End::of_nobody(asked),
            };
            match end {
                End::Left(done, acknowledged) => {
                    let _nobody_waits = done.send(acknowledged);
                    return;
                }
                End::Abandoned => return,
                End::Broken(reason) => {
                    tracing::warn!(reason, "registration stream ended");
                }
                End::Refused(reason) => {
                    tracing::error!(reason, "registration refused");
                    self.standing.send_replace(Standing::Refused(reason));
                }
            }
            if self.standing.borrow().clone() == Standing::Accepted {
                backoff.reset();
                self.standing.send_replace(Standing::Pending);
            }
            let asked = tokio::select! {
                () = self.lines.pause(backoff.next(fastrand::f64())) => continue,
                asked = &mut leave => asked,
            };
            if let End::Left(done, acknowledged) = End::of_nobody(asked) {
                let _nobody_waits = done.send(acknowledged);
            }
            return;
        }
    }

    /// One stream to its end, over more than one connection where that is renewed.
    async fn session(
        &mut self,
        line: Line,
        leave: &mut oneshot::Receiver<oneshot::Sender<bool>>,
    ) -> End {
        let mut stream = match Stream::open(line, &mut self.wanted).await {
            Ok(stream) => stream,
            Err(status) => return from_status(&status),
        };
        loop {
            tokio::select! {
                response = stream.responses.next() => match response {
                    Some(Ok(response)) => {
                        if let Some(Response::Accepted(_)) = response.message {
                            self.standing.send_replace(Standing::Accepted);
                        }
                    }
                    Some(Err(status)) => return from_status(&status),
                    None => return End::Broken("the control plane ended the stream".to_owned()),
                },
                // The stream that stood ends when the next one has been accepted.
                line = self.lines.next() => match Stream::open(line, &mut self.wanted).await {
                    Ok(next) => stream = next,
                    Err(status) => return from_status(&status),
                },
                Ok(()) = self.wanted.changed() => {
                    let changed = self.wanted.borrow_and_update().clone();
                    let message = request(Request::Registration((&changed).into()));
                    if stream.requests.send(message).await.is_err() {
                        return End::Broken("the stream has ended".to_owned());
                    }
                }
                asked = &mut *leave => {
                    let Ok(done) = asked else { return End::Abandoned };
                    return End::Left(done, stream.leave().await);
                }
            }
        }
    }
}

/// The stream on one connection.
struct Stream {
    requests: mpsc::Sender<RegisterRequest>,
    responses: Streaming<RegisterResponse>,
}

impl Stream {
    /// Announces what is wanted now. The control plane answers when it has decided about it.
    async fn open(line: Line, wanted: &mut watch::Receiver<Registration>) -> Result<Self, Status> {
        let (requests, outgoing) = mpsc::channel(16);
        let first = wanted.borrow_and_update().clone();
        let _room = requests.try_send(request(Request::Registration((&first).into())));
        let mut client = RegistryClient::new(line);
        let responses = opened(client.register(ReceiverStream::new(outgoing))).await?;
        Ok(Self {
            requests,
            responses: responses.into_inner(),
        })
    }

    /// Takes the workload out; whether the control plane has acknowledged that.
    async fn leave(&mut self) -> bool {
        let _ended_anyway = self
            .requests
            .send(request(Request::Goodbye(Goodbye {})))
            .await;
        let released = async {
            while let Some(Ok(response)) = self.responses.next().await {
                if let Some(Response::Released(released)) = response.message {
                    return released.acknowledged;
                }
            }
            false
        };
        timeout(GOODBYE_MAX, released).await.unwrap_or(false)
    }
}

enum End {
    Left(oneshot::Sender<bool>, bool),
    Abandoned,
    Broken(String),
    Refused(String),
}

impl End {
    /// Leaving without a stream: nobody can acknowledge it, the grace takes the workload out.
    fn of_nobody(asked: Result<oneshot::Sender<bool>, oneshot::error::RecvError>) -> Self {
        match asked {
            Ok(done) => Self::Left(done, false),
            Err(_dropped) => Self::Abandoned,
        }
    }
}

fn request(message: Request) -> RegisterRequest {
    RegisterRequest {
        message: Some(message),
    }
}

fn from_status(status: &Status) -> End {
    let text = format!("{} ({:?})", status.message(), status.code());
    match status.code() {
        tonic::Code::PermissionDenied
        | tonic::Code::AlreadyExists
        | tonic::Code::InvalidArgument
        | tonic::Code::Unauthenticated => End::Refused(text),
        tonic::Code::Ok
        | tonic::Code::Cancelled
        | tonic::Code::Unknown
        | tonic::Code::DeadlineExceeded
        | tonic::Code::NotFound
        | tonic::Code::ResourceExhausted
        | tonic::Code::FailedPrecondition
        | tonic::Code::Aborted
        | tonic::Code::OutOfRange
        | tonic::Code::Unimplemented
        | tonic::Code::Internal
        | tonic::Code::Unavailable
        | tonic::Code::DataLoss => End::Broken(text),
    }
}
