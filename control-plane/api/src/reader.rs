//! Reads a JSON value into a type: the one `Deserializer` of the control plane, for documents,
//! bodies of the admin API and its answers.
//!
//! It knows the path of what it reads, and notes the fields that the type does not have together
//! with those that it has. That there is one of it is also what keeps the build short: serde's
//! derived code is compiled anew for each deserializer that a type is read with, and the types of
//! documents number several hundred.

mod access;
mod unique;

use std::cell::RefCell;
use std::fmt::{self, Write as _};

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, Expected, Unexpected, Visitor,
};
use serde_json::{Error, Value, map};

use access::{Fields, Items, Variant};

pub use unique::parse;

/// A value that could not be read, or could with fields that are not known.
#[derive(Debug)]
pub struct Reading<T> {
    /// The value.
    pub value: Result<T, Misfit>,
    /// Fields that the type does not have, as far as the value was read.
    pub unknown: Vec<Unknown>,
}

/// Why a value does not fit its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// Where, as in `rules[0].matches[1].method`; empty for the value itself.
    pub path: String,
    /// What serde says.
    pub message: String,
    /// Whether it is a list in the place of fields: serde would take its items for the fields in
    /// their order. Then the fields that there are.
    pub list_for: Option<&'static [&'static str]>,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => f.write_str(&self.message),
            path => write!(f, "{path}: {}", self.message),
        }
    }
}

/// A field that the type does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// Where it is, as in `rules[0].matches[1].colour`.
    pub path: String,
    /// The fields that there are in that place.
    pub known: &'static [&'static str],
}

/// Reads a value.
pub fn read<T: DeserializeOwned>(value: &Value) -> Reading<T> {
    let notes = RefCell::default();
    let reader = Reader {
        value,
        place: &Place::Whole,
        known: &[],
        notes: &notes,
    };
    let read = T::deserialize(reader);
    let notes = notes.into_inner();
    Reading {
        value: read.map_err(|error| misfit(&error, notes.failed, notes.list_for)),
        unknown: notes.unknown,
    }
}

fn misfit(
    error: &Error,
    path: Option<String>,
    list_for: Option<&'static [&'static str]>,
) -> Misfit {
    Misfit {
        path: path.unwrap_or_default(),
        message: error.to_string(),
        list_for,
    }
}

/// What is noticed while a value is read.
#[derive(Debug, Default)]
struct Notes {
    unknown: Vec<Unknown>,
    /// The innermost path that was being read when reading failed.
    failed: Option<String>,
    list_for: Option<&'static [&'static str]>,
}

/// Where a value is: a list from the inside out.
enum Place<'p> {
    Whole,
    Field(&'p Self, &'p str),
    Item(&'p Self, usize),
}

impl Place<'_> {
    fn write(&self, path: &mut String) {
        match self {
            Self::Whole => {}
            Self::Field(parent, name) => {
                parent.write(path);
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
            }
            Self::Item(parent, index) => {
                parent.write(path);
                // Writing to a string does not fail.
                let _ = write!(path, "[{index}]");
            }
        }
    }

    fn path(&self) -> String {
        let mut path = String::new();
        self.write(&mut path);
        path
    }
}

/// A value within the value that is read.
#[derive(Clone, Copy)]
struct Reader<'a, 'p> {
    value: &'a Value,
    place: &'p Place<'p>,
    /// The fields of what this is a field of.
    known: &'static [&'static str],
    notes: &'p RefCell<Notes>,
}

impl<'a> Reader<'a, '_> {
    /// Reads a value within this one, and notes its path if that fails.
    fn inner<S: DeserializeSeed<'a>>(
        &self,
        place: &Place<'_>,
        value: &'a Value,
        known: &'static [&'static str],
        seed: S,
    ) -> Result<S::Value, Error> {
        let read = seed.deserialize(Reader {
            value,
            place,
            known,
            notes: self.notes,
        });
        if read.is_err() {
            self.failed(place);
        }
        read
    }

    fn failed(&self, place: &Place<'_>) {
        let mut notes = self.notes.borrow_mut();
        if notes.failed.is_none() {
            notes.failed = Some(place.path());
        }
    }

    #[cold]
    fn unfit(&self, expected: &dyn Expected) -> Error {
        let found = match self.value {
            Value::Null => Unexpected::Unit,
            Value::Bool(value) => Unexpected::Bool(*value),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => Unexpected::Unsigned(number),
                (None, Some(number)) => Unexpected::Signed(number),
                (None, None) => Unexpected::Float(number.as_f64().unwrap_or_default()),
            },
            Value::String(text) => Unexpected::Str(text),
            Value::Array(_) => Unexpected::Seq,
            Value::Object(_) => Unexpected::Map,
        };
        Error::invalid_type(found, expected)
    }

    fn read_fields<V: Visitor<'a>>(
        self,
        fields: &'a map::Map<String, Value>,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let mut access = Fields {
            rest: fields.iter(),
            next: None,
            known,
            of: self,
        };
        let read = visitor.visit_map(&mut access)?;
        if access.rest.len() > 0 {
            let fewer = &"fewer elements in map";
            return Err(Error::invalid_length(fields.len(), fewer));
        }
        Ok(read)
    }

    fn read_items<V: Visitor<'a>>(self, items: &'a [Value], visitor: V) -> Result<V::Value, Error> {
        let mut access = Items {
            rest: items.iter(),
            index: 0,
            of: self,
        };
        let read = visitor.visit_seq(&mut access)?;
        if access.rest.len() > 0 {
            let fewer = &"fewer elements in array";
            return Err(Error::invalid_length(items.len(), fewer));
        }
        Ok(read)
    }

    fn read_number<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Number(number) => number.deserialize_any(visitor),
            Value::Null
            | Value::Bool(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => Err(self.unfit(&visitor)),
        }
    }
}

/// Numbers are read by whatever visits them, which knows its range.
macro_rules! numbers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.read_number(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for Reader<'de, '_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => number.deserialize_any(visitor),
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(items) => self.read_items(items, visitor),
            Value::Object(fields) => self.read_fields(fields, &[], visitor),
        }
    }

    numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value.as_bool() {
            Some(value) => visitor.visit_bool(value),
            None => Err(self.unfit(&visitor)),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value.as_str() {
            Some(text) => visitor.visit_borrowed_str(text),
            None => Err(self.unfit(&visitor)),
        }
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(items) => self.read_items(items, visitor),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
                Err(self.unfit(&visitor))
            }
        }
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value.is_null() {
            true => visitor.visit_none(),
            false => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value.is_null() {
            true => visitor.visit_unit(),
            false => Err(self.unfit(&visitor)),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value.as_array() {
            Some(items) => self.read_items(items, visitor),
            None => Err(self.unfit(&visitor)),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value.as_object() {
            Some(fields) => self.read_fields(fields, &[], visitor),
            None => Err(self.unfit(&visitor)),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if let Some(fields) = self.value.as_object() {
            return self.read_fields(fields, known, visitor);
        }
        if self.value.is_array() {
            self.notes.borrow_mut().list_for = Some(known);
        }
        Err(self.unfit(&visitor))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let (name, content) = match self.value {
            Value::String(name) => (name, None),
            Value::Object(fields) => match (fields.len(), fields.iter().next()) {
                (1, Some((name, content))) => (name, Some(content)),
                _ => {
                    let one = &"map with a single key";
                    return Err(Error::invalid_value(Unexpected::Map, one));
                }
            },
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
                return Err(self.unfit(&"string or map"));
            }
        };
        visitor.visit_enum(Variant {
            name,
            content,
            of: self,
        })
    }

    /// Only fields that the type does not have are ignored.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.notes.borrow_mut().unknown.push(Unknown {
            path: self.place.path(),
            known: self.known,
        });
        visitor.visit_unit()
    }
}

#[cfg(test)]
mod tests;
