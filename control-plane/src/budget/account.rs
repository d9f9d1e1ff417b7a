//! What one instance uses, and what all of them use together.

use std::time::{Duration, Instant};

use super::{Bucket, Limits, Rate, Reason, Refusal, StreamKind, THROTTLED_MAX};

/// Microseconds for which an instance is held back: a tenth of each second is made good.
const PATIENCE: Rate = Rate::new(100_000, THROTTLED_MAX.as_micros() as u64);

/// What one instance uses now. Every method that takes something either takes all of it or nothing.
#[derive(Debug)]
pub struct Account {
    connections: usize,
    calls: usize,
    names: usize,
    unanswered: usize,
    call_rate: Bucket,
    messages: Bucket,
    received: Bucket,
    /// Microseconds for which it may still be held back before it is refused.
    patience: Bucket,
}

/// What all instances use together.
///
/// Once half of something is used, each instance gets no more of it than its equal share: what is
/// left is for those who have little. When all of it is used, nobody gets more.
#[derive(Debug, Default)]
pub struct Accounts {
    instances: usize,
    connections: usize,
    names: usize,
}

impl Accounts {
    /// An instance has come.
    pub fn begin_instance(&mut self) {
        self.instances += 1;
    }

    /// An instance has gone.
    pub fn end_instance(&mut self) {
        self.instances = self.instances.saturating_sub(1);
    }

    /// Connections of all instances.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// Names of all instances.
    pub fn names(&self) -> usize {
        self.names
    }

    fn allowed(&self, used: usize, max: usize, own_max: usize) -> usize {
        if used < max / 2 {
            own_max
        } else {
            own_max.min(max / self.instances.max(1)).max(1)
        }
    }
}

/// Something that instances take some of, with what is used of it.
struct Taken<'a> {
    reason: Reason,
    /// By the instance, and by all of them, if it is given.
    own: usize,
    total: usize,
    own_max: usize,
    total_max: usize,
    /// What the own limit is counted over, after `per instance`.
    scope: &'a str,
    /// What an instance can do that exceeds its own limit, or meets that of all.
    advice: &'a str,
    total_advice: &'a str,
}

impl Taken<'_> {
    /// `before` is what all instances use without what is asked for now.
    fn check(&self, before: usize, all: &Accounts) -> Result<(), Refusal> {
        let allowed = all.allowed(before, self.total_max, self.own_max);
        if self.own > allowed {
            return Err(Refusal::count(
                self.reason,
                self.own,
                format_args!("{allowed} per instance{}", self.scope),
                self.advice,
            ));
        }
        if self.total > self.total_max {
            return Err(Refusal::count(
                self.reason,
                format_args!("{} of all instances", self.total),
                format_args!("{} of all instances together", self.total_max),
                self.total_advice,
            ));
        }
        Ok(())
    }
}

impl Account {
    /// Of an instance that uses nothing.
    pub fn new(now: Instant) -> Self {
        Self {
            connections: 0,
            calls: 0,
            names: 0,
            unanswered: 0,
            call_rate: Bucket::full(now),
            messages: Bucket::full(now),
            received: Bucket::full(now),
            patience: Bucket::full(now),
        }
    }

    /// Takes a connection.
    pub fn begin_connection(&mut self, all: &mut Accounts, limits: &Limits) -> Result<(), Refusal> {
        let found = self.connections + 1;
        let taken = Taken {
            reason: Reason::Connections,
            own: found,
            total: all.connections + 1,
            own_max: limits.connections_per_instance,
            total_max: limits.connections,
            scope: "",
            advice: "close connections that are not needed any more",
            total_advice: "connect again later; an operator may raise the limit of open files \
                           (ulimit -Hn)",
        };
        taken.check(all.connections, all)?;
        self.connections = found;
        all.connections += 1;
        Ok(())
    }

    /// Gives a connection back.
    pub fn end_connection(&mut self, all: &mut Accounts) {
        self.connections = self.connections.saturating_sub(1);
        all.connections = all.connections.saturating_sub(1);
    }

    /// Takes a call; it is given back when its answer has ended.
    pub fn begin_call(&mut self, limits: &Limits, now: Instant) -> Result<(), Refusal> {
        let (found, allowed) = (self.calls + 1, limits.calls_per_instance);
        if found > allowed {
            return Err(Refusal::count(
                Reason::Calls,
                found,
                format_args!("{allowed} at the same time per instance"),
                "end calls before beginning others",
            ));
        }
        let rate = limits.call_rate;
        self.call_rate.take(rate, 1, now).map_err(|wait| {
            Refusal::count(
                Reason::CallRate,
                format_args!("more than {} calls a second", rate.per_second),
                format_args!(
                    "{} a second per instance, {} at once",
                    rate.per_second, rate.burst
                ),
                &format!("try again in {} ms", wait.as_millis().max(1)),
            )
        })?;
        self.calls = found;
        Ok(())
    }

    /// Gives a call back.
    pub fn end_call(&mut self) {
        self.calls = self.calls.saturating_sub(1);
    }

    /// Takes a message that was received; how long the next one has to wait. Refused is an instance
    /// that had to be held back for [`THROTTLED_MAX`], which a pause makes good only slowly.
    pub fn charge_message(&mut self, limits: &Limits, now: Instant) -> Result<Duration, Refusal> {
        let rate = limits.message_rate;
        if self.messages.take(rate, 1, now).is_ok() {
            return Ok(Duration::ZERO);
        }
        let wait = self.messages.charge(rate, 1, now);
        let micros = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        let held_back = self.patience.take(PATIENCE, micros, now);
        held_back.map(|()| wait).map_err(|_exhausted| {
            Refusal::count(
                Reason::Messages,
                format_args!(
                    "more than {} messages a second for more than {} s",
                    rate.per_second,
                    THROTTLED_MAX.as_secs()
                ),
                format_args!(
                    "{} a second per instance, {} at once",
                    rate.per_second, rate.burst
                ),
                "put more names into one message",
            )
        })
    }

    /// Takes bytes that were received; how long nothing more may be read.
    pub fn charge_received(&mut self, bytes: u64, limits: &Limits, now: Instant) -> Duration {
        self.received.charge(limits.received_rate, bytes, now)
    }

    /// A stream subscribes to `after` names that subscribed to `before`.
    pub fn set_names(
        &mut self,
        before: usize,
        after: usize,
        all: &mut Accounts,
        limits: &Limits,
    ) -> Result<(), Refusal> {
        if after > before {
            let added = after - before;
            let taken = Taken {
                reason: Reason::Names,
                own: self.names + added,
                total: all.names + added,
                own_max: limits.names_per_instance,
                total_max: limits.names,
                scope: ", over all streams and kinds",
                advice: "unsubscribe from names that are not used",
                total_advice: "ask again later, for fewer names",
            };
            taken.check(all.names, all)?;
        }
        self.names = (self.names + after).saturating_sub(before);
        all.names = (all.names + after).saturating_sub(before);
        Ok(())
    }

    /// Names it subscribes to, over all its streams.
    pub fn names(&self) -> usize {
        self.names
    }

    /// Whether a push may be sent to it: one to a stream with nothing unanswered always may.
    pub fn may_push(&self, unanswered_by_stream: usize, limits: &Limits) -> bool {
        unanswered_by_stream == 0 || self.unanswered < limits.unanswered_bytes_per_instance
    }

    /// Unanswered bytes of one of its streams have changed.
    pub fn set_unanswered(&mut self, before: usize, after: usize) {
        self.unanswered = (self.unanswered + after).saturating_sub(before);
    }

    /// Whether forgetting it changes nothing.
    pub fn is_unused(&self, now: Instant) -> bool {
        self.connections == 0
            && self.calls == 0
            && self.names == 0
            && self.unanswered == 0
            && self.call_rate.is_full(now)
            && self.messages.is_full(now)
            && self.patience.is_full(now)
            && self.received.is_full(now)
    }
}

/// Streams of one kind that are too many.
pub(crate) fn too_many_streams(kind: StreamKind, limits: &Limits) -> Refusal {
    let allowed = limits.streams_per_kind;
    Refusal::count(
        Reason::Streams,
        format_args!("{} of kind {}", allowed + 1, kind.as_str()),
        format_args!("{allowed} per instance and kind"),
        "this one is the oldest and ends; use the newer ones",
    )
}

/// What a certificate that opened a connection or a stream is worth later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateState {
    /// It is valid.
    Valid,
    /// It has ended; the instance has proved a newer one that is valid, or still has time to. What
    /// stands goes on, nothing new begins.
    Ended,
    /// It has ended, and nothing vouches for the instance any more.
    Over,
}

/// What a certificate that is valid until `not_after` is worth, when its instance has proved one
/// that is valid until `proved_until`; all in seconds since the Unix epoch.
pub fn standing(not_after: i64, proved_until: i64, now: i64, grace: Duration) -> CertificateState {
    let grace = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
    if now < not_after {
        CertificateState::Valid
    } else if now < proved_until.max(not_after).saturating_add(grace) {
        CertificateState::Ended
    } else {
        CertificateState::Over
    }
}
