//! A local file, opened once for header and data.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::config::ALIGNMENT_BYTES;
use crate::error::{Error, Result};
use crate::source::{Source, system};

/// What is looked up in the page cache at once: a page, or a part of one.
const PAGE_BYTES: u64 = 4096;

/// What must stay the same for the bytes to be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Identity {
    /// The number of its file system.
    pub(crate) fn device(&self) -> u64 {
        self.device
    }

    fn of(file: &File) -> io::Result<Self> {
        let facts = file.metadata()?;
        Ok(Self {
            device: facts.dev(),
            inode: facts.ino(),
            bytes: facts.size(),
            modified: (facts.mtime(), facts.mtime_nsec()),
        })
    }
}

/// A regular file on this machine.
#[derive(Debug)]
pub(crate) struct LocalFile {
    path: PathBuf,
    file: File,
    identity: Identity,
    direct: OnceLock<Option<File>>,
    looking: OnceLock<Option<File>>,
}

impl LocalFile {
    /// Opens a regular file; never blocks, as opening a FIFO otherwise would.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = opened.map_err(|error| Error::io(path, error))?;
        let facts = file.metadata().map_err(|error| Error::io(path, error))?;
        let kind = facts.file_type();
        if kind.is_dir() {
            return Err(Error::refused(
                path,
                libc::EISDIR,
                "Is a directory, which load_checkpoint loads",
            ));
        }
        if !kind.is_file() {
            let what = if kind.is_fifo() { "a FIFO" } else { "a device or socket" };
            let message = format!("Not a regular file but {what}");
            return Err(Error::refused(path, libc::ENODEV, &message));
        }
        let identity = Identity::of(&file).map_err(|error| Error::io(path, error))?;
        if identity.bytes == 0 && file.read_at(&mut [0], 0).is_ok_and(|count| count > 0) {
            return Err(Error::refused(path, libc::ENODEV, "Not a file but text of the kernel's"));
        }
        let (direct, looking) = (OnceLock::new(), OnceLock::new());
        Ok(Self { path: path.to_owned(), file, identity, direct, looking })
    }

    /// Opens a file again by its path; none where that names another by now, or nothing. An error
    /// where it is the same, and was written to since.
    pub(crate) fn open_again(path: &Path, identity: Identity) -> Result<Option<Self>> {
        let Ok(file) = Self::open(path) else { return Ok(None) };
        let now = file.identity;
        match (now.device, now.inode) == (identity.device, identity.inode) {
            true if now != identity => Err(written_to(path, identity, now)),
            same => Ok(same.then_some(file)),
        }
    }

    /// The descriptor for reads through the page cache.
    pub(crate) fn buffered(&self) -> &File {
        &self.file
    }

    /// The descriptor for reads past the page cache, where the file system has such.
    pub(crate) fn direct(&self) -> Option<&File> {
        self.direct.get_or_init(|| self.open_direct()).as_ref()
    }

    /// Whether the page cache holds a part of the file, by one look; none where nothing tells it.
    pub(crate) fn is_cached(&self, part: Range<u64>) -> Option<bool> {
        let bytes = part.end - part.start;
        let middle = (part.start + bytes / 2) & !(PAGE_BYTES - 1);
        if let Some(pages) = system::cached_pages(&self.file, middle, PAGE_BYTES) {
            return Some(pages > 0);
        }
        // A look of this kind brings its page into the cache: the next one must be at another.
        let place = part.start + RandomState::new().hash_one(()) % bytes.max(1);
        system::is_read_at_once(self.looking()?, place)
    }

    /// What tells this file from another, or from itself changed.
    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// The descriptor for looks into the page cache where the kernel tells its contents to others only.
    fn looking(&self) -> Option<&File> {
        let open = || {
            let file = self.open_once_more(0).ok()?;
            system::expect_random_reads(&file).ok().map(|()| file)
        };
        self.looking.get_or_init(open).as_ref()
    }

    /// Opens it past the cache. What statx says decides: some file systems accept the flag and read
    /// through the cache.
    fn open_direct(&self) -> Option<File> {
        let alignment = system::direct_alignment_bytes(&self.file)?;
        if alignment as usize > ALIGNMENT_BYTES {
            return None;
        }
        self.open_once_more(libc::O_DIRECT).ok()
    }

    /// Opens the same file once more, also when its name is another's by now.
    fn open_once_more(&self, flags: i32) -> io::Result<File> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        OpenOptions::new().read(true).custom_flags(flags).open(path)
    }
}

impl Source for LocalFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> u64 {
        self.identity.bytes
    }

    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(target, offset)
    }

    fn local(&self) -> Option<&LocalFile> {
        Some(self)
    }

    fn check_unchanged(&self) -> Result<()> {
        let now = Identity::of(&self.file).map_err(|error| Error::io(&self.path, error))?;
        if now == self.identity { Ok(()) } else { Err(written_to(&self.path, self.identity, now)) }
    }
}

fn written_to(path: &Path, before: Identity, now: Identity) -> Error {
    Error::Read {
        path: path.to_owned(),
        offset: 0,
        wanted: before.bytes,
        got: now.bytes,
        target: None,
        tensor: None,
        cause: "the file was written to, or touched, since it was opened; load it again".to_owned(),
        errno: None,
    }
}
