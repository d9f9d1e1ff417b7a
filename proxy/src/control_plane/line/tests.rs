use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::duplex;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_proto::identity::identity_client::IdentityClient;
use weft_proto::identity::identity_server::{Identity, IdentityServer};
use weft_proto::identity::{SignRequest, SignResponse};
use weft_proto::ratelimit::rate_limits_client::RateLimitsClient;
use weft_proto::ratelimit::rate_limits_server::{RateLimits, RateLimitsServer};
use weft_proto::ratelimit::{Grant, Grants, Reports, Rule};

use super::*;

const LIMIT: Duration = Duration::from_secs(10);
/// Bytes of one message of the server that says too much.
const MESSAGE: usize = 32 * 1024;

/// Answers, and says more on its streams than anybody reads.
#[derive(Clone, Default)]
struct Talkative {
    said: Arc<AtomicU64>,
}

#[tonic::async_trait]
impl Identity for Talkative {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        if request.into_inner().csr.is_empty() {
            return Err(Status::invalid_argument("as the test wants it"));
        }
        Ok(Response::new(SignResponse::default()))
    }
}

#[tonic::async_trait]
impl RateLimits for Talkative {
    type LeaseStream = ReceiverStream<Result<Grants, Status>>;

    async fn lease(
        &self,
        _request: Request<Streaming<Reports>>,
    ) -> Result<Response<Self::LeaseStream>, Status> {
        let (grants, outgoing) = mpsc::channel(1);
        let said = Arc::clone(&self.said);
        tokio::spawn(async move {
            let grant = Grant {
                rule: Some(Rule {
                    namespace: "r".repeat(MESSAGE),
                    ..Rule::default()
                }),
                ..Grant::default()
            };
            let message = Grants {
                grants: vec![grant],
            };
            while grants.send(Ok(message.clone())).await.is_ok() {
                said.fetch_add(MESSAGE as u64, Relaxed);
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// A connection to `server`.
async fn connected(server: &Talkative) -> Line {
    let server = tonic::transport::Server::builder()
        .add_service(IdentityServer::new(server.clone()))
        .add_service(RateLimitsServer::new(server.clone()));
    crate::control_plane::testing::line(server).await
}

async fn sign(line: &Line, csr: &[u8]) -> Result<(), tonic::Code> {
    let request = SignRequest {
        csr: csr.to_vec(),
        credential: None,
    };
    let mut client = IdentityClient::new(line.clone());
    let answer = timeout(LIMIT, client.sign(request)).await;
    answer.unwrap().map(drop).map_err(|status| status.code())
}

#[tokio::test]
async fn a_stream_that_is_not_read_or_fails_stops_no_other() {
    let server = Talkative::default();
    let line = connected(&server).await;
    let mut unread = Vec::new();
    for _ in 0..4 {
        let mut client = RateLimitsClient::new(line.clone());
        let grants = client.lease(tokio_stream::pending::<Reports>()).await;
        unread.push(grants.unwrap().into_inner());
    }
    // Until each has sent all that its window allows.
    let mut before = 0;
    loop {
        sleep(Duration::from_millis(100)).await;
        let now = server.said.load(Relaxed);
        if now == before && now >= 4 * u64::from(STREAM_WINDOW) {
            break;
        }
        before = now;
    }
    assert_eq!(sign(&line, b"x").await, Ok(()));
    assert_eq!(sign(&line, b"").await, Err(tonic::Code::InvalidArgument));
    assert_eq!(sign(&line, b"x").await, Ok(()));
    drop(unread);
    assert_eq!(sign(&line, b"x").await, Ok(()));
}

#[tokio::test]
async fn the_connection_ends_with_its_last_handle_and_is_seen_to_end() {
    let (ours, theirs) = duplex(1024);
    let (line, standing) = open(ours).await.unwrap();
    let standing = tokio::spawn(standing);
    drop(line);
    timeout(LIMIT, standing).await.unwrap().unwrap();
    drop(theirs);

    let (ours, theirs) = duplex(1024);
    let (mut line, standing) = open(ours).await.unwrap();
    drop(theirs);
    timeout(LIMIT, standing).await.unwrap();
    let ready = poll_fn(|context| line.poll_ready(context));
    assert!(ready.await.is_err());
}

/// As after a certificate that was refused when the client's handshake was over.
#[tokio::test]
async fn a_connection_that_answers_nothing_is_not_proved() {
    let (ours, theirs) = duplex(1024);
    let (line, standing) = open(ours).await.unwrap();
    tokio::spawn(standing);
    let (proved, ()) = tokio::join!(line.proved(), async { drop(theirs) });
    assert!(proved.is_err());
    let line = connected(&Talkative::default()).await;
    assert_eq!(line.proved().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_stays_silent_is_not_proved() {
    let (ours, theirs) = duplex(1024);
    let (line, standing) = open(ours).await.unwrap();
    tokio::spawn(standing);
    assert!(line.proved().await.is_err());
    drop(theirs);
}
