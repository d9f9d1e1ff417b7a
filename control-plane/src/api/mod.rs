//! The admin API: JSON over HTTP/1.1, on Unix sockets and, for operators with certificates, over
//! TLS. Routes ask the [`Backend`] and decide nothing.

mod applied;
mod asking;
mod backend;
mod backup;
mod history;
mod input;
mod operators;
mod preview;
mod refusal;
mod resource_status;
mod resources;
mod rollback;
mod serve;
mod unix;
mod views;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::error_handling::HandleErrorLayer;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use bytes::Bytes;
use tokio::sync::Semaphore;
use tower::ServiceBuilder;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
use tower::timeout::TimeoutLayer;
use weft_api::types;

use crate::identity::IdentityError;
use crate::identity::token::Binding;
use crate::model::INPUT_MAX_BYTES;

use operators::create_operator;
use refusal::{Answer, Refusal, read};
use types::{JoinAnswer, JoinRequest, NewToken, RevokeRequest, TokenRequest};

pub use backend::{
    Backend, Credentials, OperatorCertificates, Proxies, SignedOperator, Snapshots, Workloads,
};
pub use input::read_sources;
pub use operators::Operators;
pub(crate) use serve::serve_tcp;
pub use types::Status;
use unix::User;
pub use unix::{Socket, Who, bind_unix, serve_unix};
pub(crate) use views::scrape_targets;

/// A body: the largest input, JSON escapes included.
const BODY_MAX_BYTES: usize = 2 * INPUT_MAX_BYTES + 64 * 1024;
/// The body of a request on the join socket.
const JOIN_BODY_MAX_BYTES: usize = 64 * 1024;
/// Requests at the same time; more are refused at once.
const REQUESTS_MAX: usize = 64;
/// A request that takes longer is given up.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// A token from the join socket is redeemed at once.
const JOIN_TTL: Duration = Duration::from_secs(60);

/// What routes share.
#[derive(Debug, Clone)]
struct Admin {
    backend: Backend,
    status: Arc<Status>,
    /// Seconds since the Unix epoch.
    started: i64,
    /// Places of requests that wait for sidecars.
    waiting: Arc<Semaphore>,
}

/// Everything that an operator may ask; for the owner's socket, and for verified operators.
pub fn admin_router(backend: Backend, status: Status) -> Router {
    let routes = Router::new()
        .route("/v1/apply", post(resources::apply))
        .route("/v1/validate", post(resources::validate))
        .route("/v1/plan", post(resources::plan))
        .route("/v1/explain", post(asking::explain_request))
        .route("/v1/effective", get(asking::effective))
        .route("/v1/resources", get(resources::list))
        .route(
            "/v1/resources/{kind}/{namespace}/{name}",
            delete(resources::remove),
        )
        .route("/v1/history", get(history::history))
        .route("/v1/rollback", post(rollback::rollback))
        .route("/v1/backup", get(backup::backup))
        .route("/v1/services", get(views::services))
        .route("/v1/workloads", get(views::workloads))
        .route("/v1/proxies", get(views::proxies))
        .route("/v1/breakers", get(views::breakers))
        .route("/v1/applied", get(applied::applied))
        .route("/v1/tokens", post(create_token).get(views::tokens))
        .route("/v1/certs", get(views::certs))
        .route("/v1/certs/revoke", post(revoke))
        .route("/v1/operators", post(create_operator).get(views::operators))
        .route("/v1/status", get(views::status));
    let status = Arc::new(status);
    guarded(routes).with_state(Admin {
        backend,
        status,
        started: crate::unix_seconds(),
        waiting: Arc::new(Semaphore::new(applied::WAITING_MAX)),
    })
}

/// The one thing that workloads of this machine may ask: to join. `address` is where sidecars reach
/// the control plane, HOST:PORT.
pub fn join_router(credentials: Arc<dyn Credentials>, address: String) -> Router {
    let routes = Router::new().route("/v1/join", post(join));
    guarded(routes.layer(DefaultBodyLimit::max(JOIN_BODY_MAX_BYTES)))
        .with_state((credentials, address))
}

fn guarded<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    routes
        .fallback(async || Refusal::unknown("no such path in this API"))
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .layer(
            ServiceBuilder::new()
                .layer(HandleErrorLayer::new(async |error| {
                    Refusal::from_middleware(&error)
                }))
                .layer(LoadShedLayer::new())
                .layer(GlobalConcurrencyLimitLayer::new(REQUESTS_MAX))
                .layer(TimeoutLayer::new(REQUEST_TIMEOUT)),
        )
}

async fn create_token(State(admin): State<Admin>, body: Bytes) -> Answer<NewToken> {
    let request: TokenRequest = read(&body)?;
    let account = request.service_account;
    let binding = Binding {
        service_account: account.unwrap_or_else(|| request.workload.name().to_owned()),
        workload: request.workload,
        services: request.services,
        ports: request.ports,
        addresses: request.addresses,
    };
    let ttl = Duration::from_secs(request.ttl_seconds);
    let (token, record) = admin.backend.credentials.create_token(binding, ttl).await?;
    Ok(Json(NewToken {
        token,
        id: record.id,
        expires: record.expires,
    }))
}

async fn revoke(State(admin): State<Admin>, body: Bytes) -> Answer<RevokeRequest> {
    let request: RevokeRequest = read(&body)?;
    let id = &request.instance;
    match admin.backend.workloads.revoke(id).await {
        Ok(()) => Ok(Json(request)),
        Err(IdentityError::Store(error)) => {
            let text = format!(
                "{id} is revoked, but that may be forgotten when the control plane starts again; \
                 revoke it once more when the store takes writes"
            );
            Err(Refusal::from(error).introduced(&text))
        }
        Err(error) => Err(error.into()),
    }
}

async fn join(
    State((credentials, address)): State<(Arc<dyn Credentials>, String)>,
    Extension(User(user)): Extension<User>,
    body: Bytes,
) -> Answer<JoinAnswer> {
    let request: JoinRequest = read(&body)?;
    let binding = Binding {
        service_account: request.workload.name().to_owned(),
        workload: request.workload,
        services: request.services,
        ports: request.ports,
        addresses: Vec::new(),
    };
    let (token, _) = credentials
        .create_join_token(user, binding, JOIN_TTL)
        .await?;
    Ok(Json(JoinAnswer {
        token,
        address,
        trust_domain: credentials.trust_domain().clone(),
    }))
}
