//! What a head, or trailers, may have.

/// Limits of a head, or of trailers, in the numbers of HTTP/1.1: what is within them here is within
/// them there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes of all fields, each with the 4 that stand around name and value in a line of HTTP/1.1.
    /// Of pseudo-header fields the values count.
    pub bytes: u32,
    /// Fields. Pseudo-header fields do not count, and all of `Cookie` are one, as which a server in
    /// HTTP/1.1 gets them (RFC 9113 section 8.2.3).
    pub fields: u32,
}

impl HeadLimits {
    /// No limit but that of the decoder: another sidecar has held it to its own.
    pub const NONE: Self = Self {
        bytes: u32::MAX,
        fields: u32::MAX,
    };
}

/// Fields that a [`HeaderMap`](http::HeaderMap) has room for: three quarters of 2^15.
pub(super) const MAP_FIELDS: u32 = 24_576;

/// What is larger than allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// Bytes; what is allowed of [`HeadLimits::bytes`].
    #[error("larger than {0} bytes")]
    Bytes(u32),
    /// Fields; what is allowed of [`HeadLimits::fields`].
    #[error("of more than {0} fields")]
    Fields(u32),
    /// The list, as SETTINGS_MAX_HEADER_LIST_SIZE counts it (RFC 9113 section 6.5.2).
    #[error("a list of {bytes} bytes with 32 for each field; {limit} are allowed")]
    List {
        /// Bytes of the whole list.
        bytes: u64,
        /// What is allowed.
        limit: u64,
    },
}

/// What was counted of a head against its limits.
#[derive(Debug, Default)]
pub(super) struct HeadSize {
    bytes: usize,
    fields: usize,
    has_cookie: bool,
}

impl HeadSize {
    /// Counts a field; what is then exceeded.
    pub(super) fn count(
        &mut self,
        name: &[u8],
        value: &[u8],
        limits: HeadLimits,
    ) -> Option<Exceeded> {
        if name.first() == Some(&b':') {
            self.bytes = self.bytes.saturating_add(value.len());
        } else {
            let line = name.len() + value.len() + 4;
            self.bytes = self.bytes.saturating_add(line);
            let is_cookie = name == b"cookie";
            self.fields += usize::from(!(is_cookie && self.has_cookie));
            self.has_cookie |= is_cookie;
        }
        if self.bytes > limits.bytes as usize {
            return Some(Exceeded::Bytes(limits.bytes));
        }
        let most = limits.fields.min(MAP_FIELDS);
        (self.fields > most as usize).then_some(Exceeded::Fields(most))
    }

    /// Fields, as [`HeadLimits::fields`] counts them.
    pub(super) fn fields(&self) -> usize {
        self.fields
    }
}
