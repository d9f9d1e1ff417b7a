//! Whether the process works (`/healthz`) and whether it may be asked (`/readyz`).
//!
//! Loops that must never stand still have a [`Pulse`]; that the tasks live at all is
//! [`crate::supervise`]'s.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use futures_util::future::BoxFuture;
use http::StatusCode;
use tokio::time::{sleep, timeout};

/// A loop that has not come round for this long stands still.
pub const PULSE_MAX: Duration = Duration::from_secs(10);
/// How often a part is asked whether it answers.
const ASKED_EVERY: Duration = Duration::from_secs(2);
/// How soon a part that did not take the question is asked again.
const ASKED_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// How long a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// The last time that a loop came round.
#[derive(Debug)]
pub struct Pulse {
    last: Mutex<Instant>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            last: Mutex::new(Instant::now()),
        }
    }
}

impl Pulse {
    /// The loop comes round.
    pub fn beat(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Asks a part again and again, and beats whenever the part itself has answered, which `ask`
    /// says. Runs until the task is dropped.
    pub async fn keep_asking<F: Future<Output = bool>>(&self, ask: impl Fn() -> F) {
        loop {
            let pause = match ask().await {
                true => {
                    self.beat();
                    ASKED_EVERY
                }
                false => ASKED_AGAIN_AFTER,
            };
            sleep(pause).await;
        }
    }

    /// How long the loop has stood still, where that is too long.
    pub fn stands_still(&self, now: Instant) -> Option<Duration> {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let still = now.saturating_duration_since(last);
        (still > PULSE_MAX).then_some(still)
    }
}

/// Asks a part whether it works; the error says what it does not do.
type Probe = Box<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;
/// Says what should be looked at, a line for each.
type Notes = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// The answers of both paths.
#[derive(Default)]
pub struct Health {
    pulses: Vec<(&'static str, Arc<Pulse>)>,
    alive: Vec<(&'static str, Probe)>,
    ready: Vec<(&'static str, Probe)>,
    notes: Vec<Notes>,
    listening: AtomicBool,
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health")
            .field("pulses", &self.pulses)
            .field("listening", &self.listening)
            .finish_non_exhaustive()
    }
}

impl Health {
    /// A loop that must come round.
    #[must_use]
    pub fn with_pulse(mut self, name: &'static str, pulse: Arc<Pulse>) -> Self {
        self.pulses.push((name, pulse));
        self
    }

    /// A part without which the process does not work.
    #[must_use]
    pub fn with_alive<F>(
        mut self,
        name: &'static str,
        probe: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.alive.push((name, Box::new(move || Box::pin(probe()))));
        self
    }

    /// A part that has to have come so far before anybody may ask.
    #[must_use]
    pub fn with_ready<F>(
        mut self,
        name: &'static str,
        probe: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.ready.push((name, Box::new(move || Box::pin(probe()))));
        self
    }

    /// What `/readyz` says besides: who may be asked although something should be looked at.
    #[must_use]
    pub fn with_notes(mut self, notes: impl Fn() -> Vec<String> + Send + Sync + 'static) -> Self {
        self.notes.push(Box::new(notes));
        self
    }

    /// Whether sidecars are listened for.
    pub fn set_listening(&self, listening: bool) {
        self.listening.store(listening, Ordering::Relaxed);
    }

    /// `/healthz`: 200, or 503 with a line for everything that does not work.
    pub async fn healthz(&self) -> (StatusCode, String) {
        answer(self.failures().await)
    }

    /// `/readyz`: as [`Health::healthz`], and whether there is something to be told to sidecars. The notes
    /// follow, whatever the status.
    pub async fn readyz(&self) -> (StatusCode, String) {
        let mut failures = self.failures().await;
        if !self.listening.load(Ordering::Relaxed) {
            failures.push("listener: no sidecars are listened for (starting, or stopping)".into());
        }
        probe(&self.ready, &mut failures).await;
        let (status, mut text) = answer(failures);
        for note in self.notes.iter().flat_map(|notes| notes()) {
            text.push_str(&note);
            text.push('\n');
        }
        (status, text)
    }

    async fn failures(&self) -> Vec<String> {
        let now = Instant::now();
        let pulses = self.pulses.iter().filter_map(|(name, pulse)| {
            let still = pulse.stands_still(now)?;
            Some(format!("{name}: has stood still for {} s", still.as_secs()))
        });
        let mut failures: Vec<String> = pulses.collect();
        probe(&self.alive, &mut failures).await;
        failures
    }
}

/// Both paths, for whoever serves HTTP.
pub fn router(health: &Arc<Health>) -> Router {
    let (alive, ready) = (Arc::clone(health), Arc::clone(health));
    Router::new()
        .route("/healthz", get(async move || alive.healthz().await))
        .route("/readyz", get(async move || ready.readyz().await))
}

async fn probe(probes: &[(&'static str, Probe)], failures: &mut Vec<String>) {
    for (name, probe) in probes {
        match timeout(PROBE_TIMEOUT, probe()).await {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => failures.push(format!("{name}: {reason}")),
            Err(_elapsed) => {
                failures.push(format!("{name}: no answer within {PROBE_TIMEOUT:?}"));
            }
        }
    }
}

fn answer(failures: Vec<String>) -> (StatusCode, String) {
    if failures.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, failures.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ok() -> Result<(), String> {
        Ok(())
    }

    #[tokio::test]
    async fn what_does_not_work_is_named() {
        let health = Health::default()
            .with_alive("store", ok)
            .with_ready("compiled", async || Err("nothing yet".to_owned()));
        assert_eq!(health.healthz().await, (StatusCode::OK, "ok\n".to_owned()));
        let (status, text) = health.readyz().await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(
            text.contains("listener: ") && text.contains("compiled: nothing yet\n"),
            "{text}"
        );
        let health = Health::default().with_alive("store", async || Err("dead".to_owned()));
        health.set_listening(true);
        let expected = (StatusCode::SERVICE_UNAVAILABLE, "store: dead\n".to_owned());
        assert_eq!(health.healthz().await, expected);
        assert_eq!(health.readyz().await, expected);
        let health = Health::default().with_notes(|| vec!["stale: pods".to_owned()]);
        health.set_listening(true);
        let expected = (StatusCode::OK, "ok\nstale: pods\n".to_owned());
        assert_eq!(health.readyz().await, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_does_not_answer_does_not_work() {
        let health = Health::default().with_alive("store", std::future::pending);
        let (status, text) = health.healthz().await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(text, "store: no answer within 5s\n");
    }

    #[test]
    fn a_loop_that_comes_round_does_not_stand_still() {
        let pulse = Pulse::default();
        let now = Instant::now();
        assert_eq!(pulse.stands_still(now + PULSE_MAX / 2), None);
        let later = now + 2 * PULSE_MAX;
        assert!(pulse.stands_still(later).is_some());
        pulse.beat();
        assert_eq!(pulse.stands_still(Instant::now()), None);
    }
}
