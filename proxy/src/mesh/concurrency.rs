//! Adaptive limits on requests, as requests meet them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use weft_core::adaptive::{AdaptiveConfig, Limiter, Permit, Priority, Rejected, Sample, View};
use weft_core::time::Instant;

use crate::http::Upload;

/// An answer that goes on for longer than this after it began is a stream.
const STREAM_AFTER: Duration = Duration::from_secs(1);

/// A limit that all workers share.
#[derive(Debug)]
pub struct Concurrency {
    limiter: Mutex<Limiter>,
}

/// A request within a limit, until its answer begins. Dropped before that, it was given up.
#[derive(Debug)]
pub struct UnderWay {
    shared: Arc<Concurrency>,
    state: State,
    /// When all of the request was there; `None` where it has no body.
    body: Option<Upload>,
}

#[derive(Debug)]
enum State {
    Waiting(Permit),
    /// What the answer took to begin, and when that was.
    Answered(Sample, Instant),
    Done,
}

impl Concurrency {
    /// A limit about which nothing is known yet.
    pub(super) fn new(config: AdaptiveConfig) -> Self {
        Self {
            limiter: Mutex::new(Limiter::new(config)),
        }
    }

    /// The limit before, with the parameters of now; a new one where there was none.
    pub(super) fn follow(before: Option<&Arc<Self>>, config: &AdaptiveConfig) -> Arc<Self> {
        let Some(before) = before else {
            return Arc::new(Self::new(*config));
        };
        let mut limiter = before.limiter();
        if limiter.config() != config {
            limiter.set_config(*config);
        }
        drop(limiter);
        Arc::clone(before)
    }

    /// A place for a request.
    ///
    /// # Errors
    ///
    /// When so many are under way as the limit says.
    pub fn try_acquire(
        self: &Arc<Self>,
        priority: Priority,
        body: Option<Upload>,
    ) -> Result<UnderWay, Rejected> {
        let now = crate::clock::now();
        let permit = self.limiter().try_acquire(now, priority)?;
        Ok(UnderWay {
            shared: Arc::clone(self),
            state: State::Waiting(permit),
            body,
        })
    }

    /// The limit, for people.
    pub fn view(&self) -> View {
        self.limiter().view()
    }

    fn limiter(&self) -> MutexGuard<'_, Limiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnderWay {
    /// Another attempt begins: what the answer takes counts from here.
    pub fn restart(&mut self) {
        if let State::Waiting(permit) = &mut self.state {
            permit.restart(crate::clock::now());
        }
    }

    /// The answer begins, with these fields. From here on it takes no place.
    pub fn on_answer(&mut self, headers: &HeaderMap) {
        let State::Waiting(mut permit) = std::mem::replace(&mut self.state, State::Done) else {
            return;
        };
        let now = crate::clock::now();
        let mut limiter = self.shared.limiter();
        let sent = self.body.as_ref().map(Upload::ended);
        // An answer to what is still being said is one of a conversation.
        let stream = is_event_stream(headers) || sent == Some(None);
        if stream {
            return limiter.release(permit);
        }
        if let Some(Some(sent)) = sent {
            permit.restart(sent);
        }
        self.state = State::Answered(limiter.on_answer(permit, now), now);
    }

    /// The answer has ended, and was as good as the application's answers are.
    pub fn succeeded(mut self, now: Instant) {
        if let State::Answered(sample, began) = std::mem::replace(&mut self.state, State::Done)
            && now.saturating_since(began) <= STREAM_AFTER
        {
            self.shared.limiter().on_sample(sample, now);
        }
    }

    /// There is no answer, or one that says nothing about the time that answers take.
    pub fn failed(mut self) {
        if let State::Waiting(permit) = std::mem::replace(&mut self.state, State::Done) {
            self.shared.limiter().release(permit);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let State::Waiting(permit) = std::mem::replace(&mut self.state, State::Done) {
            let now = crate::clock::now();
            self.shared.limiter().on_cancel(permit, now);
        }
    }
}

/// Server-sent events: an answer that ends when nobody listens any more.
fn is_event_stream(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn limit() -> Arc<Concurrency> {
        let config = AdaptiveConfig {
            initial: 2,
            min: 1,
            ..AdaptiveConfig::default()
        };
        Concurrency::follow(None, &config)
    }

    fn enter(limit: &Arc<Concurrency>) -> UnderWay {
        limit.try_acquire(Priority::Default, None).unwrap()
    }

    #[test]
    fn a_place_comes_back_in_every_way_and_once() {
        let limit = limit();
        type End = fn(UnderWay);
        let ends: [End; 5] = [
            drop,
            UnderWay::failed,
            |mut call| call.on_answer(&HeaderMap::new()),
            |mut call| {
                call.on_answer(&HeaderMap::new());
                call.on_answer(&HeaderMap::new());
                call.failed();
            },
            |mut call| {
                call.on_answer(&HeaderMap::new());
                call.succeeded(crate::clock::now());
            },
        ];
        for end in ends {
            let (call, _other) = (enter(&limit), enter(&limit));
            assert_eq!(limit.view().in_flight, 2);
            assert!(limit.try_acquire(Priority::Critical, None).is_err());
            end(call);
            assert_eq!(limit.view().in_flight, 1);
        }
        assert_eq!(limit.view().in_flight, 0);
    }

    #[test]
    fn streams_say_nothing() {
        let content = |text| HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(text))]);
        let events = "text/event-stream; charset=utf-8";
        // What the answer is, whether the request's body ended first, whether it says something.
        let cases = [
            ("text/plain", true, true),
            (events, true, false),
            ("text/plain", false, false),
        ];
        for (kind, whole, says) in cases {
            let limit = limit();
            let body = Upload::default();
            if whole {
                body.end();
            }
            let mut call = limit.try_acquire(Priority::Default, Some(body)).unwrap();
            call.on_answer(&content(kind));
            assert_eq!(limit.view().in_flight, 0);
            assert_eq!(
                matches!(call.state, State::Answered(..)),
                says,
                "{kind} {whole}"
            );
        }
        // After a second a single answer is enough to learn from, but not from one that goes on.
        for (millis, says) in [(1000, true), (1001, false)] {
            let limit = limit();
            let mut call = enter(&limit);
            call.on_answer(&HeaderMap::new());
            let State::Answered(_, began) = &call.state else {
                panic!("not answered");
            };
            let ended = *began + Duration::from_millis(millis);
            call.succeeded(ended);
            assert_eq!(limit.view().recent.is_some(), says, "{millis}");
        }
    }

    #[test]
    fn another_policy_keeps_what_is_known() {
        let limit = limit();
        let call = enter(&limit);
        let config = AdaptiveConfig {
            initial: 9,
            min: 5,
            ..AdaptiveConfig::default()
        };
        let same = Concurrency::follow(Some(&limit), &config);
        assert!(Arc::ptr_eq(&limit, &same));
        assert_eq!((limit.view().limit, limit.view().in_flight), (5, 1));
        call.failed();
    }
}
