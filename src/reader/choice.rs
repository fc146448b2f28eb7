//! Chooses a way for every read by what the page cache holds, and tries another where one fails.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::config::{
    ALIGNMENT_BYTES, ReaderChoice, SMALL_LOAD_BYTES, URING_READS_MIN, alone_bytes_max, config,
    memory_available_bytes,
};
use crate::device::Slot;
use crate::queue::Wakes;
use crate::reader::depth::Depth;
use crate::reader::disk::Disk;
use crate::reader::pread::{Path, PreadReader};
use crate::reader::remote::RemoteReader;
use crate::reader::uring::UringReader;
use crate::reader::{Completion, Reader, Request};
use crate::source::{LocalFile, Source};

/// Whether what is read shall be in the page cache afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CachePolicy {
    /// Kept where the next load, or another rank, gains by it.
    Auto,
    /// Always: reads go through the cache.
    Keep,
    /// Never for what is not in it yet: reads go past the cache.
    Bypass,
}

/// What was read how.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    bytes: u64,
    cached_bytes: u64,
    uring: bool,
    direct: bool,
    buffered: bool,
}

/// The kernel's queue, which is set up when the first read wants it.
enum Uring {
    Untried,
    Ready(Box<UringReader>),
    Refused(String),
}

impl Uring {
    fn ready(&mut self) -> Option<&mut UringReader> {
        match self {
            Self::Ready(reader) => Some(reader),
            Self::Untried | Self::Refused(_) => None,
        }
    }
}

/// How a chunk is read.
enum Way {
    /// From the disk, by those who read on this path.
    By(Path),
    /// From the page cache, by threads.
    Cached,
    /// From the page cache, in the thread that asks.
    Here,
    /// Over a network.
    Remote,
}

/// What a load is about to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outlook {
    /// Bytes to read in all.
    pub(crate) bytes: u64,
    /// Reads planned.
    pub(crate) reads: usize,
}

/// The reader of every load.
pub(crate) struct ChoosingReader {
    sources: Arc<[Arc<dyn Source>]>,
    /// Whether all there is to read is soon copied: threads take as long to start.
    small: bool,
    pread: PreadReader,
    uring: Uring,
    /// There only where some source is remote.
    remote: Option<RemoteReader>,
    policy: CachePolicy,
    policy_reason: &'static str,
    /// Reads that failed and are tried again: how far they came, and why no further.
    retried: HashMap<usize, (usize, io::Error)>,
    disk: Disk,
    depth: Depth,
    tally: Tally,
}

impl ChoosingReader {
    /// A reader for one load.
    pub(crate) fn new(
        sources: Arc<[Arc<dyn Source>]>,
        choice: ReaderChoice,
        policy: CachePolicy,
        outlook: Outlook,
    ) -> Self {
        let uring = match choice {
            ReaderChoice::Pread => Uring::Refused("pread was asked for".to_owned()),
            ReaderChoice::Auto if outlook.reads < URING_READS_MIN => {
                Uring::Refused("too few reads for io_uring".to_owned())
            }
            ReaderChoice::Auto | ReaderChoice::Uring => Uring::Untried,
        };
        let (policy, policy_reason) = settle(policy, outlook.bytes);
        let any_remote = sources.iter().any(|source| source.remote().is_some());
        Self {
            pread: PreadReader::new(Arc::clone(&sources), outlook.reads),
            remote: any_remote.then(|| RemoteReader::new(Arc::clone(&sources))),
            sources,
            // Reads begin and end at blocks.
            small: outlook.bytes <= alone_bytes_max() + 2 * ALIGNMENT_BYTES as u64,
            uring,
            policy,
            policy_reason,
            retried: HashMap::new(),
            disk: Disk::default(),
            depth: Depth::new(),
            tally: Tally::default(),
        }
    }

    /// The names of the readers that were used, joined by `+`.
    pub(crate) fn names(&self) -> String {
        let direct = if self.tally.uring { "io_uring" } else { "pread-direct" };
        let used = [
            (self.tally.direct, direct),
            (self.tally.buffered, "pread"),
            (self.is_remote(), "network"),
        ];
        let names: Vec<&str> =
            used.iter().filter(|(used, _)| *used).map(|(_, name)| *name).collect();
        names.join("+")
    }

    /// Why these.
    pub(crate) fn reason(&self) -> String {
        let mut reasons = Vec::new();
        if self.tally.direct || self.tally.buffered || !self.is_remote() {
            reasons.push(self.policy_reason.to_owned());
        }
        reasons.extend(self.remote.as_ref().and_then(RemoteReader::reason));
        if self.cached_fraction() > 0.0 {
            reasons.push("what the page cache holds is read from it".to_owned());
        }
        if let Uring::Refused(refusal) = &self.uring
            && self.tally.direct
        {
            reasons.push(refusal.clone());
        }
        if !self.retried.is_empty() {
            reasons.push(format!("{} reads were tried a second time", self.retried.len()));
        }
        reasons.join("; ")
    }

    /// Whether any bytes came over a network.
    fn is_remote(&self) -> bool {
        self.remote.as_ref().is_some_and(|remote| remote.reason().is_some())
    }

    /// The share of the bytes that the page cache held, 0 to 1.
    pub(crate) fn cached_fraction(&self) -> f64 {
        if self.tally.bytes == 0 {
            return 0.0;
        }
        self.tally.cached_bytes as f64 / self.tally.bytes as f64
    }

    /// Threads in use.
    pub(crate) fn threads(&self) -> usize {
        self.pread.threads()
    }

    /// The way for one read: a cached chunk is copied from the cache, an uncached one read past it.
    fn choose(&mut self, request: &Request) -> Way {
        self.tally.bytes += request.bytes as u64;
        let source = &self.sources[request.shard];
        if source.remote().is_some() {
            return Way::Remote;
        }
        let Some(file) = source.local() else {
            return Way::Cached;
        };
        if file.is_cached(request.offset..request.offset + request.bytes as u64) == Some(true) {
            self.tally.cached_bytes += request.bytes as u64;
            return if self.small { Way::Here } else { Way::Cached };
        }
        let bypass = match self.policy {
            CachePolicy::Keep => false,
            CachePolicy::Bypass => true,
            CachePolicy::Auto => !self.disk.is_slow(Instant::now()),
        };
        let direct = bypass && file.direct().is_some();
        Way::By(if direct { Path::Direct } else { Path::Buffered })
    }

    fn submit_on(&mut self, path: Path, request: Request, slot: Slot) {
        self.disk.begin(request.tag, path, Instant::now());
        if path == Path::Buffered {
            self.tally.buffered = true;
            return self.pread.submit_on(path, request, slot);
        }
        self.tally.direct = true;
        if matches!(self.uring, Uring::Untried) {
            self.uring = match UringReader::probe(Arc::clone(&self.sources)) {
                Ok(reader) => Uring::Ready(Box::new(reader)),
                Err(refusal) => Uring::Refused(refusal),
            };
        }
        self.depth.begin(request.bytes as u64);
        match self.uring.ready() {
            Some(uring) => {
                self.tally.uring = true;
                uring.submit(request, slot);
            }
            None => self.pread.submit_on(path, request, slot),
        }
    }

    /// The next read that ended, and whether it went past the page cache.
    fn poll_any(&mut self) -> Option<(Completion, bool)> {
        if let Some(completion) = self.remote.as_mut().and_then(Reader::poll) {
            return Some((completion, false));
        }
        let by_thread = self.pread.poll();
        let completion = by_thread
            .or_else(|| self.uring.ready().filter(|uring| uring.in_flight() > 0)?.poll())?;
        let Request { tag, bytes, .. } = completion.request;
        let now = Instant::now();
        let direct =
            self.disk.end(tag, bytes as u64, now).filter(|(path, _)| *path == Path::Direct);
        if let Some((_, since)) = direct {
            self.depth.end(bytes as u64, since, now);
        }
        Some((completion, direct.is_some()))
    }
}

/// The policy for a load of so many bytes, and why.
fn settle(policy: CachePolicy, bytes: u64) -> (CachePolicy, &'static str) {
    match policy {
        CachePolicy::Keep => (policy, "cache=keep: read through the page cache"),
        CachePolicy::Bypass => (policy, "cache=bypass: read past the page cache"),
        CachePolicy::Auto if bytes <= SMALL_LOAD_BYTES => {
            (CachePolicy::Keep, "cache=auto: small, read through the page cache")
        }
        CachePolicy::Auto if bytes > memory_available_bytes() / 2 => {
            (CachePolicy::Bypass, "cache=auto: larger than half of the memory available")
        }
        CachePolicy::Auto if config().local_ranks > 1 => {
            (CachePolicy::Keep, "cache=auto: several local ranks share the page cache")
        }
        CachePolicy::Auto => (policy, "cache=auto: past the page cache while the disk is fast"),
    }
}

impl Reader for ChoosingReader {
    fn submit(&mut self, request: Request, slot: Slot) {
        match self.choose(&request) {
            Way::By(path) => self.submit_on(path, request, slot),
            Way::Cached => {
                self.tally.buffered = true;
                self.pread.submit(request, slot);
            }
            Way::Here => {
                self.tally.buffered = true;
                self.pread.read_here(request, slot);
            }
            Way::Remote => {
                if let Some(remote) = &mut self.remote {
                    remote.submit(request, slot);
                }
            }
        }
    }

    /// A read that fails is tried once more on the other path: direct reads can be refused by the file
    /// system, and reads through the page cache also fail by bad sectors near what was asked for. Requests
    /// were tried again already.
    fn poll(&mut self) -> Option<Completion> {
        loop {
            let (mut completion, was_direct) = self.poll_any()?;
            let Request { tag, shard, .. } = completion.request;
            if completion.result.is_ok() || self.sources[shard].remote().is_some() {
                return Some(completion);
            }
            if let Some((done, error)) = self.retried.remove(&tag) {
                // What came further knows best; of equals, what did not ask for whole blocks.
                if done > completion.done || (done == completion.done && was_direct) {
                    (completion.done, completion.result) = (done, Err(error));
                }
                return Some(completion);
            }
            let Completion { request, slot, done, result } = completion;
            self.retried.extend(result.err().map(|error| (tag, (done, error))));
            let local = self.sources[request.shard].local();
            let direct = !was_direct && local.is_some_and(|file| file.direct().is_some());
            self.submit_on(if direct { Path::Direct } else { Path::Buffered }, request, slot);
        }
    }

    fn add_to(&self, wakes: &mut Wakes) {
        // Also while nothing is in flight there: the look that comes with this may try a read again.
        self.pread.add_to(wakes);
        if let Uring::Ready(uring) = &self.uring {
            uring.add_to(wakes);
        }
        if let Some(remote) = &self.remote {
            remote.add_to(wakes);
        }
    }

    fn in_flight(&self) -> usize {
        let uring = match &self.uring {
            Uring::Ready(reader) => reader.in_flight(),
            Uring::Untried | Uring::Refused(_) => 0,
        };
        let remote = self.remote.as_ref().map_or(0, Reader::in_flight);
        self.pread.in_flight() + uring + remote
    }

    fn is_full(&self) -> bool {
        let remote = self.remote.as_ref().is_some_and(Reader::is_full);
        self.depth.is_full() || self.pread.is_full() || remote
    }

    fn slots_worth(&self) -> usize {
        self.remote.as_ref().map_or(0, Reader::slots_worth)
    }

    fn stop(&mut self) {
        if let Some(remote) = &mut self.remote {
            remote.stop();
        }
    }
}

/// Whether most of a file's bytes are in the page cache, by a few looks; where the kernel cannot
/// tell, yes.
pub(crate) fn is_mostly_cached(file: &LocalFile) -> bool {
    const LOOKS: u64 = 16;
    let step = file.len() / LOOKS;
    let cached =
        (0..LOOKS).filter(|look| file.is_cached(look * step..(look + 1) * step).unwrap_or(true));
    cached.count() as u64 > LOOKS / 2
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::{CachePolicy, ChoosingReader, Outlook};
    use crate::config::{ReaderChoice, SLOT_BYTES};
    use crate::device::Slot;
    use crate::queue::Wakes;
    use crate::reader::{Reader, Request, wait};
    use crate::source::Source;
    use crate::source::memory::MemorySource;

    #[test]
    fn nothing_wakes_who_waits_for_a_reader_that_has_nothing_left() {
        let sources: Arc<[Arc<dyn Source>]> = Arc::new([Arc::new(MemorySource(vec![7; 8192]))]);
        let outlook = Outlook { bytes: 1 << 30, reads: 2 };
        let (choice, policy) = (ReaderChoice::Auto, CachePolicy::Auto);
        let mut reader = ChoosingReader::new(sources, choice, policy, outlook);
        for tag in 0..2 {
            let request = Request { tag, shard: 0, offset: 4096 * tag as u64, bytes: 4096 };
            reader.submit(request, Slot::new(SLOT_BYTES).unwrap());
        }
        for _ in 0..2 {
            assert!(wait(&mut reader, Duration::from_secs(10)).is_some());
        }
        let (mut wakes, pause) = (Wakes::to_wait(), Duration::from_millis(30));
        reader.add_to(&mut wakes);
        assert!(reader.poll().is_none());
        let began = Instant::now();
        wakes.wait(pause);
        assert!(began.elapsed() >= pause);
    }
}
