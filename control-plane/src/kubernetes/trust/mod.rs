//! The mesh's roots where the cluster needs them: `caBundle` of the injector's webhook, and a
//! ConfigMap in every namespace with a sidecar.
//!
//! [`decide`] is pure and level-triggered: what was seen in, what is to be written out. Every write is
//! conditional on what was seen, so that two who write at the same time do no harm; whatever changes or
//! removes these objects is undone.

mod decide;
mod keep;

pub use decide::{NamespaceFacts, Observed, Step, Written, decide};
pub use keep::{Trust, keep};

#[cfg(test)]
mod tests;
