//! Fields that a type does not have: found by asking the type itself, which also says which ones it
//! has.

use std::cell::RefCell;

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer,
    MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Map, Value};

/// A field that is not known, or a list in the place of fields: serde would take its items for the
/// fields in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unknown {
    /// Where it is, as in `rules[0].matches[1].colour`.
    pub(super) path: String,
    /// Whether it is a list.
    pub(super) is_list: bool,
    /// The fields that there are in that place.
    pub(super) known: &'static [&'static str],
}

/// Every field of `value` that `T` does not know, as far as it can be read.
pub(super) fn unknown<T: DeserializeOwned>(value: &Value) -> Vec<Unknown> {
    let found = RefCell::default();
    // What else is wrong with it is found by whoever reads it for its value.
    let _value = T::deserialize(Asking {
        value,
        path: String::new(),
        known: &[],
        found: &found,
    });
    found.into_inner()
}

/// A value that notes what is not read of it.
struct Asking<'a> {
    value: &'a Value,
    path: String,
    /// The fields of what this is a field of.
    known: &'static [&'static str],
    found: &'a RefCell<Vec<Unknown>>,
}

impl<'a> Asking<'a> {
    fn field(&self, name: &str, value: &'a Value, known: &'static [&'static str]) -> Self {
        let path = match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        };
        Self {
            value,
            path,
            known,
            found: self.found,
        }
    }

    fn note(&self, is_list: bool, known: &'static [&'static str]) {
        self.found.borrow_mut().push(Unknown {
            path: self.path.clone(),
            is_list,
            known,
        });
    }

    fn read_map<'de, V: Visitor<'de>>(
        self,
        fields: &'a Map<String, Value>,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error>
    where
        'a: 'de,
    {
        visitor.visit_map(Fields {
            rest: fields.iter(),
            next: None,
            known,
            of: self,
        })
    }
}

impl<'de> Deserializer<'de> for Asking<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Object(fields) => self.read_map(fields, &[], visitor),
            Value::Array(items) => visitor.visit_seq(Items {
                rest: items.iter().enumerate(),
                of: self,
            }),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                self.value.deserialize_any(visitor)
            }
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.value {
            Value::Object(fields) => self.read_map(fields, known, visitor),
            Value::Array(_) => {
                self.note(true, known);
                self.deserialize_any(visitor)
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                self.deserialize_any(visitor)
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value.is_null() {
            true => visitor.visit_none(),
            false => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.value.as_object().map(|fields| fields.iter()) {
            Some(mut fields) if fields.len() == 1 => match fields.next() {
                Some((variant, content)) => {
                    let content = self.field(variant, content, &[]);
                    visitor.visit_enum(Variant { variant, content })
                }
                None => Err(Error::custom("no variant")),
            },
            Some(_) | None => self.value.deserialize_enum(name, variants, visitor),
        }
    }

    /// Nobody reads it.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.note(false, self.known);
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map identifier
    }
}

struct Fields<'a, I> {
    rest: I,
    next: Option<(&'a str, &'a Value)>,
    known: &'static [&'static str],
    of: Asking<'a>,
}

impl<'de, I: Iterator<Item = (&'de String, &'de Value)>> MapAccess<'de> for Fields<'de, I> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some((name, value)) = self.rest.next() else {
            return Ok(None);
        };
        self.next = Some((name, value));
        let name: StrDeserializer<'_, Error> = name.as_str().into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((name, value)) = self.next.take() else {
            return Err(Error::custom("a value before its name"));
        };
        seed.deserialize(self.of.field(name, value, self.known))
    }
}

struct Items<'a, I> {
    rest: I,
    of: Asking<'a>,
}

impl<'de, I: Iterator<Item = (usize, &'de Value)>> SeqAccess<'de> for Items<'de, I> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some((index, value)) = self.rest.next() else {
            return Ok(None);
        };
        let item = Asking {
            value,
            path: format!("{}[{index}]", self.of.path),
            known: &[],
            found: self.of.found,
        };
        seed.deserialize(item).map(Some)
    }
}

struct Variant<'a> {
    variant: &'a str,
    content: Asking<'a>,
}

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = Error;
    type Variant = Asking<'de>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Asking<'de>), Error> {
        let name: StrDeserializer<'_, Error> = self.variant.into_deserializer();
        Ok((seed.deserialize(name)?, self.content))
    }
}

impl<'de> VariantAccess<'de> for Asking<'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_struct("", fields, visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::json;

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only its shape is asked for")]
    struct Outer {
        name: Option<Inner>,
        list: Vec<Inner>,
        way: Way,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only its shape is asked for")]
    struct Inner {
        one: u16,
        two: Option<bool>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    #[expect(dead_code, reason = "only its shape is asked for")]
    enum Way {
        Plain,
        Packed(Inner),
    }

    #[test]
    fn unknown_fields_are_told_with_those_that_there_are() {
        let value = json!({
            "name": {"one": 1, "tow": true},
            "list": [{"one": 1}, {"one": 2, "x": [{"y": 1}]}],
            "way": {"packed": {"one": 1, "z": null}},
            "more": 1,
        });
        let found = unknown::<Outer>(&value);
        let inner: &[&str] = &["one", "two"];
        let expected = [
            ("list[1].x", inner),
            ("more", &["name", "list", "way"]),
            ("name.tow", inner),
            ("way.packed.z", inner),
        ];
        let mut found: Vec<_> = found.iter().map(|one| (&*one.path, one.known)).collect();
        found.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_cannot_be_read_is_somebody_elses_business() {
        let lists = json!([{"one": 1}, [], "plain"]);
        let found = unknown::<Outer>(&lists);
        assert!(found.iter().all(|one| one.is_list && one.path.is_empty()));
        assert_eq!(found.len(), 1);
        for value in [
            json!(null),
            json!({"name": 1, "list": "x", "way": 7}),
            json!({"way": {"packed": 1, "plain": 2}}),
            json!({"way": {"packd": {}}}),
        ] {
            assert_eq!(unknown::<Outer>(&value), []);
        }
        let good = json!({"list": [], "way": "plain"});
        assert_eq!(unknown::<Outer>(&good), []);
    }
}
