//! Who somebody is, and what proves it: the authority, tokens and instances, operators.
//!
//! [`Identities`] owns all of it. What signs is behind [`Signer`], what proves behind [`Attestor`].

pub mod attest;
pub mod budget;
pub mod ca;
mod follow;
pub mod grpc;
mod identities;
pub mod operator;
mod records;
pub mod service_account;
pub mod signer;
pub mod token;

pub use attest::{Attested, Attestor, Credential, ProveError, on_record, with_cluster};
pub use identities::{Counters, Identities, IdentityError, Signed};
pub use records::Records;
pub use signer::Signer;
