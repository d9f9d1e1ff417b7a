//! Why a field block cannot be decoded.

/// A field block that cannot be decoded: COMPRESSION_ERROR of the connection (RFC 9113 section 4.3),
/// since the dynamic table is no longer that of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the error texts describe the variants and what they carry"
)]
pub enum CompressionError {
    #[error("the field block ends within a field; it has to be complete")]
    Truncated,
    #[error("an integer has more than 5 bytes after its prefix or exceeds 2^32 - 1")]
    IntegerOverflow,
    #[error("a field has index {index}; 1 to {last} are allowed")]
    InvalidIndex { index: u32, last: u32 },
    #[error(
        "a Huffman-coded string does not end in a symbol and fewer than 8 bits that are all set"
    )]
    HuffmanPadding,
    #[error("a Huffman-coded string contains EOS, which is not allowed")]
    HuffmanEos,
    #[error("a dynamic table size update follows a field; it is allowed before all fields")]
    SizeUpdateMisplaced,
    #[error("a dynamic table size update is to {size} bytes; at most {limit} are allowed")]
    SizeUpdateTooLarge { size: u32, limit: u32 },
    #[error(
        "the dynamic table was limited to {limit} bytes; the next field block has to begin with a \
         dynamic table size update to no more"
    )]
    SizeUpdateMissing { limit: u32 },
}
