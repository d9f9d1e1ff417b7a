//! What becomes of requests that leave the mesh.

use weft_core::external::{EndpointHost, External};
use weft_core::model::{ObservedBreaker, Service};

use super::{Steps, words};

/// Who serves a port outside the mesh, how they are reached, and the breakers that the caller's
/// sidecar has told of: it alone knows the addresses of names.
pub(super) fn explain_endpoints(
    service: &Service,
    external: &External,
    port: u16,
    observed: &[&ObservedBreaker],
    steps: &mut Steps,
) {
    let by = format!("ExternalService {}", service.name);
    let tls = match external.origination(port) {
        None => "nothing: it leaves the mesh as the program speaks".to_owned(),
        Some(tls) => {
            let roots = match tls.roots.len() {
                0 => "the roots of the sidecar's system".to_owned(),
                count => format!("{count} roots of its own"),
            };
            format!("TLS to {}, by {roots}", tls.server_name)
        }
    };
    steps.add("tls", &by, tls);
    for endpoint in &external.endpoints {
        let Some((_, target)) = endpoint.ports.iter().find(|(own, _)| *own == port) else {
            continue;
        };
        let how = match &endpoint.host {
            EndpointHost::Address(_) => "an address",
            EndpointHost::Name(_) => "a name that the sidecar resolves",
        };
        let result = format!("{} port {target}: {how}", endpoint.host);
        steps.add("endpoint", &by, result);
    }
    for breaker in observed {
        if let Some((_, address)) = &breaker.endpoint {
            let result = format!("{address}: breaker {}", words::state(breaker));
            steps.add("endpoint", "the caller's sidecar", result);
        }
    }
}

/// How the document of a service is called.
pub(super) fn document_of(service: &Service) -> String {
    let kind = match service.external {
        None => "Service",
        Some(_) => "ExternalService",
    };
    format!("{kind} {}", service.name)
}
