//! What bounds a load on this machine, each part measured alone and by the parts that a load has: the
//! disk, the page cache, the link to a GPU, and copies into new memory. From these, what a load will
//! take.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::checkpoint::engine::sizes;
use crate::config::{
    COPY_THREADS_MAX, FIRST_CHUNK_BYTES, LOAD_SLOTS, READ_THREADS_MAX, ReaderChoice,
    SIGNAL_INTERVAL, SLOT_BYTES, config, processors,
};
use crate::device::cuda::copy::CudaWorker;
use crate::device::cuda::driver::Gpu;
use crate::device::cuda::memory::SlabAllocator;
use crate::device::cuda::stream::Stream;
use crate::device::host::{HostAllocator, HostWorker};
use crate::device::workers::Workers;
use crate::device::{Allocator, Buffer, Device, Placement, Slot, wait as wait_for_device};
use crate::error::{Error, Result};
use crate::queue::Wakes;
use crate::reader::depth::Depth;
use crate::reader::pread::{Path as ReadPath, PreadReader};
use crate::reader::uring::UringReader;
use crate::reader::{Completion, Reader, Request, wait as wait_for_reader};
use crate::report::Bound;
use crate::source::Source;

/// What a round of reads moves.
const ROUND_BYTES: usize = 128 << 20;

/// How many slots a round of copies moves; the better one of two counts, after a round of `LOAD_SLOTS`
/// that pins them.
const COPIED_SLOTS: usize = 12;

const _: () = assert!((LOAD_SLOTS + 2 * COPIED_SLOTS) * SLOT_BYTES <= 2 * ROUND_BYTES);

/// How many reads of a load are as small as its first one.
const SMALL_READS: usize = 4;

/// How long a round of reads lasts at most; a slow disk tells its rate by fewer bytes.
const ROUND: Duration = Duration::from_secs(1);

type Sources = Arc<[Arc<dyn Source>]>;

/// How fast the parts of a load are, alone, in bytes per second; none where one was not measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ceilings {
    /// Reads past the page cache.
    pub(crate) disk: Option<f64>,
    /// Reads from the page cache.
    pub(crate) page_cache: Option<f64>,
    /// Copies from slots to where tensors are.
    pub(crate) copies: Copies,
    /// What making a slot takes one thread, in seconds.
    pub(crate) slot_seconds: f64,
}

/// How fast slots are placed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Copies {
    /// In new memory of the host.
    Host {
        /// In bytes per second.
        rate: f64,
    },
    /// On a GPU.
    Link {
        /// From pinned slots, in bytes per second.
        rate: f64,
        /// What pinning a slot takes, in seconds.
        pin_seconds: f64,
    },
}

impl Ceilings {
    /// Measures. Without sources neither disk nor page cache has a rate, and without an ordinal the
    /// copies are those to memory of the host.
    pub(crate) fn measure(sources: &Sources, ordinal: Option<usize>) -> Result<Self> {
        // The disk first: the page cache is filled for its own measurement. The link last: whoever
        // looks at it then sees it awake.
        let disk = if sources.is_empty() { None } else { disk(sources)? };
        let page_cache = if sources.is_empty() { None } else { Some(page_cache(sources)?) };
        let began = Instant::now();
        let slots = new_slots(LOAD_SLOTS)?;
        let slot_seconds = began.elapsed().as_secs_f64() / LOAD_SLOTS as f64;
        let copies = match ordinal {
            Some(ordinal) => link(ordinal, slots)?,
            None => host_copies(slots)?,
        };
        Ok(Self { disk, page_cache, copies, slot_seconds })
    }

    /// What the first load of a process takes, in seconds, and what bounds it, for so many bytes that
    /// are not in the page cache.
    pub(crate) fn cold(&self, bytes: u64) -> Option<(f64, Bound)> {
        let read = bytes as f64 / self.disk?;
        Some(self.load(bytes, sizes(false, bytes).1, (read, Bound::Disk), 0.0))
    }

    /// The same for bytes that are.
    pub(crate) fn warm(&self, bytes: u64) -> Option<(f64, Bound)> {
        let read = bytes as f64 / self.page_cache?;
        let threads = processors().min(READ_THREADS_MAX) as f64;
        Some(self.load(bytes, sizes(true, bytes).1, (read, Bound::PageCache), read * threads))
    }

    /// The longest part bounds a load, as long as there are processors for all the threads that copy or
    /// make slots: `read_work` is what reading takes of them, in seconds.
    fn load(&self, bytes: u64, slots: usize, read: (f64, Bound), read_work: f64) -> (f64, Bound) {
        let slots = slots.min(usize::try_from(bytes).unwrap_or(usize::MAX).div_ceil(SLOT_BYTES));
        let (placed, threads) = match self.copies {
            Copies::Host { rate } => {
                let threads = processors().min(COPY_THREADS_MAX) as f64;
                ((bytes as f64 / rate, Bound::HostCopy), threads)
            }
            Copies::Link { rate, pin_seconds } => {
                ((bytes as f64 / rate + slots as f64 * pin_seconds, Bound::Link), 0.0)
            }
        };
        let work = read_work + placed.0 * threads + slots as f64 * self.slot_seconds;
        let (seconds, bound) = if placed.0 > read.0 { placed } else { read };
        (seconds.max(work / processors() as f64), bound)
    }
}

/// Direct reads, by the reader and as deep as a cold load has them; none where a file's system has none.
/// The rounds read different bytes, as what was read once may be in a cache of the disk's, and both count:
/// a load reads slow stretches as well.
fn disk(sources: &Sources) -> Result<Option<f64>> {
    if !sources.iter().all(|source| source.local().is_some_and(|file| file.direct().is_some())) {
        return Ok(None);
    }
    let (chunk_bytes, slots) = sizes(false, total_bytes(sources));
    let requests = requests(sources, chunk_bytes);
    let uring = match config().reader {
        ReaderChoice::Pread => None,
        ReaderChoice::Auto | ReaderChoice::Uring => UringReader::probe(Arc::clone(sources)).ok(),
    };
    let inner: Box<dyn Reader> = match uring {
        Some(reader) => Box::new(reader),
        None => Box::new(DirectPread(PreadReader::new(Arc::clone(sources), requests.len()))),
    };
    let mut reader = DeepReader { inner, depth: Depth::new(), begun: HashMap::new() };
    let mut slots = new_slots(slots)?;
    let halves = requests.chunks(requests.len().div_ceil(2).max(1));
    let rounds = halves.map(|half| Round::read(&mut reader, sources, half, &mut slots));
    let rounds = rounds.collect::<Result<Vec<_>>>()?;
    let bytes: usize = rounds.iter().map(|round| round.bytes).sum();
    let elapsed: Duration = rounds.iter().map(|round| round.elapsed).sum();
    Ok(Some(bytes as f64 / elapsed.as_secs_f64()))
}

/// Reads through the page cache, as a warm load has them. The first round fills it, the better one counts.
fn page_cache(sources: &Sources) -> Result<f64> {
    let (chunk_bytes, slots) = sizes(true, total_bytes(sources));
    let requests = requests(sources, chunk_bytes);
    let mut reader = PreadReader::new(Arc::clone(sources), requests.len());
    let mut slots = new_slots(slots)?;
    let first = Round::read(&mut reader, sources, &requests, &mut slots)?;
    let again = Round::read(&mut reader, sources, &requests[..first.moves], &mut slots)?;
    Ok(first.rate().max(again.rate()))
}

fn total_bytes(sources: &Sources) -> u64 {
    sources.iter().map(|source| source.len()).sum()
}

fn new_slots(count: usize) -> Result<Vec<Slot>> {
    let slots: io::Result<_> = (0..count).map(|_| Slot::new(SLOT_BYTES)).collect();
    slots.map_err(|error| Error::io(Path::new("<slot memory>"), error))
}

/// The whole of all sources, in pieces; the first ones are small, as those of a load.
fn requests(sources: &Sources, chunk_bytes: usize) -> Vec<Request> {
    let mut requests: Vec<Request> = Vec::new();
    for (shard, source) in sources.iter().enumerate() {
        let mut offset = 0;
        while offset < source.len() {
            let tag = requests.len();
            let chunk = if tag < SMALL_READS { FIRST_CHUNK_BYTES } else { chunk_bytes as u64 };
            let bytes = usize::try_from((source.len() - offset).min(chunk)).unwrap_or(chunk_bytes);
            requests.push(Request { tag, shard, offset, bytes });
            offset += bytes as u64;
        }
    }
    requests
}

/// Pread threads that read past the page cache also what it holds.
struct DirectPread(PreadReader);

impl Reader for DirectPread {
    fn submit(&mut self, request: Request, slot: Slot) {
        self.0.submit_on(ReadPath::Direct, request, slot);
    }

    fn poll(&mut self) -> Option<Completion> {
        self.0.poll()
    }

    fn add_to(&self, wakes: &mut Wakes) {
        self.0.add_to(wakes);
    }

    fn in_flight(&self) -> usize {
        self.0.in_flight()
    }
}

/// Has as much in flight as a load has.
struct DeepReader {
    inner: Box<dyn Reader>,
    depth: Depth,
    begun: HashMap<usize, Instant>,
}

impl Reader for DeepReader {
    fn submit(&mut self, request: Request, slot: Slot) {
        self.depth.begin(request.bytes as u64);
        self.begun.insert(request.tag, Instant::now());
        self.inner.submit(request, slot);
    }

    fn poll(&mut self) -> Option<Completion> {
        let completion = self.inner.poll()?;
        let Request { tag, bytes, .. } = completion.request;
        if let Some(since) = self.begun.remove(&tag) {
            self.depth.end(bytes as u64, since, Instant::now());
        }
        Some(completion)
    }

    fn add_to(&self, wakes: &mut Wakes) {
        self.inner.add_to(wakes);
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn is_full(&self) -> bool {
        self.depth.is_full()
    }
}

/// What was moved, in how long.
struct Round {
    moves: usize,
    bytes: usize,
    elapsed: Duration,
}

impl Round {
    fn rate(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64()
    }

    /// Reads the first of the requests, and drops what comes; as a load does it, with a quarter of the
    /// slots kept back.
    fn read(
        reader: &mut dyn Reader,
        sources: &Sources,
        requests: &[Request],
        slots: &mut Vec<Slot>,
    ) -> Result<Self> {
        let depth = slots.len() - slots.len() / 4;
        let (mut reads, mut bytes, began) = (0, 0, Instant::now());
        loop {
            while let Some(&request) = requests.get(reads)
                && reader.in_flight() < depth
                && !reader.is_full()
                && bytes + request.bytes <= ROUND_BYTES
                && began.elapsed() < ROUND
                && let Some(slot) = slots.pop()
            {
                reads += 1;
                bytes += request.bytes;
                reader.submit(request, slot);
            }
            if reader.in_flight() == 0 {
                return Ok(Self { moves: reads, bytes, elapsed: began.elapsed() });
            }
            if let Some(completion) = wait_for_reader(reader, SIGNAL_INTERVAL) {
                slots.push(completion.slot);
                let path = sources[completion.request.shard].path();
                completion.result.map_err(|error| Error::io(path, error))?;
            }
        }
    }

    /// Places slots one behind the other in a buffer.
    fn place(
        device: &mut dyn Device,
        buffer: &Buffer,
        count: usize,
        slots: &mut Vec<Slot>,
    ) -> Result<Self> {
        let (mut next, began) = (0, Instant::now());
        loop {
            while next < count
                && let Some(slot) = slots.pop()
            {
                let (buffer, buffer_offset) = (buffer.clone(), next * SLOT_BYTES);
                let piece = Placement { buffer, buffer_offset, slot_offset: 0, bytes: SLOT_BYTES };
                device.place(next, slot, vec![piece]);
                next += 1;
            }
            if device.in_flight() == 0 {
                let bytes = count * SLOT_BYTES;
                return Ok(Self { moves: count, bytes, elapsed: began.elapsed() });
            }
            if let Some(placed) = wait_for_device(device, SIGNAL_INTERVAL) {
                slots.extend(placed.slot);
                placed.result?;
            }
        }
    }
}

/// From pinned slots to a GPU.
fn link(ordinal: usize, slots: Vec<Slot>) -> Result<Copies> {
    let gpu = Gpu::open(ordinal)?;
    let stream = Arc::new(Stream::new(gpu)?);
    let mut device =
        Workers::new(|done| Ok(vec![Box::new(CudaWorker::new(&stream, None, done)?)]))?;
    let bytes = COPIED_SLOTS * SLOT_BYTES;
    let target = SlabAllocator::new(gpu, &[bytes as u64]).allocate(0, bytes)?;
    let (rate, pin_seconds) = copies(&mut device, slots, || Ok(target.clone()))?;
    Ok(Copies::Link { rate, pin_seconds })
}

/// From slots to memory that nobody has touched yet.
fn host_copies(slots: Vec<Slot>) -> Result<Copies> {
    let mut device = Workers::new(|done| Ok(vec![Box::new(HostWorker::new(done))]))?;
    let new = || HostAllocator.allocate(0, COPIED_SLOTS * SLOT_BYTES);
    let (rate, _threads_start) = copies(&mut device, slots, new)?;
    Ok(Copies::Host { rate })
}

/// Bytes per second that a device places, and the seconds that a slot's first use takes beyond that.
fn copies(
    device: &mut dyn Device,
    mut slots: Vec<Slot>,
    memory: impl Fn() -> Result<Buffer>,
) -> Result<(f64, f64)> {
    // All at once: of what is freed the next one would be made, and it would not be new.
    let buffers = (0..3).map(|_| memory()).collect::<Result<Vec<_>>>()?;
    let first = Round::place(device, &buffers[0], slots.len(), &mut slots)?;
    let mut rate = first.rate();
    for buffer in &buffers[1..] {
        rate = rate.max(Round::place(device, buffer, COPIED_SLOTS, &mut slots)?.rate());
    }
    let beyond = first.elapsed.as_secs_f64() - first.bytes as f64 / rate;
    Ok((rate, beyond.max(0.0) / slots.len() as f64))
}

#[cfg(test)]
mod tests {
    use super::{Ceilings, Copies, SLOT_BYTES};
    use crate::config::{COPY_THREADS_MAX, LOAD_SLOTS, processors};
    use crate::report::Bound;

    const GB: u64 = 1_000_000_000;

    fn ceilings(disk: f64, page_cache: f64, copies: Copies) -> Ceilings {
        Ceilings { disk: Some(disk), page_cache: Some(page_cache), copies, slot_seconds: 0.0 }
    }

    #[test]
    fn what_is_slower_bounds_a_load() {
        let to_gpu = ceilings(5e9, 100e9, Copies::Link { rate: 20e9, pin_seconds: 0.0 });
        assert_eq!(to_gpu.cold(10 * GB), Some((2.0, Bound::Disk)));
        assert_eq!(to_gpu.warm(10 * GB).unwrap().1, Bound::Link);
        let unknown = Ceilings { disk: None, page_cache: None, ..to_gpu };
        assert_eq!((unknown.cold(GB), unknown.warm(GB)), (None, None));
    }

    #[test]
    fn the_first_load_pins_as_many_slots_as_it_has_use_for() {
        let to_gpu = ceilings(500e9, 500e9, Copies::Link { rate: 500e9, pin_seconds: 0.25 });
        let seconds = |slots: u64| to_gpu.cold(slots * SLOT_BYTES as u64).unwrap().0;
        assert!((0.25..0.26).contains(&seconds(1)));
        let most = 0.25 * LOAD_SLOTS as f64;
        assert!((most..most + 0.01).contains(&seconds(LOAD_SLOTS as u64 + 1)));
    }

    #[test]
    fn threads_share_the_processors() {
        let host = ceilings(8e9, 4e9, Copies::Host { rate: 2e9 });
        assert_eq!(host.cold(GB), Some((0.5, Bound::HostCopy)));
        let share = processors().min(COPY_THREADS_MAX) as f64 / processors() as f64;
        assert_eq!(host.warm(GB), Some(((0.75 * share).max(0.5), Bound::HostCopy)));
        let slow = Ceilings { slot_seconds: processors() as f64, ..host };
        assert!(slow.cold(GB).unwrap().0 > LOAD_SLOTS as f64);
    }
}
