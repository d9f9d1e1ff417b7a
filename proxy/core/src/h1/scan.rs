//! The end of a head or a trailer section, and the defects that can be seen before it has come.

use bytes::{Buf, BytesMut};
use memchr::memchr;

use super::limits::Limits;
use super::malformed::{Defect, Excerpt, Malformed, Message};
use crate::field_name::is_tchar;

/// How far a buffer was searched for the end of a head, so that no byte is searched twice. One
/// belongs to each buffer; it is as new once a head has been found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeadScan {
    /// No line feed that has not been seen is before this position.
    searched: usize,
    /// Where the line begins that is not complete yet; `line <= searched`.
    line: usize,
    /// Complete lines of the section.
    lines: usize,
    /// Empty lines that were skipped before the first line.
    skipped: usize,
}

/// What is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Head(Message),
    Trailers,
}

/// A complete section at the beginning of the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FoundEnd {
    /// Bytes of it, its empty line included.
    pub(super) length: usize,
    /// At least as many as it has fields.
    pub(super) lines: usize,
}

impl HeadScan {
    /// Whether nothing of a head has come: the connection is between two messages. Empty lines
    /// before a head are not part of it.
    pub fn is_idle(&self, buffer: &[u8]) -> bool {
        self.lines == 0 && matches!(buffer, [] | [b'\r'])
    }

    /// Says what the end of the connection means: `Ok` between two messages, otherwise
    /// [`Defect::HeadCut`].
    pub fn on_eof(&self, buffer: &[u8], message: Message) -> Result<(), Malformed> {
        if self.is_idle(buffer) {
            return Ok(());
        }
        let defect = Defect::HeadCut;
        Err(Malformed { message, defect })
    }

    /// Looks for the empty line that ends the section, in what has come since the last time.
    /// Empty lines before a head are removed from the buffer.
    pub(super) fn find_end(
        &mut self,
        buffer: &mut BytesMut,
        section: Section,
        limits: &Limits,
    ) -> Result<Option<FoundEnd>, Defect> {
        let limit = section.byte_limit(limits);
        loop {
            let window = &buffer[..buffer.len().min(limit)];
            let Some(feed) = memchr(b'\n', &window[self.searched..]) else {
                self.searched = window.len();
                if self.lines == 0 {
                    section.check_partial_first_line(window, limits)?;
                }
                return if buffer.len() > limit {
                    Err(section.too_large(limits))
                } else {
                    Ok(None)
                };
            };
            let feed = self.searched + feed;
            let end = match line_end(window, self.line, feed, section.is_strict()) {
                // The same as if the line feed had not come yet.
                Err(_) if self.lines == 0 => {
                    section.check_partial_first_line(&window[..feed], limits)?;
                    return Err(Defect::BareLineFeed);
                }
                end => end?,
            };
            let is_empty = end == self.line;
            if is_empty && self.lines == 0 && section != Section::Trailers {
                self.skip_empty_line(buffer, feed, limits)?;
                continue;
            }
            if is_empty {
                let lines = self.lines;
                *self = Self::default();
                let length = feed + 1;
                return Ok(Some(FoundEnd { length, lines }));
            }
            section.check_line(self.lines, &window[self.line..end], limits)?;
            self.lines += 1;
            self.line = feed + 1;
            self.searched = self.line;
        }
    }

    fn skip_empty_line(
        &mut self,
        buffer: &mut BytesMut,
        feed: usize,
        limits: &Limits,
    ) -> Result<(), Defect> {
        buffer.advance(feed + 1);
        self.searched = 0;
        self.skipped += 1;
        if self.skipped > limits.empty_lines {
            let limit = limits.empty_lines;
            return Err(Defect::EmptyLines { limit });
        }
        Ok(())
    }
}

/// The end of the line's content, given the position of its line feed.
fn line_end(window: &[u8], line: usize, feed: usize, strict: bool) -> Result<usize, Defect> {
    if feed > line && window[feed - 1] == b'\r' {
        Ok(feed - 1)
    } else if strict {
        Err(Defect::BareLineFeed)
    } else {
        Ok(feed)
    }
}

impl Section {
    fn byte_limit(self, limits: &Limits) -> usize {
        match self {
            Self::Head(_) => limits.head_bytes,
            Self::Trailers => limits.trailer_bytes,
        }
    }

    fn too_large(self, limits: &Limits) -> Defect {
        let limit = self.byte_limit(limits);
        match self {
            Self::Head(_) => Defect::HeadTooLarge { limit },
            Self::Trailers => Defect::TrailersTooLarge { limit },
        }
    }

    /// Whether lines have to end in CR LF. In responses a bare LF is one too (RFC 9112 section
    /// 2.2); in requests and trailers it is a way to smuggle.
    fn is_strict(self) -> bool {
        self != Self::Head(Message::Response)
    }

    /// Checks a complete line, of which `before` others are in front.
    fn check_line(self, before: usize, line: &[u8], limits: &Limits) -> Result<(), Defect> {
        let fields = match self {
            Self::Head(_) => before,
            Self::Trailers => before + 1,
        };
        if fields > limits.fields {
            let limit = limits.fields;
            return Err(Defect::TooManyFields { limit });
        }
        match self {
            Self::Head(Message::Request) if before == 0 => check_request_line(line, limits),
            Self::Head(Message::Response) if before == 0 => check_status_line(line),
            Self::Head(_) | Self::Trailers => Ok(()),
        }
    }

    /// Refuses at once what cannot become a first line, rather than wait for its end: a client of
    /// another protocol waits for an answer.
    fn check_partial_first_line(self, line: &[u8], limits: &Limits) -> Result<(), Defect> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match self {
            Self::Head(Message::Request) => check_method(line, limits).map(|_| ()),
            Self::Head(Message::Response) => check_version_prefix(line),
            Self::Trailers => Ok(()),
        }
    }
}

/// The method at the beginning of a request line that may be incomplete; `None` where its end has
/// not come.
fn check_method<'a>(line: &'a [u8], limits: &Limits) -> Result<Option<&'a [u8]>, Defect> {
    let not_http = || Defect::NotHttp {
        found: Excerpt::of(line),
    };
    let end = line.iter().position(|byte| !is_tchar(*byte));
    match end {
        Some(end) if line[end] == b' ' && (1..=limits.method_bytes).contains(&end) => {
            Ok(Some(&line[..end]))
        }
        None if line.len() <= limits.method_bytes => Ok(None),
        Some(_) | None => Err(not_http()),
    }
}

/// `method SP request-target SP HTTP-version` (RFC 9112 section 3).
fn check_request_line(line: &[u8], limits: &Limits) -> Result<(), Defect> {
    let found = || Excerpt::of(line);
    if line == b"PRI * HTTP/2.0" {
        return Err(Defect::Http2Preface);
    }
    let Some(method) = check_method(line, limits)? else {
        return Err(Defect::NotHttp { found: found() });
    };
    let rest = &line[method.len() + 1..];
    let Some(space) = memchr(b' ', rest) else {
        return Err(Defect::Http09 { found: found() });
    };
    let (target, version) = (&rest[..space], &rest[space + 1..]);
    let is_visible = |byte: &u8| *byte > b' ' && *byte != 0x7f;
    if target.is_empty() || !target.iter().all(is_visible) {
        return Err(Defect::RequestLine { found: found() });
    }
    check_version(version).unwrap_or_else(|| Err(Defect::RequestLine { found: found() }))
}

/// `HTTP-version SP status-code [ SP reason-phrase ]` (RFC 9112 section 4); without the last
/// space too, which some servers leave out.
fn check_status_line(line: &[u8]) -> Result<(), Defect> {
    let malformed = || Defect::StatusLine {
        found: Excerpt::of(line),
    };
    let version = &line[..line.len().min(8)];
    check_version(version).unwrap_or_else(|| Err(malformed()))?;
    let is_text = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
    match &line[8..] {
        [b' ', b'1'..=b'9', b'0'..=b'9', b'0'..=b'9'] => Ok(()),
        [
            b' ',
            b'1'..=b'9',
            b'0'..=b'9',
            b'0'..=b'9',
            b' ',
            phrase @ ..,
        ] if phrase.iter().all(is_text) => Ok(()),
        _ => Err(malformed()),
    }
}

fn check_version_prefix(line: &[u8]) -> Result<(), Defect> {
    const PREFIX: &[u8] = b"HTTP/";
    let common = line.len().min(PREFIX.len());
    if line[..common] == PREFIX[..common] {
        return Ok(());
    }
    let found = Excerpt::of(line);
    Err(Defect::StatusLine { found })
}

/// `None` where it is no version at all.
fn check_version(version: &[u8]) -> Option<Result<(), Defect>> {
    match version {
        b"HTTP/1.1" | b"HTTP/1.0" => Some(Ok(())),
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', rest @ ..]
            if rest.iter().all(|byte| b"0123456789.".contains(byte)) =>
        {
            let found = Excerpt::of(version);
            Some(Err(Defect::Version { found }))
        }
        _ => None,
    }
}
