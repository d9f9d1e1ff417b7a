//! What is counted within the limits of a port.

use std::sync::Arc;

use weft_core::limit::Limit;

use super::{PortView, State};

/// The limit on connections to a port, of all workers together.
#[derive(Debug, Clone)]
pub struct ConnectionLimit(Arc<State>);

impl ConnectionLimit {
    pub(super) fn of(state: &Arc<State>) -> Self {
        Self(Arc::clone(state))
    }

    /// A place within the limit; `None` where it is reached.
    pub fn admit(&self) -> Option<Counted> {
        count(&self.0, |state| &state.connections)
    }

    /// Whether it is the limit of this port, and not of one that had its name before.
    pub fn is_of(&self, port: &PortView) -> bool {
        Arc::ptr_eq(&self.0, &port.state)
    }

    /// Whether there is a place.
    pub fn has_room(&self) -> bool {
        let limit = &self.0.connections;
        limit.in_use() < limit.max()
    }

    /// A limit of no port.
    #[cfg(test)]
    pub(crate) fn new(most: u32) -> Self {
        let state = State::default();
        state.connections.set_max(most);
        Self(Arc::new(state))
    }

    /// Until a place may have come free. One of those that wait is told of each.
    pub async fn freed(&self) {
        self.0.connections_changed.notified().await;
    }

    /// Tells one of those that wait to look again.
    pub fn tell(&self) {
        self.0.connections_changed.notify_one();
    }
}

pub(super) fn count(state: &Arc<State>, limit: fn(&State) -> &Limit) -> Option<Counted> {
    limit(state).try_acquire().then(|| Counted {
        state: Arc::clone(state),
        limit,
    })
}

/// Something that is counted within a limit of a port, until it is dropped.
#[derive(Debug)]
pub struct Counted {
    state: Arc<State>,
    limit: fn(&State) -> &Limit,
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.limit)(&self.state).release();
        self.state.connections_changed.notify_one();
    }
}
