//! The cluster that the control plane looks after: how its API is reached, and the names that the
//! injector, the sidecars, the chart and the control plane agree on.

mod client;
pub mod endpoints;
pub(crate) mod events;
pub mod leader;
mod membership;
pub mod names;
pub(crate) mod pace;
pub mod protocols;
pub mod ranges;
pub(crate) mod retry;
#[cfg(test)]
pub(crate) mod testing;
mod tokens;
pub mod trust;
pub(crate) mod watched;
pub mod watches;

pub use client::{ClientError, connect};
pub(crate) use client::{client_with, infer, told};
pub use events::PodCounters;
pub use membership::has_sidecar;
pub use tokens::{ClusterTokens, PodFacts, Review, TokenReviews, TokenUser};
