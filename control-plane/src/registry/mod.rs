//! What exists: who registered, whether it is still there. A pure state machine; the stream that
//! drives it is in `grpc`.

pub mod grpc;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weft_core::model::Registration;
use weft_core::name::{SpiffeId, WorkloadName};

use crate::token::Binding;

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
}

/// Everybody who is there.
#[derive(Debug, Default)]
pub struct Registry {
    entries: BTreeMap<WorkloadName, Entry>,
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
        }
    }

    /// Whether this instance may announce this.
    pub fn check(&self, instance: &str, registration: &Registration) -> Result<(), Refused> {
        match self.entries.get(&registration.workload) {
            Some(entry) if &*entry.instance != instance && entry.stream.is_some() => {
                Err(Refused::Taken {
                    workload: registration.workload.clone(),
                    holder: Arc::clone(&entry.instance),
                })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Takes a registration; it supersedes what the same instance, or one that is gone, had.
    pub fn put(&mut self, entry: Entry) {
        let name = entry.registration.workload.clone();
        self.entries.insert(name, entry);
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

    /// Takes out everybody whose grace is over.
    pub fn expire(&mut self, now: i64) -> Vec<Entry> {
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
        registry.put(entry("a", Some(1)));
        let wanted = registration("shop/web", 8080);
        assert!(registry.check("a", &wanted).is_ok());
        assert!(matches!(
            registry.check("b", &wanted),
            Err(Refused::Taken { .. })
        ));
        registry.handle_disconnect(1, 1000, 10_000);
        assert!(registry.check("b", &wanted).is_ok());
    }

    #[test]
    fn gone_after_the_grace_unless_it_came_back() {
        let mut registry = Registry::default();
        registry.put(entry("a", Some(1)));
        registry.handle_disconnect(1, 1000, 10_000);
        assert!(registry.expire(10_999).is_empty());
        registry.put(entry("a", Some(2)));
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
}
