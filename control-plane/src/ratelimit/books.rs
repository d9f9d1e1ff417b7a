//! The books of every shared limit, as one control plane keeps them for the whole mesh: pure, `now` is
//! an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap};
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
/// KnownLimits that books are kept of.
pub(super) const LIMITS_MAX: usize = 10_000;
/// Streams of one control plane that relays.
pub(super) const STREAMS_MAX: usize = 100_000;
/// KnownLimits that are told of on one stream.
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

/// More than a control plane that relays may send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    /// Too many streams.
    #[error("streams: found more than {STREAMS_MAX}, which is the limit of one control plane")]
    Streams,
    /// Too many limits.
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
}

/// The books of one limit.
#[derive(Debug)]
struct OfLimit {
    /// The service that the limit is of.
    service: ServiceName,
    allocator: Allocator,
    standing: PolicyState,
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
    /// KnownLimits that it has told of.
    told: BTreeSet<RuleName>,
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
        };
        self.streams.insert(id, stream);
        Ok(())
    }

    /// Takes what a sidecar says on a stream that has begun, of limits of services that it serves.
    /// `known` is what this process knows of limits.
    pub(super) fn handle(
        &mut self,
        id: StreamId,
        reports: Vec<RelayedReport>,
        known: &dyn KnownLimits,
        now: Instant,
    ) -> Result<BTreeSet<RuleName>, Excess> {
        let mut names = BTreeSet::new();
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(names);
        };
        for RelayedReport { report, service } in reports {
            if !stream.told.contains(&report.rule) && stream.told.len() >= TOLD_MAX {
                return Err(Excess::Told);
            }
            let is_full = self.limits.len() >= LIMITS_MAX;
            if is_full && !self.limits.contains_key(&report.rule) {
                continue;
            }
            stream.told.insert(report.rule.clone());
            names.insert(report.rule.clone());
            let opens = self.opens.max(now + LEARNED_AFTER);
            let limit = self.limits.entry(report.rule).or_insert_with(|| OfLimit {
                service: service.clone(),
                allocator: Allocator::new(false, opens),
                standing: PolicyState::Awaited(now),
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
        Ok(names)
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
            for stream in self.streams.values_mut() {
                stream.told.retain(|rule| self.limits.contains_key(rule));
            }
        }
    }

    /// What is to be sent of these limits, by stream.
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
            for lease in limit.allocator.poll(now) {
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

    /// Whether there is no room for another limit.
    pub(super) fn is_full(&self) -> bool {
        self.limits.len() >= LIMITS_MAX
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
mod tests {
    use std::sync::Mutex;

    use weft_core::rate::lease::{Demand, LOST_AFTER, Report, Shares};

    use super::*;
    use crate::peer::PeerIdentity;

    /// KnownLimits in force, as pairs of a service and a policy, where a star is every service.
    #[derive(Debug, Default)]
    struct InForce(Vec<(&'static str, &'static str)>, Mutex<Vec<String>>);

    impl KnownLimits for InForce {
        fn of_service(&self, service: &ServiceName) -> Shared {
            let service = service.to_string();
            let of_service = self.0.iter().filter(|(of, _)| *of == "*" || *of == service);
            let shared = of_service
                .map(|(_, policy)| (rule(policy), false))
                .collect();
            self.1.lock().unwrap().push(service);
            shared
        }

        fn of_sidecar(&self, _peer: &PeerIdentity) -> BTreeMap<RuleName, ServiceName> {
            BTreeMap::new()
        }
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    fn rule(policy: &str) -> RuleName {
        RuleName {
            namespace: "shop".into(),
            policy: policy.into(),
            rule: 0,
        }
    }

    fn id(link: u64, stream: u64) -> StreamId {
        StreamId { link, stream }
    }

    fn report(policy: &str, service: &str, asked: u64) -> RelayedReport {
        RelayedReport {
            report: Report {
                rule: rule(policy),
                version: 0,
                holds: Shares::even(2),
                demand: Some(Demand {
                    base: asked,
                    ..Demand::default()
                }),
            },
            service: service.parse().unwrap(),
        }
    }

    fn all(policies: &'static str) -> InForce {
        let policies = policies.split_whitespace();
        InForce(policies.map(|p| ("*", p)).collect(), Mutex::default())
    }

    /// A stream that has told of a limit at 0 s.
    fn tell(books: &mut Books, id: StreamId, policy: &str, service: &str) {
        let instance = format!("i-{}-{}", id.link, id.stream).into();
        books.open(id, &instance).unwrap();
        let told = vec![report(policy, service, id.stream)];
        books.handle(id, told, &all("p q r"), at(0)).unwrap();
    }

    #[test]
    fn only_services_with_books_are_looked_at() {
        let mut books = Books::new(at(0));
        tell(&mut books, id(OWN, 1), "p", "shop/web");
        tell(&mut books, id(OWN, 1), "q", "shop/web");
        tell(&mut books, id(OWN, 1), "r", "shop/db");
        let sweep = |books: &mut Books, in_force: &[(&'static str, &'static str)]| {
            let known = InForce(in_force.to_vec(), Mutex::default());
            books.sweep(&known, at(1));
            let kept: Vec<String> = books.limits.keys().map(|r| r.policy.to_string()).collect();
            (kept.concat(), known.1.lock().unwrap().join(" "))
        };
        let text = |kept: &str, looked_at: &str| (kept.to_owned(), looked_at.to_owned());
        let in_force = [("shop/db", "r"), ("shop/web", "p"), ("shop/web", "q")];
        assert_eq!(
            sweep(&mut books, &in_force),
            text("pqr", "shop/db shop/web")
        );
        assert_eq!(
            sweep(&mut books, &in_force[1..2]),
            text("p", "shop/db shop/web")
        );
        // Its policy is for another service now.
        tell(&mut books, id(OWN, 1), "p", "shop/api");
        assert_eq!(
            sweep(&mut books, &[("shop/api", "p")]),
            text("p", "shop/api")
        );
        assert_eq!(sweep(&mut books, &[]), text("", "shop/api"));
        assert_eq!(sweep(&mut books, &[]), text("", ""));
    }

    #[test]
    fn a_stream_that_ends_gives_up_what_it_told_of() {
        let mut books = Books::new(at(0));
        tell(&mut books, id(1, 1), "p", "shop/web");
        tell(&mut books, id(1, 2), "p", "shop/web");
        tell(&mut books, id(2, 1), "q", "shop/web");
        let empty = |books: &mut Books, now: u64| -> Vec<bool> {
            let names = books.names();
            let _sent_to_nobody = books.poll(&names, at(now));
            let limits = books.limits.values();
            limits.map(|limit| limit.allocator.is_empty()).collect()
        };
        books.close(id(1, 1), at(0));
        books.close_link(1, at(10));
        let lost = LOST_AFTER.as_secs();
        assert_eq!(empty(&mut books, 9 + lost), [false, false]);
        assert_eq!(empty(&mut books, 10 + lost), [true, false]);
        assert_eq!((books.streams.len(), books.by_number.len()), (1, 1));
    }

    #[test]
    fn nothing_is_granted_before_a_policy_is_known_and_others_were_heard() {
        let mut books = Books::new(at(0));
        let none = all("");
        let open = |books: &mut Books, stream: u64| {
            let instance = format!("i-{stream}").into();
            books.open(id(1, stream), &instance).unwrap();
        };
        // Another control plane has seen the policy already.
        for stream in [1, 2] {
            open(&mut books, stream);
            let told = vec![report("p", "shop/web", 90 * (2 - stream))];
            let names = books.handle(id(1, stream), told, &none, at(20)).unwrap();
            assert!(books.poll(&names, at(20 + stream)).is_empty());
        }
        books.sweep(&none, at(79));
        assert_eq!(books.names(), [rule("p")]);
        books.sweep(&all("p"), at(79));
        let due = books.poll(&[rule("p")], at(79));
        assert_eq!(due.keys().collect::<Vec<_>>(), [&id(1, 2)], "it gives up");
        // What no policy gets to have is forgotten.
        let told = vec![report("q", "shop/web", 1)];
        books.handle(id(1, 1), told, &none, at(100)).unwrap();
        books.sweep(&all("p"), at(159));
        assert_eq!(books.names().len(), 2);
        books.sweep(&all("p"), at(160));
        assert_eq!(books.names(), [rule("p")]);
        // A new limit: the first to report is not given what the others hold.
        let told = vec![report("r", "shop/web", 90)];
        let names = books.handle(id(1, 1), told, &all("p r"), at(200)).unwrap();
        assert!(books.poll(&names, at(202)).is_empty());
        assert_eq!(books.poll(&names, at(203)).len(), 1);
    }

    #[test]
    fn a_newer_stream_of_an_instance_counts_wherever_it_is() {
        let mut books = Books::new(at(0));
        let instance: Arc<str> = "i".into();
        for id in [id(1, 9), id(2, 3)] {
            books.open(id, &instance).unwrap();
            let told = vec![report("p", "shop/web", 1)];
            books.handle(id, told, &all("p"), at(0)).unwrap();
        }
        books.close(id(1, 9), at(1));
        let due = books.poll(&[rule("p")], at(3));
        assert_eq!(due.keys().collect::<Vec<_>>(), [&id(2, 3)]);
    }

    #[test]
    fn what_a_control_plane_sends_is_bounded() {
        let mut books = Books::new(at(0));
        let instance: Arc<str> = "i".into();
        let other: Arc<str> = "j".into();
        books.open(id(1, 1), &instance).unwrap();
        books.open(id(1, 1), &instance).unwrap();
        assert_eq!(books.open(id(1, 1), &other), Err(Excess::Instance(1)));
        for stream in 2..=STREAMS_MAX as u64 {
            books.open(id(1, stream), &instance).unwrap();
        }
        assert_eq!(books.open(id(1, 0), &instance), Err(Excess::Streams));
        books.open(id(2, 0), &instance).unwrap();
        books.close(id(1, 7), at(0));
        books.open(id(1, 0), &instance).unwrap();
        let many = |count: usize| (0..count).map(|n| report(&format!("p-{n}"), "shop/web", 1));
        let none = all("");
        let told = books.handle(id(1, 1), many(TOLD_MAX).collect(), &none, at(0));
        assert_eq!(told.unwrap().len(), TOLD_MAX);
        let told = books.handle(id(1, 1), vec![report("x", "shop/web", 1)], &none, at(0));
        assert_eq!(told, Err(Excess::Told));
        // KnownLimits of all streams together.
        for stream in 2..20 {
            let told = (0..TOLD_MAX).map(|n| report(&format!("q-{stream}-{n}"), "shop/web", 1));
            let told = books.handle(id(1, stream), told.collect(), &none, at(0));
            told.unwrap();
        }
        assert_eq!(books.names().len(), LIMITS_MAX);
    }
}
