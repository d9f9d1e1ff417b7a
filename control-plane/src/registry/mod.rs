//! What exists: who registered, whether it is still there.
//!
//! [`Registry`] is the pure state machine, [`Registrations`] keeps it with its records and live
//! streams, and tells of changes through [`Changes`].

mod changes;
pub mod grpc;
mod machine;
mod observed;
mod ownership;
mod registrations;
mod writing;

pub use changes::{Changes, RegistryDelta};
pub use machine::{Entry, Refused, Registry, check_binding, check_values};
pub use observed::{Observations, ObservedView};
pub use ownership::{Origin, check_addresses};
pub use registrations::{Departed, Departures, RegisterError, Registrations, Settings};
