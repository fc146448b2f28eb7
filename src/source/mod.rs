//! Where bytes live. A source is read at offsets; a local file can say more (descriptors, cache), and a
//! remote one has many ranges under way at once.

use std::path::Path;
use std::sync::Arc;
use std::{fmt, io};

pub(crate) mod address;
pub(crate) mod file;
pub(crate) mod memory;
pub(crate) mod remote;
pub(crate) mod system;

#[cfg(test)]
pub(crate) mod faulty;

pub(crate) use address::Address;
pub(crate) use file::LocalFile;

use crate::error::{Error, Result};
use crate::source::remote::{Opened, RemoteFile};

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

    /// The remote file behind it, whose ranges are asked for by many requests at once.
    fn remote(&self) -> Option<&RemoteFile> {
        None
    }

    /// An error if the bytes may be others than when it was opened.
    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

/// Opens what addresses name, the remote files all at once; an error is of the first that fails.
pub(crate) fn open_all(addresses: &[Address]) -> Result<Vec<Arc<dyn Source>>> {
    let far: Vec<&Address> = addresses.iter().filter(|address| address.is_remote()).collect();
    let mut far = remote::open_all(&far)?.into_iter().peekable();
    let open = |address: &Address| -> Result<Arc<dyn Source>> {
        match far.next_if(|_| address.is_remote()) {
            Some(Opened::Remote(file)) => Ok(Arc::new(file)),
            Some(Opened::Kept(file)) => Ok(Arc::new(file)),
            None => Ok(Arc::new(LocalFile::open(address.path())?)),
        }
    };
    addresses.iter().map(open).collect()
}

/// Opens what an address names.
pub(crate) fn open(address: &Address) -> Result<Arc<dyn Source>> {
    let opened = open_all(std::slice::from_ref(address))?;
    opened.into_iter().next().ok_or_else(|| Error::Internal("nothing was opened".to_owned()))
}

/// All bytes of a source that is expected to be small.
pub(crate) fn read_all(source: &dyn Source, bytes_max: usize) -> Result<Vec<u8>> {
    let bytes = usize::try_from(source.len()).unwrap_or(usize::MAX);
    if bytes > bytes_max {
        let message = format!("{bytes} bytes, where {bytes_max} are the most");
        return Err(Error::refused(source.path(), libc::EFBIG, &message));
    }
    let mut all = vec![0; bytes];
    let count = read_full(source, 0, &mut all).map_err(|error| Error::io(source.path(), error))?;
    all.truncate(count);
    Ok(all)
}

/// Reads until `target` is full or the source ends; gives the bytes read.
pub(crate) fn read_full(source: &dyn Source, offset: u64, target: &mut [u8]) -> io::Result<usize> {
    let (done, result) = read_on(source, offset, target);
    result.map(|()| done)
}

/// Reads until `target` is full, the source ends, or a read fails; gives the bytes that came, and why no
/// more did.
pub(crate) fn read_on(
    source: &dyn Source,
    offset: u64,
    target: &mut [u8],
) -> (usize, io::Result<()>) {
    let mut done = 0;
    while let Some(rest) = target.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match source.read_at(offset + done as u64, rest) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (done, Err(error)),
        }
    }
    (done, Ok(()))
}
