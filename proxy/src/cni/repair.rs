//! Redirects pods of the mesh that are not redirected, and says so. When it tries again and what it says
//! is decided by [`Ledger`], which is pure: whoever may change the rules of his own pod can have them put
//! back each second, and can fill no log with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use super::looks::{Looks, Tally};
use super::netns::{self, Identity, Standing};
use super::pods::{Pods, Target};
use super::records::{self, Records};
use crate::intercept;

/// How long a round waits for what is looked at in it; the next one takes what it found later.
const ROUND_MAX: Duration = Duration::from_secs(1);
/// The rules of a namespace that is not redirected with them are put there again after this time, doubled
/// each time.
const AGAIN_MIN: Duration = Duration::from_secs(1);
/// At most after this time.
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// From one line about a pod to the next, at least.
const LINE_EVERY: Duration = Duration::from_secs(60);
/// Lines about all pods in a minute.
const LINES_PER_MINUTE: u32 = 30;

/// What is done for the pods of a node.
#[derive(Debug)]
pub(super) struct Repair {
    pods: Pods,
    ledger: Ledger,
    looks: Looks<Option<Found>>,
    empty: Empty,
    /// Records that cannot be used, of which it was said: ids of containers and uids of pods.
    said_of: BTreeSet<String>,
}

/// What was found in a namespace, and done.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    /// It is redirected.
    InForce,
    /// The rules are there, and no listener has answered.
    Unanswered,
    /// The rules are there, and there is no route.
    NoRoute,
    /// It was not redirected, and it is not the time to put the rules there again.
    Waiting,
    /// It was not redirected, for this reason: the rules were put there.
    Put(String),
    /// The rules could not be put there.
    Failed(String),
}

impl Repair {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            pods: Pods::default(),
            ledger: Ledger::new(now),
            looks: Looks::default(),
            empty: Empty::default(),
            said_of: BTreeSet::new(),
        }
    }

    /// Looks at every pod once, as far as there is time: a pod whose last look has not ended is left out, and
    /// no pod waits for it. The error says why none can be looked at.
    pub(super) fn look(
        &mut self,
        proc_dir: &Path,
        own: Identity,
        state_dir: &Path,
    ) -> Result<(), String> {
        let records = records::read(state_dir);
        let targets = self.pods.look(proc_dir, own, &records);
        let empty = { records.all.iter() }.filter(|record| !self.pods.has(record));
        let empty = empty.map(|record| &*record.container);
        for container in self.empty.update(empty, Instant::now()) {
            // That cannot be done is seen when it is tried again.
            let _tried_again = records::remove(state_dir, &container);
        }
        records::forget_unwritten(state_dir);
        self.say_of_records(&records);
        self.ledger.retain(&targets);
        let mut waiting = self.looks.waiting(targets);
        let until = Instant::now() + ROUND_MAX;
        let mut tally = Tally::default();
        loop {
            while self.looks.has_room()
                && let Some(target) = waiting.pop_front()
            {
                let now = Instant::now();
                let may_put = self.ledger.may_put(&target, now);
                self.looks
                    .start(target, now, move |target| repair(target, may_put));
            }
            let left = until.saturating_duration_since(Instant::now());
            let Some((target, found)) = self.looks.wait(left) else {
                return tally.verdict();
            };
            tally.add(&found);
            let found = match found {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                Err(error) => Found::Failed(error),
            };
            if let Some(line) = self.ledger.handle(&target, &found, Instant::now()) {
                say(&target, &found, line);
            }
        }
    }

    /// Says once of each record that cannot be used what was found in it.
    fn say_of_records(&mut self, records: &Records) {
        let unreadable = records.unreadable.iter();
        let unreadable = unreadable.map(|(container, why)| (&**container, &**why));
        let unusable: BTreeMap<&str, &str> = unreadable.chain(self.pods.unusable()).collect();
        for (of, why) in &unusable {
            if !self.said_of.contains(*of) {
                tracing::error!(
                    of,
                    why,
                    unusable = unusable.len(),
                    "the plugin's record of a sandbox cannot be used: its pod is not repaired until it is \
                     made anew"
                );
            }
        }
        self.said_of = unusable.into_keys().map(str::to_owned).collect();
    }
}

/// Sandboxes that are on record and have no process, and since when this program has seen that.
#[derive(Debug, Default)]
struct Empty(BTreeMap<String, Instant>);

impl Empty {
    /// Takes which sandboxes have no process now, by the ids of their containers; says which have had none
    /// for so long that their end was not told to the plugin.
    fn update<'a>(&mut self, empty: impl Iterator<Item = &'a str>, now: Instant) -> Vec<String> {
        let mut before = std::mem::take(&mut self.0);
        for container in empty {
            let since = before.remove(container).unwrap_or(now);
            self.0.insert(container.to_owned(), since);
        }
        let over = self.0.iter().filter(|(_, since)| {
            now.saturating_duration_since(**since) >= records::KEPT_WITHOUT_SANDBOX
        });
        over.map(|(container, _)| container.clone()).collect()
    }
}

/// Works on the namespace that was looked at: the process may have ended, and its number may be that
/// of one in another namespace by now. Nothing is found of a pod that has gone.
fn repair(target: &Target, may_put: bool) -> Result<Option<Found>, String> {
    let uid = target.rules.uid;
    let netns = &*target.netns;
    let opened = || netns::open(netns, target.namespace);
    let Some((first, second)) = opened().zip(opened()) else {
        return Ok(None);
    };
    let standing = netns::within_file(first, netns, move || netns::standing(uid))??;
    let why = match standing {
        Standing::InForce => return Ok(Some(Found::InForce)),
        Standing::Unanswered => return Ok(Some(Found::Unanswered)),
        Standing::NoRoute => return Ok(Some(Found::NoRoute)),
        Standing::NotInForce(_) if !may_put => return Ok(Some(Found::Waiting)),
        Standing::NotInForce(why) => why,
    };
    let rules = target.rules.clone();
    let put = netns::within_file(second, netns, move || intercept::run(&rules))?;
    Ok(Some(match put {
        Ok(()) => Found::Put(why),
        Err(error) => Found::Failed(error.to_string()),
    }))
}

fn say(target: &Target, found: &Found, Line { unsaid }: Line) {
    let (pod, place) = (&*target.pod, target.netns.display());
    match found {
        Found::InForce => tracing::info!(pod, unsaid, "a pod is redirected"),
        Found::Unanswered => {
            tracing::info!(pod, %place, unsaid, "a pod has its rules, and no listener answers yet");
        }
        Found::NoRoute => {
            tracing::info!(pod, %place, unsaid, "a pod has its rules and no route: nothing can leave it");
        }
        Found::Waiting => {}
        Found::Put(why) => tracing::warn!(
            pod, %place, why, unsaid,
            "a pod was not redirected: its rules were put there"
        ),
        Found::Failed(error) => {
            tracing::error!(pod, %place, error, unsaid, "a pod is not redirected");
        }
    }
}

/// What was done for which pod, and said of it.
#[derive(Debug)]
struct Ledger {
    pods: BTreeMap<String, Entry>,
    /// Lines that may be written now, and since when.
    lines: (u32, Instant),
    /// Lines that were not written because there were too many.
    unsaid: u64,
}

#[derive(Debug)]
struct Entry {
    namespace: Identity,
    /// Not before.
    put_at: Option<Instant>,
    /// How often the rules were put there without it being redirected after that.
    puts: u32,
    said: Option<(Kind, Instant)>,
}

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The pod is as it should be, as far as is known.
    Good,
    NoRoute,
    Put,
    Failed,
}

/// A line that is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line {
    /// How many about any pod were not, since the last one.
    unsaid: u64,
}

impl Ledger {
    fn new(now: Instant) -> Self {
        Self {
            pods: BTreeMap::new(),
            lines: (LINES_PER_MINUTE, now),
            unsaid: 0,
        }
    }

    /// Forgets all other pods, and those whose sandbox is another.
    fn retain(&mut self, targets: &[Target]) {
        let targets: BTreeMap<&str, Identity> = { targets.iter() }
            .map(|target| (&*target.pod, target.namespace))
            .collect();
        self.pods
            .retain(|pod, entry| targets.get(&**pod) == Some(&entry.namespace));
    }

    /// Whether the rules may be put into a namespace that is not redirected.
    fn may_put(&self, target: &Target, now: Instant) -> bool {
        let entry = self.pods.get(&target.pod);
        let put_at = entry.and_then(|entry| entry.put_at);
        put_at.is_none_or(|at| at <= now)
    }

    /// Takes what was found; whether a line is to be written about it: once for each change of a
    /// namespace, and no more of one pod and of all than their rates allow.
    fn handle(&mut self, target: &Target, found: &Found, now: Instant) -> Option<Line> {
        let entry = self.pods.entry(target.pod.clone()).or_insert(Entry {
            namespace: target.namespace,
            put_at: None,
            puts: 0,
            said: None,
        });
        let kind = match found {
            Found::InForce | Found::Unanswered => Kind::Good,
            Found::NoRoute => Kind::NoRoute,
            Found::Put(_) => Kind::Put,
            Found::Failed(_) => Kind::Failed,
            Found::Waiting => return None,
        };
        match kind {
            Kind::Good | Kind::NoRoute => (entry.put_at, entry.puts) = (None, 0),
            Kind::Put | Kind::Failed => {
                let doubled = AGAIN_MIN.saturating_mul(2_u32.saturating_pow(entry.puts.min(16)));
                entry.put_at = Some(now + doubled.min(AGAIN_MAX));
                entry.puts = entry.puts.saturating_add(1);
            }
        }
        match entry.said {
            // As it should be from the begin on.
            None if kind == Kind::Good => return None,
            Some((said, _)) if said == kind => return None,
            Some((_, at)) if now.saturating_duration_since(at) < LINE_EVERY => return None,
            None | Some(_) => {}
        }
        if !take_line(&mut self.lines, now) {
            self.unsaid = self.unsaid.saturating_add(1);
            return None;
        }
        entry.said = Some((kind, now));
        let unsaid = std::mem::take(&mut self.unsaid);
        Some(Line { unsaid })
    }
}

/// Takes one of the lines that may be written.
fn take_line((left, since): &mut (u32, Instant), now: Instant) -> bool {
    if now.saturating_duration_since(*since) >= Duration::from_secs(60) {
        (*left, *since) = (LINES_PER_MINUTE, now);
    }
    let taken = *left > 0;
    *left = left.saturating_sub(1);
    taken
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::cni::arguments;

    fn target(pod: &str) -> Target {
        Target {
            pod: pod.to_owned(),
            netns: PathBuf::from("/proc/7/ns/net"),
            namespace: (4, 5),
            rules: Arc::new(arguments("[]").unwrap()),
        }
    }

    #[test]
    fn a_sandbox_is_over_when_it_has_had_no_process_for_long_and_not_between_two() {
        let begin = Instant::now();
        let kept = records::KEPT_WITHOUT_SANDBOX;
        let mut empty = Empty::default();
        let mut over = |ids: &[&str], after| empty.update(ids.iter().copied(), begin + after);
        let second = Duration::from_secs(1);
        assert!(over(&["a", "b"], Duration::ZERO).is_empty());
        // What runs in it is started anew.
        assert!(over(&["a"], kept - second).is_empty());
        assert_eq!(over(&["a", "b"], kept), ["a"]);
        assert!(over(&["b"], 2 * kept - second).is_empty());
        assert_eq!(over(&["b"], 2 * kept), ["b"]);
        assert!(over(&[], 3 * kept).is_empty());
    }

    fn put() -> Found {
        Found::Put("flushed".to_owned())
    }

    #[test]
    fn rules_that_do_not_help_are_put_less_and_less_often_and_told_of_once() {
        let begin = Instant::now();
        let mut ledger = Ledger::new(begin);
        let web = target("web");
        let (mut puts, mut lines) = (Vec::new(), 0);
        for second in 0..300 {
            let now = begin + Duration::from_secs(second);
            let found = match ledger.may_put(&web, now) {
                true => put(),
                false => Found::Waiting,
            };
            if found != Found::Waiting {
                puts.push(second);
            }
            lines += u32::from(ledger.handle(&web, &found, now).is_some());
        }
        assert_eq!(puts, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]);
        assert_eq!(lines, 1);
        // Once it is redirected, the next time they are put at once.
        let now = begin + Duration::from_secs(300);
        let line = ledger.handle(&web, &Found::InForce, now);
        assert_eq!(line, Some(Line { unsaid: 0 }));
        assert!(ledger.may_put(&web, now));
    }

    #[test]
    fn a_pod_that_flushes_its_rules_each_second_is_told_of_once_a_minute() {
        let begin = Instant::now();
        let mut ledger = Ledger::new(begin);
        let web = target("web");
        let mut lines = 0;
        for second in 0..600 {
            let now = begin + Duration::from_secs(second);
            let found = if second % 2 == 0 {
                put()
            } else {
                Found::InForce
            };
            lines += u32::from(ledger.handle(&web, &found, now).is_some());
        }
        assert!((9..=10).contains(&lines), "{lines}");
    }

    #[test]
    fn what_is_as_it_should_be_is_not_told_and_a_namespace_without_a_route_once() {
        let begin = Instant::now();
        let mut ledger = Ledger::new(begin);
        for (pod, found, expected) in [
            ("web", Found::InForce, false),
            ("web", Found::Unanswered, false),
            ("web", Found::Waiting, false),
            ("api", Found::NoRoute, true),
            ("api", Found::NoRoute, false),
            ("db", Found::Failed("no".to_owned()), true),
            ("db", Found::Failed("other".to_owned()), false),
        ] {
            let line = ledger.handle(&target(pod), &found, begin);
            assert_eq!(line.is_some(), expected, "{pod} {found:?}");
        }
    }

    #[test]
    fn many_pods_have_a_rate_together_and_those_that_went_are_forgotten() {
        let begin = Instant::now();
        let mut ledger = Ledger::new(begin);
        let pods: Vec<_> = (0..100).map(|n| target(&n.to_string())).collect();
        let told = |ledger: &mut Ledger, now| {
            let lines = pods
                .iter()
                .filter_map(|pod| ledger.handle(pod, &put(), now));
            lines.collect::<Vec<_>>()
        };
        assert_eq!(told(&mut ledger, begin).len(), 30);
        assert_eq!(told(&mut ledger, begin + AGAIN_MIN).len(), 0);
        let later = told(&mut ledger, begin + LINE_EVERY);
        assert_eq!(later.len(), 30, "those that were not told of");
        assert_eq!(later[0], Line { unsaid: 140 });
        let mut other = target("1");
        other.namespace = (4, 6);
        ledger.retain(&[target("0"), other]);
        assert_eq!(ledger.pods.keys().collect::<Vec<_>>(), ["0"]);
    }
}
