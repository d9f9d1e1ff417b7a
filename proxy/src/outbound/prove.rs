//! Proofs of identity on behalf of connections that stand for long.
//!
//! A database session outlives the certificates of both sidecars. Before these end, the side that
//! dialled makes one more handshake with the same endpoint: it shows each side a newer certificate
//! of the other, and every connection between the two instances lives on.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::config::ProxyConfig;
use crate::mesh::{EndpointKey, Mesh};
use crate::pool;
use crate::telemetry::metrics::Metrics;
use crate::tls::{ALPN_H2, Dialled, TlsContext};

/// How often it is looked whom to dial.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Proofs under way at a time.
const PROOFS_MAX: usize = 32;
/// How long one may take, where a longer timeout of connections is configured.
const PROOF_MAX: Duration = Duration::from_secs(10);
/// How long a peer may take to close a connection that has proved what it was for.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// Proves again what has to be proved, until it is dropped.
pub(crate) async fn run(
    mesh: Arc<Mesh>,
    tls: Arc<TlsContext>,
    config: Arc<ProxyConfig>,
    metrics: Metrics,
) {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Side by side, and across the times at which it is looked: a peer that stalls delays nobody
    // else's.
    let mut under_way = FuturesUnordered::new();
    let (mut due, mut known) = (VecDeque::new(), HashSet::new());
    loop {
        tokio::select! {
            _now = tick.tick() => {
                let proofs = tls.standing().poll_proofs().into_iter();
                due.extend(proofs.filter(|dialled| known.insert(dialled.clone())));
            }
            Some(dialled) = under_way.next(), if !under_way.is_empty() => {
                known.remove(&dialled);
            }
        }
        while under_way.len() < PROOFS_MAX
            && let Some(dialled) = due.pop_front()
        {
            under_way.push(proved((&mesh, &metrics), &tls, &config, dialled));
        }
    }
}

/// Proves, and says what was to be proved.
async fn proved(
    mesh: (&Mesh, &Metrics),
    tls: &TlsContext,
    config: &ProxyConfig,
    dialled: Dialled,
) -> Dialled {
    prove(mesh, tls, config, dialled.clone()).await;
    dialled
}

/// One handshake, and no byte after it. Whatever the connection is that stands, this one is for
/// HTTP/2: for opaque bytes the peer would dial its application.
async fn prove(
    (mesh, metrics): (&Mesh, &Metrics),
    tls: &TlsContext,
    config: &ProxyConfig,
    dialled: Dialled,
) {
    let key = EndpointKey {
        service: dialled.service,
        port: dialled.port,
        instance: dialled.instance,
        address: dialled.address,
    };
    let snapshot = mesh.snapshot();
    // One that is gone from the mesh is not vouched for again: its connections come to their end.
    let Some((port, endpoint)) = snapshot.endpoint(&key) else {
        return;
    };
    let Some(material) = tls.current() else {
        return;
    };
    let limit = port.connect_timeout(config).min(PROOF_MAX);
    match pool::dial(port, endpoint, &material, ALPN_H2, limit, metrics).await {
        Ok(proved) => {
            // The peer closes when it has seen our certificate.
            let _closed = timeout(limit.min(CLOSE_MAX), close(proved)).await;
            tracing::debug!(address = %key.address, "proved identities again");
        }
        Err(error) => {
            tracing::warn!(%error, "identities not proved again for connections that stand");
        }
    }
}

async fn close(mut stream: pool::PeerStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut unread = [0; 256];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}
