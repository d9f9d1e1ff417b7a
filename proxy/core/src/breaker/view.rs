//! A breaker's state as people and metrics see it.

use std::time::Duration;

use super::cause::Cause;

/// The state, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateView {
    /// Calls go through.
    Closed,
    /// No call goes through before the time is over.
    Open,
    /// Probes go through.
    HalfOpen,
}

impl StateView {
    /// The state of a word, if it is one.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Closed, Self::Open, Self::HalfOpen]
            .into_iter()
            .find(|state| state.as_str() == word)
    }

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// A result changed the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// What it was.
    pub from: StateView,
    /// What it is now.
    pub to: StateView,
}

/// Everything about a breaker that people want to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Its state.
    pub state: StateView,
    /// For how long it has been in it; `None` where it never changed.
    pub since: Option<Duration>,
    /// Why it opened the last time.
    pub cause: Option<Cause>,
    /// While open: in how long the next probe may be made.
    pub next_probe: Option<Duration>,
    /// How often it has opened.
    pub opened: u64,
}
