//! Settings (RFC 9113 section 6.5).

use bytes::Bytes;

use super::check::SETTING_BYTES;
use super::error::{ConnectionError, INITIAL_WINDOW_SIZE};
use super::reader::Role;
use super::size::{FrameSize, WindowSize};

/// A setting that is known here, with a value in its range (RFC 9113 section 6.5.2, RFC 8441 section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// SETTINGS_HEADER_TABLE_SIZE: bytes of the table that the sender's decoder allows. Default 4,096.
    HeaderTableSize(u32),
    /// SETTINGS_ENABLE_PUSH: whether a server may push. Default true.
    EnablePush(bool),
    /// SETTINGS_MAX_CONCURRENT_STREAMS: streams that the recipient may open. Default without limit.
    MaxConcurrentStreams(u32),
    /// SETTINGS_INITIAL_WINDOW_SIZE: bytes of a stream's window at its beginning.
    InitialWindowSize(WindowSize),
    /// SETTINGS_MAX_FRAME_SIZE: bytes of the largest payload.
    MaxFrameSize(FrameSize),
    /// SETTINGS_MAX_HEADER_LIST_SIZE: bytes of a field section, uncompressed, with 32 for each field.
    /// Default without limit.
    MaxHeaderListSize(u32),
    /// SETTINGS_ENABLE_CONNECT_PROTOCOL: whether a server understands `:protocol` (RFC 8441). Default
    /// false; that it never goes back to false is for the connection to check.
    EnableConnectProtocol(bool),
}

impl Setting {
    /// `None` where the identifier is not known: such settings are to be ignored.
    fn parse(id: u16, value: u32) -> Result<Option<Self>, ConnectionError> {
        Ok(Some(match id {
            0x01 => Self::HeaderTableSize(value),
            0x02 => Self::EnablePush(flag("SETTINGS_ENABLE_PUSH", value)?),
            0x03 => Self::MaxConcurrentStreams(value),
            0x04 => {
                let invalid = ConnectionError::Setting {
                    name: INITIAL_WINDOW_SIZE,
                    value,
                    allowed: "0 to 2^31-1",
                };
                Self::InitialWindowSize(WindowSize::new(value).ok_or(invalid)?)
            }
            0x05 => {
                let invalid = ConnectionError::Setting {
                    name: "SETTINGS_MAX_FRAME_SIZE",
                    value,
                    allowed: "2^14 to 2^24-1",
                };
                Self::MaxFrameSize(FrameSize::new(value).ok_or(invalid)?)
            }
            0x06 => Self::MaxHeaderListSize(value),
            0x08 => Self::EnableConnectProtocol(flag("SETTINGS_ENABLE_CONNECT_PROTOCOL", value)?),
            _ => return Ok(None),
        }))
    }

    /// The six bytes of section 6.5.1.
    pub(super) fn to_bytes(self) -> [u8; SETTING_BYTES as usize] {
        let (id, value): (u16, u32) = match self {
            Self::HeaderTableSize(bytes) => (0x01, bytes),
            Self::EnablePush(enabled) => (0x02, enabled.into()),
            Self::MaxConcurrentStreams(streams) => (0x03, streams),
            Self::InitialWindowSize(size) => (0x04, size.get()),
            Self::MaxFrameSize(size) => (0x05, size.get()),
            Self::MaxHeaderListSize(bytes) => (0x06, bytes),
            Self::EnableConnectProtocol(enabled) => (0x08, enabled.into()),
        };
        let ([i0, i1], [v0, v1, v2, v3]) = (id.to_be_bytes(), value.to_be_bytes());
        [i0, i1, v0, v1, v2, v3]
    }
}

fn flag(name: &'static str, value: u32) -> Result<bool, ConnectionError> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(ConnectionError::Setting {
            name,
            value,
            allowed: "0 or 1",
        }),
    }
}

/// The settings of one frame, all of them valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Entries of six bytes.
    entries: Bytes,
}

impl Settings {
    /// Checks the payload of a frame that a peer of `role` has received.
    pub(super) fn parse(entries: Bytes, role: Role) -> Result<Self, ConnectionError> {
        for (id, value) in pairs(&entries) {
            let setting = Setting::parse(id, value)?;
            // Section 6.5.2: a server must not say that it may be pushed to.
            if role == Role::Client && setting == Some(Setting::EnablePush(true)) {
                return Err(ConnectionError::Setting {
                    name: "SETTINGS_ENABLE_PUSH",
                    value,
                    allowed: "0 from a server",
                });
            }
        }
        Ok(Self { entries })
    }

    /// The settings that are known here, in their order, in which they are to be applied (section
    /// 6.5.3). One may come twice.
    pub fn iter(&self) -> impl Iterator<Item = Setting> + '_ {
        pairs(&self.entries).filter_map(|(id, value)| Setting::parse(id, value).ok().flatten())
    }
}

/// Identifiers and values.
fn pairs(entries: &[u8]) -> impl Iterator<Item = (u16, u32)> + '_ {
    let (entries, _) = entries.as_chunks::<{ SETTING_BYTES as usize }>();
    entries.iter().map(|[i0, i1, v0, v1, v2, v3]| {
        let id = u16::from_be_bytes([*i0, *i1]);
        (id, u32::from_be_bytes([*v0, *v1, *v2, *v3]))
    })
}
