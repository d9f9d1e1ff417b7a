//! The end of a sidecar: what it serves comes to an end before it is cut.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{interval, sleep, timeout};
use weft_core::leaving::LeavingTime;
use weft_core::time::Instant;

use super::Sidecar;
use crate::drain::Phase;

/// Between telling clients to go elsewhere and closing listeners.
const LEAVE_PAUSE: Duration = Duration::from_millis(50);
/// At the end, for what was logged to be written.
const LOG_FLUSH: Duration = Duration::from_millis(200);

impl Sidecar {
    /// The leaving sequence: out of the registry, acknowledged, still accepting; then clients are
    /// told to go elsewhere, the application's listeners close, what runs finishes. The application
    /// reaches others until [`Sidecar::depart`]: it may need them to end.
    pub async fn leave(&mut self) {
        if let Some(leave) = self.leave.take() {
            let (done, left) = oneshot::channel();
            if leave.send(done).is_ok() {
                let limit = self.shared.config.timeouts.deregister + Duration::from_millis(500);
                let _at_most_so_long = timeout(limit, left).await;
            }
        }
        self.shared.drain.advance(Phase::Leaving);
        sleep(LEAVE_PAUSE).await;
        self.shared.drain.advance(Phase::Closing);
        let until = self.leaving_time().inbound_until();
        let connections = &self.shared.connections;
        wait_until(until, || connections.inbound() == 0).await;
    }

    /// Ends the application's connections to others as well, within what [`Sidecar::leave`] has left
    /// of the time.
    pub async fn depart(&mut self) {
        self.shared.drain.advance(Phase::Departing);
        let until = self.leaving_time().outbound_until();
        let connections = &self.shared.connections;
        wait_until(until, || connections.outbound() == 0).await;
    }

    fn leaving_time(&mut self) -> LeavingTime {
        let drain = self.shared.config.timeouts.drain;
        let began = || LeavingTime::new(crate::clock::now(), drain);
        *self.leaving_time.get_or_insert_with(began)
    }

    /// Says goodbye when the program has ended by itself: nothing is left to be drained.
    pub async fn leave_briefly(&mut self) {
        self.shared.drain.advance(Phase::Departing);
        if let Some(leave) = self.leave.take() {
            let (done, left) = oneshot::channel();
            if leave.send(done).is_ok() {
                let _at_most_so_long = timeout(self.shared.config.timeouts.deregister, left).await;
            }
        }
    }

    /// Cuts what is left.
    pub fn cut(&self) {
        self.shared.drain.advance(Phase::Cut);
    }

    /// Ends what is left: connections, admin, telemetry.
    pub async fn stop(self) {
        self.cut();
        self.admin.cancel();
        let ending = tokio::task::spawn_blocking(move || {
            for worker in self.workers {
                match worker.join() {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::error!(%error, "worker"),
                    Err(_panic) => tracing::error!("a worker has panicked"),
                }
            }
            if let Some(tracer) = self.tracer {
                tracer.shutdown(Duration::from_secs(2));
            }
            // Other holders of the log live as long as the runtime: what was handed over by now is
            // written within this.
            drop(self.shared);
            self.access_log_writer.wait(Duration::from_millis(100));
            if let Some(log) = self.log {
                log.flush(LOG_FLUSH);
            }
        });
        let _at_most_so_long = timeout(Duration::from_secs(5), ending).await;
    }
}

/// Waits for a condition, until a point in time at the latest.
async fn wait_until(until: Instant, is_met: impl Fn() -> bool) {
    let mut tick = interval(Duration::from_millis(10));
    while !is_met() && crate::clock::now() < until {
        tick.tick().await;
    }
}
