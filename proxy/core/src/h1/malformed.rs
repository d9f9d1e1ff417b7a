//! Why a message is refused.

use std::fmt;

use crate::fault::Fault;
use crate::reason::Reason;

/// The two messages of an exchange. It decides whose fault a defect is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// From a client; its defects are the caller's fault.
    Request,
    /// From an application; its defects are the application's fault.
    Response,
}

/// A message that cannot be forwarded. The connection that it came on is to be closed after the
/// answer, since the end of the message is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {message}: {defect}")]
pub struct Malformed {
    /// Which message.
    pub message: Message,
    /// What is wrong with it.
    pub defect: Defect,
}

impl Malformed {
    /// The mesh's reason for refusing it.
    pub fn reason(&self) -> Reason {
        match (&self.defect, self.message) {
            (
                Defect::HeadTooLarge { .. }
                | Defect::TooManyFields { .. }
                | Defect::TargetTooLong { .. }
                | Defect::TrailersTooLarge { .. },
                _,
            ) => Reason::HeadersTooLarge,
            (Defect::BodyCut { .. } | Defect::HeadCut, Message::Response) => Reason::UpstreamReset,
            (_, Message::Request) => Reason::BadRequest,
            (_, Message::Response) => Reason::UpstreamProtocolError,
        }
    }

    /// The status that the mesh answers with: 502 for every response, and for a request the most
    /// exact one that RFC 9110 has.
    pub fn status(&self) -> u16 {
        if self.message == Message::Response {
            return 502;
        }
        if let Defect::Version { .. } | Defect::Http2Preface = self.defect {
            505
        } else if let Defect::TransferCoding { .. } = self.defect {
            501
        } else if let Defect::TargetTooLong { .. } = self.defect {
            414
        } else {
            self.reason().http_status()
        }
    }

    /// Whose fault it is: the sender's.
    pub fn fault(&self) -> Fault {
        match self.message {
            Message::Request => Fault::Caller,
            Message::Response => Fault::Endpoint,
        }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "request",
            Self::Response => "response",
        })
    }
}

/// What is wrong with a message. `found` is an excerpt of what was received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the error texts describe the variants and what they carry"
)]
pub enum Defect {
    #[error("it begins with {found}; a method and a space are expected")]
    NotHttp { found: Excerpt },
    #[error("it is the preface of HTTP/2; HTTP/1.1 is spoken here")]
    Http2Preface,
    #[error("the request line {found} has no version; HTTP/1.0 and HTTP/1.1 are allowed")]
    Http09 { found: Excerpt },
    #[error("the version is {found}; HTTP/1.0 and HTTP/1.1 are allowed")]
    Version { found: Excerpt },
    #[error("the request line is {found}; `method target version` is expected")]
    RequestLine { found: Excerpt },
    #[error(
        "the status line is {found}; `HTTP/1.1 status phrase` is expected, the status 100 to 999"
    )]
    StatusLine { found: Excerpt },
    #[error("the target is {found}; {allowed}")]
    Target {
        found: Excerpt,
        allowed: &'static str,
    },
    #[error(
        "the target has {} in its {part}, where it has to be percent-encoded: %{byte:02X}",
        Excerpt::of(&[*byte])
    )]
    TargetCharacter { byte: u8, part: &'static str },
    #[error("the target is longer than {limit} bytes")]
    TargetTooLong { limit: usize },
    #[error("there are more than {limit} empty lines before it")]
    EmptyLines { limit: usize },
    #[error("the head is larger than {limit} bytes")]
    HeadTooLarge { limit: usize },
    #[error("there are more than {limit} fields")]
    TooManyFields { limit: usize },
    #[error("a line ends in a bare line feed; CR LF is allowed")]
    BareLineFeed,
    #[error("there is a carriage return that no line feed follows")]
    BareCarriageReturn,
    #[error("there is a NUL byte")]
    Nul,
    #[error("the line {found} continues a field (obsolete folding); one line is allowed for each")]
    FoldedLine { found: Excerpt },
    #[error("there is white space between the name {found} and its colon; none is allowed")]
    SpaceBeforeColon { found: Excerpt },
    #[error("the line {found} is no field; `name: value` is expected")]
    FieldLine { found: Excerpt },
    #[error("the value of {name} has control characters")]
    FieldValue { name: Excerpt },
    #[error("there is no Host; HTTP/1.1 requires one")]
    HostMissing,
    #[error("there is more than one Host; exactly one is allowed")]
    HostRepeated,
    #[error("Host is {found}; `host` or `host:port` is allowed")]
    Host { found: Excerpt },
    #[error("Content-Length is {found}; one decimal number below 10^19 is allowed")]
    ContentLength { found: Excerpt },
    #[error("there are two values of Content-Length, {first} and {second}; one is allowed")]
    ContentLengthDiffers { first: u64, second: u64 },
    #[error("it has both Transfer-Encoding and Content-Length; one of them is allowed")]
    TwoFramings,
    #[error("it has Transfer-Encoding and is HTTP/1.0, which does not know it")]
    TransferEncodingInHttp10,
    #[error("the transfer coding is {found}; only chunked is supported")]
    TransferCoding { found: Excerpt },
    #[error("there is a transfer coding after chunked: {found}; chunked is allowed once and last")]
    ChunkedNotLast { found: Excerpt },
    #[error("Transfer-Encoding has an empty element; only chunked is supported")]
    TransferEncodingEmpty,
    #[error("it is CONNECT and has content; none is allowed")]
    ConnectWithContent,
    #[error("the size of a chunk is {found}; a hexadecimal number below 2^64 is expected")]
    ChunkSize { found: Excerpt },
    #[error("the line before a chunk is longer than {limit} bytes")]
    ChunkLineTooLong { limit: usize },
    #[error("chunk extensions exceed the data of the body by more than {limit} bytes")]
    ChunkExtensions { limit: u64 },
    #[error("{found} follows the data of a chunk; CR LF is expected")]
    ChunkEnd { found: Excerpt },
    #[error("the trailers are larger than {limit} bytes")]
    TrailersTooLarge { limit: usize },
    #[error("the connection ended within the head")]
    HeadCut,
    #[error("the connection ended within the body; {}", Missing(.missing))]
    BodyCut { missing: Option<u64> },
}

/// What is known of the rest of a body.
struct Missing<'a>(&'a Option<u64>);

impl fmt::Display for Missing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bytes) => write!(f, "{bytes} bytes are missing"),
            None => f.write_str("the last chunk is missing"),
        }
    }
}

/// Received bytes, cut to [`EXCERPT_BYTES`] and escaped, so that they can be shown and logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Excerpt(Box<str>);

/// Bytes of a message that an error shows.
const EXCERPT_BYTES: usize = 48;

impl Excerpt {
    /// An excerpt of the beginning of `bytes`.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let cut = &bytes[..bytes.len().min(EXCERPT_BYTES)];
        let more = if cut.len() < bytes.len() { "…" } else { "" };
        Self(format!("\"{}{more}\"", cut.escape_ascii()).into())
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
