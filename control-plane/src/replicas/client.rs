//! Follows the other control planes, each on a connection of its own.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use weft_core::name::SpiffeId;
use weft_proto::replica::FollowRequest;
use weft_proto::replica::replicas_client::ReplicasClient;
use weft_proto::replicas::ReplicaReport;

use super::relay::relay;
use super::{EXPIRES, OTHERS_MAX, Replicas};
use crate::identity::ca::{Authority, CaError, OWN_DNS_NAME};
use crate::kubernetes::endpoints::ControlPlanes;
use crate::kubernetes::retry::{Backoff, Pauses};
use crate::tls::peer_of;

/// Pauses between connections to one of the others.
const DIALLED_AGAIN: Pauses = Pauses {
    first: Duration::from_millis(250),
    longest: Duration::from_secs(5),
};
/// How long a connection, its handshake and the begin of its stream may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How this control plane shows the others who it is.
#[derive(Debug, Clone)]
pub struct Dialling {
    /// What signs its certificate, and what theirs have to lead to.
    pub authority: Arc<Authority>,
    /// How long a certificate is good; a connection is exchanged at half of it.
    pub ttl: Duration,
    /// Who the others are.
    pub identity: SpiffeId,
}

/// Why another control plane is not followed.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("{0}")]
    Connect(#[from] tonic::transport::Error),
    #[error("{}", said(.0))]
    Call(#[from] tonic::Status),
    #[error(transparent)]
    Certificate(#[from] CaError),
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    #[error("what it tells cannot be read: {0}")]
    Report(#[from] weft_proto::Rejection),
    #[error(transparent)]
    TooMany(#[from] super::TooMany),
    #[error("nothing heard within {0:?}")]
    Silent(Duration),
    #[error("it has ended the stream")]
    Ended,
}

/// What a refused call is told as: one that is not known has no text.
fn said(status: &tonic::Status) -> String {
    match (status.code(), status.message()) {
        (Code::Unimplemented, _) => "it is of a version that does not tell others".to_owned(),
        (code, "") => format!("{code:?}"),
        (_, text) => text.to_owned(),
    }
}

/// Why a stream is not followed any further, without a fault.
enum Done {
    /// It is this process.
    Own,
    /// The certificate is at half of its life.
    Exchange,
}

/// When it is said that this process is missing from the list: once, after a while.
#[derive(Debug)]
struct Missing {
    since: Option<Instant>,
    is_said: bool,
}

impl Missing {
    const AFTER: Duration = Duration::from_secs(30);

    fn new(now: Instant) -> Self {
        Self {
            since: Some(now),
            is_said: false,
        }
    }

    fn is_due(&mut self, is_missing: bool, now: Instant) -> bool {
        if !is_missing {
            self.since = None;
            self.is_said = false;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let is_due = !self.is_said && now.saturating_duration_since(since) >= Self::AFTER;
        self.is_said |= is_due;
        is_due
    }
}

impl Replicas {
    /// Follows those who are found, until whoever finds them has ended.
    pub async fn keep(
        self: Arc<Self>,
        mut found: watch::Receiver<Option<ControlPlanes>>,
        dialling: Dialling,
    ) {
        let mut tasks = JoinSet::new();
        let mut missing = Missing::new(Instant::now());
        let mut followed: HashMap<(String, SocketAddr), AbortHandle> = HashMap::new();
        loop {
            let listed = found.borrow_and_update().clone();
            if let Some(current) = &listed {
                // Those that are not followed are never heard, and so unknown.
                self.retain(current, Instant::now());
            }
            let mut current = listed.unwrap_or_default();
            // This process is one of them.
            if current.len() > OTHERS_MAX + 1 {
                tracing::warn!(
                    found = current.len(),
                    max = OTHERS_MAX + 1,
                    "too many control planes are found: of the sidecars of some nothing is known, and no \
                     document is said to be in force everywhere"
                );
                current = current.into_iter().take(OTHERS_MAX + 1).collect();
            }
            followed.retain(|(name, address), task| {
                let stays = current.get(name) == Some(address);
                if !stays {
                    task.abort();
                }
                stays
            });
            for (name, address) in current {
                let task = || {
                    let following =
                        Arc::clone(&self).follow(name.clone(), address, dialling.clone());
                    tasks.spawn(following)
                };
                followed.entry((name.clone(), address)).or_insert_with(task);
            }
            let now = Instant::now();
            if missing.is_due(self.lacks_itself(), now) {
                tracing::warn!(
                    "this control plane has not reached itself by the EndpointSlices of the Service \
                     weft-control-plane, port grpc-xds: others may be missing there, too, and no document is \
                     said to be in force everywhere; look at the Service and at --kubernetes-namespace"
                );
            }
            let expiry = self.next_expiry(now).unwrap_or(now + EXPIRES);
            tokio::select! {
                changed = found.changed() => if changed.is_err() {
                    return;
                },
                // Those who wait for what it told are told that it is not known any more.
                () = sleep_until(expiry.into()) => self.publisher.tell_moved(),
            }
            while tasks.try_join_next().is_some() {}
        }
    }

    async fn follow(self: Arc<Self>, name: String, address: SocketAddr, dialling: Dialling) {
        let mut backoff = Backoff::new(DIALLED_AGAIN);
        loop {
            match self
                .follow_once(&name, address, &dialling, &mut backoff)
                .await
            {
                Ok(Done::Own) => return,
                Ok(Done::Exchange) => continue,
                Err(error) => {
                    tracing::info!(name, %address, %error, "another control plane is not followed");
                }
            }
            sleep(backoff.next().unwrap_or(DIALLED_AGAIN.longest)).await;
        }
    }

    async fn follow_once(
        &self,
        name: &str,
        address: SocketAddr,
        dialling: &Dialling,
        backoff: &mut Backoff,
    ) -> Result<Done, FollowError> {
        let exchanged = tokio::time::Instant::now() + dialling.ttl / 2;
        let begin = async {
            let channel = connect(address, self.name(), dialling).await?;
            let mut client = ReplicasClient::new(channel.clone());
            let reports = client.follow(FollowRequest {}).await?.into_inner();
            Ok::<_, FollowError>((channel, reports))
        };
        let begun = timeout(CONNECT_MAX, begin).await;
        let (channel, mut reports) =
            begun.map_err(|_elapsed| FollowError::Silent(CONNECT_MAX))??;
        self.begin(name);
        // Ends with this connection.
        let mut relaying = JoinSet::new();
        let mut books_term = None;
        loop {
            let message = tokio::select! {
                message = timeout(EXPIRES, reports.message()) => message,
                () = sleep_until(exchanged) => return Ok(Done::Exchange),
            };
            let message = message.map_err(|_elapsed| FollowError::Silent(EXPIRES))??;
            let message = message.ok_or(FollowError::Ended)?;
            let report = ReplicaReport::try_from(message)?;
            let whole = report.whole.as_ref().map(|whole| whole.books_term);
            if self.take(name, report)? {
                return Ok(Done::Own);
            }
            if let Some(term) = whole {
                if term != std::mem::replace(&mut books_term, term) {
                    relaying.shutdown().await;
                    if term.is_some() {
                        let leases = Arc::clone(&self.leases);
                        relaying.spawn(relay(leases, name.to_owned(), channel.clone()));
                    }
                }
                if let Some(term) = term {
                    self.leases.hear(term);
                }
            }
            *backoff = Backoff::new(DIALLED_AGAIN);
        }
    }
}

/// Connects, and makes sure that a control plane of the mesh is at the other end.
async fn connect(
    address: SocketAddr,
    replica: &str,
    dialling: &Dialling,
) -> Result<Channel, FollowError> {
    let connector = TlsConnector::from(Arc::new(config(replica, dialling)?));
    let identity = dialling.identity.clone();
    let dial = tower::service_fn(move |_uri: http::Uri| {
        let (connector, identity) = (connector.clone(), identity.clone());
        async move { Ok::<_, io::Error>(TokioIo::new(dial(address, connector, identity).await?)) }
    });
    let endpoint = Endpoint::from_static("http://control-plane.weft");
    Ok(endpoint.connect_with_connector(dial).await?)
}

fn config(replica: &str, dialling: &Dialling) -> Result<ClientConfig, FollowError> {
    let authority = &dialling.authority;
    let (chain, key) = authority.own_client(replica, dialling.ttl, SystemTime::now())?;
    let mut roots = RootCertStore::empty();
    roots.add(authority.root().clone())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // On a resumed handshake no verifier runs.
    config.resumption = Resumption::disabled();
    Ok(config)
}

async fn dial(
    address: SocketAddr,
    connector: TlsConnector,
    identity: SpiffeId,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(OWN_DNS_NAME).map_err(io::Error::other)?;
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let stream = connector.connect(name, stream).await?;
    // A sidecar's certificate leads to the same root.
    let shown = stream.get_ref().1.peer_certificates();
    let peer = shown.and_then(|chain| chain.first()).and_then(peer_of);
    match peer {
        Some(peer) if peer.identity == identity => Ok(stream),
        Some(peer) => Err(io::Error::other(format!(
            "{} is no control plane of the mesh",
            peer.identity
        ))),
        None => Err(io::Error::other("its certificate names nobody")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_it_is_missing_from_the_list_is_said_once_after_a_while() {
        let begin = Instant::now();
        let mut missing = Missing::new(begin);
        let second = Duration::from_secs(1);
        assert!(!missing.is_due(true, begin + Missing::AFTER - second));
        assert!(missing.is_due(true, begin + Missing::AFTER));
        assert!(!missing.is_due(true, begin + 9 * Missing::AFTER));
        assert!(!missing.is_due(false, begin + 10 * Missing::AFTER));
        assert!(!missing.is_due(true, begin + 10 * Missing::AFTER));
        assert!(missing.is_due(true, begin + 11 * Missing::AFTER));
    }

    #[test]
    fn why_a_call_was_refused_is_told_also_without_a_text() {
        let status = |code, text| FollowError::Call(tonic::Status::new(code, text)).to_string();
        let older = status(Code::Unimplemented, "");
        assert_eq!(older, "it is of a version that does not tell others");
        assert_eq!(status(Code::Unavailable, ""), "Unavailable");
        assert_eq!(status(Code::PermissionDenied, "no peer"), "no peer");
    }
}
