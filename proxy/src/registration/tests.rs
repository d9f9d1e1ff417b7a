use std::collections::BTreeMap;
use std::future::pending;
use std::pin::Pin;

use tokio::time::sleep;
use tokio_stream::Stream as Messages;
use tonic::transport::Server;
use tonic::{Request as Call, Response as Answer};
use weft_proto::registry::registry_server::{Registry, RegistryServer};
use weft_proto::registry::{Accepted, ObserveEnd, Observed, Released};

use super::*;
use crate::control_plane::testing;

/// The version with which a registration ends its stream.
const END: &str = "end";

/// A control plane that takes every registration, or never answers.
#[derive(Clone)]
struct Recorder {
    name: &'static str,
    answers: bool,
    heard: mpsc::UnboundedSender<(&'static str, String)>,
}

type Responses = Pin<Box<dyn Messages<Item = Result<RegisterResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Registry for Recorder {
    type RegisterStream = Responses;
    type ObserveStream = tokio_stream::Pending<Result<ObserveEnd, Status>>;

    async fn register(
        &self,
        request: Call<Streaming<RegisterRequest>>,
    ) -> Result<Answer<Responses>, Status> {
        if !self.answers {
            return pending().await;
        }
        let (name, heard) = (self.name, self.heard.clone());
        let answers = request.into_inner().map(move |message| {
            let (said, answer) = match message?.message {
                Some(Request::Registration(wanted)) if wanted.version == END => {
                    return Err(Status::unavailable("as the test wants it"));
                }
                Some(Request::Registration(wanted)) => {
                    (wanted.version, Response::Accepted(Accepted { revision: 1 }))
                }
                Some(Request::Goodbye(_)) | None => (
                    "goodbye".to_owned(),
                    Response::Released(Released { acknowledged: true }),
                ),
            };
            let _test_is_over = heard.send((name, said));
            Ok(RegisterResponse {
                message: Some(answer),
            })
        });
        Ok(Answer::new(Box::pin(answers)))
    }

    async fn observe(
        &self,
        _request: Call<Streaming<Observed>>,
    ) -> Result<Answer<Self::ObserveStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

/// What the test has control of.
struct Bed {
    connection: watch::Sender<Option<Line>>,
    wanted: watch::Sender<Registration>,
    leave: Option<oneshot::Sender<oneshot::Sender<bool>>>,
    standing: watch::Receiver<RegistrationState>,
    heard: mpsc::UnboundedReceiver<(&'static str, String)>,
    said: mpsc::UnboundedSender<(&'static str, String)>,
}

impl Bed {
    fn new() -> Self {
        let (connection, lines) = testing::lines();
        let (wanted, latest) = watch::channel(registration("1"));
        let registrar = Registrar::new(lines, latest);
        let standing = registrar.standing();
        let (leave, left) = oneshot::channel();
        tokio::spawn(registrar.run(left));
        let (said, heard) = mpsc::unbounded_channel();
        Self {
            connection,
            wanted,
            leave: Some(leave),
            standing,
            heard,
            said,
        }
    }

    async fn connect(&self, name: &'static str, answers: bool) {
        let recorder = Recorder {
            name,
            answers,
            heard: self.said.clone(),
        };
        let server = Server::builder().add_service(RegistryServer::new(recorder));
        let line = testing::line(server).await;
        self.connection.send_replace(Some(line));
    }

    fn leave(&mut self, done: oneshot::Sender<bool>) {
        let leave = self.leave.take().unwrap();
        leave.send(done).unwrap();
    }

    async fn hears(&mut self, name: &str, message: &str) {
        let heard = self.heard.recv().await.unwrap();
        assert_eq!((heard.0, &*heard.1), (name, message));
    }
}

fn registration(version: &str) -> Registration {
    Registration {
        workload: "shop/web".parse().unwrap(),
        services: vec![],
        addresses: vec![],
        ports: vec![],
        labels: BTreeMap::new(),
        zone: String::new(),
        weight: 100,
        metrics_target: String::new(),
        version: version.to_owned(),
    }
}

#[tokio::test(start_paused = true)]
async fn the_stream_stands_until_the_next_one_does() {
    let mut bed = Bed::new();
    bed.connect("first", true).await;
    bed.hears("first", "1").await;
    let accepted = |standing: &RegistrationState| *standing == RegistrationState::Accepted;
    bed.standing.wait_for(accepted).await.unwrap();

    // The next one hangs: for longer than the 15 s after which that is given up.
    bed.connect("hanging", false).await;
    for _ in 0..20 {
        sleep(Duration::from_secs(1)).await;
        assert_eq!(*bed.standing.borrow(), RegistrationState::Accepted);
    }
    bed.wanted.send_replace(registration("2"));
    sleep(Duration::from_secs(20)).await;
    assert_eq!(*bed.standing.borrow(), RegistrationState::Accepted);
    bed.hears("first", "2").await;

    bed.connect("second", true).await;
    bed.hears("second", "2").await;
    bed.wanted.send_replace(registration("3"));
    bed.hears("second", "3").await;
    let (done, acknowledged) = oneshot::channel();
    bed.leave(done);
    assert_eq!(acknowledged.await, Ok(true));
    bed.hears("second", "goodbye").await;
}

#[tokio::test(start_paused = true)]
async fn leaving_waits_for_a_connection() {
    let mut bed = Bed::new();
    bed.connect("first", true).await;
    bed.hears("first", "1").await;
    let accepted = |standing: &RegistrationState| *standing == RegistrationState::Accepted;
    bed.standing.wait_for(accepted).await.unwrap();
    bed.connection.send_replace(None);
    bed.wanted.send_replace(registration(END));
    let pending = |standing: &RegistrationState| *standing == RegistrationState::Pending;
    bed.standing.wait_for(pending).await.unwrap();
    bed.wanted.send_replace(registration("2"));
    let (done, mut acknowledged) = oneshot::channel();
    bed.leave(done);
    sleep(Duration::from_secs(1)).await;
    bed.connect("second", true).await;
    let answer = timeout(GOODBYE_MAX, &mut acknowledged).await;
    assert_eq!(answer, Ok(Ok(true)));
    bed.hears("second", "2").await;
    bed.hears("second", "goodbye").await;
}

#[tokio::test(start_paused = true)]
async fn leaving_without_a_connection_ends_in_time() {
    let mut bed = Bed::new();
    bed.connect("hanging", false).await;
    sleep(Duration::from_secs(1)).await;
    let (done, acknowledged) = oneshot::channel();
    let began = Instant::now();
    bed.leave(done);
    assert_eq!(acknowledged.await, Ok(false));
    assert_eq!(began.elapsed(), GOODBYE_MAX);

    let mut bed = Bed::new();
    let (done, acknowledged) = oneshot::channel();
    let began = Instant::now();
    bed.leave(done);
    assert_eq!(acknowledged.await, Ok(false), "nothing was announced");
    assert_eq!(began.elapsed(), Duration::ZERO);
}
