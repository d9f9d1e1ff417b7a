//! Frames as bytes.

use weft_core::h2::frame::{HEAD_BYTES, PREFACE, Role};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 0x01;
pub(crate) const END_HEADERS: u8 = 0x04;
pub(crate) const PADDED: u8 = 0x08;
pub(crate) const WITH_PRIORITY: u8 = 0x20;

/// One frame, right or wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawFrame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl RawFrame {
    /// The frames that a side has written, as far as they are whole.
    pub(crate) fn of_side(bytes: &[u8], role: Role) -> Vec<Self> {
        let mut rest = match role {
            Role::Client => bytes.strip_prefix(PREFACE).unwrap_or(&[]),
            Role::Server => bytes,
        };
        let mut frames = Vec::new();
        while let Some((head, tail)) = rest.split_first_chunk::<HEAD_BYTES>() {
            let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *head;
            let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
            let Some((payload, tail)) = tail.split_at_checked(length) else {
                break;
            };
            rest = tail;
            frames.push(Self {
                kind,
                flags,
                stream: u32::from_be_bytes([s0, s1, s2, s3]),
                payload: payload.to_vec(),
            });
        }
        frames
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.payload.len() as u32).to_be_bytes()[1..]);
        out.extend_from_slice(&[self.kind, self.flags]);
        out.extend_from_slice(&self.stream.to_be_bytes());
        out.extend_from_slice(&self.payload);
    }

    /// The number in the payload that begins at a place.
    pub(crate) fn number(&self, at: usize) -> u32 {
        let field = self.payload.get(at..at + 4);
        field.map_or(0, |field| u32::from_be_bytes(field.try_into().unwrap()))
    }

    /// Bytes that count in windows.
    pub(crate) fn data_bytes(&self) -> u64 {
        match self.kind {
            DATA => self.payload.len() as u64,
            _ => 0,
        }
    }

    /// By how much it opens the connection's window.
    pub(crate) fn connection_increment(&self) -> u64 {
        match (self.kind, self.stream) {
            (WINDOW_UPDATE, 0) => self.number(0).into(),
            _ => 0,
        }
    }
}
