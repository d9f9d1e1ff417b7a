//! What answers the requests of a connection.

use std::future::Future;
use std::time::Duration;

use http::{Request, Response};
use weft_core::h2::message::Malformed;

use super::body::StreamBody;
use super::outgoing::Outbound;

/// What answers the requests of a connection.
pub trait Service: Sized {
    /// The body of answers.
    type Body: Outbound;
    /// An answer on its way.
    type Answer: Future;
    /// Kept until a request has been answered. Dropped before that, its client has given it up.
    type Guard: Unpin;

    /// Lets a request through, or refuses it at once.
    ///
    /// # Errors
    ///
    /// The answer to one that is refused.
    fn admit(&self, request: &mut Request<StreamBody>)
    -> Result<Self::Guard, Response<Self::Body>>;
    /// Answers a request that was let through. The future is made where it stays: it is large.
    fn call(&self, request: Request<StreamBody>) -> Self::Answer;
    /// A request has been answered.
    fn answered(
        &self,
        guard: Self::Guard,
        answer: <Self::Answer as Future>::Output,
    ) -> Response<Self::Body>;
    /// Answers a request that cannot be understood; `None` resets it.
    fn refuse(&self, malformed: &Malformed) -> Option<Response<Self::Body>>;
    /// The client has sent something that had to be reset before it was a request.
    fn on_refused(&self);
    /// The connection has ended, by its client or not: that its requests end with it says nothing of them.
    fn on_end(&self, by_client: bool);
    /// Bytes that may be read before other connections have their turn.
    ///
    /// # Errors
    ///
    /// How long nothing may be read.
    fn turn(&self) -> Result<usize, Duration>;
}
