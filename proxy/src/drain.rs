//! Leaving: first everything is told to come to an end, later what is left is cut.

use tokio::sync::watch;

/// How far leaving has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    Running,
    /// Clients are told to go elsewhere (GOAWAY, `Connection: close`); new connections are still
    /// accepted.
    Leaving,
    /// Nothing new is accepted.
    Closing,
    /// What is left is cut.
    Cut,
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

    /// Until connections should come to an end.
    pub async fn leaving(&self) {
        self.reached(Phase::Leaving).await;
    }

    /// Until listeners should close.
    pub async fn stop_accepting(&self) {
        self.reached(Phase::Closing).await;
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
