//! Why a head, trailers or a body are refused.

use http::Method;

use super::limits::Exceeded;
use crate::fault::Fault;
use crate::h1::{self, BadHost, Excerpt, METHOD_BYTES, Message};
use crate::h2::frame::ErrorCode;
use crate::reason::Reason;

/// Bytes of `:protocol`, at most; the names that are registered for `Upgrade` are much shorter.
pub const PROTOCOL_BYTES: usize = 64;

/// A message that cannot be forwarded (RFC 9113 section 8.1.1). Its stream ends; the connection and
/// its dynamic table go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {message}: {defect}")]
pub struct Malformed {
    /// Which message.
    pub message: Message,
    /// What is wrong with it.
    pub defect: Defect,
    /// What an answer needs to know; `None` where the stream is to be reset with [`Self::code`].
    pub answerable: Option<Answerable>,
}

/// A request that is refused with an answer: [`Malformed::status`], or [`Malformed::reason`] in gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answerable {
    /// Whether it is `HEAD`, to which an answer has no content.
    pub head: bool,
    /// Whether it is a call of gRPC, by what came of its fields. Never set for `CONNECT`, where the
    /// status of such an answer, 200, would open a tunnel.
    pub grpc: bool,
}

impl Malformed {
    /// That `defect` is wrong with `message`, which is reset for it.
    pub(super) fn reset(message: Message, defect: Defect) -> Self {
        Self {
            message,
            defect,
            answerable: None,
        }
    }

    /// The mesh's reason for refusing it.
    pub fn reason(&self) -> Reason {
        if self.defect.is_too_large() {
            return Reason::HeadersTooLarge;
        }
        match self.message {
            Message::Request => Reason::BadRequest,
            Message::Response => Reason::UpstreamProtocolError,
        }
    }

    /// The status that the mesh answers with: 502 for every response, and for a request the one that
    /// the same defect has in HTTP/1.1.
    pub fn status(&self) -> u16 {
        if self.message == Message::Response {
            return 502;
        }
        if let Defect::Target(h1::Defect::TargetTooLong { .. }) = self.defect {
            return 414;
        }
        self.reason().http_status()
    }

    /// Whose fault it is: the sender's.
    pub fn fault(&self) -> Fault {
        match self.message {
            Message::Request => Fault::Caller,
            Message::Response => Fault::Endpoint,
        }
    }

    /// Whether it is of trailers that are right but for their size.
    pub fn is_of_trailers_size(&self) -> bool {
        matches!(self.defect, Defect::TrailersTooLarge(_))
    }

    /// The code for RST_STREAM.
    pub fn code(&self) -> ErrorCode {
        ErrorCode::PROTOCOL_ERROR
    }
}

/// What is wrong with a message. `found` is an excerpt of what was received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the error texts describe the variants and what they carry"
)]
pub enum Defect {
    #[error("the pseudo-header field {found} is not known here; {allowed}")]
    PseudoUnknown {
        found: Excerpt,
        allowed: &'static str,
    },
    #[error("{name} follows a regular field; pseudo-header fields are allowed before all of them")]
    PseudoMisplaced { name: &'static str },
    #[error("there is more than one {name}; exactly one is allowed")]
    PseudoRepeated { name: &'static str },
    #[error("there is no {name}; exactly one is required")]
    PseudoMissing { name: &'static str },
    #[error("{name} is empty; a value is required")]
    PseudoEmpty { name: &'static str },
    #[error("CONNECT has {name}; :method and :authority are allowed")]
    PseudoOfConnect { name: &'static str },
    #[error(":protocol comes with the method {method}; it is allowed with CONNECT only")]
    ProtocolWithoutConnect { method: Method },
    #[error(":protocol has {length} bytes; up to {PROTOCOL_BYTES} are allowed")]
    ProtocolTooLong { length: usize },
    #[error(":method is {found}; a token is allowed")]
    Method { found: Excerpt },
    #[error(":method is larger than {METHOD_BYTES} bytes")]
    MethodTooLong,
    #[error(":scheme is {found}; a letter is allowed, then letters, digits, `+`, `-` and `.`")]
    Scheme { found: Excerpt },
    #[error(":status is {found}; three digits are allowed, 100 to 999")]
    Status { found: Excerpt },
    #[error(":status is 101; protocols are not switched in HTTP/2, 200 opens a stream of CONNECT")]
    SwitchingProtocols,
    #[error("the stream ends with :status {status}; a final response has to follow a 1xx")]
    InterimAtEnd { status: u16 },
    #[error("the stream goes on after the trailers; END_STREAM is required with them")]
    TrailersNotAtEnd,
    #[error("the name {found} has upper case letters; lower case is allowed")]
    UpperCase { found: Excerpt },
    #[error("the name of a field is {found}; a token in lower case is allowed")]
    Name { found: Excerpt },
    #[error("the value of {name} has control characters; none is allowed")]
    Value { name: Excerpt },
    #[error("the value of {name} begins or ends with a space or a tab; neither is allowed")]
    WhiteSpace { name: Excerpt },
    #[error("there is {name}, which is for a connection in HTTP/1.1; it is not allowed in HTTP/2")]
    ConnectionSpecific { name: Excerpt },
    #[error("te is {found}; only `trailers` is allowed in HTTP/2")]
    Te { found: Excerpt },
    #[error("{0}")]
    ContentLength(h1::Defect),
    #[error("it is CONNECT and has a content-length of {length}; no content is allowed")]
    ConnectWithContent { length: u64 },
    #[error("CONNECT without :authority (RFC 9113 section 8.5); `host:port` is required")]
    ConnectWithoutAuthority,
    #[error(
        ":authority has user information (RFC 9113 section 8.3.1); `host` and `host:port` are allowed"
    )]
    UserInformation,
    #[error("in :authority {0}")]
    Authority(BadHost),
    #[error("there is more than one Host; one is allowed")]
    HostRepeated,
    #[error("Host is {host}, but :authority is {authority}; Host may only repeat it")]
    HostDiffers { host: Excerpt, authority: Excerpt },
    /// Of `:path`, of `Host` without `:authority`, and of `CONNECT`.
    #[error("{0}")]
    Target(h1::Defect),
    #[error("the head is {0}")]
    HeadTooLarge(Exceeded),
    #[error("the trailers are {0}")]
    TrailersTooLarge(Exceeded),
    #[error("the body has more than the {length} bytes that content-length says")]
    BodyTooLong { length: u64 },
    #[error("the body has {received} bytes, {length} are required by content-length")]
    BodyTooShort { received: u64, length: u64 },
    #[error("there are {received} bytes of content, where a response has none")]
    ContentForbidden { received: u64 },
}

impl Defect {
    /// Whether a request with it is answered: what HTTP/1.1 refuses as well is, with the same status.
    /// What only HTTP/2 forbids is a stream error (RFC 9113 section 8.1.1).
    pub(super) fn is_answered(&self) -> bool {
        match self {
            Self::ProtocolTooLong { .. }
            | Self::MethodTooLong
            | Self::ContentLength(_)
            | Self::ConnectWithContent { .. }
            | Self::ConnectWithoutAuthority
            | Self::UserInformation
            | Self::Authority(_)
            | Self::HostRepeated
            | Self::HostDiffers { .. }
            | Self::Target(_)
            | Self::HeadTooLarge(_) => true,
            Self::PseudoUnknown { .. }
            | Self::PseudoMisplaced { .. }
            | Self::PseudoRepeated { .. }
            | Self::PseudoMissing { .. }
            | Self::PseudoEmpty { .. }
            | Self::PseudoOfConnect { .. }
            | Self::ProtocolWithoutConnect { .. }
            | Self::Method { .. }
            | Self::Scheme { .. }
            | Self::Status { .. }
            | Self::SwitchingProtocols
            | Self::InterimAtEnd { .. }
            | Self::TrailersNotAtEnd
            | Self::UpperCase { .. }
            | Self::Name { .. }
            | Self::Value { .. }
            | Self::WhiteSpace { .. }
            | Self::ConnectionSpecific { .. }
            | Self::Te { .. }
            | Self::TrailersTooLarge(_)
            | Self::BodyTooLong { .. }
            | Self::BodyTooShort { .. }
            | Self::ContentForbidden { .. } => false,
        }
    }

    /// Whether it is no error of form: there is more than the mesh takes.
    fn is_too_large(&self) -> bool {
        matches!(
            self,
            Self::HeadTooLarge(_)
                | Self::TrailersTooLarge(_)
                | Self::MethodTooLong
                | Self::Target(h1::Defect::TargetTooLong { .. })
        )
    }
}
