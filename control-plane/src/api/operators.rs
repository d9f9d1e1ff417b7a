//! Operators from elsewhere: the same API over TLS, for those with a certificate that was made for
//! it and not revoked.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use pem::{EncodeConfig, LineEnding, Pem};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Admin;
use super::refusal::{Answer, Refusal, read};
use super::serve::{CONNECTIONS_MAX, DRAIN, serve_connection};
use super::types::{NewOperator, OperatorRequest};
use crate::identity::Identities;
use crate::identity::operator::{OperatorRecord, id_of};
use crate::tls::Connection;

/// Who asks, where it is not the owner of the data directory.
#[derive(Debug, Clone)]
pub(super) struct Operator(Arc<OperatorRecord>);

/// Whom the history names: an operator is who the certificate says, others who they say.
pub(super) fn author(operator: Option<Extension<Operator>>, said: &str) -> String {
    match operator {
        Some(Extension(Operator(record))) => format!("operator {}", record.name),
        None if said.is_empty() => "unknown".to_owned(),
        None => said.to_owned(),
    }
}

/// Serves connections that have completed their handshake until `stop`.
pub async fn serve_operators(
    router: Router,
    mut incoming: mpsc::Receiver<io::Result<Connection>>,
    identities: Arc<Identities>,
    stop: CancellationToken,
) {
    let tasks = TaskTracker::new();
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let permit = Arc::clone(&permits).acquire_owned().await;
            (incoming.recv().await, permit)
        };
        let (connection, permit) = tokio::select! {
            () = stop.cancelled() => break,
            (accepted, permit) = accepted => match accepted {
                Some(Ok(connection)) => (connection, permit),
                Some(Err(_)) => continue,
                None => break,
            },
        };
        let (router, stop, identities) = (router.clone(), stop.clone(), Arc::clone(&identities));
        tasks.spawn(async move {
            serve_operator(connection, router, &identities, stop).await;
            drop(permit);
        });
    }
    tasks.close();
    let _late_ones_are_cut = tokio::time::timeout(DRAIN, tasks.wait()).await;
}

async fn serve_operator(
    connection: Connection,
    router: Router,
    identities: &Identities,
    stop: CancellationToken,
) {
    let address = connection.address();
    let trust_domain = identities.signer().trust_domain();
    let id = connection
        .certificate()
        .and_then(|shown| id_of(shown, trust_domain));
    // Subscribed before it is looked up: a revocation in between is not missed.
    let mut revoked = identities.watch_revoked();
    let Some(operator) = id.as_deref().and_then(|id| identities.operator(id)) else {
        tracing::warn!(%address, ?id, "not the certificate of an operator, or revoked: refused");
        return serve_connection(connection, refusing(), stop).await;
    };
    let router = router.layer(Extension(Operator(Arc::new(operator.clone()))));
    let mut serving = std::pin::pin!(serve_connection(connection, router, stop));
    loop {
        tokio::select! {
            () = serving.as_mut() => return,
            Ok(()) = revoked.changed() => {
                if identities.operator(&operator.id).is_none() {
                    tracing::info!(%address, operator = operator.name, "revoked: connection cut");
                    return;
                }
            }
        }
    }
}

/// Says why, to those whom the authority knows but who are no operators.
fn refusing() -> Router {
    Router::new().fallback(async || {
        Refusal::forbidden(
            "this certificate is not an operator's, or it was revoked; make one with \
             `weft operator create` beside the control plane",
        )
    })
}

pub(super) async fn create_operator(
    State(admin): State<Admin>,
    body: Bytes,
) -> Answer<NewOperator> {
    let request: OperatorRequest = read(&body)?;
    let csr = STANDARD.decode(&request.csr);
    let csr = csr.map_err(|error| Refusal::invalid(format!("csr: not base64: {error}")))?;
    let ttl = Duration::from_secs(request.ttl_seconds);
    let (operator, leaf) = admin
        .plane
        .identities()
        .sign_operator(&request.name, &csr, ttl)
        .await?;
    tracing::info!(name = operator.name, id = operator.id, "operator");
    let root = admin.plane.identities().signer().root();
    let chain = leaf.chain.into_iter().chain([root.to_vec()]);
    let certificates: Vec<Pem> = chain.map(|der| Pem::new("CERTIFICATE", der)).collect();
    let newlines = EncodeConfig::new().set_line_ending(LineEnding::LF);
    Ok(Json(NewOperator {
        id: operator.id,
        certificates: pem::encode_many_config(&certificates, newlines),
        not_after: operator.not_after,
    }))
}
