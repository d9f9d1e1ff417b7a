//! Settings of both sides (RFC 9113 section 6.5).

use super::super::flow::FlowControlError;
use super::super::frame::{
    FrameSize, Setting, Settings, WindowSize, write_settings_ack, write_window_update,
};
use super::super::hpack::DEFAULT_TABLE_SIZE;
use super::event::Event;
use super::streams::Half;
use super::violation::ConnectionViolation;
use super::{Connection, Role};

/// What the peer has announced, as far as this side is held to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct PeerSettings {
    /// Streams that may be open at a time, of those that this side opens.
    pub(super) max_streams: u32,
    /// Bytes of a stream's window at its beginning.
    pub(super) window: WindowSize,
    /// Bytes of a list of fields, with 32 for each.
    pub(super) header_list: u32,
    /// Bytes of the largest payload.
    pub(super) frame_size: FrameSize,
    /// Whether it takes extended CONNECT.
    pub(super) extended_connect: bool,
    /// Whether any settings have come.
    pub(super) has_come: bool,
}

impl Default for PeerSettings {
    fn default() -> Self {
        Self {
            max_streams: u32::MAX,
            window: WindowSize::DEFAULT,
            header_list: u32::MAX,
            frame_size: FrameSize::DEFAULT,
            extended_connect: false,
            has_come: false,
        }
    }
}

impl Connection {
    /// Whether the peer's settings have come, with which every connection begins.
    pub fn has_settings(&self) -> bool {
        self.peer.has_come
    }

    /// Whether the server takes extended CONNECT (RFC 8441 section 3).
    pub fn takes_extended_connect(&self) -> bool {
        self.peer.extended_connect
    }

    /// Applies the peer's settings in their order, and acknowledges them.
    pub(super) fn on_settings(&mut self, settings: &Settings) -> Result<(), ConnectionViolation> {
        let mut window = None;
        for setting in settings.iter() {
            match setting {
                Setting::HeaderTableSize(bytes) => self.encoder.set_peer_table_limit(bytes),
                // This side never pushes.
                Setting::EnablePush(_) => {}
                Setting::MaxConcurrentStreams(streams) => self.peer.max_streams = streams,
                // Of several only the last is in force when the next frame comes.
                Setting::InitialWindowSize(size) => window = Some(size),
                Setting::MaxFrameSize(size) => self.peer.frame_size = size,
                Setting::MaxHeaderListSize(bytes) => self.peer.header_list = bytes,
                Setting::EnableConnectProtocol(takes) => {
                    if self.role == Role::Client && self.peer.extended_connect && !takes {
                        return Err(ConnectionViolation::ConnectProtocolWithdrawn);
                    }
                    self.peer.extended_connect = takes;
                }
            }
        }
        if let Some(size) = window {
            self.on_peer_window(size)?;
        }
        self.peer.has_come = true;
        write_settings_ack(&mut self.out);
        self.events.push_back(Event::Settings);
        Ok(())
    }

    /// Windows of all streams change with the setting (section 6.9.2).
    fn on_peer_window(&mut self, size: WindowSize) -> Result<(), ConnectionViolation> {
        let old = std::mem::replace(&mut self.peer.window, size);
        if old == size {
            return Ok(());
        }
        let mut result: Result<(), FlowControlError> = Ok(());
        let queue = &mut self.queue;
        self.streams.for_each(|key, stream| {
            // For the peer it is gone.
            if stream.is_closed() {
                return;
            }
            if let Err(error) = stream.send_window.on_initial_window_size(old, size) {
                result = Err(error);
            }
            stream.enqueue_if_blocked(key, queue);
        });
        result.map_err(ConnectionViolation::FlowControl)
    }

    /// The peer has acknowledged the only settings that this side sends.
    pub(super) fn on_settings_ack(&mut self) -> Result<(), ConnectionViolation> {
        if std::mem::replace(&mut self.is_acknowledged, true) {
            return Err(ConnectionViolation::SettingsAckUnexpected);
        }
        if self.config.receive_table < DEFAULT_TABLE_SIZE {
            self.decoder.set_table_limit(self.config.receive_table);
        }
        let (old, new) = (self.first_window(), self.config.stream_window);
        if old != new {
            let out = &mut self.out;
            self.streams.for_each(|key, stream| {
                stream.receive_window.on_initial_window_size(old, new);
                // Of a smaller window it may be half what was taken before, and nothing else gives that
                // back where the peer waits for it.
                if let Some(increment) = stream.receive_window.consume(0)
                    && stream.receive != Half::Ended
                    && !stream.is_discarded
                {
                    write_window_update(Some(key.id()), increment, out);
                }
            });
        }
        Ok(())
    }

    /// What the peer may send on a new stream. Before it has acknowledged a smaller window it may use
    /// the one that holds without settings (section 6.9.3).
    pub(super) fn stream_window(&self) -> WindowSize {
        match self.is_acknowledged {
            true => self.config.stream_window,
            false => self.first_window(),
        }
    }

    fn first_window(&self) -> WindowSize {
        self.config.stream_window.max(WindowSize::DEFAULT)
    }
}
