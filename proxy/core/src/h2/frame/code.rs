//! Error codes.

use std::fmt;

/// An error code of RST_STREAM and GOAWAY (RFC 9113 section 7). Codes that are not known are kept, so
/// that they can be forwarded, and have no special meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// No error; for example, a graceful shutdown.
    pub const NO_ERROR: Self = Self(0x00);
    /// A violation of the protocol for which there is no other code.
    pub const PROTOCOL_ERROR: Self = Self(0x01);
    /// An unexpected error of the endpoint itself.
    pub const INTERNAL_ERROR: Self = Self(0x02);
    /// A window was exceeded, or became too large.
    pub const FLOW_CONTROL_ERROR: Self = Self(0x03);
    /// Settings were not acknowledged in time.
    pub const SETTINGS_TIMEOUT: Self = Self(0x04);
    /// A frame for a stream that was half-closed.
    pub const STREAM_CLOSED: Self = Self(0x05);
    /// A frame of a wrong size.
    pub const FRAME_SIZE_ERROR: Self = Self(0x06);
    /// The stream was refused before any application processing; it may be tried again.
    pub const REFUSED_STREAM: Self = Self(0x07);
    /// The stream is not needed any more.
    pub const CANCEL: Self = Self(0x08);
    /// The field section compression context cannot be maintained.
    pub const COMPRESSION_ERROR: Self = Self(0x09);
    /// The connection of a CONNECT request was reset or ended abnormally.
    pub const CONNECT_ERROR: Self = Self(0x0a);
    /// The peer's behaviour might be generating excessive load.
    pub const ENHANCE_YOUR_CALM: Self = Self(0x0b);
    /// The transport does not meet the security requirements of section 9.2.
    pub const INADEQUATE_SECURITY: Self = Self(0x0c);
    /// HTTP/1.1 is required.
    pub const HTTP_1_1_REQUIRED: Self = Self(0x0d);

    /// The name in the registry; `None` where it is not known.
    pub fn name(self) -> Option<&'static str> {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        NAMES.get(self.0 as usize).copied()
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "error code {:#04x}", self.0),
        }
    }
}
