//! Who registered, and whether it is still there: a pure state machine.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_core::model::{Cidr, Registration};
use weft_core::name::{SpiffeId, WorkloadName};
use weft_core::time::Instant;

use crate::identity::token::{Binding, Reserved};

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
    /// Without a stream it is taken out at this time.
    #[serde(skip)]
    pub expires: Instant,
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
    /// A name of the mesh's own.
    #[error(transparent)]
    Reserved(#[from] Reserved),
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
    /// An address that the credential does not give to this workload.
    #[error(
        "{field}: {address} is not this workload's; allowed: {allowed}; an operator gives it others with `weft token create --address {address}`"
    )]
    Foreign {
        /// The field.
        field: &'static str,
        /// What was announced.
        address: IpAddr,
        /// What is allowed.
        allowed: String,
    },
    /// An address that another workload has.
    #[error("addresses: {address} belongs to workload {holder}, {}", of_holder(*.connected))]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        holder: WorkloadName,
        /// Whether it is connected.
        connected: bool,
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
///
/// Invariant: an address is in the registration of one workload at most, and stays that workload's
/// until its entry is removed, whether it is connected or not.
#[derive(Debug, Default)]
pub struct Registry {
    entries: BTreeMap<WorkloadName, Entry>,
    /// Whose each address is.
    owners: HashMap<IpAddr, WorkloadName>,
    /// Which workload each live stream holds.
    streams: HashMap<u64, WorkloadName>,
    /// Instances that were taken out by one of their streams, each for a grace: what an older
    /// stream still announces comes too late.
    left: BTreeMap<Arc<str>, Left>,
}

/// The stream that took an instance out.
#[derive(Debug)]
struct Left {
    stream: u64,
    /// When it is forgotten.
    expires: Instant,
}

impl Registry {
    /// Takes up what was on record. The grace counts from now: nobody is taken out because clients
    /// reconnect before servers do. It may be longer than that of a stream that has ended: nobody has
    /// seen these go.
    pub fn restore(entries: Vec<Entry>, now: Instant, grace: Duration) -> Self {
        let mut registry = Self::default();
        for mut entry in entries {
            entry.expires = now + grace;
            registry.insert(entry);
        }
        registry
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

    /// Nobody takes the address of another, connected or not.
    fn check_addresses(&self, registration: &Registration) -> Result<(), Refused> {
        for address in &registration.addresses {
            match self.owners.get(address) {
                Some(holder) if *holder != registration.workload => {
                    let entry = self.entries.get(holder);
                    return Err(Refused::AddressTaken {
                        address: *address,
                        holder: holder.clone(),
                        connected: entry.is_some_and(|entry| entry.stream.is_some()),
                    });
                }
                Some(_) | None => {}
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
        let stream = entry.stream;
        let before = self.insert(entry)?;
        before.stream.filter(|older| Some(*older) != stream)
    }

    fn insert(&mut self, entry: Entry) -> Option<Entry> {
        let name = entry.registration.workload.clone();
        let before = self.take_out(&name);
        for address in &entry.registration.addresses {
            let owner = self.owners.entry(*address);
            let owner = owner.or_insert_with(|| name.clone());
            if *owner != name {
                tracing::error!(%address, %owner, workload = %name, "an address of two workloads");
            }
        }
        if let Some(stream) = entry.stream {
            self.streams.insert(stream, name.clone());
        }
        self.entries.insert(name, entry);
        before
    }

    fn take_out(&mut self, workload: &WorkloadName) -> Option<Entry> {
        let entry = self.entries.remove(workload)?;
        for address in &entry.registration.addresses {
            if self.owners.get(address) == Some(workload) {
                self.owners.remove(address);
            }
        }
        if let Some(stream) = entry.stream {
            self.streams.remove(&stream);
        }
        Some(entry)
    }

    /// The stream of an instance has ended: it is kept for a grace.
    pub fn handle_disconnect(&mut self, stream: u64, now: Instant, grace: Duration) {
        let held = self.streams.remove(&stream);
        if let Some(entry) = held.and_then(|name| self.entries.get_mut(&name)) {
            entry.stream = None;
            entry.expires = now + grace;
        }
    }

    /// Takes an instance out.
    pub fn remove(&mut self, instance: &str) -> Option<Entry> {
        let found = self.entries.values().find(|e| &*e.instance == instance)?;
        let name = found.registration.workload.clone();
        self.take_out(&name)
    }

    /// Takes out what a stream registered, unless a newer stream has taken over. What older streams
    /// of the instance announce is refused for a grace.
    pub fn remove_stream(&mut self, stream: u64, now: Instant, grace: Duration) -> Option<Entry> {
        let name = self.streams.get(&stream)?.clone();
        let entry = self.take_out(&name)?;
        let expires = now + grace;
        let left = Left { stream, expires };
        self.left.insert(Arc::clone(&entry.instance), left);
        Some(entry)
    }

    /// Takes out everybody whose grace is over.
    pub fn expire(&mut self, now: Instant) -> Vec<Entry> {
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
            .filter_map(|name| self.take_out(name))
            .collect()
    }

    /// Everybody, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// How many are there.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody is there.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn of_holder(connected: bool) -> &'static str {
    match connected {
        true => "which is connected",
        false => "whose sidecar is away; it becomes free when that workload's grace is over",
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
    for address in &registration.addresses {
        let is_virtual = virtual_ranges.iter().any(|range| range.contains(*address));
        let is_nobodys = address.is_unspecified() || address.is_multicast();
        if is_virtual || is_nobodys || address.is_loopback() {
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
#[path = "machine_tests.rs"]
mod tests;
