//! DNS for programs whose queries are captured: mesh names are answered here, everything else goes
//! to the host's own resolvers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::mesh::Mesh;
use crate::telemetry::metrics::Metrics;

mod message;

use message::MESSAGE_MAX;
pub use message::{Answer, Decision, HOST_NAME, Query, Transport};

/// Queries at the same time.
const QUERIES_MAX: usize = 512;
/// What one of the host's resolvers may take.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(3);
/// A silent TCP client is dropped.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// What to answer, and whom to ask.
#[derive(Debug)]
pub struct Resolver {
    mesh: Arc<Mesh>,
    /// The host's resolvers, in their order.
    nameservers: Vec<SocketAddr>,
    /// What [`HOST_NAME`] stands for.
    host: Vec<IpAddr>,
    /// The host has no IPv6: external AAAA answers would lead nowhere.
    drop_external_aaaa: bool,
    room: Arc<Semaphore>,
    metrics: Metrics,
}

/// What the mesh knows of a name outside of it.
enum External {
    /// Nothing: the host's resolvers are asked.
    Elsewhere,
    /// The addresses of a service that goes by it.
    Here(Vec<IpAddr>),
    /// The control plane has not said.
    Unanswered,
}

impl Resolver {
    /// A resolver that asks `nameservers` for what is not of the mesh.
    pub fn new(
        mesh: Arc<Mesh>,
        nameservers: Vec<SocketAddr>,
        host: Vec<IpAddr>,
        drop_external_aaaa: bool,
        metrics: Metrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            mesh,
            nameservers,
            host,
            drop_external_aaaa,
            room: Arc::new(Semaphore::new(QUERIES_MAX)),
            metrics,
        })
    }

    /// Serves UDP until the task is dropped.
    pub async fn serve_udp(self: Arc<Self>, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut buffer = vec![0; MESSAGE_MAX];
        loop {
            let (length, client) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    tracing::debug!(%error, "DNS over UDP");
                    continue;
                }
            };
            // When there is no room the query is dropped; resolvers ask again.
            let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
                continue;
            };
            let (resolver, socket) = (Arc::clone(&self), Arc::clone(&socket));
            let query = buffer[..length].to_vec();
            tokio::spawn(async move {
                let _held_until_answered = permit;
                if let Some(answer) = resolver.answer(&query, Transport::Udp).await
                    && let Err(error) = socket.send_to(&answer, client).await
                {
                    tracing::debug!(%error, "DNS answer not sent");
                }
            });
        }
    }

    /// Serves TCP until the task is dropped.
    pub async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((mut stream, _client)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
                continue;
            };
            let resolver = Arc::clone(&self);
            tokio::spawn(async move {
                let _held_until_closed = permit;
                while let Ok(Ok(query)) = timeout(TCP_IDLE, read_message(&mut stream)).await {
                    let Some(answer) = resolver.answer(&query, Transport::Tcp).await else {
                        return;
                    };
                    if write_message(&mut stream, &answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    }

    async fn answer(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let totals = self.metrics.totals();
        let Some(query) = Query::read(bytes) else {
            totals.dns_failed.inc();
            return None;
        };
        let known: Result<Vec<IpAddr>, Answer<'_>> = match query.decide(self.mesh.cluster_domain())
        {
            Decision::Drop => return None,
            Decision::Forward => match self.external(&query).await {
                External::Elsewhere => return self.forward(&query, bytes, transport).await,
                External::Here(addresses) => Ok(addresses),
                External::Unanswered => Err(Answer::Unknown),
            },
            Decision::ClusterService(service) => match self.mesh.service(&service.hostname()).await
            {
                // One without addresses is found by its pods, which the cluster's DNS knows.
                Ok(Some(view)) if !view.addresses().is_empty() => Ok(view.addresses().to_vec()),
                Ok(_) => return self.forward(&query, bytes, transport).await,
                // Unanswered is not absent.
                Err(_reason) => Err(Answer::Unknown),
            },
            Decision::Malformed => Err(Answer::Malformed),
            Decision::NoSuchName => Err(Answer::NoSuchName),
            Decision::Host => Ok(self.host.clone()),
            Decision::Service(service) => match self.mesh.service(&service.hostname()).await {
                Ok(Some(view)) => Ok(view.addresses().to_vec()),
                Ok(None) => Err(Answer::NoSuchName),
                // Unanswered is not absent.
                Err(_reason) => Err(Answer::Unknown),
            },
        };
        let answer = match &known {
            Ok(addresses) => Answer::Addresses(addresses),
            Err(answer) => *answer,
        };
        match answer.is_failure() {
            true => totals.dns_failed.inc(),
            false => totals.dns_answered.inc(),
        }
        query.answer(answer, transport)
    }

    /// Whether a name outside the mesh is one that a service goes by.
    async fn external(&self, query: &Query) -> External {
        let Some(name) = query.name_of_addresses() else {
            return External::Elsewhere;
        };
        let service = match self.mesh.external_host(&name).await {
            Ok(Some(service)) => service,
            Ok(None) => return External::Elsewhere,
            // Unanswered is not absent.
            Err(_reason) => return External::Unanswered,
        };
        match self.mesh.service(&service).await {
            Ok(Some(view)) => External::Here(view.addresses().to_vec()),
            // It has just come or gone: what is known does not fit together yet.
            Ok(None) | Err(_) => External::Unanswered,
        }
    }

    async fn forward(&self, query: &Query, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        if self.drop_external_aaaa && query.asks_for_ipv6() {
            self.metrics.totals().dns_answered.inc();
            return query.answer(Answer::Addresses(&[]), transport);
        }
        for server in &self.nameservers {
            let asking = async {
                match transport {
                    Transport::Udp => ask_udp(*server, bytes).await,
                    Transport::Tcp => ask_tcp(*server, bytes).await,
                }
            };
            match timeout(FORWARD_TIMEOUT, asking).await {
                Ok(Ok(answer)) => {
                    self.metrics.totals().dns_forwarded.inc();
                    return Some(answer);
                }
                Ok(Err(error)) => tracing::debug!(%server, %error, "resolver"),
                Err(_elapsed) => tracing::debug!(%server, "resolver did not answer"),
            }
        }
        self.metrics.totals().dns_failed.inc();
        query.answer(Answer::Unknown, transport)
    }
}

/// Asks a server over UDP, once.
pub(crate) async fn ask_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    // A socket of its own for each query: a forged answer has to guess its port as well.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; MESSAGE_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if length >= 2 && buffer[..2] == query[..2] {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

/// Asks a server over TCP.
pub(crate) async fn ask_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, query).await?;
    read_message(&mut stream).await
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

/// The nameservers in the text of a resolv.conf.
pub fn nameservers(resolv_conf: &str) -> Vec<SocketAddr> {
    let lines = resolv_conf.lines();
    let servers = lines.filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = servers.filter_map(|rest| rest.trim().parse::<IpAddr>().ok());
    addresses
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf() {
        let text = "# c\nsearch x\nnameserver 10.0.0.2\n nameserver fd00::2\nnameserver x\n";
        let expected: Vec<SocketAddr> = vec![
            "10.0.0.2:53".parse().unwrap(),
            "[fd00::2]:53".parse().unwrap(),
        ];
        assert_eq!(nameservers(text), expected);
    }
}
