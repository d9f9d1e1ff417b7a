//! Which parts of a connection are to be polled again. One task drives a connection with all that is
//! done on it; each part has a waker of its own, so that a turn polls only what was woken.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

use futures_util::task::AtomicWaker;

/// The parts of one connection that were woken.
#[derive(Debug, Default)]
pub(super) struct Ready {
    woken: Mutex<Vec<u32>>,
    /// Whether there is something to do that is no part's.
    is_nudged: AtomicBool,
    /// Whether the connection is being driven: then it is not woken, and looks itself before it ends.
    is_driven: AtomicBool,
    /// The task that drives the connection.
    driver: AtomicWaker,
}

impl Ready {
    /// The task that drives the connection is polled.
    pub(super) fn begin_turn(&self, driver: &Waker) {
        self.driver.register(driver);
        self.is_driven.store(true, Ordering::SeqCst);
    }

    /// Nothing is left to do: the task is woken by whatever comes from now on. False where something has
    /// come already.
    #[must_use]
    pub(super) fn end_turn(&self) -> bool {
        self.is_driven.store(false, Ordering::SeqCst);
        let has_come = self.is_nudged.load(Ordering::SeqCst) || !self.lock().is_empty();
        if has_come {
            self.is_driven.store(true, Ordering::SeqCst);
        }
        !has_come
    }

    /// The turn ends before everything is done.
    pub(super) fn yield_turn(&self, driver: &Waker) {
        self.is_driven.store(false, Ordering::SeqCst);
        driver.wake_by_ref();
    }

    /// Has the connection driven.
    pub(super) fn nudge(&self) {
        self.is_nudged.store(true, Ordering::SeqCst);
        self.wake_driver();
    }

    /// What was nudged for is looked at now.
    pub(super) fn begin_nudged(&self) {
        self.is_nudged.store(false, Ordering::SeqCst);
    }

    fn wake_driver(&self) {
        if !self.is_driven.load(Ordering::SeqCst) {
            self.driver.wake();
        }
    }

    /// The parts that were woken since the last time, in their order, in exchange for an empty list.
    pub(super) fn take(&self, empty: &mut Vec<u32>) {
        std::mem::swap(&mut *self.lock(), empty);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u32>> {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part of a connection, by its number. It outlives what is done in it, so that a waker costs no
/// allocation for each request; a wake that comes too late polls whatever is there then.
#[derive(Debug)]
pub(super) struct Part {
    number: u32,
    is_woken: AtomicBool,
    ready: Arc<Ready>,
}

impl Part {
    pub(super) fn new(number: u32, ready: &Arc<Ready>) -> Arc<Self> {
        Arc::new(Self {
            number,
            is_woken: AtomicBool::new(false),
            ready: Arc::clone(ready),
        })
    }

    /// It is about to be polled: what wakes it from now on counts again.
    pub(super) fn begin_poll(&self) {
        self.is_woken.store(false, Ordering::Release);
    }

    /// Has it polled in the next turn, without waking the task that drives the connection.
    pub(super) fn mark(&self) {
        if !self.is_woken.swap(true, Ordering::AcqRel) {
            self.ready.lock().push(self.number);
        }
    }
}

impl Wake for Part {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_woken.swap(true, Ordering::AcqRel) {
            self.ready.lock().push(self.number);
            self.ready.wake_driver();
        }
    }
}

/// What a connection's socket wakes. The task that drives the connection is woken for much else: while its
/// socket says nothing new, a turn does not read.
#[derive(Debug)]
pub(super) struct Socket {
    /// Whether it was woken since the last time that there was nothing to read.
    is_woken: AtomicBool,
    ready: Arc<Ready>,
}

impl Socket {
    /// One that nobody has read from yet.
    pub(super) fn new(ready: &Arc<Ready>) -> Arc<Self> {
        Arc::new(Self {
            is_woken: AtomicBool::new(true),
            ready: Arc::clone(ready),
        })
    }

    /// Whether there may be something to read. It is about to be polled: what wakes it from now on counts.
    pub(super) fn begin_poll(&self) -> bool {
        self.is_woken.swap(false, Ordering::AcqRel)
    }

    /// Whether there may be something to read.
    pub(super) fn is_woken(&self) -> bool {
        self.is_woken.load(Ordering::Acquire)
    }

    /// There may be more to read.
    pub(super) fn mark(&self) {
        self.is_woken.store(true, Ordering::Release);
    }
}

impl Wake for Socket {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    /// Wakes the task even while it drives the connection: a socket that has had its share of the thread's
    /// time wakes whoever polls it, and is to be polled again behind all others.
    fn wake_by_ref(self: &Arc<Self>) {
        self.mark();
        self.ready.driver.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn each_part_is_told_once_until_it_is_polled() {
        let ready = Arc::<Ready>::default();
        let count = Arc::<Count>::default();
        let waker = Waker::from(Arc::clone(&count));
        ready.begin_turn(&waker);
        assert!(ready.end_turn());
        let parts: Vec<_> = (0..3).map(|number| Part::new(number, &ready)).collect();
        for number in [2, 0, 2, 2] {
            parts[number].wake_by_ref();
        }
        let mut woken = Vec::new();
        ready.take(&mut woken);
        assert_eq!(woken, [2, 0]);
        // A waker is used up by waking.
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        woken.clear();
        parts[2].wake_by_ref();
        ready.take(&mut woken);
        assert!(woken.is_empty(), "it has not been polled");
        parts[2].begin_poll();
        parts[2].mark();
        ready.take(&mut woken);
        assert_eq!(woken, [2]);
        // Within a turn nobody is woken, and the turn does not end.
        ready.begin_turn(&waker);
        parts[1].wake_by_ref();
        assert!(!ready.end_turn());
        woken.clear();
        ready.take(&mut woken);
        ready.nudge();
        assert!(!ready.end_turn());
        ready.begin_nudged();
        assert!(ready.end_turn());
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        ready.nudge();
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
    }
    #[test]
    fn a_socket_is_read_until_nothing_is_there_and_again_when_it_was_woken() {
        let ready = Arc::<Ready>::default();
        let count = Arc::<Count>::default();
        let waker = Waker::from(Arc::clone(&count));
        let socket = Socket::new(&ready);
        ready.begin_turn(&waker);
        assert!(socket.begin_poll());
        socket.mark();
        assert!(socket.begin_poll());
        assert!(!socket.begin_poll(), "nothing was there");
        // Within a turn and behind it.
        for is_driven in [true, false] {
            ready.begin_turn(&waker);
            if !is_driven {
                assert!(ready.end_turn());
            }
            let before = count.0.load(Ordering::Relaxed);
            socket.wake_by_ref();
            assert_eq!(count.0.load(Ordering::Relaxed), before + 1);
            assert!(socket.begin_poll());
            assert!(!socket.begin_poll());
        }
    }
}
