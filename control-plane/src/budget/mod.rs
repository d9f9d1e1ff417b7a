//! Budgets: what each peer of the control plane may use, and what all of them may use together.
//!
//! Everything here is pure: counts and token buckets with `now` as an argument. [`crate::peers`]
//! holds them behind a lock and gives back what a connection or a stream used when that ends.

mod account;
mod anonymous;
mod bucket;
mod limits;
mod refusal;

#[cfg(test)]
mod tests;

pub(crate) use account::too_many_streams;
pub use account::{Account, Accounts, CertificateState, standing};
pub use anonymous::{Admission, AnonymousConnections, AnonymousId, AnonymousLife, SourcePrefix};
pub use bucket::{Bucket, Rate};
pub use limits::{
    ANONYMOUS_CALLS_MAX, ANONYMOUS_LIFE_MAX, ANONYMOUS_RECEIVED_MAX_BYTES, CALL_TIMEOUT,
    CERTIFICATE_GRACE, DISCOVERY_MESSAGE_MAX_BYTES, DRAIN_MAX, FIRST_CALL_TIMEOUT,
    HANDSHAKE_TIMEOUT, HEADERS_MAX_BYTES, IDLE_TIMEOUT, Limits, MESSAGE_MAX_BYTES,
    NAMES_PER_INSTANCE, NAMES_PER_TURN, SEND_TIMEOUT, SIGN_MESSAGE_MAX_BYTES,
    STREAMS_PER_CONNECTION, StreamKind, THROTTLED_MAX,
};
pub use refusal::{Reason, Refusal};
