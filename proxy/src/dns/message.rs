//! Queries and answers of DNS, as bytes: pure.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use weft_core::name::{MESH_SUFFIX, ServiceName};

/// Answers about mesh names hold this long, seconds.
const TTL: u32 = 5;
/// Without EDNS no UDP answer is longer (RFC 1035 section 4.2.1).
const UDP_PLAIN_MAX: usize = 512;
/// Of a UDP answer we take so much ourselves, bytes: what fits into every path of IPv6
/// (<https://www.dnsflagday.net/2020/>).
const UDP_OWN_MAX: u16 = 1232;
/// Largest DNS message.
pub(super) const MESSAGE_MAX: usize = 65_535;
/// The host's own address, as programs in a namespace of their own reach it.
pub const HOST_NAME: &str = "host.mesh";

/// A query that can be read.
#[derive(Debug)]
pub struct Query {
    message: Message,
}

/// What is to be done with a query.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
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

/// What a query is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The name has these addresses, of which those of the type that was asked for are told.
    Addresses(&'a [IpAddr]),
    /// There is no such name (NXDOMAIN).
    NoSuchName,
    /// The query is malformed (FORMERR).
    Malformed,
    /// Whether there is such a name is not known (SERVFAIL).
    Unknown,
}

impl Answer<'_> {
    /// Whether it tells nothing about the name.
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Malformed | Self::Unknown)
    }

    fn code(self) -> ResponseCode {
        match self {
            Self::Addresses(_) => ResponseCode::NoError,
            Self::NoSuchName => ResponseCode::NXDomain,
            Self::Malformed => ResponseCode::FormErr,
            Self::Unknown => ResponseCode::ServFail,
        }
    }
}

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// On a connection.
    Tcp,
}

impl Query {
    /// Reads a message; `None` where it is none.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let message = Message::from_vec(bytes).ok()?;
        Some(Self { message })
    }

    /// What is to be done with it where the cluster's DNS has this domain.
    pub fn decide(&self, cluster_domain: &str) -> Decision {
        if self.message.metadata.message_type != MessageType::Query {
            return Decision::Drop;
        }
        let [question] = self.message.queries.as_slice() else {
            return Decision::Malformed;
        };
        if self.message.metadata.op_code != OpCode::Query {
            return Decision::Forward;
        }
        let name = plain(question.name());
        let in_mesh = name == MESH_SUFFIX
            || name
                .strip_suffix(MESH_SUFFIX)
                .is_some_and(|rest| rest.ends_with('.'));
        if !in_mesh {
            let service = ServiceName::from_cluster_host(&name, cluster_domain);
            return service.map_or(Decision::Forward, Decision::ClusterService);
        }
        if name == HOST_NAME {
            return Decision::Host;
        }
        match ServiceName::from_hostname(&name) {
            Some(service) => Decision::Service(service),
            None => Decision::NoSuchName,
        }
    }

    /// The name that is asked about, where what is asked would be ours to tell if a service goes by
    /// it: addresses, and the records that would lead around them (RFC 9460). Everything else about a
    /// name outside the mesh is the outside's.
    pub fn name_of_addresses(&self) -> Option<String> {
        let question = self.message.queries.first()?;
        let ours = matches!(
            question.query_type(),
            RecordType::A
                | RecordType::AAAA
                | RecordType::HTTPS
                | RecordType::SVCB
                | RecordType::ANY
        );
        let asks = ours && self.message.metadata.op_code == OpCode::Query;
        asks.then(|| plain(question.name()))
    }

    /// Whether it asks for IPv6 addresses.
    pub fn asks_for_ipv6(&self) -> bool {
        let queries = &self.message.queries;
        queries.iter().any(|q| q.query_type() == RecordType::AAAA)
    }

    /// The answer as bytes, cut to what the client takes (RFC 1035 section 4.2.1, RFC 6891 section
    /// 6.2.5); `None` where there is no room for it at all.
    pub fn answer(&self, answer: Answer<'_>, transport: Transport) -> Option<Vec<u8>> {
        let limit = match (&self.message.edns, transport) {
            (_, Transport::Tcp) => MESSAGE_MAX,
            (Some(edns), Transport::Udp) => usize::from(edns.max_payload()).max(UDP_PLAIN_MAX),
            (None, Transport::Udp) => UDP_PLAIN_MAX,
        };
        let response = self.response(answer);
        let bytes = response.to_vec().ok()?;
        if bytes.len() <= limit {
            return Some(bytes);
        }
        response.truncate().to_vec().ok()
    }

    fn response(&self, answer: Answer<'_>) -> Message {
        let query = &self.message;
        let mut response = Message::response(query.metadata.id, query.metadata.op_code);
        response.metadata.recursion_desired = query.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.metadata.response_code = answer.code();
        response.add_queries(query.queries.iter().cloned());
        if let Some(asked) = &query.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload().max(UDP_OWN_MAX));
            response.set_edns(edns);
        }
        let Some(question) = query.queries.first() else {
            return response;
        };
        let addresses = match answer {
            Answer::Addresses(addresses) => addresses,
            Answer::NoSuchName | Answer::Malformed | Answer::Unknown => &[],
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
        if response.answers.is_empty() && answer != Answer::Unknown {
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
}

/// A name as text, in lower case and without the dot at its end.
fn plain(name: &Name) -> String {
    let name = name.to_ascii().to_ascii_lowercase();
    name.trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use weft_core::name::CLUSTER_DOMAIN;

    use super::*;

    fn query(name: &str, kind: RecordType) -> Query {
        let mut message = Message::query();
        let question = hickory_proto::op::Query::query(Name::from_ascii(name).unwrap(), kind);
        message.add_query(question);
        Query { message }
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
                query(name, RecordType::A).decide(CLUSTER_DOMAIN),
                expected,
                "{name}"
            );
        }
        let of = |message| Query { message }.decide(CLUSTER_DOMAIN);
        assert_eq!(of(Message::query()), Decision::Malformed);
        let answer = Message::response(1, OpCode::Query);
        assert_eq!(of(answer), Decision::Drop);
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
            let bytes = query.answer(Answer::Addresses(&addresses), Transport::Udp);
            let response = Message::from_vec(&bytes.unwrap()).unwrap();
            assert_eq!(response.answers.len(), answers);
            assert_eq!(response.authorities.len(), 1 - answers);
        }
    }
}
