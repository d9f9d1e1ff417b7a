//! What HTTP/2 cannot say of a head in HTTP/1.1: how its names are spelled, in which order they come,
//! and the reason phrase. It travels with the head as the field [`WEFT_HTTP1_FORM`], from the parser of
//! one end to the encoder of the other.
//!
//! ```text
//! form    = style [ "@" host ] [ ":" names / "=" names ] [ DQUOTE phrase DQUOTE ]
//! style   = "t" / "l"            ; Title-Case, or lower case
//! host    = 1*3DIGIT             ; how many lines come before Host
//! names   = name *( "," name )   ; after ":" those that are not in the style, after "=" all, in order
//! ```
//!
//! A head without a form is in lower case, with `Host` first, and has the usual phrase.
//!
//! Architecture invariant: a form changes the case of letters of names that are there, the order of
//! lines and the phrase, and nothing else, whoever wrote it. One that is not understood is ignored.

mod note;
mod speller;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue};

pub(crate) use note::{Note, comes_behind};
pub(crate) use speller::Speller;

use crate::field_name::{is_tchar, known_lower_case, titled};
use crate::headers::{WEFT_HTTP1_FORM, is_mesh_field};

/// Bytes of a form; what does not fit is left out when it is written, and none that is larger is read.
pub const FORM_BYTES: usize = 1024;
/// Names that may be spelled otherwise than the style says. A head with more of them has all its names
/// listed.
const EXCEPTIONS: usize = 32;
/// Digits of the number of lines before `Host`.
const HOST_DIGITS: usize = 3;

/// Puts the form of a head that was read here among its fields, where there is one.
pub fn put(form: Option<HeaderValue>, headers: &mut HeaderMap) {
    if let Some(form) = form {
        headers.insert(WEFT_HTTP1_FORM, form);
    }
}

/// How names are spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Style {
    /// `user-agent`.
    #[default]
    Lower,
    /// `User-Agent`.
    Title,
}

/// The names that a form lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Names<'a> {
    /// None: all are in the style and in the order of the map.
    #[default]
    Regular,
    /// Those that are not in the style.
    Except(&'a [u8]),
    /// All, in their order.
    Ordered(&'a [u8]),
}

/// The form of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Form<'a> {
    style: Style,
    host: usize,
    names: Names<'a>,
    phrase: Option<&'a [u8]>,
}

impl<'a> Form<'a> {
    /// The form of a head with this value of [`WEFT_HTTP1_FORM`]; that of one without a form where it is
    /// not understood.
    pub(crate) fn of(form: Option<&'a HeaderValue>) -> Self {
        let form = form.and_then(|form| Self::parse(form.as_bytes()));
        form.unwrap_or_default()
    }

    fn parse(form: &'a [u8]) -> Option<Self> {
        if form.len() > FORM_BYTES {
            return None;
        }
        let (style, mut rest) = form.split_first()?;
        let style = match style {
            b'l' => Style::Lower,
            b't' => Style::Title,
            _ => return None,
        };
        let mut found = Self {
            style,
            ..Self::default()
        };
        if let Some(after) = rest.strip_prefix(b"@") {
            let digits = after.iter().take_while(|byte| byte.is_ascii_digit());
            let (digits, after) = after.split_at(digits.count());
            let number = (digits.len() <= HOST_DIGITS).then_some(digits)?;
            found.host = str::from_utf8(number).ok()?.parse().ok()?;
            rest = after;
        }
        if let Some((kind @ (b':' | b'='), after)) = rest.split_first() {
            let end = after.iter().position(|byte| *byte == b'"');
            let (list, after) = after.split_at(end.unwrap_or(after.len()));
            let most = if *kind == b':' {
                EXCEPTIONS
            } else {
                FORM_BYTES
            };
            let is_list = names(list).all(is_name) && names(list).count() <= most;
            let list = is_list.then_some(list)?;
            found.names = match kind {
                b':' => Names::Except(list),
                _ => Names::Ordered(list),
            };
            rest = after;
        }
        match rest {
            [] => Some(found),
            [b'"', phrase @ .., b'"'] if phrase.iter().all(is_text) => Some(Self {
                phrase: Some(phrase),
                ..found
            }),
            _ => None,
        }
    }

    /// The reason phrase, where it is not the usual one.
    pub(crate) fn phrase(&self) -> Option<&'a [u8]> {
        self.phrase
    }

    /// Whether the lines are in another order than the fields of the map.
    pub(crate) fn is_ordered(&self) -> bool {
        matches!(self.names, Names::Ordered(_))
    }

    /// Whether `Host` is the next line after so many.
    pub(crate) fn is_host_next(&self, lines: usize) -> bool {
        self.host == lines
    }

    /// What writes the names of a head's lines, but for those that are arranged.
    pub(crate) fn speller(&self) -> Speller<'a> {
        match self.names {
            Names::Except(list) => Speller::new(self.style, list),
            Names::Regular | Names::Ordered(_) => Speller::new(self.style, b""),
        }
    }

    /// Brings lines, each with its name in lower case, into the order of the form, with their names as
    /// they are spelled. Those that it does not list come last, as they are.
    pub(crate) fn arrange<'l, T>(&self, lines: Vec<(&'l str, T)>) -> Vec<(Spelled<'a, 'l>, T)> {
        let list = match self.names {
            Names::Ordered(list) => list,
            Names::Regular | Names::Except(_) => b"",
        };
        let lower_case = list.to_ascii_lowercase();
        let mut places: BTreeMap<&[u8], Vec<(usize, &'a [u8])>> = BTreeMap::new();
        let listed = names(list).zip(names(&lower_case)).enumerate();
        // From the last to the first: they are taken from the end.
        let listed: Vec<_> = listed.collect();
        for (place, (spelled, name)) in listed.into_iter().rev() {
            places.entry(name).or_default().push((place, spelled));
        }
        let mut arranged = Vec::with_capacity(lines.len());
        for (name, line) in lines {
            let place = places.get_mut(name.as_bytes()).and_then(Vec::pop);
            let (place, spelled) = match place {
                None => (usize::MAX, Spelled::Style(name)),
                Some((at, _)) if is_ours(name.as_bytes()) => (at, Spelled::Style(name)),
                Some((at, spelled)) => (at, Spelled::Listed(spelled)),
            };
            arranged.push((place, spelled, line));
        }
        arranged.sort_by_key(|(place, _, _)| *place);
        let arranged = arranged.into_iter();
        arranged.map(|(_, spelled, line)| (spelled, line)).collect()
    }
}

/// How a name is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelled<'a, 'l> {
    /// As the form lists it.
    Listed(&'a [u8]),
    /// A name in lower case, in the style of the form.
    Style(&'l str),
}

impl Spelled<'_, '_> {
    /// Writes the name of a line that was arranged.
    pub(crate) fn write(self, speller: &Speller<'_>, out: &mut BytesMut) {
        match self {
            Self::Listed(name) => out.extend_from_slice(name),
            Self::Style(name) => speller.write(name, out),
        }
    }
}

fn names(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',')
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|byte| is_tchar(*byte))
}

/// HTAB, SP, VCHAR and obs-text (RFC 9112 section 4).
fn is_text(byte: &u8) -> bool {
    *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f)
}

/// Whether a line is written by this hop, or only the mesh may: no form spells its name, beyond the style.
/// A server that knows such names in their usual spellings only must not miss one.
fn is_ours(name: &[u8]) -> bool {
    matches!(
        name,
        b"connection" | b"content-length" | b"transfer-encoding"
    ) || str::from_utf8(name).is_ok_and(is_mesh_field)
}

/// Writes a name that is in lower case in Title-Case: the first letter and each one behind a hyphen is
/// upper case.
fn write_title(name: &[u8], out: &mut BytesMut) {
    if let Some(known) = known_lower_case(name) {
        out.extend_from_slice(known.title_case);
        return;
    }
    let begin = out.len();
    out.extend_from_slice(name);
    let mut before = b'-';
    for byte in &mut out[begin..] {
        *byte = titled(before, *byte);
        before = *byte;
    }
}
