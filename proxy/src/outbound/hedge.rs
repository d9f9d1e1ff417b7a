//! Attempts side by side: one that is slow gets another one beside it, and the first answer wins.
//! Core decides, here it is done.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response};
use tokio::time::{Sleep, sleep};
use weft_core::hedge::{Decision, HedgePolicy, Situation, decide};
use weft_core::retry::Failure;
use weft_core::time::Instant;

use super::admitted::Admitted;
use super::attempt::{Attempt, Done, Ended, answered, heed, judge, transmit};
use super::choose::{Avoid, pick_beside};
use super::connection::Connection;
use crate::http::{Incoming, ProxyBody, Upload, interims};
use crate::mesh::{Call, Counted, Endpoint, PortView};
use crate::telemetry::spans::ClientAttempt;
use crate::telemetry::tracing::RequestSpan;
use crate::worker::Worker;

/// How an attempt ends: with a response and the connection that it came by, or not.
type Outcome = Result<(Response<Incoming>, Connection), Attempt>;

/// The attempts of one request that is hedged.
#[derive(Debug)]
pub(super) struct Race<'a> {
    policy: &'a HedgePolicy,
    /// Hedges made.
    made: u32,
    /// Whether it is known how long the first attempt takes.
    measured: bool,
}

/// One attempt under way. Dropped, it is cancelled and gives back what it holds.
struct Runner {
    endpoint: Arc<Endpoint>,
    call: Call,
    span: Option<RequestSpan>,
    /// Its place among the retries.
    counted: Option<Counted>,
    is_hedge: bool,
    sending: Pin<Box<dyn Future<Output = Outcome>>>,
}

/// What happens next.
enum Event {
    /// An attempt has ended.
    Ended(usize, Box<Outcome>),
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
        way: &mut Admitted<'_>,
        port: &Arc<PortView>,
        first: (&Arc<Endpoint>, Call),
    ) -> Result<Done, Ended> {
        let began = crate::clock::now();
        let delay = match self.policy.learns() {
            true => self.policy.delay(port.latencies().as_mut(), began),
            false => self.policy.delay(None, began),
        };
        let mut due = delay.map(|delay| Box::pin(sleep(delay)));
        way.trip.tried.push(first.0.key.clone());
        way.calls.on_asked(way.exchange.upload.as_ref());
        let counted = way.trip.retrying.take();
        let first = launch(way, port, first, counted, self.made);
        way.exchange.ledger.traced(&way.trip.sending.parts.headers);
        let mut runners = vec![first];
        loop {
            let waited = {
                let next = pin!(next(&mut runners, &mut due));
                way.patience.wait(next).await
            };
            let event = match waited {
                Ok(event) => event,
                Err(over) => return Err(give_up(way, runners, over)),
            };
            let (index, ended) = match event {
                Event::Ended(index, ended) => (index, *ended),
                Event::Due => {
                    due = self.hedge(way, port).map(|runner| {
                        way.exchange.ledger.hedge();
                        runners.push(runner);
                        Box::pin(sleep(delay.unwrap_or(Duration::MAX)))
                    });
                    continue;
                }
            };
            let runner = runners.remove(index);
            let outcome = ended.and_then(|(response, connection)| {
                heed(&way.terms, &response, &runner.call);
                judge(response, connection, &way.terms)
            });
            let now = crate::clock::now();
            if !runner.is_hedge || outcome.is_ok() {
                let failure = outcome.as_ref().err().map(|attempt| attempt.failure);
                self.measure(port, failure, now.saturating_since(began), now);
            }
            match outcome {
                Ok((response, connection)) => {
                    let call = won(way, runner, &runners);
                    return Ok(answered(response, connection, call));
                }
                Err(failed) => {
                    way.exchange.ledger.set_span(runner.span);
                    let ended = way.learn(runner.call, failed);
                    // Another one is still under way, and may be answered.
                    if runners.is_empty() {
                        way.trip.retrying = runner.counted;
                        return Err(ended);
                    }
                    way.exchange.ledger.set_span(None);
                }
            }
        }
    }

    /// Makes a hedge, if there may be one.
    fn hedge(&mut self, way: &mut Admitted<'_>, port: &Arc<PortView>) -> Option<Runner> {
        let now = crate::clock::now();
        let port = way.exchange.conversation.fresh(Arc::clone(port));
        let policy = port.policy.hedge.as_ref()?;
        let avoid = Avoid {
            tried: &way.trip.tried,
            ..Avoid::default()
        };
        let picked = pick_beside(&port, avoid, way.trip.wish);
        let counted = port.admit_retry();
        let situation = Situation {
            made: self.made,
            body_is_whole: way.trip.sending.is_whole(),
            deadline: way.trip.sending.deadline,
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
        way.trip.tried.push(endpoint.key.clone());
        let mut runner = launch(way, &port, (&endpoint, call), counted, self.made);
        runner.is_hedge = true;
        if let Some(span) = &runner.span {
            span.set_hedge();
        }
        Some(runner)
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

/// The time of the whole request is over: the oldest attempt was waited for longest, and the others
/// are cancelled.
fn give_up(way: &mut Admitted<'_>, mut runners: Vec<Runner>, over: super::failed::Failed) -> Ended {
    if runners.is_empty() {
        return Ended::Over(over.after(way.exchange.progress(true)));
    }
    let oldest = runners.swap_remove(0);
    way.exchange.ledger.set_span(oldest.span);
    way.end(oldest.call, over, true)
}

/// The first answer: what is told is about its attempt from now on, and the others are given up.
fn won(way: &mut Admitted<'_>, runner: Runner, losers: &[Runner]) -> Call {
    for loser in losers {
        if let Some(span) = &loser.span {
            span.set_given_up();
        }
    }
    let endpoint = &runner.endpoint;
    if runner.is_hedge {
        endpoint.live.stats.hedge_won();
    }
    let ledger = &mut way.exchange.ledger;
    ledger.answered_by(endpoint.key.address, &endpoint.live.stats);
    ledger.set_span(runner.span);
    way.trip.retrying = runner.counted;
    runner.call
}

/// Sends the request to an endpoint; `hedges` were made with it.
fn launch(
    way: &mut Admitted<'_>,
    port: &Arc<PortView>,
    (endpoint, call): (&Arc<Endpoint>, Call),
    counted: Option<Counted>,
    hedges: u32,
) -> Runner {
    let about = ClientAttempt {
        endpoint: Some(endpoint.key.address),
        service: &port.service,
        number: way.trip.made + hedges - 1,
        retries: way.trip.made - 1,
    };
    let queued = std::mem::take(&mut way.exchange.queued);
    let worker = way.exchange.worker();
    let sending = &mut way.trip.sending;
    let spans = worker.shared.spans();
    let span = spans.client(&mut way.trip.trace, &mut sending.parts, about);
    let asking = ask(
        Rc::clone(worker),
        (Arc::clone(port), Arc::clone(endpoint)),
        (span.clone(), queued),
        (sending.request(true), way.exchange.upload.clone()),
        sending.deadline,
        way.terms.attempt.value,
    );
    Runner {
        endpoint: Arc::clone(endpoint),
        call,
        span,
        counted,
        is_hedge: false,
        sending: Box::pin(asking),
    }
}

async fn ask(
    worker: Rc<Worker>,
    (port, endpoint): (Arc<PortView>, Arc<Endpoint>),
    (span, queued): (Option<RequestSpan>, Duration),
    (mut request, upload): (Box<Request<ProxyBody>>, Option<Upload>),
    deadline: Option<Instant>,
    per_try_timeout: Option<Duration>,
) -> Outcome {
    let began = span.is_some().then(crate::clock::now);
    // Upgrades are not hedged: the connection is a shared one.
    let acquired = Connection::acquire(&worker, &port, &endpoint, false).await;
    if let (Some(span), Some(began)) = (span, began) {
        span.set_queued(queued + crate::clock::now().saturating_since(began));
    }
    let mut connection = acquired.map_err(|error| Attempt::not_connected(&error))?;
    if let Some(deadline) = deadline {
        // Connecting took its time.
        let left = deadline.saturating_since(crate::clock::now());
        weft_core::timeout::write(left, request.headers_mut());
    }
    let upload = upload.as_ref();
    let response = transmit(request, &mut connection, per_try_timeout, upload).await?;
    Ok((response, connection))
}

/// Waits for the next event. An answer comes before a hedge.
async fn next(runners: &mut [Runner], due: &mut Option<Pin<Box<Sleep>>>) -> Event {
    poll_fn(|cx| {
        for (index, runner) in runners.iter_mut().enumerate() {
            let sending = runner.sending.as_mut();
            let polled = match runner.is_hedge {
                false => sending.poll(cx),
                // Interim responses are those of one attempt.
                true => interims::ignore(|| sending.poll(cx)),
            };
            if let Poll::Ready(ended) = polled {
                return Poll::Ready(Event::Ended(index, Box::new(ended)));
            }
        }
        match due {
            Some(sleep) => sleep.as_mut().poll(cx).map(|()| Event::Due),
            None => Poll::Pending,
        }
    })
    .await
}
