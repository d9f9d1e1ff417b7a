//! Announces the workload to the control plane, for as long as the sidecar runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use weft_core::model::Registration;
use weft_proto::registry::register_request::Message as Request;
use weft_proto::registry::register_response::Message as Response;
use weft_proto::registry::registry_client::RegistryClient;
use weft_proto::registry::{Goodbye, RegisterRequest};

use crate::control_plane::{self, Trusting};
use crate::identity::Manager;
use crate::tls::Trust;

/// Reconnecting: first wait, doubled up to the cap.
const RECONNECT_FIRST: Duration = Duration::from_millis(100);
const RECONNECT_MAX: Duration = Duration::from_secs(3);
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
    address: String,
    identity: Arc<Manager>,
    wanted: watch::Receiver<Registration>,
    standing: watch::Sender<Standing>,
}

impl Registrar {
    /// Announces what `wanted` says, and whatever it changes to.
    pub fn new(
        address: String,
        identity: Arc<Manager>,
        wanted: watch::Receiver<Registration>,
    ) -> Self {
        Self {
            address,
            identity,
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
        let mut wait = RECONNECT_FIRST;
        loop {
            let session = self.session(&mut leave);
            match session.await {
                End::Left(done, acknowledged) => {
                    let _nobody_waits = done.send(acknowledged);
                    return;
                }
                End::Abandoned => return,
                End::Broken(reason) => {
                    tracing::warn!(reason, retry_in = ?wait, "registration stream ended");
                }
                End::Refused(reason) => {
                    tracing::error!(reason, "registration refused");
                    self.standing.send_replace(Standing::Refused(reason));
                }
            }
            if self.standing.borrow().clone() == Standing::Accepted {
                wait = RECONNECT_FIRST;
                self.standing.send_replace(Standing::Pending);
            }
            tokio::select! {
                () = sleep(wait.mul_f64(0.75 + fastrand::f64() * 0.5)) => {}
                asked = &mut leave => {
                    // Without a stream nobody can acknowledge: the grace takes the workload out.
                    if let Ok(done) = asked {
                        let _nobody_waits = done.send(false);
                    }
                    return;
                }
            }
            wait = (wait * 2).min(RECONNECT_MAX);
        }
    }

    async fn session(&mut self, leave: &mut oneshot::Receiver<oneshot::Sender<bool>>) -> End {
        let identity = self.identity.subscribe().borrow().clone();
        let Some(identity) = identity else {
            return End::Broken("no certificate yet".to_owned());
        };
        let trust = match Trust::new(&identity.bundle) {
            Ok(trust) => Arc::new(trust),
            Err(error) => return End::Broken(error.to_string()),
        };
        let trusting = Trusting::Mutual(trust, Arc::clone(&identity.credentials));
        let channel = match control_plane::connect(&self.address, &trusting).await {
            Ok(channel) => channel,
            Err(error) => return End::Broken(error.to_string()),
        };
        let (requests, outgoing) = mpsc::channel(16);
        let first = self.wanted.borrow_and_update().clone();
        let _room = requests.try_send(request(Request::Registration((&first).into())));
        let mut client = RegistryClient::new(channel);
        let mut responses = match client.register(ReceiverStream::new(outgoing)).await {
            Ok(response) => response.into_inner(),
            Err(status) => return from_status(&status),
        };
        loop {
            tokio::select! {
                response = responses.next() => match response {
                    Some(Ok(response)) => {
                        if let Some(Response::Accepted(_)) = response.message {
                            self.standing.send_replace(Standing::Accepted);
                        }
                    }
                    Some(Err(status)) => return from_status(&status),
                    None => return End::Broken("the control plane ended the stream".to_owned()),
                },
                Ok(()) = self.wanted.changed() => {
                    let changed = self.wanted.borrow_and_update().clone();
                    let message = request(Request::Registration((&changed).into()));
                    if requests.send(message).await.is_err() {
                        return End::Broken("the stream has ended".to_owned());
                    }
                }
                asked = &mut *leave => {
                    let Ok(done) = asked else { return End::Abandoned };
                    let _ended_anyway = requests.send(request(Request::Goodbye(Goodbye {}))).await;
                    let released = async {
                        while let Some(Ok(response)) = responses.next().await {
                            if let Some(Response::Released(released)) = response.message {
                                return released.acknowledged;
                            }
                        }
                        false
                    };
                    let acknowledged = timeout(GOODBYE_MAX, released).await.unwrap_or(false);
                    return End::Left(done, acknowledged);
                }
            }
        }
    }
}

enum End {
    Left(oneshot::Sender<bool>, bool),
    Abandoned,
    Broken(String),
    Refused(String),
}

fn request(message: Request) -> RegisterRequest {
    RegisterRequest {
        message: Some(message),
    }
}

fn from_status(status: &tonic::Status) -> End {
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
