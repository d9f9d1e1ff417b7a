//! DNS: any message is read or dropped, and whatever a query is answered with is a valid answer to it, no
//! longer than its client takes.
//!
//! The first byte says how many addresses the name has; with 128 the query comes over TCP. The rest is the
//! message.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::RecordType;
use weft_core::name::CLUSTER_DOMAIN;
use weft_proxy::dns::{Answer, Decision, Query, Transport};

use crate::input::Input;

/// Both kinds of addresses in turns.
fn addresses(count: u8) -> Vec<IpAddr> {
    let address = |number: u8| match number % 2 {
        0 => IpAddr::V4(Ipv4Addr::new(240, 240, 0, number)),
        _ => IpAddr::V6(Ipv6Addr::from(u128::from(number))),
    };
    (0..count).map(address).collect()
}

fn check(bytes: &[u8], asked: &Message, answer: Answer<'_>, transport: Transport, found: &[u8]) {
    let limit = match (transport, &asked.edns) {
        (Transport::Tcp, _) => 65_535,
        (Transport::Udp, Some(edns)) => usize::from(edns.max_payload()).max(512),
        (Transport::Udp, None) => 512,
    };
    // One that repeats more questions than fit repeats no more than was asked.
    assert!(
        found.len() <= limit.max(bytes.len()),
        "{} bytes",
        found.len()
    );
    let response = Message::from_vec(found);
    let response = response.unwrap_or_else(|error| panic!("{answer:?} is no message: {error}"));
    assert_eq!(response.metadata.id, asked.metadata.id);
    assert_eq!(response.metadata.message_type, MessageType::Response);
    assert_eq!(response.queries, asked.queries);
    let (code, told) = match answer {
        Answer::Addresses(addresses) => (ResponseCode::NoError, addresses),
        Answer::NoSuchName => (ResponseCode::NXDomain, &[][..]),
        Answer::Malformed => (ResponseCode::FormErr, &[][..]),
        Answer::Unknown => (ResponseCode::ServFail, &[][..]),
    };
    assert_eq!(response.metadata.response_code, code);
    if response.metadata.truncation {
        assert!(response.answers.is_empty());
        return;
    }
    let kind = asked.queries.first().map(|question| question.query_type());
    let expected: Vec<IpAddr> = told
        .iter()
        .copied()
        .filter(|address| match kind {
            Some(RecordType::A) => address.is_ipv4(),
            Some(RecordType::AAAA) => address.is_ipv6(),
            Some(_) | None => false,
        })
        .collect();
    let found = response
        .answers
        .iter()
        .filter_map(|record| record.data.ip_addr());
    assert_eq!(found.collect::<Vec<IpAddr>>(), expected);
}

/// Runs the target.
pub fn run(input: &[u8]) {
    let mut input = Input::new(input);
    let form = input.byte();
    let transport = match form & 128 {
        0 => Transport::Udp,
        _ => Transport::Tcp,
    };
    let bytes = input.rest();
    // What comes over UDP is no longer.
    if bytes.len() > 65_535 {
        return;
    }
    let Some(query) = Query::read(bytes) else {
        return;
    };
    let asked = Message::from_vec(bytes).unwrap_or_else(|error| panic!("{error}"));
    let decision = query.decide(CLUSTER_DOMAIN);
    if let Decision::Service(service) | Decision::ClusterService(service) = &decision {
        // It is found by what it is called.
        let again = weft_core::name::ServiceName::from_hostname(&service.hostname());
        assert_eq!(again.as_ref(), Some(service));
    }
    if decision == Decision::Drop {
        return;
    }
    let name = query.name_of_addresses();
    assert!(name.is_none_or(|name| name.len() <= 4 * 255));
    let addresses = addresses(form & 127);
    for answer in [
        Answer::Addresses(&addresses),
        Answer::NoSuchName,
        Answer::Malformed,
        Answer::Unknown,
    ] {
        let Some(found) = query.answer(answer, transport) else {
            panic!("{answer:?} to {asked:?} cannot be written");
        };
        check(bytes, &asked, answer, transport, &found);
    }
}
