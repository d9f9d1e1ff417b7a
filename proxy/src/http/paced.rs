//! How much work one HTTP/2 connection of a client may cause: what is read of it before others have
//! their turn, and how many requests its client may reset.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;
use weft_core::resets::{Excess, ResetBudgets, ResetClient, ResetStanding, TunnelUse};

use super::http2::Party;

/// Bytes that are read of a connection before other connections have their turn: 1,200 requests of
/// the smallest size.
const TURN_BYTES: usize = 32 * 1024;
/// The same for a connection that has not had an answer yet, or whose client has reset requests
/// lately.
const TURN_BYTES_WATCHED: usize = 4 * 1024;
/// The reset budgets of all clients, of all workers.
///
/// It is locked when a request is reset or a tunnel given up, while a client that has reset some is read from, and for
/// every client while one owes resets.
#[derive(Debug, Default)]
pub struct Resets {
    budgets: Mutex<ResetBudgets>,
    /// Until when a client owes resets, in nanoseconds of our clock; 0 where none does.
    owed_until: AtomicU64,
}

impl Resets {
    fn on_reset(&self, client: &ResetClient) -> Option<Excess> {
        let now = crate::clock::now();
        let mut budgets = self.lock();
        let excess = budgets.on_reset(client, now)?;
        let until = now + budgets.standing(client, now).debt;
        self.owed_until
            .fetch_max(until.as_nanos(), Ordering::Relaxed);
        Some(excess)
    }

    fn standing(&self, client: &ResetClient) -> ResetStanding {
        self.lock().standing(client, crate::clock::now())
    }

    /// Whether any client owes resets.
    fn is_owed(&self) -> bool {
        let until = self.owed_until.load(Ordering::Relaxed);
        until > 0 && crate::clock::now().as_nanos() < until
    }

    fn lock(&self) -> MutexGuard<'_, ResetBudgets> {
        self.budgets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose connection is served.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    who: ResetClient,
    resets: Arc<Resets>,
}

impl Client {
    pub(crate) fn new(who: ResetClient, resets: &Arc<Resets>) -> Self {
        let resets = Arc::clone(resets);
        Self { who, resets }
    }

    /// Who that is.
    pub(super) const fn party(&self) -> Party {
        match self.who {
            ResetClient::Outside(_) => Party::External,
            ResetClient::Peer(_) => Party::Peer,
            ResetClient::Program => Party::Application,
        }
    }

    /// A tunnel that was a connection of its own has ended. One that was given up is charged.
    pub(crate) fn on_tunnel_end(&self, used: &TunnelUse) {
        if used.is_abandoned() {
            let _it_has_ended = self.resets.on_reset(&self.who);
        }
    }

    /// Until a tunnel may be asked for: a client that owes resets makes a deposit of one, and waits
    /// until both are paid. A connection that is a tunnel cannot be read slowly for what others before
    /// it did.
    pub(crate) async fn settled(&self) -> Option<Deposit> {
        if !self.resets.is_owed() || self.resets.standing(&self.who).debt.is_zero() {
            return None;
        }
        let paid = self.resets.lock().deposit(&self.who, crate::clock::now());
        let deposit = paid.then(|| Deposit(self.clone()));
        sleep(self.resets.standing(&self.who).debt).await;
        deposit
    }

    /// Whether it is another sidecar.
    pub(crate) const fn is_peer(&self) -> bool {
        matches!(self.who, ResetClient::Peer(_))
    }

    fn excess(&self) -> Excess {
        self.who.policy().excess
    }
}

/// A reset that a client in debt has paid for a tunnel before it is opened. It is given back with the
/// answer to the request: what the client does then is charged as always.
#[derive(Debug)]
pub(crate) struct Deposit(Client);

impl Drop for Deposit {
    fn drop(&mut self) {
        let Client { who, resets } = &self.0;
        resets.lock().refund(who, crate::clock::now());
    }
}

/// What is known of one connection: shared by the connection itself and its requests.
#[derive(Debug)]
pub(super) struct Pace {
    client: Client,
    /// Whether its client was seen to reset requests, until its budget is whole again.
    watched: Cell<bool>,
    /// Whether it has had an answer.
    answered: Cell<bool>,
    /// Whether it is to be closed for its resets.
    closing: Cell<bool>,
    /// Told when it is.
    closed: Notify,
    /// Whether it has ended: that its requests end then is no reset.
    ended: Cell<bool>,
    /// Whether its client has ended it, unasked.
    left: Cell<bool>,
}

impl Pace {
    pub(super) fn new(client: Client) -> Rc<Self> {
        Rc::new(Self {
            client,
            watched: Cell::new(false),
            answered: Cell::new(false),
            closing: Cell::new(false),
            closed: Notify::new(),
            ended: Cell::new(false),
            left: Cell::new(false),
        })
    }

    /// The client has ended the connection.
    pub(super) fn left(&self) {
        self.left.set(true);
    }

    /// The connection has ended.
    pub(super) fn end(&self) {
        self.ended.set(true);
    }

    /// A request has come.
    pub(super) fn begin(self: &Rc<Self>) -> Unanswered {
        Unanswered {
            pace: Rc::clone(self),
            answered: false,
        }
    }

    /// Until the connection is to be closed for its resets.
    pub(super) async fn exceeded(&self) {
        while !self.closing.get() {
            self.closed.notified().await;
        }
    }

    /// A tunnel has ended. One that its client gave up is charged, also where it did so by ending the
    /// connection, as in HTTP/1.1, or has had the connection closed for its resets.
    pub(super) fn on_tunnel_end(&self, used: &TunnelUse) {
        if self.left.get() || self.closing.get() {
            self.client.on_tunnel_end(used);
        } else if used.is_abandoned() {
            self.on_reset();
        }
    }

    /// Its client has reset a request, or given up a tunnel.
    pub(super) fn on_reset(&self) {
        if self.ended.get() || self.closing.get() {
            return;
        }
        self.watched.set(true);
        if self.client.resets.on_reset(&self.client.who) != Some(Excess::Close) {
            // What it owes is asked for before more is read.
            return;
        }
        self.closing.set(true);
        self.closed.notify_one();
    }

    /// Bytes that may be read in a turn.
    ///
    /// # Errors
    ///
    /// How long nothing may be read, while the client owes resets.
    pub(super) fn turn(&self) -> Result<usize, Duration> {
        let is_watched = self.watched.get();
        let standing = match is_watched || self.client.resets.is_owed() {
            true => self.client.resets.standing(&self.client.who),
            false => ResetStanding::default(),
        };
        if is_watched {
            self.watched.set(standing.is_touched);
            // A connection on which nothing was reset may carry somebody else's requests.
            if standing.debt > Duration::ZERO && self.client.excess() == Excess::Slow {
                return Err(standing.debt);
            }
        }
        Ok(match standing.is_touched || !self.answered.get() {
            true => TURN_BYTES_WATCHED,
            false => TURN_BYTES,
        })
    }
}

/// A request that has not been answered. Dropped so, its client has reset it.
#[derive(Debug)]
pub(super) struct Unanswered {
    pace: Rc<Pace>,
    answered: bool,
}

impl Unanswered {
    /// There is an answer.
    pub(super) fn answered(mut self) {
        self.answered = true;
        self.pace.answered.set(true);
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if !self.answered {
            self.pace.on_reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::resets::{ClientEnd, ResetPolicy};

    fn client(who: ResetClient, resets: &Arc<Resets>) -> Client {
        Client::new(who, resets)
    }

    #[tokio::test]
    async fn requests_that_are_reset_are_counted_and_answered_ones_are_not() {
        let resets = Arc::<Resets>::default();
        let pace = Pace::new(client(ResetClient::Program, &resets));
        for _ in 0..10 {
            pace.begin().answered();
        }
        assert!(!pace.watched.get());
        for _ in 0..ResetPolicy::PROGRAM.burst {
            drop(pace.begin());
        }
        assert!(pace.watched.get() && pace.turn() == Ok(TURN_BYTES_WATCHED));
        for _ in 0..ResetPolicy::PROGRAM.per_second {
            drop(pace.begin());
        }
        assert!(
            pace.turn()
                .is_err_and(|owed| owed > Duration::from_millis(500))
        );
    }

    /// However many connections a client has, they share what it may reset, also those that it makes
    /// later; another client notices nothing.
    #[tokio::test]
    async fn connections_of_one_client_share_a_budget() {
        let resets = Arc::<Resets>::default();
        let bad = || client(ResetClient::Peer("bad".into()), &resets);
        let paces: Vec<_> = (0..50).map(|_| Pace::new(bad())).collect();
        for _ in 0..=ResetPolicy::PEER.burst / 25 {
            for pace in &paces {
                drop(pace.begin());
            }
        }
        assert!(paces.iter().all(|pace| pace.turn().is_err()));
        let later = Pace::new(bad());
        later.begin().answered();
        assert_eq!(later.turn(), Ok(TURN_BYTES_WATCHED));
        drop(later.begin());
        assert!(later.turn().is_err());
        let other = Pace::new(client(ResetClient::Peer("good".into()), &resets));
        drop(other.begin());
        assert_eq!(other.turn(), Ok(TURN_BYTES_WATCHED));
        assert!(!other.closing.get());
    }

    /// A tunnel that is given up counts like a request that is reset; where it was a connection of its
    /// own, the next one waits until the debt is paid.
    #[tokio::test]
    async fn tunnels_that_are_given_up_are_charged() {
        let given_up = TunnelUse {
            end: Some((ClientEnd::Reset, Duration::ZERO)),
            sent: true,
            answered: false,
        };
        let used = TunnelUse {
            answered: true,
            ..given_up
        };
        let resets = Arc::<Resets>::default();
        for who in [
            ResetClient::outside([10, 0, 0, 1].into()),
            ResetClient::Peer("one".into()),
            ResetClient::Program,
        ] {
            let policy = who.policy();
            let client = client(who, &resets);
            let is_settled = async || {
                let settled = tokio::time::timeout(Duration::ZERO, client.settled());
                settled.await.is_ok()
            };
            for _ in 0..policy.burst * 2 {
                client.on_tunnel_end(&used);
            }
            assert!(is_settled().await, "{client:?}");
            for _ in 0..policy.burst {
                client.on_tunnel_end(&given_up);
            }
            assert!(is_settled().await, "{client:?}");
            for _ in 0..policy.per_second {
                client.on_tunnel_end(&given_up);
            }
            assert!(!is_settled().await, "{client:?}");
            let waited = tokio::time::timeout(Duration::from_secs(3), client.settled());
            assert!(waited.await.is_ok(), "{client:?}");
        }
    }

    /// A client that ends its connection gives up the tunnels on it; when we end it, nobody does.
    #[tokio::test]
    async fn tunnels_that_end_with_their_connection_are_charged_to_who_ended_it() {
        for (by_client, charged) in [(true, true), (false, false)] {
            let resets = Arc::<Resets>::default();
            let pace = Pace::new(client(ResetClient::Program, &resets));
            if by_client {
                pace.left();
            }
            pace.end();
            pace.on_tunnel_end(&TunnelUse::UNOPENED);
            assert_eq!(resets.standing(&pace.client.who).is_touched, charged);
        }
    }

    #[tokio::test]
    async fn what_ends_with_its_connection_was_not_reset() {
        let pace = Pace::new(client(ResetClient::Program, &Arc::default()));
        let request = pace.begin();
        pace.end();
        drop(request);
        assert!(!pace.watched.get());
    }
}
