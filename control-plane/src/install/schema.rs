//! The part of JSON Schema (draft 7) that `values.schema.json` is written in: pure.

use serde_json::Value;

/// Says everything in `value` that `schema` does not allow, each with the path of the field.
///
/// A keyword that is not understood is said as well: helm would enforce it, and this would not.
pub(super) fn problems(schema: &Value, value: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    check(schema, value, "", &mut problems);
    problems
}

fn check(schema: &Value, value: &Value, path: &str, problems: &mut Vec<String>) {
    let Some(keywords) = schema.as_object() else {
        problems.push(format!("values.schema.json: {path}: not a schema"));
        return;
    };
    for (keyword, rule) in keywords {
        let said = match keyword.as_str() {
            "$schema" | "title" | "description" | "properties" | "additionalProperties" => None,
            "type" => wrong_type(rule, value),
            "enum" => {
                let allowed = rule.as_array().is_some_and(|all| all.contains(value));
                (!allowed).then(|| format!("allowed: {rule}"))
            }
            "minimum" => out_of_range(value.as_f64(), rule, |found, limit| found < limit)
                .map(|limit| format!("allowed: {limit} and more")),
            "maximum" => out_of_range(value.as_f64(), rule, |found, limit| found > limit)
                .map(|limit| format!("allowed: {limit} at most")),
            "minLength" => out_of_range(length(value), rule, |found, limit| found < limit)
                .map(|limit| format!("allowed: {limit} characters and more")),
            "maxLength" => out_of_range(length(value), rule, |found, limit| found > limit)
                .map(|limit| format!("allowed: {limit} characters at most")),
            "pattern" => mismatch(rule, value),
            "maxProperties" => out_of_range(size(value), rule, |found, limit| found > limit)
                .map(|limit| format!("allowed: {limit} fields at most")),
            "required" => missing(rule, value).map(|field| format!("{field} is missing")),
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(rule, item, &format!("{path}[{index}]"), problems);
                }
                None
            }
            other => Some(format!(
                "values.schema.json says {other:?}, which is not understood"
            )),
        };
        if let Some(said) = said {
            let place = path.trim_start_matches('.');
            problems.push(format!("{place}: found {value}; {said}"));
        }
    }
    fields(schema, value, path, problems);
}

/// `properties` and `additionalProperties`.
fn fields(schema: &Value, value: &Value, path: &str, problems: &mut Vec<String>) {
    let known = schema.get("properties").and_then(Value::as_object);
    for (name, field) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let others = schema.get("additionalProperties");
        match (known.and_then(|known| known.get(name)), others) {
            (Some(schema), _) => check(schema, field, &path, problems),
            (None, Some(Value::Bool(false))) => {
                let names = known.into_iter().flat_map(|known| known.keys());
                let names: Vec<&str> = names.map(String::as_str).collect();
                problems.push(format!(
                    "{}: there is no such value; allowed: {}",
                    path.trim_start_matches('.'),
                    names.join(", ")
                ));
            }
            (None, Some(Value::Object(_))) => {
                check(&schema["additionalProperties"], field, &path, problems);
            }
            (None, _) => {}
        }
    }
}

fn wrong_type(rule: &Value, value: &Value) -> Option<String> {
    let is = |name: &Value| match name.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some(_) | None => false,
    };
    let good = match rule.as_array() {
        Some(names) => names.iter().any(is),
        None => is(rule),
    };
    (!good).then(|| format!("allowed: {rule}"))
}

/// The limit, where what was found is beyond it; what has no such measure is not concerned.
fn out_of_range(found: Option<f64>, rule: &Value, beyond: fn(f64, f64) -> bool) -> Option<&Value> {
    let beyond = beyond(found?, rule.as_f64()?);
    beyond.then_some(rule)
}

fn length(value: &Value) -> Option<f64> {
    value.as_str().map(|text| text.chars().count() as f64)
}

/// A text that the pattern does not match; helm takes the same expressions.
fn mismatch(rule: &Value, value: &Value) -> Option<String> {
    let text = value.as_str()?;
    let matches = rule.as_str().and_then(|rule| regex::Regex::new(rule).ok());
    let matches = matches.is_some_and(|rule| rule.is_match(text));
    (!matches).then(|| format!("allowed: what matches {rule}"))
}

fn size(value: &Value) -> Option<f64> {
    value.as_object().map(|fields| fields.len() as f64)
}

fn missing(rule: &Value, value: &Value) -> Option<String> {
    let value = value.as_object()?;
    let names = rule.as_array().into_iter().flatten();
    let mut names = names.filter_map(Value::as_str);
    names
        .find(|name| !value.contains_key(*name))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn says_what_is_not_allowed_and_where() {
        let schema = json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["n"],
            "properties": {
                "n": {"type": "integer", "minimum": 1, "maximum": 3},
                "s": {"type": "string", "minLength": 2, "maxLength": 3},
                "e": {"enum": ["a", "b"]},
                "l": {"type": "array", "items": {"type": "string"}},
                "m": {"type": "object", "additionalProperties": {"type": ["string", "number"]}},
                "none": {"type": "object", "maxProperties": 0},
            },
        });
        for (value, expected) in [
            (
                json!({"n": 1, "s": "ab", "e": "a", "l": ["x"], "m": {"x": 1}}),
                vec![],
            ),
            (json!({}), vec![": found {}; n is missing"]),
            (json!({"n": 0}), vec!["n: found 0; allowed: 1 and more"]),
            (json!({"n": 4}), vec!["n: found 4; allowed: 3 at most"]),
            (
                json!({"n": "1"}),
                vec!["n: found \"1\"; allowed: \"integer\""],
            ),
            (
                json!({"n": 1, "s": "a"}),
                vec!["s: found \"a\"; allowed: 2 characters and more"],
            ),
            (
                json!({"n": 1, "s": "abcd"}),
                vec!["s: found \"abcd\"; allowed: 3 characters at most"],
            ),
            (
                json!({"n": 1, "e": "c"}),
                vec!["e: found \"c\"; allowed: [\"a\",\"b\"]"],
            ),
            (
                json!({"n": 1, "l": [1]}),
                vec!["l[0]: found 1; allowed: \"string\""],
            ),
            (
                json!({"n": 1, "m": {"x": true}}),
                vec!["m.x: found true; allowed: [\"string\",\"number\"]"],
            ),
            (
                json!({"n": 1, "x": 1}),
                vec!["x: there is no such value; allowed: e, l, m, n, none, s"],
            ),
            (
                json!({"n": 1, "none": {"a": 1}}),
                vec!["none: found {\"a\":1}; allowed: 0 fields at most"],
            ),
        ] {
            assert_eq!(problems(&schema, &value), expected, "{value}");
        }
        let unknown = problems(&json!({"oneOf": []}), &json!(1));
        assert!(
            unknown[0].contains("\"oneOf\", which is not understood"),
            "{unknown:?}"
        );
    }
}
