//! What a port outside the mesh needs beside its endpoints: the TLS that is made for it, and names
//! that have addresses or not.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use weft_core::external::{External, Origination};
use weft_core::model::{AppProtocol, MeshConfig};
use weft_core::reason::Reason;
use weft_proto::resource::Kind;

use super::{Demand, Destination, Lookup, Mesh, Snapshot, port_of};
use crate::tls::provider;

/// HTTP/2 over TLS (RFC 9113 section 3.2).
pub const ALPN_HTTP2: &[u8] = b"h2";
/// HTTP/1.1 over TLS (RFC 7301 section 6).
pub const ALPN_HTTP1: &[u8] = b"http/1.1";

/// How one port is reached outside the mesh.
#[derive(Debug)]
pub struct Outside {
    /// Connections made under one are not used under another.
    pub id: u64,
    /// The TLS that is made for its connections, if any, or why there can be none.
    pub tls: Option<Result<OutsideTls, String>>,
    /// What the TLS was made from.
    origination: Option<Origination>,
}

/// TLS towards servers outside the mesh.
#[derive(Debug)]
pub struct OutsideTls {
    /// Sent as SNI, and what the certificate has to name.
    pub name: ServerName<'static>,
    /// Of connections for many requests.
    pub requests: Arc<ClientConfig>,
    /// Of connections for one exchange in HTTP/1.1 that may turn into a byte stream.
    pub upgrade: Arc<ClientConfig>,
    /// Of opaque connections.
    pub opaque: Arc<ClientConfig>,
}

impl Outside {
    /// How endpoints of the mesh are reached beside which no sidecar stands: in plaintext.
    pub fn plain() -> &'static Arc<Self> {
        static PLAIN: OnceLock<Arc<Outside>> = OnceLock::new();
        PLAIN.get_or_init(|| {
            Arc::new(Self {
                // No certificate and no other way out has this number.
                id: u64::MAX,
                tls: None,
                origination: None,
            })
        })
    }

    /// How a port is reached now: the one before, where nothing is different.
    pub(super) fn of(
        external: &External,
        port: u16,
        protocol: AppProtocol,
        before: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let origination = external.origination(port);
        if let Some(same) = before.filter(|before| before.origination.as_ref() == origination) {
            return Arc::clone(same);
        }
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            tls: origination.map(|origination| OutsideTls::new(origination, protocol)),
            origination: origination.cloned(),
        })
    }
}

impl OutsideTls {
    fn new(origination: &Origination, protocol: AppProtocol) -> Result<Self, String> {
        let name = ServerName::try_from(origination.server_name.to_string())
            .map_err(|error| format!("{}: {error}", origination.server_name))?;
        let roots = match origination.roots.as_slice() {
            [] => system_roots()?,
            own => {
                let mut roots = RootCertStore::empty();
                for root in own {
                    let root = CertificateDer::from(root.clone());
                    let added = roots.add(root);
                    added.map_err(|error| format!("a root certificate: {error}"))?;
                }
                Arc::new(roots)
            }
        };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // On a resumed connection rustls asks no verifier: each one is to be a full handshake.
        config.resumption = Resumption::disabled();
        let with = |names: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = names.iter().map(|name| name.to_vec()).collect();
            Arc::new(config)
        };
        let requests = match protocol {
            AppProtocol::Http2 | AppProtocol::Grpc => with(&[ALPN_HTTP2]),
            AppProtocol::Detect | AppProtocol::Http | AppProtocol::Tcp | AppProtocol::Tls => {
                with(&[ALPN_HTTP2, ALPN_HTTP1])
            }
        };
        Ok(Self {
            name,
            requests,
            upgrade: with(&[ALPN_HTTP1]),
            opaque: with(&[]),
        })
    }
}

/// The roots of this system, read once.
fn system_roots() -> Result<Arc<RootCertStore>, String> {
    static ROOTS: OnceLock<Result<Arc<RootCertStore>, String>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (_added, _ignored) = roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
            let errors = errors.join("; ");
            return Err(format!(
                "this system has no root certificates (see SSL_CERT_FILE): {errors}"
            ));
        }
        Ok(Arc::new(roots))
    });
    roots.clone()
}

/// What a name outside the mesh stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// These addresses, at least one.
    Addresses(Arc<[IpAddr]>),
    /// None, and why.
    Nothing(Arc<str>),
}

/// What the names of endpoints stand for; of a name that is not in it nobody has answered yet.
#[derive(Debug, Default)]
pub(super) struct Names(Mutex<HashMap<Arc<str>, Named>>);

/// A copy to look names up in.
pub(super) type NamesNow = HashMap<Arc<str>, Named>;

impl Names {
    /// Those of one service.
    pub(super) fn of(&self, external: &External) -> NamesNow {
        let all = self.lock();
        let known = external.names().filter_map(|name| {
            let named = all.get(name)?;
            Some((Arc::clone(name), named.clone()))
        });
        known.collect()
    }

    /// Notes what a name stands for.
    pub(super) fn set(&self, name: Arc<str>, named: Named) {
        self.lock().insert(name, named);
    }

    /// Forgets all other names.
    pub(super) fn keep(&self, wanted: impl Fn(&str) -> bool) {
        self.lock().retain(|name, _| wanted(name));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Named>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a port outside the mesh has no endpoint: those are its names without an address, `Ok` where
/// nobody has answered for any yet.
pub(super) fn unresolved(external: &External, names: &NamesNow) -> Result<(), Arc<str>> {
    let reasons = external.names().map(|name| match names.get(name) {
        None => Ok(()),
        Some(Named::Addresses(_)) => Err(format!("{name}: no address that may be dialled")),
        Some(Named::Nothing(why)) => Err(format!("{name}: {why}")),
    });
    let reasons = reasons.collect::<Vec<_>>();
    // As long as one may still come, it is waited for.
    if reasons.iter().any(Result::is_ok) {
        return Ok(());
    }
    let reasons: Vec<String> = reasons.into_iter().filter_map(Result::err).collect();
    Err(reasons.join("; ").into())
}

impl Mesh {
    /// Names of endpoints outside the mesh that have to be resolved, ascending.
    pub fn outside_names(&self) -> BTreeSet<Arc<str>> {
        let snapshot = self.snapshot.load();
        let externals = snapshot.services.values();
        let externals = externals.filter_map(|view| view.model.external.as_ref());
        let names = externals.flat_map(|external| external.names());
        names.cloned().collect()
    }

    /// Takes what a name outside the mesh stands for from now on. Live state of endpoints that stay
    /// is carried over.
    pub fn set_name(&self, name: &Arc<str>, named: Named) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        self.names.set(Arc::clone(name), named);
        let mut snapshot = Snapshot::clone(&self.snapshot.load());
        let own_routes = Arc::clone(&snapshot.own_routes);
        let concerned = snapshot.services.values_mut().filter(|view| {
            let external = view.model.external.as_ref();
            external.is_some_and(|external| external.names().any(|own| own == name))
        });
        for view in concerned {
            let service = view.model.name.clone();
            let own_routes = own_routes.get(&service).map(Vec::as_slice);
            let mut next = HashMap::new();
            let model = Arc::clone(&view.model);
            *view = self.view(model, own_routes, Some(view), &mut live, &mut next);
            live.retain(|key, _| key.service != service);
            live.extend(next);
        }
        self.snapshot.store(Arc::new(snapshot));
        drop(live);
        self.changed.send_modify(|generation| *generation += 1);
    }

    /// Forgets what other names stood for.
    pub fn keep_names(&self, wanted: &BTreeSet<Arc<str>>) {
        self.names.keep(|name| wanted.contains(name));
    }

    /// The name to ask for the service that goes by a host name outside the mesh, if one does; waits
    /// for the control plane's answer.
    pub async fn external_host(&self, host: &str) -> Result<Option<String>, Reason> {
        let found = self.wait_for(|snapshot| match &snapshot.config {
            Some(config) if snapshot.namespace => {
                let own = snapshot.own_externals.hosts.get(host);
                Lookup::Found(match own {
                    Some(service) => Some(service.to_string()),
                    None => config.is_external_host(host).then(|| host.to_owned()),
                })
            }
            Some(_) | None => Lookup::Unanswered(None),
        });
        found.await
    }
}

impl Snapshot {
    /// The name to ask for the service outside the mesh that goes by an address, if one does: of this
    /// sidecar's own namespace before everybody's.
    pub(super) fn external_name(&self, config: &MeshConfig, address: SocketAddr) -> Option<String> {
        match self.own_externals.addresses.get(&address) {
            Some(service) => Some(service.to_string()),
            None => config
                .is_external_address(address)
                .then(|| address.to_string()),
        }
    }

    /// Where an address leads that a service outside the mesh goes by; `name` is that to ask for it.
    pub(super) fn external_at(
        &self,
        address: SocketAddr,
        name: String,
    ) -> Lookup<Result<Destination, Reason>> {
        let Some(found) = self.lookup(&name) else {
            let kind = Kind::Service;
            return Lookup::Unanswered(Some(Demand { kind, name }));
        };
        let found = found.ok_or(Reason::ServiceNotFound);
        Lookup::Found(found.and_then(|view| {
            let external = view.model.external.as_ref();
            let port = external.and_then(|external| external.port_at(address));
            port_of(&view, port.ok_or(Reason::PortNotDeclared)?)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::external::{EndpointHost, ExternalEndpoint};

    fn external(names: &[&str], server_name: Option<&str>) -> External {
        let endpoints = names.iter().map(|name| ExternalEndpoint {
            host: EndpointHost::Name((*name).into()),
            zone: String::new(),
            weight: 100,
            ports: vec![(80, 80)],
        });
        let tls = server_name.map(|name| {
            let server_name = name.into();
            let roots = vec![vec![1, 2, 3]];
            (80, Origination { server_name, roots })
        });
        External {
            hosts: vec!["api.example".into()],
            tls: tls.into_iter().collect(),
            endpoints: endpoints.collect(),
        }
    }

    #[test]
    fn a_name_that_may_still_be_answered_is_waited_for() {
        let external = external(&["a.example", "b.example"], None);
        let gone = || Named::Nothing("NXDOMAIN".into());
        let mut names = NamesNow::new();
        assert_eq!(unresolved(&external, &names), Ok(()));
        names.insert("a.example".into(), gone());
        assert_eq!(unresolved(&external, &names), Ok(()));
        names.insert("b.example".into(), gone());
        let why = "a.example: NXDOMAIN; b.example: NXDOMAIN";
        assert_eq!(unresolved(&external, &names), Err(why.into()));
        let loopback: Arc<[IpAddr]> = [[127, 0, 0, 1].into()].into();
        names.insert("b.example".into(), Named::Addresses(loopback));
        let why = "a.example: NXDOMAIN; b.example: no address that may be dialled";
        assert_eq!(unresolved(&external, &names), Err(why.into()));
    }

    #[test]
    fn connections_are_kept_as_long_as_nothing_is_different() {
        let of = |server_name, before: Option<&Arc<Outside>>| {
            let external = external(&["a.example"], server_name);
            Outside::of(&external, 80, AppProtocol::Http, before)
        };
        let plain = of(None, None);
        assert!(Arc::ptr_eq(&plain, &of(None, Some(&plain))));
        let secure = of(Some("a.example"), Some(&plain));
        assert_ne!(plain.id, secure.id);
        assert!(Arc::ptr_eq(&secure, &of(Some("a.example"), Some(&secure))));
        assert_ne!(of(Some("b.example"), Some(&secure)).id, secure.id);
        // What makes no TLS makes no connection either.
        assert!(matches!(&secure.tls, Some(Err(why)) if why.contains("root")));
    }
}
