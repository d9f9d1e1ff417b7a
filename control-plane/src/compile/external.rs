//! Services outside the mesh: which are in force, and for whom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use weft_core::model::MeshConfig;
use weft_core::name::ServiceName;

use super::references::Dangling;
use crate::world::World;
use crate::world::facts::{ExternalEntry, ExternalScope};

/// Hosts, and own addresses, of the whole mesh: every sidecar holds the list of them.
const MESH_NAMES_MAX: usize = 10_000;
/// Hosts, and own addresses, of one namespace: every sidecar there holds the list of them.
const NAMESPACE_NAMES_MAX: usize = 1_000;

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
pub struct Admitted {
    /// Those in force.
    pub in_force: BTreeMap<ServiceName, Arc<ExternalEntry>>,
    /// What has been found out about each.
    pub statuses: BTreeMap<ServiceName, ExternalStatus>,
    /// Those of everybody.
    mesh: ExternalNames,
    /// Those of one namespace.
    namespaces: BTreeMap<String, ExternalNames>,
}

/// What leads to services outside the mesh.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ExternalNames {
    /// Their hosts.
    pub hosts: BTreeMap<Arc<str>, ServiceName>,
    /// Addresses that lead to them when they are dialled themselves.
    pub addresses: BTreeMap<SocketAddr, ServiceName>,
}

/// Decides whom names belong to: a Service before an ExternalService, and of those of one scope the
/// older. One that has lost any of its names is not in force at all: half a destination is none that was
/// asked for.
pub(super) fn admit(world: &World) -> Admitted {
    let scope = |name| world.external_scope(name);
    admit_entries(world.externals(), |name| world.is_inside(name), scope)
}

fn admit_entries<'a>(
    entries: impl Iterator<Item = &'a Arc<ExternalEntry>>,
    is_inside: impl Fn(&ServiceName) -> bool,
    scope: impl Fn(&'a ServiceName) -> ExternalScope<'a>,
) -> Admitted {
    let mut admitted = Admitted::default();
    let mut ordered: Vec<&Arc<ExternalEntry>> = entries.collect();
    ordered.sort_by_key(|entry| (entry.created, &entry.name));
    for entry in ordered {
        let (names, most) = match scope(&entry.name) {
            ExternalScope::Mesh => (&mut admitted.mesh, MESH_NAMES_MAX),
            ExternalScope::Namespace(namespace) => {
                let of_namespace = admitted.namespaces.entry(namespace.to_owned());
                (of_namespace.or_default(), NAMESPACE_NAMES_MAX)
            }
        };
        let refused = names.conflicts(entry, is_inside(&entry.name), most);
        if refused.is_empty() {
            names.add(entry);
            let name = entry.name.clone();
            admitted.in_force.insert(name, Arc::clone(entry));
        }
        let status = ExternalStatus {
            refused,
            generation: entry.generation,
        };
        admitted.statuses.insert(entry.name.clone(), status);
    }
    admitted
}

impl ExternalNames {
    fn add(&mut self, entry: &ExternalEntry) {
        let hosts = entry.external.hosts.iter();
        let hosts = hosts.map(|host| (Arc::clone(host), entry.name.clone()));
        self.hosts.extend(hosts);
        let own = entry.external.own_addresses();
        let own = own.map(|(address, _)| (address, entry.name.clone()));
        self.addresses.extend(own);
    }

    /// Why an entry cannot have its names beside these, of which there are `most` at most.
    fn conflicts(&self, entry: &ExternalEntry, is_inside: bool, most: usize) -> Vec<Dangling> {
        let mut refused = Vec::new();
        let mut refuse = |path: String, found: String, allowed: &str| {
            refused.push(Dangling {
                path,
                reason: "Conflicted",
                found,
                allowed: allowed.to_owned(),
            });
        };
        if is_inside {
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
        let allowed = format!("{most} at most, those of one namespace or of the mesh together");
        if hosts > most {
            let found = format!("{hosts} hosts");
            refuse("spec.hosts".to_owned(), found, &allowed);
        }
        let addresses = self.addresses.len() + entry.external.own_addresses().count();
        if addresses > most {
            let found = format!("{addresses} addresses");
            refuse("spec.endpoints".to_owned(), found, &allowed);
        }
        refused
    }
}

impl Admitted {
    /// The mesh's settings with what every sidecar has to know of these.
    pub fn config(&self, config: MeshConfig) -> MeshConfig {
        MeshConfig {
            external_hosts: self.mesh.hosts.keys().cloned().collect(),
            external_addresses: self.mesh.addresses.keys().copied().collect(),
            ..config
        }
    }

    /// What leads the callers of a namespace to services of their own, where anything does.
    pub fn of_namespace(&self, namespace: &str) -> Option<&ExternalNames> {
        let names = self.namespaces.get(namespace);
        names.filter(|names| **names != ExternalNames::default())
    }

    /// Which service the callers of a namespace reach by a host; `None` where it is nobody's.
    pub fn service_of(&self, namespace: &str, host: &str) -> Option<&ServiceName> {
        let own = self.namespaces.get(namespace);
        let own = own.and_then(|names| names.hosts.get(host));
        own.or_else(|| self.mesh.hosts.get(host))
    }

    /// Namespaces whose callers are led elsewhere than before.
    pub fn changed_namespaces<'a>(&'a self, before: &'a Self) -> BTreeSet<&'a String> {
        let names = self.namespaces.keys().chain(before.namespaces.keys());
        names
            .filter(|name| self.of_namespace(name) != before.of_namespace(name))
            .collect()
    }

    /// Names of which something else is in force than before, or that are in force no more.
    pub fn changed_since<'a>(&'a self, before: &'a Self) -> BTreeSet<&'a ServiceName> {
        let names = self.in_force.keys().chain(before.in_force.keys());
        let is_same =
            |name: &ServiceName| match (self.in_force.get(name), before.in_force.get(name)) {
                (Some(now), Some(then)) => Arc::ptr_eq(now, then),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
        names.filter(|name| !is_same(name)).collect()
    }

    /// Whether every sidecar has to know of other names.
    pub fn has_other_names(&self, before: &Self) -> bool {
        !self.mesh.hosts.keys().eq(before.mesh.hosts.keys())
            || !self.mesh.addresses.keys().eq(before.mesh.addresses.keys())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::external::{EndpointHost, External, ExternalEndpoint};
    use weft_core::model::{AppProtocol, ServicePort};

    fn entry(name: &str, created: i64, hosts: &[&str], endpoint: &str) -> Arc<ExternalEntry> {
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
        Arc::new(ExternalEntry {
            name: name.parse().unwrap(),
            created,
            generation: 1,
            ports: vec![port],
            external: Arc::new(External {
                hosts: hosts.iter().map(|host| Arc::from(*host)).collect(),
                tls: Vec::new(),
                endpoints: vec![endpoint],
            }),
        })
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
        let is_web = |name: &ServiceName| name.to_string() == "shop/web";
        let admitted = admit_entries(entries.iter(), is_web, |_| ExternalScope::Mesh);
        let in_force: Vec<String> = admitted.in_force.keys().map(ToString::to_string).collect();
        assert_eq!(in_force, ["lab/free", "shop/older"]);
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
        let config = admitted.config(config);
        assert!(config.is_external_host("a.example") && config.is_external_host("b.example"));
        assert!(!config.is_external_host("c.example") && !config.is_external_host("example"));
        assert!(config.is_external_address("203.0.113.5:8080".parse().unwrap()));
        assert!(!config.is_external_address("203.0.113.5:80".parse().unwrap()));
    }

    #[test]
    fn there_are_not_more_names_than_every_sidecar_can_hold() {
        let hosts: Vec<String> = (0..MESH_NAMES_MAX)
            .map(|n| format!("h{n}.example"))
            .collect();
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let entries = [
            entry("shop/all", 1, &hosts, "a.example"),
            entry("shop/more", 2, &["a.example"], "a.example"),
        ];
        let admitted = admit_entries(entries.iter(), |_| false, |_| ExternalScope::Mesh);
        assert_eq!(admitted.in_force.len(), 1);
        let status = &admitted.statuses[&"shop/more".parse::<ServiceName>().unwrap()];
        assert_eq!(status.refused[0].found, "10001 hosts");
        // Nor does one namespace use up what others may have.
        let entries = [
            entry("shop/all", 1, &hosts[..NAMESPACE_NAMES_MAX], "a.example"),
            entry("shop/more", 2, &["a.example"], "a.example"),
            entry("lab/more", 3, &["a.example"], "a.example"),
        ];
        let own = |name| ExternalScope::Namespace(ServiceName::namespace(name));
        let admitted = admit_entries(entries.iter(), |_| false, own);
        assert_eq!(admitted.in_force.len(), 2);
        let status = &admitted.statuses[&"shop/more".parse::<ServiceName>().unwrap()];
        assert_eq!(status.refused[0].found, "1001 hosts");
    }

    #[test]
    fn a_namespace_names_the_outside_for_itself() {
        let entries = [
            entry("evil/api", 1, &["api.example"], "203.0.113.66"),
            entry("shop/api", 2, &["api.example"], "203.0.113.5"),
            entry("system/api", 3, &["api.example"], "203.0.113.5"),
            entry("shop/again", 4, &["api.example"], "203.0.113.6"),
        ];
        let scope = |name: &'static ServiceName| match name.namespace() {
            "system" => ExternalScope::Mesh,
            own => ExternalScope::Namespace(own),
        };
        let entries: &'static [Arc<ExternalEntry>] = Box::leak(Box::new(entries));
        let admitted = admit_entries(entries.iter(), |_| false, scope);
        let reached = |from: &str| {
            let found = admitted.service_of(from, "api.example");
            found.map(ToString::to_string).unwrap()
        };
        assert_eq!(reached("evil"), "evil/api");
        assert_eq!(reached("shop"), "shop/api");
        // Who has none of its own has the mesh's, and never another's.
        assert_eq!(reached("lab"), "system/api");
        let at = |from: &str| {
            let names = admitted.of_namespace(from)?;
            let found = names.addresses.get(&"203.0.113.66:8080".parse().unwrap());
            found.map(ToString::to_string)
        };
        assert_eq!(at("evil").as_deref(), Some("evil/api"));
        assert_eq!((at("shop"), at("lab")), (None, None));
        assert!(
            !admitted
                .in_force
                .contains_key(&"shop/again".parse().unwrap())
        );
        let nothing = Admitted::default();
        let changed = admitted.changed_namespaces(&nothing);
        assert_eq!(changed.into_iter().collect::<Vec<_>>(), ["evil", "shop"]);
    }
}
