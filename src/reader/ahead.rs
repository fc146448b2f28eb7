//! Reads a cold file into the page cache ahead of the mapping that a caller is about to touch. The
//! bytes go to `/dev/null` inside the kernel: a copy of them would cost more than the disk does.

use std::fs::OpenOptions;
use std::sync::{Arc, Weak};
use std::thread::Builder;

use crate::config::READ_AHEAD_BYTES;
use crate::device::Mapping;
use crate::source::{LocalFile, Source, system};

/// Begins to read a mapped file in order, in the background. The thread ends when the file is in
/// the cache or the mapping is gone; it holds no lock and nobody waits for it.
pub(crate) fn read_ahead(file: LocalFile, mapping: &Arc<Mapping>) {
    mapping.want_huge_pages();
    let mapping = Arc::downgrade(mapping);
    // Without a thread the kernel's own read-ahead has to do.
    let _thread = Builder::new().name("sst-ahead".to_owned()).spawn(move || fill(&file, &mapping));
}

fn fill(file: &LocalFile, mapping: &Weak<Mapping>) {
    let Ok(nowhere) = OpenOptions::new().write(true).open("/dev/null") else { return };
    let mut offset = 0;
    // Nothing is skipped, cached or not: the kernel reads ahead in ever larger folios only of who
    // reads in order, and small folios would halve the speed of the mapping.
    while offset < file.len() && mapping.strong_count() > 0 {
        match system::send(file.buffered(), offset, &nowhere, READ_AHEAD_BYTES) {
            Ok(sent) if sent > 0 => offset += sent as u64,
            Ok(_) | Err(_) => return,
        }
    }
}
