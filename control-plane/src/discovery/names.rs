//! One kind of resource on one stream: the names asked for, what they lead to, and what of that the
//! sidecar holds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use weft_core::slices;
use weft_proto::resource::Kind;

use super::reasons::{Reason, ReasonBudget, Reasons};
use super::session::{
    Answer, Answered, Handled, Held, HeldState, NAME_MAX_BYTES, NAMES_MAX, Push, Request,
    SessionError, VERSIONS_MAX, applied,
};
use crate::compile::{Compiled, Encoded};
use crate::publish::Applied;

/// Resources of one response, in bytes of content; one that is larger by itself goes alone.
const PUSH_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Asks for everything of a kind.
const WILDCARD: &str = "*";

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

/// A name that was asked for.
#[derive(Debug)]
struct Asked {
    told: Told,
    /// The resource that it leads to.
    leads_to: Option<Arc<str>>,
}

#[derive(Debug)]
struct Outstanding {
    nonce: String,
    /// Resources with their versions.
    sent: BTreeMap<Arc<str>, Arc<str>>,
    /// What is applied with its answer, unless there was more than fits.
    applied: Option<Applied>,
}

/// Everything about one kind.
#[derive(Debug, Default)]
pub(super) struct OfKind {
    pub(super) opened: bool,
    /// Whether the last request was the first of its kind.
    is_first: bool,
    asked: BTreeMap<Arc<str>, Asked>,
    /// Resources that names lead to, with the number of those names.
    wanted: BTreeMap<Arc<str>, usize>,
    /// Resources that the sidecar holds, or was sent.
    pub(super) held: BTreeMap<Arc<str>, Held>,
    /// Names that have to be looked up.
    pub(super) due: BTreeSet<Arc<str>>,
    /// Resources that the sidecar is to drop, though nobody leads to them any more.
    unwanted: BTreeSet<Arc<str>>,
    /// Resources of which it has changed whether they are rejected, with the reason of those that are.
    pub(super) rejections: BTreeMap<Arc<str>, Option<Reason>>,
    /// Whether what is held from an earlier stream is still to be compared with what is wanted.
    pub(super) sweep: bool,
    outstanding: Option<Outstanding>,
    pub(super) applied: Option<Applied>,
}

/// What is to be said about one kind.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Every resource that was looked up and is wanted, whether it has to be sent or not.
    pub(super) found: Vec<Arc<Encoded>>,
    /// Resources to be sent, those that lost a name before those that gained one.
    resources: Vec<Arc<Encoded>>,
    /// Names and resources to be removed.
    pub(super) removed: BTreeSet<Arc<str>>,
    /// Names that were asked for, by the resource that they lead to.
    leading: BTreeMap<Arc<str>, Vec<Arc<str>>>,
    /// Whether nothing was left for the next response.
    complete: bool,
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.removed.is_empty()
    }
}

impl OfKind {
    pub(super) fn handle(
        &mut self,
        kind: Kind,
        request: Request,
        kept: &mut ReasonBudget,
    ) -> Result<Handled, SessionError> {
        let mut handled = Handled {
            opened: !self.opened,
            ..Handled::default()
        };
        if !request.continues {
            self.is_first = handled.opened;
        }
        if handled.opened {
            self.opened = true;
            // Slices from before are wanted or not when it is known which services are.
            self.sweep = kind != Kind::EndpointSlice;
            self.held = held_from_before(kind, request.initial_versions)?;
        }
        if let Some(answer) = request.answer {
            handled.answered = self.handle_answer(&answer, kept);
        }
        for name in request.unsubscribe {
            self.unsubscribe(&name, &mut handled);
        }
        let told = match self.is_first {
            true => Told::Before,
            false => Told::Nothing,
        };
        for name in request.subscribe {
            self.subscribe(kind, name, told, &mut handled)?;
        }
        let found = self.asked.len();
        if found > NAMES_MAX {
            return Err(SessionError::TooManyNames { kind, found });
        }
        Ok(handled)
    }

    fn subscribe(
        &mut self,
        kind: Kind,
        name: String,
        told: Told,
        handled: &mut Handled,
    ) -> Result<(), SessionError> {
        if !kind.on_demand() {
            // What concerns everyone comes to everyone.
            return Ok(());
        }
        if name == WILDCARD {
            return Err(SessionError::Wildcard { kind });
        }
        if kind == Kind::EndpointSlice {
            return Err(SessionError::SliceByName);
        }
        if name.len() > NAME_MAX_BYTES {
            return Err(SessionError::NameTooLong { found: name.len() });
        }
        let name: Arc<str> = name.into();
        self.due.insert(Arc::clone(&name));
        if let Some(asked) = self.asked.get_mut(&name) {
            asked.told = told;
            return Ok(());
        }
        let asked = Asked {
            told,
            leads_to: None,
        };
        self.asked.insert(Arc::clone(&name), asked);
        handled.subscribed.push(name);
        Ok(())
    }

    /// The sidecar drops by itself what no name leads to any more; a removal could only cross with
    /// its asking again. What is on its way may arrive after it was dropped: that is removed once
    /// it was answered.
    fn unsubscribe(&mut self, name: &str, handled: &mut Handled) {
        let Some((name, asked)) = self.asked.remove_entry(name) else {
            return;
        };
        self.due.remove(&name);
        handled.unsubscribed.push(name);
        let Some(resource) = asked.leads_to else {
            return;
        };
        if self.unlead(&resource) {
            self.drop_held(&resource);
            handled.dropped.push(resource);
        }
    }

    /// One name less leads to a resource; whether it was the last.
    fn unlead(&mut self, resource: &Arc<str>) -> bool {
        let Some(names) = self.wanted.get_mut(resource) else {
            return true;
        };
        *names -= 1;
        let last = *names == 0;
        if last {
            self.wanted.remove(resource);
        }
        last
    }

    fn drop_held(&mut self, resource: &Arc<str>) {
        let outstanding = self.outstanding.as_ref();
        if outstanding.is_some_and(|outstanding| outstanding.sent.contains_key(resource)) {
            self.unwanted.insert(Arc::clone(resource));
        } else {
            self.set_held(resource, None);
        }
    }

    fn set_held(&mut self, name: &Arc<str>, held: Option<Held>) {
        let before = match held {
            Some(held) => self.held.insert(Arc::clone(name), held),
            None => self.held.remove(name),
        };
        if before.is_some_and(|before| before.is_rejected()) {
            self.rejections.insert(Arc::clone(name), None);
        }
    }

    /// Slices of a service that are held.
    pub(super) fn slices_of(&self, service: &str) -> Vec<Arc<str>> {
        let prefix = format!("{service}/");
        let from = (Bound::Included(prefix.as_str()), Bound::Unbounded);
        let held = self.held.range::<str, _>(from).map(|(name, _)| name);
        held.take_while(|name| name.starts_with(&prefix))
            .cloned()
            .collect()
    }

    fn handle_answer(&mut self, answer: &Answer, kept: &mut ReasonBudget) -> Answered {
        let Some(outstanding) = self.outstanding.take_if(|o| o.nonce == answer.nonce) else {
            return Answered::No;
        };
        let error = answer.error.as_ref();
        let mut reasons = error.map(|text| Reasons::parse(text, &outstanding.sent));
        for (name, version) in &outstanding.sent {
            let reason = reasons.as_mut();
            let reason = reason.and_then(|reasons| reasons.of(name, kept));
            if let Some(held) = self.held.get_mut(name)
                && held.version == *version
            {
                held.standing = match reason {
                    None => HeldState::Acknowledged,
                    Some(reason) => {
                        let rejection = Some(reason.clone());
                        self.rejections.insert(Arc::clone(name), rejection);
                        HeldState::Rejected { reason }
                    }
                };
            }
        }
        if outstanding.applied.is_some() {
            self.applied = outstanding.applied;
        }
        match reasons {
            Some(_) => Answered::Rejected,
            None => Answered::Acknowledged,
        }
    }

    /// Whether something is on its way or has to be looked up.
    pub(super) fn is_busy(&self) -> bool {
        self.outstanding.is_some() || (self.opened && self.has_due())
    }

    /// Whether something can be looked up now: it was asked for, and nothing is on its way.
    pub(super) fn has_more(&self) -> bool {
        self.outstanding.is_none() && self.opened && self.has_due()
    }

    fn has_due(&self) -> bool {
        !self.due.is_empty() || !self.unwanted.is_empty() || self.sweep
    }

    /// Looks up what is due. `services` are those that are wanted, with their numbers of slices.
    pub(super) fn plan(
        &mut self,
        kind: Kind,
        compiled: &Compiled,
        services: &BTreeMap<Arc<str>, u32>,
    ) -> Plan {
        let mut plan = Plan::default();
        if self.sweep {
            self.learn(kind, compiled);
        }
        let mut due = std::mem::take(&mut self.due);
        if self.sweep && !kind.on_demand() {
            due.extend(compiled.of_kind(kind).map(|e| Arc::clone(&e.name)));
        }
        let mut news: BTreeMap<Arc<str>, Arc<Encoded>> = BTreeMap::new();
        for name in due {
            let waits = match kind {
                Kind::EndpointSlice if !is_wanted_slice(&name, services) => None,
                Kind::EndpointSlice | Kind::MeshConfig | Kind::TrustBundle => {
                    compiled.find(kind, &name).map(|found| (found, false))
                }
                Kind::Service | Kind::Workload | Kind::Namespace | Kind::ServerPolicy => {
                    self.look_up(kind, &name, compiled, &mut plan)
                }
            };
            let Some((found, waits)) = waits else {
                if self.held.contains_key(&name) && !self.wanted.contains_key(&name) {
                    plan.removed.insert(name);
                }
                continue;
            };
            let held = self.held.get(&found.name);
            if waits || held.is_none_or(|held| held.version != found.version) {
                let of_name = plan.leading.entry(Arc::clone(&found.name)).or_default();
                of_name.push(name);
                news.insert(Arc::clone(&found.name), Arc::clone(found));
            }
            plan.found.push(Arc::clone(found));
        }
        if std::mem::take(&mut self.sweep) {
            let held = self.held.keys().filter(|name| match kind.on_demand() {
                true if kind == Kind::EndpointSlice => !is_wanted_slice(name, services),
                true => !self.wanted.contains_key(*name),
                false => compiled.find(kind, name).is_none(),
            });
            plan.removed.extend(held.cloned());
        }
        for name in std::mem::take(&mut self.unwanted) {
            let wanted = if kind == Kind::EndpointSlice {
                is_wanted_slice(&name, services)
            } else {
                self.wanted.contains_key(&name)
            };
            if !wanted && self.held.contains_key(&name) {
                plan.removed.insert(name);
            }
        }
        self.fill(&mut plan, news.into_values().collect());
        plan
    }

    /// What a name that was asked for leads to, and whether the sidecar waits for it.
    fn look_up<'a>(
        &mut self,
        kind: Kind,
        name: &Arc<str>,
        compiled: &'a Compiled,
        plan: &mut Plan,
    ) -> Option<(&'a Arc<Encoded>, bool)> {
        let found = compiled.find(kind, name);
        let asked = self.asked.get_mut(name)?;
        let leads_to = found.map(|found| Arc::clone(&found.name));
        let waits = asked.told == Told::Nothing;
        if found.is_none() && asked.told != Told::Absent {
            asked.told = Told::Absent;
            plan.removed.insert(Arc::clone(name));
        }
        if asked.leads_to != leads_to {
            let before = std::mem::replace(&mut asked.leads_to, leads_to.clone());
            if let Some(resource) = leads_to {
                *self.wanted.entry(resource).or_default() += 1;
            }
            if let Some(resource) = before
                && self.unlead(&resource)
                && self.held.contains_key(&resource)
            {
                plan.removed.insert(resource);
            }
        }
        found.map(|found| (found, waits))
    }

    /// What is held from an earlier stream goes by the names that it has now, if it is the same.
    fn learn(&mut self, kind: Kind, compiled: &Compiled) {
        for (name, held) in &mut self.held {
            if let Some(found) = compiled.find(kind, name)
                && found.version == held.version
            {
                held.aliases.clone_from(&found.aliases);
            }
        }
    }

    /// As many of the news as fit; the others are due again.
    fn fill(&mut self, plan: &mut Plan, mut news: Vec<Arc<Encoded>>) {
        // A resource that two names led to in turn may be wanted after all.
        plan.removed.retain(|name| !self.wanted.contains_key(name));
        // A name that moves is taken from its old owner before the new one gets it.
        news.sort_by_key(|found| !self.loses_a_name(found));
        let mut bytes = 0;
        plan.complete = true;
        for found in news {
            bytes += found.envelope.len();
            if bytes > PUSH_MAX_BYTES && !plan.resources.is_empty() {
                plan.complete = false;
                let names = plan.leading.remove(&found.name);
                self.due.extend(names.into_iter().flatten());
                continue;
            }
            plan.resources.push(found);
        }
    }

    fn loses_a_name(&self, found: &Encoded) -> bool {
        let before = self.held.get(&found.name).map(|held| &*held.aliases);
        let mut before = before.into_iter().flatten();
        before.any(|alias| !found.aliases.contains(alias))
    }

    pub(super) fn send(
        &mut self,
        kind: Kind,
        nonce: String,
        plan: Plan,
        compiled: &Compiled,
    ) -> Push {
        for name in &plan.removed {
            self.set_held(name, None);
        }
        for resource in &plan.resources {
            let held = Held {
                version: Arc::clone(&resource.version),
                standing: HeldState::Sent,
                aliases: Arc::clone(&resource.aliases),
            };
            self.set_held(&resource.name, Some(held));
        }
        for name in plan.leading.values().flatten() {
            if let Some(asked) = self.asked.get_mut(name) {
                asked.told = Told::Present;
            }
        }
        let sent = plan.resources.iter();
        let sent = sent.map(|r| (Arc::clone(&r.name), Arc::clone(&r.version)));
        self.outstanding = Some(Outstanding {
            nonce: nonce.clone(),
            sent: sent.collect(),
            applied: plan.complete.then(|| applied(compiled)),
        });
        let removed = plan.removed.iter().map(ToString::to_string);
        Push {
            kind,
            nonce,
            resources: plan.resources,
            removed: removed.collect(),
            generation: compiled.generation,
        }
    }

    /// How many names are kept: asked for, and of what is held.
    pub(super) fn names(&self) -> usize {
        self.asked.len() + self.held.len()
    }

    /// Names that were asked for.
    pub(super) fn asked(&self) -> impl Iterator<Item = &str> {
        self.asked.keys().map(|name| &**name)
    }
}

/// Whether a slice belongs to a service that is wanted, and to the number of slices it has now.
fn is_wanted_slice(name: &str, services: &BTreeMap<Arc<str>, u32>) -> bool {
    let service = slices::service_of(name);
    let count = service.and_then(|service| services.get(service));
    count.is_some_and(|count| {
        name.rsplit_once('-')
            .is_some_and(|(_, of)| of == count.to_string())
    })
}

/// Checks how many resources a sidecar may hold from an earlier stream.
pub(super) fn check_versions(kind: Kind, found: usize) -> Result<(), SessionError> {
    match found <= VERSIONS_MAX {
        true => Ok(()),
        false => Err(SessionError::TooManyVersions { kind, found }),
    }
}

/// What a sidecar says that it holds from an earlier stream: all of it, as what is not known here
/// could never be removed there.
fn held_from_before(
    kind: Kind,
    versions: HashMap<String, String>,
) -> Result<BTreeMap<Arc<str>, Held>, SessionError> {
    check_versions(kind, versions.len())?;
    let mut held = BTreeMap::new();
    for (name, version) in versions {
        let found = name.len().max(version.len());
        if found > NAME_MAX_BYTES {
            return Err(SessionError::NameTooLong { found });
        }
        let of_name = Held {
            version: version.into(),
            standing: HeldState::Acknowledged,
            aliases: Arc::default(),
        };
        held.insert(name.into(), of_name);
    }
    Ok(held)
}
