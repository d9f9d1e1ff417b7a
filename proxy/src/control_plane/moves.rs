//! How a stream goes from one connection to the next.

use std::pin::Pin;

use tokio::time::{Sleep, sleep};
use tonic::Status;

use super::{Backoff, Line, Lines, described};

/// Opens a stream on each connection that comes in the place of the one before, beside the stream
/// that stands. That one is read and written all the while, and goes on where the next one cannot
/// be opened: it is tried again.
#[derive(Debug)]
pub struct Moves<'l, S> {
    lines: &'l mut Lines,
    /// What kind of stream, for the log.
    of: &'static str,
    state: State<S>,
    backoff: Backoff,
}

enum State<S> {
    /// The stream is on the newest connection.
    Settled,
    /// One is to be opened on the newest connection.
    Due,
    Opening(Pin<Box<dyn Future<Output = Result<S, Status>> + Send>>),
    /// It could not be opened.
    Pausing(Pin<Box<Sleep>>),
}

impl<S> std::fmt::Debug for State<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Settled => "Settled",
            Self::Due => "Due",
            Self::Opening(_) => "Opening",
            Self::Pausing(_) => "Pausing",
        })
    }
}

impl<'l, S> Moves<'l, S> {
    /// For a stream on the connection that `lines` returned last.
    pub fn new(of: &'static str, lines: &'l mut Lines) -> Self {
        Self {
            lines,
            of,
            state: State::Settled,
            backoff: Backoff::new(),
        }
    }

    /// Whether the next stream is being opened: the control plane may have taken it already.
    pub fn is_opening(&self) -> bool {
        matches!(self.state, State::Opening(_))
    }

    /// The stream on the next connection, once it is open. Cancel safe: what is under way goes on
    /// with the next call.
    pub async fn next<F>(&mut self, mut open: impl FnMut(Line) -> F) -> S
    where
        F: Future<Output = Result<S, Status>> + Send + 'static,
    {
        loop {
            let line = match &mut self.state {
                State::Settled => self.lines.next().await,
                State::Due => self.lines.current().await,
                State::Pausing(pause) => tokio::select! {
                    () = pause.as_mut() => {
                        self.state = State::Due;
                        continue;
                    }
                    line = self.lines.next() => line,
                },
                State::Opening(opening) => tokio::select! {
                    biased;
                    opened = opening.as_mut() => match opened {
                        Ok(stream) => {
                            self.state = State::Settled;
                            self.backoff = Backoff::new();
                            return stream;
                        }
                        Err(status) => {
                            self.failed(&status);
                            continue;
                        }
                    },
                    line = self.lines.next() => line,
                },
            };
            self.state = State::Opening(Box::pin(open(line)));
        }
    }

    /// The stream that is being opened, if one is and that succeeds; then the moves are over.
    pub async fn finish(self) -> Option<S> {
        match self.state {
            State::Opening(opening) => opening.await.ok(),
            State::Settled | State::Due | State::Pausing(_) => None,
        }
    }

    fn failed(&mut self, status: &Status) {
        let (stream, reason) = (self.of, described(status));
        let wait = self.backoff.next(fastrand::f64());
        tracing::warn!(stream, reason, retry_in = ?wait, "stays on the connection before");
        self.state = State::Pausing(Box::pin(sleep(wait)));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, interval};

    use super::*;
    use crate::control_plane::testing;

    #[tokio::test(start_paused = true)]
    async fn what_stands_goes_on_while_the_next_is_opened_and_where_that_fails() {
        let (standing, mut lines) = testing::lines();
        standing.send_replace(Some(testing::silent_line().await));
        let _first = lines.current().await;
        standing.send_replace(Some(testing::silent_line().await));

        let mut moves = Moves::new("test", &mut lines);
        let (mut opened, mut read) = (0, 0);
        let mut messages = interval(Duration::from_millis(10));
        let began = Instant::now();
        let next = loop {
            tokio::select! {
                next = moves.next(|_line| {
                    opened += 1;
                    let fails = opened < 4;
                    async move {
                        sleep(Duration::from_secs(1)).await;
                        match fails {
                            true => Err(Status::unavailable("as the test wants it")),
                            false => Ok("next"),
                        }
                    }
                }) => break next,
                _ = messages.tick() => read += 1,
            }
        };
        assert_eq!((next, opened), ("next", 4));
        let ticks = began.elapsed().as_millis() / 10;
        assert!(read >= ticks - 2, "{read} of {ticks}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_connection_is_not_kept_waiting_by_one_that_hangs() {
        let (standing, mut lines) = testing::lines();
        standing.send_replace(Some(testing::silent_line().await));
        let _first = lines.current().await;
        standing.send_replace(Some(testing::silent_line().await));
        let mut moves = Moves::new("test", &mut lines);
        let mut opened = 0;
        let newer = testing::silent_line().await;
        let renewed = async {
            sleep(Duration::from_secs(1)).await;
            standing.send_replace(Some(newer));
        };
        let next = moves.next(|_line| {
            opened += 1;
            let hangs = opened == 1;
            async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
                Ok(opened)
            }
        });
        let (next, ()) = tokio::join!(next, renewed);
        assert_eq!(next, 2);
        assert!(!moves.is_opening());
    }
}
