//! Limits on the rate of requests to this sidecar's own application: their live state, which
//! outlives every change of policy.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::HeaderMap;
use weft_core::path::{PathAmbiguity, PathNormalization};
use weft_core::rate::lease::{Grant, Lapse, Report, Shares};
use weft_core::rate::{self, Limiter, RateLimit, RateScope, RuleName, Verdict};
use weft_core::route::RequestHead;
use weft_core::time::Instant;

use crate::telemetry::metrics::RateSample;

/// One limit with everything that was counted.
#[derive(Debug)]
pub(super) struct Rule {
    state: Mutex<State>,
    allowed: AtomicU64,
    refused: AtomicU64,
}

#[derive(Debug)]
struct State {
    limiter: Limiter,
    /// By which lease, while the control plane gave one.
    lease: Option<u64>,
    /// Since when the control plane is out of touch.
    out_of_touch: Option<Instant>,
    /// What has become of the lease meanwhile.
    lapse: Lapse,
    /// How many workloads serve the service.
    instances: u32,
}

/// A limit as a policy has it now, and its live side.
#[derive(Debug, Clone)]
pub(super) struct Limit {
    model: Arc<RateLimit>,
    rule: Arc<Rule>,
}

/// What limits say to a request.
#[derive(Debug)]
pub struct Rated(Result<Vec<(Arc<RateLimit>, Verdict)>, PathAmbiguity>);

/// Why limits refuse a request.
#[derive(Debug, Clone, Copy)]
pub enum RateRefusal<'a> {
    /// Of those that were exceeded, the one that refuses for longest.
    Exceeded(&'a RateLimit),
    /// Whether a limit applies cannot be told from the path.
    Ambiguous(PathAmbiguity),
}

impl Rule {
    fn new(model: &Arc<RateLimit>, instances: u32, now: Instant) -> Self {
        let shares = first_share(model, instances);
        Self {
            state: Mutex::new(State {
                limiter: Limiter::new(Arc::clone(model), shares, now),
                lease: None,
                out_of_touch: None,
                lapse: Lapse::Holds,
                instances,
            }),
            allowed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Takes a policy's parameters; what was counted stays.
    fn follow(&self, model: &Arc<RateLimit>, instances: u32, now: Instant) {
        let mut state = self.state();
        state.instances = instances;
        let shares = match (model.scope, state.lease) {
            (RateScope::Global, Some(_)) => state.limiter.shares().clone(),
            (RateScope::Global, None) | (RateScope::Local, _) => first_share(model, instances),
        };
        if model.scope == RateScope::Local {
            state.lease = None;
        }
        state.limiter.change(Arc::clone(model), shares, now);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in core would be a bug; what it had counted is still better than nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Asks for a token, by what is left of the lease.
    fn take(&mut self, key: &str, now: Instant) -> Verdict {
        self.lapse(now);
        self.limiter.take(key, now)
    }

    /// A lease ends while the control plane is out of touch.
    fn lapse(&mut self, now: Instant) {
        let Some(since) = self.out_of_touch else {
            return;
        };
        let lapse = Lapse::after(now.saturating_since(since));
        if lapse <= self.lapse || self.lease.is_none() {
            return;
        }
        self.lapse = lapse;
        let shares = self.limiter.shares().lapsed(lapse, self.instances);
        let limit = Arc::clone(self.limiter.limit());
        self.limiter.change(limit, shares, now);
        if lapse == Lapse::Even {
            // As if there had never been one: it follows the number of workloads again.
            self.lease = None;
        }
    }

    fn is_shared(&self) -> bool {
        self.limiter.limit().scope == RateScope::Global
    }
}

/// Until the control plane has given one.
fn first_share(model: &RateLimit, instances: u32) -> Shares {
    match model.scope {
        RateScope::Local => Shares::WHOLE,
        RateScope::Global => Shares::even(instances),
    }
}

/// Every limit of this sidecar.
#[derive(Debug, Default)]
pub(super) struct Rules(Mutex<HashMap<RuleName, Arc<Rule>>>);

impl Rules {
    /// Takes all limits that there are now, each with how many workloads serve its service; those
    /// that are gone are forgotten.
    pub(super) fn publish<'a>(
        &self,
        models: impl Iterator<Item = (&'a Arc<RateLimit>, u32)>,
        now: Instant,
    ) {
        let mut rules = self.rules();
        let mut next = HashMap::with_capacity(rules.len());
        for (model, instances) in models {
            if next.contains_key(&model.name) {
                continue;
            }
            let rule = match rules.remove(&model.name) {
                Some(rule) => {
                    rule.follow(model, instances, now);
                    rule
                }
                None => Arc::new(Rule::new(model, instances, now)),
            };
            next.insert(model.name.clone(), rule);
        }
        *rules = next;
    }

    /// A limit with its live side.
    pub(super) fn of(&self, model: &Arc<RateLimit>) -> Option<Limit> {
        let rule = self.rules().get(&model.name).cloned()?;
        let model = Arc::clone(model);
        Some(Limit { model, rule })
    }

    /// All of them, as a scrape sees them.
    pub(super) fn samples(&self) -> Vec<RateSample> {
        let rules = self.rules();
        let samples = rules.iter().map(|(name, rule)| {
            let state = rule.state();
            RateSample {
                name: name.clone(),
                allowed: rule.allowed.load(Ordering::Relaxed),
                refused: rule.refused.load(Ordering::Relaxed),
                keys: state.limiter.keys(),
                share: state.limiter.shares().base,
            }
        });
        let mut samples: Vec<RateSample> = samples.collect();
        samples.sort_by(|a, b| a.name.cmp(&b.name));
        samples
    }

    /// Limits that are shared.
    pub(super) fn shared(&self) -> BTreeSet<RuleName> {
        let rules = self.rules();
        let shared = rules.iter().filter(|(_, rule)| rule.state().is_shared());
        shared.map(|(name, _)| name.clone()).collect()
    }

    /// What is held of every limit that is shared, with what it was asked for until `now`, if that
    /// is to be told. From here on only a lease changes what is held: how many workloads there are
    /// does not any more.
    pub(super) fn reports(&self, now: Option<Instant>) -> Vec<Report> {
        let rules = self.rules();
        let reports = rules.iter().filter_map(|(name, rule)| {
            let mut state = rule.state();
            if let Some(now) = now {
                state.lapse(now);
            }
            state.is_shared().then(|| Report {
                rule: name.clone(),
                version: *state.lease.get_or_insert(0),
                holds: state.limiter.shares().clone(),
                demand: now.map(|now| state.limiter.demand(now)),
            })
        });
        reports.collect()
    }

    /// A new stream: versions of the one before mean nothing there.
    pub(super) fn begin_stream(&self) {
        for rule in self.rules().values() {
            let mut state = rule.state();
            state.lease = state.lease.map(|_| 0);
        }
    }

    /// The control plane is out of touch from now on: leases end after a while.
    pub(super) fn lose_touch(&self, now: Instant) {
        for rule in self.rules().values() {
            let mut state = rule.state();
            state.out_of_touch.get_or_insert(now);
        }
    }

    /// The control plane is in touch again. What has lapsed comes back with the next lease.
    pub(super) fn regain_touch(&self, now: Instant) {
        for rule in self.rules().values() {
            let mut state = rule.state();
            state.lapse(now);
            (state.out_of_touch, state.lapse) = (None, Lapse::Holds);
        }
    }

    /// Takes a lease.
    pub(super) fn lease(&self, grant: Grant, now: Instant) {
        let rule = self.rules().get(&grant.rule).cloned();
        let Some(rule) = rule else { return };
        let mut state = rule.state();
        if state.is_shared() {
            let limit = Arc::clone(state.limiter.limit());
            state.limiter.change(limit, grant.shares, now);
            state.lease = Some(grant.version);
        }
    }

    fn rules(&self) -> MutexGuard<'_, HashMap<RuleName, Arc<Rule>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks every limit that is for a request; `None` where none is. One that refuses takes no token,
/// and what the others took they get back. Where it cannot be told whether one is for it, none is
/// asked.
pub(super) fn rate(
    limits: &[Limit],
    head: &RequestHead<'_>,
    server: PathNormalization,
    caller: Option<&str>,
    now: Instant,
) -> Option<Rated> {
    let path = head.readings(server);
    let mut asked = Vec::new();
    for limit in limits {
        match limit.model.applies(head, &path) {
            Ok(true) => asked.push((limit, limit.model.key_of(head.headers, caller))),
            Ok(false) => {}
            Err(ambiguity) => return Some(Rated(Err(ambiguity))),
        }
    }
    if asked.is_empty() {
        return None;
    }
    let verdicts = asked.iter().map(|(limit, key)| {
        let verdict = limit.rule.state().take(key, now);
        (Arc::clone(&limit.model), verdict)
    });
    let verdicts: Vec<_> = verdicts.collect();
    let refused = verdicts.iter().any(|(_, verdict)| !verdict.allowed);
    for ((limit, key), (_, verdict)) in asked.into_iter().zip(&verdicts) {
        let rule = &limit.rule;
        match (verdict.allowed, refused) {
            (true, true) => rule.state().limiter.give_back(&key),
            (true, false) => {
                rule.allowed.fetch_add(1, Ordering::Relaxed);
            }
            (false, _) => {
                rule.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    Some(Rated(Ok(verdicts)))
}

impl Rated {
    /// Why the request is refused; `None` where all limits let it through.
    pub fn refusal(&self) -> Option<RateRefusal<'_>> {
        let verdicts = match &self.0 {
            Ok(verdicts) => verdicts,
            Err(ambiguity) => return Some(RateRefusal::Ambiguous(*ambiguity)),
        };
        let refused = verdicts.iter().filter(|(_, v)| !v.allowed);
        let tightest = refused.max_by_key(|(_, verdict)| verdict.wait);
        tightest.map(|(limit, _)| RateRefusal::Exceeded(limit))
    }

    /// Tells the caller what is left, where limits were asked.
    pub fn write(&self, headers: &mut HeaderMap) {
        let Ok(verdicts) = &self.0 else { return };
        let verdicts = verdicts.iter();
        rate::write(
            verdicts.map(|(limit, verdict)| (&**limit, *verdict)),
            headers,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use std::time::Duration;
    use weft_core::path::NormalPath;
    use weft_core::rate::RateKey;
    use weft_core::route::{HttpMatch, PathMatch};

    fn model(rule: u32, burst: u64, scope: RateScope) -> Arc<RateLimit> {
        Arc::new(RateLimit {
            name: RuleName {
                namespace: "shop".into(),
                policy: "web".into(),
                rule,
            },
            scope,
            matches: Vec::new(),
            key: vec![RateKey::Caller],
            requests: 1,
            per: Duration::from_secs(3600),
            burst,
        })
    }

    fn publish(rules: &Rules, models: &[Arc<RateLimit>], instances: u32) -> Vec<Limit> {
        let now = Instant::from_nanos(1);
        rules.publish(models.iter().map(|model| (model, instances)), now);
        models.iter().filter_map(|model| rules.of(model)).collect()
    }

    fn passed(limits: &[Limit], tries: usize) -> usize {
        let headers = HeaderMap::new();
        let head = RequestHead {
            method: &Method::GET,
            path: NormalPath::new("/"),
            query: None,
            headers: &headers,
        };
        let (now, server) = (Instant::from_nanos(2), PathNormalization::default());
        let ask = || rate(limits, &head, server, Some("me"), now).unwrap();
        (0..tries).filter(|_| ask().refusal().is_none()).count()
    }

    #[test]
    fn the_tightest_refuses_and_the_others_lose_nothing() {
        let rules = Rules::default();
        let both = [model(0, 3, RateScope::Local), model(1, 5, RateScope::Local)];
        let limits = publish(&rules, &both, 1);
        assert_eq!(passed(&limits, 10), 3);
        assert_eq!(passed(&limits[1..], 10), 2);
        let samples = rules.samples();
        let counted: Vec<_> = samples.iter().map(|s| (s.allowed, s.refused)).collect();
        assert_eq!(counted, [(3, 7), (5, 8)]);
    }

    #[test]
    fn nothing_is_taken_for_a_path_without_a_safe_reading() {
        let rules = Rules::default();
        let mut login = (*model(0, 3, RateScope::Local)).clone();
        login.matches = vec![HttpMatch::of(PathMatch::exact("/login").unwrap())];
        let all = model(1, 3, RateScope::Local);
        let limits = publish(&rules, &[all, Arc::new(login)], 1);
        let headers = HeaderMap::new();
        let head = RequestHead {
            method: &Method::GET,
            path: NormalPath::new("/%zz"),
            query: None,
            headers: &headers,
        };
        let (now, server) = (Instant::from_nanos(2), PathNormalization::default());
        let refused = rate(&limits, &head, server, None, now).unwrap();
        let ambiguous = PathAmbiguity::BrokenEscape;
        assert!(matches!(refused.refusal(), Some(RateRefusal::Ambiguous(a)) if a == ambiguous));
        let mut headers = HeaderMap::new();
        refused.write(&mut headers);
        assert!(headers.is_empty());
        // One that is for every path does not mind.
        assert!(
            rate(&limits[..1], &head, server, Some("me"), now)
                .unwrap()
                .refusal()
                .is_none()
        );
        assert_eq!(passed(&limits[..1], 5), 2);
    }

    #[test]
    fn what_was_counted_outlives_changes() {
        let rules = Rules::default();
        let limits = publish(&rules, &[model(0, 4, RateScope::Local)], 1);
        assert_eq!(passed(&limits, 3), 3);
        let limits = publish(&rules, &[model(0, 9, RateScope::Local)], 1);
        assert_eq!(passed(&limits, 5), 1);
        publish(&rules, &[], 1);
        assert!(rules.samples().is_empty());
    }

    #[test]
    fn leases_are_shares_until_the_next() {
        let rules = Rules::default();
        let global = [model(0, 100, RateScope::Global)];
        let limits = publish(&rules, &global, 4);
        assert_eq!(rules.samples()[0].share, 250_000);
        publish(&rules, &global, 2);
        assert_eq!(rules.samples()[0].share, 500_000);
        // Once told, only a lease changes it.
        assert_eq!(rules.reports(None)[0].version, 0);
        publish(&rules, &global, 5);
        assert_eq!(rules.samples()[0].share, 500_000);
        let shares = Shares {
            base: 100_000,
            ..Shares::WHOLE
        };
        let now = Instant::from_nanos(1);
        let grant = Grant {
            rule: global[0].name.clone(),
            version: 7,
            shares,
        };
        rules.lease(grant, now);
        publish(&rules, &global, 1);
        assert_eq!(
            (rules.reports(None)[0].version, rules.samples()[0].share),
            (7, 100_000)
        );
        assert_eq!(passed(&limits, 100), 10);
        rules.begin_stream();
        assert_eq!(
            (rules.reports(None)[0].version, rules.samples()[0].share),
            (0, 100_000)
        );
        let told = rules.reports(Some(now)).remove(0);
        assert_eq!(told.demand.map(|demand| demand.base), Some(100));
        publish(&rules, &[model(0, 100, RateScope::Local)], 2);
        assert!(rules.shared().is_empty() && rules.reports(None).is_empty());
        assert_eq!(rules.samples()[0].share, 1_000_000);
    }

    #[test]
    fn a_lease_ends_while_the_control_plane_is_out_of_touch() {
        let at = |secs: u64| Instant::from_nanos(secs * 1_000_000_000);
        // Of four: more than an even share becomes one at once, less only later.
        for (leased, ended) in [(900_000, 250_000), (50_000, 50_000)] {
            let rules = Rules::default();
            let global = [model(0, 100, RateScope::Global)];
            let limits = publish(&rules, &global, 4);
            let shares = Shares {
                base: leased,
                ..Shares::WHOLE
            };
            let rule = global[0].name.clone();
            let grant = || Grant {
                rule: rule.clone(),
                version: 7,
                shares: shares.clone(),
            };
            rules.lease(grant(), at(1));
            let share_at = |secs| {
                limits[0].rule.state().lapse(at(secs));
                rules.samples()[0].share
            };
            assert_eq!(share_at(1000), leased, "in touch");
            rules.lose_touch(at(1000));
            rules.lose_touch(at(1010));
            assert_eq!(share_at(1014), leased);
            assert_eq!(share_at(1015), ended);
            assert_eq!(share_at(1044), ended);
            assert_eq!(share_at(1045), 250_000);
            // From here on it goes by the number of workloads again.
            publish(&rules, &global, 2);
            assert_eq!(share_at(1046), 500_000);
            rules.regain_touch(at(1050));
            rules.lease(grant(), at(1051));
            assert_eq!(share_at(5000), leased);
        }
    }
}
