//! What the head of a frame alone says about whether it is allowed, before its payload has come.

use super::error::ConnectionError;
use super::head::{Head, Kind, StreamId, flag};
use super::limits::Limits;

impl Head {
    /// Checks length and stream (RFC 9113 sections 4.2, 5.1.1 and 6.1 to 6.10).
    pub(super) fn check(&self, limits: &Limits) -> Result<(), ConnectionError> {
        let limit = limits.frame_size.get();
        if self.length > limit {
            let Self { kind, length, .. } = *self;
            return Err(ConnectionError::FrameTooLarge {
                kind,
                length,
                limit,
            });
        }
        match self.kind {
            Kind::Data => {
                self.open_stream()?;
                let least = u32::from(self.has(flag::PADDED));
                self.check_length(self.length >= least, "1 or more with PADDED")
            }
            Kind::Headers => {
                let stream = self.open_stream()?;
                self.check_length(self.length >= self.headers_least(), HEADERS_LENGTHS)?;
                let limit = limits.block_bytes;
                if self.length > limit {
                    return Err(ConnectionError::BlockTooLarge { stream, limit });
                }
                Ok(())
            }
            // Another length is an error of the stream.
            Kind::Priority => self.any_stream().map(|_| ()),
            Kind::ResetStream => {
                self.open_stream()?;
                self.check_length(self.length == 4, "4")
            }
            Kind::Settings => self.check_settings(limits),
            Kind::PushPromise => Err(ConnectionError::PushPromise),
            Kind::Ping => {
                self.check_no_stream()?;
                self.check_length(self.length == 8, "8")
            }
            Kind::GoAway => {
                self.check_no_stream()?;
                self.check_length(self.length >= 8, "8 or more")
            }
            Kind::WindowUpdate => {
                if self.stream.is_some() {
                    self.open_stream()?;
                }
                self.check_length(self.length == 4, "4")
            }
            // Its stream is that of the block which it continues.
            Kind::Continuation => Ok(()),
            // Section 5.5: what extensions mean is not known.
            Kind::Unknown(_) => Ok(()),
        }
    }

    /// The stream of a frame that must have one.
    pub(super) fn any_stream(&self) -> Result<StreamId, ConnectionError> {
        let kind = self.kind;
        self.stream.ok_or(ConnectionError::StreamMissing { kind })
    }

    /// The stream of a frame that only streams which can be open have. Those with even numbers are the
    /// server's to push on, and idle for ever where nobody pushes (sections 5.1 and 5.1.1).
    pub(super) fn open_stream(&self) -> Result<StreamId, ConnectionError> {
        let stream = self.any_stream()?;
        if !stream.is_client_initiated() {
            let kind = self.kind;
            return Err(ConnectionError::StreamEven { kind, stream });
        }
        Ok(stream)
    }

    fn check_no_stream(&self) -> Result<(), ConnectionError> {
        let kind = self.kind;
        match self.stream {
            None => Ok(()),
            Some(stream) => Err(ConnectionError::StreamForbidden { kind, stream }),
        }
    }

    fn check_length(&self, valid: bool, allowed: &'static str) -> Result<(), ConnectionError> {
        if valid {
            return Ok(());
        }
        let Self { kind, length, .. } = *self;
        Err(ConnectionError::Length {
            kind,
            length,
            allowed,
        })
    }

    /// Bytes of the fields before a fragment that the flags announce (section 6.2).
    fn headers_least(&self) -> u32 {
        let priority = if self.has(flag::PRIORITY) {
            PRIORITY_BYTES
        } else {
            0
        };
        u32::from(self.has(flag::PADDED)) + priority
    }

    fn check_settings(&self, limits: &Limits) -> Result<(), ConnectionError> {
        self.check_no_stream()?;
        if self.has(flag::ACK) {
            return self.check_length(self.length == 0, "0 with ACK");
        }
        let multiple = self.length.is_multiple_of(SETTING_BYTES);
        self.check_length(multiple, "a multiple of 6")?;
        let (count, limit) = (self.length / SETTING_BYTES, limits.settings);
        if count > limit {
            return Err(ConnectionError::TooManySettings { count, limit });
        }
        Ok(())
    }
}

/// Bytes of the deprecated fields Exclusive, Stream Dependency and Weight (sections 6.2 and 6.3).
pub(super) const PRIORITY_BYTES: u32 = 5;

/// Bytes of one setting: an identifier and a value (section 6.5.1).
pub(super) const SETTING_BYTES: u32 = 6;

const HEADERS_LENGTHS: &str = "1 or more with PADDED, 5 or more with PRIORITY, 6 or more with both";
