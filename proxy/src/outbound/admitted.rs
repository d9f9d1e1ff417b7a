//! A request that has its places within the limits of its port, on its way to one endpoint after
//! another and back.

use std::pin::pin;
use std::sync::Arc;

use http::HeaderValue;
use http::header::SET_COOKIE;
use tokio::time::sleep;
use weft_core::breaker::CallClass;
use weft_core::fault::Fault;
use weft_core::interim::take_carried;
use weft_core::policy::TrafficPolicy;
use weft_core::reason::Reason;
use weft_core::terms::Terms;

use super::admission::PortCalls;
use super::answered::{Answered, Held};
use super::attempt::{Done, Ended, Trip};
use super::exchange::{Answer, Exchange, edited};
use super::failed::Failed;
use super::hedge::Race;
use super::patience::Patience;
use crate::drain::Side;
use crate::http::{interims, relayed};
use crate::mesh::{self, PortView, UnderWay};
use crate::upgrade::{is_agreed, join};

/// The request has its places within the port's limits, and goes to one endpoint after another.
pub(super) struct Admitted<'p> {
    pub(super) exchange: Exchange<'p>,
    pub(super) calls: PortCalls,
    /// Its place within the port's limit on requests.
    pub(super) held: mesh::Admitted,
    /// Its place within the limit that follows how long answers take.
    pub(super) concurrency: Option<UnderWay>,
    pub(super) policy: &'p Arc<TrafficPolicy>,
    pub(super) terms: Terms<'p>,
    pub(super) patience: Patience,
    pub(super) target: Arc<PortView>,
    pub(super) trip: Trip<'p>,
    /// What the answer sets.
    pub(super) cookie: Option<HeaderValue>,
}

impl<'p> Admitted<'p> {
    /// Sends the request, again where that is allowed, until there is an answer.
    pub(super) async fn attempts(&mut self) -> Result<Done, Failed> {
        let mut race = self.terms.hedge.map(Race::new);
        let mut port = Arc::clone(&self.target);
        port.budget().on_request(self.exchange.ledger.began());
        loop {
            let (endpoint, call) = self.choose(&port)?;
            let outcome = match &mut race {
                None => self.attempt(&port, &endpoint, call).await,
                Some(race) => {
                    // On the heap: a request that is not hedged needs no room for it.
                    Box::pin(race.run(self, &port, (&endpoint, call))).await
                }
            };
            let failed = match outcome {
                Ok(done) => {
                    self.trip.sending.done();
                    return self.unless_timed_out(done);
                }
                Err(Ended::Over(failed)) => return Err(failed),
                Err(Ended::Failed(attempt)) => attempt,
            };
            let Some(wait) = self.repeat(&port, &endpoint, failed.failure) else {
                return failed.give_up();
            };
            // The failed attempt's span does not last as long as the pause.
            self.exchange.ledger.set_span(None);
            let waited = self.patience.wait(pin!(sleep(wait))).await;
            waited.map_err(|over| over.after(self.exchange.progress(true)))?;
            if let Some(concurrency) = &mut self.concurrency
                && failed.shows_no_latency()
            {
                concurrency.restart();
            }
            port = self.exchange.conversation.fresh(port);
        }
    }

    /// The answer, unless it is the peer's sidecar that was faster by a moment than our own timeout,
    /// which set the deadline.
    fn unless_timed_out(&self, mut done: Done) -> Result<Done, Failed> {
        let late = done.reason() == Some(Reason::DeadlineExceeded);
        let over = late.then(|| self.patience.timed_out()).flatten();
        let Some(over) = over else {
            return Ok(done);
        };
        let over = over.after(self.exchange.progress(true));
        if let Some(call) = done.call.take() {
            self.learn_timeout(call, &over);
        }
        Err(over)
    }

    /// Answers with the reason of a failure, of which those learn whose fault it is.
    pub(super) fn refuse(mut self, failed: &Failed) -> Box<Answer> {
        let late = [
            Reason::RequestTimeout,
            Reason::PerTryTimeout,
            Reason::DeadlineExceeded,
        ];
        if let Some(concurrency) = self.concurrency
            && !late.contains(&failed.reason)
        {
            // One that waited too long has seen that it is slow, any other has seen nothing.
            concurrency.failed();
        }
        if failed.fault == Fault::Endpoint {
            self.calls.finish(CallClass::Failure, &self.exchange.ledger);
        }
        // The head of a request that was sent may be gone, and its span has been told.
        if self.trip.made == 0 {
            self.exchange.begin_span(&self.trip.sending.parts);
        }
        self.exchange.refuse(failed)
    }

    /// Hands the response of an endpoint on. What is held is given back with its end.
    pub(super) fn answer(self: Box<Self>, done: Done) -> Answer {
        let Self {
            mut exchange,
            mut calls,
            held,
            mut concurrency,
            policy,
            patience,
            trip,
            cookie,
            ..
        } = *self;
        let reason = done.reason();
        let Done {
            mut response,
            connection,
            call,
        } = done;
        calls.on_response(crate::clock::now());
        if let Some(concurrency) = &mut concurrency {
            concurrency.on_answer(response.headers());
        }
        exchange.ledger.answer(response.status(), reason);
        exchange.ledger.note_head(response.headers());
        // An older sidecar has kept them for now.
        let carried = take_carried(response.headers_mut());
        carried.into_iter().for_each(interims::pass_on);
        if let Some(cookie) = cookie {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
        let worker = exchange.worker();
        let ends = (Side::Outbound, connection.signal());
        let guard = Box::new(Answered {
            ledger: exchange.ledger,
            call,
            calls,
            policy: Arc::clone(policy),
            upload: exchange.upload,
            concurrency,
            held: Held {
                _request: held,
                _retry: trip.retrying,
                connection,
                _stream: exchange.stream,
            },
        });
        let response = match exchange.upgrade {
            Some(client) if is_agreed(&response) => {
                let idle = policy.stream_idle_timeout;
                join(&worker.shared, ends, idle, response, client, guard)
            }
            Some(_) | None => {
                let activity = patience.activity().cloned();
                relayed(response, guard, activity)
            }
        };
        edited(exchange.routed, response)
    }
}
