//! The books of every shared limit, as one control plane keeps them for the whole mesh: pure, `now` is
//! an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use weft_core::name::ServiceName;
use weft_core::rate::RuleName;
use weft_core::rate::lease::{Allocator, Grant, Lease};
use weft_core::time::Instant;
use weft_proto::relays::RelayedReport;

use super::limits::{KnownLimits, Shared};

/// Of a limit whose first report has just come, others are heard for this long before anything is
/// raised: everybody who holds a part of it is told of it at about the same time, and reports every
/// second.
const LEARNED_AFTER: Duration = Duration::from_secs(3);
/// How long reports of a limit are kept that no policy has here. Another control plane may have seen
/// the policy earlier.
const AWAITED: Duration = Duration::from_secs(60);
/// Limits that books are kept of.
pub(super) const LIMITS_MAX: usize = 10_000;
/// Those of them whose policies are in one namespace.
pub(super) const NAMESPACE_LIMITS_MAX: usize = 1000;
/// A limit is not looked at more often, whatever is said of it.
pub(super) const POLLED_EVERY: Duration = Duration::from_millis(100);
/// New streams are noted for the next confirmation of an election not more often.
const NOTED_EVERY: Duration = Duration::from_millis(100);
/// Notes that wait for a confirmation: more than come before a term that is not renewed ends.
const NOTED_MAX: usize = 1000;
/// Streams of one control plane that relays.
pub(super) const STREAMS_MAX: usize = 100_000;
/// Limits that are told of on one stream.
pub(super) const TOLD_MAX: usize = 1024;

/// The streams of this control plane's own sidecars.
pub(super) const OWN: u64 = 0;

/// A sidecar's stream, wherever the sidecar is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StreamId {
    /// Through whom it comes: [`OWN`], or the link of a control plane that relays.
    pub(super) link: u64,
    /// Its number there.
    pub(super) stream: u64,
}

/// More than a control plane that relays, or a sidecar, may send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    /// Too many streams.
    #[error("streams: found more than {STREAMS_MAX}, which is the limit of one control plane")]
    Streams,
    /// Too many limits of a sidecar.
    #[error("limits of one stream: found more than {TOLD_MAX}, which is the limit")]
    Told,
    /// A stream is of one sidecar.
    #[error("stream {0}: found another instance than the one that opened it")]
    Instance(u64),
}

/// The books of all limits.
#[derive(Debug)]
pub(super) struct Books {
    /// Nothing is raised before.
    opens: Instant,
    limits: BTreeMap<RuleName, OfLimit>,
    streams: BTreeMap<StreamId, Stream>,
    by_number: HashMap<u64, StreamId>,
    /// Streams of each link.
    links: HashMap<u64, usize>,
    /// The last number that a stream was given; that of a newer one is greater.
    number: u64,
    /// The last number that a stream had been given, and when that was looked at: those that no election
    /// has confirmed yet.
    unconfirmed: VecDeque<(Instant, u64)>,
    /// Streams up to this number were there when this process asked last whether it is elected still,
    /// and it was. The shares of others are not raised.
    confirmed: u64,
    /// The greatest version of any lease. Books of a limit that were closed may be opened again while
    /// their leases are on their way: those acknowledge nothing then.
    version: u64,
    /// Limits of each namespace.
    namespaces: HashMap<Arc<str>, usize>,
    /// Limits that were to be looked at too early.
    due: BTreeSet<RuleName>,
}

/// The books of one limit.
#[derive(Debug)]
struct OfLimit {
    /// The service that the limit is of.
    service: ServiceName,
    allocator: Allocator,
    standing: PolicyState,
    /// When it was looked at last.
    polled: Option<Instant>,
}

/// Whether a policy that this process knows has a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PolicyState {
    /// None has had it yet, since its first report.
    Awaited(Instant),
    InForce,
}

#[derive(Debug)]
struct Stream {
    number: u64,
    instance: Arc<str>,
    /// Limits that it has told of.
    told: BTreeSet<RuleName>,
    /// Whether it was told that it is on the books.
    is_welcome: bool,
}

impl Books {
    /// Nobody is known. Nothing is raised before `opens`.
    pub(super) fn new(opens: Instant) -> Self {
        Self {
            opens,
            limits: BTreeMap::new(),
            streams: BTreeMap::new(),
            by_number: HashMap::new(),
            links: HashMap::new(),
            number: 0,
            unconfirmed: VecDeque::new(),
            confirmed: u64::MAX,
            version: 0,
            namespaces: HashMap::new(),
            due: BTreeSet::new(),
        }
    }

    /// Who keeps the books is elected for them still: it was so when this was asked at `asked_at`, or
    /// nobody else can be (`None`). A process that was suspended with its machine may believe in a term
    /// that has ended, since its clock stood still. No stream of before stands then; the shares of those
    /// that have begun since are not raised, because the answer that it has is older than they are.
    pub(super) fn confirm(&mut self, asked_at: Option<Instant>, now: Instant) {
        let Some(asked_at) = asked_at else {
            self.confirmed = u64::MAX;
            return;
        };
        if self.confirmed == u64::MAX {
            self.confirmed = 0;
        }
        let (noted, last) = match self.unconfirmed.back() {
            Some((noted, number)) => (Some(*noted), *number),
            None => (None, self.confirmed),
        };
        let is_due = noted.is_none_or(|noted| now.saturating_since(noted) >= NOTED_EVERY);
        if last < self.number && is_due && self.unconfirmed.len() < NOTED_MAX {
            self.unconfirmed.push_back((now, self.number));
        }
        while let Some((noted, number)) = self.unconfirmed.front()
            && *noted <= asked_at
        {
            self.confirmed = *number;
            self.unconfirmed.pop_front();
        }
    }

    /// A stream begins; of one that has begun nothing changes.
    pub(super) fn open(&mut self, id: StreamId, instance: &Arc<str>) -> Result<(), Excess> {
        if let Some(stream) = self.streams.get(&id) {
            return match stream.instance == *instance {
                true => Ok(()),
                false => Err(Excess::Instance(id.stream)),
            };
        }
        let of_link = self.links.entry(id.link).or_default();
        // Its own sidecars are counted by the limits of connections.
        if id.link != OWN && *of_link >= STREAMS_MAX {
            return Err(Excess::Streams);
        }
        *of_link += 1;
        self.number += 1;
        self.by_number.insert(self.number, id);
        let stream = Stream {
            number: self.number,
            instance: Arc::clone(instance),
            told: BTreeSet::new(),
            is_welcome: false,
        };
        self.streams.insert(id, stream);
        Ok(())
    }

    /// Takes what a sidecar says on a stream that has begun, of limits of services that it serves.
    /// `known` is what this process knows of limits. There is no room for everything: a sidecar holds
    /// the limits beyond by its first shares.
    pub(super) fn handle(
        &mut self,
        id: StreamId,
        reports: Vec<RelayedReport>,
        known: &dyn KnownLimits,
        now: Instant,
    ) -> BTreeSet<RuleName> {
        let mut names = BTreeSet::new();
        let Some(stream) = self.streams.get_mut(&id) else {
            return names;
        };
        for RelayedReport { report, service } in reports {
            if !stream.told.contains(&report.rule) && stream.told.len() >= TOLD_MAX {
                continue;
            }
            if !self.limits.contains_key(&report.rule) {
                let namespace = Arc::clone(&report.rule.namespace);
                let of_namespace = self.namespaces.get(&namespace).copied().unwrap_or(0);
                if self.limits.len() >= LIMITS_MAX || of_namespace >= NAMESPACE_LIMITS_MAX {
                    continue;
                }
                self.namespaces.insert(namespace, of_namespace + 1);
            }
            stream.told.insert(report.rule.clone());
            names.insert(report.rule.clone());
            let opens = self.opens.max(now + LEARNED_AFTER);
            let limit = self.limits.entry(report.rule).or_insert_with(|| OfLimit {
                service: service.clone(),
                // As long as no policy says that it has none, it may have keys.
                allocator: Allocator::new(true, opens).after(self.version),
                standing: PolicyState::Awaited(now),
                polled: None,
            });
            // A policy may be for another service now.
            limit.service = service;
            let by = (&stream.instance, stream.number);
            let (version, holds, demand) = (report.version, report.holds, report.demand);
            limit.allocator.handle_report(by, version, holds, demand);
        }
        for name in &names {
            if let Some(limit) = self.limits.get_mut(name)
                && limit.standing != PolicyState::InForce
                && let Some(keyed) = known.of_service(&limit.service).get(name)
            {
                limit.stands(*keyed);
            }
        }
        names
    }

    /// Whether a stream is to be told now that what its sidecar uses is on the books: once, when it has
    /// told of a limit. The sidecar does not know it otherwise. A control plane that relays may not know
    /// yet that it does not reach the books, and the share of a sidecar that has come to it from elsewhere
    /// is given to others meanwhile.
    pub(super) fn welcome(&mut self, id: StreamId) -> bool {
        match self.streams.get_mut(&id) {
            Some(stream) if !stream.told.is_empty() => {
                !std::mem::replace(&mut stream.is_welcome, true)
            }
            Some(_) | None => false,
        }
    }

    /// A stream has ended: what it held is given to others when its sidecar has been out of touch for
    /// long enough since `lost`.
    pub(super) fn close(&mut self, id: StreamId, lost: Instant) {
        let Some(closed) = self.streams.remove(&id) else {
            return;
        };
        self.by_number.remove(&closed.number);
        if let Some(of_link) = self.links.get_mut(&id.link) {
            *of_link -= 1;
        }
        for rule in &closed.told {
            if let Some(limit) = self.limits.get_mut(rule) {
                let instance = &closed.instance;
                limit
                    .allocator
                    .handle_disconnect(instance, closed.number, lost);
            }
        }
    }

    /// All streams of a link have ended.
    pub(super) fn close_link(&mut self, link: u64, lost: Instant) {
        let [first, last] = [u64::MIN, u64::MAX].map(|stream| StreamId { link, stream });
        let of_link = self.streams.range(first..=last);
        let of_link: Vec<StreamId> = of_link.map(|(id, _)| *id).collect();
        for id in of_link {
            self.close(id, lost);
        }
        self.links.remove(&link);
    }

    /// Closes the books of limits that are in force no more. Only services that books are kept of are
    /// looked at, each once.
    pub(super) fn sweep(&mut self, known: &dyn KnownLimits, now: Instant) {
        let services: BTreeSet<&ServiceName> = self.limits.values().map(|l| &l.service).collect();
        let services = services.into_iter();
        let in_force: Shared = services
            .flat_map(|service| known.of_service(service))
            .collect();
        let before = self.limits.len();
        self.limits.retain(|rule, limit| match in_force.get(rule) {
            Some(keyed) => {
                limit.stands(*keyed);
                true
            }
            None => match limit.standing {
                PolicyState::InForce => false,
                PolicyState::Awaited(since) => now.saturating_since(since) < AWAITED,
            },
        });
        if self.limits.len() < before {
            self.namespaces.clear();
            for rule in self.limits.keys() {
                let namespace = Arc::clone(&rule.namespace);
                *self.namespaces.entry(namespace).or_default() += 1;
            }
            for stream in self.streams.values_mut() {
                stream.told.retain(|rule| self.limits.contains_key(rule));
            }
        }
    }

    /// What is to be sent of these limits, by stream. Those that were looked at just now are due later.
    pub(super) fn poll<'a>(
        &mut self,
        names: impl IntoIterator<Item = &'a RuleName>,
        now: Instant,
    ) -> BTreeMap<StreamId, Vec<Grant>> {
        let mut due: BTreeMap<StreamId, Vec<Grant>> = BTreeMap::new();
        for name in names {
            let Some(limit) = self.limits.get_mut(name) else {
                continue;
            };
            if limit.standing != PolicyState::InForce {
                continue;
            }
            let polled = limit.polled;
            if polled.is_some_and(|polled| now.saturating_since(polled) < POLLED_EVERY) {
                self.due.insert(name.clone());
                continue;
            }
            limit.polled = Some(now);
            self.due.remove(name);
            limit.allocator.raise_up_to(self.confirmed);
            let leases = limit.allocator.poll(now);
            self.version = self.version.max(limit.allocator.version());
            for lease in leases {
                let Lease {
                    stream,
                    version,
                    shares,
                    ..
                } = lease;
                let Some(id) = self.by_number.get(&stream) else {
                    continue;
                };
                due.entry(*id).or_default().push(Grant {
                    rule: name.clone(),
                    version,
                    shares,
                });
            }
        }
        due
    }

    /// The limits that [`Self::poll`] has put off.
    pub(super) fn take_due(&mut self) -> BTreeSet<RuleName> {
        std::mem::take(&mut self.due)
    }

    /// Whether there is no room for another limit, of some namespace at least.
    pub(super) fn is_full(&self) -> bool {
        let mut namespaces = self.namespaces.values();
        self.limits.len() >= LIMITS_MAX || namespaces.any(|limits| *limits >= NAMESPACE_LIMITS_MAX)
    }

    /// Before that, nothing is raised.
    #[cfg(test)]
    pub(super) fn opens(&self) -> Instant {
        self.opens
    }

    /// What the books of a limit have of a sidecar.
    #[cfg(test)]
    pub(super) fn held(&self, rule: &RuleName, instance: &str) -> Option<u32> {
        self.limits.get(rule)?.allocator.held(instance)
    }

    /// The limits that books are kept of.
    pub(super) fn names(&self) -> Vec<RuleName> {
        self.limits.keys().cloned().collect()
    }
}

impl OfLimit {
    fn stands(&mut self, keyed: bool) {
        self.standing = PolicyState::InForce;
        self.allocator.set_keyed(keyed);
    }
}

#[cfg(test)]
#[path = "books_tests.rs"]
mod tests;
