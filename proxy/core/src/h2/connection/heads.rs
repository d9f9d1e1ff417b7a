//! Heads and trailers that are received.

use http::{HeaderMap, Method};

use super::super::frame::{ErrorCode, Kind, StreamId};
use super::super::message::{self, Length, Malformed, RequestHead, ResponseHead};
use super::receive::Known;
use super::streams::{Half, Stream};
use super::{Connection, ConnectionViolation, Event, Role, StreamKey, StreamViolation};
use crate::h1::Message;
use crate::headers::WEFT_HTTP1_FORM;
use crate::time::Instant;

impl Connection {
    /// A field block, which is decoded whatever becomes of its stream: the dynamic table follows it
    /// (RFC 9113 section 4.3).
    pub(super) fn on_headers(
        &mut self,
        stream: StreamId,
        block: &[u8],
        end: bool,
        now: Instant,
    ) -> Result<(), ConnectionViolation> {
        let known = self.known(stream);
        match known {
            Known::Idle if !self.is_too_late(stream) => self.idle.on_useful_frame(),
            Known::Present(_) => self.idle.on_useful_frame(),
            // Nobody hears of it.
            Known::Idle | Known::Reset | Known::Ended => self.idle_frame(Kind::Headers, 1, now)?,
        }
        match (known, self.role) {
            (Known::Idle, Role::Server) => self.on_new_stream(stream, block, end),
            (Known::Idle, Role::Client) => {
                let kind = Kind::Headers;
                Err(ConnectionViolation::IdleStream { kind, stream })
            }
            (Known::Present(key), _) => self.on_section(key, block, end),
            (Known::Reset, _) => self.skip(block),
            (Known::Ended, Role::Server) if !self.resets.is_incomplete() => {
                Err(match self.highest {
                    Some(highest) if self.has_gaps => {
                        ConnectionViolation::StreamOrder { stream, highest }
                    }
                    Some(_) | None => ConnectionViolation::EndedStream { stream },
                })
            }
            // One that was reset so long ago that it is forgotten.
            (Known::Ended, Role::Server | Role::Client) => {
                self.skip(block)?;
                self.write_reset(stream, ErrorCode::STREAM_CLOSED);
                Ok(())
            }
        }
    }

    /// Keeps the dynamic table in step.
    fn skip(&mut self, block: &[u8]) -> Result<(), ConnectionViolation> {
        let _size = self.decoder.decode(block, |_| {})?;
        Ok(())
    }

    /// A request.
    fn on_new_stream(
        &mut self,
        stream: StreamId,
        block: &[u8],
        end: bool,
    ) -> Result<(), ConnectionViolation> {
        let next = self.highest.map_or(1, |highest| highest.get() + 2);
        self.has_gaps |= stream.get() != next;
        self.highest = Some(stream);
        if self.is_too_late(stream) {
            self.resets.insert(stream);
            return self.skip(block);
        }
        let limit = self.config.max_streams;
        // Those of which only data is held have a place, too.
        let is_full = self.streams.len() >= limit as usize * 2;
        if self.streams.open() >= limit || is_full {
            self.skip(block)?;
            self.write_reset(stream, ErrorCode::REFUSED_STREAM);
            let violation = StreamViolation::TooMany { limit };
            self.events.push_back(Event::Refused { stream, violation });
            return Ok(());
        }
        let decoded = message::decode_request(
            &mut self.decoder,
            block,
            &mut self.scratch,
            self.config.heads,
            self.config.extended_connect,
        )?;
        match decoded {
            Ok(head) => self.on_request(stream, head, end),
            Err(malformed) if malformed.answerable.is_some() => {
                // Whatever its head says: nobody reads what follows.
                let length = Length::request(&Method::GET, None);
                let stream = self.open_stream(stream, end, length, Method::GET);
                self.events.push_back(Event::BadRequest {
                    stream,
                    malformed,
                    end,
                });
            }
            Err(malformed) => self.refuse(stream, malformed.into()),
        }
        Ok(())
    }

    fn on_request(&mut self, stream: StreamId, mut head: RequestHead, end: bool) {
        self.drop_form(&mut head.parts.headers);
        let method = head.parts.method.clone();
        let length = Length::request(&method, head.content_length);
        if end && let Err(malformed) = length.on_end() {
            return self.refuse(stream, malformed.into());
        }
        let stream = self.open_stream(stream, end, length, method);
        let head = Box::new(head);
        self.events.push_back(Event::Request { stream, head, end });
    }

    /// Drops what only another sidecar may say.
    fn drop_form(&self, headers: &mut HeaderMap) {
        if !self.config.keeps_form {
            headers.remove(WEFT_HTTP1_FORM);
        }
    }

    /// Resets a stream before anybody has heard of it.
    fn refuse(&mut self, stream: StreamId, violation: StreamViolation) {
        self.write_reset(stream, violation.code());
        self.events.push_back(Event::Refused { stream, violation });
    }

    fn open_stream(
        &mut self,
        stream: StreamId,
        end: bool,
        length: Length,
        method: Method,
    ) -> StreamKey {
        let receive = if end { Half::Ended } else { Half::Body };
        let windows = (self.stream_window(), self.peer.window);
        let opened = Stream::new((receive, Half::Head), windows, length, method);
        self.streams.insert(stream, opened)
    }

    /// A head or trailers on a stream that is there.
    fn on_section(
        &mut self,
        key: StreamKey,
        block: &[u8],
        end: bool,
    ) -> Result<(), ConnectionViolation> {
        let half = self
            .streams
            .get(key)
            .map_or(Half::Ended, |found| found.receive);
        match half {
            Half::Head => self.on_response(key, block, end),
            Half::Body => self.on_trailers(key, block, end),
            Half::Ended => {
                self.skip(block)?;
                let kind = Kind::Headers;
                self.violated(key, StreamViolation::Ended { kind });
                Ok(())
            }
        }
    }

    fn on_response(
        &mut self,
        key: StreamKey,
        block: &[u8],
        end: bool,
    ) -> Result<(), ConnectionViolation> {
        let limits = self.config.heads;
        let (decoder, scratch) = (&mut self.decoder, &mut self.scratch);
        let decoded = message::decode_response(decoder, block, scratch, limits, end)?;
        let taken = decoded.and_then(|head| self.take_response(key, head, end));
        if let Err(malformed) = taken {
            self.violated(key, malformed.into());
        }
        Ok(())
    }

    fn take_response(
        &mut self,
        key: StreamKey,
        mut head: ResponseHead,
        end: bool,
    ) -> Result<(), Malformed> {
        self.drop_form(&mut head.parts.headers);
        let Some(found) = self.streams.get_mut(key) else {
            return Ok(());
        };
        if head.is_interim() {
            let head = Box::new(head);
            self.events.push_back(Event::Interim { stream: key, head });
            return Ok(());
        }
        found.length = Length::response(&found.method, head.parts.status, head.content_length);
        found.receive = Half::Body;
        if end {
            found.length.on_end()?;
            found.receive = Half::Ended;
            self.on_half_ended(key);
        }
        let (stream, head) = (key, Box::new(head));
        self.events.push_back(Event::Response { stream, head, end });
        Ok(())
    }

    fn on_trailers(
        &mut self,
        key: StreamKey,
        block: &[u8],
        end: bool,
    ) -> Result<(), ConnectionViolation> {
        let message = match self.role {
            Role::Client => Message::Response,
            Role::Server => Message::Request,
        };
        let limits = self.config.heads;
        let (decoder, scratch) = (&mut self.decoder, &mut self.scratch);
        let decoded = message::decode_trailers(decoder, block, scratch, limits, message, end)?;
        let taken = match decoded {
            Err(malformed) if end && malformed.is_of_trailers_size() => {
                self.take_trailers(key, Err(malformed))
            }
            decoded => decoded.and_then(|trailers| self.take_trailers(key, Ok(trailers))),
        };
        if let Err(malformed) = taken {
            self.violated(key, malformed.into());
        }
        Ok(())
    }

    /// A message ends with trailers, or with some that are too large.
    fn take_trailers(
        &mut self,
        stream: StreamKey,
        trailers: Result<HeaderMap, Malformed>,
    ) -> Result<(), Malformed> {
        let Some(found) = self.streams.get_mut(stream) else {
            return Ok(());
        };
        found.length.on_end()?;
        found.receive = Half::Ended;
        let is_discarded = found.is_discarded;
        self.on_half_ended(stream);
        if !is_discarded {
            self.events.push_back(match trailers {
                Ok(trailers) => Event::Trailers { stream, trailers },
                Err(malformed) => Event::BadTrailers { stream, malformed },
            });
        }
        Ok(())
    }
}
