//! The static table (RFC 7541 Appendix A).

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
    let last = name.last()?;
    // The last byte alone tells most names of one length apart.
    names_of_length(name.len()).iter().copied().find(|&index| {
        let candidate = FIELDS[index - 1].0.as_bytes();
        candidate.last() == Some(last) && candidate == name
    })
}

/// The lowest index of every name that has `length` bytes.
fn names_of_length(length: usize) -> &'static [usize] {
    match length {
        3 => &[21, 60],
        4 => &[33, 34, 37, 38, 45, 59],
        5 => &[4, 22, 50],
        6 => &[19, 32, 35, 54],
        7 => &[2, 6, 8, 36, 51, 52],
        8 => &[39, 42, 46],
        10 => &[1, 55, 58],
        11 => &[53],
        12 => &[31, 47],
        13 => &[18, 23, 24, 30, 41, 44],
        14 => &[15, 28],
        15 => &[16, 17],
        16 => &[26, 27, 29, 61],
        17 => &[40, 57],
        18 => &[48],
        19 => &[25, 43, 49],
        25 => &[56],
        27 => &[20],
        _ => &[],
    }
}

/// The highest index that has the same name as `first`, the lowest.
fn last_of_name(first: usize) -> usize {
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
