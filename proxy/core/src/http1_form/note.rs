//! The form of a head, noted while its fields are read.

use http::header::{COOKIE, HOST};
use http::{HeaderName, HeaderValue};

use super::{EXCEPTIONS, FORM_BYTES, Style, is_text};
use crate::field_name::Spelling;
use crate::headers::{is_hop_by_hop, is_mesh_field};

/// What the names of a head have in common, as far as they have been read.
#[derive(Debug, Default)]
pub(crate) struct Note<'h> {
    /// One has an upper-case letter.
    not_lower: bool,
    /// One is not in Title-Case.
    not_title: bool,
    /// The map has them in another order.
    disordered: bool,
    /// Lines that will be written of those that have been read, without `Host`.
    lines: usize,
    /// So many of them came before `Host`.
    host: usize,
    /// The field before.
    last: &'h [u8],
}

/// Whether a field is to be behind all others in a map of fields: it will be removed, and what is removed
/// from a map leaves its place to the last one.
pub(crate) fn comes_behind(name: &HeaderName) -> bool {
    *name == HOST || is_hop_by_hop(name) || is_mesh_field(name.as_str())
}

impl<'h> Note<'h> {
    /// Notes how the name of a field is spelled.
    pub(crate) fn on_name(&mut self, spelling: Spelling) {
        self.not_lower |= !spelling.is_lower;
        self.not_title |= !spelling.is_title;
    }

    /// Notes `Host`.
    pub(crate) fn on_host(&mut self) {
        self.host = self.lines;
    }

    /// Notes a field that was added to the map; `repeated`: its name was there.
    pub(crate) fn on_added(&mut self, spelled: &'h [u8], name: &HeaderName, repeated: bool) {
        if !repeated {
            self.lines += 1;
        } else {
            self.disordered |= !self.last.eq_ignore_ascii_case(spelled);
            // Several are written as one.
            self.lines += usize::from(*name != COOKIE);
        }
        self.last = spelled;
    }

    /// Notes that fields will be removed which nobody knows yet.
    pub(crate) fn on_nominated(&mut self) {
        self.disordered = true;
    }

    /// The form of a head with these names and this phrase, where it is not the usual one; `None` where
    /// it is that of a head without a form.
    pub(crate) fn form<'n>(
        &self,
        names: impl Iterator<Item = &'n [u8]>,
        phrase: Option<&[u8]>,
    ) -> Option<HeaderValue> {
        if phrase.is_none() && !self.disordered && self.host == 0 {
            // Nearly all heads are such.
            if !self.not_lower {
                return None;
            }
            if !self.not_title {
                return Some(HeaderValue::from_static("t"));
            }
        }
        let (style, mut list) = match (self.disordered, self.not_lower, self.not_title) {
            (false, false, _) => (Style::Lower, Vec::new()),
            (false, true, false) => (Style::Title, Vec::new()),
            (true, _, _) | (false, true, true) => {
                let names: Vec<&[u8]> = names.filter(|name| is_listed(name)).collect();
                self.list(&names)
            }
        };
        let mut form = vec![match style {
            Style::Lower => b'l',
            Style::Title => b't',
        }];
        if form.len() + list.len() > FORM_BYTES {
            list.clear();
        }
        // A list has its place.
        if self.host > 0 && !list.starts_with(b"=") {
            form.extend_from_slice(format!("@{}", self.host.min(999)).as_bytes());
        }
        let phrase = phrase.filter(|phrase| phrase.iter().all(is_text));
        let phrase = phrase.map(|phrase| [b"\"", phrase, b"\""].concat());
        for part in [list, phrase.unwrap_or_default()] {
            if form.len() + part.len() <= FORM_BYTES {
                form.extend_from_slice(&part);
            }
        }
        (form != b"l").then(|| HeaderValue::from_bytes(&form).ok())?
    }

    /// The style of most names, and what is listed of them.
    fn list(&self, names: &[&[u8]]) -> (Style, Vec<u8>) {
        let in_style = |name: &[u8], style| {
            let spelling = Spelling::of(name);
            match style {
                Style::Lower => spelling.is_lower,
                Style::Title => spelling.is_title,
            }
        };
        let count = |style| names.iter().filter(|name| in_style(name, style)).count();
        let style = match count(Style::Title) >= count(Style::Lower) && self.not_lower {
            true => Style::Title,
            false => Style::Lower,
        };
        let mut exceptions: Vec<&[u8]> = Vec::new();
        let mut disordered = self.disordered;
        for name in names.iter().filter(|name| !in_style(name, style)) {
            if disordered || exceptions.contains(name) {
                continue;
            }
            exceptions.push(name);
            disordered |= exceptions.len() > EXCEPTIONS;
        }
        // Of one name that is spelled in two ways each is listed.
        disordered = disordered
            || names.iter().any(|name| {
                let same = |other: &&[u8]| other != name && other.eq_ignore_ascii_case(name);
                exceptions.iter().any(same)
            });
        let (begin, names) = match disordered {
            true => (&b"="[..], names),
            false => (&b":"[..], &exceptions[..]),
        };
        match names.is_empty() {
            true => (style, Vec::new()),
            false => (style, [begin, &names.join(&b","[..])].concat()),
        }
    }
}

/// Whether a field will be written as it came.
fn is_listed(name: &[u8]) -> bool {
    let name = HeaderName::from_bytes(name);
    name.is_ok_and(|name| name == HOST || !comes_behind(&name))
}
