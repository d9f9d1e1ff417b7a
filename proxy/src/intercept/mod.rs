//! Interception: nftables rules in one table of our own, written straight over netlink.
//!
//! No `nft` or `iptables` binary is needed. All rules go in as one atomic batch, and removing Weft
//! removes exactly one table.

pub mod link;
mod netlink;
mod rules;
mod sys;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use clap::Args;
use weft_core::model::Cidr;

pub use rules::Rules;

/// The user that a sidecar in a pod runs as; its connections are not redirected.
pub const PROXY_UID: u32 = 1337;

/// Where outgoing connections are sent, unless it is told otherwise.
const OUTBOUND_PORT: u16 = 15001;
/// Where incoming connections are sent.
const INBOUND_PORT: u16 = 15006;
/// Where DNS queries are sent.
const DNS_PORT: u16 = 15053;

/// `SO_PRIORITY` of what inbound dials: rules let it through to the application. It needs no
/// privilege up to 6, unlike a mark.
const INBOUND_PRIORITY: u32 = 5;

/// Why rules are not in place.
#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    /// No netlink socket.
    #[error("opening a netfilter netlink socket: {0}")]
    Socket(io::Error),
    /// Not sent.
    #[error("sending rules to the kernel: {0}")]
    Send(io::Error),
    /// The kernel refused one of them.
    #[error("the kernel refused {what}: {source} (this needs CAP_NET_ADMIN and nf_tables)")]
    Refused {
        /// Which message it was.
        what: String,
        /// What it said.
        source: io::Error,
    },
    /// A range is not one.
    #[error("{0:?} is not a range: expected ADDRESS/PREFIX, as in 10.0.0.0/8")]
    Range(String),
}

/// Puts the rules in place, whatever was there before: twice is the same as once.
pub fn install(rules: &Rules) -> Result<(), InterceptError> {
    netlink::replace(&rules.compile())
}

/// Takes our table away; that there is none is no error.
pub fn remove() -> Result<(), InterceptError> {
    netlink::remove()
}

/// Whether our table holds rules, whatever they are. Needs CAP_NET_ADMIN in the namespace.
pub(crate) fn has_rules() -> Result<bool, InterceptError> {
    netlink::has_rules()
}

/// Where a redirected connection was meant to go; `None` when nobody redirected it. `mapped` says
/// that the peer is IPv4, possibly on a dual-stack socket.
pub fn original_dst(socket: impl AsFd, mapped: bool) -> io::Result<Option<SocketAddr>> {
    sys::original_dst(socket.as_fd(), mapped)
}

/// Marks a socket as inbound's own, before it connects: a connection to the workload's own address
/// would otherwise come back to the sidecar.
pub fn mark_inbound(socket: impl AsFd) -> io::Result<()> {
    sys::set_priority(socket.as_fd(), INBOUND_PRIORITY)
}

/// Redirects a pod's traffic to its sidecar: the whole program of the init container.
///
/// Examples:
///   weft-proxy intercept
///   weft-proxy intercept --exclude-outbound-ports 5432 --exclude-outbound-ranges 10.96.0.0/16
///   weft-proxy intercept --remove
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub struct InterceptArgs {
    /// The user that the sidecar runs as; its connections are not redirected.
    #[arg(long, default_value_t = PROXY_UID)]
    pub uid: u32,
    /// Where outgoing connections are sent.
    #[arg(long, default_value_t = OUTBOUND_PORT)]
    pub outbound_port: u16,
    /// Where incoming connections are sent.
    #[arg(long, default_value_t = INBOUND_PORT)]
    pub inbound_port: u16,
    /// Where DNS queries are sent.
    #[arg(long, default_value_t = DNS_PORT)]
    pub dns_port: u16,
    /// Leave DNS alone.
    #[arg(long)]
    pub no_dns: bool,
    /// Destination ports that are left alone, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub exclude_outbound_ports: Vec<u16>,
    /// Destination ranges that are left alone, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub exclude_outbound_ranges: Vec<String>,
    /// Ports of the application that are left alone, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub exclude_inbound_ports: Vec<u16>,
    /// Other users whose connections are left alone, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub exclude_uids: Vec<u32>,
    /// Take the rules away.
    #[arg(long)]
    pub remove: bool,
}

/// As without any argument.
impl Default for InterceptArgs {
    fn default() -> Self {
        Self {
            uid: PROXY_UID,
            outbound_port: OUTBOUND_PORT,
            inbound_port: INBOUND_PORT,
            dns_port: DNS_PORT,
            no_dns: false,
            exclude_outbound_ports: Vec::new(),
            exclude_outbound_ranges: Vec::new(),
            exclude_inbound_ports: Vec::new(),
            exclude_uids: Vec::new(),
            remove: false,
        }
    }
}

/// Runs `weft-proxy intercept`.
pub fn run(args: &InterceptArgs) -> Result<(), InterceptError> {
    if args.remove {
        return remove();
    }
    let ranges = args.exclude_outbound_ranges.iter();
    let ranges =
        ranges.map(|text| Cidr::parse(text).ok_or_else(|| InterceptError::Range(text.clone())));
    install(&Rules {
        outbound_port: args.outbound_port,
        inbound_port: Some(args.inbound_port),
        dns_port: (!args.no_dns).then_some(args.dns_port),
        proxy_uid: Some(args.uid),
        exclude_uids: args.exclude_uids.clone(),
        exclude_outbound_ports: args.exclude_outbound_ports.clone(),
        exclude_outbound_ranges: ranges.collect::<Result<_, _>>()?,
        exclude_inbound_ports: args.exclude_inbound_ports.clone(),
        own_addresses: Vec::new(),
        reject_other_udp: false,
    })
}
