//! The other end of a connection in HTTP/2: it reads what ours writes, which has to be valid whatever ours
//! was sent.

use std::collections::VecDeque;

use bytes::BytesMut;
use weft_core::h2::frame::{Frame, FrameError, FrameSize, Limits, Reader, Received, Role, Setting};
use weft_core::h2::hpack::{DEFAULT_TABLE_SIZE, Decoder};

/// Reads what a connection of ours writes.
#[derive(Debug)]
pub(crate) struct Peer {
    reader: Reader,
    buffer: BytesMut,
    decoder: Decoder,
    /// What ours was sent in SETTINGS, until it is acknowledged.
    unacknowledged: VecDeque<Vec<Setting>>,
    /// GOAWAY with an error was read.
    is_over: bool,
}

impl Peer {
    /// The peer of a connection of `role`, which was sent these bytes.
    pub(crate) fn new(role: Role, limits: Limits, sent: &[u8]) -> Self {
        let other = match role {
            Role::Client => Role::Server,
            Role::Server => Role::Client,
        };
        let limits_of_output = Limits {
            frame_size: FrameSize::MAX,
            ..Limits::default()
        };
        Self {
            reader: Reader::new(other, limits_of_output),
            buffer: BytesMut::new(),
            decoder: Decoder::new(DEFAULT_TABLE_SIZE, 1 << 24),
            unacknowledged: settings_in(role, limits, sent),
            is_over: false,
        }
    }

    /// Reads more of what ours has written.
    pub(crate) fn read(&mut self, output: &[u8]) {
        self.buffer.extend_from_slice(output);
        loop {
            match self.reader.read(&mut self.buffer) {
                Ok(Received::NeedMore(_)) => return,
                Ok(Received::Frame(frame)) => self.on_frame(frame),
                Err(error) => panic!("what is written is no valid frame: {error}"),
            }
        }
    }

    fn on_frame(&mut self, frame: Frame) {
        assert!(!self.is_over, "{frame:?} follows the end");
        match frame {
            Frame::Headers { block, .. } => {
                let list = self.decoder.decode(&block, |_field| {});
                assert!(list.is_ok(), "{}: {list:?}", block.escape_ascii());
            }
            Frame::SettingsAck => {
                let settings = self.unacknowledged.pop_front();
                let Some(settings) = settings else {
                    panic!("settings are acknowledged that were not sent");
                };
                for setting in settings {
                    if let Setting::HeaderTableSize(bytes) = setting {
                        self.decoder.set_table_limit(bytes);
                    }
                }
            }
            Frame::GoAway { code, .. } => self.is_over = code.0 != 0,
            Frame::Data(_)
            | Frame::ResetStream { .. }
            | Frame::Settings(_)
            | Frame::Ping { .. }
            | Frame::PingAck { .. }
            | Frame::WindowUpdate { .. } => {}
            Frame::Ignored { kind, .. } => panic!("{kind} is never written"),
        }
    }
}

fn settings_in(role: Role, limits: Limits, sent: &[u8]) -> VecDeque<Vec<Setting>> {
    let (mut reader, mut buffer) = (Reader::new(role, limits), BytesMut::from(sent));
    let mut all = VecDeque::new();
    loop {
        match reader.read(&mut buffer) {
            Ok(Received::Frame(Frame::Settings(settings))) => {
                all.push_back(settings.iter().collect());
            }
            Ok(Received::Frame(_)) => {}
            Err(FrameError::Stream(_)) => {}
            Ok(Received::NeedMore(_)) | Err(FrameError::Connection(_)) => {
                return all;
            }
        }
    }
}
