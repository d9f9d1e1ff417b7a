//! Pods that want a sidecar and have none: made while the injector was not called, or before their
//! namespace asked. They are told of in an Event; where the operator allows it they are evicted, so
//! that their controllers make them anew, with a sidecar.
//!
//! [`decide`] is pure: what is due, and how much of it at once. [`candidates`] is what the watch of pods
//! says, [`webhook`] asks whether a pod that is made now would get its sidecar, [`keep`] carries out.

mod candidates;
mod decide;
mod keep;
mod webhook;

#[cfg(test)]
mod tests;

pub use candidates::Candidates;
pub use decide::{EVICTIONS_PER_MINUTE, EVICTIONS_PER_MINUTE_MAX, Eviction};
pub use keep::Keeper;
