//! Resources ready for the wire, by name and by the other names they go by.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use weft_proto::envelope::encode_resource;
use weft_proto::resource::{Kind, Resource};

use crate::sha256_hex;
use crate::world::index::Map;

/// A resource, encoded once for everybody.
#[derive(Debug)]
pub struct Encoded {
    /// Its name.
    pub name: Arc<str>,
    /// The digest of its content: the same content has the same version, also after a restart.
    pub version: Arc<str>,
    /// Other names it goes by.
    pub aliases: Arc<[Arc<str>]>,
    /// Its bytes in a response: an `envoy.service.discovery.v3.Resource`.
    pub envelope: Bytes,
    /// Its domain form, for people and decisions.
    pub resource: Resource,
}

impl Encoded {
    /// Encodes a resource.
    pub fn new(resource: Resource) -> Self {
        let aliases = resource.aliases();
        Self::with_aliases(resource, aliases)
    }

    /// Encodes a resource that goes by these other names.
    pub fn with_aliases(resource: Resource, aliases: Vec<String>) -> Self {
        let name = resource.name();
        let any = resource.encode();
        let mut content = any.value.clone();
        for alias in &aliases {
            content.push(b'\n');
            content.extend_from_slice(alias.as_bytes());
        }
        let mut version = sha256_hex(&content);
        version.truncate(16);
        let envelope = encode_resource(&name, &version, &aliases, any);
        Self {
            name: name.into(),
            version: version.into(),
            aliases: aliases.into_iter().map(Arc::from).collect(),
            envelope,
            resource,
        }
    }
}

/// Names, by kind, under which something else is found than before.
pub type ChangedNames = BTreeMap<Kind, BTreeSet<Arc<str>>>;

#[derive(Debug, Clone, Default)]
struct OfKind {
    by_name: Map<Arc<str>, Arc<Encoded>>,
    by_alias: Map<Arc<str>, Arc<str>>,
}

/// Every resource that sidecars may be told. A clone is a snapshot.
#[derive(Debug, Clone, Default)]
pub struct Resources(BTreeMap<Kind, OfKind>);

impl Resources {
    /// A resource by its name or any other name it goes by.
    pub fn find(&self, kind: Kind, name: &str) -> Option<&Arc<Encoded>> {
        let of_kind = self.0.get(&kind)?;
        if let Some(found) = of_kind.by_name.get(name) {
            return Some(found);
        }
        let canonical = of_kind.by_alias.get(name)?;
        of_kind.by_name.get(&**canonical)
    }

    /// Every resource of a kind, by name.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Arc<Encoded>> {
        let of_kind = self.0.get(&kind).into_iter();
        of_kind
            .flat_map(|of_kind| &of_kind.by_name)
            .map(|(_, encoded)| encoded)
    }

    /// Every other name that a resource goes by.
    #[cfg(test)]
    pub(super) fn aliases(&self) -> Vec<(Kind, Arc<str>)> {
        let kinds = self.0.iter();
        let aliases = kinds.flat_map(|(kind, of_kind)| {
            let names = (&of_kind.by_alias).into_iter();
            names.map(|(alias, _)| (*kind, Arc::clone(alias)))
        });
        aliases.collect()
    }

    /// Puts a resource in the place of the one of its name, and notes under which names something
    /// else is found; false where nothing is different.
    pub fn put(&mut self, encoded: Encoded, changed: &mut ChangedNames) -> bool {
        let kind = encoded.resource.kind();
        let of_kind = self.0.entry(kind).or_default();
        let before = of_kind.by_name.get(&*encoded.name).cloned();
        let same = |before: &Arc<Encoded>| before.version == encoded.version;
        if before.as_ref().is_some_and(same) {
            return false;
        }
        let names = changed.entry(kind).or_default();
        names.insert(Arc::clone(&encoded.name));
        for alias in encoded.aliases.iter() {
            let name = Arc::clone(&encoded.name);
            of_kind.by_alias.insert_cow(Arc::clone(alias), name);
            names.insert(Arc::clone(alias));
        }
        if let Some(before) = before {
            for alias in before
                .aliases
                .iter()
                .filter(|a| !encoded.aliases.contains(a))
            {
                of_kind.give_up(alias, &before.name);
                names.insert(Arc::clone(alias));
            }
        }
        let name = Arc::clone(&encoded.name);
        of_kind.by_name.insert_cow(name, Arc::new(encoded));
        true
    }

    /// Takes out a resource; false where there is none of that name.
    pub fn remove(&mut self, kind: Kind, name: &str, changed: &mut ChangedNames) -> bool {
        let Some(of_kind) = self.0.get_mut(&kind) else {
            return false;
        };
        let Some(before) = of_kind.by_name.get(name).cloned() else {
            return false;
        };
        of_kind.by_name.remove_cow(&before.name);
        let names = changed.entry(kind).or_default();
        for alias in before.aliases.iter() {
            of_kind.give_up(alias, &before.name);
            names.insert(Arc::clone(alias));
        }
        names.insert(Arc::clone(&before.name));
        true
    }
}

impl OfKind {
    /// A resource does not go by this name any more; another one may already.
    fn give_up(&mut self, alias: &Arc<str>, name: &Arc<str>) {
        if self.by_alias.get(alias) == Some(name) {
            self.by_alias.remove_cow(alias);
        }
    }
}
