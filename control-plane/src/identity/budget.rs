//! What may be signed for whom: pure, with `now` as an argument.
//!
//! A credential is checked before anything is charged. What it then costs is charged to the
//! credential, to the address it comes from and to the total, in this order: a peer that is over its
//! own budget takes nothing of the total. Attempts with a wrong credential have a budget of their
//! own, of the address they come from; it takes nothing from those with a right one, who may be at
//! the same address.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::records::{INSTANCES_MAX, TOKENS_MAX};
use crate::budget::{Bucket, Rate, SourcePrefix};

/// Certificates for one instance, or for one join token. An instance renews at half of its
/// certificate's life, which is 10 s at least.
pub const PER_CREDENTIAL: Rate = Rate::new(1, 20);
/// Certificates for all instances behind one address (an IPv4 address or an IPv6 /64): 2,000
/// sidecars of one machine come back at once. Half of what there is in total.
pub const PER_SOURCE: Rate = Rate::new(1_000, 4_000);
/// Certificates in total: about what one core signs.
pub const TOTAL: Rate = Rate::new(2_000, 8_000);
/// Tokens of service accounts from one address that the cluster is asked about: a node may hide 110
/// pods behind its own address, which start at once.
pub const REVIEWS_PER_ADDRESS: Rate = Rate::new(10, 250);
/// The same from all addresses of an IPv6 /64: whoever has one has all of its addresses, but the pods of
/// a node that share one have an address each, and budgets of their own.
pub const REVIEWS_PER_PREFIX: Rate = Rate::new(50, 500);
/// Tokens of service accounts in total that the cluster is asked about: what one API server answers
/// beside its other work.
pub const REVIEWS: Rate = Rate::new(500, 2_000);
/// Attempts with a wrong credential from one address.
pub const FAILED_PER_SOURCE: Rate = Rate::new(1, 20);
/// Join tokens that one user of the control plane's machine may make over the join socket.
pub const JOINS_PER_USER: Rate = Rate::new(1, 2_000);
/// Accounts of addresses and of users that are kept; beyond, newcomers share one.
const ACCOUNTS_MAX: usize = 65_536;
/// Accounts of credentials: as many as can be authenticated.
const CREDENTIALS_MAX: usize = TOKENS_MAX + INSTANCES_MAX;

/// A budget that is used up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "too many {what} for {whose}: allowed are {} a second and {} at once; try again in {} ms",
    .rate.per_second,
    .rate.burst,
    .wait.as_millis() + 1
)]
pub struct Exceeded {
    what: &'static str,
    whose: String,
    rate: Rate,
    wait: Duration,
}

/// The budgets of signatures.
#[derive(Debug)]
pub struct Budgets {
    by_credential: Accounts<String>,
    by_source: Accounts<SourcePrefix>,
    total: Bucket,
    failed: Accounts<SourcePrefix>,
    reviews_by_address: Accounts<IpAddr>,
    reviews_by_prefix: Accounts<SourcePrefix>,
    reviews: Bucket,
    joins: Accounts<u32>,
}

impl Budgets {
    /// All of them full.
    pub fn new(now: Instant) -> Self {
        Self {
            by_credential: Accounts::new(CREDENTIALS_MAX, now),
            by_source: Accounts::new(ACCOUNTS_MAX, now),
            total: Bucket::full(now),
            failed: Accounts::new(ACCOUNTS_MAX, now),
            reviews_by_address: Accounts::new(ACCOUNTS_MAX, now),
            reviews_by_prefix: Accounts::new(ACCOUNTS_MAX, now),
            reviews: Bucket::full(now),
            joins: Accounts::new(ACCOUNTS_MAX, now),
        }
    }

    /// Charges a signature. `credential` names the instance or the token that was authenticated.
    pub fn charge(
        &mut self,
        credential: &str,
        source: IpAddr,
        now: Instant,
    ) -> Result<(), Exceeded> {
        let exceeded = |whose: String, rate| {
            move |wait| Exceeded {
                what: "certificates",
                whose,
                rate,
                wait,
            }
        };
        self.by_credential
            .take(credential.to_owned(), PER_CREDENTIAL, now)
            .map_err(exceeded(credential.to_owned(), PER_CREDENTIAL))?;
        self.by_source
            .take(source.into(), PER_SOURCE, now)
            .map_err(exceeded(format!("peers at {source}"), PER_SOURCE))?;
        self.total
            .take(TOTAL, 1, now)
            .map_err(exceeded("all peers together".to_owned(), TOTAL))
    }

    /// Charges an attempt with a wrong credential.
    pub fn charge_failed(&mut self, source: IpAddr, now: Instant) -> Result<(), Exceeded> {
        let taken = self.failed.take(source.into(), FAILED_PER_SOURCE, now);
        taken.map_err(|wait| Exceeded {
            what: "attempts with wrong credentials",
            whose: format!("peers at {source}"),
            rate: FAILED_PER_SOURCE,
            wait,
        })
    }

    /// Charges a question to the cluster about the token of a service account, before it is known
    /// whether that is one.
    pub fn charge_review(&mut self, source: IpAddr, now: Instant) -> Result<(), Exceeded> {
        let exceeded = |whose: String, rate| {
            move |wait| Exceeded {
                what: "tokens of service accounts",
                whose,
                rate,
                wait,
            }
        };
        // An address that is over its own budget takes nothing of those that it shares; and addresses of
        // a prefix that is over its own do not fill up the accounts.
        if let Some(wait) = self
            .reviews_by_address
            .wait(&source, REVIEWS_PER_ADDRESS, now)
        {
            return Err(exceeded(format!("peers at {source}"), REVIEWS_PER_ADDRESS)(
                wait,
            ));
        }
        if source.is_ipv6() {
            self.reviews_by_prefix
                .take(source.into(), REVIEWS_PER_PREFIX, now)
                .map_err(exceeded(
                    format!("peers in the /64 of {source}"),
                    REVIEWS_PER_PREFIX,
                ))?;
        }
        self.reviews_by_address
            .take(source, REVIEWS_PER_ADDRESS, now)
            .map_err(exceeded(format!("peers at {source}"), REVIEWS_PER_ADDRESS))?;
        self.reviews
            .take(REVIEWS, 1, now)
            .map_err(exceeded("all peers together".to_owned(), REVIEWS))
    }

    /// Charges a join token to a user of this machine.
    pub fn charge_join(&mut self, user: u32, now: Instant) -> Result<(), Exceeded> {
        let taken = self.joins.take(user, JOINS_PER_USER, now);
        taken.map_err(|wait| Exceeded {
            what: "join tokens",
            whose: format!("user {user}"),
            rate: JOINS_PER_USER,
            wait,
        })
    }
}

/// Buckets by key; those that are full again are forgotten.
#[derive(Debug)]
struct Accounts<K> {
    buckets: HashMap<K, Bucket>,
    /// Of those for whom there was no room.
    shared: Bucket,
    /// How many are kept.
    max: usize,
    /// Full ones are looked for when there are this many.
    forget_at: usize,
    /// When they were looked for last.
    swept: Instant,
}

/// The least [`Accounts::forget_at`].
const FORGET_FROM: usize = 1024;
/// Accounts are not looked through more often: the work for a request stays the same however many
/// there are.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

impl<K: Hash + Eq> Accounts<K> {
    fn new(max: usize, now: Instant) -> Self {
        Self {
            max,
            buckets: HashMap::new(),
            shared: Bucket::full(now),
            forget_at: FORGET_FROM,
            swept: now,
        }
    }

    /// How long it takes until there is something for a key that has an account.
    fn wait(&self, key: &K, rate: Rate, now: Instant) -> Option<Duration> {
        let mut bucket = *self.buckets.get(key)?;
        bucket.take(rate, 1, now).err()
    }

    fn take(&mut self, key: K, rate: Rate, now: Instant) -> Result<(), Duration> {
        let due = now.saturating_duration_since(self.swept) >= SWEEP_EVERY;
        if due && self.buckets.len() >= self.forget_at {
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
            self.forget_at = (self.buckets.len() * 2).clamp(FORGET_FROM, self.max);
            self.swept = now;
        }
        if self.buckets.len() >= self.max && !self.buckets.contains_key(&key) {
            return self.shared.take(rate, 1, now);
        }
        let bucket = self.buckets.entry(key);
        bucket
            .or_insert_with(|| Bucket::full(now))
            .take(rate, 1, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[test]
    fn two_thousand_come_back_at_once_from_one_machine() {
        let now = Instant::now();
        let mut budgets = Budgets::new(now);
        for instance in 0..2_000 {
            let name = format!("i-{instance}");
            assert_eq!(budgets.charge(&name, source(1), now), Ok(()), "{name}");
        }
    }

    #[test]
    fn one_peer_takes_nothing_of_the_others() {
        let now = Instant::now();
        let mut budgets = Budgets::new(now);
        let granted = (0..10_000).filter(|_| budgets.charge("i-1", source(1), now).is_ok());
        assert_eq!(granted.count() as u64, PER_CREDENTIAL.burst);
        assert_eq!(budgets.charge("i-2", source(1), now), Ok(()));
        // An address full of instances leaves half.
        for instance in 0..100_000 {
            let _over = budgets.charge(&format!("j-{instance}"), source(1), now);
        }
        let error = budgets.charge("i-3", source(1), now).unwrap_err();
        let expected = "too many certificates for peers at 0.0.0.1: allowed are 1000 a second and \
                        4000 at once; try again in 2 ms";
        assert_eq!(error.to_string(), expected);
        for instance in 0..3_900 {
            let name = format!("k-{instance}");
            assert_eq!(budgets.charge(&name, source(2), now), Ok(()), "{name}");
        }
    }

    #[test]
    fn failed_attempts_cost_the_right_ones_nothing() {
        let now = Instant::now();
        let mut budgets = Budgets::new(now);
        let failed = (0..1_000).filter(|_| budgets.charge_failed(source(1), now).is_ok());
        assert_eq!(failed.count() as u64, FAILED_PER_SOURCE.burst);
        assert_eq!(budgets.charge_failed(source(2), now), Ok(()));
        assert_eq!(budgets.charge("i-1", source(1), now), Ok(()));
        let later = now + Duration::from_secs(1);
        assert_eq!(budgets.charge_failed(source(1), later), Ok(()));
    }

    #[test]
    fn one_address_does_not_use_up_the_questions_of_all() {
        let now = Instant::now();
        let mut budgets = Budgets::new(now);
        let asked = (0..10_000).filter(|_| budgets.charge_review(source(1), now).is_ok());
        assert_eq!(asked.count() as u64, REVIEWS_PER_ADDRESS.burst);
        assert_eq!(budgets.charge_review(source(2), now), Ok(()));
        // And certificates that need no question.
        assert_eq!(budgets.charge("i-1", source(1), now), Ok(()));
        let asked = (3..10_000).filter(|n| budgets.charge_review(source(*n), now).is_ok());
        assert!((asked.count() as u64) < REVIEWS.burst);
    }

    #[test]
    fn pods_of_one_prefix_have_budgets_of_their_own_and_a_prefix_has_not_those_of_all() {
        let now = Instant::now();
        let address = |n: u64| IpAddr::V6(((0xfd << 120) | u128::from(n)).into());
        let mut budgets = Budgets::new(now);
        let asked = (0..10_000).filter(|_| budgets.charge_review(address(1), now).is_ok());
        assert_eq!(asked.count() as u64, REVIEWS_PER_ADDRESS.burst);
        assert_eq!(
            budgets.charge_review(address(2), now),
            Ok(()),
            "a neighbour"
        );
        let asked = (3..100_000).filter(|n| budgets.charge_review(address(*n), now).is_ok());
        let left = REVIEWS_PER_PREFIX.burst - REVIEWS_PER_ADDRESS.burst - 1;
        assert_eq!(asked.count() as u64, left);
        assert_eq!(
            budgets.charge_review(source(1), now),
            Ok(()),
            "another network"
        );
    }

    #[test]
    fn accounts_are_bounded() {
        let mut now = Instant::now();
        let mut budgets = Budgets::new(now);
        for number in 0..100_000 {
            let _over = budgets.charge_failed(source(number), now);
        }
        assert_eq!(budgets.failed.buckets.len(), ACCOUNTS_MAX);
        now += Duration::from_secs(3600);
        assert_eq!(budgets.charge_failed(source(1), now), Ok(()));
        assert_eq!(budgets.failed.buckets.len(), 1);
    }
}
