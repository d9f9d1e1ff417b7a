//! The two ends of a link between a control plane that relays and the one that keeps the books, for
//! whoever carries its messages.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weft_proto::relays::{StreamGrants, StreamReports};

use super::{Excess, Leases, Link};

/// Batches of grants on their way to one control plane; each limit of a stream is in one at most.
const GRANTS_MAX: usize = 4096;

/// The link to the control plane that keeps the books, where that is not this one. It ends when this is
/// dropped: the sidecars of this control plane have to begin anew then.
#[derive(Debug)]
pub struct LinkToKeeper {
    leases: Arc<Leases>,
    number: u64,
    end: CancellationToken,
}

/// The link of a control plane that relays to this one, which keeps the books. It ends when this is
/// dropped: what was relayed is held for what sidecars still use, as long as they do.
#[derive(Debug)]
pub struct LinkOfRelay {
    leases: Arc<Leases>,
    number: u64,
    term: u64,
    grants: mpsc::Receiver<Vec<StreamGrants>>,
    end: CancellationToken,
}

impl LinkToKeeper {
    /// The books are reached, and are kept for this term; `None` where they are elsewhere.
    pub fn begin(leases: &Arc<Leases>, term: u64) -> Option<Self> {
        let mut state = leases.elected();
        let now = leases.now();
        let number = state.desk.begin_link(term, now);
        let end = CancellationToken::new();
        if let Some(number) = number {
            let link = Link {
                grants: None,
                end: end.clone(),
            };
            state.links.insert(number, link);
        }
        leases.act(state);
        Some(Self {
            leases: Arc::clone(leases),
            number: number?,
            end,
        })
    }

    /// What is to be said next; nothing where there is nothing.
    pub fn next(&self) -> Vec<StreamReports> {
        self.leases
            .with(|desk, _now| desk.next_relayed(self.number))
    }

    /// Takes what was granted.
    pub fn granted(&self, streams: Vec<StreamGrants>) {
        self.leases
            .with(|desk, _now| desk.granted(self.number, streams));
    }

    /// Waits until the books are elsewhere.
    pub async fn ended(&self) {
        self.end.cancelled().await;
    }
}

impl Drop for LinkToKeeper {
    fn drop(&mut self) {
        self.leases.with(|desk, _now| desk.end_link(self.number));
    }
}

impl LinkOfRelay {
    /// A control plane begins to relay; `None` where the books are not kept here.
    pub fn begin(leases: &Arc<Leases>) -> Option<Self> {
        let (grants, granted) = mpsc::channel(GRANTS_MAX);
        let mut state = leases.elected();
        let begun = state.desk.open_link();
        let end = CancellationToken::new();
        if let Some((number, _)) = begun {
            let link = Link {
                grants: Some(grants),
                end: end.clone(),
            };
            state.links.insert(number, link);
        }
        leases.act(state);
        let (number, term) = begun?;
        Some(Self {
            leases: Arc::clone(leases),
            number,
            term,
            grants: granted,
            end,
        })
    }

    /// The term in which the books are kept.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Takes what is relayed; an error ends the link.
    pub fn take(&self, streams: Vec<StreamReports>) -> Result<(), Excess> {
        let known = &*self.leases.limits;
        self.leases
            .with(|desk, now| desk.relayed(self.number, streams, known, now))
    }

    /// Waits for grants; nothing where none can come any more. Cancel safe.
    pub async fn granted(&mut self) -> Option<Vec<StreamGrants>> {
        self.grants.recv().await
    }

    /// Waits until the books are not kept here any more, or the other takes nothing.
    pub fn ended(&self) -> CancellationToken {
        self.end.clone()
    }
}

impl Drop for LinkOfRelay {
    fn drop(&mut self) {
        let number = self.number;
        let mut state = self.leases.elected();
        state.links.remove(&number);
        let now = self.leases.now();
        state.desk.close_link(number, now);
        self.leases.act(state);
    }
}
