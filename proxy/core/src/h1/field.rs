//! From the lines of a head to a [`HeaderMap`] that shares their bytes.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{HOST, InvalidHeaderValue, MaxSizeReached};
use http::{HeaderMap, HeaderName, HeaderValue};
use httparse::Header;
use memchr::memchr;

use super::framing::Noted;
use super::malformed::{Defect, Excerpt, Message};
use crate::field_name::{Spelling, is_tchar, known_name, map_for};
use crate::headers::WEFT_HTTP1_FORM;
use crate::http1_form::{Note, comes_behind};

/// Fields for which there is room on the stack.
const INLINE_FIELDS: usize = 96;

/// Calls `parse` with room for so many fields.
pub(super) fn with_room<'b, T>(
    fields: usize,
    parse: impl FnOnce(&mut [MaybeUninit<Header<'b>>]) -> T,
) -> T {
    if fields <= INLINE_FIELDS {
        parse(&mut [const { MaybeUninit::uninit() }; INLINE_FIELDS])
    } else {
        let mut room: Vec<_> = std::iter::repeat_with(MaybeUninit::uninit)
            .take(fields)
            .collect();
        parse(&mut room)
    }
}

/// The fields of a head as far as they have been read, and what they say of it.
#[derive(Debug)]
pub(super) struct Fields<'h> {
    headers: HeaderMap,
    /// Fields that come behind all others ([`comes_behind`]); more than a few are in `more`.
    behind: [Option<(HeaderName, HeaderValue)>; BEHIND],
    more: Vec<(HeaderName, HeaderValue)>,
    message: Message,
    noted: Noted,
    form: Note<'h>,
}

impl<'h> Fields<'h> {
    /// None yet; with room for so many.
    pub(super) fn new(message: Message, room: usize) -> Result<Self, MaxSizeReached> {
        Ok(Self {
            headers: map_for(room)?,
            behind: Default::default(),
            more: Vec::new(),
            message,
            noted: Noted::default(),
            form: Note::default(),
        })
    }

    /// Adds a field; `spelled` is its name as it came.
    pub(super) fn add(
        &mut self,
        spelled: &'h [u8],
        value: HeaderValue,
    ) -> Result<(), Unacceptable> {
        match known_name(spelled) {
            Some((known, spelling)) if known.is_ordinary => {
                self.form.on_name(spelling);
                self.append(spelled, &known.name, value)
            }
            Some((known, spelling)) => self.add_ruled(spelled, known.name.clone(), spelling, value),
            None => {
                let (name, spelling) = unknown_name(spelled)?;
                self.add_ruled(spelled, name, spelling, value)
            }
        }
    }

    /// Adds a field that there may be a rule for.
    fn add_ruled(
        &mut self,
        spelled: &'h [u8],
        name: HeaderName,
        spelling: Spelling,
        mut value: HeaderValue,
    ) -> Result<(), Unacceptable> {
        // The form is ours to note.
        if name == WEFT_HTTP1_FORM {
            return Ok(());
        }
        self.form.on_name(spelling);
        if !self.noted.note(self.message, &name, &mut value)? {
            return Ok(());
        }
        if !comes_behind(&name) {
            return self.append(spelled, &name, value);
        }
        if name == HOST {
            self.form.on_host();
        }
        match self.behind.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some((name, value)),
            None => self.more.push((name, value)),
        }
        Ok(())
    }

    fn append(
        &mut self,
        spelled: &'h [u8],
        name: &HeaderName,
        value: HeaderValue,
    ) -> Result<(), Unacceptable> {
        let repeated = self.headers.try_append(name, value)?;
        self.form.on_added(spelled, name, repeated);
        Ok(())
    }

    /// The map, what was noted of the message, and its form.
    pub(super) fn finish(mut self) -> Result<(HeaderMap, Noted, Note<'h>), MaxSizeReached> {
        let behind = self.behind.into_iter().flatten().chain(self.more);
        for (name, value) in behind {
            self.headers.try_append(name, value)?;
        }
        if self.noted.nominates {
            self.form.on_nominated();
        }
        Ok((self.headers, self.noted, self.form))
    }
}

/// Fields that come behind all others for which there is room on the stack.
const BEHIND: usize = 3;

/// Why a field is not added.
pub(super) enum Unacceptable {
    /// What it says.
    Defect(Defect),
    /// The map is full.
    Full,
}

impl From<Defect> for Unacceptable {
    fn from(defect: Defect) -> Self {
        Self::Defect(defect)
    }
}

impl From<MaxSizeReached> for Unacceptable {
    fn from(_full: MaxSizeReached) -> Self {
        Self::Full
    }
}

/// The fields as a map of slices of `head`, what they say of the message, and their form.
pub(super) fn header_map<'h>(
    head: &Bytes,
    fields: &[Header<'h>],
    message: Message,
) -> Result<(HeaderMap, Noted, Note<'h>), Defect> {
    let limit = fields.len();
    let too_many = |_| Defect::TooManyFields { limit };
    let mut found = Fields::new(message, limit).map_err(too_many)?;
    for field in fields {
        let spelled = field.name.as_bytes();
        let added = found.add(spelled, value(head, field)?);
        added.map_err(|unacceptable| match unacceptable {
            Unacceptable::Defect(defect) => defect,
            Unacceptable::Full => Defect::TooManyFields { limit },
        })?;
    }
    found.finish().map_err(too_many)
}

/// The fields as a map of slices of `section`; what they say is not looked at.
pub(super) fn trailer_map(section: &Bytes, fields: &[Header<'_>]) -> Result<HeaderMap, Defect> {
    let limit = fields.len();
    let too_many = |_| Defect::TooManyFields { limit };
    let mut headers = map_for(limit).map_err(too_many)?;
    for field in fields {
        let (name, value) = (shared_name(field.name.as_bytes())?, value(section, field)?);
        headers.try_append(name, value).map_err(too_many)?;
    }
    Ok(headers)
}

/// The name of a field, in lower case.
pub(super) fn shared_name(bytes: &[u8]) -> Result<HeaderName, Defect> {
    match known_name(bytes) {
        Some((known, _spelling)) => Ok(known.name.clone()),
        None => unknown_name(bytes).map(|(name, _spelling)| name),
    }
}

/// A name that is not a known one, and how it is spelled.
fn unknown_name(bytes: &[u8]) -> Result<(HeaderName, Spelling), Defect> {
    let name = HeaderName::from_bytes(bytes).map_err(|_| Defect::FieldLine {
        found: Excerpt::of(bytes),
    })?;
    Ok((name, Spelling::of(bytes)))
}

fn value(head: &Bytes, field: &Header<'_>) -> Result<HeaderValue, Defect> {
    let value = match memchr(b'\n', field.value) {
        Some(_folded) => HeaderValue::from_maybe_shared(Bytes::from(unfold(field.value))),
        None => shared_value(head, field.value),
    };
    value.map_err(|_| Defect::FieldValue {
        name: Excerpt::of(field.name.as_bytes()),
    })
}

/// A value that is a slice of `head`.
pub(super) fn shared_value(head: &Bytes, value: &[u8]) -> Result<HeaderValue, InvalidHeaderValue> {
    match value.is_empty() {
        true => Ok(HeaderValue::from_static("")),
        false => HeaderValue::from_maybe_shared(head.slice_ref(value)),
    }
}

/// Joins the lines of a folded value by one space each (RFC 9112 section 5.2).
fn unfold(value: &[u8]) -> Vec<u8> {
    let lines = value.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let lines: Vec<&[u8]> = lines.filter(|line| !line.is_empty()).collect();
    lines.join(&b' ')
}

/// Finds the line that made the parser refuse the section, and says what is wrong with it.
pub(super) fn diagnose(lines: &[u8]) -> Defect {
    let mut rest = lines;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'\n');
        let (line, after) = rest.split_at(end.map_or(rest.len(), |end| end + 1));
        rest = after;
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Some(defect) = diagnose_line(line) {
            return defect;
        }
    }
    Defect::FieldLine {
        found: Excerpt::of(lines),
    }
}

fn diagnose_line(line: &[u8]) -> Option<Defect> {
    if line.is_empty() {
        return None;
    }
    if line.contains(&0) {
        return Some(Defect::Nul);
    }
    if line.contains(&b'\r') {
        return Some(Defect::BareCarriageReturn);
    }
    let found = Excerpt::of(line);
    if matches!(line[0], b' ' | b'\t') {
        return Some(Defect::FoldedLine { found });
    }
    let Some(colon) = line.iter().position(|byte| *byte == b':') else {
        return Some(Defect::FieldLine { found });
    };
    let (name, value) = line.split_at(colon);
    if name.is_empty() || !name.iter().all(|byte| is_tchar(*byte)) {
        let trimmed = name.trim_ascii_end();
        let found = Excerpt::of(name);
        let is_token = !trimmed.is_empty() && trimmed.iter().all(|byte| is_tchar(*byte));
        return Some(if is_token {
            Defect::SpaceBeforeColon { found }
        } else {
            Defect::FieldLine { found }
        });
    }
    let is_control = |byte: &u8| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f;
    let name = Excerpt::of(name);
    let has_control = value.iter().any(is_control);
    has_control.then_some(Defect::FieldValue { name })
}
