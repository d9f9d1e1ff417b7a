//! What routes make of a request: core decides, here it is done.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};
use weft_core::headers::WEFT_REASON;
use weft_core::name::ServiceName;
use weft_core::reason::Reason;
use weft_core::retry::Failure;
use weft_core::route::{Abort, Decision, Mirror, Outcome, Redirect, RequestHead};

use super::exchange::Answer;
use super::failed::Failed;
use super::{Avoid, Wish, pick};
use crate::http::{Kept, ProxyBody, describe, grpc_answer};
use crate::mesh::PortView;
use crate::worker::Worker;

/// A copy that takes longer is given up.
const MIRROR_MAX: std::time::Duration = std::time::Duration::from_secs(30);
/// Copies under way on a worker: each may hold 256 KiB of a body. Beyond, none is made, so that
/// somebody who does not answer copies costs nothing but the copies.
const MIRRORS_MAX: usize = 256;

/// Where a request goes from here.
pub(super) enum Next {
    /// To a port's endpoints.
    Forward(Arc<PortView>),
    /// Back, with this answer.
    Answer(Box<Answer>),
}

/// Decides about a request, whose URI is absolute: `None` where the port has no routes.
pub(super) fn decide<'a>(
    port: &'a PortView,
    parts: &Parts,
) -> Result<Option<Decision<'a>>, Failed> {
    let Some(table) = &port.routes else {
        return Ok(None);
    };
    let head = RequestHead::new(&parts.method, &parts.uri, &parts.headers);
    let decision = table.decide(&head, || fastrand::u64(..));
    let decision = decision.ok_or_else(|| {
        Failed::new(
            Reason::RouteNotFound,
            format!("{}:{}", port.service, port.port),
        )
    })?;
    Ok(Some(decision))
}

/// Does what the decision says, up to where the request is sent.
pub(super) async fn follow(
    worker: &Worker,
    port: &Arc<PortView>,
    decision: Option<&Decision<'_>>,
    parts: &mut Parts,
    grpc: bool,
) -> Result<Next, Failed> {
    let Some(decision) = decision else {
        return Ok(Next::Forward(Arc::clone(port)));
    };
    if let Some(delay) = decision.delay {
        sleep(delay).await;
    }
    match &decision.outcome {
        Outcome::Forward(backend) => {
            let target = target(worker, port, backend.service.as_ref(), backend.port).await?;
            let edited = decision.edit_request(&mut parts.uri, &mut parts.headers);
            edited.map_err(|error| {
                Failed::new(
                    Reason::BadRequest,
                    format!("the route's rewrite makes no URI of it: {error}"),
                )
            })?;
            Ok(Next::Forward(target))
        }
        Outcome::NoBackend => Err(no_backend(port, "the rule has none")),
        Outcome::Redirect(redirect) => {
            let prefix = decision.found.prefix();
            Ok(Next::Answer(Box::new(redirected(
                redirect, port, parts, prefix,
            )?)))
        }
        Outcome::Preflight(fields) => {
            let mut response = Response::new(ProxyBody::Empty);
            *response.status_mut() = StatusCode::NO_CONTENT;
            *response.headers_mut() = fields.clone();
            Ok(Next::Answer(Box::new(response)))
        }
        Outcome::Abort(abort) => Ok(Next::Answer(Box::new(aborted(*abort, grpc)))),
    }
}

fn no_backend(port: &PortView, detail: &str) -> Failed {
    let detail = format!("{}:{}: {detail}", port.service, port.port);
    Failed::new(Reason::BackendNotFound, detail)
}

/// The port that a backend names: known, or asked for.
pub(super) async fn target(
    worker: &Worker,
    port: &Arc<PortView>,
    service: Option<&ServiceName>,
    number: u16,
) -> Result<Arc<PortView>, Failed> {
    let Some(service) = service else {
        return Err(no_backend(port, "see the route's status"));
    };
    if *service == port.service && number == port.port {
        return Ok(Arc::clone(port));
    }
    let mesh = &worker.shared.mesh;
    if let Some(known) = mesh.known(service, number) {
        return Ok(known);
    }
    let found = mesh.resolve_service(service, number).await;
    let missing = [Reason::ServiceNotFound, Reason::PortNotDeclared];
    found.map_err(|reason| {
        Failed::new(
            if missing.contains(&reason) {
                Reason::BackendNotFound
            } else {
                reason
            },
            format!("{service}:{number}"),
        )
    })
}

fn redirected(
    redirect: &Redirect,
    port: &PortView,
    parts: &Parts,
    prefix: Option<&str>,
) -> Result<Answer, Failed> {
    let uri = &parts.uri;
    let host = uri.host().unwrap_or(&port.hostname);
    let location = redirect.location(host, port.port, uri.path(), uri.query(), prefix);
    let location = HeaderValue::try_from(location).map_err(|error| {
        Failed::new(
            Reason::BadRequest,
            format!("no Location can be made of it: {error}"),
        )
    })?;
    let mut response = Response::new(ProxyBody::Empty);
    *response.status_mut() = StatusCode::from_u16(redirect.status.code()).unwrap_or_default();
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

fn aborted(abort: Abort, grpc: bool) -> Answer {
    let reason = Reason::FaultInjected;
    if grpc {
        return grpc_answer(abort.grpc_code, reason, reason.description());
    }
    let text = format!("{reason}: {}\n", reason.description());
    let mut response = Response::new(ProxyBody::text(Bytes::from(text)));
    *response.status_mut() = StatusCode::from_u16(abort.status).unwrap_or_default();
    let headers = response.headers_mut();
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(CONTENT_TYPE, plain);
    headers.insert(WEFT_REASON, HeaderValue::from_static(reason.as_str()));
    response
}

/// Sends copies of a request, whose answers nobody waits for. `body` is `None` where the request
/// has none.
pub(super) fn mirror(
    worker: &Rc<Worker>,
    port: &Arc<PortView>,
    mirrors: &[&Mirror],
    parts: &Parts,
    body: Option<&Kept>,
) {
    for mirror in mirrors {
        if worker.copying.get() >= MIRRORS_MAX {
            let (from, to) = (&port.service, &mirror.backend);
            tracing::debug!(%from, %to, limit = MIRRORS_MAX, "too many copies: none is made");
            continue;
        }
        worker.copying.set(worker.copying.get() + 1);
        let (worker, port, body) = (Rc::clone(worker), Arc::clone(port), body.cloned());
        let (mirror, parts) = ((*mirror).clone(), parts.clone());
        spawn_local(async move {
            let drain = worker.shared.drain.cut();
            let copying = copy(&worker, &port, &mirror, parts, body);
            let done = tokio::select! {
                done = timeout(MIRROR_MAX, copying) => Some(done),
                () = drain => None,
            };
            worker.copying.set(worker.copying.get() - 1);
            let Some(done) = done else { return };
            let failed = match done {
                Ok(Ok(())) => return,
                Ok(Err(failed)) => failed,
                Err(_elapsed) => format!("not answered within {MIRROR_MAX:?}"),
            };
            let (from, to) = (&port.service, &mirror.backend);
            tracing::debug!(%from, %to, failed, "a copy was not delivered");
        });
    }
}

/// Sends one copy; the error says for the log why it was not answered.
async fn copy(
    worker: &Worker,
    port: &Arc<PortView>,
    mirror: &Mirror,
    parts: Parts,
    body: Option<Kept>,
) -> Result<(), String> {
    let told = |failed: Failed| format!("{}: {}", failed.reason, failed.detail);
    let target = target(worker, port, Some(&mirror.backend), mirror.port).await;
    let target = super::outside::resolved(worker, target.map_err(told)?, None).await;
    let target = target.map_err(told)?;
    let body = match body {
        None => ProxyBody::Empty,
        Some(kept) => {
            let body = kept.copy().await;
            body.ok_or("the body is longer than what is kept for a copy")?
        }
    };
    let wish = Wish::of(worker, &target.policy, &parts);
    let (endpoint, mut call) = pick(&target, Avoid::default(), wish)
        .map_err(|reason| format!("{reason}: {}", target.service))?;
    let slot = match worker.pool.slot(&target, &endpoint).await {
        Ok(slot) => slot,
        Err(error) => {
            let class = target.policy.failures.of_failure(Failure::ConnectFailed);
            if !error.is_limited() {
                call.finish(class, crate::clock::now());
            }
            return Err(format!("{}: {error}", error.reason()));
        }
    };
    let response = slot
        .sender()
        .send_request(Box::new(Request::from_parts(parts, body)))
        .await;
    let failures = &target.policy.failures;
    let (class, result) = match response {
        Ok(response) => {
            let status = response.status().as_u16();
            call.on_failure(Failure::Status(status));
            let class = failures.of_answer(status, None);
            let mut body = response.into_body();
            while let Some(Ok(_ignored)) = body.frame().await {}
            (class, Ok(()))
        }
        Err(error) => {
            call.on_failure(Failure::Reset);
            let failed = Err(describe(&error));
            (failures.of_failure(Failure::Reset), failed)
        }
    };
    call.finish(class, crate::clock::now());
    result
}
