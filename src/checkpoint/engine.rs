//! One load through the engine: chooses sizes, lends slots, runs the pipeline, reports.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::config::{
    LOAD_SLOTS_MAX, ReaderChoice, SLOT_BYTES, SLOTS_MIN, WARM_CHUNK_BYTES, config,
    last_level_cache_bytes,
};
use crate::device::Destination;
use crate::error::{Error, Result};
use crate::pipeline::{Caller, Load};
use crate::plan::{Plan, Wanted};
use crate::reader::choice::is_mostly_cached;
use crate::reader::{CachePolicy, ChoosingReader, Outlook};
use crate::report::{Report, Seconds};
use crate::ring::Ring;
use crate::source::Source;

/// How to read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Which reader.
    pub(crate) reader: ReaderChoice,
    /// What shall be in the page cache afterwards.
    pub(crate) cache: CachePolicy,
    /// How many bytes of targets, in their order, are read in file order before the next ones are.
    pub(crate) window_bytes: u64,
}

impl Options {
    /// The reader that the environment asks for, with a cache policy; everything in file order.
    pub(crate) fn with_cache(cache: CachePolicy) -> Self {
        Self { reader: config().reader, cache, window_bytes: u64::MAX }
    }
}

/// Reads the wanted ranges to where they go.
pub(crate) fn run(
    sources: &Arc<[Arc<dyn Source>]>,
    wanted: Vec<Wanted>,
    options: Options,
    to: Destination<'_>,
    caller: &mut dyn Caller,
) -> Result<Report> {
    let began = Instant::now();
    let (tensors, files) = (wanted.len(), sources.len());
    let bytes = wanted.iter().map(Wanted::bytes).sum();
    let (chunk_bytes, slots_max) = sizes(sources, bytes);
    let source_bytes: Vec<u64> = sources.iter().map(|source| source.len()).collect();
    let plan = Plan::new(wanted, &source_bytes, chunk_bytes, options.window_bytes);
    let planned = began.elapsed().as_secs_f64();
    let slots = slots_max.min(plan.reads.len());
    let lease = Ring::of_process().lend(slots);
    let mut lease = lease.map_err(|error| Error::io(Path::new("<slot memory>"), error))?;
    let outlook = Outlook { bytes, reads: plan.reads.len() };
    let mut reader =
        ChoosingReader::new(Arc::clone(sources), options.reader, options.cache, outlook);
    let Destination { device, allocator } = to;
    let to = Destination { device: &mut *device, allocator: &mut *allocator };
    Load { plan: &plan, sources, reader: &mut reader, to, lease: &mut lease, caller }.run()?;
    let total = began.elapsed().as_secs_f64();
    Ok(Report {
        files,
        tensors,
        bytes,
        read_bytes: plan.reads.iter().map(|read| read.bytes as u64).sum(),
        seconds: Seconds { open: 0.0, plan: planned, load: total - planned, total },
        device: device.name(),
        reader: reader.names(),
        reason: reader.reason(),
        cached_fraction: reader.cached_fraction(),
        threads: reader.threads() + device.threads(),
        ring_bytes_peak: lease.bytes(),
    })
}

/// Chunk size and number of slots. What the page cache holds is copied in small chunks through
/// few slots, which then stay in the last-level cache; a disk wants large reads and many.
fn sizes(sources: &[Arc<dyn Source>], bytes: u64) -> (usize, usize) {
    if bytes <= WARM_CHUNK_BYTES as u64 {
        return (SLOT_BYTES, LOAD_SLOTS_MAX);
    }
    let mut cached = sources.iter().map(|source| source.local().is_none_or(is_mostly_cached));
    if cached.all(|cached| cached) {
        let fit = last_level_cache_bytes() / 2 / WARM_CHUNK_BYTES;
        (WARM_CHUNK_BYTES, fit.clamp(SLOTS_MIN, LOAD_SLOTS_MAX))
    } else {
        (SLOT_BYTES, LOAD_SLOTS_MAX)
    }
}
