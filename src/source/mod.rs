//! Where bytes live. A source is read at offsets; a local file can say more (descriptors, cache).

use std::path::Path;
use std::sync::Arc;
use std::{fmt, io};

pub(crate) mod file;
pub(crate) mod memory;
pub(crate) mod system;

#[cfg(test)]
pub(crate) mod faulty;

pub(crate) use file::LocalFile;

use crate::error::Result;

/// Bytes that can be read at offsets, from several threads at once.
pub(crate) trait Source: Send + Sync + fmt::Debug {
    /// What to call it in messages: the path, or a name in angle brackets.
    fn path(&self) -> &Path;

    /// Its length when it was opened.
    fn len(&self) -> u64;

    /// Reads at an offset; may give fewer bytes than asked, and gives none at the end.
    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<usize>;

    /// The local file behind it, which can be read directly and whose cache can be asked.
    fn local(&self) -> Option<&LocalFile> {
        None
    }

    /// An error if the bytes may be others than when it was opened.
    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

/// Opens what a path names.
pub(crate) fn open(path: &Path) -> Result<Arc<dyn Source>> {
    Ok(Arc::new(LocalFile::open(path)?))
}

/// Reads until `target` is full or the source ends; gives the bytes read.
pub(crate) fn read_full(source: &dyn Source, offset: u64, target: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = target.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match source.read_at(offset + done as u64, rest) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
