//! Reads a cold file into the page cache ahead of the mapping that a caller is about to touch.

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
    let mut scratch = vec![0; READ_AHEAD_BYTES];
    let mut offset = 0;
    while offset < file.len() && mapping.strong_count() > 0 {
        let last = (offset + READ_AHEAD_BYTES as u64).min(file.len()) - 1;
        let cached = |place| system::is_cached(file.buffered(), place) == Some(true);
        if !(cached(offset) && cached(last)) && file.read_at(offset, &mut scratch).is_err() {
            return;
        }
        offset += READ_AHEAD_BYTES as u64;
    }
}
