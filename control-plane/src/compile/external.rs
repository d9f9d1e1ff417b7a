//! Services outside the mesh: which are in force, and what becomes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use weft_core::external::External;
use weft_core::model::{MeshConfig, Service, ServicePort};
use weft_core::name::ServiceName;

use super::routes::Dangling;
use super::{World, policies_of};

/// Names of the whole mesh: every sidecar holds the list of them.
const HOSTS_MAX: usize = 10_000;
/// Addresses of the whole mesh that lead to services when they are dialled themselves.
const ADDRESSES_MAX: usize = 10_000;

/// An ExternalService that was asked for.
#[derive(Debug, Clone)]
pub struct ExternalEntry {
    /// Its name.
    pub name: ServiceName,
    /// When it was made, milliseconds since the Unix epoch.
    pub created: i64,
    /// Counts its changes.
    pub generation: u64,
    /// Its ports, ascending.
    pub ports: Vec<ServicePort>,
    /// What is particular to it.
    pub external: Arc<External>,
}

/// What has been found out about an ExternalService.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalStatus {
    /// Why it is not in force; nothing where it is.
    pub refused: Vec<Dangling>,
    /// The change that this is about.
    pub generation: u64,
}

/// Those in force, and what has been found out about each.
#[derive(Debug, Default)]
pub(super) struct Admitted<'a> {
    pub(super) entries: Vec<&'a ExternalEntry>,
    pub(super) statuses: BTreeMap<ServiceName, ExternalStatus>,
    hosts: BTreeMap<Arc<str>, ServiceName>,
    addresses: BTreeMap<SocketAddr, ServiceName>,
}

/// Whom names belong to: a Service before an ExternalService, and of those the older. Whoever has
/// lost any of its names is not in force at all: half a destination is none that was asked for.
pub(super) fn admit<'a>(
    entries: &'a [ExternalEntry],
    services: &BTreeSet<&ServiceName>,
) -> Admitted<'a> {
    let mut admitted = Admitted::default();
    let mut ordered: Vec<&ExternalEntry> = entries.iter().collect();
    ordered.sort_by_key(|entry| (entry.created, &entry.name));
    for entry in ordered {
        let refused = admitted.conflicts(entry, services);
        if refused.is_empty() {
            let hosts = entry.external.hosts.iter();
            let hosts = hosts.map(|host| (Arc::clone(host), entry.name.clone()));
            admitted.hosts.extend(hosts);
            let own = entry.external.own_addresses();
            let own = own.map(|(address, _)| (address, entry.name.clone()));
            admitted.addresses.extend(own);
            admitted.entries.push(entry);
        }
        let status = ExternalStatus {
            refused,
            generation: entry.generation,
        };
        admitted.statuses.insert(entry.name.clone(), status);
    }
    admitted
}

impl Admitted<'_> {
    fn conflicts(&self, entry: &ExternalEntry, services: &BTreeSet<&ServiceName>) -> Vec<Dangling> {
        let mut refused = Vec::new();
        let mut refuse = |path: String, found: String, allowed: &str| {
            refused.push(Dangling {
                path,
                reason: "Conflicted",
                found,
                allowed: allowed.to_owned(),
            });
        };
        if services.contains(&entry.name) {
            let found = format!("{}, as a Service is called too", entry.name);
            let allowed = "a name that no Service has: both are NAME.NAMESPACE.mesh";
            refuse("metadata.name".to_owned(), found, allowed);
        }
        for (index, host) in entry.external.hosts.iter().enumerate() {
            if let Some(holder) = self.hosts.get(host) {
                let found = format!("{host}, which the ExternalService {holder} has");
                let allowed = "a host that no older ExternalService has";
                refuse(format!("spec.hosts[{index}]"), found, allowed);
            }
        }
        for (address, _) in entry.external.own_addresses() {
            if let Some(holder) = self.addresses.get(&address) {
                let found = format!("{address}, which the ExternalService {holder} has");
                let allowed = "an address and port that no older ExternalService has";
                refuse("spec.endpoints".to_owned(), found, allowed);
            }
        }
        let hosts = self.hosts.len() + entry.external.hosts.len();
        if hosts > HOSTS_MAX {
            let found = format!("{hosts} hosts in the mesh");
            refuse("spec.hosts".to_owned(), found, "10000 at most");
        }
        let addresses = self.addresses.len() + entry.external.own_addresses().count();
        if addresses > ADDRESSES_MAX {
            let found = format!("{addresses} addresses in the mesh");
            refuse("spec.endpoints".to_owned(), found, "10000 at most");
        }
        refused
    }

    /// The mesh's settings with what every sidecar has to know of these.
    pub(super) fn config(&self, config: &MeshConfig) -> MeshConfig {
        MeshConfig {
            external_hosts: self.hosts.keys().cloned().collect(),
            external_addresses: self.addresses.keys().copied().collect(),
            ..config.clone()
        }
    }
}

/// What sidecars are told of one.
pub(super) fn service(world: World<'_>, entry: &ExternalEntry) -> Service {
    let ports = entry.ports.iter().map(|port| port.port);
    Service {
        policies: policies_of(world, &entry.name, ports),
        routes: Vec::new(),
        name: entry.name.clone(),
        addresses: world.addresses.of(&entry.name),
        ports: entry.ports.clone(),
        endpoints: Vec::new(),
        endpoint_slices: 0,
        external: Some(Arc::clone(&entry.external)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::external::{EndpointHost, ExternalEndpoint};
    use weft_core::model::AppProtocol;

    fn entry(name: &str, created: i64, hosts: &[&str], endpoint: &str) -> ExternalEntry {
        let port = ServicePort {
            port: 80,
            protocol: AppProtocol::Http,
        };
        let endpoint = ExternalEndpoint {
            host: EndpointHost::parse(endpoint).unwrap(),
            zone: String::new(),
            weight: 100,
            ports: vec![(80, 8080)],
        };
        ExternalEntry {
            name: name.parse().unwrap(),
            created,
            generation: 1,
            ports: vec![port],
            external: Arc::new(External {
                hosts: hosts.iter().map(|host| Arc::from(*host)).collect(),
                tls: Vec::new(),
                endpoints: vec![endpoint],
            }),
        }
    }

    #[test]
    fn names_belong_to_one() {
        let entries = [
            entry("shop/younger", 2, &["b.example", "a.example"], "a.example"),
            entry("shop/older", 1, &["a.example"], "203.0.113.5"),
            entry("shop/web", 1, &["c.example"], "c.example"),
            entry("lab/same", 3, &["d.example"], "203.0.113.5"),
            entry("lab/free", 3, &["b.example"], "203.0.113.6"),
        ];
        let web = "shop/web".parse().unwrap();
        let admitted = admit(&entries, &BTreeSet::from([&web]));
        let in_force: Vec<String> = admitted
            .entries
            .iter()
            .map(|e| e.name.to_string())
            .collect();
        assert_eq!(in_force, ["shop/older", "lab/free"]);
        let refused = |name: &str| {
            let status = &admitted.statuses[&name.parse::<ServiceName>().unwrap()];
            let paths = status.refused.iter().map(|refused| refused.path.clone());
            paths.collect::<Vec<_>>()
        };
        assert_eq!(refused("shop/younger"), ["spec.hosts[1]"]);
        assert_eq!(refused("shop/web"), ["metadata.name"]);
        assert_eq!(refused("lab/same"), ["spec.endpoints"]);
        assert!(refused("shop/older").is_empty() && refused("lab/free").is_empty());
        let config = MeshConfig {
            trust_domain: "t".parse().unwrap(),
            virtual_ranges: Vec::new(),
            workload_ranges: Vec::new(),
            unknown_destinations: Default::default(),
            external_hosts: Vec::new(),
            external_addresses: Vec::new(),
        };
        let config = admitted.config(&config);
        assert!(config.is_external_host("a.example") && config.is_external_host("b.example"));
        assert!(!config.is_external_host("c.example") && !config.is_external_host("example"));
        assert!(config.is_external_address("203.0.113.5:8080".parse().unwrap()));
        assert!(!config.is_external_address("203.0.113.5:80".parse().unwrap()));
    }

    #[test]
    fn there_are_not_more_names_than_every_sidecar_can_hold() {
        let hosts: Vec<String> = (0..HOSTS_MAX).map(|n| format!("h{n}.example")).collect();
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let entries = [
            entry("shop/all", 1, &hosts, "a.example"),
            entry("shop/more", 2, &["a.example"], "a.example"),
        ];
        let admitted = admit(&entries, &BTreeSet::new());
        assert_eq!(admitted.entries.len(), 1);
        let status = &admitted.statuses[&"shop/more".parse::<ServiceName>().unwrap()];
        assert_eq!(status.refused[0].found, "10001 hosts in the mesh");
    }
}
