//! What a connection announces, and what it may cost.

use super::super::frame::{FrameSize, Limits, Setting, WindowSize};
use super::super::hpack::DEFAULT_TABLE_SIZE;
use super::super::message::{ExtendedConnect, HeadLimits};

/// What one side of a connection allows.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Streams that the peer may open at a time (SETTINGS_MAX_CONCURRENT_STREAMS); of a client, streams
    /// that it opens at a time at most, whatever the server allows. Default 100.
    pub max_streams: u32,
    /// Bytes of one stream that are in flight to this side or held by it
    /// (SETTINGS_INITIAL_WINDOW_SIZE). Default 65,535.
    pub stream_window: WindowSize,
    /// Bytes of all streams together that are in flight to this side or held by it, at least 65,535.
    /// Default 1 MiB.
    pub connection_window: WindowSize,
    /// Bytes of the dynamic table for what is received (SETTINGS_HEADER_TABLE_SIZE). Default 4,096.
    pub receive_table: u32,
    /// Bytes of the dynamic table for what is sent, at most; with 0 there is no Huffman code either.
    /// Default 4,096.
    pub send_table: u32,
    /// Frames that are received.
    pub frames: Limits,
    /// Heads and trailers that are received.
    pub heads: HeadLimits,
    /// Bytes of a list of fields that is decoded, with 32 for each field
    /// (SETTINGS_MAX_HEADER_LIST_SIZE). Default 128 KiB.
    pub header_list: u32,
    /// Whether a server takes extended CONNECT (RFC 8441).
    pub extended_connect: ExtendedConnect,
    /// Whether heads keep what HTTP/2 cannot say of them ([`crate::http1_form`]), as between sidecars.
    /// Otherwise it is neither sent nor believed. Default false.
    pub keeps_form: bool,
    /// Bytes that wait to be written before no data is added to them. Heads, the last 1 KiB of data and
    /// what answers single frames come on top. Default 64 KiB.
    pub out_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_streams: 100,
            stream_window: WindowSize::DEFAULT,
            connection_window: WindowSize::new(1 << 20).unwrap_or_default(),
            receive_table: DEFAULT_TABLE_SIZE,
            send_table: DEFAULT_TABLE_SIZE,
            frames: Limits::default(),
            heads: HeadLimits {
                bytes: 64 * 1024,
                fields: 100,
            },
            header_list: 128 * 1024,
            extended_connect: ExtendedConnect::NotAnnounced,
            keeps_form: false,
            out_bytes: 64 * 1024,
        }
    }
}

impl Config {
    /// What a server announces. Values that are the protocol's defaults are not said.
    pub(super) fn server_settings(&self) -> Vec<Setting> {
        let mut settings = vec![Setting::MaxConcurrentStreams(self.max_streams)];
        self.add_common(&mut settings);
        if self.extended_connect == ExtendedConnect::Announced {
            settings.push(Setting::EnableConnectProtocol(true));
        }
        settings
    }

    /// What a client announces.
    pub(super) fn client_settings(&self) -> Vec<Setting> {
        let mut settings = vec![Setting::EnablePush(false)];
        self.add_common(&mut settings);
        settings
    }

    fn add_common(&self, settings: &mut Vec<Setting>) {
        if self.stream_window != WindowSize::DEFAULT {
            settings.push(Setting::InitialWindowSize(self.stream_window));
        }
        if self.receive_table != DEFAULT_TABLE_SIZE {
            settings.push(Setting::HeaderTableSize(self.receive_table));
        }
        if self.frames.frame_size != FrameSize::DEFAULT {
            settings.push(Setting::MaxFrameSize(self.frames.frame_size));
        }
        settings.push(Setting::MaxHeaderListSize(self.header_list));
    }
}
