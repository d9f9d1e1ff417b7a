//! Active health checks: what is asked of an endpoint, when, and when the answers change what is
//! thought of it.
//!
//! [`Health`] counts and decides; what follows from its [`Verdict`] is the breaker's
//! ([`crate::breaker::Breaker::on_check`]), which is the one state of an endpoint.

mod budget;
mod config;
pub mod grpc;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use budget::{CHECKING_PEERS_MAX, CHECKS_PER_SECOND, CheckBudget};
pub use config::{
    Check, HealthCheck, HttpCheck, InitialState, MAX_CHECK_HEADERS, MAX_CHECK_INTERVAL,
    MAX_CHECK_TEXT, MAX_CHECK_THRESHOLD, MAX_CHECK_TIMEOUT, MIN_CHECK_INTERVAL,
};

use crate::fault::Fault;
use crate::reason::Reason;
use crate::time::Instant;

/// The longest wait between checks of an endpoint of which nothing is known yet.
const SOON: Duration = Duration::from_secs(1);

/// Why a check failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckFailure {
    /// Answered with a status that is not expected.
    Status(u16),
    /// Answered by the gRPC health protocol, and not with SERVING.
    Serving(grpc::Serving),
    /// The gRPC call of the check failed with this code.
    GrpcStatus(u32),
    /// Answered with something that is no answer to the question.
    Malformed,
    /// Not answered in time.
    Timeout,
    /// The connection broke.
    Reset,
    /// A sidecar says why there is no answer.
    Mesh(Reason),
}

impl CheckFailure {
    /// What an answer of a sidecar says of the endpoint; `None` where it says nothing. A limit that
    /// is reached, a caller who may not call and a sidecar without a certificate are not its doing:
    /// to put it out would send the others what it has just refused.
    pub fn of_reason(reason: Reason) -> Option<Self> {
        match (reason, reason.fault()) {
            // The application has not answered in the time that the check has.
            (Reason::DeadlineExceeded, _) => Some(Self::Timeout),
            (_, Fault::Endpoint) => Some(Self::Mesh(reason)),
            (_, Fault::Caller | Fault::Mesh | Fault::Nobody) => None,
        }
    }
}

impl fmt::Display for CheckFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "status {status}"),
            Self::Serving(serving) => f.write_str(serving.as_str()),
            Self::GrpcStatus(code) => write!(f, "gRPC status {code}"),
            Self::Malformed => f.write_str("not an answer"),
            Self::Timeout => f.write_str("no answer in time"),
            Self::Reset => f.write_str("a connection that broke"),
            Self::Mesh(reason) => f.write_str(reason.as_str()),
        }
    }
}

/// What checks say of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is well.
    Healthy,
    /// It is not.
    Unhealthy {
        /// Checks that failed in a row.
        in_a_row: u32,
        /// Why the last of them did.
        last: CheckFailure,
    },
    /// It was never checked, and counts as unwell until a check has passed.
    Unchecked,
}

/// What checks have found out about one endpoint, and when the next is due.
#[derive(Debug, Clone)]
pub struct Health {
    config: Arc<HealthCheck>,
    healthy: bool,
    /// Results in a row that are as the last: passed or not; `None` before the first.
    run: Option<(bool, u32)>,
    /// Whether enough was seen to check at the ordinary pace.
    settled: bool,
    /// Whether a check has ever passed.
    passed: bool,
    due: Instant,
}

impl Health {
    /// Nothing is known. The first check is due soon, at a random time within [`SOON`] or the
    /// interval, whichever is shorter: many endpoints are not checked all at once.
    pub fn new(config: Arc<HealthCheck>, now: Instant, random: u64) -> Self {
        Self {
            healthy: config.initial == InitialState::Healthy,
            run: None,
            settled: false,
            passed: false,
            due: now + first_wait(&config, random),
            config,
        }
    }

    /// The parameters.
    pub fn config(&self) -> &Arc<HealthCheck> {
        &self.config
    }

    /// Exchanges the parameters. What was found stays; what was counted towards the opposite does
    /// too, unless something else is asked now. The next check is due soon.
    pub fn set_config(&mut self, config: Arc<HealthCheck>, now: Instant, random: u64) {
        if config.check != self.config.check {
            self.run = None;
        }
        self.due = self.due.min(now + first_wait(&config, random));
        self.config = config;
    }

    /// When the next check is to begin.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Whether checks say that it is well.
    pub fn is_healthy(&self) -> bool {
        self.healthy
    }

    /// What is thought of it where no check has been made.
    pub fn initially(&self) -> Option<Verdict> {
        (!self.healthy && self.run.is_none()).then_some(Verdict::Unchecked)
    }

    /// A check has ended at `now`; what is thought of the endpoint, where that is something else
    /// now. `random` is for the jitter of the next check.
    pub fn on_result(
        &mut self,
        result: Result<(), CheckFailure>,
        now: Instant,
        random: u64,
    ) -> Option<Verdict> {
        let passed = result.is_ok();
        let in_a_row = match self.run {
            Some((before, count)) if before == passed => count.saturating_add(1),
            Some(_) | None => 1,
        };
        self.run = Some((passed, in_a_row));
        let config = &self.config;
        let needed = match (passed, self.passed) {
            // One that began as unwell is taken in by its first success.
            (true, false) => 1,
            (true, true) => config.healthy_threshold,
            (false, _) => config.unhealthy_threshold,
        };
        let decided = in_a_row >= needed.max(1);
        self.settled |= passed || decided;
        self.passed |= passed;
        self.due = now + self.wait(self.settled, random);
        if !decided || self.healthy == passed {
            return None;
        }
        self.healthy = passed;
        Some(match result {
            Ok(()) => Verdict::Healthy,
            Err(last) => Verdict::Unhealthy { in_a_row, last },
        })
    }

    /// A check has ended at `now` and says nothing of the endpoint: what was counted stays.
    pub fn on_silence(&mut self, now: Instant, random: u64) {
        self.due = now + self.wait(true, random);
    }

    /// From the end of one check to the beginning of the next.
    fn wait(&self, settled: bool, random: u64) -> Duration {
        let interval = if settled {
            self.config.interval
        } else {
            self.config.interval.min(SOON)
        };
        let share = self.config.jitter.clamp(0.0, 1.0) * fraction(random);
        interval.mul_f64(1.0 - share)
    }
}

fn first_wait(config: &HealthCheck, random: u64) -> Duration {
    config.interval.min(SOON).mul_f64(fraction(random))
}

/// 0 to 1.
fn fraction(random: u64) -> f64 {
    random as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests;
