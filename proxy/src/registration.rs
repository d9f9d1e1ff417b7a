//! Announces the workload to the control plane, for as long as the sidecar runs.

use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use weft_core::model::Registration;
use weft_proto::registry::register_request::Message as Request;
use weft_proto::registry::register_response::Message as Response;
use weft_proto::registry::registry_client::RegistryClient;
use weft_proto::registry::{Goodbye, RegisterRequest, RegisterResponse};

use crate::control_plane::{Backoff, Line, Lines, Moves, described, end_status, ended, opened};

/// Messages on their way.
const REQUESTS_MAX: usize = 16;
/// How long leaving waits for the control plane's word that nobody is sent here any more; for a
/// connection, too, where there is none.
const GOODBYE_MAX: Duration = Duration::from_secs(5);

/// Where the registration stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistrationState {
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
    standing: watch::Sender<RegistrationState>,
    /// Whether the control plane may have the workload on record by a stream of ours.
    announced: bool,
}

impl Registrar {
    /// Announces what `wanted` says, and whatever it changes to.
    pub fn new(lines: Lines, wanted: watch::Receiver<Registration>) -> Self {
        Self {
            lines,
            wanted,
            standing: watch::Sender::new(RegistrationState::Pending),
            announced: false,
        }
    }

    /// Where it stands.
    pub fn standing(&self) -> watch::Receiver<RegistrationState> {
        self.standing.subscribe()
    }

    /// Runs until `leave` fires, then takes the workload out, waits for the acknowledgement (5 s
    /// at most) and answers through the sender.
    pub async fn run(mut self, mut leave: Leave) {
        let mut backoff = Backoff::new();
        loop {
            let end = self.announce(&mut backoff, &mut leave).await;
            match end {
                End::Leaving(asked, stream) => return self.say_goodbye(asked, stream).await,
                End::Broken(reason) => {
                    tracing::warn!(reason, "registration stream ended");
                    if *self.standing.borrow() == RegistrationState::Accepted {
                        self.standing.send_replace(RegistrationState::Pending);
                    }
                }
                End::Refused(reason) => {
                    tracing::error!(reason, "registration refused");
                    self.announced = false;
                    self.standing
                        .send_replace(RegistrationState::Refused(reason));
                }
            }
            tokio::select! {
                () = self.lines.pause(backoff.next(fastrand::f64())) => {}
                asked = &mut leave => return self.say_goodbye(asked, None).await,
            }
        }
    }

    /// Opens a stream, once there is a connection, and keeps it to its end.
    async fn announce(&mut self, backoff: &mut Backoff, leave: &mut Leave) -> End {
        let line = tokio::select! {
            line = self.lines.current() => line,
            asked = &mut *leave => return End::Leaving(asked, None),
        };
        // The control plane may take it, whether or not that is heard here.
        self.announced = true;
        let wanted = self.wanted.borrow_and_update().clone();
        let opened = tokio::select! {
            opened = Stream::open(line, wanted) => opened,
            asked = &mut *leave => return End::Leaving(asked, None),
        };
        match opened {
            Ok(stream) => {
                let since = Instant::now();
                let end = self.session(stream, leave).await;
                backoff.stood(since.elapsed());
                end
            }
            Err(status) => from_status(&status),
        }
    }

    /// One stream to its end, over more than one connection where that is renewed.
    async fn session(&mut self, mut stream: Stream, leave: &mut Leave) -> End {
        let mut moves = Moves::new("registration", &mut self.lines);
        let latest = self.wanted.clone();
        loop {
            tokio::select! {
                response = stream.responses.next() => match response {
                    Some(Ok(response)) => {
                        if let Some(Response::Accepted(_)) = response.message {
                            self.standing.send_replace(RegistrationState::Accepted);
                        }
                    }
                    Some(Err(status)) => return from_status(&status),
                    None => return from_status(&ended()),
                },
                // The stream that stood ends when the next one has been accepted.
                next = moves.next(|line| Stream::open(line, latest.borrow().clone())) => {
                    stream = next;
                    let wanted = self.wanted.borrow_and_update().clone();
                    if let Err(end) = stream.tell(wanted).await {
                        return end;
                    }
                }
                // The next stream may hold the registration already: it is told what has changed.
                Ok(()) = self.wanted.changed(), if !moves.is_opening() => {
                    let wanted = self.wanted.borrow_and_update().clone();
                    if let Err(end) = stream.tell(wanted).await {
                        return end;
                    }
                }
                asked = &mut *leave => {
                    let next = timeout(GOODBYE_MAX / 2, moves.finish()).await;
                    let newest = next.ok().flatten().unwrap_or(stream);
                    return End::Leaving(asked, Some(Box::new(newest)));
                }
            }
        }
    }

    /// Takes the workload out, on `stream` or, where that fails, on another connection.
    async fn say_goodbye(mut self, asked: Asked, stream: Option<Box<Stream>>) {
        let Ok(done) = asked else { return };
        let acknowledged = match self.announced {
            true => timeout(GOODBYE_MAX, self.released(stream)).await,
            false => Ok(false),
        };
        let _nobody_waits = done.send(acknowledged.unwrap_or(false));
    }

    /// Whether everybody knows that the workload is gone.
    async fn released(&mut self, mut stream: Option<Box<Stream>>) -> bool {
        let mut backoff = Backoff::new();
        loop {
            if let Some(mut stream) = stream.take()
                && let Some(acknowledged) = stream.leave().await
            {
                return acknowledged;
            }
            self.lines.pause(backoff.next(fastrand::f64())).await;
            let line = self.lines.current().await;
            // A stream takes out what it has announced.
            let wanted = self.wanted.borrow().clone();
            match Stream::open(line, wanted).await {
                Ok(opened) => stream = Some(Box::new(opened)),
                Err(status) => {
                    if let End::Refused(_) = from_status(&status) {
                        return false;
                    }
                }
            }
        }
    }
}

/// The stream on one connection.
struct Stream {
    requests: mpsc::Sender<RegisterRequest>,
    responses: Streaming<RegisterResponse>,
    /// What was announced on it last.
    told: Registration,
}

impl Stream {
    /// Announces the workload. The control plane answers when it has decided about it.
    async fn open(line: Line, wanted: Registration) -> Result<Self, Status> {
        let (requests, outgoing) = mpsc::channel(REQUESTS_MAX);
        let _room = requests.try_send(request(Request::Registration((&wanted).into())));
        let mut client = RegistryClient::new(line);
        let responses = opened(client.register(ReceiverStream::new(outgoing))).await?;
        Ok(Self {
            requests,
            responses: responses.into_inner(),
            told: wanted,
        })
    }

    /// Announces what has changed.
    async fn tell(&mut self, wanted: Registration) -> Result<(), End> {
        if wanted == self.told {
            return Ok(());
        }
        let message = request(Request::Registration((&wanted).into()));
        self.told = wanted;
        match self.requests.try_send(message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Closed(_)) => {
                Err(from_status(&end_status(&mut self.responses).await))
            }
            Err(TrySendError::Full(_)) => Err(End::Broken(format!(
                "the control plane has not read {REQUESTS_MAX} messages"
            ))),
        }
    }

    /// Takes the workload out; whether everybody knows, `None` where the stream has ended before
    /// that was said.
    async fn leave(&mut self) -> Option<bool> {
        let goodbye = request(Request::Goodbye(Goodbye {}));
        self.requests.send(goodbye).await.ok()?;
        while let Some(Ok(response)) = self.responses.next().await {
            if let Some(Response::Released(released)) = response.message {
                return Some(released.acknowledged);
            }
        }
        None
    }
}

/// Who asks to leave waits for the answer; an error where nobody can ask any more.
type Asked = Result<oneshot::Sender<bool>, oneshot::error::RecvError>;
/// Fires when the workload is to be taken out.
type Leave = oneshot::Receiver<oneshot::Sender<bool>>;

enum End {
    /// It was asked to leave, on this stream.
    Leaving(Asked, Option<Box<Stream>>),
    Broken(String),
    Refused(String),
}

fn request(message: Request) -> RegisterRequest {
    RegisterRequest {
        message: Some(message),
    }
}

fn from_status(status: &Status) -> End {
    let text = described(status);
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

#[cfg(test)]
mod tests;
