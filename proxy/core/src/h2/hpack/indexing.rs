//! Which fields the encoder adds to the dynamic table.

use super::field_size;

/// How a field is sent unless a table has it whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Indexing {
    /// Added to the dynamic table (RFC 7541 section 6.2.1).
    Added,
    /// A literal that is not added (section 6.2.2).
    NotAdded,
    /// A literal that no hop may ever index (section 6.2.3).
    Never,
}

/// Length from which a cookie is no longer guessed by trying, in bytes (as nghttp2 and h2 have it).
const GUESSABLE_COOKIE_BYTES: usize = 20;

impl Indexing {
    /// How a field is sent if the caller says nothing.
    ///
    /// Never indexed is what an attacker on the same connection could guess (section 7.1.3). Not
    /// added is what differs from message to message, so that it would only displace what repeats:
    /// the list of nghttp2 and h2, and what traces and calls of gRPC carry. Cookies are not added,
    /// because a connection of a proxy carries those of many users.
    pub(super) fn of(name: &[u8], value: &[u8]) -> Self {
        match name {
            b"authorization" | b"proxy-authorization" => Self::Never,
            b"cookie" if value.len() < GUESSABLE_COOKIE_BYTES => Self::Never,
            b":path" | b"age" | b"content-length" | b"cookie" | b"etag" | b"if-modified-since"
            | b"if-none-match" | b"location" | b"set-cookie" => Self::NotAdded,
            b"b3" | b"grpc-timeout" | b"traceparent" | b"tracestate" | b"x-b3-parentspanid"
            | b"x-b3-spanid" | b"x-b3-traceid" | b"x-request-id" => Self::NotAdded,
            _ => Self::Added,
        }
    }

    /// The same without a dynamic table.
    pub(super) fn without_table(self) -> Self {
        match self {
            Self::Added | Self::NotAdded => Self::NotAdded,
            Self::Never => Self::Never,
        }
    }

    /// The same for a table of `max_size` bytes: a field that takes more than three quarters of it
    /// would displace nearly all others and is not added.
    pub(super) fn within(self, max_size: usize, name: &[u8], value: &[u8]) -> Self {
        let is_large = field_size(name.len(), value.len()) > max_size / 4 * 3;
        match self {
            Self::Added if is_large => Self::NotAdded,
            Self::Added | Self::NotAdded | Self::Never => self,
        }
    }
}
