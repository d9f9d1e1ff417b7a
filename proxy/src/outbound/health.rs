//! Active health checks of the endpoints of ports whose policy wants them.
//!
//! They run on the first worker and go over its pool: the way that requests go, over connections
//! that are there already, and without a thread for sidecars that check nothing. On the control
//! thread there is no pool, and a large update of the configuration would look like slow endpoints.
//! (A worker that is late because it is busy sees endpoints as late; so do the requests on it.)
//! Each endpoint has a small task, which ends with its policy, its endpoint or its subscription;
//! nothing here counts as a use of a service.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::uri::Uri;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Version};
use http_body_util::{BodyExt, Limited};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{sleep, timeout};
use weft_core::headers::{WEFT_APP_PROTOCOL, WEFT_CHECK, WEFT_REASON};
use weft_core::health::{Check, CheckFailure, HealthCheck, HttpCheck, grpc};
use weft_core::model::AppProtocol;
use weft_core::reason::Reason;
use weft_core::timeout as deadline;

use crate::http::{BodyError, CHECK_CONNECTION, CHECK_REQUEST, Incoming, ProxyBody};
use crate::mesh::{Endpoint, EndpointKey, PortView, Snapshot};
use crate::pool::{self, DialError};
use crate::worker::Worker;

/// Checks under way at the same time; further ones wait for their turn.
const CONCURRENT_MAX: usize = 64;
/// Endpoints that are checked at most.
const ENDPOINTS_MAX: usize = 10_000;
/// Of a longer answer nothing more is read.
const ANSWER_MAX_BYTES: usize = 64 * 1024;

const AGENT: HeaderValue = HeaderValue::from_static("weft-health-check");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");
const HTTP1: HeaderValue = HeaderValue::from_static("http/1.1");

/// Checks what the configuration of the moment wants checked, until it is dropped.
pub(crate) async fn run(worker: Rc<Worker>) {
    let turns = Rc::new(Semaphore::new(CONCURRENT_MAX));
    let mut changes = worker.shared.mesh.changes();
    let mut checked = HashMap::new();
    loop {
        changes.mark_unchanged();
        follow(&worker, &turns, &mut checked);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// An endpoint that is checked, as it was wanted when that began.
struct Checked {
    config: Arc<HealthCheck>,
    task: AbortHandle,
}

impl Drop for Checked {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Begins and ends checking as the snapshot of now wants it. What was found out is in the
/// endpoint's live state: a check that begins anew goes on from there.
fn follow(worker: &Rc<Worker>, turns: &Rc<Semaphore>, checked: &mut HashMap<EndpointKey, Checked>) {
    let snapshot = worker.shared.mesh.snapshot();
    let wanted = wanted(&snapshot);
    checked.retain(|key, now| {
        let config = wanted.get(key);
        config.is_some_and(|config| **config == now.config)
    });
    for (key, config) in wanted {
        if checked.contains_key(key) {
            continue;
        }
        if checked.len() >= ENDPOINTS_MAX {
            tracing::warn!(
                limit = ENDPOINTS_MAX,
                "more endpoints than are checked; the others count as well"
            );
            break;
        }
        let checking = check(Rc::clone(worker), Rc::clone(turns), key.clone());
        let config = Arc::clone(config);
        let task = spawn_local(checking).abort_handle();
        checked.insert(key.clone(), Checked { config, task });
    }
}

fn wanted(snapshot: &Snapshot) -> HashMap<&EndpointKey, &Arc<HealthCheck>> {
    let ports = snapshot.ports();
    let ports = ports.filter_map(|port| Some((port, port.policy.health_check.as_ref()?)));
    let endpoints = ports.flat_map(|(port, config)| {
        let endpoints = port.endpoints.iter();
        endpoints.map(move |endpoint| (&endpoint.key, config))
    });
    endpoints.collect()
}

/// Checks one endpoint as long as it is there.
async fn check(worker: Rc<Worker>, turns: Rc<Semaphore>, key: EndpointKey) {
    let mesh = &worker.shared.mesh;
    loop {
        let due = {
            let snapshot = mesh.snapshot();
            let endpoint = snapshot.endpoint(&key);
            endpoint.and_then(|(_port, endpoint)| endpoint.live.check_due())
        };
        let Some(due) = due else { return };
        sleep(due.saturating_since(crate::clock::now())).await;
        let Ok(_turn) = turns.acquire().await else {
            return;
        };
        // As it is now: it may have waited for long.
        let snapshot = mesh.snapshot();
        let Some((port, endpoint)) = snapshot.endpoint(&key) else {
            return;
        };
        let (port, endpoint) = (Arc::clone(port), Arc::clone(endpoint));
        drop(snapshot);
        let Some(config) = port.policy.health_check.as_deref() else {
            return;
        };
        let asking = ask(&worker, &port, &endpoint, config);
        match timeout(config.timeout, asking).await {
            Ok(Ok(())) => note(&worker, &endpoint, Ok(())),
            Ok(Err(NotWell::Endpoint(failure))) => note(&worker, &endpoint, Err(failure)),
            Err(_elapsed) => note(&worker, &endpoint, Err(CheckFailure::Timeout)),
            Ok(Err(NotWell::Silence)) => endpoint.live.on_check_silence(crate::clock::now()),
        }
    }
}

fn note(worker: &Worker, endpoint: &Endpoint, result: Result<(), CheckFailure>) {
    let totals = worker.shared.metrics.totals();
    let address = endpoint.key.address;
    match result {
        Ok(()) => totals.health_checks_passed.inc(),
        Err(failure) => {
            totals.health_checks_failed.inc();
            tracing::debug!(%address, %failure, "health check failed");
        }
    }
    let Some(transition) = endpoint.live.on_check(result, crate::clock::now()) else {
        return;
    };
    let (service, state) = (&endpoint.key.service, transition.to.as_str());
    match result {
        Ok(()) => tracing::info!(%service, %address, breaker = state, "health checks pass again"),
        Err(failure) => {
            tracing::warn!(%service, %address, breaker = state, %failure, "health checks fail");
        }
    }
}

/// Why a check did not pass.
enum NotWell {
    /// Because of the endpoint.
    Endpoint(CheckFailure),
    /// For reasons that say nothing of it.
    Silence,
}

impl From<Reason> for NotWell {
    fn from(reason: Reason) -> Self {
        CheckFailure::of_reason(reason).map_or(Self::Silence, Self::Endpoint)
    }
}

impl From<CheckFailure> for NotWell {
    fn from(failure: CheckFailure) -> Self {
        Self::Endpoint(failure)
    }
}

impl From<DialError> for NotWell {
    fn from(error: DialError) -> Self {
        error.reason().into()
    }
}

async fn ask(
    worker: &Worker,
    port: &PortView,
    endpoint: &Endpoint,
    config: &HealthCheck,
) -> Result<(), NotWell> {
    let outside = port.outside_of(endpoint);
    if let (Check::Tcp, Some(outside)) = (&config.check, outside) {
        let shared = &worker.shared;
        let (limit, address) = (port.connect_timeout(&shared.config), endpoint.key.address);
        let metrics = &shared.metrics;
        pool::dial_outside(outside, address, |tls| &tls.opaque, limit, metrics).await?;
        return Ok(());
    }
    let request = Box::new(request(port, config, outside.is_none())?);
    // A check is no reason to wait for one of our own connections to end.
    if worker.pool.out_of_reach(port).contains(&endpoint.key) {
        return Err(NotWell::Silence);
    }
    let slot = worker.pool.slot(port, endpoint).await?;
    let answered = slot.sender().send_request(request).await;
    let response = answered.map_err(|_broken| CheckFailure::Reset)?;
    judge(response, config).await
}

/// The request of a check. One to a sidecar is marked, so that it does not look like traffic there.
fn request(
    port: &PortView,
    config: &HealthCheck,
    to_sidecar: bool,
) -> Result<Request<ProxyBody>, CheckFailure> {
    let (method, path, host, body) = match &config.check {
        Check::Http(http) => (
            Method::GET,
            &*http.path,
            http.host.as_deref(),
            ProxyBody::Empty,
        ),
        Check::Grpc { service } => {
            let body = ProxyBody::text(Bytes::from(grpc::request(service)));
            (Method::POST, grpc::CHECK_PATH, None, body)
        }
        // Not for the application: its sidecar answers.
        Check::Tcp => (Method::GET, "/", None, ProxyBody::Empty),
    };
    let authority = match (host, port.port) {
        (Some(host), _) => host.to_owned(),
        (None, 80) => port.hostname.to_string(),
        (None, number) => format!("{}:{number}", port.hostname),
    };
    let uri = Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query(path)
        .build();
    // Policies are validated: only a hostname that is none could be in the way.
    let uri = uri.map_err(|_invalid| CheckFailure::Malformed)?;
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    headers.insert(USER_AGENT, AGENT);
    match &config.check {
        Check::Http(http) => headers.extend(http.headers.iter().cloned()),
        Check::Grpc { .. } => {
            headers.insert(CONTENT_TYPE, GRPC);
            headers.insert(TE, TRAILERS);
        }
        Check::Tcp => {}
    }
    if to_sidecar {
        mark(headers, port, config);
    }
    Ok(request)
}

fn mark(headers: &mut HeaderMap, port: &PortView, config: &HealthCheck) {
    // The server's sidecar gives up when nobody waits any more.
    deadline::write(config.timeout, headers);
    let mark = match &config.check {
        Check::Http(_) => {
            let speaks_http2 = matches!(port.protocol, AppProtocol::Http2 | AppProtocol::Grpc);
            if !speaks_http2 {
                headers.insert(WEFT_APP_PROTOCOL, HTTP1);
            }
            CHECK_REQUEST
        }
        Check::Grpc { .. } => CHECK_REQUEST,
        Check::Tcp => CHECK_CONNECTION,
    };
    headers.insert(WEFT_CHECK, HeaderValue::from_static(mark));
}

async fn judge(response: Response<Incoming>, config: &HealthCheck) -> Result<(), NotWell> {
    let (parts, body) = response.into_parts();
    let reason = parts.headers.get(WEFT_REASON);
    if let Some(reason) = reason.and_then(|word| word.to_str().ok()?.parse::<Reason>().ok()) {
        return Err(reason.into());
    }
    let status = parts.status.as_u16();
    match &config.check {
        Check::Http(http) => judge_http(http, status, body).await?,
        Check::Grpc { .. } => judge_grpc(status, &parts.headers, body).await?,
        Check::Tcp if parts.status.is_success() => {}
        Check::Tcp => return Err(CheckFailure::Status(status).into()),
    }
    Ok(())
}

async fn judge_http(http: &HttpCheck, status: u16, body: Incoming) -> Result<(), CheckFailure> {
    if !http.expects(status) {
        return Err(CheckFailure::Status(status));
    }
    // To its end, so that the connection to the application can be used again.
    let mut body = Limited::new(body, ANSWER_MAX_BYTES);
    while let Some(frame) = body.frame().await {
        if let Err(error) = frame {
            return match error.downcast_ref::<BodyError>() {
                Some(_) => Err(CheckFailure::Reset),
                // Long, and therefore not read to its end.
                None => Ok(()),
            };
        }
    }
    Ok(())
}

async fn judge_grpc(status: u16, headers: &HeaderMap, body: Incoming) -> Result<(), CheckFailure> {
    if status != 200 {
        return Err(CheckFailure::Status(status));
    }
    let collected = Limited::new(body, grpc::MAX_ANSWER).collect().await;
    let collected = collected.map_err(|error| match error.downcast_ref::<BodyError>() {
        Some(_) => CheckFailure::Reset,
        None => CheckFailure::Malformed,
    })?;
    // An answer without a message has its status at its head.
    let code = collected.trailers().unwrap_or(headers).get("grpc-status");
    let code = code.and_then(|code| code.to_str().ok()?.parse::<u32>().ok());
    match code {
        Some(0) => {}
        Some(code) => return Err(CheckFailure::GrpcStatus(code)),
        None => return Err(CheckFailure::Malformed),
    }
    match grpc::answer(&collected.to_bytes()) {
        Some(grpc::Serving::Serving) => Ok(()),
        Some(other) => Err(CheckFailure::Serving(other)),
        None => Err(CheckFailure::Malformed),
    }
}
