//! Operators from elsewhere: the same API over TLS, for those with a certificate that was made for
//! it and not revoked.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use pem::{EncodeConfig, LineEnding, Pem};
use tokio_util::sync::CancellationToken;
use weft_core::name::TrustDomain;

use super::Admin;
use super::backend::OperatorCertificates;
use super::refusal::{Answer, Refusal, read};
use super::serve::serve_connection;
use super::types::{NewOperator, OperatorRequest};
use crate::identity::operator::{OperatorRecord, id_of};
use crate::peers::Peers;
use crate::transport::Connection;

/// How long a connection may stand that gets no answer but why it is refused.
const REFUSING_MAX: Duration = Duration::from_secs(5);

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

/// What serving operators needs.
#[derive(Debug, Clone)]
pub struct Operators {
    /// The API.
    pub router: Router,
    /// Who is an operator.
    pub certificates: Arc<dyn OperatorCertificates>,
    /// The trust domain of those certificates.
    pub trust_domain: TrustDomain,
    /// Who is connected.
    pub peers: Arc<Peers>,
}

impl Operators {
    /// Serves a connection that has completed its handshake until it ends, `stop`, the end of the
    /// operator's certificate, or its revocation.
    pub async fn serve(self, mut connection: Connection, stop: CancellationToken) {
        let address = connection.address();
        let id = connection
            .certificate()
            .and_then(|shown| id_of(shown, &self.trust_domain));
        // Subscribed before it is looked up: a revocation in between is not missed.
        let mut revoked = self.certificates.watch_revoked();
        let Some(operator) = id.as_deref().and_then(|id| self.certificates.find(id)) else {
            tracing::warn!(%address, ?id, "not the certificate of an operator, or revoked: refused");
            return refuse(connection, NOT_AN_OPERATOR.to_owned(), stop).await;
        };
        let name: Arc<str> = operator.id.as_str().into();
        let peer = match self.peers.begin_connection(&name, operator.not_after) {
            Ok(peer) => Arc::new(peer),
            Err(refusal) => return refuse(connection, refusal.to_string(), stop).await,
        };
        connection.belongs_to(Arc::clone(&peer));
        let id = operator.id.clone();
        let router = self.router.layer(Extension(Operator(Arc::new(operator))));
        let ends = stop.child_token();
        let mut serving = std::pin::pin!(serve_connection(connection, router, ends.clone()));
        loop {
            tokio::select! {
                () = serving.as_mut() => return,
                () = peer.drain().cancelled(), if !ends.is_cancelled() => ends.cancel(),
                () = peer.revoked().cancelled() => return,
                Ok(()) = revoked.changed() => {
                    if self.certificates.find(&id).is_none() {
                        tracing::info!(%address, id, "operator revoked: connection cut");
                        return;
                    }
                }
            }
        }
    }
}

const NOT_AN_OPERATOR: &str = "this certificate is not an operator's, or it was revoked; make one \
                               with `weft operator create` beside the control plane";

/// Says why, to those whom the authority knows but who are no operators, or too many.
async fn refuse(connection: Connection, reason: String, stop: CancellationToken) {
    let place = connection.anonymous_cut();
    let router = Router::new().fallback(async move || Refusal::forbidden(reason));
    tokio::select! {
        () = serve_connection(connection, router, stop) => {}
        () = place.cancelled() => {}
        () = tokio::time::sleep(REFUSING_MAX) => {}
    }
}

pub(super) async fn create_operator(
    State(admin): State<Admin>,
    body: Bytes,
) -> Answer<NewOperator> {
    let request: OperatorRequest = read(&body)?;
    let csr = STANDARD.decode(&request.csr);
    let csr = csr.map_err(|error| Refusal::invalid(format!("csr: not base64: {error}")))?;
    let ttl = Duration::from_secs(request.ttl_seconds);
    let certificates = &admin.backend.operators;
    let signed = certificates.sign(&request.name, &csr, ttl).await?;
    let operator = signed.record;
    tracing::info!(name = operator.name, id = operator.id, "operator");
    let chain = signed.chain.into_iter();
    let certificates: Vec<Pem> = chain.map(|der| Pem::new("CERTIFICATE", der)).collect();
    let newlines = EncodeConfig::new().set_line_ending(LineEnding::LF);
    Ok(Json(NewOperator {
        id: operator.id,
        certificates: pem::encode_many_config(&certificates, newlines),
        not_after: operator.not_after,
    }))
}
