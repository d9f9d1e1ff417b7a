//! Where a client's connections wait between requests.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use super::client::{Connection, lock};

/// What becomes of a connection after an exchange.
#[derive(Debug)]
pub enum Home {
    /// It is closed.
    None,
    /// It waits there for the next request.
    Line(Line),
}

impl Home {
    pub(super) fn give_back(self, connection: Box<Connection>) {
        match self {
            Self::None => {}
            Self::Line(mut line) => line.put(connection),
        }
    }
}

/// The place of one connection, which knows whether it is in use.
#[derive(Debug, Clone)]
pub struct SharedLine(Arc<Place>);

#[derive(Debug)]
struct Place {
    state: Mutex<LineState>,
    /// Told when a connection that was in use is back, or closed.
    settled: Notify,
}

#[derive(Debug)]
enum LineState {
    Idle(Box<Connection>),
    Busy,
    Closed,
}

/// Leads a connection in use back to its place. Dropped without it, the place knows that the
/// connection is closed.
#[derive(Debug)]
pub struct Line(Arc<Place>);

impl SharedLine {
    /// The place of this connection.
    pub fn new(connection: Box<Connection>) -> Self {
        Self(Arc::new(Place {
            state: Mutex::new(LineState::Idle(connection)),
            settled: Notify::new(),
        }))
    }

    /// Takes the connection, if it is there and alive.
    pub fn take(&self) -> Option<(Box<Connection>, Home)> {
        let mut state = self.checked();
        if !matches!(*state, LineState::Idle(_)) {
            return None;
        }
        match std::mem::replace(&mut *state, LineState::Busy) {
            LineState::Idle(connection) => {
                Some((connection, Home::Line(Line(Arc::clone(&self.0)))))
            }
            LineState::Busy | LineState::Closed => None,
        }
    }

    /// Until the exchange under way is over.
    pub fn settled(&self) -> impl Future<Output = ()> + use<> {
        let place = Arc::clone(&self.0);
        async move {
            // What is told from now on counts. Once is enough: another exchange may have begun since.
            let mut told = pin!(place.settled.notified());
            told.as_mut().enable();
            if matches!(*lock(&place.state), LineState::Busy) {
                told.await;
            }
        }
    }

    /// Whether it waits for a request.
    pub fn is_ready(&self) -> bool {
        matches!(*self.checked(), LineState::Idle(_))
    }

    /// Whether it will never take a request again.
    pub fn is_closed(&self) -> bool {
        matches!(*self.checked(), LineState::Closed)
    }

    /// Has a connection that waits for a request hold no buffer until it is used.
    pub fn rest(&self) {
        match &mut *lock(&self.0.state) {
            LineState::Idle(connection) => connection.rest(),
            LineState::Busy | LineState::Closed => {}
        }
    }

    /// How it is, after a look at what the server has done.
    fn checked(&self) -> MutexGuard<'_, LineState> {
        let mut state = lock(&self.0.state);
        if let LineState::Idle(connection) = &mut *state
            && !connection.is_alive()
        {
            *state = LineState::Closed;
        }
        state
    }
}

impl Line {
    fn put(&mut self, connection: Box<Connection>) {
        *lock(&self.0.state) = LineState::Idle(connection);
        self.0.settled.notify_waiters();
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        if matches!(*state, LineState::Busy) {
            *state = LineState::Closed;
            drop(state);
            self.0.settled.notify_waiters();
        }
    }
}
