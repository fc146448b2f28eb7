//! A loaded tensor: it keeps its memory alive and knows its place in it.

use std::sync::Arc;

use crate::device::{Buffer, Mapping};
use crate::format::Dtype;

/// What a tensor's bytes lie in.
#[derive(Clone, Debug)]
pub(crate) enum Memory {
    /// A mapped file, and the tensor's offset in it.
    Mapped(Arc<Mapping>, usize),
    /// Memory of its own.
    Owned(Buffer),
}

/// How bytes are to be read.
#[derive(Clone, Debug)]
pub(crate) struct Form {
    /// The element type.
    pub(crate) dtype: Dtype,
    /// The dimensions, in elements of the format.
    pub(crate) shape: Vec<u64>,
}

impl Form {
    /// The size, which a checked header has seen to be no overflow.
    pub(crate) fn bytes(&self) -> u64 {
        let elements: u64 = self.shape.iter().product();
        elements * self.dtype.bits() / 8
    }
}

/// Bytes with a type and a shape.
#[derive(Debug)]
pub(crate) struct Tensor {
    /// Where the bytes are.
    pub(crate) memory: Memory,
    /// What they are.
    pub(crate) form: Form,
}

impl Memory {
    /// The address of the tensor's first byte.
    pub(crate) fn address(&self) -> *mut u8 {
        match self {
            Self::Mapped(mapping, offset) => mapping.address().wrapping_add(*offset),
            Self::Owned(buffer) => buffer.address(),
        }
    }
}
