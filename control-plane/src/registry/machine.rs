//! Who registered, and whether it is still there: a pure state machine.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weft_core::model::{Cidr, Registration};
use weft_core::name::{SpiffeId, WorkloadName};

use crate::identity::token::Binding;

/// Own addresses, and services, of one workload.
const ADDRESSES_MAX: usize = 16;
const SERVICES_MAX: usize = 64;

/// A registration on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The instance that registered.
    pub instance: Arc<str>,
    /// Who it is.
    pub identity: SpiffeId,
    /// What it announced.
    pub registration: Registration,
    /// The stream that holds it; `None` while it is gone.
    #[serde(skip)]
    pub stream: Option<u64>,
    /// Without a stream it is taken out at this time, milliseconds.
    #[serde(skip)]
    pub expires: i64,
}

/// Why a registration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Outside of what the credential allows.
    #[error("{field}: {found} is not what this credential is good for; allowed: {allowed}")]
    NotAllowed {
        /// The field.
        field: &'static str,
        /// What was announced.
        found: String,
        /// What is allowed.
        allowed: String,
    },
    /// Somebody else is there.
    #[error(
        "workload {workload}: instance {holder} is registered and connected; stop it first, or give this one another name"
    )]
    Taken {
        /// The name.
        workload: WorkloadName,
        /// Who holds it.
        holder: Arc<str>,
    },
    /// Somebody else is reached there.
    #[error("addresses: {address} belongs to workload {holder}, which is connected")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        holder: WorkloadName,
    },
    /// A newer stream of the same instance announces the workload now, or has taken it out.
    #[error("workload {workload}: another stream of this instance is newer; this one is over")]
    Superseded {
        /// The name.
        workload: WorkloadName,
    },
    /// A value makes no sense.
    #[error("{field}: found {found}; allowed: {allowed}")]
    Value {
        /// The field.
        field: &'static str,
        /// What was announced.
        found: String,
        /// What is allowed.
        allowed: &'static str,
    },
}

/// Everybody who is there.
#[derive(Debug, Default)]
pub struct Registry {
    entries: BTreeMap<WorkloadName, Entry>,
    /// Instances that were taken out by one of their streams, each for a grace: what an older
    /// stream still announces comes too late.
    left: BTreeMap<Arc<str>, Left>,
}

/// The stream that took an instance out.
#[derive(Debug)]
struct Left {
    stream: u64,
    /// Forgotten at this time, milliseconds.
    expires: i64,
}

impl Registry {
    /// Takes up what was on record. The grace counts from now: nobody is taken out because clients
    /// reconnect before servers do.
    pub fn restore(entries: Vec<Entry>, now: i64, grace: i64) -> Self {
        let entries = entries.into_iter().map(|mut entry| {
            entry.expires = now + grace;
            (entry.registration.workload.clone(), entry)
        });
        Self {
            entries: entries.collect(),
            left: BTreeMap::new(),
        }
    }

    /// Whether this instance may announce this on this stream.
    pub fn check(
        &self,
        instance: &str,
        stream: u64,
        registration: &Registration,
    ) -> Result<(), Refused> {
        let left = self.left.get(instance);
        if left.is_some_and(|left| left.stream > stream) {
            return Err(superseded(registration));
        }
        match self.entries.get(&registration.workload) {
            Some(entry)
                if &*entry.instance == instance && entry.stream.is_some_and(|s| s > stream) =>
            {
                Err(superseded(registration))
            }
            Some(entry) if &*entry.instance != instance && entry.stream.is_some() => {
                Err(Refused::Taken {
                    workload: registration.workload.clone(),
                    holder: Arc::clone(&entry.instance),
                })
            }
            Some(_) | None => self.check_addresses(registration),
        }
    }

    /// Nobody takes the address of somebody who is connected.
    fn check_addresses(&self, registration: &Registration) -> Result<(), Refused> {
        let connected = self.entries.values().filter(|entry| {
            entry.stream.is_some() && entry.registration.workload != registration.workload
        });
        for entry in connected {
            let theirs = &entry.registration.addresses;
            if let Some(address) = registration.addresses.iter().find(|a| theirs.contains(a)) {
                return Err(Refused::AddressTaken {
                    address: *address,
                    holder: entry.registration.workload.clone(),
                });
            }
        }
        Ok(())
    }

    /// What is registered under a name.
    pub fn get(&self, workload: &WorkloadName) -> Option<&Entry> {
        self.entries.get(workload)
    }

    /// Takes a registration; it supersedes what the same instance, or one that is gone, had. Gives
    /// the other live stream that held it.
    ///
    /// That stream has to end. Streams count by when they arrive: it may be the one that the sidecar
    /// has, and this one a late message of a connection that it has given up. The sidecar registers
    /// anew then, so the newest stream is its own in the end, in whatever order they arrived.
    #[must_use]
    pub fn put(&mut self, entry: Entry) -> Option<u64> {
        let name = entry.registration.workload.clone();
        let stream = entry.stream;
        let before = self.entries.insert(name, entry)?;
        before.stream.filter(|older| Some(*older) != stream)
    }

    /// The stream of an instance has ended: it is kept for a grace.
    pub fn handle_disconnect(&mut self, stream: u64, now: i64, grace: i64) {
        for entry in self.entries.values_mut() {
            if entry.stream == Some(stream) {
                entry.stream = None;
                entry.expires = now + grace;
            }
        }
    }

    /// Takes an instance out.
    pub fn remove(&mut self, instance: &str) -> Option<Entry> {
        let found = self.entries.values().find(|e| &*e.instance == instance)?;
        let name = found.registration.workload.clone();
        self.entries.remove(&name)
    }

    /// Takes out what a stream registered, unless a newer stream has taken over. What older streams
    /// of the instance announce is refused for a grace.
    pub fn remove_stream(&mut self, stream: u64, now: i64, grace: i64) -> Option<Entry> {
        let found = self.entries.values().find(|e| e.stream == Some(stream))?;
        let expires = now + grace;
        let left = Left { stream, expires };
        self.left.insert(Arc::clone(&found.instance), left);
        let name = found.registration.workload.clone();
        self.entries.remove(&name)
    }

    /// Takes out everybody whose grace is over.
    pub fn expire(&mut self, now: i64) -> Vec<Entry> {
        self.left.retain(|_, left| left.expires > now);
        let gone = |entry: &Entry| entry.stream.is_none() && entry.expires <= now;
        let names: Vec<WorkloadName> = self
            .entries
            .iter()
            .filter(|(_, entry)| gone(entry))
            .map(|(name, _)| name.clone())
            .collect();
        names
            .iter()
            .filter_map(|name| self.entries.remove(name))
            .collect()
    }

    /// Everybody, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }
}

fn superseded(registration: &Registration) -> Refused {
    Refused::Superseded {
        workload: registration.workload.clone(),
    }
}

/// Whether what is announced is what the credential was made for.
pub fn check_binding(binding: &Binding, registration: &Registration) -> Result<(), Refused> {
    let refuse = |field, found: String, allowed: String| {
        Err(Refused::NotAllowed {
            field,
            found,
            allowed,
        })
    };
    if registration.workload != binding.workload {
        let (found, allowed) = (&registration.workload, &binding.workload);
        return refuse("workload", found.to_string(), allowed.to_string());
    }
    for service in &registration.services {
        if !binding.services.contains(service) {
            return refuse("services", service.to_string(), list(&binding.services));
        }
    }
    for port in &registration.ports {
        if !binding.ports.contains(&port.port) {
            return refuse("ports", port.port.to_string(), list(&binding.ports));
        }
    }
    Ok(())
}

/// Whether what is announced makes sense to others: nobody has a virtual address of his own, and
/// what is advertised can be dialled.
pub fn check_values(registration: &Registration, virtual_ranges: &[Cidr]) -> Result<(), Refused> {
    let refuse = |field, found: String, allowed| {
        Err(Refused::Value {
            field,
            found,
            allowed,
        })
    };
    let (services, addresses) = (registration.services.len(), registration.addresses.len());
    if services > SERVICES_MAX {
        return refuse("services", services.to_string(), "at most 64");
    }
    if addresses > ADDRESSES_MAX {
        return refuse("addresses", addresses.to_string(), "at most 16");
    }
    for address in &registration.addresses {
        let is_virtual = virtual_ranges.iter().any(|range| range.contains(*address));
        if is_virtual || address.is_unspecified() || address.is_multicast() {
            let allowed = "an address of its own, outside of the virtual addresses";
            return refuse("addresses", address.to_string(), allowed);
        }
    }
    for (index, port) in registration.ports.iter().enumerate() {
        let earlier = &registration.ports[..index];
        if earlier.iter().any(|other| other.port == port.port) {
            return refuse("ports", port.port.to_string(), "each port once");
        }
        if !may_be_dialled(port.advertised) {
            let found = port.advertised.to_string();
            return refuse("ports.advertised_address", found, "what others can dial");
        }
    }
    Ok(())
}

fn may_be_dialled(address: SocketAddr) -> bool {
    let ip = address.ip();
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
}

fn list<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    let texts: Vec<String> = items.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::model::{AppProtocol, RegisteredPort};

    fn registration(service: &str, port: u16) -> Registration {
        Registration {
            workload: "shop/web".parse().unwrap(),
            services: vec![service.parse().unwrap()],
            addresses: vec![],
            ports: vec![RegisteredPort {
                port,
                protocol: AppProtocol::Http,
                advertised: "127.0.0.1:4000".parse().unwrap(),
                ready: true,
            }],
            labels: BTreeMap::new(),
            zone: String::new(),
            weight: 100,
            metrics_target: String::new(),
            version: String::new(),
        }
    }

    fn entry(instance: &str, stream: Option<u64>) -> Entry {
        Entry {
            instance: instance.into(),
            identity: "spiffe://t/ns/shop/sa/web".parse().unwrap(),
            registration: registration("shop/web", 8080),
            stream,
            expires: 0,
        }
    }

    #[test]
    fn only_another_instance_with_a_live_stream_is_in_the_way() {
        let mut registry = Registry::default();
        let _ = registry.put(entry("a", Some(1)));
        let wanted = registration("shop/web", 8080);
        assert!(registry.check("a", 9, &wanted).is_ok());
        assert!(matches!(
            registry.check("b", 9, &wanted),
            Err(Refused::Taken { .. })
        ));
        registry.handle_disconnect(1, 1000, 10_000);
        assert!(registry.check("b", 9, &wanted).is_ok());
    }

    #[test]
    fn gone_after_the_grace_unless_it_came_back() {
        let mut registry = Registry::default();
        let _ = registry.put(entry("a", Some(1)));
        registry.handle_disconnect(1, 1000, 10_000);
        assert!(registry.expire(10_999).is_empty());
        let _ = registry.put(entry("a", Some(2)));
        // The old stream's end comes late: it is not the one that holds the entry.
        registry.handle_disconnect(1, 11_000, 0);
        assert!(registry.expire(99_999).is_empty());
        registry.handle_disconnect(2, 20_000, 10_000);
        assert_eq!(registry.expire(30_000).len(), 1);
    }

    #[test]
    fn after_a_restart_the_grace_counts_from_the_start() {
        let mut registry = Registry::restore(vec![entry("a", None)], 50_000, 10_000);
        assert!(registry.expire(59_999).is_empty());
        assert_eq!(registry.expire(60_000).len(), 1);
    }

    #[test]
    fn outside_of_the_binding() {
        let binding = Binding {
            workload: "shop/web".parse().unwrap(),
            service_account: "web".to_owned(),
            services: vec!["shop/web".parse().unwrap()],
            ports: vec![8080],
        };
        assert!(check_binding(&binding, &registration("shop/web", 8080)).is_ok());
        for (service, port) in [("shop/orders", 8080), ("shop/web", 9090)] {
            let refused = check_binding(&binding, &registration(service, port));
            assert!(matches!(refused, Err(Refused::NotAllowed { .. })));
        }
    }

    #[test]
    fn what_makes_no_sense_to_others() {
        let ranges = [Cidr::parse("240.240.0.0/16").unwrap()];
        let check = |change: fn(&mut Registration), expected: &str| {
            let mut changed = registration("shop/web", 8080);
            change(&mut changed);
            let refused = check_values(&changed, &ranges).unwrap_err().to_string();
            assert!(refused.starts_with(expected), "{refused}");
        };
        assert!(check_values(&registration("shop/web", 8080), &ranges).is_ok());
        check(
            |r| r.addresses = vec!["240.240.0.7".parse().unwrap()],
            "addresses: found 240.240.0.7",
        );
        check(
            |r| r.addresses = vec!["::".parse().unwrap()],
            "addresses: found ::",
        );
        check(
            |r| r.addresses = vec!["10.0.0.1".parse().unwrap(); 17],
            "addresses: found 17",
        );
        check(|r| r.ports.push(r.ports[0].clone()), "ports: found 8080");
        check(
            |r| r.ports[0].advertised = "0.0.0.0:1".parse().unwrap(),
            "ports.advertised_address: found 0.0.0.0:1",
        );
        check(
            |r| r.ports[0].advertised = "10.0.0.1:0".parse().unwrap(),
            "ports.advertised_address: found 10.0.0.1:0",
        );
    }

    #[test]
    fn nobody_takes_the_address_of_who_is_connected() {
        let mut registry = Registry::default();
        let mut held = entry("a", Some(1));
        held.registration.addresses = vec!["10.0.0.1".parse().unwrap()];
        let _ = registry.put(held.clone());
        let mut wanted = held.registration.clone();
        assert!(registry.check("a", 9, &wanted).is_ok(), "its own");
        wanted.workload = "shop/other".parse().unwrap();
        assert!(matches!(
            registry.check("b", 9, &wanted),
            Err(Refused::AddressTaken { .. })
        ));
        registry.handle_disconnect(1, 0, 10_000);
        assert!(registry.check("b", 9, &wanted).is_ok(), "a pod's successor");
    }

    #[test]
    fn a_stream_takes_out_only_what_is_its_own() {
        let mut registry = Registry::default();
        let _ = registry.put(entry("a", Some(1)));
        let _ = registry.put(entry("a", Some(2)));
        assert_eq!(registry.remove_stream(1, 0, 10_000), None);
        assert!(registry.remove_stream(2, 0, 10_000).is_some());
    }

    #[test]
    fn an_older_stream_of_the_instance_comes_too_late() {
        let mut registry = Registry::default();
        let wanted = registration("shop/web", 8080);
        let _ = registry.put(entry("a", Some(2)));
        let late = Err(Refused::Superseded {
            workload: "shop/web".parse().unwrap(),
        });
        assert_eq!(
            registry.check("a", 1, &wanted),
            late,
            "a newer one holds it"
        );
        assert!(registry.check("a", 2, &wanted).is_ok());
        assert!(registry.check("a", 3, &wanted).is_ok());
        registry.remove_stream(2, 1000, 10_000).unwrap();
        assert_eq!(
            registry.check("a", 1, &wanted),
            late,
            "a newer one has left"
        );
        assert!(registry.check("a", 3, &wanted).is_ok(), "it comes back");
        assert!(registry.check("b", 1, &wanted).is_ok(), "its successor");
        registry.expire(11_000);
        assert!(registry.left.is_empty());
    }

    #[test]
    fn the_stream_whose_place_is_taken_is_given() {
        let mut registry = Registry::default();
        assert_eq!(registry.put(entry("a", Some(1))), None, "nobody's");
        assert_eq!(registry.put(entry("a", Some(1))), None, "its own");
        assert_eq!(registry.put(entry("a", Some(2))), Some(1));
        registry.handle_disconnect(2, 0, 10_000);
        assert_eq!(registry.put(entry("a", Some(3))), None, "one that is gone");
    }
}
