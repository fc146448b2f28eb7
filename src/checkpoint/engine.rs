//! One load through the engine: chooses sizes, lends slots, runs the pipeline, reports.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use sha2::Sha256;

use crate::config::{
    CACHED_SLOTS_MAX, GAP_BYTES_MAX, LOAD_BYTES_MAX, LOAD_RING_SHARE, LOAD_RUNS_MAX, LOAD_SLOTS,
    LOAD_SLOTS_MAX, NEW_SLOT_WORTH_BYTES, ReaderChoice, SLOT_BYTES, SLOTS_MIN, WARM_CHUNK_BYTES,
    WARM_CHUNK_BYTES_MAX, alone_bytes_max, config, last_level_cache_bytes,
};
use crate::device::Destination;
use crate::digest::{Digests, Hasher};
use crate::error::{Error, Result};
use crate::pipeline::{Caller, Load};
use crate::plan::{Chunks, Plan, Wanted};
use crate::reader::choice::is_mostly_cached;
use crate::reader::digesting::DigestingReader;
use crate::reader::{CachePolicy, ChoosingReader, Outlook};
use crate::report::{Report, Seconds};
use crate::ring::Ring;
use crate::source::{LocalFile, Source};

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
    Ok(run_digesting(Task::new(sources, wanted, options), to, caller)?.0)
}

/// What is to be read, and how.
pub(crate) struct Task<'load, H: Hasher = Sha256> {
    /// From where.
    pub(crate) sources: &'load Arc<[Arc<dyn Source>]>,
    /// What.
    pub(crate) wanted: Vec<Wanted>,
    /// How.
    pub(crate) options: Options,
    /// What is to be made of each source's bytes as they pass; empty for nothing.
    digests: Vec<Digests<H>>,
}

impl<'load> Task<'load> {
    /// Bytes to be read, and nothing made of them.
    pub(crate) fn new(
        sources: &'load Arc<[Arc<dyn Source>]>,
        wanted: Vec<Wanted>,
        options: Options,
    ) -> Self {
        Self { sources, wanted, options, digests: Vec::new() }
    }

    /// The same, with digests of each source.
    pub(crate) fn digesting<H: Hasher>(self, digests: Vec<Digests<H>>) -> Task<'load, H> {
        let Self { sources, wanted, options, .. } = self;
        Task { sources, wanted, options, digests }
    }
}

/// The same, and gives the digests of each source.
pub(crate) fn run_digesting<H: Hasher>(
    task: Task<'_, H>,
    to: Destination<'_>,
    caller: &mut dyn Caller,
) -> Result<(Report, Vec<Vec<H::Figure>>)> {
    let Task { sources, wanted, options, digests } = task;
    let began = Instant::now();
    let (tensors, files) = (wanted.len(), sources.len());
    let bytes = check_size(&wanted, sources)?;
    let remote = sources.iter().any(|source| source.remote().is_some());
    let cached = !remote && are_cached(sources, &wanted);
    let (chunk_bytes, slots_max) = sizes(cached, bytes);
    let source_bytes: Vec<u64> = sources.iter().map(|source| source.len()).collect();
    let chunks = match one_small(&wanted) {
        Some(bytes) if cached => Chunks::of_one_small(bytes),
        _ if remote => Chunks::equal(chunk_bytes),
        _ => Chunks::growing(chunk_bytes),
    };
    let plan = Plan::new(wanted, &source_bytes, chunks, options.window_bytes);
    let planned = began.elapsed().as_secs_f64();
    let read_bytes: u64 = plan.reads.iter().map(|read| read.bytes as u64).sum();
    let worth = usize::try_from(read_bytes / NEW_SLOT_WORTH_BYTES).unwrap_or(usize::MAX);
    // Two at least: one is filled while the other is emptied.
    let (enough, more) = if cached { (2, worth) } else { (usize::MAX, 0) };
    let lease = Ring::of_process().lend(slots_max.min(plan.reads.len()), enough, more);
    let mut lease = lease.map_err(|error| Error::io(Path::new("<slot memory>"), error))?;
    let outlook = Outlook { bytes: read_bytes, reads: plan.reads.len() };
    let chooser = ChoosingReader::new(Arc::clone(sources), options.reader, options.cache, outlook);
    let mut reader = DigestingReader::new(chooser, sources, digests);
    let Destination { device, allocator } = to;
    let to = Destination { device: &mut *device, allocator: &mut *allocator };
    let own: &mut dyn Caller = &mut *caller;
    let parts =
        Load { plan: &plan, sources, reader: &mut reader, to, lease: &mut lease, caller: own };
    let timeline = parts.run()?;
    let digests = reader.finish(&mut || caller.check(bytes))?;
    let chooser = reader.inner();
    let total = began.elapsed().as_secs_f64();
    let report = Report {
        files,
        tensors,
        bytes,
        read_bytes,
        seconds: Seconds { plan: planned, load: total - planned, total, ..Seconds::default() },
        busy: timeline.busy(),
        device: device.name(),
        remote,
        reader: chooser.names(),
        reason: chooser.reason(),
        cached_fraction: chooser.cached_fraction(),
        threads: chooser.threads() + device.threads(),
        ring_bytes_peak: lease.bytes(),
        paths: sources.iter().map(|source| source.path().to_owned()).collect(),
        timeline: Some(Arc::new(timeline)),
    };
    Ok((report, digests))
}

/// The bytes of a load, or an error. A header may promise any number, and a plan takes memory for each
/// read and each row that is read alone.
pub(crate) fn check_size(wanted: &[Wanted], sources: &[Arc<dyn Source>]) -> Result<u64> {
    let bytes = wanted.iter().map(Wanted::bytes).fold(0, u64::saturating_add);
    let runs = wanted.iter().map(|wanted| wanted.runs(GAP_BYTES_MAX)).fold(0, u64::saturating_add);
    let message = if bytes > LOAD_BYTES_MAX {
        format!("tensors of {bytes} bytes, where {LOAD_BYTES_MAX} are the most of one load")
    } else if runs > LOAD_RUNS_MAX {
        format!(
            "{runs} stretches apart from each other, where {LOAD_RUNS_MAX} are the most of one load"
        )
    } else {
        return Ok(bytes);
    };
    let largest = sources.iter().max_by_key(|source| source.len());
    let path = largest.map_or(Path::new("<nothing>"), |source| source.path());
    Err(Error::refused(path, libc::EFBIG, &message))
}

/// The bytes to read, of a single small target, which its caller reads and copies: threads take as long to
/// start.
pub(crate) fn one_small(wanted: &[Wanted]) -> Option<u64> {
    let [only] = wanted else { return None };
    let run = only.first_run(GAP_BYTES_MAX);
    let bytes = only.runs(GAP_BYTES_MAX).saturating_mul(run.end - run.start);
    (bytes <= alone_bytes_max()).then_some(bytes)
}

/// Whether the page cache holds what is wanted; by one look where that is one small tensor.
fn are_cached(sources: &[Arc<dyn Source>], wanted: &[Wanted]) -> bool {
    if let [only] = wanted
        && one_small(wanted).is_some()
    {
        let file = sources[only.shard].local();
        let look = |file: &LocalFile| file.is_cached(only.first_run(GAP_BYTES_MAX));
        return file.and_then(look).unwrap_or(true);
    }
    sources.iter().all(|source| source.local().is_none_or(is_mostly_cached))
}

/// Chunk size and number of slots. What the page cache holds is copied in small chunks through
/// slots that fit half of the last-level cache; a disk wants large reads and many.
pub(crate) fn sizes(cached: bool, bytes: u64) -> (usize, usize) {
    if bytes <= WARM_CHUNK_BYTES as u64 {
        return (SLOT_BYTES, LOAD_SLOTS);
    }
    let share = |chunk: usize, most: usize| {
        let share = usize::try_from(bytes / LOAD_RING_SHARE / chunk as u64).unwrap_or(usize::MAX);
        share.clamp(LOAD_SLOTS, most)
    };
    if cached {
        let fit = last_level_cache_bytes() / 2;
        let whole = fit / LOAD_SLOTS_MAX / WARM_CHUNK_BYTES * WARM_CHUNK_BYTES;
        let chunk = whole.clamp(WARM_CHUNK_BYTES, WARM_CHUNK_BYTES_MAX);
        (chunk, (fit / chunk).clamp(SLOTS_MIN, share(chunk, CACHED_SLOTS_MAX)))
    } else {
        (SLOT_BYTES, share(SLOT_BYTES, LOAD_SLOTS_MAX))
    }
}
