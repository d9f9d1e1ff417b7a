//! Exactly so many at the same time, and those who wait in the order in which they came: whoever
//! leaves hands its place to the first of them, on whichever worker that is.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use weft_core::limit::{Limit, UNLIMITED};

/// The gate to a port.
#[derive(Debug)]
pub(super) struct Gate {
    limit: Limit,
    /// How many may wait.
    room: AtomicUsize,
    waiting: Mutex<VecDeque<oneshot::Sender<Admitted>>>,
}

/// A place within the limit, given back when dropped.
#[derive(Debug)]
pub struct Admitted(Option<Arc<Gate>>);

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// Nobody waits here.
    NoPlace,
    /// As many wait as may.
    NoRoom,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            limit: Limit::new(UNLIMITED),
            room: AtomicUsize::new(0),
            waiting: Mutex::default(),
        }
    }
}

impl Gate {
    /// Exchanges the limits: how many have a place, and how many may wait for one.
    pub(super) fn set(self: &Arc<Self>, max: Option<u32>, pending: Option<u32>) {
        let room = pending.map_or(0, |pending| pending as usize);
        self.room.store(room, Ordering::Relaxed);
        self.limit.set_max(max.unwrap_or(UNLIMITED));
        // Each place that the limit gives now is handed on, or given back.
        while !self.waiting().is_empty() && self.limit.try_acquire() {
            self.leave();
        }
    }

    /// A place, at once or after all who came before.
    ///
    /// # Errors
    ///
    /// When there is none and nobody may wait (any more).
    pub(super) async fn enter(self: &Arc<Self>) -> Result<Admitted, Full> {
        if self.limit.try_acquire() {
            return Ok(Admitted(Some(Arc::clone(self))));
        }
        let place = {
            let mut waiting = self.waiting();
            // One that was given back since is not handed to anybody.
            if self.limit.try_acquire() {
                return Ok(Admitted(Some(Arc::clone(self))));
            }
            let room = self.room.load(Ordering::Relaxed);
            if room == 0 {
                return Err(Full::NoPlace);
            }
            waiting.retain(|other| !other.is_closed());
            if waiting.len() >= room {
                return Err(Full::NoRoom);
            }
            let (sender, place) = oneshot::channel();
            waiting.push_back(sender);
            place
        };
        place.await.map_err(|_gone| Full::NoPlace)
    }

    fn leave(self: &Arc<Self>) {
        let mut waiting = self.waiting();
        while self.limit.in_use() <= self.limit.max() {
            let Some(first) = waiting.pop_front() else {
                break;
            };
            match first.send(Admitted(Some(Arc::clone(self)))) {
                Ok(()) => return,
                Err(unwanted) => unwanted.forget(),
            }
        }
        self.limit.release();
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<oneshot::Sender<Admitted>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admitted {
    /// Where there is no limit, and nothing is counted.
    pub(super) const FREELY: Self = Self(None);

    /// Not a place after all.
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(gate) = self.0.take() {
            gate.leave();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    fn gate(max: u32, pending: u32) -> Arc<Gate> {
        let gate = Arc::new(Gate::default());
        gate.set(Some(max), Some(pending));
        gate
    }

    #[tokio::test]
    async fn those_who_wait_enter_in_order() {
        let gate = gate(1, 2);
        let first = gate.enter().await.unwrap();
        let (told, mut order) = tokio::sync::mpsc::unbounded_channel();
        let mut tasks = Vec::new();
        for number in [1, 2] {
            let (other, told) = (Arc::clone(&gate), told.clone());
            tasks.push(tokio::spawn(async move {
                let place = other.enter().await.unwrap();
                told.send(number).unwrap();
                drop(place);
            }));
            while gate.waiting().len() < number {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(gate.enter().await.unwrap_err(), Full::NoRoom);
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!((order.recv().await, order.recv().await), (Some(1), Some(2)));
        assert_eq!(gate.limit.in_use(), 0);
    }

    #[tokio::test]
    async fn who_stops_waiting_takes_no_place() {
        let gate = gate(1, 1);
        let first = gate.enter().await.unwrap();
        let given_up = timeout(Duration::from_millis(1), gate.enter()).await;
        assert!(given_up.is_err());
        drop(first);
        assert_eq!(gate.limit.in_use(), 0);
        drop(gate.enter().await.unwrap());
        assert_eq!(gate.limit.in_use(), 0);
    }

    #[tokio::test]
    async fn limits_change_in_place() {
        let gate = gate(2, 1);
        let (one, two) = (gate.enter().await.unwrap(), gate.enter().await.unwrap());
        gate.set(Some(1), Some(1));
        let other = Arc::clone(&gate);
        let waiting = tokio::spawn(async move { other.enter().await });
        while gate.waiting().is_empty() {
            tokio::task::yield_now().await;
        }
        // One too many is in there: its place is handed to nobody.
        drop(one);
        assert_eq!((gate.limit.in_use(), gate.waiting().len()), (1, 1));
        gate.set(Some(2), Some(1));
        let third = waiting.await.unwrap().unwrap();
        assert_eq!(gate.limit.in_use(), 2);
        drop((two, third));
        gate.set(Some(1), None);
        let _one = gate.enter().await.unwrap();
        assert_eq!(gate.enter().await.unwrap_err(), Full::NoPlace);
    }

    /// From many threads, under changing limits: never more than the limit, and nobody starves.
    #[test]
    fn exact_over_all_workers() {
        let gate = gate(3, 1000);
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let gate = Arc::clone(&gate);
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread();
                    let runtime = { runtime }.build().unwrap();
                    runtime.block_on(async {
                        for _ in 0..2000 {
                            let place = gate.enter().await.unwrap();
                            assert!(gate.limit.in_use() <= 3);
                            tokio::task::yield_now().await;
                            drop(place);
                        }
                    });
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        assert_eq!(gate.limit.in_use(), 0);
    }
}
