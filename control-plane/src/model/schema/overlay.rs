//! Limits and rules that are added to a schema, each by the path of its field.

use serde_json::{Value, json};

/// A name of a header field, and whatever else is a token (RFC 9110 section 5.6.2).
pub(super) const TOKEN: &str = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$";
/// A DNS label (RFC 1123).
pub(super) const LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// A DNS name of labels in lower case.
pub(super) const SUBDOMAIN: &str =
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";

/// A schema that limits and rules are added to. A path is as in `rules[].per`: fields, `[]` for the
/// items of a list, `{}` for the values of a map; the empty one is the whole.
#[derive(Debug)]
pub(super) struct Overlay<'a> {
    schema: &'a mut Value,
    misplaced: Vec<String>,
}

impl<'a> Overlay<'a> {
    pub(super) fn new(schema: &'a mut Value) -> Self {
        Self {
            schema,
            misplaced: Vec::new(),
        }
    }

    /// Paths that led nowhere.
    pub(super) fn misplaced(self) -> Vec<String> {
        self.misplaced
    }

    /// Adds keywords to a field.
    pub(super) fn set(&mut self, path: &str, keywords: Value) {
        let field = find(self.schema, path).and_then(Value::as_object_mut);
        match field.zip(keywords.as_object()) {
            Some((field, keywords)) => field.extend(keywords.clone()),
            None => self.misplaced.push(path.to_owned()),
        }
    }

    /// A condition of a field in CEL, and what is said where it does not hold.
    pub(super) fn rule(&mut self, path: &str, rule: &str, message: &str) {
        let Some(field) = find(self.schema, path).and_then(Value::as_object_mut) else {
            return self.misplaced.push(path.to_owned());
        };
        let rules = field.entry("x-kubernetes-validations");
        if let Some(rules) = rules.or_insert_with(|| json!([])).as_array_mut() {
            rules.push(json!({"rule": rule, "message": message}));
        }
    }

    /// Removes fields of an object.
    pub(super) fn remove(&mut self, path: &str, fields: &[&str]) {
        let found = find(self.schema, path).and_then(|field| field["properties"].as_object_mut());
        match found {
            Some(properties) => fields
                .iter()
                .for_each(|field| drop(properties.remove(*field))),
            None => self.misplaced.push(path.to_owned()),
        }
    }

    /// A number from `least` to `most`.
    pub(super) fn range(&mut self, path: &str, least: impl Into<Value>, most: impl Into<Value>) {
        self.set(
            path,
            json!({"minimum": least.into(), "maximum": most.into()}),
        );
    }

    /// A share above 0, up to 1.
    pub(super) fn share(&mut self, path: &str) {
        self.set(
            path,
            json!({"minimum": 0, "exclusiveMinimum": true, "maximum": 1}),
        );
    }

    /// A port.
    pub(super) fn port(&mut self, path: &str) {
        self.range(path, 1, 65535);
    }

    /// A text of this form and length.
    pub(super) fn text(&mut self, path: &str, pattern: &str, most: u64) {
        self.set(
            path,
            json!({"pattern": pattern, "minLength": 1, "maxLength": most}),
        );
    }

    /// A list of so many items.
    pub(super) fn items(&mut self, path: &str, least: u64, most: u64) {
        self.set(path, json!({"minItems": least, "maxItems": most}));
    }

    /// A list of scalars in which each is once.
    pub(super) fn once(&mut self, path: &str) {
        self.set(path, json!({"x-kubernetes-list-type": "set"}));
    }

    /// A time above 0, up to a day.
    pub(super) fn time(&mut self, path: &str) {
        let rule = "duration(self) > duration('0s') && duration(self) <= duration('24h')";
        self.rule(path, rule, "above 0, up to a day");
    }

    /// A time from `least` to `most`, both included.
    pub(super) fn times(&mut self, path: &str, least: &str, most: &str) {
        let rule = format!(
            "duration(self) >= duration('{least}') && duration(self) <= duration('{most}')"
        );
        self.rule(path, &rule, &format!("{least} to {most}"));
    }
}

fn find<'a>(schema: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    let mut at = schema;
    for step in path.split('.').filter(|step| !step.is_empty()) {
        let (name, inner) = match (step.strip_suffix("[]"), step.strip_suffix("{}")) {
            (Some(name), _) => (name, Some("items")),
            (_, Some(name)) => (name, Some("additionalProperties")),
            (None, None) => (step, None),
        };
        at = at.get_mut("properties")?.get_mut(name)?;
        if let Some(inner) = inner {
            at = at.get_mut(inner)?;
        }
    }
    Some(at)
}
