//! One sidecar's stream as a state machine: what it asked for, what it holds, what is on its way,
//! what it said about it, and what to send next.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use weft_proto::resource::Kind;

use crate::compile::{Compiled, Encoded};
use crate::store::Revision;

/// Names that one sidecar may ask for, per kind.
const NAMES_MAX: usize = 20_000;
/// Longest name that may be asked for, bytes.
const NAME_MAX_BYTES: usize = 512;
/// Resources of one response, in bytes of content; one that is larger by itself goes alone.
const PUSH_MAX_BYTES: usize = 4 * 1024 * 1024;
/// A rejection's reasons are cut here by the sidecar, in bytes: what is not named in a text of
/// (nearly) this length may have been rejected as well.
const REASONS_CUT_BYTES: usize = 8 * 1024 - 4;
/// What is kept of one reason, in characters.
const REASON_MAX_CHARS: usize = 512;
/// Asks for everything of a kind.
const WILDCARD: &str = "*";

/// A request from the wire.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Names asked for.
    pub subscribe: Vec<String>,
    /// Names not wanted any more.
    pub unsubscribe: Vec<String>,
    /// On the first request of a kind: what the sidecar holds from before, name to version.
    pub initial_versions: HashMap<String, String>,
    /// What it says about a response.
    pub answer: Option<Answer>,
}

/// An acknowledgement, or a rejection.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Which response.
    pub nonce: String,
    /// One line `NAME: reason` for every resource that was not taken.
    pub error: Option<String>,
}

/// A response to be sent.
#[derive(Debug, Clone)]
pub struct Push {
    /// Of which kind everything in it is.
    pub kind: Kind,
    /// By which it is answered.
    pub nonce: String,
    /// New or different resources; those that lost a name stand before those that gained one.
    pub resources: Vec<Arc<Encoded>>,
    /// Resources and names that are not, or not any more.
    pub removed: Vec<String>,
    /// The compilation that it is from.
    pub generation: u64,
}

/// Why a stream is ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// It asks for too much.
    #[error("{found} names asked for of kind {}, allowed are {NAMES_MAX}", kind.as_str())]
    TooManyNames {
        /// The kind.
        kind: Kind,
        /// How many it would be.
        found: usize,
    },
    /// It asks by name for what comes with something else.
    #[error(
        "slices are not asked for by name: those of a service come to who asked for the service"
    )]
    SliceByName,
    /// It asks for something that cannot be a name.
    #[error("a name of {found} bytes was asked for, allowed are {NAME_MAX_BYTES}")]
    NameTooLong {
        /// Its length.
        found: usize,
    },
}

/// What a request said about an earlier response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// Nothing.
    No,
    /// All of it is in force.
    Acknowledged,
    /// At least one resource was not taken.
    Rejected,
}

/// What became of a resource at the sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Sent, not answered yet.
    Sent,
    /// In force there.
    Acknowledged,
    /// Not taken; what it had before is in force.
    Rejected {
        /// Why.
        reason: String,
    },
}

/// A resource that a sidecar holds, or was sent.
#[derive(Debug, Clone)]
pub struct Held {
    /// The version sent last.
    pub version: String,
    /// What became of it.
    pub standing: Standing,
    /// The names it went by, if it was sent by us.
    aliases: Vec<String>,
}

/// How far a sidecar has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Applied {
    /// The last compilation whose every change it answered.
    pub generation: u64,
    /// The store's revision in that.
    pub revision: Revision,
}

/// What was said about a name that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// Nothing yet, and the sidecar waits for it.
    Nothing,
    /// Nothing on this stream; what it holds from an earlier one will do.
    Before,
    /// That there is no such thing.
    Absent,
    /// The resource.
    Present,
}

#[derive(Debug)]
struct Outstanding {
    nonce: String,
    sent: Vec<(String, String)>,
    /// What is applied with its answer, unless there was more than fits.
    applied: Option<Applied>,
}

/// Everything about one kind.
#[derive(Debug, Default)]
struct OfKind {
    opened: bool,
    learned: bool,
    wildcard: bool,
    asked: BTreeMap<String, Told>,
    held: BTreeMap<String, Held>,
    outstanding: Option<Outstanding>,
    applied: Option<Applied>,
    /// The compilation for which there is nothing to say.
    clean: Option<u64>,
}

/// One stream.
#[derive(Debug, Default)]
pub struct Session {
    kinds: BTreeMap<Kind, OfKind>,
    nonce: u64,
}

impl Session {
    /// Takes a request; what it said about an earlier response.
    pub fn handle_request(
        &mut self,
        kind: Kind,
        request: Request,
    ) -> Result<Answered, SessionError> {
        if kind == Kind::EndpointSlice && !request.subscribe.is_empty() {
            return Err(SessionError::SliceByName);
        }
        if kind == Kind::Service
            && let Some(slices) = self.kinds.get_mut(&Kind::EndpointSlice)
        {
            // Which slices the sidecar is to have depends on the services it asks for.
            slices.clean = None;
        }
        self.kinds.entry(kind).or_default().handle(kind, request)
    }

    /// The services whose slices the sidecar is to have; `None` before services were asked for at all,
    /// as it is not known then which slices it has in vain. A sidecar drops no slice by itself: what
    /// was sent and not removed is what it has.
    fn services_asked(&self) -> Option<Vec<String>> {
        let services = self.kinds.get(&Kind::Service)?;
        services
            .opened
            .then(|| services.asked.keys().cloned().collect())
    }

    /// The next response, if there is anything to say and nothing of its kind on its way.
    pub fn poll_push(&mut self, compiled: &Compiled) -> Option<Push> {
        for kind in Kind::ALL {
            let due = self.kinds.get(&kind).is_some_and(|of_kind| {
                of_kind.outstanding.is_none() && of_kind.clean != Some(compiled.generation)
            });
            if !due {
                continue;
            }
            let mut wanted = Vec::new();
            if kind == Kind::EndpointSlice {
                let Some(services) = self.services_asked() else {
                    continue;
                };
                wanted.extend(services.iter().flat_map(|name| compiled.slices(name)));
            }
            let Some(of_kind) = self.kinds.get_mut(&kind) else {
                continue;
            };
            of_kind.learn(kind, compiled);
            let Some(plan) = of_kind.plan(kind, compiled, wanted) else {
                of_kind.clean = Some(compiled.generation);
                of_kind.applied = Some(applied(compiled));
                continue;
            };
            self.nonce += 1;
            let nonce = self.nonce.to_string();
            return Some(of_kind.send(kind, nonce, plan, compiled));
        }
        None
    }

    /// How far the sidecar has come with everything that it asked for; `None` while it has not
    /// answered at all, or asked for nothing.
    pub fn applied(&self) -> Option<Applied> {
        let opened = self.kinds.values().map(|of_kind| of_kind.applied);
        opened.min().flatten()
    }

    /// What it holds of a kind, by name.
    pub fn held(&self, kind: Kind) -> impl Iterator<Item = (&str, &Held)> {
        let of_kind = self.kinds.get(&kind).into_iter();
        of_kind.flat_map(|k| k.held.iter().map(|(name, held)| (name.as_str(), held)))
    }

    /// Names that it asked for.
    pub fn asked(&self, kind: Kind) -> impl Iterator<Item = &str> {
        let of_kind = self.kinds.get(&kind).into_iter();
        of_kind.flat_map(|k| k.asked.keys().map(String::as_str))
    }

    /// How many resources it holds or was sent, of all kinds.
    pub fn holds(&self) -> usize {
        self.kinds.values().map(|of_kind| of_kind.held.len()).sum()
    }

    /// What it did not take, by kind and name, with the reason.
    pub fn rejected(&self) -> impl Iterator<Item = (Kind, &str, &str)> {
        self.kinds.iter().flat_map(|(kind, of_kind)| {
            let held = of_kind.held.iter();
            held.filter_map(|(name, held)| match &held.standing {
                Standing::Rejected { reason } => Some((*kind, name.as_str(), reason.as_str())),
                Standing::Sent | Standing::Acknowledged => None,
            })
        })
    }

    /// Whether it has asked for nothing yet.
    pub fn is_new(&self) -> bool {
        self.kinds.is_empty()
    }
}

fn applied(compiled: &Compiled) -> Applied {
    Applied {
        generation: compiled.generation,
        revision: compiled.revision,
    }
}

/// What is to be said about one kind.
#[derive(Debug, Default)]
struct Plan {
    removed: BTreeSet<String>,
    resources: Vec<Arc<Encoded>>,
    absent: Vec<String>,
    complete: bool,
}

impl OfKind {
    fn handle(&mut self, kind: Kind, request: Request) -> Result<Answered, SessionError> {
        self.clean = None;
        let first = !self.opened;
        if first {
            self.opened = true;
            // What concerns everyone comes to everyone.
            self.wildcard = !kind.on_demand();
            let held = request.initial_versions.into_iter();
            self.held = held.take(NAMES_MAX).map(held_from_before).collect();
        }
        let answered = match request.answer {
            Some(answer) => self.handle_answer(answer),
            None => Answered::No,
        };
        for name in request.unsubscribe {
            self.forget(&name);
        }
        let told = if first { Told::Before } else { Told::Nothing };
        for name in request.subscribe {
            if name == WILDCARD {
                self.wildcard = true;
                continue;
            }
            if name.len() > NAME_MAX_BYTES {
                return Err(SessionError::NameTooLong { found: name.len() });
            }
            self.asked.insert(name, told);
        }
        let found = self.asked.len();
        if found > NAMES_MAX {
            return Err(SessionError::TooManyNames { kind, found });
        }
        Ok(answered)
    }

    fn forget(&mut self, name: &str) {
        if name == WILDCARD {
            self.wildcard = false;
        }
        self.asked.remove(name);
        if self.wildcard {
            return;
        }
        // The sidecar drops it by itself; a removal could only cross with its asking again. What
        // is on its way may arrive after it was dropped: that is removed once it was answered.
        let outstanding = self.outstanding.as_ref();
        let on_its_way =
            |resource: &str| outstanding.is_some_and(|o| o.sent.iter().any(|(n, _)| n == resource));
        let asked = &self.asked;
        self.held.retain(|resource, held| {
            let goes_by = resource == name || held.aliases.iter().any(|alias| alias == name);
            let still = asked.contains_key(resource)
                || held.aliases.iter().any(|alias| asked.contains_key(alias));
            !goes_by || still || on_its_way(resource)
        });
    }

    fn handle_answer(&mut self, answer: Answer) -> Answered {
        let Some(outstanding) = self.outstanding.take_if(|o| o.nonce == answer.nonce) else {
            return Answered::No;
        };
        let reasons = answer
            .error
            .map(|text| Reasons::parse(&text, &outstanding.sent));
        for (name, version) in &outstanding.sent {
            let reason = reasons.as_ref().and_then(|reasons| reasons.of(name));
            if let Some(held) = self.held.get_mut(name)
                && held.version == *version
            {
                held.standing = match reason {
                    None => Standing::Acknowledged,
                    Some(reason) => Standing::Rejected { reason },
                };
            }
        }
        if outstanding.applied.is_some() {
            self.applied = outstanding.applied;
        }
        if reasons.is_some() {
            Answered::Rejected
        } else {
            Answered::Acknowledged
        }
    }

    /// What is held from an earlier stream goes by the names that it has now, if it is the same.
    fn learn(&mut self, kind: Kind, compiled: &Compiled) {
        if std::mem::replace(&mut self.learned, true) {
            return;
        }
        for (name, held) in &mut self.held {
            if let Some(found) = compiled.find(kind, name)
                && found.version == held.version
            {
                held.aliases.clone_from(&found.aliases);
            }
        }
    }

    /// The difference between what is wanted and what is held; `None` when there is none.
    /// `wanted` is what is wanted beside what was asked for by name.
    fn plan(&self, kind: Kind, compiled: &Compiled, wanted: Vec<&Arc<Encoded>>) -> Option<Plan> {
        let wanted = wanted.into_iter().map(|found| (found.name.as_str(), found));
        let mut wanted: BTreeMap<&str, &Arc<Encoded>> = wanted.collect();
        let mut plan = Plan::default();
        let mut waited_for: BTreeSet<&str> = BTreeSet::new();
        if self.wildcard {
            wanted.extend(compiled.of_kind(kind).map(|e| (e.name.as_str(), e)));
        }
        for (name, told) in &self.asked {
            match compiled.find(kind, name) {
                Some(found) => {
                    wanted.insert(&found.name, found);
                    if *told == Told::Nothing {
                        waited_for.insert(&found.name);
                    }
                }
                None if *told != Told::Absent => {
                    plan.removed.insert(name.clone());
                    plan.absent.push(name.clone());
                }
                None => {}
            }
        }
        let unwanted = self
            .held
            .keys()
            .filter(|n| !wanted.contains_key(n.as_str()));
        plan.removed.extend(unwanted.cloned());
        let mut news: Vec<&Arc<Encoded>> = wanted
            .into_values()
            .filter(|found| {
                let held = self.held.get(&found.name);
                held.is_none_or(|held| held.version != found.version)
                    || waited_for.contains(found.name.as_str())
            })
            .collect();
        if news.is_empty() && plan.removed.is_empty() {
            return None;
        }
        // A name that moves is taken from its old owner before the new one gets it.
        news.sort_by_key(|found| !self.loses_a_name(found));
        let mut bytes = 0;
        let all = news.len();
        for found in news {
            bytes += found.any.value.len();
            if bytes > PUSH_MAX_BYTES && !plan.resources.is_empty() {
                break;
            }
            plan.resources.push(Arc::clone(found));
        }
        plan.complete = plan.resources.len() == all;
        Some(plan)
    }

    fn loses_a_name(&self, found: &Encoded) -> bool {
        let before = self.held.get(&found.name).map(|held| &held.aliases);
        let mut before = before.into_iter().flatten();
        before.any(|alias| !found.aliases.contains(alias))
    }

    fn send(&mut self, kind: Kind, nonce: String, plan: Plan, compiled: &Compiled) -> Push {
        for name in &plan.removed {
            self.held.remove(name);
        }
        for name in &plan.absent {
            self.asked.insert(name.clone(), Told::Absent);
        }
        for resource in &plan.resources {
            let held = Held {
                version: resource.version.clone(),
                standing: Standing::Sent,
                aliases: resource.aliases.clone(),
            };
            self.held.insert(resource.name.clone(), held);
        }
        let sent: BTreeSet<&str> = plan.resources.iter().map(|r| r.name.as_str()).collect();
        for (name, told) in &mut self.asked {
            if *told != Told::Present
                && let Some(found) = compiled.find(kind, name)
                && sent.contains(found.name.as_str())
            {
                *told = Told::Present;
            }
        }
        let sent = plan.resources.iter();
        let sent = sent.map(|r| (r.name.clone(), r.version.clone())).collect();
        self.outstanding = Some(Outstanding {
            nonce: nonce.clone(),
            sent,
            applied: plan.complete.then(|| applied(compiled)),
        });
        Push {
            kind,
            nonce,
            resources: plan.resources,
            removed: plan.removed.into_iter().collect(),
            generation: compiled.generation,
        }
    }
}

fn held_from_before((name, version): (String, String)) -> (String, Held) {
    let held = Held {
        version,
        standing: Standing::Acknowledged,
        aliases: Vec::new(),
    };
    (name, held)
}

/// The reasons of a rejection, by resource.
#[derive(Debug)]
struct Reasons {
    by_name: BTreeMap<String, String>,
    /// For everything that is not named.
    for_all: Option<String>,
}

impl Reasons {
    fn parse(text: &str, sent: &[(String, String)]) -> Self {
        let shorten = |reason: &str| reason.chars().take(REASON_MAX_CHARS).collect::<String>();
        let mut by_name = BTreeMap::new();
        let mut for_all = None;
        for line in text.lines() {
            match line.split_once(": ") {
                Some((WILDCARD, reason)) => for_all = Some(shorten(reason)),
                Some((name, reason)) if sent.iter().any(|(n, _)| n == name) => {
                    by_name.insert(name.to_owned(), shorten(reason));
                }
                Some(_) | None => {}
            }
        }
        // A rejection that names nothing we know is one of everything: better too many than one
        // too few.
        if by_name.is_empty() {
            for_all.get_or_insert_with(|| shorten(text));
        }
        if text.len() >= REASONS_CUT_BYTES {
            let cut = "not named, but the list of reasons was cut".to_owned();
            for_all.get_or_insert(cut);
        }
        Self { by_name, for_all }
    }

    fn of(&self, name: &str) -> Option<String> {
        let named = self.by_name.get(name);
        named.or(self.for_all.as_ref()).cloned()
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "slices_tests.rs"]
mod slices_tests;
