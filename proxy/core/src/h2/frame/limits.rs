//! What frames may cost before they are understood.

use super::size::FrameSize;

/// Limits of what is read. Each has a unit and a default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest payload of a frame, SETTINGS_MAX_FRAME_SIZE as it is sent to the peer. It is also
    /// accepted before the peer has acknowledged the settings. Default 16 KiB.
    pub frame_size: FrameSize,
    /// Bytes of one header block, all its frames together, padding and priority included. It is
    /// compressed: the limit of the decoded section is the decoder's, and a section that is too large
    /// only there costs no more than its stream. Default 64 KiB.
    pub block_bytes: u32,
    /// CONTINUATION frames of one header block, empty ones included. Default 12: what a block of
    /// 64 KiB needs in frames of 16 KiB, and eight more for senders that make smaller ones.
    pub continuations: u32,
    /// Settings in one frame, unknown ones included. Default 64; RFC 9113 has six, the registry about
    /// ten.
    pub settings: u32,
    /// Bytes of the debug data of GOAWAY that are kept; the rest is dropped. Default 1 KiB.
    pub goaway_debug_bytes: u32,
}

impl Limits {
    /// The defaults, with `bytes` for header blocks and as many CONTINUATION frames as they need.
    pub fn with_block_bytes(bytes: u32) -> Self {
        Self {
            block_bytes: bytes,
            continuations: 8 + bytes / FrameSize::DEFAULT.get(),
            ..Self::default()
        }
    }
}

impl Limits {
    /// The same, with room for header blocks of so many bytes.
    pub fn at_least(self, block_bytes: u32) -> Self {
        let other = Self::with_block_bytes(block_bytes);
        Self {
            block_bytes: self.block_bytes.max(other.block_bytes),
            continuations: self.continuations.max(other.continuations),
            ..self
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_size: FrameSize::DEFAULT,
            block_bytes: 64 * 1024,
            continuations: 12,
            settings: 64,
            goaway_debug_bytes: 1024,
        }
    }
}
