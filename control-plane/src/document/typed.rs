//! From values to types, strictly; what serde says about it, in words for people.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Check, fields};

impl Check<'_> {
    /// Reads a value strictly: unknown fields are problems.
    pub(super) fn typed<T: DeserializeOwned>(&mut self, prefix: &str, value: &Value) -> Option<T> {
        for unknown in fields::unknown::<T>(value) {
            let allowed = match unknown.known {
                [] => "nothing".to_owned(),
                known => known.join(", "),
            };
            let path = format!("{prefix}{}", unknown.path);
            self.add(path, "an unknown field", allowed);
        }
        let mut track = serde_path_to_error::Track::new();
        let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
        match T::deserialize(deserializer) {
            Ok(value) => Some(value),
            Err(error) => {
                let path = track.path().to_string();
                let path = if path == "." { String::new() } else { path };
                let said = told(&error.to_string());
                let mut path = format!("{prefix}{path}");
                if let Some(field) = &said.field {
                    let whole = path.trim_end_matches('.');
                    path = match whole {
                        "" => field.clone(),
                        whole => format!("{whole}.{field}"),
                    };
                }
                let path = match path.trim_end_matches('.') {
                    "" => "(document)",
                    path => path,
                };
                self.add(path, said.found, said.allowed);
                None
            }
        }
    }
}

/// What serde says.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    /// A field of the place, if it is about one.
    field: Option<String>,
    found: String,
    allowed: String,
}

fn told(text: &str) -> Said {
    if let Some(name) = quoted(text, "missing field `") {
        return Said {
            field: Some(name),
            found: "nothing".to_owned(),
            allowed: "a value: without it the rest means nothing".to_owned(),
        };
    }
    if let Some(name) = quoted(text, "duplicate field `") {
        return Said {
            field: Some(name),
            found: "the field a second time".to_owned(),
            allowed: "each field once".to_owned(),
        };
    }
    let (found, allowed) = text.split_once(", expected ").unwrap_or((text, ""));
    let mut found = found;
    for said in ["invalid type: ", "invalid value: "] {
        found = found.strip_prefix(said).unwrap_or(found);
    }
    Said {
        field: None,
        found: found.to_owned(),
        allowed: in_words(allowed),
    }
}

fn quoted(text: &str, before: &str) -> Option<String> {
    let rest = text.strip_prefix(before)?;
    let (name, _) = rest.split_once('`')?;
    Some(name.to_owned())
}

/// serde names the type; people want to know the range.
fn in_words(allowed: &str) -> String {
    let words = match allowed {
        "u16" => "an integer from 0 to 65535",
        "u32" => "an integer from 0 to 4294967295",
        "u64" | "usize" => "an integer from 0",
        "i32" => "an integer from -2147483648 to 2147483647",
        "i64" => "an integer",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a string" => "a text",
        "a sequence" => "a list, as in [a, b] or with - before each item",
        "a map" => "fields, NAME: VALUE",
        "" => "what the guide says",
        other if other.starts_with("struct ") || other.starts_with("internally tagged") => {
            "fields, NAME: VALUE"
        }
        "string or map" | "enum" => "a word, or one field with its value",
        other if other.starts_with("map with a single key") => "one field with its value",
        other => other,
    };
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serde_in_words() {
        let cases = [
            (
                "missing field `port`",
                (
                    Some("port"),
                    "nothing",
                    "a value: without it the rest means nothing",
                ),
            ),
            (
                "invalid type: string \"eighty\", expected u16",
                (None, "string \"eighty\"", "an integer from 0 to 65535"),
            ),
            (
                "invalid value: integer `-1`, expected u32",
                (None, "integer `-1`", "an integer from 0 to 4294967295"),
            ),
            (
                "unknown variant `x`, expected `a` or `b`",
                (None, "unknown variant `x`", "`a` or `b`"),
            ),
            (
                "invalid type: sequence, expected struct RetrySpec",
                (None, "sequence", "fields, NAME: VALUE"),
            ),
            (
                "something else",
                (None, "something else", "what the guide says"),
            ),
        ];
        for (text, (field, found, allowed)) in cases {
            let said = Said {
                field: field.map(ToOwned::to_owned),
                found: found.to_owned(),
                allowed: allowed.to_owned(),
            };
            assert_eq!(told(text), said, "{text}");
        }
    }
}
