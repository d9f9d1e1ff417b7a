//! One sidecar's side of delta xDS, for one kind of resource: pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use weft_proto::resource::Kind;

use crate::compile::{Compiled, Encoded};

/// What a sidecar asked for, what it was sent, and what it said to that.
#[derive(Debug)]
pub struct Session {
    kind: Kind,
    /// Names asked for; other names of a resource are as good as its own.
    asked: BTreeSet<String>,
    /// Name and version of what it was sent last, or said to hold.
    sent: HashMap<String, String>,
    /// Names it was told do not exist.
    denied: BTreeSet<String>,
    /// What it rejected, by name.
    rejected: BTreeMap<String, String>,
    outstanding: Option<String>,
    /// The compilation that it has been brought to, once nothing is outstanding.
    reached: u64,
    nonces: u64,
}

/// A response to send.
#[derive(Debug, Default)]
pub struct Push {
    /// To be acknowledged with this.
    pub nonce: String,
    /// What is new or different.
    pub resources: Vec<Arc<Encoded>>,
    /// What is gone, or was asked for and does not exist.
    pub removed: Vec<String>,
}

impl Session {
    /// Nothing asked for yet.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            asked: BTreeSet::new(),
            sent: HashMap::new(),
            denied: BTreeSet::new(),
            rejected: BTreeMap::new(),
            outstanding: None,
            reached: 0,
            nonces: 0,
        }
    }

    /// A request: what is held from before, asked for, and not wanted any more.
    pub fn handle_request(
        &mut self,
        held: HashMap<String, String>,
        subscribe: Vec<String>,
        unsubscribe: &[String],
    ) {
        self.sent.extend(held);
        for name in unsubscribe {
            self.asked.remove(name);
            self.denied.remove(name);
            self.sent.remove(name);
            self.rejected.remove(name);
        }
        for name in subscribe {
            // Asked again: the answer is given again.
            self.denied.remove(&name);
            self.asked.insert(name);
        }
    }

    /// An answer to a push: `rejected` has one line `NAME: reason` for each resource not taken.
    /// False when it answers nothing that is outstanding.
    pub fn handle_answer(&mut self, nonce: &str, rejected: &str) -> bool {
        if self.outstanding.as_deref() != Some(nonce) {
            return false;
        }
        self.outstanding = None;
        for line in rejected.lines() {
            let (name, reason) = line.split_once(": ").unwrap_or(("*", line));
            self.rejected.insert(name.to_owned(), reason.to_owned());
        }
        true
    }

    /// The next push, if one is due: never more than one outstanding.
    pub fn poll_push(&mut self, compiled: &Compiled) -> Option<Push> {
        if self.outstanding.is_some() {
            return None;
        }
        let mut push = Push::default();
        let needed = self.needed(compiled, &mut push.removed);
        for encoded in needed.values() {
            if self.sent.get(&encoded.name) != Some(&encoded.version) {
                push.resources.push(Arc::clone(encoded));
            }
        }
        let gone: Vec<String> = self
            .sent
            .keys()
            .filter(|name| {
                compiled
                    .find(self.kind, name)
                    .is_none_or(|e| e.name != **name)
            })
            .cloned()
            .collect();
        for name in gone {
            self.sent.remove(&name);
            self.rejected.remove(&name);
            if !push.removed.contains(&name) {
                push.removed.push(name);
            }
        }
        self.reached = compiled.generation;
        if push.resources.is_empty() && push.removed.is_empty() {
            return None;
        }
        push.removed.sort();
        for encoded in &push.resources {
            self.rejected.remove(&encoded.name);
            self.sent
                .insert(encoded.name.clone(), encoded.version.clone());
        }
        self.nonces += 1;
        push.nonce = self.nonces.to_string();
        self.outstanding = Some(push.nonce.clone());
        Some(push)
    }

    /// What it should hold, by name; names that lead nowhere are added to `absent` once.
    fn needed(
        &mut self,
        compiled: &Compiled,
        absent: &mut Vec<String>,
    ) -> BTreeMap<String, Arc<Encoded>> {
        let mut needed = BTreeMap::new();
        if !self.kind.on_demand() {
            let all = compiled.of_kind(self.kind);
            needed.extend(all.map(|encoded| (encoded.name.clone(), Arc::clone(encoded))));
            return needed;
        }
        for name in &self.asked {
            match compiled.find(self.kind, name) {
                Some(encoded) => {
                    self.denied.remove(name);
                    needed.insert(encoded.name.clone(), Arc::clone(encoded));
                }
                None => {
                    if self.denied.insert(name.clone()) {
                        absent.push(name.clone());
                    }
                }
            }
        }
        needed
    }

    /// The compilation up to which everything was acknowledged.
    pub fn applied(&self) -> Option<u64> {
        self.outstanding.is_none().then_some(self.reached)
    }

    /// How many resources it holds.
    pub fn holds(&self) -> usize {
        self.sent.len()
    }

    /// What it rejected, by name.
    pub fn rejected(&self) -> &BTreeMap<String, String> {
        &self.rejected
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
