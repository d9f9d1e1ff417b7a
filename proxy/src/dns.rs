//! DNS for programs whose queries are captured: mesh names are answered here, everything else goes
//! to the host's own resolvers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use weft_core::name::{MESH_SUFFIX, ServiceName};

use crate::mesh::Mesh;
use crate::telemetry::metrics::Metrics;

/// Answers about mesh names hold this long, seconds.
const TTL: u32 = 5;
/// Queries at the same time.
const QUERIES_MAX: usize = 512;
/// What one of the host's resolvers may take.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(3);
/// A silent TCP client is dropped.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Without EDNS no UDP answer is longer (RFC 1035 section 4.2.1).
const UDP_PLAIN_MAX: usize = 512;
/// Largest DNS message.
const MESSAGE_MAX: usize = 65_535;
/// The host's own address, as programs in a namespace of their own reach it.
pub const HOST_NAME: &str = "host.mesh";

/// What to answer, and whom to ask.
#[derive(Debug)]
pub struct Resolver {
    mesh: Arc<Mesh>,
    /// The host's resolvers, in their order.
    nameservers: Vec<SocketAddr>,
    /// What `host.mesh` stands for.
    host: Vec<IpAddr>,
    /// The host has no IPv6: external AAAA answers would lead nowhere.
    drop_external_aaaa: bool,
    room: Arc<Semaphore>,
    metrics: Metrics,
}

/// What is to be done with a query.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// Not a query that anybody answers.
    Drop,
    /// Refused as malformed.
    Malformed,
    /// Ask the host's resolvers.
    Forward,
    /// A name in `.mesh` that cannot exist.
    NoSuchName,
    /// A service's hostname.
    Service(ServiceName),
    /// The name of a service in a cluster's DNS.
    ClusterService(ServiceName),
    /// [`HOST_NAME`].
    Host,
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

fn decide(query: &Message, cluster_domain: &str) -> Decision {
    if query.metadata.message_type != MessageType::Query {
        return Decision::Drop;
    }
    let [question] = query.queries.as_slice() else {
        return Decision::Malformed;
    };
    if query.metadata.op_code != OpCode::Query {
        return Decision::Forward;
    }
    let name = question.name().to_ascii().to_ascii_lowercase();
    let name = name.trim_end_matches('.');
    let in_mesh = name == MESH_SUFFIX
        || name
            .strip_suffix(MESH_SUFFIX)
            .is_some_and(|rest| rest.ends_with('.'));
    if !in_mesh {
        let service = ServiceName::from_cluster_host(name, cluster_domain);
        return service.map_or(Decision::Forward, Decision::ClusterService);
    }
    if name == HOST_NAME {
        return Decision::Host;
    }
    match ServiceName::from_hostname(name) {
        Some(service) => Decision::Service(service),
        None => Decision::NoSuchName,
    }
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
                if let Some(answer) = resolver.answer(&query, true).await
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
                    let Some(answer) = resolver.answer(&query, false).await else {
                        return;
                    };
                    if write_message(&mut stream, &answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    }

    async fn answer(&self, bytes: &[u8], udp: bool) -> Option<Vec<u8>> {
        let totals = self.metrics.totals();
        let Ok(query) = Message::from_vec(bytes) else {
            totals.dns_failed.inc();
            return None;
        };
        let (addresses, code) = match decide(&query, self.mesh.cluster_domain()) {
            Decision::Drop => return None,
            Decision::Forward => match self.external(&query).await {
                External::Elsewhere => return self.forward(&query, bytes, udp).await,
                External::Here(addresses) => (addresses, ResponseCode::NoError),
                External::Unanswered => (Vec::new(), ResponseCode::ServFail),
            },
            Decision::ClusterService(service) => match self.mesh.service(&service.hostname()).await
            {
                // One without addresses is found by its pods, which the cluster's DNS knows.
                Ok(Some(view)) if !view.addresses().is_empty() => {
                    (view.addresses().to_vec(), ResponseCode::NoError)
                }
                Ok(_) => return self.forward(&query, bytes, udp).await,
                // Unanswered is not absent.
                Err(_reason) => (Vec::new(), ResponseCode::ServFail),
            },
            Decision::Malformed => (Vec::new(), ResponseCode::FormErr),
            Decision::NoSuchName => (Vec::new(), ResponseCode::NXDomain),
            Decision::Host => (self.host.clone(), ResponseCode::NoError),
            Decision::Service(service) => match self.mesh.service(&service.hostname()).await {
                Ok(Some(view)) => (view.addresses().to_vec(), ResponseCode::NoError),
                Ok(None) => (Vec::new(), ResponseCode::NXDomain),
                // Unanswered is not absent.
                Err(_reason) => (Vec::new(), ResponseCode::ServFail),
            },
        };
        let failed = [ResponseCode::ServFail, ResponseCode::FormErr].contains(&code);
        match failed {
            true => totals.dns_failed.inc(),
            false => totals.dns_answered.inc(),
        }
        let response = respond(&query, &addresses, code);
        let limit = match (&query.edns, udp) {
            (_, false) => MESSAGE_MAX,
            (Some(edns), true) => usize::from(edns.max_payload()).max(UDP_PLAIN_MAX),
            (None, true) => UDP_PLAIN_MAX,
        };
        let bytes = response.to_vec().ok()?;
        if bytes.len() <= limit {
            return Some(bytes);
        }
        response.truncate().to_vec().ok()
    }

    /// Whether a name outside the mesh is one that a service goes by. Its addresses are ours to
    /// tell, and so are the records that would lead around them (RFC 9460); everything else about it
    /// is the outside's.
    async fn external(&self, query: &Message) -> External {
        let Some(question) = query.queries.first() else {
            return External::Elsewhere;
        };
        let ours = matches!(
            question.query_type(),
            RecordType::A
                | RecordType::AAAA
                | RecordType::HTTPS
                | RecordType::SVCB
                | RecordType::ANY
        );
        if !ours || query.metadata.op_code != OpCode::Query {
            return External::Elsewhere;
        }
        let name = question.name().to_ascii().to_ascii_lowercase();
        let name = name.trim_end_matches('.');
        let service = match self.mesh.external_host(name).await {
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

    async fn forward(&self, query: &Message, bytes: &[u8], udp: bool) -> Option<Vec<u8>> {
        let aaaa = query
            .queries
            .iter()
            .any(|q| q.query_type() == RecordType::AAAA);
        if aaaa && self.drop_external_aaaa {
            self.metrics.totals().dns_answered.inc();
            return respond(query, &[], ResponseCode::NoError).to_vec().ok();
        }
        for server in &self.nameservers {
            let asking = async {
                if udp {
                    ask_udp(*server, bytes).await
                } else {
                    ask_tcp(*server, bytes).await
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
        respond(query, &[], ResponseCode::ServFail).to_vec().ok()
    }
}

fn respond(query: &Message, addresses: &[IpAddr], code: ResponseCode) -> Message {
    let mut response = Message::response(query.metadata.id, query.metadata.op_code);
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.add_queries(query.queries.iter().cloned());
    if let Some(asked) = &query.edns {
        let mut edns = hickory_proto::op::Edns::new();
        edns.set_max_payload(asked.max_payload().max(1232));
        response.set_edns(edns);
    }
    let Some(question) = query.queries.first() else {
        return response;
    };
    for address in addresses {
        let data = match (address, question.query_type()) {
            (IpAddr::V4(address), RecordType::A) => RData::A(A(*address)),
            (IpAddr::V6(address), RecordType::AAAA) => RData::AAAA(AAAA(*address)),
            _ => continue,
        };
        let record = Record::from_rdata(question.name().clone(), TTL, data);
        response.add_answer(record);
    }
    // Negative answers are kept as long as their SOA says (RFC 2308 section 3).
    if response.answers.is_empty() && code != ResponseCode::ServFail {
        let mesh = Name::from_ascii("mesh.").unwrap_or_default();
        let zone = match mesh.zone_of(question.name()) {
            true => mesh,
            false => question.name().clone(),
        };
        let soa = SOA::new(zone.clone(), zone.clone(), 1, 3600, 600, 86_400, TTL);
        response.add_authority(Record::from_rdata(zone, TTL, RData::SOA(soa)));
    }
    response
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
    use weft_core::name::CLUSTER_DOMAIN;

    use super::*;
    use hickory_proto::op::Query;

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    #[test]
    fn who_answers() {
        let service = |text: &str| Decision::Service(text.parse().unwrap());
        let cases = [
            ("web.shop.mesh.", service("shop/web")),
            ("WEB.Shop.Mesh.", service("shop/web")),
            ("host.mesh.", Decision::Host),
            ("mesh.", Decision::NoSuchName),
            ("shop.mesh.", Decision::NoSuchName),
            ("www.example.com.shop.mesh.", Decision::NoSuchName),
            (
                "WEB.shop.svc.cluster.local.",
                Decision::ClusterService("shop/web".parse().unwrap()),
            ),
            ("web-0.web.shop.svc.cluster.local.", Decision::Forward),
            ("www.example.com.", Decision::Forward),
            ("notmesh.", Decision::Forward),
        ];
        for (name, expected) in cases {
            assert_eq!(
                decide(&query(name, RecordType::A), CLUSTER_DOMAIN),
                expected,
                "{name}"
            );
        }
        assert_eq!(
            decide(&Message::query(), CLUSTER_DOMAIN),
            Decision::Malformed
        );
        let answer = Message::response(1, OpCode::Query);
        assert_eq!(decide(&answer, CLUSTER_DOMAIN), Decision::Drop);
    }

    #[test]
    fn answers_by_type() {
        let addresses: Vec<IpAddr> = ["240.240.0.1", "fd77::1"]
            .map(|a| a.parse().unwrap())
            .into();
        for (kind, answers) in [
            (RecordType::A, 1),
            (RecordType::AAAA, 1),
            (RecordType::MX, 0),
        ] {
            let query = query("web.shop.mesh.", kind);
            let response = respond(&query, &addresses, ResponseCode::NoError);
            assert_eq!(response.answers.len(), answers);
            assert_eq!(response.authorities.len(), 1 - answers);
            assert!(Message::from_vec(&response.to_vec().unwrap()).is_ok());
        }
    }

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
