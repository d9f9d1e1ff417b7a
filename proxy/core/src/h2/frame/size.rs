//! Sizes with a range.

/// The largest payload of a frame, SETTINGS_MAX_FRAME_SIZE: 2^14 to 2^24-1 bytes (RFC 9113 sections
/// 4.2 and 6.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrameSize(u32);

impl FrameSize {
    /// 16,384 bytes: what every endpoint has to accept, and the value before any settings.
    pub const DEFAULT: Self = Self(1 << 14);
    /// 16,777,215 bytes.
    pub const MAX: Self = Self((1 << 24) - 1);

    /// `None` where it is out of range.
    pub fn new(bytes: u32) -> Option<Self> {
        (Self::DEFAULT.0..=Self::MAX.0)
            .contains(&bytes)
            .then_some(Self(bytes))
    }

    /// Bytes.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for FrameSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The size of a flow-control window: 0 to 2^31-1 bytes (RFC 9113 sections 6.5.2 and 6.9.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WindowSize(i32);

impl WindowSize {
    /// 65,535 bytes: the value before any settings, and of a connection's window at its beginning.
    pub const DEFAULT: Self = Self(65_535);
    /// 2,147,483,647 bytes.
    pub const MAX: Self = Self(i32::MAX);

    /// `None` where it is out of range.
    pub fn new(bytes: u32) -> Option<Self> {
        i32::try_from(bytes).ok().map(Self)
    }

    /// Bytes.
    pub fn get(self) -> u32 {
        self.0.unsigned_abs()
    }

    /// Bytes, as the type that differences have; never negative.
    pub(in super::super) fn signed(self) -> i32 {
        self.0
    }
}

impl Default for WindowSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}
