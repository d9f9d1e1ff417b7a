//! Paths with queries.

use std::fmt::Write as _;

/// A path with a query; what is empty is left out.
pub fn query(path: &str, pairs: &[(&str, &str)]) -> String {
    let mut whole = path.to_owned();
    let mut separator = '?';
    for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        whole.push(separator);
        whole.push_str(name);
        whole.push('=');
        whole.push_str(&encode(value));
        separator = '&';
    }
    whole
}

/// Percent-encodes everything but unreserved characters (RFC 3986 section 2.3).
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _infallible = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        let pairs = [("author", "a b&c"), ("empty", ""), ("source", "x/é")];
        let expected = "/v1/apply?author=a%20b%26c&source=x%2F%C3%A9";
        assert_eq!(query("/v1/apply", &pairs), expected);
        assert_eq!(query("/v1/apply", &[("a", "")]), "/v1/apply");
    }
}
