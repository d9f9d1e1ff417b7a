//! Whether a message has as much content as its head says (RFC 9113 section 8.1.1).

use http::{Method, StatusCode};

use super::malformed::{Defect, Malformed};
use crate::h1::{Message, is_tunnel, may_have_body};

/// What DATA frames of one message may still come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Length {
    message: Message,
    allowed: Allowed,
    /// Bytes of content so far.
    received: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Allowed {
    /// Any number of bytes.
    Any,
    /// Exactly so many.
    Exactly(u64),
    /// None, whatever `Content-Length` says (RFC 9110 section 6.4.1).
    Nothing,
}

impl Length {
    /// Of a request. That of `CONNECT` has no content: what follows its head belongs to the tunnel.
    pub fn request(method: &Method, content_length: Option<u64>) -> Self {
        let content_length = content_length.filter(|_| *method != Method::CONNECT);
        Self::new(Message::Request, Allowed::of(content_length))
    }

    /// Of a response to `method`: to `HEAD`, 1xx, 204 and 304 have no content (RFC 9110 section 6.4.1).
    /// After success of `CONNECT` comes what the tunnel carries (section 9.3.6).
    pub fn response(method: &Method, status: StatusCode, content_length: Option<u64>) -> Self {
        let allowed = if is_tunnel(method, status) {
            Allowed::Any
        } else if may_have_content(method, status) {
            Allowed::of(content_length)
        } else {
            Allowed::Nothing
        };
        Self::new(Message::Response, allowed)
    }

    fn new(message: Message, allowed: Allowed) -> Self {
        Self {
            message,
            allowed,
            received: 0,
        }
    }

    /// Counts data, in bytes without padding.
    ///
    /// # Errors
    ///
    /// Where it is more than the message may have.
    pub fn on_data(&mut self, bytes: usize) -> Result<(), Malformed> {
        self.received = self.received.saturating_add(bytes as u64);
        let received = self.received;
        let defect = match self.allowed {
            Allowed::Exactly(length) if received > length => Defect::BodyTooLong { length },
            Allowed::Nothing if received > 0 => Defect::ContentForbidden { received },
            Allowed::Any | Allowed::Exactly(_) | Allowed::Nothing => return Ok(()),
        };
        Err(Malformed::reset(self.message, defect))
    }

    /// The message ends, with its head, with data or with trailers.
    ///
    /// # Errors
    ///
    /// Where bytes are missing.
    pub fn on_end(&self) -> Result<(), Malformed> {
        let received = self.received;
        match self.allowed {
            Allowed::Exactly(length) if received < length => {
                let defect = Defect::BodyTooShort { received, length };
                Err(Malformed::reset(self.message, defect))
            }
            Allowed::Any | Allowed::Exactly(_) | Allowed::Nothing => Ok(()),
        }
    }

    /// Bytes that are still to come; `None` where only the end of the stream tells.
    pub fn remaining(&self) -> Option<u64> {
        match self.allowed {
            Allowed::Any => None,
            Allowed::Exactly(length) => Some(length.saturating_sub(self.received)),
            Allowed::Nothing => Some(0),
        }
    }
}

/// Whether anything may follow the head of a response: content, or what a tunnel carries. Where not, the
/// response is whole with its head, also where its stream ends later (RFC 9110 section 6.4.1).
pub fn may_have_content(method: &Method, status: StatusCode) -> bool {
    is_tunnel(method, status) || may_have_body(method, status)
}

impl Allowed {
    fn of(content_length: Option<u64>) -> Self {
        content_length.map_or(Self::Any, Self::Exactly)
    }
}
