//! The one place that reads the clocks for core.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use pin_project_lite::pin_project;

thread_local! {
    /// What [`now`] says in the turn under way.
    static TURN: Cell<Option<weft_core::time::Instant>> = const { Cell::new(None) };
}

/// Now, in core's terms: nanoseconds since the first call in this process. Within a [`Turn`] it is
/// always the same.
pub fn now() -> weft_core::time::Instant {
    TURN.get().unwrap_or_else(read)
}

/// While it is there, this thread's clock stands still: a connection's task asks for the time dozens of
/// times for each request, and works for microseconds until it waits again. The clock is read at the first
/// of nested ones.
#[derive(Debug)]
#[must_use = "the clock stands still until it is dropped"]
pub(crate) struct Turn {
    is_outer: bool,
}

impl Turn {
    /// Stops the clock.
    pub(crate) fn begin() -> Self {
        let is_outer = TURN.get().is_none();
        if is_outer {
            TURN.set(Some(read()));
        }
        Self { is_outer }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.is_outer {
            TURN.set(None);
        }
    }
}

pin_project! {
    /// Polls a future in a turn of its own each time.
    #[derive(Debug)]
    pub(crate) struct InTurns<F> {
        #[pin]
        future: F,
    }
}

/// The future, in turns.
pub(crate) fn in_turns<F>(future: F) -> InTurns<F> {
    InTurns { future }
}

impl<F: Future> Future for InTurns<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let _turn = Turn::begin();
        self.project().future.poll(cx)
    }
}

fn read() -> weft_core::time::Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    let elapsed = ORIGIN.get_or_init(Instant::now).elapsed();
    weft_core::time::Instant::from_nanos(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
}

/// Seconds since the Unix epoch, as certificates count them.
pub fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_stands_still_in_a_turn_and_goes_on_behind_it() {
        let passes = |before| {
            let waits = std::iter::repeat_with(now).take(1_000_000);
            waits.into_iter().any(|now| now > before)
        };
        let outer = Turn::begin();
        let before = now();
        let inner = Turn::begin();
        assert!(!passes(before));
        drop(inner);
        assert!(!passes(before));
        drop(outer);
        assert!(passes(before));
    }

    #[tokio::test]
    async fn each_poll_is_a_turn() {
        let (before, behind) = in_turns(async {
            let before = now();
            while read() == before {
                std::hint::spin_loop();
            }
            assert_eq!(now(), before);
            tokio::task::yield_now().await;
            (before, now())
        })
        .await;
        assert!(before < behind);
    }
}
