//! Who needs which resources, what they hold, and what they acknowledged.

pub mod grpc;
mod session;

pub use session::{
    Answer, Answered, Applied, Held, Push, Request, Session, SessionError, Standing,
};
