//! Who is connected, what each of them uses of its budget, and what ends their streams and
//! connections: revocation, the end of a certificate, a newer stream in the place of an older one.
//!
//! The decisions are in [`crate::budget`]; here they meet locks, tokens and guards. A guard gives
//! back what it stands for when it is dropped.

mod connection;
mod stream;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::budget::{
    Account, Accounts, AnonymousConnections, CERTIFICATE_GRACE, CertificateState, Limits, Reason,
    Refusal, StreamKind, standing,
};

use crate::identity::Identities;
use crate::unix_seconds;

pub use connection::{AnonymousPlace, CallGuard, Calls, PeerConnection};
pub use stream::LiveStream;
use stream::{End, Stream};

/// Interval of the check for ended certificates.
const TICK_EVERY: Duration = Duration::from_millis(500);
/// Refusals of one reason, and rejections, are logged once in this time; all are counted.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Locks, whatever a panic elsewhere has left: counts may then be too high by what it held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All peers of the control plane.
#[derive(Debug)]
pub struct Peers {
    limits: Limits,
    instances: Mutex<HashMap<Arc<str>, Arc<Instance>>>,
    accounts: Mutex<Accounts>,
    anonymous: Mutex<Anonymous>,
    refused: [Counted; Reason::ALL.len()],
    /// Responses with resources that a sidecar did not take.
    rejections: Counted,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Anonymous {
    connections: AnonymousConnections,
    /// What cuts each of them.
    cuts: HashMap<crate::budget::AnonymousId, CancellationToken>,
}

/// Something that is counted every time, and logged once in [`LOG_EVERY`].
#[derive(Debug, Default)]
struct Counted {
    count: AtomicU64,
    logged: Mutex<Option<Instant>>,
}

impl Counted {
    /// Counts one more; how many there are, where that is to be logged.
    fn count(&self, now: Instant) -> Option<u64> {
        let total = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let mut logged = lock(&self.logged);
        let due = logged.is_none_or(|at| now.duration_since(at) >= LOG_EVERY);
        if due {
            *logged = Some(now);
        }
        due.then_some(total)
    }
}

/// One instance with everything of it that stands.
#[derive(Debug)]
struct Instance {
    name: Arc<str>,
    account: Mutex<Account>,
    standing: Mutex<OfInstance>,
}

#[derive(Debug, Default)]
struct OfInstance {
    /// The latest end of a certificate that it has proved in a handshake, seconds since the Unix
    /// epoch.
    proved_until: i64,
    streams: BTreeMap<(StreamKind, u64), Arc<Stream>>,
    connections: BTreeMap<u64, Arc<connection::Ends>>,
}

impl Peers {
    /// Nobody is connected.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            instances: Mutex::default(),
            accounts: Mutex::default(),
            anonymous: Mutex::default(),
            refused: Default::default(),
            rejections: Counted::default(),
            next: AtomicU64::new(1),
        })
    }

    /// What holds for all of them.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A number for a stream or a connection; a newer one has a greater number.
    pub fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Ends everything of an instance or an operator: its streams with the reason, its connections a moment later.
    pub fn revoke(&self, instance: &str) {
        let Some(found) = lock(&self.instances).get(instance).map(Arc::clone) else {
            return;
        };
        let standing = lock(&found.standing);
        for stream in standing.streams.values() {
            stream.end(End::Revoked);
        }
        for connection in standing.connections.values() {
            connection.revoke();
        }
    }

    /// Ends everything of instances and operators that were revoked.
    pub fn revoke_all(&self, is_revoked: impl Fn(&str) -> bool) {
        let names: Vec<_> = lock(&self.instances).keys().map(Arc::clone).collect();
        for name in names.iter().filter(|name| is_revoked(name)) {
            self.revoke(name);
        }
    }

    /// Ends what revocations and the ends of certificates end, within a second. Runs until the task
    /// is dropped.
    pub async fn keep(self: Arc<Self>, identities: Arc<Identities>) {
        let mut revoked = identities.watch_revoked();
        let mut departed = identities.watch_departed();
        let mut tick = tokio::time::interval(TICK_EVERY);
        loop {
            tokio::select! {
                _ = tick.tick() => self.tick(unix_seconds(), Instant::now()),
                Ok(()) = revoked.changed() => {
                    self.revoke_all(|name| identities.is_revoked(name));
                }
                Ok(()) = departed.changed() => {
                    self.revoke_all(|name| identities.is_revoked(name));
                }
            }
        }
    }

    /// Ends a stream whose place another one of its instance has taken.
    pub fn supersede(&self, instance: &str, kind: StreamKind, stream: u64) {
        let Some(found) = lock(&self.instances).get(instance).map(Arc::clone) else {
            return;
        };
        if let Some(stream) = lock(&found.standing).streams.get(&(kind, stream)) {
            stream.end(End::Superseded);
        }
    }

    /// Ends what stands on certificates that have ended (`unix_now`, seconds), cuts connections
    /// whose peers do not take the end of a stream, and forgets instances that are gone. To be
    /// called about once a second.
    pub fn tick(&self, unix_now: i64, now: Instant) {
        let all: Vec<_> = lock(&self.instances).values().map(Arc::clone).collect();
        for instance in &all {
            self.check(instance, unix_now, now);
        }
        let mut instances = lock(&self.instances);
        let before = instances.len();
        // With the guards of its connections and streams the references to an instance go.
        instances.retain(|_, instance| {
            Arc::strong_count(instance) > 2 || !lock(&instance.account).is_unused(now)
        });
        let mut accounts = lock(&self.accounts);
        for _gone in instances.len()..before {
            accounts.end_instance();
        }
        drop((accounts, instances));
        lock(&self.anonymous).connections.forget(now);
    }

    fn check(&self, instance: &Instance, unix_now: i64, now: Instant) {
        let of = lock(&instance.standing);
        let worth = |not_after| standing(not_after, of.proved_until, unix_now, CERTIFICATE_GRACE);
        for stream in of.streams.values() {
            if worth(stream.not_after()) == CertificateState::Over {
                stream.end(End::Certificate);
            }
        }
        let mut unread = 0;
        for connection in of.connections.values() {
            match worth(connection.not_after()) {
                CertificateState::Valid => {}
                CertificateState::Ended => connection.drain(),
                CertificateState::Over => connection.revoke(),
            }
            unread += usize::from(connection.cut_unread(now));
        }
        drop(of);
        for _ in 0..unread {
            self.count(
                Reason::Unread,
                &instance.name,
                &"the end of a stream is not read",
            );
        }
    }

    /// The account of an instance, made where there is none.
    fn instance(&self, name: &Arc<str>) -> Arc<Instance> {
        let mut instances = lock(&self.instances);
        if let Some(found) = instances.get(name) {
            return Arc::clone(found);
        }
        let instance = Arc::new(Instance {
            name: Arc::clone(name),
            account: Mutex::new(Account::new(Instant::now())),
            standing: Mutex::default(),
        });
        instances.insert(Arc::clone(name), Arc::clone(&instance));
        lock(&self.accounts).begin_instance();
        instance
    }

    /// Counts a refusal and logs it, where none of its reason was logged a moment ago.
    pub fn note_refused(&self, peer: &dyn std::fmt::Display, refusal: &Refusal) {
        self.count(refusal.reason(), peer, refusal);
    }

    /// Counts a peer that let a deadline pass.
    pub fn note_late(&self, address: SocketAddr, what: &str) {
        self.count(Reason::Deadline, &address, &what);
    }

    fn count(&self, reason: Reason, peer: &dyn std::fmt::Display, text: &dyn std::fmt::Display) {
        if let Some(total) = self.refused[reason as usize].count(Instant::now()) {
            let reason = reason.as_str();
            tracing::warn!(%peer, reason, total, "refused: {text}");
        }
    }

    /// Logs what an instance did not take of what it was sent, where nothing like it was logged a
    /// moment ago.
    fn note_rejection(&self, instance: &str, what: &str) {
        if let Some(total) = self.rejections.count(Instant::now()) {
            tracing::warn!(%instance, total, "rejected by a sidecar: {what}");
        }
    }

    /// How often peers were refused, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (Reason, u64)> {
        let counts = Reason::ALL.into_iter().zip(&self.refused);
        counts.map(|(reason, refused)| (reason, refused.count.load(Ordering::Relaxed)))
    }

    /// Connections of instances, connections without a certificate, and names subscribed to.
    pub fn totals(&self) -> (usize, usize, usize) {
        let accounts = lock(&self.accounts);
        let (connections, names) = (accounts.connections(), accounts.names());
        drop(accounts);
        (connections, lock(&self.anonymous).connections.len(), names)
    }
}
