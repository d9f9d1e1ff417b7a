//! The requests that wait for a connection, in order of arrival.

use std::collections::VecDeque;

use super::want::{Kind, Want};

/// Entries of requests that have left are dropped once they are more than those that wait and this.
const SLACK: usize = 16;

/// A first-in-first-out queue whose members may leave at any time.
///
/// Tickets are handed out by the caller and only ever grow.
#[derive(Debug)]
pub(super) struct Queue<W> {
    entries: VecDeque<(u64, Want, Option<W>)>,
    /// Members of each [`Kind`].
    len: [u32; Kind::ALL.len()],
}

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            len: Default::default(),
        }
    }
}

impl<W> Queue<W> {
    /// The number of members.
    pub(super) fn len(&self) -> u32 {
        self.len.iter().sum()
    }

    /// The number of members that can share a connection with others.
    pub(super) fn sharing(&self) -> u32 {
        self.len[Kind::Any as usize] + self.len[Kind::Used as usize]
    }

    /// The number of members that want a connection of their own.
    pub(super) fn own(&self) -> u32 {
        self.len[Kind::Own as usize]
    }

    /// The number of members that take a connection each, and only one that is made for them; of
    /// those that want one of their own as many as may have one.
    pub(super) fn alone(&self, own_room: u32) -> u32 {
        self.len[Kind::Made as usize] + self.own().min(own_room)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn push(&mut self, ticket: u64, want: Want, waiter: W) {
        self.entries.push_back((ticket, want, Some(waiter)));
        self.len[want.kind() as usize] += 1;
    }

    /// The member of a kind that came first.
    pub(super) fn first(&self, kind: Kind) -> Option<(u64, Want)> {
        if self.len[kind as usize] == 0 {
            return None;
        }
        self.members(|one| one == kind).next()
    }

    /// The ticket of the member that has `before` others in front of it, among those that can share
    /// a connection.
    pub(super) fn nth_sharing(&self, before: u32) -> Option<u64> {
        let mut members = self.members(|kind| matches!(kind, Kind::Any | Kind::Used));
        members.nth(before as usize).map(|(ticket, _want)| ticket)
    }

    /// The same among [`Self::alone`].
    pub(super) fn nth_alone(&self, before: u32, own_room: u32) -> Option<u64> {
        if self.alone(own_room) <= before {
            return None;
        }
        let mut room = own_room;
        let members = self.members(|kind| matches!(kind, Kind::Made | Kind::Own));
        let mut eligible = members.filter(|(_ticket, want)| {
            let is_own = want.kind() == Kind::Own;
            let is_eligible = !is_own || room > 0;
            room = room.saturating_sub(u32::from(is_own));
            is_eligible
        });
        eligible.nth(before as usize).map(|(ticket, _want)| ticket)
    }

    /// Takes out one member; `None` if it is not there any more.
    pub(super) fn remove(&mut self, ticket: u64) -> Option<W> {
        let found = self.entries.binary_search_by_key(&ticket, |(one, ..)| *one);
        let (_ticket, want, waiter) = &mut self.entries[found.ok()?];
        let removed = waiter.take()?;
        self.len[want.kind() as usize] -= 1;
        while let Some((_, _, None)) = self.entries.front() {
            self.entries.pop_front();
        }
        if self.entries.len() > 2 * self.len() as usize + SLACK {
            self.entries.retain(|(_, _, waiter)| waiter.is_some());
        }
        Some(removed)
    }

    fn members(&self, of: impl Fn(Kind) -> bool) -> impl Iterator<Item = (u64, Want)> {
        let members = self.entries.iter();
        let members = members.filter(move |(_, want, waiter)| waiter.is_some() && of(want.kind()));
        members.map(|(ticket, want, _)| (*ticket, *want))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use crate::time::Instant;

    #[test]
    fn those_that_want_their_own_are_passed_over_where_there_is_no_room() {
        let now = Instant::from_nanos(0);
        let mut queue = Queue::default();
        let wants = [
            Want::Own(now),
            Want::Any,
            Want::Own(now),
            Want::MadeSince(now),
            Want::Own(now),
        ];
        for (ticket, want) in (0..).zip(wants) {
            queue.push(ticket, want, ());
        }
        assert_eq!((queue.sharing(), queue.own()), (1, 3));
        for (own_room, expected) in [
            (0, &[3][..]),
            (1, &[0, 3]),
            (2, &[0, 2, 3]),
            (9, &[0, 2, 3, 4]),
        ] {
            let tickets = (0..).map_while(|before| queue.nth_alone(before, own_room));
            assert_eq!(tickets.collect::<Vec<_>>(), expected, "{own_room}");
            assert_eq!(queue.alone(own_room) as usize, expected.len());
        }
    }

    proptest! {
        /// It behaves like a list from which members are deleted.
        #[test]
        fn like_a_list(steps in proptest::collection::vec((0u8..4, 0u64..60), 0..200)) {
            let (mut queue, mut list) = (Queue::default(), Vec::new());
            let mut next = 0;
            for (step, number) in steps {
                match step {
                    0 | 1 => {
                        queue.push(next, Want::Any, next);
                        list.push(next);
                        next += 1;
                    }
                    2 => {
                        let first = (!list.is_empty()).then(|| list.remove(0));
                        let ticket = queue.first(Kind::Any).map(|(ticket, _)| ticket);
                        let taken = ticket.and_then(|ticket| queue.remove(ticket));
                        prop_assert_eq!(taken, first);
                    }
                    _ => {
                        let found = list.iter().position(|one| *one == number);
                        let removed = found.map(|at| list.remove(at));
                        prop_assert_eq!(queue.remove(number), removed);
                    }
                }
                prop_assert_eq!(queue.len() as usize, list.len());
                prop_assert_eq!(queue.nth_sharing(1), list.get(1).copied());
                prop_assert!(queue.entries.len() <= 2 * list.len() + SLACK + 1);
            }
        }
    }
}
