//! Which of several control planes does what only one is to do: one election for the process, and a
//! [`Leader`] for each task that asks.
//!
//! A Lease elects and does not fence: for a moment two may believe that they lead. Whoever asks here
//! still makes each write conditional on what it has read.

use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// For how long the lease is taken.
pub const LEASE: Duration = Duration::from_secs(15);
/// How often it is renewed, and asked for by those who do not have it.
const RENEW: Duration = Duration::from_secs(5);
/// How soon it is renewed again where that was not answered.
const RENEW_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// So much before others may take the lease, its holder leads no longer: what it has begun to write
/// has this long to end.
const MARGIN: Duration = Duration::from_secs(5);

/// The lease that elects, as the store keeps it.
pub trait LeaderLease: Send + Sync {
    /// Takes it, or says who has it. What it gives is the number of the term, which is greater each
    /// time that somebody takes the lease.
    fn take(&self, ttl: Duration) -> BoxFuture<'_, Result<u64, LeaseError>>;

    /// Gives it its whole time again.
    fn renew(&self) -> BoxFuture<'_, Result<(), LeaseError>>;

    /// Ends it before its time.
    fn release(&self) -> BoxFuture<'_, ()>;
}

/// Why the lease was not taken or renewed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// It is another's.
    #[error("{0}")]
    NotHeld(String),
    /// Nobody has said whose it is.
    #[error("{0}")]
    Unanswered(String),
}

/// Whether this process leads. Every task that only one control plane is to carry out has one.
#[derive(Debug, Clone)]
pub struct Leader(watch::Receiver<Option<Term>>);

/// Decides for a [`Leader`].
#[derive(Debug)]
pub struct Election(watch::Sender<Option<Term>>);

/// For how long this process leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Term {
    number: u64,
    /// When the lease was asked for that it is by.
    asked_at: Instant,
    until: Instant,
}

/// An election that was not held yet, and who asks for its result.
pub fn election() -> (Election, Leader) {
    let (sender, receiver) = watch::channel(None);
    (Election(sender), Leader(receiver))
}

impl Leader {
    /// Whether this process leads now. By the monotonic clock: one that was stopped for longer than
    /// its lease leads no longer, before anybody has told it so. That clock stands still while the machine
    /// is suspended: then the condition of each write is what holds.
    pub fn leads(&self) -> bool {
        self.term().is_some()
    }

    /// The number of the term in which this process leads now, if it does, as [`leads`](Self::leads)
    /// has it, and when it asked for the lease last and got it. The number of a later term, of whichever
    /// process, is greater.
    pub fn term(&self) -> Option<(u64, Instant)> {
        let term = (*self.0.borrow())?;
        leads(Some(term.until), Instant::now()).then_some((term.number, term.asked_at))
    }

    /// Waits until this process begins or ends to lead; whether anybody decides that still.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }

    /// Waits until this process leads.
    pub async fn elected(&mut self) {
        while !self.leads() {
            if !self.changed().await {
                return std::future::pending().await;
            }
        }
    }
}

fn leads(until: Option<Instant>, now: Instant) -> bool {
    until.is_some_and(|until| now < until)
}

impl Election {
    /// Leads for this long, whoever else does.
    #[cfg(test)]
    pub(crate) fn lead_for(&self, time: Duration) {
        let asked_at = Instant::now();
        self.decide(Some(Term {
            number: 1,
            asked_at,
            until: asked_at + time,
        }));
    }

    /// Takes the lease whenever it is free and keeps it; gives it back when it is told to stop.
    pub async fn keep(self, lease: impl LeaderLease, stop: CancellationToken) {
        tokio::select! {
            () = self.run(&lease) => {}
            () = stop.cancelled() => {}
        }
        if self.0.send_replace(None).is_some() {
            lease.release().await;
        }
    }

    async fn run(&self, lease: &impl LeaderLease) {
        let mut held: Option<u64> = None;
        loop {
            let asked_at = Instant::now();
            let (number, answer) = match held {
                Some(number) => (Some(number), lease.renew().await),
                None => match lease.take(LEASE).await {
                    Ok(number) => (Some(number), Ok(())),
                    Err(error) => (None, Err(error)),
                },
            };
            let before = *self.0.borrow();
            let until = before.map(|term| term.until);
            let (until, pause) = after(until, &answer, asked_at, Instant::now());
            let asked_at = match answer {
                Ok(()) => asked_at,
                Err(_) => before.map_or(asked_at, |term| term.asked_at),
            };
            match (held.is_some(), until.is_some(), &answer) {
                (false, true, _) => tracing::info!("leads: what only one does is done here"),
                (true, false, Err(error)) => tracing::warn!(%error, "leads no longer"),
                (true, true, Err(error)) => tracing::warn!(%error, "the lease is not renewed yet"),
                (_, _, Err(error)) => tracing::debug!(%error, "does not lead"),
                (_, _, Ok(())) => {}
            }
            let term = number.zip(until).map(|(number, until)| Term {
                number,
                asked_at,
                until,
            });
            held = term.map(|term| term.number);
            self.decide(term);
            tokio::time::sleep(pause).await;
        }
    }

    /// Those who wait are told of the begin and the end, not of each renewal. A lease that has run out
    /// untold and is renewed late begins anew.
    fn decide(&self, term: Option<Term>) {
        let now = Instant::now();
        self.0.send_if_modified(|before| {
            let until = |term: &Option<Term>| term.map(|term| term.until);
            let changes = leads(until(before), now) != leads(until(&term), now);
            let changes = changes || before.is_some() != term.is_some();
            *before = term;
            changes
        });
    }
}

/// Until when the process leads after an answer to its request of `asked_at`, and how long it waits
/// until it asks again. What was not answered ends nothing before its time.
fn after(
    until: Option<Instant>,
    answer: &Result<(), LeaseError>,
    asked_at: Instant,
    now: Instant,
) -> (Option<Instant>, Duration) {
    match answer {
        Ok(()) => (Some(asked_at + LEASE - MARGIN), RENEW),
        Err(LeaseError::NotHeld(_)) => (None, RENEW),
        Err(LeaseError::Unanswered(_)) if leads(until, now) => (until, RENEW_AGAIN_AFTER),
        Err(LeaseError::Unanswered(_)) => (None, RENEW_AGAIN_AFTER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_decides_until_when_it_leads() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let lost = || Err(LeaseError::NotHeld("it is b's".to_owned()));
        let silence = || Err(LeaseError::Unanswered("no answer".to_owned()));
        let ten = Some(at(10));
        for (until, answer, now, expected) in [
            (None, Ok(()), 0, (ten, RENEW)),
            // The time counts from the request, not from its late answer.
            (None, Ok(()), 9, (ten, RENEW)),
            (ten, lost(), 5, (None, RENEW)),
            (ten, silence(), 5, (ten, RENEW_AGAIN_AFTER)),
            (ten, silence(), 10, (None, RENEW_AGAIN_AFTER)),
            (None, silence(), 5, (None, RENEW_AGAIN_AFTER)),
        ] {
            assert_eq!(
                after(until, &answer, start, at(now)),
                expected,
                "{answer:?} at {now}"
            );
        }
    }

    #[tokio::test]
    async fn tasks_are_told_when_it_begins_and_ends() {
        let (election, mut leader) = election();
        assert!(!leader.leads());
        election.lead_for(Duration::from_secs(60));
        leader.elected().await;
        assert!(leader.leads());
        assert_eq!(leader.term().map(|(number, _asked_at)| number), Some(1));
        leader.changed().await;
        election.lead_for(Duration::from_secs(70));
        let told = tokio::time::timeout(Duration::from_millis(20), leader.changed());
        assert!(told.await.is_err(), "a renewal is no news");
        election.decide(None);
        assert!(leader.changed().await);
        assert!(!leader.leads());
        // Suspended for longer than its lease.
        election.lead_for(Duration::ZERO);
        assert!(!leader.leads());
        assert_eq!(leader.term(), None);
    }

    /// A renewal that was answered late: whoever has seen the lease run out hears of it.
    #[tokio::test]
    async fn a_lease_that_ran_out_untold_and_is_renewed_elects_again() {
        let (election, mut leader) = election();
        election.lead_for(Duration::ZERO);
        assert!(!leader.leads());
        let waiting = tokio::spawn(async move { leader.elected().await });
        tokio::task::yield_now().await;
        election.lead_for(Duration::from_secs(60));
        let elected = tokio::time::timeout(Duration::from_secs(5), waiting).await;
        assert!(elected.is_ok(), "nobody was told");
    }
}
