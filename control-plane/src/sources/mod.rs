//! Sources: each turns what it sees into changes of facts. A new source is a new file (or folder)
//! here, and a line in `app/assemble.rs`.

mod addresses;
mod departures;
mod identities;
pub mod kubernetes;
mod registry;
mod store;

use std::fmt;

use futures_util::future::BoxFuture;

use crate::store::{Revision, StoreError};
use crate::world::Delta;

pub use addresses::{ADDRESSES, AddressSource, read_assigned};
pub use departures::DepartedPods;
pub use identities::IdentitySource;
pub use kubernetes::KubernetesSource;
pub use registry::RegistrySource;
pub use store::StoreSource;

/// Changes that belong together: nothing is compiled between them.
#[derive(Debug, Default)]
pub struct Batch {
    /// The changes.
    pub deltas: Vec<Delta>,
    /// The store's revision after them, from the store.
    pub revision: Option<Revision>,
    /// The number of the last change, from the registry.
    pub registered: Option<u64>,
}

/// Where facts come from.
pub trait Source: fmt::Debug + Send {
    /// Everything that there is, to begin with; what has to be waited for comes with [`Source::next`].
    fn start(&mut self) -> Result<Batch, StoreError>;

    /// Whether everything that there was to begin with has been handed out. Until then sidecars are
    /// told nothing: what is not known yet would look like what is not there.
    fn is_complete(&self) -> bool {
        true
    }

    /// Waits for further changes. A call that is dropped has taken nothing. An error ends the
    /// control plane: a source that has failed must not look like one in which nothing happens.
    fn next(&mut self) -> BoxFuture<'_, Result<Batch, StoreError>>;
}
