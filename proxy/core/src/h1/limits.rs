//! What a message may cost before it is understood.

/// Bytes of a method, in every version of HTTP; the registry's longest has 17.
pub const METHOD_BYTES: usize = 64;

/// Limits of what is read. Each has a unit and a default; see `deploy/guide/http.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a head: the first line and all fields, line ends included. Default 64 KiB.
    pub head_bytes: usize,
    /// Fields of a head, and of a trailer section; a folded line counts as one more. Default 512.
    pub fields: usize,
    /// Bytes of a method. Default [`METHOD_BYTES`].
    pub method_bytes: usize,
    /// Empty lines before a first line, which some clients send after a body (RFC 9112 section
    /// 2.2). Default 8.
    pub empty_lines: usize,
    /// Bytes of the line before a chunk: its size, extensions and line end. Default 4 KiB.
    pub chunk_line_bytes: usize,
    /// Bytes of chunk extensions in one body, in excess of the bytes of data received so far.
    /// Default 16 KiB.
    pub chunk_extension_bytes: u64,
    /// Bytes of a trailer section, line ends included. Default 64 KiB.
    pub trailer_bytes: usize,
}

impl Limits {
    /// The defaults, with `bytes` for heads and for trailer sections (`limits.max_header_bytes`).
    pub fn with_head_bytes(bytes: usize) -> Self {
        Self {
            head_bytes: bytes,
            trailer_bytes: bytes,
            ..Self::default()
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 64 * 1024,
            fields: 512,
            method_bytes: METHOD_BYTES,
            empty_lines: 8,
            chunk_line_bytes: 4 * 1024,
            chunk_extension_bytes: 16 * 1024,
            trailer_bytes: 64 * 1024,
        }
    }
}
