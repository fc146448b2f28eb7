//! A slot: one piece of huge-page, pre-faulted host memory, owned by one stage at a time.

use std::io;
use std::ops::Range;

use memmap2::{Advice, MmapMut};

use crate::config::ALIGNMENT_BYTES;

const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Memory that carries bytes from a reader to a device. Not `Clone`: whoever has it, has it alone.
#[derive(Debug)]
pub(crate) struct Slot {
    memory: MmapMut,
    start: usize,
    bytes: usize,
}

impl Slot {
    /// Maps and touches memory that begins on a huge-page boundary. A child of fork does not
    /// inherit it: the child makes its own.
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        let mut memory = MmapMut::map_anon(bytes + HUGE_PAGE_BYTES)?;
        let start = memory.as_ptr().align_offset(HUGE_PAGE_BYTES);
        // Advice that is refused costs speed alone.
        let _huge = memory.advise_range(Advice::HugePage, start, bytes);
        let _alone = memory.advise(Advice::DontFork);
        for page in memory[start..start + bytes].chunks_mut(ALIGNMENT_BYTES) {
            page[0] = 0;
        }
        Ok(Self { memory, start, bytes })
    }

    /// Its size.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where it is, for the kernel to know it by.
    pub(crate) fn addresses(&self) -> Range<usize> {
        let start = self.as_slice().as_ptr().expose_provenance();
        start..start + self.bytes
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
