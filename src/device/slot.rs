//! A slot: one piece of huge-page, pre-faulted host memory, owned by one stage at a time.

use std::io;

use memmap2::{Advice, MmapMut};

use crate::config::{ALIGNMENT_BYTES, TABLE_BYTES};
use crate::device::cuda::Pin;

const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Memory that carries bytes from a reader to a device. Not `Clone`: whoever has it, has it alone.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Dropped before the memory that it pins.
    pin: Pin,
    memory: MmapMut,
    start: usize,
    bytes: usize,
}

impl Slot {
    /// Maps and touches memory that begins on a huge-page boundary. A child of fork does not
    /// inherit it: the child makes its own.
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        let whole = bytes + TABLE_BYTES;
        let mut memory = MmapMut::map_anon(whole + HUGE_PAGE_BYTES)?;
        let start = memory.as_ptr().align_offset(HUGE_PAGE_BYTES);
        // Advice that is refused costs speed alone.
        let _huge = memory.advise_range(Advice::HugePage, start, bytes);
        let _alone = memory.advise(Advice::DontFork);
        for page in memory[start..start + whole].chunks_mut(ALIGNMENT_BYTES) {
            page[0] = 0;
        }
        Ok(Self { pin: Pin::default(), memory, start, bytes })
    }

    /// The same, for copies that go through the driver's own staging memory.
    pub(crate) fn never_pinned(bytes: usize) -> io::Result<Self> {
        Ok(Self { pin: Pin::Unwanted, ..Self::new(bytes)? })
    }

    /// The bytes behind what is read, for tables of the pieces in it.
    pub(super) fn table(&self) -> &[u8] {
        let start = self.start + self.bytes;
        &self.memory[start..start + TABLE_BYTES]
    }

    /// The same bytes, to be filled.
    pub(super) fn table_mut(&mut self) -> &mut [u8] {
        let start = self.start + self.bytes;
        &mut self.memory[start..start + TABLE_BYTES]
    }

    /// Their address as the GPU sees it, where the slot is pinned.
    pub(super) fn table_address(&self) -> Option<u64> {
        Some(self.pin.device_address()? + self.bytes as u64)
    }

    /// Whether it is pinned, or could not be.
    pub(crate) fn pinned(&self) -> &Pin {
        &self.pin
    }

    /// Its state, and all of its memory.
    pub(super) fn pin_and_memory(&mut self) -> (&mut Pin, &mut [u8]) {
        let end = self.start + self.bytes + TABLE_BYTES;
        (&mut self.pin, &mut self.memory[self.start..end])
    }

    /// Its size.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What is in it.
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.bytes]
    }

    /// Its memory, to be filled.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.bytes]
    }
}

impl AsMut<[u8]> for Slot {
    fn as_mut(&mut self) -> &mut [u8] {
        self.as_mut_slice()
    }
}
