//! Visitors that fill the table of a header straight from its JSON text. Where serde would accept or
//! refuse something else than upstream's buffered reading does, a comment says so.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess,
    Visitor,
};

use crate::format::dtype::Dtype;
use crate::format::header::{Entry, Header, Span, span};

/// Fills the table from the outermost object.
pub(super) struct TableSeed<'table>(pub(super) &'table mut Header);

impl<'de> DeserializeSeed<'de> for TableSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TableSeed<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("struct HashMetadata")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut metadata_seen = false;
        while let Some(name) = map.next_key_seed(TextSeed(self.0))? {
            if self.0.text(name) == "__metadata__" {
                if std::mem::replace(&mut metadata_seen, true) {
                    return Err(A::Error::duplicate_field("__metadata__"));
                }
                map.next_value_seed(MetadataSeed(self.0))?;
            } else {
                let (dtype, shape, (begin, end)) = map.next_value_seed(EntrySeed(self.0))?;
                self.0.entries.push(Entry { begin, end, name, shape, dtype });
            }
        }
        Ok(())
    }
}

/// A string, put into the arena.
struct TextSeed<'table>(&'table mut Header);

impl<'de> DeserializeSeed<'de> for TextSeed<'_> {
    type Value = Span;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Span, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for TextSeed<'_> {
    type Value = Span;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Span, E> {
        Ok(self.0.push_text(text))
    }
}

/// `__metadata__`: null, or an object of strings.
struct MetadataSeed<'table>(&'table mut Header);

impl<'de> DeserializeSeed<'de> for MetadataSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for MetadataSeed<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a map")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut pairs = Vec::new();
        while let Some(key) = map.next_key_seed(TextSeed(self.0))? {
            pairs.push((key, map.next_value_seed(TextSeed(self.0))?));
        }
        self.0.metadata = Some(pairs);
        Ok(())
    }
}

const FIELDS: &[&str] = &["dtype", "shape", "data_offsets"];

/// One tensor's value: an object of three fields, or, as serde's derive allows, an array of three.
struct EntrySeed<'table>(&'table mut Header);

type EntryValue = (Dtype, Span, (u64, u64));

impl<'de> DeserializeSeed<'de> for EntrySeed<'_> {
    type Value = EntryValue;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<EntryValue, D::Error> {
        json.deserialize_struct("TensorInfo", FIELDS, self)
    }
}

impl<'de> Visitor<'de> for EntrySeed<'_> {
    type Value = EntryValue;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("struct TensorInfo")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<EntryValue, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(field) = map.next_key::<Field>()? {
            match field {
                Field::Dtype => once("dtype", &mut dtype, || map.next_value::<DtypeValue>())?,
                Field::Shape => {
                    once("shape", &mut shape, || map.next_value_seed(ShapeSeed(self.0)))?;
                }
                Field::Offsets => once("data_offsets", &mut offsets, || map.next_value())?,
                Field::Unknown => {
                    map.next_value::<Validated>()?;
                }
            }
        }
        Ok((
            dtype.ok_or_else(|| A::Error::missing_field("dtype"))?.0,
            shape.ok_or_else(|| A::Error::missing_field("shape"))?,
            offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?,
        ))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<EntryValue, A::Error> {
        let missing = |index| A::Error::invalid_length(index, &"struct TensorInfo with 3 elements");
        let dtype: DtypeValue = items.next_element()?.ok_or_else(|| missing(0))?;
        let shape = items.next_element_seed(ShapeSeed(self.0))?.ok_or_else(|| missing(1))?;
        let offsets = items.next_element()?.ok_or_else(|| missing(2))?;
        Ok((dtype.0, shape, offsets))
    }
}

/// Reads a field that may stand once only.
fn once<T, E: serde::de::Error>(
    field: &'static str,
    value: &mut Option<T>,
    read: impl FnOnce() -> Result<T, E>,
) -> Result<(), E> {
    if value.is_some() {
        return Err(E::duplicate_field(field));
    }
    *value = Some(read()?);
    Ok(())
}

/// The name of a field of a tensor's value.
enum Field {
    Dtype,
    Shape,
    Offsets,
    Unknown,
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct FieldVisitor;
        impl Visitor<'_> for FieldVisitor {
            type Value = Field;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("field identifier")
            }

            fn visit_str<E>(self, name: &str) -> Result<Field, E> {
                Ok(match name {
                    "dtype" => Field::Dtype,
                    "shape" => Field::Shape,
                    "data_offsets" => Field::Offsets,
                    _ => Field::Unknown,
                })
            }
        }
        json.deserialize_identifier(FieldVisitor)
    }
}

/// A type's name, or, as serde's derive allows, an object of that one key with null.
struct DtypeValue(Dtype);

impl<'de> Deserialize<'de> for DtypeValue {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct DtypeVisitor;
        impl<'de> Visitor<'de> for DtypeVisitor {
            type Value = DtypeValue;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("string or map")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<DtypeValue, E> {
                let known = Dtype::from_name(name).map(DtypeValue);
                known.ok_or_else(|| E::custom(format_args!("unknown variant `{name}`")))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<DtypeValue, A::Error> {
                let single = || A::Error::custom("expected map with a single key");
                let dtype: DtypeValue = map.next_key()?.ok_or_else(single)?;
                map.next_value::<()>()?;
                if map.next_key::<IgnoredAny>()?.is_some() { Err(single()) } else { Ok(dtype) }
            }
        }
        json.deserialize_any(DtypeVisitor)
    }
}

/// An array of dimensions, put into the arena.
struct ShapeSeed<'table>(&'table mut Header);

impl<'de> DeserializeSeed<'de> for ShapeSeed<'_> {
    type Value = Span;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Span, D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ShapeSeed<'_> {
    type Value = Span;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Span, A::Error> {
        let start = self.0.dimensions.len();
        while let Some(dimension) = items.next_element()? {
            self.0.dimensions.push(dimension);
        }
        Ok(span(start, self.0.dimensions.len().saturating_sub(start)))
    }
}

/// Any JSON value, checked as strictly as upstream's buffering does (`serde_json` skips ignored
/// values without looking at nesting, surrogates or the range of numbers).
struct Validated;

impl<'de> Deserialize<'de> for Validated {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct ValidatedVisitor;
        impl<'de> Visitor<'de> for ValidatedVisitor {
            type Value = Validated;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("any value")
            }

            fn visit_bool<E>(self, _: bool) -> Result<Validated, E> {
                Ok(Validated)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Validated, E> {
                Ok(Validated)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Validated, E> {
                Ok(Validated)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Validated, E> {
                Ok(Validated)
            }

            fn visit_str<E>(self, _: &str) -> Result<Validated, E> {
                Ok(Validated)
            }

            fn visit_unit<E>(self) -> Result<Validated, E> {
                Ok(Validated)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Validated, A::Error> {
                while items.next_element::<Validated>()?.is_some() {}
                Ok(Validated)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Validated, A::Error> {
                while map.next_entry::<Validated, Validated>()?.is_some() {}
                Ok(Validated)
            }
        }
        json.deserialize_any(ValidatedVisitor)
    }
}
