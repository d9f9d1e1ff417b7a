//! Keys and values of labels, as Kubernetes has them ("Labels and Selectors").

use crate::name::check_subdomain;

/// Longest name of a key, and longest value, bytes.
const NAME_MAX: usize = 63;

/// What a key may be.
pub const KEY: &str = "[PREFIX/]NAME: NAME of 1 to 63 of a-z, A-Z, 0-9, '-', '_' and '.', \
                       beginning and ending with a letter or digit; PREFIX a DNS subdomain of 253 \
                       at most";
/// What a value may be.
pub const VALUE: &str = "nothing, or 1 to 63 of a-z, A-Z, 0-9, '-', '_' and '.', beginning and \
                         ending with a letter or digit";

/// Whether a text is a key of a label.
pub fn is_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => check_subdomain(prefix).is_ok() && is_name(name),
        None => is_name(text),
    }
}

/// Whether a text is a value of a label.
pub fn is_value(text: &str) -> bool {
    text.is_empty() || is_name(text)
}

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    bytes.len() <= NAME_MAX && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
}
