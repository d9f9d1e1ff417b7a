//! A request of the application on its way to a service, from its head to its answer's.
//!
//! Each state owns what the request needs from there on and what has to be given back: its place
//! within limits, the calls that breakers wait to hear of, its connection, its span and its line in
//! the access log. What decides borrows the state, which stays where it is: moving it costs more than
//! most decisions. Dropping a state, whichever it is, cancels the request. Upgrades and `CONNECT` go the same way: only
//! their connection is another, and the answer becomes a stream of bytes.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::ORIGIN;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Version};
use weft_core::connections::Exceeded;
use weft_core::fault::Fault;
use weft_core::h1::TargetForm;
use weft_core::headers::{
    ABSOLUTE, APP_HTTP2, WEFT_APP_PROTOCOL, WEFT_TARGET_FORM, is_grpc, is_upgrade,
    remove_hop_by_hop,
};
use weft_core::policy::TrafficPolicy;
use weft_core::reason::Reason;
use weft_core::terms::{self, Terms};
use weft_core::timeout as deadline;

use super::admission::{self, Admission, PortCalls};
use super::admitted::Admitted;
use super::attempt::{Done, Trip};
use super::choose::rule_id;
use super::exchange::{Answer, Exchange, Routed};
use super::failed::Failed;
use super::http::{Conversation, one_more};
use super::patience::{Patience, while_waited_for};
use super::route::{self, Next};
use super::sending::{Sending, keep};
use super::{Wish, outside};
use crate::http::h1::Refusal;
use crate::http::{Activity, Incoming, Kept, ProxyBody, Upgrade};
use crate::mesh::{self, PortView, UnderWay};
use crate::telemetry::ledger::Ledger;
use crate::telemetry::metrics::Direction;

/// The next state, or the answer that comes instead of it.
type Step<T> = Result<T, Box<Answer>>;

/// The whole way of a request.
pub(super) async fn exchange(
    conversation: &Rc<Conversation>,
    request: Request<Incoming>,
) -> Answer {
    let port = conversation.port();
    let answered = way(conversation, &port, request).await;
    answered.unwrap_or_else(|answer| *answer)
}

/// The answer to a request that was not understood.
pub(super) fn refuse(conversation: &Conversation, refusal: &Refusal) -> Answer {
    let shared = &conversation.worker.shared;
    let port = conversation.port();
    let cutting = &conversation.worker.cutting;
    let mut ledger = Ledger::new(crate::clock::now(), refusal.grpc, cutting);
    ledger.count_otherwise(|| shared.mesh.own_stats(&port));
    let (log, service) = (&shared.access_log, &port.hostname);
    ledger.begin_refused_line(log, Direction::Outbound, service, None);
    let answer = refusal.answer();
    ledger.answer_itself(&answer, Some(refusal.reason));
    answer
}

async fn way(
    conversation: &Conversation,
    port: &Arc<PortView>,
    request: Request<Incoming>,
) -> Step<Answer> {
    let mut received = Received::new(conversation, port, request);
    let (target, calls) = match received.decide().await {
        Ok(decided) => decided,
        Err(refused) => return Err(received.refuse(*refused)),
    };
    let policy = Arc::clone(&target.policy);
    let (terms, patience) = match received.begin(&policy) {
        Ok(begun) => begun,
        Err(failed) => return Err(received.refuse(Refused::Failed(failed))),
    };
    let kept = received.keep(&terms);
    let entered = received.exchange.enter(&target, &patience).await;
    let places = match entered {
        Ok(places) => places,
        Err(failed) => return Err(received.refuse(Refused::Failed(failed))),
    };
    let bounds = (&policy, terms, patience);
    let mut admitted = received.admitted((target, calls), bounds, kept, places);
    let answered = admitted.attempts().await;
    match answered.and_then(|done| admitted.exchange.translate(done)) {
        Ok(done) => Ok(admitted.answer(done)),
        Err(failed) => Err(admitted.refuse(&failed)),
    }
}

/// Why a request is not sent.
enum Refused {
    Failed(Failed),
    /// A route or a fallback answers it.
    Answered(Answer),
}

impl From<Failed> for Box<Refused> {
    fn from(failed: Failed) -> Self {
        Self::new(Refused::Failed(failed))
    }
}

/// The request is here, without what only holds for the hop that it came by.
struct Received<'p> {
    exchange: Exchange<'p>,
    parts: Parts,
    body: ProxyBody,
    /// How long its caller waits, where it says so.
    asked: Option<Duration>,
    /// Whether it goes round.
    hops: Result<(), Failed>,
}

impl<'p> Received<'p> {
    fn new(
        conversation: &'p Conversation,
        port: &'p Arc<PortView>,
        mut request: Request<Incoming>,
    ) -> Self {
        let version = request.version();
        let asks =
            version != Version::HTTP_2 && is_upgrade(version, request.method(), request.headers());
        let upgrade = asks.then(|| Upgrade::take(request.extensions_mut()));
        let (mut parts, body) = request.into_parts();
        remove_hop_by_hop(&mut parts.headers, asks && parts.method != Method::CONNECT);
        // How long the application waits is its own to say: it can only make it shorter.
        let asked = deadline::allowed(&parts.headers, None);
        let hops = one_more(&mut parts.headers);
        if parts.extensions.get() == Some(&TargetForm::Absolute) {
            let absolute = HeaderValue::from_static(ABSOLUTE);
            parts.headers.insert(WEFT_TARGET_FORM, absolute);
        }
        // A refusal in gRPC has status 200, which opens a tunnel.
        let grpc = !asks && is_grpc(&parts.headers);
        let cutting = &conversation.worker.cutting;
        let mut ledger = Ledger::new(crate::clock::now(), grpc, cutting);
        ledger.watch(parts.extensions.remove());
        let log = &conversation.worker.shared.access_log;
        let received = ledger.begin_line(log, Direction::Outbound, &parts, &port.service, None);
        let mut body = ProxyBody::of_request(body, received);
        let exchange = Exchange {
            conversation,
            port,
            ledger,
            upload: body.watch_upload(),
            upgrade: upgrade.flatten(),
            routed: None,
            queued: Duration::ZERO,
            stream: None,
            deposit: None,
        };
        Self {
            exchange,
            parts,
            body,
            asked,
            hops,
        }
    }

    /// Asks the routes where the request goes, and the breakers there whether it may.
    async fn decide(&mut self) -> Result<(Arc<PortView>, PortCalls), Box<Refused>> {
        let exchange = &mut self.exchange;
        let hops = std::mem::replace(&mut self.hops, Ok(()));
        let counted = hops.and_then(|()| exchange.count_stream());
        if exchange.upgrade.is_some() && counted.is_ok() {
            // On the heap: ordinary requests need no room for it.
            exchange.deposit = Box::pin(exchange.conversation.client.settled()).await;
        }
        counted?;
        exchange.routed = exchange.route(&mut self.parts)?;
        let target = match exchange.follow(&mut self.parts, self.asked).await? {
            Next::Forward(target) => target,
            Next::Answer(response) => return Err(Box::new(Refused::Answered(*response))),
        };
        let found = exchange.decision().map(|decision| &decision.found);
        let grpc = exchange.ledger.is_grpc();
        match admission::admit(exchange.worker(), target, found, grpc).await? {
            Admission::Open(target, calls) => Ok((target, calls)),
            Admission::Answer(response) => Err(Box::new(Refused::Answered(response))),
        }
    }

    /// Answers a request that was not sent.
    fn refuse(mut self, refused: Refused) -> Box<Answer> {
        match refused {
            Refused::Failed(failed) => self.exchange.refuse_unsent(&self.parts, &failed),
            Refused::Answered(response) => {
                self.exchange.begin_span(&self.parts);
                self.exchange.respond(response)
            }
        }
    }

    /// Its terms by the policy of where it goes, and how long it is waited for.
    fn begin<'t>(&mut self, policy: &'t TrafficPolicy) -> Result<(Terms<'t>, Patience), Failed>
    where
        'p: 't,
    {
        let exchange = &self.exchange;
        let kind = terms::Kind {
            method: &self.parts.method,
            grpc: exchange.ledger.is_grpc().then(|| self.parts.uri.path()),
            upgrade: exchange.upgrade.is_some(),
        };
        let rule = exchange.decision().map(|decision| decision.found.rule);
        let defaults = exchange.worker().shared.config.timeouts.terms();
        let terms = Terms::of(policy, rule, kind, &defaults);
        let time = terms.time(exchange.ledger.began(), self.asked);
        let activity = terms.stream_idle.value.map(Activity::new);
        if let Some(activity) = &activity {
            self.body.watch(activity);
        }
        let patience = Patience::begin(time, activity)?;
        Ok((terms, patience))
    }

    /// Keeps the body where somebody may need it again, and sends its copies.
    fn keep(&mut self, terms: &Terms<'_>) -> Keeping {
        let exchange = &self.exchange;
        // A stream of bytes is not copied, and neither is what asks for it.
        let copied = exchange.upgrade.is_none();
        let mirrors = exchange.decision().filter(|_| copied);
        let mirrors = mirrors.map_or(&[][..], |decision| &decision.mirrors);
        let body = std::mem::replace(&mut self.body, ProxyBody::Empty);
        let (body, kept) = keep(body, terms, mirrors);
        if !mirrors.is_empty() {
            let (worker, port) = (exchange.worker(), exchange.port);
            route::mirror(worker, port, mirrors, &self.parts, kept.as_ref());
        }
        Keeping {
            body,
            kept,
            mirrored: !mirrors.is_empty(),
        }
    }

    /// The request with its places, on its way to `target`.
    fn admitted<'t>(
        self,
        (target, calls): (Arc<PortView>, PortCalls),
        (policy, terms, patience): (&'t Arc<TrafficPolicy>, Terms<'t>, Patience),
        keeping: Keeping,
        (held, concurrency): (mesh::Admitted, Option<UnderWay>),
    ) -> Box<Admitted<'t>>
    where
        'p: 't,
    {
        let mut wish = Wish::of(self.exchange.worker(), policy, &self.parts);
        let rule = self.exchange.decision().map(|decision| decision.found.rule);
        wish.route = rule.map_or(0, rule_id);
        let cookie = issue(policy, &mut wish);
        let sending = Sending {
            body: keeping.body,
            kept: keeping.kept,
            mirrored: keeping.mirrored,
            deadline: patience.deadline(),
            parts: self.parts,
        };
        // On the heap: an answer outlives the way to it.
        Box::new(Admitted {
            cookie,
            trip: Trip::new(sending, wish),
            exchange: self.exchange,
            calls,
            held,
            concurrency,
            policy,
            terms,
            patience,
            target,
        })
    }
}

/// What is done with a request's body.
struct Keeping {
    body: Option<ProxyBody>,
    kept: Option<Kept>,
    mirrored: bool,
}

impl<'p> Exchange<'p> {
    /// Finds a stream of bytes in HTTP/2 its place among the connections of the application.
    fn count_stream(&mut self) -> Result<(), Failed> {
        if self.upgrade.as_ref().is_some_and(Upgrade::is_http2) {
            let worker = self.worker();
            let connections = &worker.shared.connections;
            let counted = connections.admit_application_stream(&worker.serving);
            let refused =
                |exceeded: Exceeded| Failed::new(Reason::ConnectionLimit, exceeded.to_string());
            self.stream = Some(counted.map_err(refused)?);
        }
        Ok(())
    }

    /// The decision of the port's routes; `None` where it has none.
    fn route(&self, parts: &mut Parts) -> Result<Option<Routed<'p>>, Failed> {
        let upgrades = self.upgrade.is_some();
        if self.upgrade.as_ref().is_some_and(Upgrade::is_http2) {
            let http2 = HeaderValue::from_static(APP_HTTP2);
            parts.headers.insert(WEFT_APP_PROTOCOL, http2);
        }
        // CONNECT names a host, and nothing that routes could look at.
        if upgrades && parts.method == Method::CONNECT {
            return Ok(None);
        }
        self.conversation.make_absolute(parts)?;
        if !upgrades {
            Conversation::note_protocol(parts);
        }
        let decision = route::decide(self.port, parts)?;
        Ok(decision.map(|decision| {
            let origin = decision.needs_origin();
            let origin = origin.then(|| parts.headers.get(ORIGIN).cloned());
            Routed {
                decision,
                origin: origin.flatten(),
            }
        }))
    }

    /// The answer as a client in HTTP/2 that asked for a stream of bytes is to see it. That the server
    /// does not agree is no failure of it.
    fn translate(&self, mut done: Done) -> Result<Done, Failed> {
        let Some(upgrade) = &self.upgrade else {
            return Ok(done);
        };
        match upgrade.translate(&mut done.response) {
            Ok(()) => Ok(done),
            Err(not_switched) => Err(Failed {
                fault: Fault::Nobody,
                ..Failed::new(Reason::UpgradeFailed, not_switched.to_string())
            }),
        }
    }

    /// Does what the routes decided, as long as the caller waits.
    async fn follow(&self, parts: &mut Parts, asked: Option<Duration>) -> Result<Next, Failed> {
        let (worker, grpc) = (self.worker(), self.ledger.is_grpc());
        let following = route::follow(worker, self.port, self.decision(), parts, grpc);
        let next = while_waited_for(asked, pin!(following)).await?;
        match next {
            Next::Forward(target) => {
                let target = outside::resolved(worker, target, asked).await?;
                Ok(Next::Forward(target))
            }
            answer @ Next::Answer(_) => Ok(answer),
        }
    }
}

/// The cookie that a request without one is given, where that is what its endpoint is picked by.
fn issue(policy: &TrafficPolicy, wish: &mut Wish<'_>) -> Option<HeaderValue> {
    let hash_on = policy.hash_on.as_ref();
    let hash_on = hash_on.filter(|_| wish.key.is_none());
    let (key, cookie) = hash_on.and_then(|on| on.issue(fastrand::u64(..)))?;
    wish.key = Some(key);
    Some(cookie)
}
