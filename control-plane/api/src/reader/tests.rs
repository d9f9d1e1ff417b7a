//! Values read with and without what their types do not have.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use super::*;

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only its shape is asked for")]
struct Outer {
    name: Option<Inner>,
    list: Vec<Inner>,
    way: Way,
}

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only its shape is asked for")]
struct Inner {
    one: u16,
    two: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its shape is asked for")]
enum Way {
    Plain,
    Packed(Inner),
    Pair(u8, u8),
    Open { three: f64 },
}

#[derive(Debug, Deserialize, PartialEq)]
struct Scalars {
    byte: u8,
    signed: i64,
    float: f32,
    text: String,
    letter: char,
    pair: (u8, String),
    labels: BTreeMap<String, bool>,
    any: Value,
    nothing: (),
}

#[test]
fn unknown_fields_are_told_with_those_that_there_are() {
    let value = json!({
        "name": {"one": 1, "tow": true},
        "list": [{"one": 1}, {"one": 2, "x": [{"y": 1}]}],
        "way": {"packed": {"one": 1, "z": null}},
        "more": 1,
    });
    let reading = read::<Outer>(&value);
    assert!(reading.value.is_ok());
    let inner: &[&str] = &["one", "two"];
    let expected = [
        ("list[1].x", inner),
        ("more", &["name", "list", "way"]),
        ("name.tow", inner),
        ("way.packed.z", inner),
    ];
    let found = reading.unknown.iter();
    let mut found: Vec<_> = found.map(|one| (&*one.path, one.known)).collect();
    found.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn a_misfit_has_its_path() {
    let with = |way: Value| json!({"list": [], "way": way});
    let cases = [
        (
            json!(7),
            "",
            "invalid type: integer `7`, expected struct Outer",
        ),
        (json!({"way": "plain"}), "", "missing field `list`"),
        (
            json!({"list": [{"one": 1}, {}]}),
            "list[1]",
            "missing field `one`",
        ),
        (
            json!({"list": [{"one": 70000}]}),
            "list[0].one",
            "invalid value: integer `70000`, expected u16",
        ),
        (
            json!({"list": {}}),
            "list",
            "invalid type: map, expected a sequence",
        ),
        (
            json!({"list": [{"one": 1, "two": 2.5}]}),
            "list[0].two",
            "invalid type: floating point `2.5`, expected a boolean",
        ),
        (
            with(json!("other")),
            "way",
            "unknown variant `other`, expected one of `plain`, `packed`, `pair`, `open`",
        ),
        (
            with(json!(null)),
            "way",
            "invalid type: null, expected string or map",
        ),
        (
            with(json!({"packed": {"one": 1}, "plain": null})),
            "way",
            "invalid value: map, expected map with a single key",
        ),
    ];
    check_misfits(&cases);
}

#[test]
fn a_misfit_within_a_variant_has_its_path() {
    let with = |way: Value| json!({"list": [], "way": way});
    let cases = [
        (
            with(json!("packed")),
            "way",
            "invalid type: unit variant, expected newtype variant",
        ),
        (
            with(json!({"packed": {"one": "1"}})),
            "way.packed.one",
            "invalid type: string \"1\", expected u16",
        ),
        (
            with(json!({"plain": 1})),
            "way.plain",
            "invalid type: integer `1`, expected unit",
        ),
        (
            with(json!({"pair": [1]})),
            "way.pair",
            "invalid length 1, expected tuple variant Way::Pair with 2 elements",
        ),
        (
            with(json!({"pair": [1, 2, 3]})),
            "way.pair",
            "invalid length 3, expected fewer elements in array",
        ),
        (
            with(json!({"open": {"three": true}})),
            "way.open.three",
            "invalid type: boolean `true`, expected f64",
        ),
    ];
    check_misfits(&cases);
}

#[track_caller]
fn check_misfits(cases: &[(Value, &str, &str)]) {
    for (value, path, message) in cases {
        let misfit = read::<Outer>(value).value.unwrap_err();
        let found = (&*misfit.path, &*misfit.message, misfit.list_for);
        assert_eq!(found, (*path, *message, None), "{value}");
    }
}

#[test]
fn a_list_does_not_stand_for_fields() {
    let fields: &[&str] = &["one", "two"];
    for (value, path) in [
        (json!({"list": [{"one": 1}, [1, true]]}), "list[1]"),
        (json!({"list": [], "way": {"packed": []}}), "way.packed"),
    ] {
        let reading = read::<Outer>(&value);
        let misfit = reading.value.unwrap_err();
        assert_eq!((&*misfit.path, misfit.list_for), (path, Some(fields)));
    }
}

#[test]
fn what_fits_is_read_as_serde_json_reads_it() {
    let value = json!({
        "byte": 255, "signed": -9, "float": 1, "text": "é", "letter": "x", "pair": [1, "b"],
        "labels": {"a": true}, "any": {"x": [null, 1.5, "y"]}, "nothing": null,
    });
    let read = read::<Scalars>(&value).value.unwrap();
    assert_eq!(read, Scalars::deserialize(&value).unwrap());
    for (field, wrong) in [
        ("byte", json!(256)),
        ("byte", json!(-1)),
        ("signed", json!(1.5)),
        ("float", json!("1")),
        ("text", json!(1)),
        ("letter", json!("xy")),
        ("pair", json!({})),
        ("labels", json!([])),
        ("labels", json!({"a": 1})),
        ("nothing", json!(0)),
    ] {
        let mut value = value.clone();
        value[field] = wrong;
        let misfit = super::read::<Scalars>(&value).value.unwrap_err();
        let expected = Scalars::deserialize(&value).unwrap_err();
        assert_eq!(misfit.message, expected.to_string(), "{value}");
        assert!(misfit.path.starts_with(field), "{}", misfit.path);
    }
}

#[test]
fn json_with_a_field_twice_is_refused() {
    let text = r#"{"a": [null, true, -1, 2, 2.5, "x", {"b": {}}], "c": 18446744073709551615}"#;
    let plain: Value = serde_json::from_str(text).unwrap();
    assert_eq!(parse(text.as_bytes()).unwrap(), plain);
    for (text, expected) in [
        (
            r#"{"ttl": 1, "ttl": 1}"#,
            "duplicate field `ttl` at line 1 column 16",
        ),
        (
            r#"{"a": [{"b": 1, "c": 2, "b": 3}]}"#,
            "duplicate field `b`",
        ),
        ("{", "EOF while parsing an object"),
        ("{} {}", "trailing characters"),
    ] {
        let error = parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    let deep = "[".repeat(1000);
    let error = parse(deep.as_bytes()).unwrap_err().to_string();
    assert!(error.starts_with("recursion limit exceeded"), "{error}");
}
