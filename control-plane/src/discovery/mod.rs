//! Discovery: who needs which resources, what they hold, and what they acknowledged.

pub mod grpc;
mod names;
mod reasons;
mod service;
mod session;

pub use reasons::Reason;
pub use service::DiscoveryServer;
pub use session::{
    Answer, Answered, Handled, Held, HeldState, Push, Rejection, Request, Session, SessionError,
};
