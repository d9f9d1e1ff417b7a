//! The names of a head as its form has them spelled.

use std::ops::Range;

use bytes::BytesMut;

use super::{Style, is_ours, names, write_title};

/// Writes names of one head. What its form lists is read once, and not again for each name: a peer may list
/// many, in a head of many fields.
#[derive(Debug)]
pub(crate) struct Speller<'a> {
    style: Style,
    /// The names that are not in the style, as they are spelled.
    list: &'a [u8],
    /// The same in lower case.
    lower_case: Vec<u8>,
    /// Where each of them is in both, by length and letters.
    places: Vec<Range<usize>>,
}

/// By what names are sorted: nearly all are told apart by their length.
fn key(name: &[u8]) -> (usize, &[u8]) {
    (name.len(), name)
}

impl<'a> Speller<'a> {
    /// Names are in the style, but for those of the list.
    pub(super) fn new(style: Style, list: &'a [u8]) -> Self {
        let lower_case = list.to_ascii_lowercase();
        let mut places = Vec::new();
        if !list.is_empty() {
            let mut begin = 0;
            places.extend(names(list).map(|name| {
                let place = begin..begin + name.len();
                begin = place.end + 1;
                place
            }));
        }
        // Of a name that is listed twice, the first stays the first.
        places.sort_by(|one, other| {
            key(&lower_case[one.clone()]).cmp(&key(&lower_case[other.clone()]))
        });
        Self {
            style,
            list,
            lower_case,
            places,
        }
    }

    /// Writes a name of a field, which is in lower case.
    pub(crate) fn write(&self, name: &str, out: &mut BytesMut) {
        let name = name.as_bytes();
        if let Some(spelled) = self.listed(name)
            && !is_ours(name)
        {
            out.extend_from_slice(spelled);
            return;
        }
        match self.style {
            Style::Lower => out.extend_from_slice(name),
            Style::Title => write_title(name, out),
        }
    }

    /// A name that is in lower case as it is listed first.
    fn listed(&self, name: &[u8]) -> Option<&'a [u8]> {
        let lower_case = |place: &Range<usize>| &self.lower_case[place.clone()];
        let before = |place: &Range<usize>| key(lower_case(place)) < key(name);
        let place = self
            .places
            .get(self.places.partition_point(before))
            .filter(|place| lower_case(place) == name)?;
        Some(&self.list[place.clone()])
    }
}
