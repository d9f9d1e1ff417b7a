//! The nine bytes before every payload.

use std::fmt;
use std::num::NonZeroU32;

/// Bytes of a frame's head (RFC 9113 section 4.1). They count neither in the length of a frame nor in
/// windows.
pub const HEAD_BYTES: usize = 9;

/// The low 31 bits; the reserved bit is ignored when received.
pub(super) const MASK_31: u32 = 0x7fff_ffff;

/// Flags of section 6; the same bit has different names in different frames.
pub(super) mod flag {
    pub(in super::super) const ACK: u8 = 0x01;
    pub(in super::super) const END_STREAM: u8 = 0x01;
    pub(in super::super) const END_HEADERS: u8 = 0x04;
    pub(in super::super) const PADDED: u8 = 0x08;
    pub(in super::super) const PRIORITY: u8 = 0x20;
}

/// The identifier of a stream: 1 to 2^31-1 (RFC 9113 section 5.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(NonZeroU32);

impl StreamId {
    /// The largest identifier, which a graceful GOAWAY names (section 6.8).
    pub const MAX: Self = Self(NonZeroU32::MIN.saturating_add(MASK_31 - 1));

    /// `None` for 0 and for more than 31 bits.
    pub fn new(id: u32) -> Option<Self> {
        (id <= MASK_31).then(|| NonZeroU32::new(id).map(Self))?
    }

    /// A field of 31 bits after a reserved one; `None` for 0, which is the connection.
    pub(super) fn from_wire(field: u32) -> Option<Self> {
        NonZeroU32::new(field & MASK_31).map(Self)
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// Whether it is odd, and the stream therefore one that the client opens.
    pub fn is_client_initiated(self) -> bool {
        self.get() % 2 == 1
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The type of a frame (RFC 9113 section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 0x00
    Data,
    /// 0x01
    Headers,
    /// 0x02
    Priority,
    /// 0x03
    ResetStream,
    /// 0x04
    Settings,
    /// 0x05
    PushPromise,
    /// 0x06
    Ping,
    /// 0x07
    GoAway,
    /// 0x08
    WindowUpdate,
    /// 0x09
    Continuation,
    /// Any other.
    Unknown(u8),
}

impl Kind {
    pub(super) fn from_wire(byte: u8) -> Self {
        match byte {
            0 => Self::Data,
            1 => Self::Headers,
            2 => Self::Priority,
            3 => Self::ResetStream,
            4 => Self::Settings,
            5 => Self::PushPromise,
            6 => Self::Ping,
            7 => Self::GoAway,
            8 => Self::WindowUpdate,
            9 => Self::Continuation,
            unknown => Self::Unknown(unknown),
        }
    }

    pub(super) const fn to_wire(self) -> u8 {
        match self {
            Self::Data => 0,
            Self::Headers => 1,
            Self::Priority => 2,
            Self::ResetStream => 3,
            Self::Settings => 4,
            Self::PushPromise => 5,
            Self::Ping => 6,
            Self::GoAway => 7,
            Self::WindowUpdate => 8,
            Self::Continuation => 9,
            Self::Unknown(byte) => byte,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "DATA",
            Self::Headers => "HEADERS",
            Self::Priority => "PRIORITY",
            Self::ResetStream => "RST_STREAM",
            Self::Settings => "SETTINGS",
            Self::PushPromise => "PUSH_PROMISE",
            Self::Ping => "PING",
            Self::GoAway => "GOAWAY",
            Self::WindowUpdate => "WINDOW_UPDATE",
            Self::Continuation => "CONTINUATION",
            Self::Unknown(byte) => return write!(f, "a frame of type {byte:#04x}"),
        })
    }
}

/// Length, type, flags and stream of a frame (RFC 9113 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// Bytes of the payload, below 2^24.
    pub(super) length: u32,
    pub(super) kind: Kind,
    pub(super) flags: u8,
    /// `None` for the connection.
    pub(super) stream: Option<StreamId>,
}

impl Head {
    /// The head at the beginning of the bytes; `None` where it is not complete.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *bytes.first_chunk::<HEAD_BYTES>()?;
        Some(Self {
            length: u32::from_be_bytes([0, l0, l1, l2]),
            kind: Kind::from_wire(kind),
            flags,
            stream: StreamId::from_wire(u32::from_be_bytes([s0, s1, s2, s3])),
        })
    }

    pub(super) fn to_bytes(self) -> [u8; HEAD_BYTES] {
        debug_assert!(self.length < 1 << 24, "the length of a frame has 24 bits");
        let [_, l0, l1, l2] = self.length.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.map_or(0, StreamId::get).to_be_bytes();
        let kind = self.kind.to_wire();
        [l0, l1, l2, kind, self.flags, s0, s1, s2, s3]
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}
