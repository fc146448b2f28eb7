//! What the kernels that place and convert pieces read: tables of where each is, and where it goes.

use crate::device::cuda::kernels::{Conversion, Kernel, PIECE_BYTES};
use crate::device::{Buffer, Placement};
use crate::error::{Error, Result};

/// The tables of a slot's pieces, one behind the other: to be copied, and to be converted.
pub(super) struct Tables {
    scattered: usize,
    converted: usize,
    /// How long they are together.
    pub(super) bytes: usize,
}

impl Tables {
    /// Writes them; pieces lie in staging memory as they lie in the slot.
    pub(super) fn write(table: &mut [u8], staging: u64, pieces: &[&Placement]) -> Result<Self> {
        let mut tables = Self { scattered: 0, converted: 0, bytes: 0 };
        let mut words = table.chunks_exact_mut(8);
        let mut append = |values: &[u64]| {
            for (word, value) in words.by_ref().take(values.len()).zip(values) {
                word.copy_from_slice(&value.to_le_bytes());
                tables.bytes += 8;
            }
        };
        let source = |piece: &Placement| staging + piece.slot_offset as u64;
        for piece in pieces.iter().filter(|piece| conversion_of(piece).is_none()) {
            append(&[address_of(piece)?, source(piece), piece.bytes as u64]);
            tables.scattered += 1;
        }
        for piece in pieces {
            let Some(conversion) = conversion_of(piece) else { continue };
            let elements = (piece.bytes / conversion.width()) as u64;
            append(&[address_of(piece)?, source(piece), elements, conversion.kind()]);
            tables.converted += 1;
        }
        Ok(tables)
    }

    /// Which kernels have something to do, where their tables begin, and how long these are.
    pub(super) fn launches(&self) -> impl Iterator<Item = (Kernel, u64, usize)> {
        let behind = (self.scattered * PIECE_BYTES) as u64;
        [(Kernel::Scatter, 0, self.scattered), (Kernel::Cast, behind, self.converted)]
            .into_iter()
            .filter(|&(_, _, count)| count > 0)
    }
}

/// Stretches of a slot, from and to, that hold small pieces side by side.
pub(super) fn runs(pieces: &[&Placement]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for piece in pieces {
        let end = piece.slot_offset + piece.bytes;
        match runs.last_mut() {
            Some(run) if run.1 == piece.slot_offset => run.1 = end,
            _ => runs.push((piece.slot_offset, end)),
        }
    }
    runs
}

/// How a piece is converted on its way.
pub(super) fn conversion_of(piece: &Placement) -> Option<Conversion> {
    match &piece.buffer {
        Buffer::Cuda(buffer) => buffer.conversion(),
        Buffer::Host(_) => None,
    }
}

/// The device address of a piece's place in its tensor.
pub(super) fn address_of(piece: &Placement) -> Result<u64> {
    // In units of the file, and of the tensor; converted elements are two bytes.
    let width = conversion_of(piece).map_or(2, Conversion::width);
    let placed = |bytes: usize| bytes / width * 2 + bytes % width;
    match &piece.buffer {
        Buffer::Cuda(buffer)
            if placed(piece.buffer_offset + piece.bytes) <= buffer.bytes()
                && (width == 2 || (piece.buffer_offset | piece.bytes).is_multiple_of(width)) =>
        {
            Ok(buffer.address() + placed(piece.buffer_offset) as u64)
        }
        _ => Err(Error::Internal("a piece outside its tensor's device memory".to_owned())),
    }
}
