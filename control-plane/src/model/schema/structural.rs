//! From the schema that a type derives to a structural schema, the form that Kubernetes asks of a
//! CustomResourceDefinition: no references, no alternatives, each field with one type.

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// Characters of a text that has no limit of its own.
const TEXT_MAX: u64 = 1024;
/// Items of a list that has no limit of its own.
const ITEMS_MAX: u64 = 64;
/// Fields of a map that has no limit of its own.
const FIELDS_MAX: u64 = 256;

/// The structural schema of a type.
pub(super) fn of<T: JsonSchema>() -> Value {
    let schema = SchemaGenerator::default().into_root_schema_for::<T>();
    let mut schema = schema.to_value();
    let definitions = schema["$defs"].take();
    let name = T::schema_name();
    let mut stack = vec![name.into_owned()];
    structural(schema, &definitions, &mut stack).unwrap_or_default()
}

/// `None` where a type is a part of itself: there the field is left out.
fn structural(schema: Value, definitions: &Value, stack: &mut Vec<String>) -> Option<Value> {
    let Value::Object(mut schema) = schema else {
        // `true`: anything at all.
        return Some(json!({"x-kubernetes-preserve-unknown-fields": true}));
    };
    if let Some(Value::String(reference)) = schema.remove("$ref") {
        return referred(&reference, schema, definitions, stack);
    }
    for alternatives in ["anyOf", "oneOf"] {
        if let Some(Value::Array(options)) = schema.remove(alternatives) {
            return one_of(options, schema, definitions, stack);
        }
    }
    for unknown in [
        "$schema",
        "$defs",
        "title",
        "default",
        "additionalProperties",
    ] {
        let of_a_map =
            unknown == "additionalProperties" && schema.get(unknown).is_some_and(Value::is_object);
        if !of_a_map {
            schema.remove(unknown);
        }
    }
    if let Some(Value::String(text)) = schema.remove("const") {
        schema.insert("enum".to_owned(), json!([text]));
    }
    // An optional field is left out, not null.
    if let Some(Value::Array(types)) = schema.get("type") {
        let mut types = types.iter().filter(|one| *one != "null");
        let first = types.next().cloned().unwrap_or_default();
        schema.insert("type".to_owned(), first);
    }
    if let Some(Value::Array(values)) = schema.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    if schema.get("format").is_some_and(|format| {
        format
            .as_str()
            .is_some_and(|format| format.starts_with("uint"))
    }) {
        schema.remove("format");
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(item) = schema.remove(inner) {
            schema.insert(inner.to_owned(), structural(item, definitions, stack)?);
        }
    }
    if let Some(Value::Object(fields)) = schema.remove("properties") {
        let fields = fields.into_iter().filter_map(|(name, field)| {
            structural(field, definitions, stack).map(|field| (name, field))
        });
        let fields: Map<String, Value> = fields.collect();
        schema.insert("properties".to_owned(), Value::Object(fields));
    }
    Some(Value::Object(schema))
}

/// The definition in the place of a reference to it.
fn referred(
    reference: &str,
    beside: Map<String, Value>,
    definitions: &Value,
    stack: &mut Vec<String>,
) -> Option<Value> {
    let name = reference.rsplit('/').next().unwrap_or_default();
    // A breaker has breakers in it, which have none.
    let depth = stack.iter().filter(|outer| *outer == name).count();
    if depth > usize::from(name == "CircuitBreakerSpec") {
        return None;
    }
    stack.push(name.to_owned());
    let mut found = structural(definitions[name].clone(), definitions, stack);
    stack.pop();
    if let Some(Value::Object(found)) = &mut found {
        found.extend(beside.into_iter().filter(|(key, _)| key == "description"));
    }
    found
}

/// Alternatives: words, or objects with one field each.
fn one_of(
    options: Vec<Value>,
    mut beside: Map<String, Value>,
    definitions: &Value,
    stack: &mut Vec<String>,
) -> Option<Value> {
    let options = options
        .into_iter()
        .filter(|option| option["type"] != "null");
    let mut options: Vec<Value> = options
        .filter_map(|option| structural(option, definitions, stack))
        .collect();
    beside.retain(|key, _| key == "description");
    if options.len() == 1 {
        let mut only = options.remove(0);
        only.as_object_mut()?.extend(beside);
        return Some(only);
    }
    if options.iter().all(|option| option["enum"].is_array()) {
        let words = options.iter().flat_map(|option| option["enum"].as_array());
        let words: Vec<Value> = words.flatten().cloned().collect();
        beside.insert("type".to_owned(), json!("string"));
        beside.insert("enum".to_owned(), json!(words));
        return Some(Value::Object(beside));
    }
    let mut fields = Map::new();
    for option in &mut options {
        if let Value::Object(more) = option["properties"].take() {
            fields.extend(more);
        }
    }
    beside.insert("type".to_owned(), json!("object"));
    beside.insert("properties".to_owned(), Value::Object(fields));
    beside.insert("minProperties".to_owned(), json!(1));
    beside.insert("maxProperties".to_owned(), json!(1));
    Some(Value::Object(beside))
}

/// Gives a limit to everything that has none: the API server refuses rules whose cost it cannot
/// estimate.
pub(super) fn bound(schema: &mut Value) {
    let Value::Object(schema) = schema else {
        return;
    };
    let limit = match schema.get("type").and_then(Value::as_str) {
        Some("string") if !schema.contains_key("enum") => Some(("maxLength", TEXT_MAX)),
        Some("array") => Some(("maxItems", ITEMS_MAX)),
        Some("object") if schema.contains_key("additionalProperties") => {
            Some(("maxProperties", FIELDS_MAX))
        }
        Some(_) | None => None,
    };
    if let Some((limit, most)) = limit {
        let limit = schema.entry(limit).or_insert_with(|| json!(most));
        debug_assert!(limit.is_u64());
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(inner) {
            bound(inner);
        }
    }
    if let Some(Value::Object(fields)) = schema.get_mut("properties") {
        fields.values_mut().for_each(bound);
    }
}
