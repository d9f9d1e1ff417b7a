//! The two clocks: one that only goes forward, for how long something may take, and the wall clock,
//! for what certificates and people say.

use std::fmt;
use std::sync::LazyLock;
use std::time::{Instant as Monotonic, SystemTime, UNIX_EPOCH};

use weft_core::time::Instant;

/// Tells the time.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Time since the process began. It only goes forward: a step of the wall clock does not show.
    fn now(&self) -> Instant;

    /// The wall clock.
    fn wall(&self) -> SystemTime;

    /// The wall clock in whole seconds since the Unix epoch.
    fn unix_seconds(&self) -> i64 {
        let since = self.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    }
}

/// The clocks of the system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        static BEGAN: LazyLock<Monotonic> = LazyLock::new(Monotonic::now);
        let elapsed = BEGAN.elapsed().as_nanos();
        Instant::from_nanos(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// Clocks that stand still until a test sets them.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct TestClock {
    times: std::sync::Mutex<(Instant, SystemTime)>,
}

#[cfg(test)]
impl TestClock {
    /// Begins at the time of now.
    pub(crate) fn start() -> std::sync::Arc<Self> {
        let times = (Instant::from_nanos(0), SystemTime::now());
        std::sync::Arc::new(Self {
            times: std::sync::Mutex::new(times),
        })
    }

    /// Time passes, on both clocks.
    pub(crate) fn pass(&self, by: std::time::Duration) {
        let mut times = self.times.lock().unwrap();
        times.0 = times.0 + by;
        times.1 += by;
    }

    /// Somebody sets the wall clock forward.
    pub(crate) fn step(&self, by: std::time::Duration) {
        self.times.lock().unwrap().1 += by;
    }
}

#[cfg(test)]
impl Clock for TestClock {
    fn now(&self) -> Instant {
        self.times.lock().unwrap().0
    }

    fn wall(&self) -> SystemTime {
        self.times.lock().unwrap().1
    }
}
