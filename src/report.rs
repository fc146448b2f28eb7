//! What a load did, in numbers, for `last_report()`.

use serde::Serialize;

/// Seconds of a load's phases.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Seconds {
    /// Opening the files and checking their headers.
    pub(crate) open: f64,
    /// Planning the reads.
    pub(crate) plan: f64,
    /// Reading and placing, or mapping.
    pub(crate) load: f64,
    /// From the call to its end.
    pub(crate) total: f64,
}

/// The numbers of one load.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Report {
    /// Files read.
    pub(crate) files: usize,
    /// Tensors delivered.
    pub(crate) tensors: usize,
    /// Bytes of these tensors.
    pub(crate) bytes: u64,
    /// Bytes read for them: what lies close between two of them is read as well; 0 where none is read.
    pub(crate) read_bytes: u64,
    /// Where the time went.
    pub(crate) seconds: Seconds,
    /// Where the tensors are: `cpu` or `cuda:N`.
    pub(crate) device: String,
    /// How bytes were read: `mmap`, `io_uring`, `pread`, `pread-direct`, or several joined by `+`.
    pub(crate) reader: String,
    /// Why so.
    pub(crate) reason: String,
    /// The share of the bytes that the page cache held, 0 to 1.
    pub(crate) cached_fraction: f64,
    /// Threads that worked beside the caller's.
    pub(crate) threads: usize,
    /// Slot memory lent to the load, in bytes.
    pub(crate) ring_bytes_peak: usize,
}
