//! Keeps the one connection that a sidecar has to its control plane.

use std::future::pending;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::{Backoff, ConnectError, Line, Trusting, dial};
use crate::clock::unix_now;
use crate::telemetry::metrics::Metrics;

/// When the roots of the mesh change, sidecars connect anew spread over this time.
const ROOTS_SPREAD: Duration = Duration::from_secs(2);

/// Makes the connection, notices its loss, and makes it again: with backoff when it was lost, and
/// when the certificate was renewed or the roots have changed. In that case the old one stands until
/// the new one does; it closes when its streams have moved.
#[derive(Debug)]
pub struct Keeper {
    address: String,
    trusting: watch::Receiver<Option<Trusting>>,
    standing: Standing,
}

impl Keeper {
    /// Not connected yet. `trusting` says as whom to come, and changes when that does.
    pub fn new(
        address: String,
        trusting: watch::Receiver<Option<Trusting>>,
        metrics: Metrics,
    ) -> Self {
        Self {
            address,
            trusting,
            standing: Standing {
                lines: watch::Sender::new(None),
                driver: None,
                since: Instant::now(),
                metrics,
            },
        }
    }

    /// For those who have streams on it.
    pub fn lines(&self) -> Lines {
        Lines {
            current: self.standing.lines.subscribe(),
        }
    }

    /// Runs until the task is dropped.
    pub async fn run(self) {
        let Self {
            address,
            mut trusting,
            mut standing,
        } = self;
        let mut backoff = Backoff::new();
        loop {
            let Some(current) = standing.during(usable(&mut trusting)).await else {
                return;
            };
            let connecting = Box::pin(proved(&address, &current));
            match standing.during(connecting).await {
                Ok((line, driver)) => {
                    tracing::info!(address, "connected to the control plane");
                    standing.replace(line, driver);
                    tokio::select! {
                        lasted = standing.lost() => {
                            backoff.stood(lasted);
                        }
                        changed = trusting.changed() => {
                            if changed.is_err() {
                                return;
                            }
                            let wait = spread(&current, trusting.borrow().as_ref());
                            standing.during(sleep(wait)).await;
                            continue;
                        }
                    }
                }
                Err(error) => {
                    standing.metrics.totals().control_plane_failures.inc();
                    tracing::warn!(%error, "not connected to the control plane");
                }
            }
            standing.during(sleep(backoff.next(fastrand::f64()))).await;
        }
    }
}

/// Connects, and waits until the control plane has answered: with TLS 1.3 it may refuse our
/// certificate when the handshake is over for us.
async fn proved(
    address: &str,
    trusting: &Trusting,
) -> Result<(Line, JoinHandle<String>), ConnectError> {
    let (line, driver) = dial(address, trusting).await?;
    let mut driver = tokio::spawn(driver);
    let reason = tokio::select! {
        answered = line.proved() => match answered {
            Ok(()) => return Ok((line, driver)),
            Err(reason) => reason,
        },
        ended = &mut driver => ended.unwrap_or_else(|failed| failed.to_string()),
    };
    Err(ConnectError::Unreachable {
        address: address.to_owned(),
        reason,
    })
}

/// As whom to come, once there is a certificate that is valid; `None` when there will be none.
async fn usable(trusting: &mut watch::Receiver<Option<Trusting>>) -> Option<Trusting> {
    loop {
        let current = trusting.borrow_and_update().clone();
        if let Some(current) = current
            && current.not_after().is_none_or(|end| unix_now() < end)
        {
            return Some(current);
        }
        trusting.changed().await.ok()?;
    }
}

/// How long to wait before connecting anew. Renewals are spread already; new roots reach all
/// sidecars at the same time.
fn spread(before: &Trusting, now: Option<&Trusting>) -> Duration {
    let renewed = now.is_none_or(|now| now.not_after() != before.not_after());
    if renewed {
        Duration::ZERO
    } else {
        ROOTS_SPREAD.mul_f64(fastrand::f64())
    }
}

/// The connection that stands, if one does.
#[derive(Debug)]
struct Standing {
    lines: watch::Sender<Option<Line>>,
    /// Ends, with the reason, when no stream can be opened on the connection any more.
    driver: Option<JoinHandle<String>>,
    since: Instant,
    metrics: Metrics,
}

impl Standing {
    /// Puts a connection in the place of the one that stood, which goes on until its streams have
    /// moved.
    fn replace(&mut self, line: Line, driver: JoinHandle<String>) {
        self.driver = Some(driver);
        self.since = Instant::now();
        self.metrics.totals().control_plane_connected.inc();
        self.metrics.set_control_plane_connected(true);
        self.lines.send_replace(Some(line));
    }

    /// Until the connection is lost; how long it stood. Pending for ever while there is none.
    async fn lost(&mut self) -> Duration {
        let Some(driver) = &mut self.driver else {
            return pending().await;
        };
        let reason = driver.await;
        let reason = reason.unwrap_or_else(|failed| failed.to_string());
        self.driver = None;
        self.lines.send_replace(None);
        self.metrics.set_control_plane_connected(false);
        let lasted = self.since.elapsed();
        tracing::warn!(reason, ?lasted, "connection to the control plane lost");
        lasted
    }

    /// Does something, and takes note if the connection is lost meanwhile.
    async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _lasted = self.lost() => {}
            }
        }
    }
}

/// The connection as it is now, for one who has a stream on it.
#[derive(Debug, Clone)]
pub struct Lines {
    current: watch::Receiver<Option<Line>>,
}

impl Lines {
    #[cfg(test)]
    pub(super) fn of(current: watch::Receiver<Option<Line>>) -> Self {
        Self { current }
    }

    /// The connection that stands; waits while there is none.
    pub async fn current(&mut self) -> Line {
        let line = self.current.borrow_and_update().clone();
        match line {
            Some(line) => line,
            None => self.next().await,
        }
    }

    /// The connection that comes in the place of the one that was returned last.
    pub async fn next(&mut self) -> Line {
        loop {
            if self.current.changed().await.is_err() {
                // The sidecar ends.
                return pending().await;
            }
            let line = self.current.borrow_and_update().clone();
            if let Some(line) = line {
                return line;
            }
        }
    }

    /// Waits before a stream is opened again: so long, or until there is another connection.
    pub async fn pause(&mut self, wait: Duration) {
        tokio::select! {
            () = sleep(wait) => {}
            _line = self.next() => {}
        }
    }
}
