//! Which packets go where: pure, so that a table can be read and tested without a kernel.

use std::net::IpAddr;

use weft_core::interception;
use weft_core::model::Cidr;

use super::INBOUND_PRIORITY;

/// What is to be redirected, and what is not.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Where outgoing TCP is sent.
    pub outbound_port: u16,
    /// Where incoming TCP is sent; `None` where nothing comes in but through the sidecar.
    pub inbound_port: Option<u16>,
    /// Where DNS is sent; `None` leaves it alone.
    pub dns_port: Option<u16>,
    /// The sidecar's user; `None` where it is not in this namespace.
    pub proxy_uid: Option<u32>,
    /// Other users whose connections are left alone.
    pub exclude_uids: Vec<u32>,
    /// Destination ports that are left alone.
    pub exclude_outbound_ports: Vec<u16>,
    /// Destination ranges that are left alone.
    pub exclude_outbound_ranges: Vec<Cidr>,
    /// The application's ports that are left alone.
    pub exclude_inbound_ports: Vec<u16>,
    /// The workload's own addresses, where everything is routed over loopback.
    pub own_addresses: Vec<IpAddr>,
    /// Refuse other UDP and ICMP at once: there is nowhere for them to go.
    pub reject_other_udp: bool,
}

/// A condition on a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Match {
    Tcp,
    Udp,
    Icmp,
    Icmp6,
    Port(u16),
    Uid(u32),
    OverLoopback,
    To(Cidr),
    /// Dialled by inbound itself.
    InboundMark(u32),
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Accept,
    Redirect(u16),
    Reject,
}

/// All conditions hold: this happens, and nothing after it is looked at.
pub(super) type Rule = (Vec<Match>, Action);

/// Where a chain stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    NatOutput,
    NatPrerouting,
    FilterOutput,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) place: Place,
    pub(super) rules: Vec<Rule>,
}

/// The sidecar's own ports (design: Istio's numbers).
const OWN_PORTS: [u16; 5] = [15000, 15001, 15006, 15020, 15053];

impl Rules {
    /// The chains, in order; within each the first rule that fits decides.
    pub(super) fn compile(&self) -> Vec<Chain> {
        let mut chains = vec![Chain {
            place: Place::NatOutput,
            rules: self.output(),
        }];
        if let Some(port) = self.inbound_port {
            let spared = OWN_PORTS.iter().chain(&self.exclude_inbound_ports);
            let mut rules: Vec<Rule> = spared
                .map(|port| (vec![Match::Tcp, Match::Port(*port)], Action::Accept))
                .collect();
            rules.push((vec![Match::Tcp], Action::Redirect(port)));
            chains.push(Chain {
                place: Place::NatPrerouting,
                rules,
            });
        }
        if self.reject_other_udp {
            let mut rules: Vec<Rule> = loopback()
                .chain(self.own())
                .map(|range| (vec![Match::To(range)], Action::Accept))
                .collect();
            // After the redirection DNS goes to loopback, so whatever UDP is left has nowhere to go.
            rules.extend([
                (vec![Match::Udp], Action::Reject),
                (vec![Match::Icmp], Action::Reject),
                (vec![Match::Icmp6], Action::Reject),
            ]);
            chains.push(Chain {
                place: Place::FilterOutput,
                rules,
            });
        }
        chains
    }

    fn output(&self) -> Vec<Rule> {
        let mut rules: Vec<Rule> = Vec::new();
        if let Some(uid) = self.proxy_uid {
            let ours = Match::Uid(uid);
            // The sidecar proves by these that what is below is in force.
            for proof in interception::ADDRESSES {
                let to = Match::To(single(proof.ip()));
                let port = Match::Port(proof.port());
                let dialled = vec![ours.clone(), Match::Tcp, port, to];
                rules.push((dialled, Action::Redirect(self.outbound_port)));
            }
            for range in loopback() {
                rules.push((vec![ours.clone(), Match::To(range)], Action::Accept));
            }
            if let Some(inbound) = self.inbound_port {
                // The proxy dialling its own pod's address does not pass prerouting: a service that
                // balances back to itself is sent to inbound here.
                let own = vec![ours.clone(), Match::OverLoopback, Match::Tcp];
                let mut dialled = own.clone();
                dialled.push(Match::InboundMark(INBOUND_PRIORITY));
                rules.push((dialled, Action::Accept));
                rules.push((own, Action::Redirect(inbound)));
            }
            rules.push((vec![ours], Action::Accept));
        }
        let spared = self.exclude_uids.iter();
        rules.extend(spared.map(|uid| (vec![Match::Uid(*uid)], Action::Accept)));
        if let Some(dns) = self.dns_port {
            // Before loopback is spared: local resolvers such as 127.0.0.53 are captured as well.
            rules.push((vec![Match::Udp, Match::Port(53)], Action::Redirect(dns)));
            rules.push((vec![Match::Tcp, Match::Port(53)], Action::Redirect(dns)));
        }
        let ranges = loopback()
            .chain(self.own())
            .chain(self.exclude_outbound_ranges.iter().copied());
        rules.extend(ranges.map(|range| (vec![Match::To(range)], Action::Accept)));
        if self.proxy_uid.is_some() {
            // The application calling its own pod.
            rules.push((vec![Match::OverLoopback], Action::Accept));
        }
        let ports = self.exclude_outbound_ports.iter();
        rules.extend(ports.map(|port| (vec![Match::Tcp, Match::Port(*port)], Action::Accept)));
        rules.push((vec![Match::Tcp], Action::Redirect(self.outbound_port)));
        rules
    }

    fn own(&self) -> impl Iterator<Item = Cidr> {
        self.own_addresses.iter().map(|address| single(*address))
    }
}

fn single(address: IpAddr) -> Cidr {
    Cidr {
        address,
        prefix: if address.is_ipv4() { 32 } else { 128 },
    }
}

fn loopback() -> impl Iterator<Item = Cidr> {
    ["127.0.0.0/8", "::1"].into_iter().filter_map(Cidr::parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Rules {
        Rules {
            outbound_port: 15001,
            inbound_port: Some(15006),
            dns_port: Some(15053),
            proxy_uid: Some(1337),
            exclude_outbound_ports: vec![9999],
            exclude_inbound_ports: vec![22],
            ..Rules::default()
        }
    }

    /// A packet, as the conditions see it.
    struct Packet {
        tcp: bool,
        port: u16,
        uid: u32,
        over_loopback: bool,
        to: &'static str,
        marked: bool,
    }

    fn fits(condition: &Match, packet: &Packet) -> bool {
        match condition {
            Match::Tcp => packet.tcp,
            Match::Udp => !packet.tcp,
            Match::Icmp | Match::Icmp6 => false,
            Match::Port(port) => packet.port == *port,
            Match::Uid(uid) => packet.uid == *uid,
            Match::OverLoopback => packet.over_loopback,
            Match::To(range) => range.contains(packet.to.parse().unwrap()),
            Match::InboundMark(_) => packet.marked,
        }
    }

    fn decide(rules: &[Rule], packet: &Packet) -> Option<Action> {
        let rule = rules
            .iter()
            .find(|(conditions, _)| conditions.iter().all(|c| fits(c, packet)));
        rule.map(|(_, action)| *action)
    }

    #[test]
    fn outgoing_packets_of_a_pod() {
        let packet = |to, port, uid| Packet {
            tcp: true,
            port,
            uid,
            over_loopback: false,
            to,
            marked: false,
        };
        let looped = |to, uid, marked| Packet {
            over_loopback: true,
            marked,
            ..packet(to, 8080, uid)
        };
        let dns = |to, uid| Packet {
            tcp: false,
            ..packet(to, 53, uid)
        };
        let out = Some(Action::Redirect(15001));
        let captured_dns = Some(Action::Redirect(15053));
        let pass = Some(Action::Accept);
        let cases = [
            (packet("1.2.3.4", 80, 0), out),
            (packet("2001:db8::1", 80, 0), out),
            (packet("1.2.3.4", 80, 1337), pass),
            (packet("240.239.255.253", 15001, 1337), out),
            (packet("fd77:6566:7400::1", 15001, 1337), out),
            (packet("240.239.255.253", 80, 1337), pass),
            (packet("1.2.3.4", 9999, 0), pass),
            (packet("127.0.0.1", 80, 0), pass),
            (packet("::1", 80, 0), pass),
            (dns("127.0.0.53", 0), captured_dns),
            (dns("8.8.8.8", 0), captured_dns),
            (packet("8.8.8.8", 53, 0), captured_dns),
            (dns("8.8.8.8", 1337), pass),
            (looped("10.0.0.5", 0, false), pass),
            (
                looped("10.0.0.5", 1337, false),
                Some(Action::Redirect(15006)),
            ),
            (looped("10.0.0.5", 1337, true), pass),
            (looped("127.0.0.1", 1337, false), pass),
        ];
        let chains = pod().compile();
        for (index, (packet, expected)) in cases.iter().enumerate() {
            assert_eq!(decide(&chains[0].rules, packet), *expected, "case {index}");
        }
    }

    #[test]
    fn incoming_packets_of_a_pod() {
        let chains = pod().compile();
        assert_eq!(chains[1].place, Place::NatPrerouting);
        for (port, expected) in [
            (8080, Action::Redirect(15006)),
            (22, Action::Accept),
            (15020, Action::Accept),
        ] {
            let packet = Packet {
                tcp: true,
                port,
                uid: 0,
                over_loopback: false,
                to: "10.0.0.5",
                marked: false,
            };
            assert_eq!(decide(&chains[1].rules, &packet), Some(expected), "{port}");
        }
    }

    #[test]
    fn a_process_of_its_own_namespace() {
        let rules = Rules {
            outbound_port: 15001,
            dns_port: Some(15053),
            own_addresses: vec!["100.127.255.2".parse().unwrap()],
            reject_other_udp: true,
            ..Rules::default()
        };
        let chains = rules.compile();
        let packet = |to, tcp, port| Packet {
            tcp,
            port,
            uid: 1000,
            over_loopback: true,
            to,
            marked: false,
        };
        let nat = &chains[0].rules;
        let out = Some(Action::Redirect(15001));
        assert_eq!(decide(nat, &packet("240.240.0.5", true, 80)), out);
        let own = packet("100.127.255.2", true, 80);
        assert_eq!(decide(nat, &own), Some(Action::Accept));
        let filter = &chains[1].rules;
        let udp = packet("8.8.8.8", false, 123);
        assert_eq!(decide(filter, &udp), Some(Action::Reject));
        let local = packet("127.0.0.1", false, 15053);
        assert_eq!(decide(filter, &local), Some(Action::Accept));
    }
}
