//! The state of the whole sidecar, which its workers and the control thread share.

use std::net::IpAddr;
use std::sync::Arc;

use crate::config::ProxyConfig;
use crate::connections::Connections;
use crate::drain::Drain;
use crate::http::Resets;
use crate::interception::OwnAnswer;
use crate::mesh::Mesh;
use crate::nest::SocketFactory;
use crate::pool::Limited;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::spans::Spans;
use crate::telemetry::tracing::Tracer;
use crate::tls::TlsContext;

/// What all workers and the control thread share.
#[derive(Debug)]
pub struct Shared {
    /// The bootstrap configuration.
    pub config: Arc<ProxyConfig>,
    /// What is known of the mesh.
    pub mesh: Arc<Mesh>,
    /// Certificates in force.
    pub tls: Arc<TlsContext>,
    /// Counters.
    pub metrics: Metrics,
    /// Spans; `None` where nothing is traced.
    pub tracer: Option<Tracer>,
    /// One line per request, where they are kept.
    pub access_log: AccessLog,
    /// Leaving.
    pub drain: Drain,
    /// Sockets inside the program's namespace, where it has one.
    pub nest: Option<SocketFactory>,
    /// What of the host the program may reach.
    pub host: Option<HostAccess>,
    /// Connections to ports that limit them.
    pub limited: Arc<Limited>,
    /// Accepted connections, all workers together.
    pub connections: Arc<Connections>,
    /// What proofs of interception are answered with.
    pub own_answer: Arc<OwnAnswer>,
    /// What clients may reset of their requests.
    pub resets: Arc<Resets>,
}

impl Shared {
    /// Makes spans, where the sidecar traces.
    pub(crate) fn spans(&self) -> Spans<'_> {
        Spans {
            tracer: self.tracer.as_ref(),
            ratio: self.config.tracing.sample_ratio,
        }
    }
}

/// The host's loopback, as a program in a namespace of its own reaches it.
#[derive(Debug, Clone)]
pub struct HostAccess {
    /// What `host.mesh` stands for.
    pub address: IpAddr,
    /// Ports that were opened to the program.
    pub ports: Vec<u16>,
}
