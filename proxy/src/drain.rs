//! Leaving: first clients are told to come to an end, later what is left is cut. The program's own
//! connections to others go on while those to it end: it needs them for its own shutdown.

use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::watch;
use weft_core::reason::Reason;

use crate::tls::Signal;

/// How far leaving has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    Running,
    /// Clients of the application are told to go elsewhere (GOAWAY, `Connection: close`); new
    /// connections are still accepted.
    Leaving,
    /// No connection to the application is accepted any more.
    Closing,
    /// The application's own connections are told to come to an end, and no other is accepted.
    Departing,
    /// What is left is cut.
    Cut,
}

/// Whose connections are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Connections of others to the application.
    Inbound,
    /// Connections of the application to others.
    Outbound,
}

impl Side {
    const fn told_in(self) -> Phase {
        match self {
            Self::Inbound => Phase::Leaving,
            Self::Outbound => Phase::Departing,
        }
    }

    const fn closed_in(self) -> Phase {
        match self {
            Self::Inbound => Phase::Closing,
            Self::Outbound => Phase::Departing,
        }
    }
}

/// Watched by everything that lives as long as a connection.
#[derive(Debug)]
pub struct Drain {
    phase: watch::Sender<Phase>,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Running),
        }
    }
}

impl Drain {
    /// Goes on to `phase`; never back.
    pub fn advance(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let further = phase > *now;
            if further {
                *now = phase;
            }
            further
        });
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Whether what was left has been cut.
    pub fn is_cut(&self) -> bool {
        self.phase() == Phase::Cut
    }

    /// Tells the requests of one worker, when they end, whether the sidecar has cut them.
    pub fn cutting(&self) -> Cutting {
        Cutting(Rc::new(Cut {
            phase: self.phase.subscribe(),
            peer: None,
        }))
    }

    /// Until listeners of a side should close.
    pub async fn stop_accepting(&self, side: Side) {
        self.reached(side.closed_in()).await;
    }

    /// Until what is left is cut.
    pub async fn cut(&self) {
        self.reached(Phase::Cut).await;
    }

    async fn reached(&self, phase: Phase) {
        let mut changes = self.phase.subscribe();
        // The sender is ours: it cannot be gone while we wait.
        let _sender_lives = changes.wait_for(|now| *now >= phase).await;
    }
}

/// Whether requests were cut by the sidecar, for those of one worker or of one connection. Copies cost
/// no more than a count.
#[derive(Debug, Clone)]
pub struct Cutting(Rc<Cut>);

#[derive(Debug)]
struct Cut {
    phase: watch::Receiver<Phase>,
    peer: Option<Arc<Signal>>,
}

impl Cutting {
    /// The same for the requests of one connection; `peer` is the signal of one to an authenticated
    /// peer.
    pub fn of_connection(&self, peer: Option<Arc<Signal>>) -> Self {
        let Some(peer) = peer else {
            return self.clone();
        };
        Self(Rc::new(Cut {
            phase: self.0.phase.clone(),
            peer: Some(peer),
        }))
    }

    /// Why they were cut; `None` where they were not.
    pub fn reason(&self) -> Option<Reason> {
        let Cut { phase, peer } = &*self.0;
        let by_peer = peer.as_ref().and_then(|peer| peer.cut_reason());
        by_peer.or_else(|| (*phase.borrow() == Phase::Cut).then_some(Reason::Draining))
    }
}

/// What brings one connection to its end, beside its client and its own limits: the sidecar leaves,
/// or nothing vouches for its peer any more.
#[derive(Debug, Clone)]
pub struct Ends<'a> {
    drain: &'a Drain,
    side: Side,
    peer: Option<&'a Signal>,
}

impl<'a> Ends<'a> {
    /// A connection of a side; `peer` is the signal of one to an authenticated peer.
    pub fn new(drain: &'a Drain, side: Side, peer: Option<&'a Signal>) -> Self {
        Self { drain, side, peer }
    }

    /// Whether the connection should come to an end.
    pub fn is_leaving(&self) -> bool {
        self.drain.phase() >= self.side.told_in() || self.peer.is_some_and(Signal::is_ending)
    }

    /// Until the connection should come to an end.
    pub async fn leaving(&self) {
        let told = self.drain.reached(self.side.told_in());
        match self.peer {
            None => told.await,
            Some(peer) => tokio::select! {
                () = told => {}
                () = peer.ending() => {}
            },
        }
    }

    /// Why the connection is cut; `None` where it is not.
    pub fn cut_reason(&self) -> Option<Reason> {
        let by_peer = self.peer.and_then(Signal::cut_reason);
        by_peer.or_else(|| self.drain.is_cut().then_some(Reason::Draining))
    }

    /// Until the connection is cut.
    pub async fn cut(&self) {
        match self.peer {
            None => self.drain.cut().await,
            Some(peer) => tokio::select! {
                () = self.drain.cut() => {}
                () = peer.cut() => {}
            },
        }
    }
}
