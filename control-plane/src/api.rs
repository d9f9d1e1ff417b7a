//! What operators and `weft run` talk to: HTTP and JSON on Unix sockets.

pub mod types;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Path as UrlPath, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tower::limit::ConcurrencyLimitLayer;
use weft_proto::resource::{Kind, Resource};

use crate::document::{self, Document, INPUT_MAX_BYTES, Problem};
use crate::plane::{Plane, PlaneError};
use crate::store::{Change, ResourceKey, StoreError};
use crate::token::Binding;
pub use types::Status;
use types::{
    Action, Applied, ApplyAnswer, Changed, ErrorBody, ErrorText, InstanceView, JoinAnswer,
    JoinRequest, ProxyAnswer, RevokeRequest, RollbackRequest, TokenAnswer, TokenRequest, TokenView,
};

/// Requests at the same time.
const REQUESTS_MAX: usize = 64;
/// A join token that a local program gets is good for this long.
const JOIN_TTL: Duration = Duration::from_secs(60);
/// Changes shown unless more are asked for.
const HISTORY_DEFAULT: usize = 50;

#[derive(Debug, Clone)]
struct Api {
    plane: Arc<Plane>,
    status: Arc<Status>,
}

/// What is wrong with a request.
enum ApiError {
    Problems(Vec<Problem>),
    Plane(PlaneError),
    Invalid(String),
}

impl From<PlaneError> for ApiError {
    fn from(error: PlaneError) -> Self {
        Self::Plane(error)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::Plane(error.into())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, message, problems) = match self {
            Self::Problems(problems) => {
                let message = format!("{} problems; nothing was changed", problems.len());
                (StatusCode::UNPROCESSABLE_ENTITY, message, problems)
            }
            Self::Invalid(message) => (StatusCode::BAD_REQUEST, message, Vec::new()),
            Self::Plane(error) => {
                let status = match &error {
                    PlaneError::Store(StoreError::Engine { .. } | StoreError::Closed) => {
                        StatusCode::INSUFFICIENT_STORAGE
                    }
                    PlaneError::Store(StoreError::Busy { .. }) | PlaneError::RateLimited => {
                        StatusCode::SERVICE_UNAVAILABLE
                    }
                    PlaneError::Store(_)
                    | PlaneError::Invalid(_)
                    | PlaneError::Refused(_)
                    | PlaneError::Token(_)
                    | PlaneError::Ca(_) => StatusCode::BAD_REQUEST,
                };
                (status, error.to_string(), Vec::new())
            }
        };
        let body = ErrorBody {
            error: ErrorText { message, problems },
        };
        (status, Json(body)).into_response()
    }
}

type Answer<T> = Result<Json<T>, ApiError>;

/// Everything that an operator may do.
pub fn admin_router(plane: Arc<Plane>, status: Status) -> Router {
    let api = Api {
        plane,
        status: Arc::new(status),
    };
    Router::new()
        .route("/v1/status", get(status_of))
        .route("/v1/apply", post(apply))
        .route("/v1/resources", get(resources))
        .route("/v1/resources/{kind}/{namespace}/{name}", delete(remove))
        .route("/v1/history", get(history))
        .route("/v1/rollback", post(rollback))
        .route("/v1/proxies", get(proxies))
        .route("/v1/applied", get(applied))
        .route("/v1/services", get(services))
        .route("/v1/workloads", get(workloads))
        .route("/v1/tokens", get(tokens).post(create_token))
        .route("/v1/certs", get(certs))
        .route("/v1/certs/revoke", post(revoke))
        .route("/v1/targets", get(targets))
        .layer(DefaultBodyLimit::max(INPUT_MAX_BYTES + 1024))
        .layer(ConcurrencyLimitLayer::new(REQUESTS_MAX))
        .with_state(api)
}

/// The one thing that a program on this machine may do: join.
pub fn join_router(plane: Arc<Plane>, address: String) -> Router {
    let join = move |Json(request): Json<JoinRequest>| async move {
        let binding = Binding {
            service_account: request.workload.name().to_owned(),
            workload: request.workload,
            services: request.services,
            ports: request.ports,
        };
        let (token, _record) = plane.create_token(binding, JOIN_TTL).await?;
        let trust_domain = plane.authority().trust_domain().clone();
        Ok::<_, ApiError>(Json(JoinAnswer {
            token,
            address,
            trust_domain,
        }))
    };
    Router::new()
        .route("/v1/join", post(join))
        .layer(DefaultBodyLimit::max(64 * 1024))
        .layer(ConcurrencyLimitLayer::new(REQUESTS_MAX))
}

async fn status_of(State(api): State<Api>) -> Json<Status> {
    Json((*api.status).clone())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ApplyQuery {
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    author: String,
    #[serde(default)]
    source: String,
}

async fn apply(
    State(api): State<Api>,
    Query(query): Query<ApplyQuery>,
    body: String,
) -> Answer<ApplyAnswer> {
    let source = if query.source.is_empty() {
        "-"
    } else {
        &query.source
    };
    let documents = document::read(source, &body).map_err(ApiError::Problems)?;
    let stored = api.plane.store().list()?;
    let changes = documents.iter().map(|document| {
        let key = document.key();
        let before = stored.iter().find(|resource| resource.key == key);
        let action = match before {
            None => Action::Created,
            Some(before) if before.document == document.to_value() => Action::Unchanged,
            Some(_) => Action::Changed,
        };
        Changed { key, action }
    });
    let resources: Vec<Changed> = changes.collect();
    let revision = if query.dry_run {
        *api.plane.store().watch().borrow()
    } else {
        let put = |document: &Document| Change::Put(document.key(), document.to_value());
        let changes = documents.iter().map(put).collect();
        api.plane.store().commit(&query.author, changes).await?
    };
    Ok(Json(ApplyAnswer {
        revision,
        resources,
    }))
}

#[derive(Deserialize, Default)]
struct Selection {
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    limit: Option<usize>,
    revision: Option<u64>,
}

impl Selection {
    fn fits(&self, key: &ResourceKey) -> bool {
        let is = |wanted: &Option<String>, found: &str| {
            wanted
                .as_deref()
                .is_none_or(|wanted| wanted.eq_ignore_ascii_case(found))
        };
        is(&self.kind, &key.kind)
            && is(&self.namespace, &key.namespace)
            && is(&self.name, &key.name)
    }
}

async fn resources(
    State(api): State<Api>,
    Query(selection): Query<Selection>,
) -> Answer<Vec<crate::store::StoredResource>> {
    let mut found = api.plane.store().list()?;
    found.retain(|resource| selection.fits(&resource.key));
    Ok(Json(found))
}

async fn remove(
    State(api): State<Api>,
    UrlPath((kind, namespace, name)): UrlPath<(String, String, String)>,
    Query(query): Query<ApplyQuery>,
) -> Answer<ApplyAnswer> {
    let selection = Selection {
        kind: Some(kind.clone()),
        namespace: Some(namespace.clone()),
        name: Some(name.clone()),
        ..Selection::default()
    };
    let stored = api.plane.store().list()?;
    let found = stored
        .into_iter()
        .find(|resource| selection.fits(&resource.key));
    let Some(found) = found else {
        let text = format!("there is no {kind} {namespace}/{name}; see `weft get {kind}`");
        return Err(ApiError::Invalid(text));
    };
    let delete = vec![Change::Delete(found.key.clone())];
    let revision = api.plane.store().commit(&query.author, delete).await?;
    Ok(Json(ApplyAnswer {
        revision,
        resources: vec![Changed {
            key: found.key,
            action: Action::Deleted,
        }],
    }))
}

async fn history(
    State(api): State<Api>,
    Query(selection): Query<Selection>,
) -> Answer<Vec<crate::store::HistoryEntry>> {
    let mut found = api.plane.store().history(None, usize::MAX)?;
    found.retain(|entry| selection.fits(&entry.key));
    found.truncate(selection.limit.unwrap_or(HISTORY_DEFAULT));
    Ok(Json(found))
}

async fn rollback(
    State(api): State<Api>,
    Json(request): Json<RollbackRequest>,
) -> Answer<ApplyAnswer> {
    let changes = api.plane.store().changes_back_to(request.revision)?;
    let resources = changes.iter().map(|change| match change {
        Change::Put(key, _) => Changed {
            key: key.clone(),
            action: Action::Changed,
        },
        Change::Delete(key) => Changed {
            key: key.clone(),
            action: Action::Deleted,
        },
    });
    let resources = resources.collect();
    let revision = api.plane.store().commit(&request.author, changes).await?;
    Ok(Json(ApplyAnswer {
        revision,
        resources,
    }))
}

async fn proxies(State(api): State<Api>) -> Json<Vec<ProxyAnswer>> {
    let entries = api.plane.entries();
    let views = api.plane.proxies().into_iter().map(|view| {
        let entry = entries
            .iter()
            .find(|entry| entry.instance == view.peer.instance);
        ProxyAnswer {
            workload: entry.map(|entry| entry.registration.workload.clone()),
            instance: view.peer.instance.to_string(),
            identity: view.peer.identity,
            version: view.version,
            connected_since: view.since,
            holds: view.holds,
            applied_revision: view.applied_revision,
            rejected: view.rejected,
        }
    });
    Json(views.collect())
}

async fn applied(State(api): State<Api>, Query(selection): Query<Selection>) -> Json<Applied> {
    let revision = selection.revision.unwrap_or_default();
    let mut answer = Applied::default();
    for view in api.plane.proxies() {
        let instance = view.peer.instance.to_string();
        if view.applied_revision >= revision {
            answer.applied.push(instance.clone());
        } else {
            answer.waiting.push(instance.clone());
        }
        for (resource, reason) in view.rejected {
            answer
                .rejected
                .push(format!("{instance}: {resource}: {reason}"));
        }
    }
    Json(answer)
}

async fn services(State(api): State<Api>) -> Json<serde_json::Value> {
    let compiled = api.plane.compiled();
    let mut rows: Vec<_> = compiled
        .of_kind(Kind::Service)
        .filter_map(|encoded| match &encoded.resource {
            Resource::Service(service) => Some(serde_json::json!({
                "name": service.name,
                "hostname": service.name.hostname(),
                "addresses": service.addresses,
                "ports": service.ports,
                "endpoints": service.endpoints,
            })),
            Resource::Workload(_) | Resource::TrustBundle(_) | Resource::MeshConfig(_) => None,
        })
        .collect();
    rows.sort_by_key(|row| row["name"].to_string());
    Json(rows.into())
}

async fn workloads(State(api): State<Api>) -> Json<serde_json::Value> {
    let rows = api.plane.entries().into_iter().map(|entry| {
        serde_json::json!({
            "workload": entry.registration.workload,
            "instance": &*entry.instance,
            "identity": entry.identity,
            "connected": entry.stream.is_some(),
            "services": entry.registration.services,
            "ports": entry.registration.ports,
            "zone": entry.registration.zone,
            "labels": entry.registration.labels,
            "metricsTarget": entry.registration.metrics_target,
        })
    });
    Json(rows.collect())
}

async fn create_token(
    State(api): State<Api>,
    Json(request): Json<TokenRequest>,
) -> Answer<TokenAnswer> {
    let account = request.service_account;
    let binding = Binding {
        service_account: account.unwrap_or_else(|| request.workload.name().to_owned()),
        workload: request.workload,
        services: request.services,
        ports: request.ports,
    };
    let ttl = Duration::from_secs(request.ttl_seconds);
    let (token, record) = api.plane.create_token(binding, ttl).await?;
    Ok(Json(TokenAnswer {
        token,
        id: record.id,
        expires: record.expires,
    }))
}

async fn tokens(State(api): State<Api>) -> Json<Vec<TokenView>> {
    let views = api.plane.tokens().into_iter().map(|record| TokenView {
        id: record.id,
        workload: record.binding.workload,
        services: record.binding.services,
        ports: record.binding.ports,
        expires: record.expires,
        redeemed_by: record.redeemed.map(|redeemed| redeemed.instance),
    });
    Json(views.collect())
}

async fn certs(State(api): State<Api>) -> Json<Vec<InstanceView>> {
    let views = api
        .plane
        .instances()
        .into_iter()
        .map(|record| InstanceView {
            instance: record.instance,
            workload: record.binding.workload,
            attested: record.last_used,
            not_after: record.last_not_after,
            revoked: record.revoked,
        });
    Json(views.collect())
}

async fn revoke(State(api): State<Api>, Json(request): Json<RevokeRequest>) -> Answer<()> {
    api.plane.revoke(&request.instance).await?;
    Ok(Json(()))
}

/// Prometheus HTTP service discovery.
async fn targets(State(api): State<Api>) -> Json<serde_json::Value> {
    let rows = api.plane.entries().into_iter().filter_map(|entry| {
        let target = entry.registration.metrics_target;
        let rest = target.strip_prefix("http://")?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, "metrics"));
        Some(serde_json::json!({
            "targets": [host],
            "labels": {
                "__metrics_path__": format!("/{path}"),
                "workload": entry.registration.workload,
            },
        }))
    });
    Json(rows.collect())
}

/// Who may come in through a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Root, and the user that the control plane runs as.
    OwnerOnly,
    /// Whoever can open the socket.
    AnyPeer,
}

/// Opens a Unix socket (0600), in place of a stale one.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves a router until `stop`.
pub async fn serve_unix(router: Router, listener: UnixListener, who: Who, stop: CancellationToken) {
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _address)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = stop.cancelled() => return,
        };
        if who == Who::OwnerOnly && !is_owner(&stream) {
            tracing::warn!("a foreign user was refused on the admin socket");
            continue;
        }
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            let serving = builder.serve_connection(TokioIo::new(stream), service);
            if let Err(error) = serving.await {
                tracing::debug!(%error, "API connection");
            }
        });
    }
}

fn is_owner(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    let peer = stream.peer_cred().map(|credentials| credentials.uid());
    peer.is_ok_and(|uid| uid == 0 || uid == own)
}
