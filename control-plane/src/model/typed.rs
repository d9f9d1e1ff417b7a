//! From values to types, strictly; what serde says about it, in words for people.

use serde::de::DeserializeOwned;
use serde_json::Value;
use weft_api::reader::{self, Misfit};

use super::check::Check;

impl Check<'_> {
    /// Reads a value strictly: unknown fields are problems.
    pub(super) fn typed<T: DeserializeOwned>(&mut self, prefix: &str, value: &Value) -> Option<T> {
        let reading = reader::read(value);
        let unknown = reading.unknown.iter().filter(|_| !self.stored);
        let unknown: Vec<_> = unknown
            .map(|one| (format!("{prefix}{}", one.path), one.known))
            .collect();
        for (path, known) in unknown {
            let allowed = match known {
                [] => "nothing".to_owned(),
                known => known.join(", "),
            };
            self.add(place(&path), "an unknown field", allowed);
        }
        match reading.value {
            Ok(value) => Some(value),
            Err(misfit) => {
                self.add_misfit(prefix, &misfit);
                None
            }
        }
    }

    fn add_misfit(&mut self, prefix: &str, misfit: &Misfit) {
        let mut path = format!("{prefix}{}", misfit.path);
        if let Some(known) = misfit.list_for {
            let allowed = format!("fields: {}", known.join(", "));
            return self.add(place(&path), "a list", allowed);
        }
        let said = told(&misfit.message);
        if let Some(field) = &said.field {
            let whole = path.trim_end_matches('.');
            path = match whole {
                "" => field.clone(),
                whole => format!("{whole}.{field}"),
            };
        }
        let path = place(&path);
        let allowed = by_name(path, &said.allowed).unwrap_or(said.allowed);
        self.add(path, said.found, allowed);
    }
}

/// A path, also of the whole.
fn place(path: &str) -> &str {
    match path.trim_end_matches('.') {
        "" => "(document)",
        path => path,
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
            allowed: "a value: the field is required".to_owned(),
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
    let mut found = found.to_owned();
    if let Some(length) = found.strip_prefix("invalid length ") {
        found = format!("{length} items");
    }
    for said in ["invalid type: ", "invalid value: "] {
        found = found.strip_prefix(said).unwrap_or(&found).to_owned();
    }
    Said {
        field: None,
        found,
        allowed: in_words(allowed),
    }
}

fn quoted(text: &str, before: &str) -> Option<String> {
    let rest = text.strip_prefix(before)?;
    let (name, _) = rest.split_once('`')?;
    Some(name.to_owned())
}

/// Where the type of a number is wider than what it stands for.
fn by_name(path: &str, allowed: &str) -> Option<String> {
    let range = match path.rsplit('.').next()? {
        "port" | "targetPort" => "1 to 65535",
        "weight" => "0 to 1000000",
        _ => return None,
    };
    let number = allowed.starts_with("an integer");
    number.then(|| format!("an integer from {range}"))
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
                (Some("port"), "nothing", "a value: the field is required"),
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
                "invalid length 2, expected struct Envelope with 5 elements",
                (None, "2 items", "fields, NAME: VALUE"),
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
