//! Which addresses a workload may state in its registration.
//!
//! An address belongs to the attestation, never to the sidecar's word: it is in the binding of the
//! credential (`weft token create --address`), or it is where the connection comes from.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use weft_core::model::{Cidr, Registration};

use super::machine::Refused;

/// Where a registration comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    address: IpAddr,
    /// This machine's addresses among those in question, where the peer is on this machine.
    local: Option<BTreeSet<IpAddr>>,
}

impl Origin {
    /// The origin of a registration that came over a connection from `peer`.
    pub fn of(peer: SocketAddr, registration: &Registration) -> Self {
        let address = peer.ip().to_canonical();
        let local = is_of_this_machine(address).then(|| {
            let advertised = registration.ports.iter().map(|port| port.advertised.ip());
            let stated = registration.addresses.iter().copied().chain(advertised);
            let target = target_of(&registration.metrics_target).map(|target| target.ip());
            let stated: BTreeSet<IpAddr> = stated.chain(target).collect();
            let local = stated.into_iter().filter(|a| is_of_this_machine(*a));
            local.collect()
        });
        Self { address, local }
    }

    /// Whether a workload may say that it is dialled at an address. Workloads of this machine share
    /// the machine's addresses and its loopback.
    fn may_advertise(&self, address: IpAddr) -> bool {
        match &self.local {
            Some(local) => local.contains(&address.to_canonical()) || address == self.address,
            None => address.to_canonical() == self.address,
        }
    }

    /// Whether an address is this workload's alone. An address of this machine is not: other
    /// programs, the control plane among them, are reached there too.
    fn may_own(&self, address: IpAddr) -> bool {
        self.local.is_none() && address.to_canonical() == self.address
    }

    fn own_text(&self) -> String {
        match &self.local {
            Some(_) => "none, since its connection comes from this machine".to_owned(),
            None => format!("{}, where its connection comes from", self.address),
        }
    }

    fn advertise_text(&self) -> String {
        let source = format!("{}, where its connection comes from", self.address);
        match &self.local {
            Some(_) => format!("{source}, and the addresses of this machine"),
            None => source,
        }
    }
}

/// Refuses addresses that are neither bound to the credential nor proved by the connection.
pub fn check_addresses(
    registration: &Registration,
    bound: &[Cidr],
    origin: &Origin,
) -> Result<(), Refused> {
    let is_bound = |address: IpAddr| bound.iter().any(|range| range.contains(address));
    let refuse = |field, address, mut allowed: String| {
        for range in bound {
            allowed.push_str(&format!(", {range}"));
        }
        Err(Refused::Foreign {
            field,
            address,
            allowed,
        })
    };
    for address in &registration.addresses {
        if !is_bound(*address) && !origin.may_own(*address) {
            return refuse("addresses", *address, origin.own_text());
        }
    }
    for port in &registration.ports {
        let address = port.advertised.ip();
        if !is_bound(address) && !origin.may_advertise(address) {
            return refuse("ports.advertised_address", address, origin.advertise_text());
        }
    }
    Ok(())
}

/// Whether Prometheus may be sent to what a sidecar says of its metrics: to one of the workload's
/// addresses, and to nothing else there.
pub(super) fn may_be_scraped(registration: &Registration, bound: &[Cidr], origin: &Origin) -> bool {
    target_of(&registration.metrics_target).is_some_and(|target| {
        let address = target.ip();
        bound.iter().any(|range| range.contains(address)) || origin.may_advertise(address)
    })
}

/// The address in `http://ADDRESS:PORT/metrics`.
fn target_of(text: &str) -> Option<SocketAddr> {
    let rest = text.strip_prefix("http://")?;
    rest.strip_suffix("/metrics")?.parse().ok()
}

/// Whether an address is one of this machine's, its loopback included: the kernel reaches its own
/// addresses from themselves, and others never. Nothing is sent.
fn is_of_this_machine(address: IpAddr) -> bool {
    if address.is_loopback() {
        return true;
    }
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let source = || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((address, 9))?;
        socket.local_addr()
    };
    source().is_ok_and(|source| source.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::model::{AppProtocol, RegisteredPort};

    fn registration(addresses: &[&str], advertised: &str) -> Registration {
        Registration {
            workload: "shop/web".parse().unwrap(),
            services: vec![],
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            ports: vec![RegisteredPort {
                port: 80,
                protocol: AppProtocol::Http,
                advertised: format!("{advertised}:4000").parse().unwrap(),
                ready: true,
            }],
            labels: Default::default(),
            zone: String::new(),
            weight: 100,
            metrics_target: format!("http://{advertised}:15020/metrics"),
            version: String::new(),
        }
    }

    fn check(peer: &str, bound: &[&str], addresses: &[&str], advertised: &str) -> Option<String> {
        let registration = registration(addresses, advertised);
        let peer = SocketAddr::new(peer.parse().unwrap(), 50_000);
        let origin = Origin::of(peer, &registration);
        let bound: Vec<Cidr> = bound.iter().map(|b| Cidr::parse(b).unwrap()).collect();
        let scraped = may_be_scraped(&registration, &bound, &origin);
        let checked = check_addresses(&registration, &bound, &origin);
        assert!(scraped || checked.is_err(), "not scraped");
        checked.err().map(|refused| refused.to_string())
    }

    #[test]
    fn where_the_connection_comes_from() {
        // Documentation ranges are no machine's.
        assert_eq!(check("192.0.2.7", &[], &["192.0.2.7"], "192.0.2.7"), None);
        let mapped = "::ffff:192.0.2.7";
        assert_eq!(check(mapped, &[], &["192.0.2.7"], "192.0.2.7"), None);
        assert_eq!(
            check("2001:db8::7", &[], &["2001:db8::7"], "[2001:db8::7]"),
            None
        );
        for (addresses, advertised) in [
            (&["192.0.2.8"][..], "192.0.2.7"),
            (&["192.0.2.7", "192.0.2.8"], "192.0.2.7"),
            (&[], "192.0.2.8"),
            (&[], "127.0.0.1"),
        ] {
            let refused = check("192.0.2.7", &[], addresses, advertised).unwrap();
            assert!(
                refused.contains("allowed: 192.0.2.7, where its"),
                "{refused}"
            );
        }
    }

    #[test]
    fn bound_to_the_credential() {
        let bound = ["198.51.100.0/24", "2001:db8::1"];
        let addresses = ["198.51.100.9", "2001:db8::1", "192.0.2.7"];
        assert_eq!(check("192.0.2.7", &bound, &addresses, "198.51.100.9"), None);
        let refused = check("192.0.2.7", &bound, &["198.51.101.9"], "192.0.2.7").unwrap();
        let expected = "addresses: 198.51.101.9 is not this workload's; allowed: 192.0.2.7, where its \
            connection comes from, 198.51.100.0/24, 2001:db8::1/128; an operator gives it others with \
            `weft token create --address 198.51.101.9`";
        assert_eq!(refused, expected);
    }

    #[test]
    fn workloads_of_this_machine() {
        assert_eq!(check("127.0.0.1", &[], &[], "127.0.0.1"), None);
        assert_eq!(check("127.0.0.1", &[], &[], "127.0.0.7"), None);
        assert_eq!(check("::1", &[], &[], "127.0.0.1"), None);
        assert!(check("127.0.0.1", &[], &[], "192.0.2.7").is_some());
        // The machine's addresses are no workload's own.
        let refused = check("127.0.0.1", &[], &["192.0.2.7"], "127.0.0.1").unwrap();
        assert!(refused.contains("allowed: none, since"), "{refused}");
        assert_eq!(
            check("127.0.0.1", &["192.0.2.7"], &["192.0.2.7"], "127.0.0.1"),
            None
        );
    }

    #[test]
    fn metrics_targets() {
        for bad in ["", "http://web/metrics", "http://192.0.2.7:1/quit", "x"] {
            assert_eq!(target_of(bad), None, "{bad}");
        }
        let found = target_of("http://[2001:db8::1]:9/metrics");
        assert_eq!(found, Some("[2001:db8::1]:9".parse().unwrap()));
    }
}
