//! Kinds of documents: what each says about itself.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use weft_core::name::{ServiceName, check_label, check_subdomain};

use super::check::Check;
use super::key::ObjectName;
use super::kinds::{Document, KINDS};

/// The group of our own kinds.
pub const API_GROUP: &str = "weft-mesh.io";
/// The group and version of our own kinds.
pub const API_VERSION: &str = "weft-mesh.io/v1alpha1";
/// The group and version of the Gateway API's kinds.
pub const GATEWAY_VERSION: &str = "gateway.networking.k8s.io/v1";
/// The group and version of those of its kinds that are not further.
pub const GATEWAY_ALPHA: &str = "gateway.networking.k8s.io/v1alpha2";

/// What references to services may lead to.
pub(super) const SERVICE_KINDS: &str =
    "group \"\" and kind Service, or group weft-mesh.io and kind ExternalService";
/// What [`NameRule::Label`] admits.
pub(super) const LABEL: &str =
    "1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit";
/// What [`NameRule::Subdomain`] admits.
pub(super) const SUBDOMAIN: &str =
    "1 to 253 of a-z, 0-9, '-' and '.', each part beginning and ending with a letter or digit";

/// A kind of document, implemented by the type of its `spec`.
///
/// The implementation and a line in the list of `kinds.rs` are all that a new kind needs to be read,
/// stored, shown, planned and deleted.
pub trait DocumentKind: Serialize + DeserializeOwned {
    /// The kind, as in `HTTPRoute`.
    const NAME: &'static str;
    /// Its name in the plural and in lower case, as in `httproutes`.
    const PLURAL: &'static str;
    /// The group and version that it is stored and shown in.
    const VERSION: &'static str;
    /// Others that it is read in.
    const OTHER_VERSIONS: &'static [&'static str] = &[];
    /// What documents of the kind may be called.
    const NAMES: NameRule = NameRule::Subdomain;

    /// Adds to `check` everything that is wrong with a spec that has been read.
    fn validate(&self, check: &mut Check<'_>, own: &ObjectName);

    /// The document with this spec; `None` only when its name was refused.
    fn into_document(self, own: ObjectName) -> Option<Document>;

    /// What the document is attached to, and what else it names.
    fn relations(&self, _own: &ObjectName) -> Relations {
        Relations::default()
    }
}

impl<K: DocumentKind> DocumentKind for Box<K> {
    const NAME: &'static str = K::NAME;
    const PLURAL: &'static str = K::PLURAL;
    const VERSION: &'static str = K::VERSION;
    const OTHER_VERSIONS: &'static [&'static str] = K::OTHER_VERSIONS;
    const NAMES: NameRule = K::NAMES;

    fn validate(&self, check: &mut Check<'_>, own: &ObjectName) {
        (**self).validate(check, own);
    }

    fn into_document(self, own: ObjectName) -> Option<Document> {
        (*self).into_document(own)
    }

    fn relations(&self, own: &ObjectName) -> Relations {
        (**self).relations(own)
    }
}

/// What a document has to do with others. The indices of the world are made from this.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Relations {
    /// Services that the document counts for, as written.
    pub attachments: Vec<Attachment>,
    /// What else it names; each once, in order.
    pub references: Vec<Reference>,
}

impl Relations {
    /// Services that the document is attached to.
    pub fn attached(&self) -> BTreeSet<&ServiceName> {
        let attachments = self.attachments.iter();
        attachments.map(|attachment| &attachment.service).collect()
    }

    /// Whether the document counts for the whole of a service (`None`), or for this port alone.
    pub fn attaches(&self, service: &ServiceName, port: Option<u16>) -> bool {
        let mut attachments = self.attachments.iter();
        attachments.any(|attachment| attachment.service == *service && attachment.port == port)
    }
}

/// A service that a document is attached to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The service.
    pub service: ServiceName,
    /// Whether it is named as an ExternalService.
    pub external: bool,
    /// One of its ports; `None` is all of them.
    pub port: Option<u16>,
}

/// Something that a document names beside what it is attached to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reference {
    /// A port of a service, of whichever kind.
    Service {
        /// The service.
        service: ServiceName,
        /// The port.
        port: u16,
    },
    /// A FaultInjection.
    Fault(ObjectName),
    /// The ReferenceGrants of a namespace: they decide whether what is named there may be.
    Grants(String),
}

/// What documents of a kind may be called (Kubernetes, "Object Names and IDs").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// A DNS label (RFC 1123): what is found by DNS.
    Label,
    /// A DNS subdomain (RFC 1123).
    Subdomain,
}

impl NameRule {
    /// Whether a text is such a name.
    pub fn admits(self, text: &str) -> bool {
        match self {
            Self::Label => check_label(text).is_ok(),
            Self::Subdomain => check_subdomain(text).is_ok(),
        }
    }

    /// Such names, described.
    pub const fn allowed(self) -> &'static str {
        match self {
            Self::Label => LABEL,
            Self::Subdomain => SUBDOMAIN,
        }
    }
}

/// What there is to know about a kind without a document of it.
pub struct Kind {
    /// The kind, as in `HTTPRoute`.
    pub name: &'static str,
    /// Its name in the plural and in lower case.
    pub plural: &'static str,
    /// The group and version that it is stored and shown in.
    pub version: &'static str,
    /// What documents of the kind may be called.
    pub names: NameRule,
    other_versions: &'static [&'static str],
    read: fn(&mut Check<'_>, ObjectName, &Value) -> Option<Document>,
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kind").field(&self.name).finish()
    }
}

impl Kind {
    /// Describes the kind of this spec.
    pub(super) const fn of<K: DocumentKind>() -> Self {
        Self {
            name: K::NAME,
            plural: K::PLURAL,
            version: K::VERSION,
            names: K::NAMES,
            other_versions: K::OTHER_VERSIONS,
            read: read_spec::<K>,
        }
    }

    /// The kind of exactly this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.name == name)
    }

    /// The kind as people write it: in any case, in the singular or plural.
    pub fn parse(text: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| {
            text.eq_ignore_ascii_case(kind.name) || text.eq_ignore_ascii_case(kind.plural)
        })
    }

    /// The groups and versions that it is read in, the one that it is stored in first.
    pub fn versions(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.version).chain(self.other_versions.iter().copied())
    }

    /// Reads a `spec`; what is wrong with it is added to `check`.
    pub(super) fn read(
        &self,
        check: &mut Check<'_>,
        own: ObjectName,
        spec: &Value,
    ) -> Option<Document> {
        (self.read)(check, own, spec)
    }
}

fn read_spec<K: DocumentKind>(
    check: &mut Check<'_>,
    own: ObjectName,
    spec: &Value,
) -> Option<Document> {
    let spec: K = check.typed("spec.", spec)?;
    spec.validate(check, &own);
    spec.into_document(own)
}

/// A spec of whatever kind.
pub(super) trait Spec {
    /// Its kind.
    fn kind(&self) -> &'static str;
    /// As it is stored and shown.
    fn value(&self) -> Value;
    /// See [`DocumentKind::relations`].
    fn relations(&self, own: &ObjectName) -> Relations;
}

impl<K: DocumentKind> Spec for K {
    fn kind(&self) -> &'static str {
        K::NAME
    }

    fn value(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn relations(&self, own: &ObjectName) -> Relations {
        DocumentKind::relations(self, own)
    }
}
