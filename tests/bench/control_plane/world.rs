//! What there is in the benchmark's mesh, by number: services, instances, and who calls whom. The same
//! every time.

use std::fmt::Write as _;

/// The namespace of everything.
pub(crate) const NAMESPACE: &str = "bench";
/// A name that nobody has; that it is answered says that everything asked for before it is.
pub(crate) const NOBODY: &str = "bench/nobody";
/// The port of every service, and of those who serve it.
pub(crate) const SERVICE_PORT: u16 = 80;
/// See [`SERVICE_PORT`].
pub(crate) const TARGET_PORT: u16 = 8080;
/// The service that every proxy calls.
pub(crate) const OF_ALL: usize = 0;
/// The first of the services that a group of proxies calls each.
pub(crate) const OF_GROUP: usize = 1;
/// Proxies of a group.
pub(crate) const GROUP: usize = 100;
/// Services that a proxy calls.
const CALLED: usize = 10;

/// How large it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World {
    /// Services, of which the first are called by all, and by a group each.
    pub(crate) services: usize,
    /// Proxies, each an instance of one service.
    pub(crate) proxies: usize,
}

impl World {
    /// NAMESPACE/NAME of a service.
    pub(crate) fn service(number: usize) -> String {
        format!("{NAMESPACE}/s{number}")
    }

    /// The number of the service that a resource is, or is about.
    pub(crate) fn number_of(resource: &str) -> Option<usize> {
        let digits = resource.strip_prefix(NAMESPACE)?.strip_prefix("/s")?;
        let end = digits
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(digits.len());
        digits[..end].parse().ok()
    }

    /// NAMESPACE/NAME of a proxy's workload.
    pub(crate) fn workload(proxy: usize) -> String {
        format!("{NAMESPACE}/p{proxy}")
    }

    /// The service that a proxy's workload serves.
    pub(crate) fn served_by(self, proxy: usize) -> usize {
        proxy % self.services
    }

    /// The services that a proxy calls: the one that all call, one that its group calls, and others that
    /// few call.
    pub(crate) fn called_by(self, proxy: usize) -> Vec<usize> {
        let groups = self.proxies.div_ceil(GROUP);
        let first = OF_GROUP + groups;
        let rest = self.services.saturating_sub(first).max(1);
        let others = (0..CALLED - 2).map(|n| first + (proxy * (CALLED - 2) + n) % rest);
        [OF_ALL, OF_GROUP + proxy / GROUP]
            .into_iter()
            .chain(others)
            .collect()
    }

    /// The proxies that call a service.
    pub(crate) fn callers_of(self, service: usize) -> Vec<usize> {
        let calls = |proxy: &usize| self.called_by(*proxy).contains(&service);
        (0..self.proxies).filter(calls).collect()
    }

    /// Documents of all services.
    pub(crate) fn documents(self) -> Vec<String> {
        let document = |number| {
            format!(
                "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\n\
                 metadata: {{name: s{number}, namespace: {NAMESPACE}}}\n\
                 spec: {{ports: [{{port: {SERVICE_PORT}, targetPort: {TARGET_PORT}, protocol: http}}]}}\n"
            )
        };
        (0..self.services).map(document).collect()
    }
}

/// A policy for a service; another one for every `value` (milliseconds).
pub(crate) fn policy(service: usize, value: usize) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write!(
        text,
        "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {{name: s{service}, namespace: {NAMESPACE}}}\n\
         spec:\n  targetRef: {{kind: Service, name: s{service}}}\n  timeouts: {{request: {}ms}}\n",
        1_000 + value
    );
    text
}
