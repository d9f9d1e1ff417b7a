//! The requests that wait for a connection, in order of arrival.

use std::collections::VecDeque;

/// Entries of requests that have left are dropped once they are more than those that wait and this.
const SLACK: usize = 16;

/// A first-in-first-out queue whose members may leave at any time.
///
/// Tickets are handed out by the caller and only ever grow.
#[derive(Debug)]
pub(super) struct Queue<W> {
    entries: VecDeque<(u64, Option<W>)>,
    len: u32,
}

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            len: 0,
        }
    }
}

impl<W> Queue<W> {
    /// The number of members.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn push(&mut self, ticket: u64, waiter: W) {
        self.entries.push_back((ticket, Some(waiter)));
        self.len += 1;
    }

    /// Takes out the member that came first.
    pub(super) fn pop(&mut self) -> Option<W> {
        while let Some((_ticket, waiter)) = self.entries.pop_front() {
            if waiter.is_some() {
                self.len -= 1;
                return waiter;
            }
        }
        None
    }

    /// The ticket of the member that has `before` others in front of it.
    pub(super) fn ticket(&self, before: u32) -> Option<u64> {
        let members = self.entries.iter().filter(|(_, waiter)| waiter.is_some());
        let mut tickets = members.map(|(ticket, _)| *ticket);
        tickets.nth(before as usize)
    }

    /// Takes out one member; `None` if it is not there any more.
    pub(super) fn remove(&mut self, ticket: u64) -> Option<W> {
        let found = self.entries.binary_search_by_key(&ticket, |(one, _)| *one);
        let removed = self.entries[found.ok()?].1.take()?;
        self.len -= 1;
        if self.entries.len() > 2 * self.len as usize + SLACK {
            self.entries.retain(|(_, waiter)| waiter.is_some());
        }
        Some(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// It behaves like a list from which members are deleted.
        #[test]
        fn like_a_list(steps in proptest::collection::vec((0u8..4, 0u64..60), 0..200)) {
            let (mut queue, mut list) = (Queue::default(), Vec::new());
            let mut next = 0;
            for (step, number) in steps {
                match step {
                    0 | 1 => {
                        queue.push(next, next);
                        list.push(next);
                        next += 1;
                    }
                    2 => {
                        let first = (!list.is_empty()).then(|| list.remove(0));
                        prop_assert_eq!(queue.pop(), first);
                    }
                    _ => {
                        let found = list.iter().position(|one| *one == number);
                        let removed = found.map(|at| list.remove(at));
                        prop_assert_eq!(queue.remove(number), removed);
                    }
                }
                prop_assert_eq!(queue.len() as usize, list.len());
                prop_assert_eq!(queue.ticket(1), list.get(1).copied());
                prop_assert!(queue.entries.len() <= 2 * list.len() + SLACK + 1);
            }
        }
    }
}
