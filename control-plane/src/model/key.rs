//! What documents go by.

use weft_core::name::ServiceName;

pub use weft_api::types::ResourceKey;

/// Names a document among those of its kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl From<&ServiceName> for ObjectName {
    fn from(name: &ServiceName) -> Self {
        Self {
            namespace: name.namespace().to_owned(),
            name: name.name().to_owned(),
        }
    }
}

impl From<&Self> for ObjectName {
    fn from(name: &Self) -> Self {
        name.clone()
    }
}
