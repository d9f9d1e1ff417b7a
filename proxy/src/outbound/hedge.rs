//! Attempts side by side: one that is slow gets another one beside it, and the first answer wins.
//! Core decides, here it is done.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response};
use tokio::time::{Sleep, sleep};
use weft_core::balance::Candidates;
use weft_core::hedge::{Decision, HedgePolicy, Situation, decide};
use weft_core::retry::Failure;
use weft_core::time::Instant;

use super::attempt::{Attempt, judge, transmit};
use super::heed::{Heed, Place, heed_of, place_of};
use super::http::{Conversation, Trip};
use super::pool::Slot;
use super::{View, Wish};
use crate::http::trace::begin_client;
use crate::http::{Incoming, ProxyBody, Record};
use crate::mesh::{Call, Counted, Endpoint, EndpointKey, PortView};
use crate::telemetry::tracing::RequestSpan;
use crate::worker::Worker;

/// What came of an attempt: a response with its place on a connection.
type Outcome = Result<(Response<Incoming>, Slot), Attempt>;

/// The attempts of one request that is hedged.
#[derive(Debug)]
pub(super) struct Race<'a> {
    policy: &'a HedgePolicy,
    /// Hedges made.
    made: u32,
    /// Whether it is known how long the first attempt takes.
    measured: bool,
}

/// One attempt under way. Dropped, it says nothing about its endpoint and gives back what it holds.
struct Runner {
    endpoint: Arc<Endpoint>,
    /// `None` where the record has it, which is that of the oldest.
    call: Option<Call>,
    span: Option<RequestSpan>,
    /// Its place among the retries.
    counted: Option<Counted>,
    is_hedge: bool,
    sending: Pin<Box<dyn Future<Output = Outcome>>>,
}

/// What happens next.
enum Event {
    /// An attempt has ended.
    Ended(usize, Outcome),
    /// It is time for a hedge.
    Due,
}

impl<'a> Race<'a> {
    pub(super) fn new(policy: &'a HedgePolicy) -> Self {
        Self {
            policy,
            made: 0,
            measured: false,
        }
    }

    /// Makes one attempt, and others beside it as long as it takes too long. A failure is one when
    /// no other attempt is under way any more.
    pub(super) async fn run(
        &mut self,
        conversation: &Conversation,
        port: &Arc<PortView>,
        (endpoint, call): (&Arc<Endpoint>, Call),
        trip: &mut Trip<'_>,
        record: &mut Record,
    ) -> Outcome {
        let began = crate::clock::now();
        let delay = match self.policy.learns() {
            true => self.policy.delay(port.latencies().as_mut(), began),
            false => self.policy.delay(None, began),
        };
        let mut due = delay.map(|delay| Box::pin(sleep(delay)));
        trip.tried.push(endpoint.key.clone());
        let first = launch(&conversation.worker, port, endpoint, trip, self.made);
        let mut runners = vec![Runner {
            counted: record.retrying.take(),
            ..first
        }];
        // Kept there, it is known when the time of the whole request is over meanwhile.
        record.waiting = Some(call);
        record.traced(&trip.sent.parts.headers);
        loop {
            let (index, ended) = match next(&mut runners, &mut due).await {
                Event::Ended(index, ended) => (index, ended),
                Event::Due => {
                    due = self.hedge(conversation, port, trip).map(|runner| {
                        record.hedge();
                        runners.push(runner);
                        Box::pin(sleep(delay.unwrap_or(Duration::MAX)))
                    });
                    continue;
                }
            };
            let mut runner = runners.remove(index);
            let call = match index {
                0 => record.waiting.take(),
                _ => runner.call.take(),
            };
            let outcome = ended.and_then(|(response, slot)| {
                trip.terms.heed(&response, call.as_ref());
                judge(response, slot, &trip.terms)
            });
            let now = crate::clock::now();
            if !runner.is_hedge || outcome.is_ok() {
                let failure = outcome.as_ref().err().map(|attempt| attempt.failure);
                self.measure(port, failure, now.saturating_since(began), now);
            }
            match outcome {
                Ok((done, reason)) => {
                    record.reason = reason;
                    record.call = call;
                    record.on_response(now);
                    won(runner, &runners, record);
                    return Ok(done);
                }
                Err(failed) => {
                    record.reason = failed.said();
                    let class = failed.class(trip.terms.failures);
                    let told = call.zip(class);
                    let transition = told.and_then(|(call, class)| call.finish(class, now));
                    if let (Some(transition), Some(span)) = (transition, &runner.span) {
                        span.breaker_changed(&transition);
                    }
                    record.span = runner.span;
                    let Some(oldest) = runners.first_mut() else {
                        record.retrying = runner.counted;
                        return Err(failed);
                    };
                    // Another one is still under way, and may be answered.
                    record.waiting = record.waiting.take().or_else(|| oldest.call.take());
                }
            }
        }
    }

    /// Makes a hedge, if there may be one.
    fn hedge(
        &mut self,
        conversation: &Conversation,
        port: &Arc<PortView>,
        trip: &mut Trip<'_>,
    ) -> Option<Runner> {
        let now = crate::clock::now();
        let port = conversation.fresh(Arc::clone(port));
        let policy = port.policy.hedge.as_ref()?;
        let picked = pick_beside(&port, &trip.tried, trip.wish, now);
        let counted = port.admit_retry();
        let situation = Situation {
            made: self.made,
            body_is_whole: trip.sent.is_whole(),
            deadline: trip.sent.deadline,
            is_open: port.is_open(now),
            has_endpoint: picked.is_some(),
            has_place: counted.is_some(),
        };
        match decide(policy, &situation, &mut port.budget(), now) {
            Decision::Hedge => {}
            Decision::Wait(why) => {
                tracing::trace!(service = %port.service, ?why, "no hedge");
                return None;
            }
        }
        let (endpoint, call) = picked?;
        self.made += 1;
        endpoint.live.stats.hedged();
        trip.tried.push(endpoint.key.clone());
        let runner = launch(&conversation.worker, &port, &endpoint, trip, self.made);
        if let Some(span) = &runner.span {
            span.set_hedge();
        }
        Some(Runner {
            call: Some(call),
            counted,
            is_hedge: true,
            ..runner
        })
    }

    /// Notes how long the request's first attempt took. One that was given up took longer than
    /// that, and a failure tells nothing.
    fn measure(&mut self, port: &PortView, failure: Option<Failure>, took: Duration, now: Instant) {
        let first = !std::mem::replace(&mut self.measured, true);
        let tells = matches!(failure, None | Some(Failure::PerTryTimeout));
        if first
            && tells
            && self.policy.learns()
            && let Some(latencies) = &mut *port.latencies()
        {
            latencies.on_latency(took, now);
        }
    }
}

/// The first answer: the record is about its attempt from now on, and the others are given up.
fn won(runner: Runner, losers: &[Runner], record: &mut Record) {
    // The oldest of the losers; dropped, it says nothing.
    record.waiting = None;
    for loser in losers {
        if let Some(span) = &loser.span {
            span.set_given_up();
        }
    }
    let endpoint = &runner.endpoint;
    if runner.is_hedge {
        endpoint.live.stats.hedge_won();
    }
    record.answered_by(endpoint.key.address, &endpoint.live.stats);
    record.span = runner.span;
    record.retrying = runner.counted;
}

/// Sends the request to an endpoint; `hedges` were made with it.
fn launch(
    worker: &Rc<Worker>,
    port: &Arc<PortView>,
    endpoint: &Arc<Endpoint>,
    trip: &mut Trip<'_>,
    hedges: u32,
) -> Runner {
    let sent = &mut trip.sent;
    let span = begin_client(
        &worker.shared,
        &mut trip.trace,
        &mut sent.parts,
        endpoint.key.address,
        &port.hostname,
        trip.made + hedges - 1,
    );
    let sending = ask(
        Rc::clone(worker),
        (Arc::clone(port), Arc::clone(endpoint)),
        sent.request(true),
        sent.deadline,
        trip.terms.per_try_timeout,
    );
    Runner {
        endpoint: Arc::clone(endpoint),
        call: None,
        span,
        counted: None,
        is_hedge: false,
        sending: Box::pin(sending),
    }
}

async fn ask(
    worker: Rc<Worker>,
    (port, endpoint): (Arc<PortView>, Arc<Endpoint>),
    mut request: Request<ProxyBody>,
    deadline: Option<Instant>,
    per_try_timeout: Option<Duration>,
) -> Outcome {
    let slot = worker.pool.slot(&port, &endpoint).await;
    let slot = slot.map_err(|error| Attempt::not_connected(&error))?;
    if let Some(deadline) = deadline {
        // Connecting took its time.
        let left = deadline.saturating_since(crate::clock::now());
        weft_core::timeout::write(left, request.headers_mut());
    }
    let response = transmit(request, &slot, per_try_timeout).await?;
    Ok((response, slot))
}

/// Whatever happens first. An answer comes before a hedge.
async fn next(runners: &mut [Runner], due: &mut Option<Pin<Box<Sleep>>>) -> Event {
    poll_fn(|cx| {
        for (index, runner) in runners.iter_mut().enumerate() {
            if let Poll::Ready(ended) = runner.sending.as_mut().poll(cx) {
                return Poll::Ready(Event::Ended(index, ended));
            }
        }
        match due {
            Some(sleep) => sleep.as_mut().poll(cx).map(|()| Event::Due),
            None => Poll::Pending,
        }
    })
    .await
}

/// Chooses an endpoint that is not left out, and begins a call on it: another one than those that
/// were tried, as long as there is one.
fn pick_beside(
    port: &PortView,
    tried: &[EndpointKey],
    wish: Wish<'_>,
    now: Instant,
) -> Option<(Arc<Endpoint>, Call)> {
    let heed = heed_of(port, now);
    let place = place_of(port, wish.zone, heed, now);
    let anywhere = Place::Anywhere;
    let views = [
        (tried, place),
        (tried, anywhere),
        (&[], place),
        (&[], anywhere),
    ];
    views.into_iter().find_map(|(tried, place)| {
        let view = View {
            port,
            tried,
            heed,
            place,
            now,
        };
        let index = match (wish.key, port.table()) {
            (Some(key), Some(table)) => table.pick(key, |index| view.excluded(index)),
            // Not the next one's turn: requests that are slow would always meet the same endpoint.
            _ => port
                .policy
                .balancing
                .pick(&view, fastrand::u64(..), fastrand::u64(..)),
        };
        let endpoint = &port.endpoints[index?];
        let call = match endpoint.live.begin(now) {
            Ok(call) => call,
            Err(_open) if heed == Heed::All => return None,
            Err(_open) => endpoint.live.begin_forced(now),
        };
        Some((Arc::clone(endpoint), call))
    })
}
