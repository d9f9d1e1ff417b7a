//! Rules on their way into the kernel: one batch, all or nothing.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, Expressions, Hook, Immediate,
    InetHookNumber, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register, RuleAttribute,
    RuleMessage, TableAttribute, TableMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use weft_core::model::Cidr;

use super::InterceptError;
use super::rules::{Action, Chain, Match, Place};

/// The name of our only table, of family inet.
const TABLE: &str = "weft";
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NF_ACCEPT`.
const ACCEPT: u32 = 1;
/// `NFT_REJECT_ICMPX_UNREACH` and `NFT_REJECT_ICMPX_PORT_UNREACH`.
const REJECT_ICMPX: u32 = 2;
const REJECT_PORT_UNREACHABLE: u8 = 1;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`, as `meta nfproto` has them.
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
/// The loopback interface has index 1 in every namespace.
const LOOPBACK_INDEX: u32 = 1;
/// Where addresses and ports stand in their headers.
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const IPV4_DESTINATION: (u32, u32) = (16, 4);
const IPV6_DESTINATION: (u32, u32) = (24, 16);
const DESTINATION_PORT: (u32, u32) = (2, 2);

/// Puts the chains in place of whatever the table held.
pub(super) fn replace(chains: &[Chain]) -> Result<(), InterceptError> {
    // Deleting what is not there would fail the batch: make it first, then delete, then make it.
    let mut messages = vec![
        ("the table".to_owned(), new_table()),
        ("removing the old table".to_owned(), delete_table()),
        ("the table".to_owned(), new_table()),
    ];
    for chain in chains {
        let name = chain_name(chain.place);
        messages.push((format!("chain {name}"), new_chain(chain.place)));
        for (index, (conditions, action)) in chain.rules.iter().enumerate() {
            let mut expressions = Vec::new();
            for condition in conditions {
                expressions.extend(condition_expressions(condition));
            }
            expressions.extend(action_expressions(*action));
            let what = format!("rule {index} of chain {name} ({conditions:?} {action:?})");
            messages.push((what, new_rule(name, expressions)));
        }
    }
    send(messages)
}

/// Takes the table away.
pub(super) fn remove() -> Result<(), InterceptError> {
    send(vec![
        ("the table".to_owned(), new_table()),
        ("removing the table".to_owned(), delete_table()),
    ])
}

/// Whether the table is there and holds a rule.
pub(super) fn has_rules() -> Result<bool, InterceptError> {
    let socket = open()?;
    let attributes = vec![RuleAttribute::Table(TABLE.to_owned())];
    let message = NfTablesMessage::GetRule(RuleMessage { attributes });
    let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
    let mut message = NetlinkMessage::from(NetfilterMessage::new(header, message));
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.header.sequence_number = 1;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).map_err(InterceptError::Send)?;
    loop {
        let (bytes, _from) = socket.recv_from_full().map_err(InterceptError::Send)?;
        if let Some(found) = rules_of(&bytes)? {
            return Ok(found);
        }
    }
}

/// What one part of the answer to a question for rules says: whether there is one of our table; nothing
/// while there is more to come. The rules themselves are anybody's and are not read.
fn rules_of(mut bytes: &[u8]) -> Result<Option<bool>, InterceptError> {
    /// `NLMSG_ERROR` and `NLMSG_DONE`.
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    /// `NFT_MSG_NEWRULE` of the subsystem.
    const NEW_RULE: u16 = (SUBSYSTEM << 8) | 6;
    /// `NFTA_RULE_TABLE`.
    const RULE_TABLE: u16 = 1;
    while let Some((header, rest)) = bytes.split_first_chunk::<16>() {
        let [a, b, c, d, e, f, ..] = *header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let body = rest.get(..length.saturating_sub(16)).unwrap_or(rest);
        match u16::from_ne_bytes([e, f]) {
            DONE => return Ok(Some(false)),
            ERROR => {
                let code = body.first_chunk().copied().map_or(0, i32::from_ne_bytes);
                let source = io::Error::from_raw_os_error(-code);
                if source.kind() == io::ErrorKind::NotFound {
                    return Ok(Some(false));
                }
                return Err(InterceptError::Refused {
                    what: "a question for the rules".to_owned(),
                    source,
                });
            }
            // The first attribute of a rule is its table; kernels that do not look at the question's
            // tell the rules of every table.
            NEW_RULE => {
                let attribute = body.get(4..).unwrap_or_default();
                let name = attribute.get(4..).unwrap_or_default();
                let kind = attribute
                    .get(2..4)
                    .map(|two| u16::from_ne_bytes([two[0], two[1]]));
                let name = name.split(|byte| *byte == 0).next();
                if kind == Some(RULE_TABLE) && name == Some(TABLE.as_bytes()) {
                    return Ok(Some(true));
                }
            }
            _ => {}
        }
        bytes = rest
            .get(length.next_multiple_of(4).saturating_sub(16)..)
            .unwrap_or_default();
    }
    Ok(None)
}

fn open() -> Result<Socket, InterceptError> {
    let mut socket = Socket::new(NETLINK_NETFILTER).map_err(InterceptError::Socket)?;
    socket.bind_auto().map_err(InterceptError::Socket)?;
    let kernel = SocketAddr::new(0, 0);
    socket.connect(&kernel).map_err(InterceptError::Socket)?;
    Ok(socket)
}

fn send(messages: Vec<(String, NfTablesMessage)>) -> Result<(), InterceptError> {
    let socket = open()?;
    let mut batch = Vec::new();
    emit(0, &control(ControlMessage::BatchBegin), &mut batch);
    let mut names = Vec::with_capacity(messages.len());
    for (index, (name, message)) in messages.into_iter().enumerate() {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
        let message = NetfilterMessage::new(header, message);
        emit(sequence(index), &message, &mut batch);
        names.push(name);
    }
    let end = sequence(names.len());
    emit(end, &control(ControlMessage::BatchEnd), &mut batch);
    socket.send(&batch, 0).map_err(InterceptError::Send)?;
    receive(&socket, &names)
}

const fn sequence(index: usize) -> u32 {
    index as u32 + 1
}

/// Reads an answer for every message; the first refusal counts, the others follow from it.
fn receive(socket: &Socket, names: &[String]) -> Result<(), InterceptError> {
    let mut answered = 0;
    while answered < names.len() {
        let (bytes, _from) = socket.recv_from_full().map_err(InterceptError::Send)?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest);
            let message = message.map_err(|error| InterceptError::Send(io::Error::other(error)))?;
            if let NetlinkPayload::Error(answer) = &message.payload {
                answered += 1;
                if answer.code.is_some() {
                    let index = message.header.sequence_number as usize;
                    let what = index.checked_sub(1).and_then(|index| names.get(index));
                    return Err(InterceptError::Refused {
                        what: what.map_or_else(|| "the batch".to_owned(), Clone::clone),
                        source: answer.to_io(),
                    });
                }
            }
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length.max(16)..).unwrap_or_default();
        }
    }
    Ok(())
}

fn control(message: ControlMessage) -> NetfilterMessage {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM);
    NetfilterMessage::new(header, message)
}

fn emit(sequence: u32, message: &NetfilterMessage, into: &mut Vec<u8>) {
    let is_control = sequence == 0 || message.header.res_id == SUBSYSTEM;
    let mut message = NetlinkMessage::from(message.clone());
    message.header.flags = NLM_F_REQUEST;
    if !is_control {
        message.header.flags |= NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND;
    }
    message.header.sequence_number = sequence;
    message.finalize();
    let start = into.len();
    into.resize(start + message.buffer_len(), 0);
    message.serialize(&mut into[start..]);
}

fn new_table() -> NfTablesMessage {
    NfTablesMessage::NewTable(TableMessage {
        attributes: vec![TableAttribute::Name(TABLE.to_owned())],
    })
}

fn delete_table() -> NfTablesMessage {
    NfTablesMessage::DeleteTable(TableMessage {
        attributes: vec![TableAttribute::Name(TABLE.to_owned())],
    })
}

const fn chain_name(place: Place) -> &'static str {
    match place {
        Place::NatOutput => "output",
        Place::NatPrerouting => "prerouting",
        Place::FilterOutput => "reject",
    }
}

fn new_chain(place: Place) -> NfTablesMessage {
    // The priorities that nft calls dstnat (-100) and filter (0).
    let (hook, kind, priority) = match place {
        Place::NatOutput => (InetHookNumber::LocalOut, "nat", -100),
        Place::NatPrerouting => (InetHookNumber::PreRouting, "nat", -100),
        Place::FilterOutput => (InetHookNumber::LocalOut, "filter", 0),
    };
    NfTablesMessage::NewChain(ChainMessage {
        attributes: vec![
            ChainAttribute::Table(TABLE.to_owned()),
            ChainAttribute::Name(chain_name(place).to_owned()),
            ChainAttribute::Policy(ACCEPT),
            ChainAttribute::Type(kind.to_owned()),
            ChainAttribute::Hook(vec![
                Hook::Number(hook.into()),
                Hook::Priority(priority as _),
            ]),
        ],
    })
}

fn new_rule(chain: &str, expressions: Vec<Expressions>) -> NfTablesMessage {
    NfTablesMessage::NewRule(RuleMessage {
        attributes: vec![
            RuleAttribute::Table(TABLE.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(expressions.into_iter().map(Into::into).collect()),
        ],
    })
}

fn condition_expressions(condition: &Match) -> Vec<Expressions> {
    match condition {
        Match::Tcp => meta(MetaKey::L4Proto, &[libc::IPPROTO_TCP as u8]),
        Match::Udp => meta(MetaKey::L4Proto, &[libc::IPPROTO_UDP as u8]),
        Match::Icmp => meta(MetaKey::L4Proto, &[libc::IPPROTO_ICMP as u8]),
        Match::Icmp6 => meta(MetaKey::L4Proto, &[libc::IPPROTO_ICMPV6 as u8]),
        Match::Uid(uid) => meta(MetaKey::SocketUserId, &uid.to_ne_bytes()),
        Match::OverLoopback => meta(MetaKey::Oif, &LOOPBACK_INDEX.to_ne_bytes()),
        Match::InboundMark(priority) => meta(MetaKey::Priority, &priority.to_ne_bytes()),
        Match::Port(port) => {
            let mut found = vec![payload(TRANSPORT_HEADER, DESTINATION_PORT)];
            found.push(equals(&port.to_be_bytes()));
            found
        }
        Match::To(range) => destination(range),
    }
}

fn destination(range: &Cidr) -> Vec<Expressions> {
    let (family, place, address) = match range.address {
        IpAddr::V4(address) => (NFPROTO_IPV4, IPV4_DESTINATION, address.octets().to_vec()),
        IpAddr::V6(address) => (NFPROTO_IPV6, IPV6_DESTINATION, address.octets().to_vec()),
    };
    let mask: Vec<u8> = (0..address.len())
        .map(|index| {
            let bits = usize::from(range.prefix).saturating_sub(index * 8).min(8);
            (0xff00u16 >> bits) as u8
        })
        .collect();
    let network: Vec<u8> = address.iter().zip(&mask).map(|(a, m)| a & m).collect();
    let mut found = meta(MetaKey::Nfproto, &[family]);
    found.push(payload(NETWORK_HEADER, place));
    found.push(Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(mask.len() as u32),
        Bitwise::Mask(DataAttribute::Value(mask.clone())),
        Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
    ]));
    found.push(equals(&network));
    found
}

fn action_expressions(action: Action) -> Vec<Expressions> {
    match action {
        Action::Accept => vec![Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(
                Verdict::Other(ACCEPT),
            )])),
        ])],
        Action::Redirect(port) => vec![
            Expressions::Immediate(vec![
                Immediate::DestinationRegister(Register::Reg1),
                Immediate::Data(DataAttribute::Value(port.to_be_bytes().to_vec())),
            ]),
            // NFTA_REDIR_REG_PROTO_MIN: the register that holds the port.
            Expressions::Other {
                expression_type: "redir".to_owned(),
                attributes: vec![DefaultNla::new(1, 1u32.to_be_bytes().to_vec())],
            },
        ],
        // NFTA_REJECT_TYPE and NFTA_REJECT_ICMP_CODE.
        Action::Reject => vec![Expressions::Other {
            expression_type: "reject".to_owned(),
            attributes: vec![
                DefaultNla::new(1, REJECT_ICMPX.to_be_bytes().to_vec()),
                DefaultNla::new(2, vec![REJECT_PORT_UNREACHABLE]),
            ],
        }],
    }
}

fn meta(key: MetaKey, value: &[u8]) -> Vec<Expressions> {
    vec![
        Expressions::Meta(vec![
            Meta::Key(key),
            Meta::DestinationRegister(Register::Reg1),
        ]),
        equals(value),
    ]
}

fn payload(base: u32, (offset, length): (u32, u32)) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

fn equals(value: &[u8]) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(Operator::Equal),
        Cmp::Data(DataAttribute::Value(value.to_vec())),
    ])
}
