//! A file mapped into memory: private, copy-on-write, shared with other processes until written.
#![expect(unsafe_code, reason = "mapping a file is unsafe by nature")]

use std::fs::File;
use std::io;

use memmap2::{Advice, MmapMut, MmapOptions};

/// A private, writable mapping of a whole file. As with upstream, a file that is truncated while
/// it is mapped makes access to the lost pages end the process.
#[derive(Debug)]
pub(crate) struct Mapping {
    memory: MmapMut,
}

impl Mapping {
    /// Maps the first `bytes` of a file. No swap is set aside for pages that may never be written,
    /// so that a file larger than memory can be mapped.
    pub(crate) fn new(file: &File, bytes: u64) -> io::Result<Self> {
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        let mut options = MmapOptions::new();
        options.len(bytes).no_reserve_swap();
        // SAFETY: the mapping is private, so our writes stay ours. Rust code never makes a
        // reference into it: tensors read and write it as the raw memory of another language.
        let memory = unsafe { options.map_copy(file) }?;
        Ok(Self { memory })
    }

    /// Asks for huge pages in the page cache when what is not in it yet is read. They make reading
    /// through the mapping twice as fast as small ones, now and in later loads.
    pub(crate) fn want_huge_pages(&self) {
        // A kernel that refuses reads all the same.
        let _advice_only = self.memory.advise(Advice::HugePage);
    }

    /// The address of its first byte.
    pub(crate) fn address(&self) -> *mut u8 {
        self.memory.as_ptr().cast_mut()
    }
}
