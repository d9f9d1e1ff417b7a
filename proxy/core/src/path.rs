//! Request paths, in the form in which they are compared.
//!
//! A path is forwarded as it came. What it means is up to the server, and servers differ: some take
//! `%2F` for a slash, some a backslash, some drop `;parameters`. Routes compare the [`NormalPath`]
//! (RFC 3986 section 6.2.2, and slashes merged). What restricts or permits compares all
//! [`Readings`]: a restriction applies if any reading matches, a permission only if all do.

mod readings;
#[cfg(test)]
mod tests;

pub use readings::{COMPARED_MAX, PathAmbiguity, PathNormalization, READINGS_MAX, Readings};

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// The path of a request, as it came and in its normal form.
///
/// In the normal form unreserved characters are not escaped, characters outside of ASCII are, escapes
/// are upper case, dot segments are resolved and slashes are merged. Normalising it again changes
/// nothing. A path that does not begin with a slash (`*`) stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormalPath<'a> {
    raw: &'a str,
    /// `None`: the path came in its normal form.
    normal: Option<Box<str>>,
    is_plain: bool,
}

impl<'a> NormalPath<'a> {
    /// The path of a request, without its query. Allocates nothing for a plain path.
    pub fn new(raw: &'a str) -> Self {
        let is_plain = is_plain(raw);
        let normal = (!is_plain && raw.starts_with('/'))
            .then(|| resolved(&merged(&unreserved(raw))))
            .filter(|normal| normal != raw);
        Self {
            raw,
            normal: normal.map(Into::into),
            is_plain,
        }
    }

    /// The normal form.
    pub fn as_str(&self) -> &str {
        self.normal.as_deref().unwrap_or(self.raw)
    }

    /// The path as it came.
    pub const fn raw(&self) -> &'a str {
        self.raw
    }

    /// Whether every server reads it as it is written: visible ASCII without escapes, parameters,
    /// backslashes, empty segments and dot segments.
    pub const fn is_plain(&self) -> bool {
        self.is_plain
    }
}

fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    let special = |byte: &u8| !byte.is_ascii_graphic() || matches!(byte, b'%' | b';' | b'\\');
    if bytes.first() != Some(&b'/') || bytes.iter().any(special) {
        return false;
    }
    // `/.` may begin a dot segment, or `/.well-known`.
    let suspect = |pair: &[u8]| pair == b"//" || pair == b"/.";
    let is_dots = |segment: &str| segment == "." || segment == "..";
    !bytes.windows(2).any(suspect) || !(path.contains("//") || path.split('/').any(is_dots))
}

/// An escape at the beginning of some bytes.
fn escape(bytes: &[u8]) -> Option<u8> {
    let digit = |at: usize| {
        let digit = char::from(*bytes.get(at)?).to_digit(16)?;
        u8::try_from(digit).ok()
    };
    (*bytes.first()? == b'%').then_some(())?;
    Some(digit(1)? << 4 | digit(2)?)
}

/// The bytes of a path, each with whether it was escaped. A `%` that begins no escape is one that
/// was not.
fn bytes(path: &str) -> impl Iterator<Item = (u8, bool)> + '_ {
    let mut rest = path.as_bytes();
    std::iter::from_fn(move || {
        let (byte, more) = rest.split_first()?;
        let escaped = escape(rest);
        rest = match escaped {
            Some(_) => &more[2..],
            None => more,
        };
        Some((escaped.unwrap_or(*byte), escaped.is_some()))
    })
}

/// The bytes of a path without any escape.
pub(crate) fn decoded_bytes(path: &str) -> impl Iterator<Item = u8> + '_ {
    bytes(path).map(|(byte, _escaped)| byte)
}

fn push_escape(byte: u8, path: &mut String) {
    path.push('%');
    for digit in [byte >> 4, byte & 15] {
        path.push(char::from(HEX[usize::from(digit)]));
    }
}

/// With unreserved characters (RFC 3986 section 2.3) decoded, and everything that is not visible
/// ASCII escaped.
fn unreserved(path: &str) -> String {
    let mut normal = String::with_capacity(path.len());
    for (byte, escaped) in bytes(path) {
        let unreserved = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let as_it_is = !escaped && byte.is_ascii_graphic() && byte != b'%';
        if unreserved || as_it_is {
            normal.push(char::from(byte));
        } else {
            push_escape(byte, &mut normal);
        }
    }
    normal
}

/// With each run of slashes as one.
fn merged(path: &str) -> String {
    let mut merged = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !merged.ends_with('/') {
            merged.push(character);
        }
    }
    merged
}

/// Without dot segments (RFC 3986 section 5.2.4).
fn resolved(path: &str) -> String {
    let Some(below) = path.strip_prefix('/') else {
        return path.to_owned();
    };
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_with_dots = false;
    for segment in below.split('/') {
        ends_with_dots = segment == "." || segment == "..";
        match segment {
            "." => {}
            ".." => {
                let _root_has_no_parent = segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    if ends_with_dots {
        segments.push("");
    }
    format!("/{}", segments.join("/"))
}
