//! From the lines of a head to a [`HeaderMap`] that shares their bytes.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::InvalidHeaderValue;
use http::{HeaderMap, HeaderName, HeaderValue};
use httparse::Header;
use memchr::memchr;

use super::framing::Noted;
use super::malformed::{Defect, Excerpt, Message};
use super::scan::is_tchar;
use crate::field_name::{known_name, map_for};

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

/// The fields as a map of slices of `head`, and what they say of the message.
pub(super) fn header_map(
    head: &Bytes,
    fields: &[Header<'_>],
    message: Message,
) -> Result<(HeaderMap, Noted), Defect> {
    let mut noted = Noted::default();
    let headers = collect(head, fields, |name, value| noted.note(message, name, value))?;
    Ok((headers, noted))
}

/// The fields as a map of slices of `section`; what they say is not looked at.
pub(super) fn trailer_map(section: &Bytes, fields: &[Header<'_>]) -> Result<HeaderMap, Defect> {
    collect(section, fields, |_, _| Ok(true))
}

/// The fields for which `keep` returns true, with the values that it leaves.
fn collect(
    head: &Bytes,
    fields: &[Header<'_>],
    mut keep: impl FnMut(&HeaderName, &mut HeaderValue) -> Result<bool, Defect>,
) -> Result<HeaderMap, Defect> {
    let limit = fields.len();
    let too_many = |_| Defect::TooManyFields { limit };
    let mut headers = map_for(fields.len()).map_err(too_many)?;
    for field in fields {
        let name = shared_name(field.name.as_bytes())?;
        let mut value = value(head, field)?;
        if keep(&name, &mut value)? {
            headers.try_append(name, value).map_err(too_many)?;
        }
    }
    Ok(headers)
}

/// The name of a field, in lower case.
pub(super) fn shared_name(bytes: &[u8]) -> Result<HeaderName, Defect> {
    if let Some(known) = known_name(bytes) {
        return Ok(known.clone());
    }
    HeaderName::from_bytes(bytes).map_err(|_| Defect::FieldLine {
        found: Excerpt::of(bytes),
    })
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
