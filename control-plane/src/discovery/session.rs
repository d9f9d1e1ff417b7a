//! The state machine of one sidecar's stream: what it asked for, what it holds, what was sent and
//! not answered yet, and what to send next.
//!
//! It looks only at names that it was told of: those that a request adds, and those under which
//! something has changed ([`Session::mark`]).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use weft_core::slices;
use weft_proto::resource::{Kind, Resource};

use super::names::{OfKind, Plan};
use super::reasons::{Reason, ReasonBudget};
use crate::budget::NAMES_PER_INSTANCE;
use crate::compile::{Compiled, Encoded};
use crate::publish::Applied;

/// Names that one sidecar may ask for, per kind.
pub(super) const NAMES_MAX: usize = 20_000;
/// Resources that one sidecar may hold from an earlier stream, per kind: as many names as the budget
/// of an instance has room for. A sidecar that asks for few services may hold many slices of them.
pub(super) const VERSIONS_MAX: usize = NAMES_PER_INSTANCE;
/// Longest name that may be asked for, and longest version, bytes.
pub(super) const NAME_MAX_BYTES: usize = 512;

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
    /// Whether it is a further piece of the request before.
    pub continues: bool,
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
    /// Resources and names that do not exist, or not any more.
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
    /// It holds too much from an earlier stream.
    #[error(
        "{found} resources of kind {} held from before, allowed are {VERSIONS_MAX}; drop them and \
         begin without their versions",
        kind.as_str()
    )]
    TooManyVersions {
        /// The kind.
        kind: Kind,
        /// How many it names.
        found: usize,
    },
    /// It says something that cannot be a name or a version.
    #[error("a name or version of {found} bytes, allowed are {NAME_MAX_BYTES}")]
    NameTooLong {
        /// Its length.
        found: usize,
    },
    /// It asks for slices by name.
    #[error("endpoint slices were asked for by name; they come with their services")]
    SliceByName,
    /// It asks for everything of a kind of which there may be any number.
    #[error("everything of kind {} was asked for; allowed: names", kind.as_str())]
    Wildcard {
        /// The kind.
        kind: Kind,
    },
}

/// Outcome of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Handled {
    /// What it said about an earlier response.
    pub answered: Answered,
    /// Whether it is the first of its kind.
    pub opened: bool,
    /// Names that it newly asked for.
    pub subscribed: Vec<Arc<str>>,
    /// Names that it had asked for and wants no more.
    pub unsubscribed: Vec<Arc<str>>,
    /// Resources that no name leads to any more: the sidecar drops them by itself.
    pub dropped: Vec<Arc<str>>,
}

/// What a request said about an earlier response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Answered {
    /// Nothing.
    #[default]
    No,
    /// All of it is in force.
    Acknowledged,
    /// At least one resource was not taken.
    Rejected,
}

/// What became of a resource at the sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeldState {
    /// Sent, not answered yet.
    Sent,
    /// In force there.
    Acknowledged,
    /// Not taken; what it had before is in force.
    Rejected {
        /// Why.
        reason: Reason,
    },
}

/// A resource that a sidecar holds, or was sent.
#[derive(Debug, Clone)]
pub struct Held {
    /// The version sent last.
    pub version: Arc<str>,
    /// What became of it.
    pub standing: HeldState,
    /// The names it went by, if they are known.
    pub(super) aliases: Arc<[Arc<str>]>,
}

impl Held {
    /// Whether the sidecar did not take it.
    pub(super) fn is_rejected(&self) -> bool {
        match self.standing {
            HeldState::Rejected { .. } => true,
            HeldState::Sent | HeldState::Acknowledged => false,
        }
    }
}

/// A resource of which it has changed whether the sidecar rejects it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: Arc<str>,
    /// Why it is rejected; `None` where it is not any more.
    pub reason: Option<Reason>,
}

/// One stream.
#[derive(Debug, Default)]
pub struct Session {
    /// In the order of [`Kind`]'s variants.
    kinds: [OfKind; Kind::ALL.len()],
    /// Services that are wanted, with the number of slices that their endpoints are in.
    services: BTreeMap<Arc<str>, u32>,
    /// Whether `services` says what is wanted: those asked for first have been looked up.
    services_known: bool,
    /// Responses that are made and not given out yet.
    ready: VecDeque<Push>,
    nonce: u64,
    /// What is kept of the reasons of rejections.
    reasons: ReasonBudget,
}

impl Session {
    /// Takes a request.
    pub fn handle_request(
        &mut self,
        kind: Kind,
        request: Request,
    ) -> Result<Handled, SessionError> {
        let of_kind = &mut self.kinds[kind as usize];
        let handled = of_kind.handle(kind, request, &mut self.reasons)?;
        if kind == Kind::EndpointSlice && handled.opened {
            for (service, count) in &self.services {
                of_kind.due.extend(slice_names(service, *count));
            }
            of_kind.sweep = self.services_known;
        }
        if kind == Kind::Service {
            // The sidecar drops a service that it unsubscribed, and no slice.
            let slices = &mut self.kinds[Kind::EndpointSlice as usize];
            for service in &handled.dropped {
                self.services.remove(service);
                let held = slices.slices_of(service);
                slices.due.extend(held);
            }
        }
        Ok(handled)
    }

    /// Something else may be found under a name. What it stands for is looked up when the next
    /// response is made.
    pub fn mark(&mut self, kind: Kind, name: Arc<str>) {
        self.kinds[kind as usize].due.insert(name);
    }

    /// The next response, if there is anything to say and nothing of its kind on its way.
    pub fn poll_push(&mut self, compiled: &Compiled) -> Option<Push> {
        if self.ready.is_empty() {
            // Which slices are wanted follows from the services, and they are sent before those.
            let mut services = self.push_of(Kind::Service, compiled);
            for kind in Kind::ALL {
                let push = match kind == Kind::Service {
                    true => services.take(),
                    false => self.push_of(kind, compiled),
                };
                self.ready.extend(push);
            }
        }
        self.ready.pop_front()
    }

    fn push_of(&mut self, kind: Kind, compiled: &Compiled) -> Option<Push> {
        let of_kind = &mut self.kinds[kind as usize];
        if !of_kind.has_more() {
            if !of_kind.is_busy() {
                of_kind.applied = Some(applied(compiled));
            }
            return None;
        }
        let plan = of_kind.plan(kind, compiled, &self.services);
        if kind == Kind::Service {
            self.want_slices(&plan);
        }
        let of_kind = &mut self.kinds[kind as usize];
        if plan.is_empty() {
            of_kind.applied = Some(applied(compiled));
            return None;
        }
        self.nonce += 1;
        Some(of_kind.send(kind, self.nonce.to_string(), plan, compiled))
    }

    /// Services come, go, or have their endpoints in another number of slices.
    fn want_slices(&mut self, plan: &Plan) {
        let slices = &mut self.kinds[Kind::EndpointSlice as usize];
        for name in &plan.removed {
            if self.services.remove(name).is_some() {
                let held = slices.slices_of(name);
                slices.due.extend(held);
            }
        }
        for encoded in &plan.found {
            let count = if let Resource::Service(service) = &encoded.resource {
                service.endpoint_slices
            } else {
                0
            };
            let name = &encoded.name;
            if self.services.insert(Arc::clone(name), count) != Some(count) {
                let held = slices.slices_of(name);
                slices.due.extend(held);
                slices.due.extend(slice_names(name, count));
            }
        }
        // From here on it is known which slices from an earlier stream are still wanted.
        slices.sweep |= !std::mem::replace(&mut self.services_known, true);
    }

    /// How far the sidecar has come with everything that it asked for; `None` while it has not
    /// answered at all, or asked for nothing.
    pub fn applied(&self) -> Option<Applied> {
        let opened = self.kinds.iter().filter(|of_kind| of_kind.opened);
        opened.map(|of_kind| of_kind.applied).min().flatten()
    }

    /// Whether there is nothing to say and nothing on its way.
    pub fn is_idle(&self) -> bool {
        !self.kinds.iter().any(OfKind::is_busy)
    }

    /// Whether a response could be made now: what is due is not held up by an answer.
    pub fn has_more(&self) -> bool {
        !self.ready.is_empty() || self.kinds.iter().any(OfKind::has_more)
    }

    /// What it holds of a kind, by name.
    pub fn held(&self, kind: Kind) -> impl Iterator<Item = (&str, &Held)> {
        let of_kind = &self.kinds[kind as usize];
        of_kind.held.iter().map(|(name, held)| (&**name, held))
    }

    /// Names that it asked for.
    pub fn asked(&self, kind: Kind) -> impl Iterator<Item = &str> {
        self.kinds[kind as usize].asked()
    }

    /// How many names the stream keeps: asked for, and of what is held.
    pub fn names(&self) -> usize {
        self.kinds.iter().map(OfKind::names).sum()
    }

    /// How many resources it holds or was sent, of all kinds.
    pub fn holds(&self) -> usize {
        self.kinds.iter().map(|of_kind| of_kind.held.len()).sum()
    }

    /// What has been rejected, or is rejected no more, since this was asked last.
    pub fn take_rejections(&mut self) -> Vec<Rejection> {
        let mut rejections = Vec::new();
        for kind in Kind::ALL {
            let of_kind = &mut self.kinds[kind as usize].rejections;
            if of_kind.is_empty() {
                continue;
            }
            let of_kind = std::mem::take(of_kind);
            rejections.extend(of_kind.into_iter().map(|(name, reason)| Rejection {
                kind,
                name,
                reason,
            }));
        }
        rejections
    }
}

pub(super) fn applied(compiled: &Compiled) -> Applied {
    Applied {
        generation: compiled.generation,
        revision: compiled.revision,
    }
}

pub(super) fn slice_names(service: &str, count: u32) -> impl Iterator<Item = Arc<str>> {
    (0..count).map(move |index| slices::resource_name(service, index, count).into())
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "slices_tests.rs"]
mod slices_tests;
