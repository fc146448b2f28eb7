//! Bytes that are in memory already.

use std::io;
use std::path::Path;

use crate::source::Source;

/// A copy of bytes the caller gave.
#[derive(Debug)]
pub(crate) struct MemorySource(pub(crate) Vec<u8>);

impl Source for MemorySource {
    fn path(&self) -> &Path {
        Path::new("<bytes in memory>")
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let rest = &self.0[start..];
        let count = rest.len().min(target.len());
        target[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}
