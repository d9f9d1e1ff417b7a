//! Routes that answer why: what would become of a request, and which policy is in force.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use bytes::Bytes;
use weft_core::name::ServiceName;

use super::Admin;
use super::refusal::{Answer, Refusal, read};
use super::types::{EffectiveInfo, ExplainRequest, Items, RateLimitInfo, Step};
use super::views::observed_by;
use crate::model::{limit_text, spelled_out};
use crate::policy::explain::{Known, Question, explain};
use crate::world::World;

pub(super) async fn explain_request(
    State(admin): State<Admin>,
    body: Bytes,
) -> Answer<Items<Step>> {
    let request: ExplainRequest = read(&body)?;
    let question = question(request)?;
    let snapshot = admin.backend.snapshots.snapshot();
    let (breakers, connected) = observed_by(&admin.backend, &question.from);
    let known = Known {
        compiled: &snapshot.compiled,
        world: &snapshot.world,
        breakers: &breakers,
        connected,
    };
    let items = explain(known, &question, || fastrand::u64(..));
    Ok(Json(Items { items }))
}

fn question(request: ExplainRequest) -> Result<Question, Refusal> {
    let bad = |field: &str, found: &str, allowed: &str| {
        Refusal::invalid(format!("{field}: found {found:?}; allowed: {allowed}"))
    };
    let url: Uri = request.url.parse().map_err(|_invalid| {
        let allowed = "a URL as in http://web.shop.mesh/v1";
        bad("url", &request.url, allowed)
    })?;
    let scheme = matches!(url.scheme_str(), Some("http" | "https"));
    if url.host().is_none() || !scheme {
        let allowed = "a URL with http or https and a host";
        return Err(bad("url", &request.url, allowed));
    }
    let method = Method::from_bytes(request.method.as_bytes())
        .map_err(|_invalid| bad("method", &request.method, "an HTTP method"))?;
    let mut headers = HeaderMap::new();
    for (name, value) in &request.headers {
        let parsed = name.parse::<HeaderName>().ok();
        let parsed = parsed.zip(HeaderValue::from_str(value).ok());
        let text = format!("{name}: {value}");
        let (name, value) = parsed.ok_or_else(|| bad("header", &text, "NAME: VALUE"))?;
        headers.append(name, value);
    }
    Ok(Question {
        from: request.from,
        method,
        url,
        headers,
    })
}

/// The policy that is in force for every port of every service.
pub(super) async fn effective(State(admin): State<Admin>) -> Answer<Items<EffectiveInfo>> {
    let snapshot = admin.backend.snapshots.snapshot();
    let mut items = Vec::new();
    for service in snapshot.compiled.services() {
        for port in &service.ports {
            let candidates = snapshot.world.policies_for(&service.name, port.port);
            let policy = service.policies.get(&port.port).cloned();
            let first = candidates.first();
            let why = match first.map(|entry| entry.spec.target_ref.port) {
                None => "no TrafficPolicy is for it",
                Some(Some(_)) if candidates.len() == 1 => "it is for this port",
                Some(None) if candidates.len() == 1 => "it is for the whole service",
                Some(Some(_)) => "it is for this port, and the oldest of those",
                Some(None) => "it is for the whole service, and the oldest of those",
            };
            let beaten = candidates.iter().skip(1);
            items.push(EffectiveInfo {
                service: service.name.to_string(),
                port: port.port,
                policy: first.map(|entry| entry.name.name.clone()),
                why: why.to_owned(),
                beaten: beaten.map(|entry| entry.name.name.clone()).collect(),
                spec: spelled_out(&policy.unwrap_or_default()),
                rate_limits: rate_limits(&snapshot.world, &service.name, port.port),
            });
        }
    }
    items.sort_by(|a, b| (&a.service, a.port).cmp(&(&b.service, b.port)));
    Ok(Json(Items { items }))
}

fn rate_limits(world: &World, service: &ServiceName, port: u16) -> Vec<RateLimitInfo> {
    let limits = world.limits_for(service, port).into_iter();
    let limits = limits.map(|limit| RateLimitInfo {
        policy: limit.name.policy.to_string(),
        rule: limit.name.rule,
        limit: limit_text(&limit),
    });
    limits.collect()
}
