//! The static table (RFC 7541 Appendix A).

use crate::field_name::{place, places};

/// Names and values of the static table; index 1 is the first. Fields with one name stand together.
pub(super) const FIELDS: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// Where a field is in the static table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StaticMatch {
    /// Name and value, at this index.
    Field(usize),
    /// The name, first at this index.
    Name(usize),
    /// Neither.
    Nothing,
}

/// Looks up a field. Names are in lower case.
pub(super) fn find(name: &[u8], value: &[u8]) -> StaticMatch {
    let Some(first) = find_name(name) else {
        return StaticMatch::Nothing;
    };
    let same_name = first..=last_of_name(first);
    match same_name
        .into_iter()
        .find(|&index| FIELDS[index - 1].1.as_bytes() == value)
    {
        Some(index) => StaticMatch::Field(index),
        None => StaticMatch::Name(first),
    }
}

/// The lowest index that has the name.
fn find_name(name: &[u8]) -> Option<usize> {
    const PLACES: [u8; 256] = places(&NAMES, FACTOR);
    let position = usize::from(PLACES[place(name, FACTOR)?]);
    let index = *INDICES.get(position)?;
    (FIELDS[index - 1].0.as_bytes() == name).then_some(index)
}

/// With it no two names have one place: [`places`] checks that.
const FACTOR: u32 = 0xd34d_0495;

/// How many names there are.
const COUNT: usize = 52;

/// The lowest index of every name, in their order.
const INDICES: [usize; COUNT] = {
    let mut indices = [0; COUNT];
    let (mut number, mut index) = (0, 1);
    while number < COUNT {
        indices[number] = index;
        number += 1;
        index = last_of_name(index) + 1;
    }
    assert!(index == FIELDS.len() + 1);
    indices
};

/// Every name, in their order.
const NAMES: [&[u8]; COUNT] = {
    let mut names: [&[u8]; COUNT] = [b""; COUNT];
    let mut number = 0;
    while number < COUNT {
        names[number] = FIELDS[INDICES[number] - 1].0.as_bytes();
        number += 1;
    }
    names
};

/// The highest index that has the same name as `first`, the lowest.
const fn last_of_name(first: usize) -> usize {
    match first {
        2 => 3,
        4 => 5,
        6 => 7,
        8 => 14,
        only => only,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_found_at_its_index() {
        for (position, (name, value)) in FIELDS.iter().enumerate() {
            let index = position + 1;
            let first = 1 + FIELDS.iter().position(|field| field.0 == *name).unwrap();
            let find = |value: &str| find(name.as_bytes(), value.as_bytes());
            assert_eq!(find(value), StaticMatch::Field(index), "{name}: {value}");
            assert_eq!(find("other"), StaticMatch::Name(first), "{name}");
        }
    }

    #[test]
    fn other_names_are_not_found() {
        for name in ["", "x", "Date", "datE", ":authoritz", "x-forwarded-for"] {
            assert_eq!(find(name.as_bytes(), b""), StaticMatch::Nothing, "{name}");
        }
    }
}
