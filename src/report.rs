//! What a load did, in numbers, for `last_report()`.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use crate::timeline::{Busy, Timeline};

/// Seconds of a load's phases.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Seconds {
    /// Opening the files and checking their headers.
    pub(crate) open: f64,
    /// Planning the reads.
    pub(crate) plan: f64,
    /// Reading and placing.
    pub(crate) load: f64,
    /// Making Python's tensors of what was read or is mapped.
    pub(crate) tensors: f64,
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
    /// What was under way in the seconds of the load, for how long.
    pub(crate) busy: Busy,
    /// Where the tensors are: `cpu` or `cuda:N`.
    pub(crate) device: String,
    /// Whether the bytes came over a network.
    #[serde(skip)]
    pub(crate) remote: bool,
    /// How bytes were read: `mmap`, `io_uring`, `pread`, `pread-direct`, `network`, or several joined by
    /// `+`.
    pub(crate) reader: String,
    /// Why so.
    pub(crate) reason: String,
    /// The share of the bytes that the page cache held, 0 to 1.
    pub(crate) cached_fraction: f64,
    /// Threads that worked beside the caller's.
    pub(crate) threads: usize,
    /// Slot memory lent to the load, in bytes.
    pub(crate) ring_bytes_peak: usize,
    /// The files, by number.
    #[serde(skip)]
    pub(crate) paths: Vec<PathBuf>,
    /// When each read was where; none where nothing was read.
    #[serde(skip)]
    pub(crate) timeline: Option<Arc<Timeline>>,
}

/// What a load can be bound by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// Ranges of remote files.
    Network,
    /// Reads past the page cache.
    Disk,
    /// Reads from the page cache.
    PageCache,
    /// Copies to a GPU.
    Link,
    /// Copies to memory of the host.
    HostCopy,
    /// Tensors as objects: their memory and their making.
    Python,
    /// The caller, who takes tensors as they come.
    Caller,
    /// Nothing was read: tensors are mapped.
    Mapping,
    /// Nothing was to be read: no tensor has bytes.
    Nothing,
}

impl Bound {
    /// In words, which are the keys of ceilings as well.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Disk => "disk",
            Self::PageCache => "page cache",
            Self::Link => "link",
            Self::HostCopy => "CPU copy",
            Self::Python => "Python",
            Self::Caller => "caller",
            Self::Mapping => "mapping",
            Self::Nothing => "nothing",
        }
    }
}

impl Report {
    /// What was under way longest, and for how many seconds.
    pub(crate) fn bound(&self) -> (Bound, f64) {
        let Busy { reading, placing, allocating, delivering, held_back } = self.busy;
        if self.timeline.is_none() {
            return (Bound::Mapping, self.seconds.total);
        }
        if self.read_bytes == 0 {
            return (Bound::Nothing, self.seconds.total);
        }
        let source = match self.cached_fraction {
            _ if self.remote => Bound::Network,
            cached if cached < 0.5 => Bound::Disk,
            _ => Bound::PageCache,
        };
        let copies = if self.device == "cpu" { Bound::HostCopy } else { Bound::Link };
        let shares = [
            (source, reading),
            (copies, placing),
            (Bound::Python, allocating + delivering + self.seconds.tensors),
            (Bound::Caller, held_back),
        ];
        let longest = shares.into_iter().max_by(|one, other| one.1.total_cmp(&other.1));
        longest.unwrap_or((Bound::Mapping, 0.0))
    }

    /// The time line in the trace event format of Chrome; none where nothing was read.
    pub(crate) fn trace(&self) -> Option<Value> {
        let timeline = self.timeline.as_ref().filter(|_| self.read_bytes > 0)?;
        Some(timeline.trace(&self.paths, &self.device))
    }
}
