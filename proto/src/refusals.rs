//! Documents that a control plane does not have in force as they are in the cluster, as it tells the
//! others of the same mesh: wire to domain and back, with limits on both sides.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::replica;
use crate::replicas::{NAME_MAX, cut};

/// Refused documents of one namespace that are told; whoever fills one leaves the others alone.
pub const DOCUMENTS_MAX: usize = 32;
/// Namespaces with refused documents that are told.
pub const NAMESPACES_MAX: usize = 256;
/// Longest reason, characters.
const REASON_MAX: usize = 256;

/// What a control plane refuses, by namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refusals {
    /// Of more than [`NAMESPACES_MAX`] the first.
    pub namespaces: BTreeMap<Arc<str>, NamespaceRefusals>,
    /// Whether there are namespaces beyond these.
    pub has_more: bool,
    /// Whether some were told and not kept: nobody tells of them again.
    is_cut: bool,
}

/// What a control plane refuses of one namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamespaceRefusals {
    /// Of more than [`DOCUMENTS_MAX`] some.
    pub documents: Vec<RefusedDocument>,
    /// Whether there are documents beyond these.
    pub has_more: bool,
}

/// A document that is not in force as it is in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedDocument {
    /// Its kind.
    pub kind: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// `metadata.generation` of what is refused.
    pub generation: u64,
    /// Why, in a word.
    pub word: Arc<str>,
    /// Why.
    pub reason: Arc<str>,
}

/// What is known of whether a document is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal<'a> {
    /// It is.
    Refused(&'a RefusedDocument),
    /// It may be: not everything that is refused was told.
    Untold,
}

impl Refusals {
    /// Adds a document, as far as there is room.
    pub fn add(&mut self, namespace: &str, document: RefusedDocument) {
        if !self.namespaces.contains_key(namespace) {
            self.namespaces
                .insert(namespace.into(), NamespaceRefusals::default());
            if self.namespaces.len() > NAMESPACES_MAX {
                self.namespaces.pop_last();
                self.has_more = true;
            }
        }
        if let Some(of) = self.namespaces.get_mut(namespace) {
            of.add(document);
        }
    }

    /// Whether a generation of a document is refused; `None` where it is not.
    pub fn find(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        generation: u64,
    ) -> Option<Refusal<'_>> {
        let Some(of) = self.namespaces.get(namespace) else {
            let last = self.namespaces.last_key_value();
            let is_beyond = last.is_none_or(|(last, _)| **last < *namespace);
            return (self.has_more && is_beyond).then_some(Refusal::Untold);
        };
        let mut named = of.documents.iter();
        match named.find(|one| *one.kind == *kind && *one.name == *name) {
            Some(found) => (found.generation == generation).then_some(Refusal::Refused(found)),
            None => of.has_more.then_some(Refusal::Untold),
        }
    }

    /// The namespaces of which something else is refused than before; those of which nothing is refused
    /// any more are empty.
    pub fn changes(&self, before: &Self) -> BTreeMap<Arc<str>, NamespaceRefusals> {
        let changed = { self.namespaces.iter() }
            .filter(|(name, of)| before.namespaces.get(*name) != Some(of))
            .map(|(name, of)| (Arc::clone(name), of.clone()));
        let gone = before.namespaces.keys();
        let gone = gone.filter(|name| !self.namespaces.contains_key(*name));
        let gone = gone.map(|name| (Arc::clone(name), NamespaceRefusals::default()));
        changed.chain(gone).collect()
    }

    /// Takes a part of what [`changes`](Self::changes) gave; what goes may come after what is added, so
    /// there may be more namespaces than are kept until [`end`](Self::end).
    pub fn apply(&mut self, changes: BTreeMap<Arc<str>, NamespaceRefusals>) {
        for (namespace, of) in changes {
            match of.documents.is_empty() && !of.has_more {
                true => self.namespaces.remove(&namespace),
                false => self.namespaces.insert(namespace, of),
            };
        }
        self.cut(2 * NAMESPACES_MAX);
    }

    /// All parts were taken. `has_more` is what was told of there being more.
    pub fn end(&mut self, has_more: bool) {
        self.cut(NAMESPACES_MAX);
        self.has_more = has_more || self.is_cut;
    }

    fn cut(&mut self, most: usize) {
        while self.namespaces.len() > most {
            self.namespaces.pop_last();
            self.is_cut = true;
        }
    }
}

impl NamespaceRefusals {
    fn add(&mut self, document: RefusedDocument) {
        match self.documents.len() < DOCUMENTS_MAX {
            true => self.documents.push(document),
            false => self.has_more = true,
        }
    }
}

/// As it is told.
pub(crate) fn into_wire(namespace: &str, of: NamespaceRefusals) -> replica::RefusedDocuments {
    let documents = of.documents.iter().take(DOCUMENTS_MAX);
    replica::RefusedDocuments {
        namespace: namespace.to_owned(),
        has_more: of.has_more || of.documents.len() > DOCUMENTS_MAX,
        documents: documents
            .map(|one| replica::RefusedDocument {
                kind: cut(&one.kind, NAME_MAX),
                name: cut(&one.name, NAME_MAX),
                generation: one.generation,
                word: cut(&one.word, NAME_MAX),
                reason: cut(&one.reason, REASON_MAX),
            })
            .collect(),
    }
}

/// As it was told.
pub(crate) fn from_wire(wire: replica::RefusedDocuments) -> (Arc<str>, NamespaceRefusals) {
    let mut of = NamespaceRefusals {
        documents: Vec::new(),
        has_more: wire.has_more,
    };
    for one in wire.documents {
        of.add(RefusedDocument {
            kind: cut(&one.kind, NAME_MAX).into(),
            name: cut(&one.name, NAME_MAX).into(),
            generation: one.generation,
            word: cut(&one.word, NAME_MAX).into(),
            reason: cut(&one.reason, REASON_MAX).into(),
        });
    }
    (cut(&wire.namespace, NAME_MAX).into(), of)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(name: &str, generation: u64) -> RefusedDocument {
        RefusedDocument {
            kind: "HTTPRoute".into(),
            name: name.into(),
            generation,
            word: "Invalid".into(),
            reason: "x".repeat(5000).into(),
        }
    }

    #[test]
    fn what_is_beyond_the_limits_may_be_refused() {
        let mut refusals = Refusals::default();
        refusals.add("shop", document("web", 3));
        for n in 0..=DOCUMENTS_MAX {
            refusals.add("full", document(&format!("d{n}"), 1));
        }
        let find = |refusals: &Refusals, namespace: &str, name: &str, generation| {
            let found = refusals.find("HTTPRoute", namespace, name, generation);
            found.map(|found| matches!(found, Refusal::Refused(_)))
        };
        for (namespace, name, generation, expected) in [
            ("shop", "web", 3, Some(true)),
            // Another generation, and what nobody has refused.
            ("shop", "web", 2, None),
            ("shop", "api", 3, None),
            ("lab", "web", 3, None),
            ("full", "d0", 1, Some(true)),
            ("full", "web", 1, Some(false)),
        ] {
            assert_eq!(
                find(&refusals, namespace, name, generation),
                expected,
                "{namespace}/{name}"
            );
        }
        assert_eq!(refusals.find("TLSRoute", "shop", "web", 3), None);
        for n in 0..NAMESPACES_MAX {
            refusals.add(&format!("n{n:03}"), document("d", 1));
        }
        assert_eq!(refusals.namespaces.len(), NAMESPACES_MAX);
        assert_eq!(find(&refusals, "full", "d0", 1), Some(true));
        assert_eq!(find(&refusals, "shop", "web", 3), Some(false));
        assert_eq!(find(&refusals, "zoo", "web", 3), Some(false));
        assert_eq!(find(&refusals, "lab", "web", 3), None, "it would be named");
    }

    #[test]
    fn changes_lead_from_one_to_the_other_over_the_wire() {
        let mut before = Refusals::default();
        before.add("a", document("d", 1));
        before.add("b", document("d", 1));
        before.add("c", document("d", 1));
        let mut after = Refusals::default();
        after.add("b", document("d", 1));
        after.add("c", document("d", 2));
        let changes = after.changes(&before);
        let names: Vec<&str> = changes.keys().map(|name| &**name).collect();
        assert_eq!(names, ["a", "c"]);
        let told = changes
            .into_iter()
            .map(|(name, of)| from_wire(into_wire(&name, of)));
        before.apply(told.collect());
        let reason = &before.namespaces["c"].documents[0].reason;
        assert_eq!(reason.chars().count(), REASON_MAX);
        let generations = |all: &Refusals| -> Vec<(Arc<str>, u64)> {
            let all = all.namespaces.iter();
            all.map(|(name, of)| (Arc::clone(name), of.documents[0].generation))
                .collect()
        };
        assert_eq!(generations(&before), generations(&after));
    }

    /// What is added may be told before what goes: none that stays is lost between.
    #[test]
    fn a_change_in_several_parts_is_cut_at_its_end() {
        let of = |names: std::ops::Range<usize>| {
            let mut refusals = Refusals::default();
            for n in names {
                refusals.add(&format!("n{n:04}"), document("d", 1));
            }
            refusals
        };
        let (mut before, after) = (of(0..NAMESPACES_MAX), of(100..NAMESPACES_MAX + 100));
        let (gone, added) =
            { after.changes(&before).into_iter() }.partition(|(_, of)| of.documents.is_empty());
        before.apply(added);
        before.apply(gone);
        before.end(false);
        assert_eq!(
            (&before.namespaces, before.has_more),
            (&after.namespaces, false)
        );
    }

    #[test]
    fn what_is_told_is_bounded() {
        let wire = |namespace: String| replica::RefusedDocuments {
            namespace,
            documents: vec![replica::RefusedDocument::default(); 10 * DOCUMENTS_MAX],
            has_more: false,
        };
        let told = (0..3 * NAMESPACES_MAX).map(|n| from_wire(wire(format!("n{n}"))));
        let mut refusals = Refusals::default();
        refusals.apply(told.collect());
        assert_eq!(refusals.namespaces.len(), 2 * NAMESPACES_MAX);
        refusals.end(false);
        refusals.end(false);
        assert!(refusals.has_more, "those that were cut are not told again");
        assert_eq!(refusals.namespaces.len(), NAMESPACES_MAX);
        let all = refusals.namespaces.values();
        assert!(
            all.clone()
                .all(|of| of.documents.len() == DOCUMENTS_MAX && of.has_more)
        );
    }
}
