//! Requests and connections that leave the mesh for a service outside of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use weft_core::model::Transport;
use weft_core::reason::Reason;

use super::failed::Failed;
use crate::mesh::{Endpoint, Outside, PortView};
use crate::telemetry::metrics::Wire;
use crate::worker::Worker;

impl PortView {
    /// How bytes travel to one of its endpoints.
    pub(crate) fn wire(&self, endpoint: &Endpoint) -> Wire {
        match self.outside_of(endpoint) {
            None => Wire::Mtls,
            Some(outside) if outside.tls.is_some() => Wire::Tls,
            Some(_) => Wire::Plaintext,
        }
    }

    /// How one of its endpoints is reached, where no sidecar stands there: it is a server outside the
    /// mesh, or an endpoint that the control plane has declared to be reached in plaintext.
    pub(crate) fn outside_of(&self, endpoint: &Endpoint) -> Option<&Arc<Outside>> {
        let plain = || match endpoint.model.transport {
            Transport::Mesh => None,
            Transport::Plain => Some(Outside::plain()),
        };
        self.outside.as_ref().or_else(plain)
    }

    /// Whether no sidecar stands beside any of its endpoints, of which there are some.
    pub(crate) fn is_plain(&self) -> bool {
        let mut all = self.endpoints.iter();
        let plain = |endpoint: &Arc<Endpoint>| endpoint.model.transport == Transport::Plain;
        self.outside.is_none() && !self.endpoints.is_empty() && all.all(plain)
    }

    /// Whether its endpoints are still to be found: names that nobody has resolved.
    fn is_unresolved(&self) -> bool {
        self.outside.is_some() && self.endpoints.is_empty()
    }
}

/// The port, once the names of its endpoints are resolved: the first request of all waits for that,
/// for as long as connecting may take and no longer than somebody waits for it.
pub(super) async fn resolved(
    worker: &Worker,
    port: Arc<PortView>,
    left: Option<Duration>,
) -> Result<Arc<PortView>, Failed> {
    if !port.is_unresolved() {
        return Ok(port);
    }
    // Requests to all others carry no room for this.
    Box::pin(wait(worker, port, left)).await
}

async fn wait(
    worker: &Worker,
    port: Arc<PortView>,
    left: Option<Duration>,
) -> Result<Arc<PortView>, Failed> {
    let shared = &worker.shared;
    let own = port.connect_timeout(&shared.config);
    let limit = left.map_or(own, |left| left.min(own));
    let mut changes = shared.mesh.changes();
    let waiting = async {
        loop {
            changes.mark_unchanged();
            // One that is gone meanwhile has no endpoints to wait for.
            let Some(now) = shared.mesh.refresh(&port) else {
                return Ok(Arc::clone(&port));
            };
            // A fallback answers as it does where nobody serves.
            if !now.is_unresolved() || (now.unresolved.is_some() && now.policy.fallback.is_some()) {
                return Ok(now);
            }
            if let Some(why) = &now.unresolved {
                return Err(why.to_string());
            }
            if changes.changed().await.is_err() {
                return Ok(now);
            }
        }
    };
    let result = timeout(limit, waiting).await;
    let result = result.unwrap_or_else(|_elapsed| Err(format!("not resolved in {limit:?}")));
    result.map_err(|detail| Failed::new(Reason::NameResolutionFailed, detail))
}
