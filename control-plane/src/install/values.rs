//! What an operator asks for: files of values and `--set`, as helm reads them. Pure.

use serde_json::{Map, Value};

use super::InstallError;

/// How `--set` reads a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetAs {
    /// true, false, null and integers are what they look like (`--set`).
    Guessed,
    /// Everything is a string (`--set-string`).
    String,
}

/// Lays `over` upon `base`: objects are merged, null removes, anything else replaces.
pub(super) fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                if value.is_null() {
                    base.remove(&key);
                } else {
                    merge(base.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (base, over) => *base = over,
    }
}

/// Reads a `--set`: `a.b=1,c={x,y}`. A comma, a dot or a brace of a name or a value itself has a
/// backslash before it.
pub(super) fn set(text: &str, kind: SetAs) -> Result<Value, InstallError> {
    let wrong = |what: &str| {
        InstallError::Values(vec![format!(
            "--set: found {text:?}: {what}; allowed: NAME.NAME=VALUE or NAME={{VALUE,VALUE}}, \
             divided by commas"
        )])
    };
    let mut whole = Value::Object(Map::new());
    for part in divided(text, ',') {
        let (key, value) = cut(part).ok_or_else(|| wrong("no ="))?;
        if key.contains('[') {
            return Err(wrong("an index is not understood; use a file of values"));
        }
        let mut made = match value.strip_prefix('{') {
            Some(list) => {
                let list = list.strip_suffix('}').ok_or_else(|| wrong("no }"))?;
                let items = divided(list, ',').into_iter();
                let items = items.filter(|item| !item.is_empty());
                Value::Array(items.map(|item| scalar(&plain(item), kind)).collect())
            }
            None => scalar(&plain(value), kind),
        };
        for name in divided(key, '.').into_iter().rev() {
            if name.is_empty() {
                return Err(wrong("an empty name"));
            }
            made = Value::Object(Map::from_iter([(plain(name), made)]));
        }
        // Not `merge` at the end: null is kept, to remove a default.
        lay(&mut whole, made);
    }
    Ok(whole)
}

fn lay(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                lay(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

fn scalar(text: &str, kind: SetAs) -> Value {
    if kind == SetAs::String {
        return Value::String(text.to_owned());
    }
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "null" => Value::Null,
        // A leading zero is a text, as helm has it: an octal number nobody means.
        _ if text.len() > 1 && text.starts_with('0') => Value::String(text.to_owned()),
        _ => match text.parse::<i64>() {
            Ok(number) => Value::from(number),
            Err(_) => Value::String(text.to_owned()),
        },
    }
}

/// Divides at a character that has no backslash before it and stands within no braces.
fn divided(text: &str, at: char) -> Vec<&str> {
    let (mut parts, mut start, mut escaped, mut depth) = (Vec::new(), 0, false, 0_u32);
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            c if c == at && depth == 0 => {
                parts.push(&text[start..index]);
                start = index + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn cut(text: &str) -> Option<(&str, &str)> {
    let key = *divided(text, '=').first()?;
    let value = text.get(key.len()..)?.strip_prefix('=')?;
    Some((key, value))
}

/// Without the backslashes.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn set_is_read_as_helm_reads_it() {
        for (text, expected) in [
            ("a=1", json!({"a": 1})),
            ("a.b=x,a.c=true", json!({"a": {"b": "x", "c": true}})),
            ("a=", json!({"a": ""})),
            ("a=0123", json!({"a": "0123"})),
            ("a={x,y}", json!({"a": ["x", "y"]})),
            ("a={}", json!({"a": []})),
            (r"a\.b/c=x\,y", json!({"a.b/c": "x,y"})),
            ("a=b=c", json!({"a": "b=c"})),
            ("a=null", json!({"a": null})),
        ] {
            assert_eq!(set(text, SetAs::Guessed).unwrap(), expected, "{text}");
        }
        assert_eq!(set("a=1", SetAs::String).unwrap(), json!({"a": "1"}));
        for text in ["a", "a[0]=1", "a={x", ".a=1", "a.=1"] {
            let error = set(text, SetAs::Guessed).unwrap_err().to_string();
            assert!(error.contains("allowed: NAME.NAME=VALUE"), "{error}");
        }
    }

    #[test]
    fn objects_are_merged_and_null_removes() {
        let mut base = json!({"a": {"b": 1, "c": 2}, "l": [1, 2]});
        merge(&mut base, json!({"a": {"b": null, "d": 3}, "l": [3]}));
        assert_eq!(base, json!({"a": {"c": 2, "d": 3}, "l": [3]}));
    }
}
