//! What is within a value: fields, items, variants.

use std::slice;

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, MapAccess, SeqAccess, Unexpected,
    VariantAccess, Visitor,
};
use serde_json::{Error, Value, map};

use super::{Place, Reader};

/// The fields of an object, one after the other.
pub(super) struct Fields<'a, 'p> {
    pub(super) rest: map::Iter<'a>,
    pub(super) next: Option<(&'a str, &'a Value)>,
    pub(super) known: &'static [&'static str],
    pub(super) of: Reader<'a, 'p>,
}

impl<'de> MapAccess<'de> for &mut Fields<'de, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some((name, value)) = self.rest.next() else {
            return Ok(None);
        };
        self.next = Some((name, value));
        seed.deserialize(BorrowedStrDeserializer::new(name))
            .map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((name, value)) = self.next.take() else {
            return Err(Error::custom("a value before its name"));
        };
        let place = Place::Field(self.of.place, name);
        self.of.inner(&place, value, self.known, seed)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

/// The items of a list, one after the other.
pub(super) struct Items<'a, 'p> {
    pub(super) rest: slice::Iter<'a, Value>,
    pub(super) index: usize,
    pub(super) of: Reader<'a, 'p>,
}

impl<'de> SeqAccess<'de> for &mut Items<'de, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some(value) = self.rest.next() else {
            return Ok(None);
        };
        let place = Place::Item(self.of.place, self.index);
        self.index += 1;
        self.of.inner(&place, value, &[], seed).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

/// A variant of an enum, with what it holds.
pub(super) struct Variant<'a, 'p> {
    pub(super) name: &'a str,
    pub(super) content: Option<&'a Value>,
    pub(super) of: Reader<'a, 'p>,
}

impl<'de, 'p> EnumAccess<'de> for Variant<'de, 'p> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let name = BorrowedStrDeserializer::<Error>::new(self.name);
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> Variant<'de, '_> {
    /// Reads what a variant holds; `expected` says what that is, should there be nothing.
    fn content<R>(
        &self,
        expected: &'static str,
        read: impl FnOnce(Reader<'de, '_>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let Some(value) = self.content else {
            return Err(Error::invalid_type(Unexpected::UnitVariant, &expected));
        };
        let place = Place::Field(self.of.place, self.name);
        let read = read(Reader {
            value,
            place: &place,
            known: &[],
            notes: self.of.notes,
        });
        if read.is_err() {
            self.of.failed(&place);
        }
        read
    }
}

impl<'de> VariantAccess<'de> for Variant<'de, '_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        if self.content.is_none_or(Value::is_null) {
            return Ok(());
        }
        self.content("unit", |reader| Err(reader.unfit(&"unit")))
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        self.content("newtype variant", |reader| seed.deserialize(reader))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Error> {
        self.content("tuple variant", |reader| reader.deserialize_seq(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.content("struct variant", |reader| {
            reader.deserialize_struct("", fields, visitor)
        })
    }
}
