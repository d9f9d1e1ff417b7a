//! Frames in, events out.

use std::num::NonZeroU32;

use bytes::BytesMut;

use super::super::flow::FlowControlError;
use super::super::frame::{
    Data, ErrorCode, Frame, FrameError, Kind, Received, StreamError, StreamId, write_ping_ack,
    write_window_update,
};
use super::streams::Half;
use super::{Connection, ConnectionViolation, Event, ResetCause, StreamKey, StreamViolation};
use crate::time::Instant;

/// What is known of a stream by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// Nobody has opened it.
    Idle,
    /// It is open or half-closed.
    Present(StreamKey),
    /// This side has reset it, and the peer may not have known.
    Reset,
    /// It has ended, or was passed over.
    Ended,
}

impl Connection {
    /// Reads frames off the buffer until there is something to tell; `None` where more bytes are
    /// needed, or room in the output ([`Self::may_receive`]): then it is to be called again once some of
    /// that was written.
    ///
    /// # Errors
    ///
    /// Where the peer ends the connection by what it sends. GOAWAY is in the output, behind which
    /// nothing follows; the same error is returned from then on.
    pub fn receive(
        &mut self,
        buffer: &mut BytesMut,
        now: Instant,
    ) -> Result<Option<Event>, ConnectionViolation> {
        if let Some(violation) = &self.ended {
            return Err(violation.clone());
        }
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            if !self.may_receive() {
                return Ok(None);
            }
            match self.step(buffer, now) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(violation) => {
                    self.end_with(violation.clone());
                    return Err(violation);
                }
            }
        }
    }

    /// Reads one frame; false where it is not complete.
    fn step(&mut self, buffer: &mut BytesMut, now: Instant) -> Result<bool, ConnectionViolation> {
        match self.reader.read(buffer) {
            Ok(Received::NeedMore(_)) => return Ok(false),
            Ok(Received::Frame(frame)) => self.on_frame(frame, now)?,
            Err(FrameError::Connection(error)) => return Err(error.into()),
            Err(FrameError::Stream(error)) => self.on_bad_frame(error, now)?,
        }
        Ok(true)
    }

    fn on_frame(&mut self, frame: Frame, now: Instant) -> Result<(), ConnectionViolation> {
        match frame {
            Frame::Data(data) => self.on_data(data, now),
            Frame::Headers {
                stream,
                block,
                end_stream,
                depends_on_itself,
            } => {
                self.on_headers(stream, &block, end_stream, now)?;
                if depends_on_itself && let Some(key) = self.streams.find(stream) {
                    let error = StreamError::SelfDependency { stream };
                    self.violated(key, StreamViolation::Frame(error));
                }
                Ok(())
            }
            Frame::ResetStream { stream, code } => self.on_reset(stream, code, now),
            Frame::Settings(settings) => {
                // Windows of all streams change with them.
                let slots = u32::try_from(self.streams.slots()).unwrap_or(u32::MAX);
                let weight = 1 + slots / 16;
                self.idle_frame(Kind::Settings, weight, now)?;
                self.on_settings(&settings)
            }
            Frame::SettingsAck => self.on_settings_ack(),
            Frame::Ping { payload } => {
                self.idle_frame(Kind::Ping, 1, now)?;
                write_ping_ack(payload, &mut self.out);
                Ok(())
            }
            Frame::PingAck { payload } => {
                self.idle_frame(Kind::Ping, 1, now)?;
                self.on_ping_ack(payload);
                Ok(())
            }
            Frame::GoAway {
                last_stream,
                code,
                debug,
            } => {
                self.idle_frame(Kind::GoAway, 1, now)?;
                self.on_goaway(last_stream, code, debug);
                Ok(())
            }
            Frame::WindowUpdate { stream, increment } => {
                self.idle_frame(Kind::WindowUpdate, 1, now)?;
                match stream {
                    None => self.on_connection_update(increment),
                    Some(stream) => self.on_stream_update(stream, increment),
                }
            }
            Frame::Ignored { kind, .. } => self.idle_frame(kind, 1, now),
        }
    }

    /// Counts a frame that carries nothing.
    pub(super) fn idle_frame(
        &mut self,
        kind: Kind,
        weight: u32,
        now: Instant,
    ) -> Result<(), ConnectionViolation> {
        match self.idle.on_idle_frame(weight, now) {
            true => Ok(()),
            false => Err(ConnectionViolation::Flood { kind }),
        }
    }

    /// What is known of a stream that the client of the connection opens.
    pub(super) fn known(&self, stream: StreamId) -> Known {
        if let Some(key) = self.streams.find(stream) {
            return match self
                .streams
                .get(key)
                .is_some_and(|found| !found.is_closed())
            {
                true => Known::Present(key),
                // Only data of it is held, which is the application's all the same.
                false => Known::Ended,
            };
        }
        // Only clients open streams: those with even numbers stay idle for ever.
        let is_passed = self.highest.is_some_and(|highest| stream <= highest);
        if !is_passed || stream.get().is_multiple_of(2) {
            return Known::Idle;
        }
        match self.resets.contains(stream) {
            true => Known::Reset,
            false => Known::Ended,
        }
    }

    fn on_data(&mut self, data: Data, now: Instant) -> Result<(), ConnectionViolation> {
        let bytes = data.flow_controlled_bytes();
        let window = &mut self.receive_window;
        window
            .receive(bytes)
            .map_err(ConnectionViolation::FlowControl)?;
        let stream = data.stream;
        let known = self.known(stream);
        match known {
            Known::Present(_) if !data.payload.is_empty() || data.end_stream => {
                self.idle.on_useful_frame();
            }
            // As much as a window may be under way on a stream that was reset.
            Known::Reset if !data.payload.is_empty() => {}
            Known::Present(_) | Known::Reset | Known::Idle | Known::Ended => {
                self.idle_frame(Kind::Data, 1, now)?;
            }
        }
        match known {
            Known::Idle => {
                let kind = Kind::Data;
                return Err(ConnectionViolation::IdleStream { kind, stream });
            }
            Known::Present(key) => {
                // Of what is refused nothing is held: the stream is gone.
                if let Err((violation, unheld)) = self.on_stream_data(key, data) {
                    self.release(unheld);
                    self.violated(key, violation);
                }
            }
            Known::Reset => self.release(bytes),
            Known::Ended => {
                self.release(bytes);
                self.write_reset(stream, ErrorCode::STREAM_CLOSED);
            }
        }
        Ok(())
    }

    /// Data of a stream that is there; an error comes with the bytes that the stream does not hold.
    fn on_stream_data(&mut self, key: StreamKey, data: Data) -> Result<(), (StreamViolation, u32)> {
        let bytes = data.flow_controlled_bytes();
        let Some(stream) = self.streams.get_mut(key) else {
            return Ok(());
        };
        match stream.receive {
            Half::Head => return Err((StreamViolation::DataBeforeHead, bytes)),
            Half::Body => {}
            Half::Ended => return Err((StreamViolation::Ended { kind: Kind::Data }, bytes)),
        }
        let received = stream.receive_window.receive(bytes);
        received.map_err(|error| (error.into(), bytes))?;
        let counted = stream.length.on_data(data.payload.len());
        let counted = counted.and_then(|()| match data.end_stream {
            true => stream.length.on_end(),
            false => Ok(()),
        });
        counted.map_err(|malformed| (malformed.into(), 0))?;
        let is_discarded = stream.is_discarded;
        let consumed = if is_discarded { bytes } else { data.padding };
        let update = match consumed {
            0 => None,
            consumed => stream.receive_window.consume(consumed),
        };
        if data.end_stream {
            stream.receive = Half::Ended;
            self.on_half_ended(key);
        } else if let Some(increment) = update
            && !is_discarded
        {
            write_window_update(Some(key.id()), increment, &mut self.out);
        }
        self.release(consumed);
        if is_discarded || (data.payload.is_empty() && !data.end_stream) {
            return Ok(());
        }
        self.events.push_back(Event::Data {
            stream: key,
            payload: data.payload,
            end: data.end_stream,
        });
        Ok(())
    }

    fn on_reset(
        &mut self,
        stream: StreamId,
        code: ErrorCode,
        now: Instant,
    ) -> Result<(), ConnectionViolation> {
        match self.known(stream) {
            Known::Idle => {
                let kind = Kind::ResetStream;
                Err(ConnectionViolation::IdleStream { kind, stream })
            }
            Known::Present(key) => {
                self.on_open_reset(key, code);
                Ok(())
            }
            Known::Reset | Known::Ended => self.idle_frame(Kind::ResetStream, 1, now),
        }
    }

    /// The peer resets a stream. Where all of its message had come, that stays whole (section 8.1): only
    /// what this side sends is not wanted any more.
    fn on_open_reset(&mut self, stream: StreamKey, code: ErrorCode) {
        let has_come = self
            .streams
            .get_mut(stream)
            .filter(|found| found.receive == Half::Ended);
        if let Some(found) = has_come {
            found.send = Half::Ended;
            self.leave_queue(stream);
            self.on_half_ended(stream);
            self.events.push_back(Event::Stopped { stream, code });
            return;
        }
        self.forget(stream);
        let cause = ResetCause::Peer(code);
        self.events.push_back(Event::Reset { stream, cause });
    }

    fn on_connection_update(&mut self, increment: NonZeroU32) -> Result<(), ConnectionViolation> {
        let grown = self.send_window.on_window_update(increment);
        grown.map_err(ConnectionViolation::FlowControl)
    }

    fn on_stream_update(
        &mut self,
        stream: StreamId,
        increment: NonZeroU32,
    ) -> Result<(), ConnectionViolation> {
        let key = match self.known(stream) {
            Known::Idle => {
                let kind = Kind::WindowUpdate;
                return Err(ConnectionViolation::IdleStream { kind, stream });
            }
            Known::Reset | Known::Ended => return Ok(()),
            Known::Present(key) => key,
        };
        let Some(found) = self.streams.get_mut(key) else {
            return Ok(());
        };
        match found.send_window.on_window_update(increment) {
            Ok(()) => {
                found.enqueue_if_blocked(key, &mut self.queue);
            }
            Err(
                error @ (FlowControlError::Overflow { .. } | FlowControlError::Exceeded { .. }),
            ) => {
                self.violated(key, error.into());
            }
        }
        Ok(())
    }

    /// A frame that ends its stream.
    fn on_bad_frame(
        &mut self,
        error: StreamError,
        now: Instant,
    ) -> Result<(), ConnectionViolation> {
        let stream = error.stream();
        let kind = match error {
            StreamError::PriorityLength { .. } | StreamError::SelfDependency { .. } => {
                Kind::Priority
            }
            StreamError::IncrementZero { .. } => Kind::WindowUpdate,
        };
        self.idle_frame(kind, 1, now)?;
        match self.known(stream) {
            // RST_STREAM would be an error of this side.
            Known::Idle => Err(ConnectionViolation::IdleStreamFrame(error)),
            Known::Present(key) => {
                self.violated(key, StreamViolation::Frame(error));
                Ok(())
            }
            Known::Reset => Ok(()),
            Known::Ended => {
                self.write_reset(stream, error.code());
                Ok(())
            }
        }
    }

    /// Ends a stream because of what the peer did.
    pub(super) fn violated(&mut self, stream: StreamKey, violation: StreamViolation) {
        self.reset(stream, violation.code());
        let cause = ResetCause::Violation(violation);
        self.events.push_back(Event::Reset { stream, cause });
    }
}
