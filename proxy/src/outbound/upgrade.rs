//! Upgrades (WebSocket) and CONNECT: a byte stream of their own, on a connection of their own.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use http::header::HOST;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use weft_core::headers::{remove_hop_by_hop, remove_untrusted};
use weft_core::reason::Reason;
use weft_core::retry::Failure;
use weft_core::timeout as deadline;

use super::allowed::{Allowed, while_waited_for};
use super::http::{Conversation, Decided, Exchanged, Failed, describe, one_more, relayed};
use super::pool::{DialError, OutsideStream};
use super::route::{self, Next};
use super::{Wish, admission, outside, pick, pool};
use crate::config::ProxyConfig;
use crate::http::trace::{Trace, begin_client};
use crate::http::{Activity, Incoming, ProxyBody, Record, Upgrade, http1_client};
use crate::mesh::{Endpoint, PortView};
use crate::relay::{Ended, relay};
use crate::telemetry::metrics::Direction;
use crate::tls::{ALPN_H1, TlsContext};
use crate::worker::Worker;

/// Sends an upgrading request over a connection of its own and, when the other side agrees,
/// becomes a relay of bytes.
pub(super) async fn outbound(
    conversation: &Rc<Conversation>,
    mut request: Request<Incoming>,
    mut record: Box<Record>,
) -> Response<ProxyBody<Box<Record>>> {
    let client = Upgrade::take(request.extensions_mut());
    let (mut parts, body) = request.into_parts();
    remove_hop_by_hop(&mut parts.headers, parts.method != Method::CONNECT);
    let asked = deadline::allowed(&parts.headers, None);
    let hops = one_more(&mut parts.headers);
    let shared = &conversation.worker.shared;
    let port = conversation.port();
    let direction = Direction::Outbound;
    let hostname = &port.hostname;
    let received = record.begin_line(&shared.access_log, direction, &parts, hostname, None);
    let body = ProxyBody::of_request(body, received);
    // CONNECT names a host, and nothing that routes could look at.
    let decided = match hops {
        Err(failed) => Err(failed),
        Ok(()) if parts.method == Method::CONNECT => Ok(None),
        Ok(()) => {
            let absolute = conversation.make_absolute(&mut parts);
            absolute.and_then(|()| route::decide(&port, &parts))
        }
    };
    let worker = &conversation.worker;
    let (decided, outcome) = match decided {
        Err(failed) => (None, Err(failed)),
        Ok(decision) => {
            let decided = Decided::new(decision, &parts.headers);
            let decision = decided.as_ref().map(|decided| &decided.decision);
            let next = {
                let following = route::follow(worker, &port, decision, &mut parts, false);
                while_waited_for(asked, pin!(following)).await
            };
            let next = match next {
                Ok(Next::Forward(target)) => match outside::resolved(worker, target, asked).await {
                    Ok(target) => {
                        let found = decision.map(|decision| &decision.found);
                        admission::admit(worker, target, found, &mut record).await
                    }
                    Err(failed) => Err(failed),
                },
                other => other,
            };
            let outcome = match next {
                Ok(Next::Forward(target)) => {
                    let rule = decision.map(|decision| decision.found.rule);
                    let (began, config) = (record.began, &worker.shared.config);
                    let allowed = Allowed::of(began, asked, rule, &target.policy, config);
                    let response =
                        exchange(conversation, target, (parts, body), allowed, &mut record).await;
                    response.map(|response| Exchanged::Relayed(response, None))
                }
                Ok(Next::Answer(response)) => Ok(Exchanged::Answered(response)),
                Err(failed) => Err(failed),
            };
            (decided, outcome)
        }
    };
    conversation.settle(
        &port,
        decided,
        outcome,
        record,
        |response, record, _none| finish(worker, response, client, record),
    )
}

/// The exchange that asks for the upgrade, in the time that it has.
async fn exchange(
    conversation: &Conversation,
    port: Arc<PortView>,
    (mut parts, body): (Parts, ProxyBody),
    allowed: Allowed,
    record: &mut Record,
) -> Result<Response<Incoming>, Failed> {
    if let Some(left) = allowed.left() {
        deadline::write(left, &mut parts.headers);
    }
    let activity = port.policy.stream_idle_timeout.map(Activity::new);
    let asking = pin!(ask(conversation, port, parts, body, record));
    allowed.bound(activity.as_deref(), asking).await
}

async fn ask(
    conversation: &Conversation,
    port: Arc<PortView>,
    mut parts: Parts,
    body: ProxyBody,
    record: &mut Record,
) -> Result<Response<Incoming>, Failed> {
    let shared = &conversation.worker.shared;
    let Some(counted) = conversation.worker.pool.admit_connection(&port) else {
        let limit = port.policy.max_connections.unwrap_or_default();
        return Err(Failed {
            reason: Reason::ConnectionLimit,
            detail: format!("{}: {limit} connections are open", port.service),
        });
    };
    record.counted = Some(counted);
    let wish = Wish::of(&conversation.worker, &port, &parts);
    let (endpoint, call) = pick(&port, &[], wish).map_err(|reason| Failed {
        reason,
        detail: port.service.to_string(),
    })?;
    record.stats = Some(Arc::clone(&endpoint.live.stats));
    record.attempt(endpoint.key.address);
    record.wire = port.wire();
    let dialled = dial(&shared.config, &shared.tls, &port, &endpoint).await;
    let stream = match dialled {
        Ok(stream) => stream,
        Err(error) => {
            let class = port.policy.failures.of_failure(Failure::ConnectFailed);
            call.finish(class, crate::clock::now());
            return Err(Failed {
                reason: error.reason(),
                detail: error.to_string(),
            });
        }
    };
    record.waiting = Some(call);
    let mut trace = Trace::of(&parts.headers);
    let address = endpoint.key.address;
    record.span = begin_client(shared, &mut trace, &mut parts, address, &port.hostname, 0);
    record.traced(&parts.headers);
    if port.outside.is_some() {
        // Nothing that is the mesh's own leaves it, and nothing that comes back speaks for it.
        remove_untrusted(&mut parts.headers);
    }
    let request = Request::from_parts(parts, body);
    let mut response = send(TokioIo::new(stream), request, &shared.config).await?;
    record.call = record.waiting.take();
    record.on_response(crate::clock::now());
    if port.outside.is_some() {
        remove_untrusted(response.headers_mut());
    }
    Ok(response)
}

/// A connection of its own.
async fn dial(
    config: &ProxyConfig,
    tls: &TlsContext,
    port: &PortView,
    endpoint: &Endpoint,
) -> Result<Either<OutsideStream, Box<TlsStream<TcpStream>>>, DialError> {
    let limit = port.connect_timeout(config);
    if let Some(outside) = &port.outside {
        let address = endpoint.key.address;
        let stream = pool::dial_outside(outside, address, |tls| &tls.upgrade, limit).await?;
        return Ok(Either::Left(stream));
    }
    let material = tls.current().ok_or(DialError::NoCertificate)?;
    let stream = pool::dial(port, endpoint, &material, ALPN_H1, limit).await?;
    Ok(Either::Right(Box::new(stream)))
}

/// One HTTP/1.1 exchange on a connection that may then be taken over.
pub(crate) async fn send<IO>(
    io: IO,
    request: Request<ProxyBody>,
    config: &ProxyConfig,
) -> Result<Response<Incoming>, Failed>
where
    IO: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| Failed {
        reason: Reason::UpgradeFailed,
        detail: describe(&error),
    };
    let handshake = http1_client(config).handshake(io).await;
    let (mut sender, connection) = handshake.map_err(failed)?;
    spawn_local(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "upgraded connection ended");
        }
    });
    let response = sender.send_request(origin_form(request)).await;
    Ok(response.map_err(failed)?.map(Incoming::from))
}

/// HTTP/1.1 towards a server: the path alone, and Host; CONNECT keeps its authority.
pub(crate) fn origin_form<B>(request: Request<B>) -> Request<B> {
    let (mut parts, body) = request.into_parts();
    if parts.method != Method::CONNECT {
        let uri = std::mem::take(&mut parts.uri).into_parts();
        if let Some(authority) = &uri.authority
            && !parts.headers.contains_key(HOST)
            && let Ok(host) = http::HeaderValue::from_str(authority.as_str())
        {
            parts.headers.insert(HOST, host);
        }
        parts.uri = uri
            .path_and_query
            .map_or_else(|| Uri::from_static("/"), Uri::from);
    }
    parts.version = http::Version::HTTP_11;
    Request::from_parts(parts, body)
}

/// Answers the client; where the server agreed, both connections become one stream of bytes.
pub(crate) fn finish(
    worker: &Rc<Worker>,
    mut response: Response<Incoming>,
    client: Option<Upgrade>,
    record: Box<Record>,
) -> Response<ProxyBody<Box<Record>>> {
    let agreed = response.status() == StatusCode::SWITCHING_PROTOCOLS
        || (response.status().is_success() && is_connect(&response));
    if !agreed {
        return relayed(response, record, None);
    }
    let server = Upgrade::take(response.extensions_mut());
    let status = response.status();
    let (mut parts, _no_body) = response.into_parts();
    remove_hop_by_hop(
        &mut parts.headers,
        status == StatusCode::SWITCHING_PROTOCOLS,
    );
    let shared = Arc::clone(&worker.shared);
    let mut record = record;
    record.status = status;
    spawn_local(async move {
        let (Some(client), Some(server)) = (client, server) else {
            return;
        };
        let both = tokio::try_join!(client.upgraded(), server.upgraded());
        let (mut client, mut server) = match both {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(%error, "upgrade not completed");
                return;
            }
        };
        let policy = record.policy.as_ref();
        let idle = policy.and_then(|policy| policy.stream_idle_timeout);
        let relaying = relay(&mut client, &mut server, &shared.config, idle);
        tokio::select! {
            (moved, ended) = relaying => {
                tracing::debug!(?moved, ?ended, "upgraded stream ended");
                if let Ended::Idle = ended {
                    return crate::http::BodyGuard::on_silence(record);
                }
            }
            () = shared.drain.cut() => {}
        }
        // The stream is one request: it is told of when it ends.
        crate::http::BodyGuard::on_end(record, None);
    });
    Response::from_parts(parts, ProxyBody::Empty)
}

/// The response to a CONNECT is marked by an upgrade to wait for.
fn is_connect(response: &Response<Incoming>) -> bool {
    Upgrade::is_offered(response.extensions())
}
