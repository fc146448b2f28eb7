//! The format's 22 element types: names and widths, nothing about torch.

/// An element type, by the format's own name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Dtype {
    Bool,
    F4,
    F6E2M3,
    F6E3M2,
    U8,
    I8,
    F8E5M2,
    F8E4M3,
    F8E8M0,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    I16,
    U16,
    F16,
    Bf16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

/// Every type with its name in the file and its width in bits, in declaration order.
const TABLE: [(Dtype, &str, u64); 22] = [
    (Dtype::Bool, "BOOL", 8),
    (Dtype::F4, "F4", 4),
    (Dtype::F6E2M3, "F6_E2M3", 6),
    (Dtype::F6E3M2, "F6_E3M2", 6),
    (Dtype::U8, "U8", 8),
    (Dtype::I8, "I8", 8),
    (Dtype::F8E5M2, "F8_E5M2", 8),
    (Dtype::F8E4M3, "F8_E4M3", 8),
    (Dtype::F8E8M0, "F8_E8M0", 8),
    (Dtype::F8E4M3Fnuz, "F8_E4M3FNUZ", 8),
    (Dtype::F8E5M2Fnuz, "F8_E5M2FNUZ", 8),
    (Dtype::I16, "I16", 16),
    (Dtype::U16, "U16", 16),
    (Dtype::F16, "F16", 16),
    (Dtype::Bf16, "BF16", 16),
    (Dtype::I32, "I32", 32),
    (Dtype::U32, "U32", 32),
    (Dtype::F32, "F32", 32),
    (Dtype::C64, "C64", 64),
    (Dtype::F64, "F64", 64),
    (Dtype::I64, "I64", 64),
    (Dtype::U64, "U64", 64),
];

/// The types of plain numbers that are converted to each other; the codes of quantised tensors are not.
pub(crate) const FLOATING: [Dtype; 4] = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::Bf16];

impl Dtype {
    /// Every type.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|(dtype, _, _)| *dtype)
    }

    /// The type of that name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|(_, known, _)| *known == name).map(|(dtype, _, _)| *dtype)
    }

    /// The name in the file.
    pub(crate) fn name(self) -> &'static str {
        TABLE[self as usize].1
    }

    /// The width of one element.
    pub(crate) fn bits(self) -> u64 {
        TABLE[self as usize].2
    }
}

#[cfg(test)]
mod tests {
    use super::{Dtype, TABLE};

    #[test]
    fn the_table_stands_in_declaration_order() {
        for (index, (dtype, name, bits)) in TABLE.iter().enumerate() {
            assert_eq!(*dtype as usize, index);
            assert_eq!(Dtype::from_name(name), Some(*dtype));
            assert_eq!((dtype.name(), dtype.bits()), (*name, *bits));
        }
        assert_eq!(Dtype::from_name("f32"), None);
    }

    #[test]
    fn widths_are_upstreams() {
        for (dtype, name, bits) in TABLE {
            let theirs: safetensors::Dtype =
                serde_json::from_value(serde_json::Value::from(name)).unwrap();
            assert_eq!(theirs.bitsize() as u64, bits, "{dtype:?}");
        }
    }
}
