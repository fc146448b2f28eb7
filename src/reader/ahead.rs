//! Reads cold files into the page cache ahead of the mappings that a caller is about to touch: one
//! file after the other, in the order in which they were asked for. The bytes go to `/dev/null` inside
//! the kernel: a copy of them would cost more than the disk does.

use std::collections::{HashMap, VecDeque};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::Builder;

use crate::config::{READ_AHEAD_BYTES, memory_available_bytes};
use crate::device::Mapping;
use crate::process::PerProcess;
use crate::reader::choice::is_mostly_cached;
use crate::source::file::Identity;
use crate::source::{LocalFile, Source, system};

/// A file that is yet to be read; nothing of it is open meanwhile.
struct Cold {
    path: PathBuf,
    identity: Identity,
    mapping: Weak<Mapping>,
}

/// The files of one file system that are yet to be read, by a thread that ends with the last.
struct Line {
    files: VecDeque<Cold>,
    /// How much more is read before the line ends.
    bytes_left: u64,
}

/// The lines by the number of the file system: none waits for another's disk.
type Lines = HashMap<u64, Line>;

fn lines() -> MutexGuard<'static, Lines> {
    static LINES: PerProcess<Mutex<Lines>> = PerProcess::new();
    LINES.get(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a mapped file that is not in the page cache read in order, in the background, when those
/// before it on its file system are done. It is left when the mapping is gone, and all are when half of the available
/// memory was filled: more would drive out of the cache what nobody has touched yet. Nobody waits for
/// the thread. The file is opened by its name again; if that is another file by now, nothing is read.
pub(crate) fn read_ahead_if_cold(path: &Path, identity: Identity, mapping: &Arc<Mapping>) {
    match LocalFile::open_again(path, identity) {
        Ok(Some(file)) if !is_mostly_cached(&file) => {}
        _ => return,
    }
    mapping.want_huge_pages();
    let cold = Cold { path: path.to_owned(), identity, mapping: Arc::downgrade(mapping) };
    let device = identity.device();
    let mut lines = lines();
    if let Some(line) = lines.get_mut(&device) {
        return line.files.push_back(cold);
    }
    let thread = Builder::new().name("sst-ahead".to_owned()).spawn(move || read_all(device));
    // Without a thread the kernel's own read-ahead has to do.
    if thread.is_ok() {
        let bytes_left = memory_available_bytes() / 2;
        lines.insert(device, Line { files: VecDeque::from([cold]), bytes_left });
    }
}

/// Reads what stands in a line.
fn read_all(device: u64) {
    let mut read = 0;
    loop {
        let (cold, bytes_max) = {
            let mut lines = lines();
            let Some(line) = lines.get_mut(&device) else { return };
            line.bytes_left -= read;
            let next = line.files.pop_front().filter(|_| line.bytes_left > 0);
            let Some(next) = next else {
                lines.remove(&device);
                return;
            };
            (next, line.bytes_left)
        };
        read = match LocalFile::open_again(&cold.path, cold.identity) {
            Ok(Some(file)) => fill(&file, &cold.mapping, bytes_max),
            _ => 0,
        };
    }
}

/// Reads a file while it is mapped, at most so many bytes; tells how many.
fn fill(file: &LocalFile, mapping: &Weak<Mapping>, bytes_max: u64) -> u64 {
    let Ok(nowhere) = OpenOptions::new().write(true).open("/dev/null") else { return 0 };
    // A kernel that refuses reads all the same.
    let _advice_only = system::expect_reads_in_order(file.buffered());
    let (end, mut offset) = (file.len().min(bytes_max), 0);
    // Nothing is skipped, cached or not: the kernel reads ahead in ever larger folios only of who
    // reads in order, and small folios would halve the speed of the mapping.
    while offset < end && mapping.strong_count() > 0 {
        let bytes = (end - offset).min(READ_AHEAD_BYTES);
        match system::send(file.buffered(), offset, &nowhere, bytes) {
            Ok(sent) if sent > 0 => offset += sent as u64,
            Ok(_) | Err(_) => break,
        }
    }
    offset
}
