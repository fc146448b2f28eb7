//! Threads that read with pread: through the page cache, past it, or from any other source.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use crossbeam::channel::{self, unbounded};

use crate::config::{PART_BYTES, READ_THREADS_MAX, processors};
use crate::device::{Part, Slot};
use crate::queue::{Receiver, Sender, Wakes, queue};
use crate::reader::blocks::Blocks;
use crate::reader::{Completion, Reader, Request};
use crate::source::{Source, read_on};

/// How a thread reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// As the source reads: for a file, through the page cache.
    Buffered,
    /// Past the page cache.
    Direct,
}

/// A read that is under way.
#[derive(Debug)]
struct Begun {
    request: Request,
    path: Path,
    /// Parts that the slot is filled in.
    parts: usize,
    /// The first byte that has not come and will not, as far as is known, and why.
    missing: Mutex<Option<(usize, io::Result<()>)>>,
}

/// What one thread is to do of it.
struct Job {
    read: Arc<Begun>,
    part: Part,
}

/// A read that ended, and in how many parts it was done.
#[derive(Debug)]
struct Ended {
    completion: Completion,
    parts: usize,
}

/// A pool of reading threads that lives as long as one load; it grows with the reads in flight.
#[derive(Debug)]
pub(crate) struct PreadReader {
    sources: Arc<[Arc<dyn Source>]>,
    jobs: Option<channel::Sender<Job>>,
    jobs_out: channel::Receiver<Job>,
    done: Receiver<Ended>,
    done_in: Sender<Ended>,
    threads: Vec<JoinHandle<()>>,
    /// None as long as there was nothing for a thread to do.
    threads_max: Option<usize>,
    alone: bool,
    /// What its caller has read.
    read: Option<Ended>,
    in_flight: usize,
    parts_in_flight: usize,
}

impl PreadReader {
    /// A pool for so many reads, without threads yet; a single read is done by its caller.
    pub(crate) fn new(sources: Arc<[Arc<dyn Source>]>, reads: usize) -> Self {
        let (jobs, jobs_out) = unbounded();
        let (done_in, done) = queue();
        Self {
            sources,
            jobs: Some(jobs),
            jobs_out,
            done,
            done_in,
            threads: Vec::new(),
            threads_max: None,
            alone: reads <= 1,
            read: None,
            in_flight: 0,
            parts_in_flight: 0,
        }
    }

    /// Reads as the source does, in the caller's thread, what is in memory already.
    pub(crate) fn read_here(&mut self, request: Request, slot: Slot) {
        let jobs = self.begin(Path::Buffered, request, whole(slot));
        self.read = jobs.into_iter().find_map(|job| carry_out(&self.sources, job));
    }

    /// Begins a read on the given path, by one thread.
    pub(crate) fn submit_on(&mut self, path: Path, request: Request, slot: Slot) {
        let jobs = self.begin(path, request, whole(slot));
        self.share_out(jobs);
    }

    /// Threads that were needed.
    pub(crate) fn threads(&self) -> usize {
        self.threads.len()
    }

    fn begin(&mut self, path: Path, request: Request, parts: Vec<Part>) -> Vec<Job> {
        self.in_flight += 1;
        self.parts_in_flight += parts.len();
        let missing = Mutex::new(None);
        let read = Arc::new(Begun { request, path, parts: parts.len(), missing });
        parts.into_iter().map(|part| Job { read: Arc::clone(&read), part }).collect()
    }

    fn share_out(&mut self, jobs: Vec<Job>) {
        self.grow();
        for job in jobs {
            match &self.jobs {
                Some(jobs) if !self.threads.is_empty() => {
                    jobs.send(job).expect("the receiver lives as long as the pool");
                }
                // A single read, or a process that may not have another thread.
                _ => {
                    let ended = carry_out(&self.sources, job);
                    let sent = ended.is_none_or(|ended| self.done_in.send(ended).is_ok());
                    assert!(sent, "the receiver lives as long as the pool");
                }
            }
        }
    }

    /// As many threads as there are parts to be read, or as may be.
    fn grow(&mut self) {
        while !self.alone && self.threads.len() < self.parts_in_flight {
            let most = || processors().clamp(2, READ_THREADS_MAX);
            if self.threads.len() >= *self.threads_max.get_or_insert_with(most) {
                return;
            }
            let sources = Arc::clone(&self.sources);
            let (jobs, done) = (self.jobs_out.clone(), self.done_in.clone());
            let name = format!("sst-read-{}", self.threads.len());
            let thread = Builder::new().name(name).spawn(move || {
                for job in jobs {
                    let ended = carry_out(&sources, job);
                    if ended.is_some_and(|ended| done.send(ended).is_err()) {
                        break;
                    }
                }
            });
            let Ok(thread) = thread else { return };
            self.threads.push(thread);
        }
    }
}

/// All of a slot, for one thread.
fn whole(slot: Slot) -> Vec<Part> {
    let bytes = slot.bytes();
    Part::of(slot, bytes, bytes)
}

/// Reads a part. The last one that ends gives the slot back. A panic becomes the result.
fn carry_out(sources: &[Arc<dyn Source>], job: Job) -> Option<Ended> {
    let Job { read, mut part } = job;
    let (start, asked) = (part.start(), read.request);
    let memory = part.as_mut_slice();
    let bytes = memory.len().min(asked.bytes - start);
    let request = Request { offset: asked.offset + start as u64, bytes, ..asked };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let source = sources[request.shard].as_ref();
        // Nobody else opens the file a second time.
        let direct = source.local().filter(|_| read.path == Path::Direct);
        match direct.and_then(|local| local.direct()) {
            Some(file) => read_direct(file, &request, memory),
            None => read_on(source, request.offset, &mut memory[..bytes]),
        }
    }));
    let (done, result) =
        outcome.unwrap_or_else(|_| (0, Err(io::Error::other("a read thread panicked"))));
    let mut missing = read.missing.lock().unwrap_or_else(PoisonError::into_inner);
    let first = missing.as_ref().is_none_or(|(known, _)| start + done < *known);
    if first && (done < bytes || result.is_err()) {
        *missing = Some((start + done, result));
    }
    drop(missing);
    let slot = part.join()?;
    let missing = read.missing.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (done, result) = missing.unwrap_or((asked.bytes, Ok(())));
    Some(Ended { completion: Completion { request: asked, slot, done, result }, parts: read.parts })
}

/// Reads whole aligned blocks; gives the bytes that came, and why no more did.
fn read_direct(file: &File, request: &Request, memory: &mut [u8]) -> (usize, io::Result<()>) {
    let mut blocks = Blocks::new(request);
    loop {
        let (part, offset) = blocks.next();
        match file.read_at(&mut memory[part], offset) {
            Ok(count) => {
                if blocks.take(count) {
                    return (blocks.done(), Ok(()));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (blocks.done(), Err(error)),
        }
    }
}

impl Reader for PreadReader {
    /// What is in memory already is copied by several threads at once: they keep fewer slots under way
    /// than with one each, which stay in the processors' caches.
    fn submit(&mut self, request: Request, slot: Slot) {
        let parts = if request.bytes > PART_BYTES && !self.alone {
            Part::of(slot, request.bytes, PART_BYTES)
        } else {
            whole(slot)
        };
        let jobs = self.begin(Path::Buffered, request, parts);
        self.share_out(jobs);
    }

    fn poll(&mut self) -> Option<Completion> {
        let ended = self.read.take().or_else(|| self.done.take())?;
        self.in_flight -= 1;
        self.parts_in_flight -= ended.parts;
        Some(ended.completion)
    }

    fn add_to(&self, wakes: &mut Wakes) {
        self.done.add_to(wakes);
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// What its caller has read goes to the device before the next read.
    fn is_full(&self) -> bool {
        self.read.is_some()
    }
}

impl Drop for PreadReader {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A read thread never panics: `carry_out` catches.
            let _ended = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::panic::resume_unwind;
    use std::path;
    use std::sync::Arc;
    use std::time::Duration;

    use super::{Completion, PreadReader, Reader, Request};
    use crate::config::{ALIGNMENT_BYTES, PART_BYTES, READ_THREADS_MAX, processors};
    use crate::device::Slot;
    use crate::reader::wait;
    use crate::source::Source;
    use crate::source::faulty::{Faults, FaultySource, Mode};
    use crate::source::memory::MemorySource;

    const OFFSET: usize = ALIGNMENT_BYTES;
    const SLOT_BYTES: usize = 64 * PART_BYTES;

    fn reader(source: impl Source + 'static) -> PreadReader {
        PreadReader::new(Arc::new([Arc::new(source)]), 100)
    }

    /// One read after the other from `OFFSET`, of so many bytes.
    fn read(reader: &mut PreadReader, sizes: &[usize]) -> Vec<Completion> {
        let one = |(tag, &bytes): (usize, &usize)| {
            let request = Request { tag, shard: 0, offset: OFFSET as u64, bytes };
            reader.submit(request, Slot::new(SLOT_BYTES).unwrap());
            let ended = wait(reader, Duration::from_secs(20)).expect("a read ends");
            assert_eq!((ended.request.tag, reader.in_flight()), (tag, 0));
            assert_eq!(ended.slot.bytes(), SLOT_BYTES);
            ended
        };
        sizes.iter().enumerate().map(one).collect()
    }

    fn faulty(bytes: Vec<u8>, faults: &Arc<Faults>) -> PreadReader {
        reader(FaultySource { bytes, promised: 1 << 40, faults: Arc::clone(faults) })
    }

    fn numbers(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|byte| u8::try_from(byte / 7 % 251).unwrap()).collect()
    }

    #[test]
    fn what_several_threads_fill_is_what_the_source_holds() {
        let held = numbers(OFFSET + SLOT_BYTES);
        let part = PART_BYTES;
        let sizes = [1, part - 1, part, part + 1, 3 * part + 97, SLOT_BYTES];
        for completion in read(&mut faulty(held.clone(), &Faults::never()), &sizes) {
            let bytes = completion.request.bytes;
            assert!(completion.is_whole(), "{bytes}: {:?}", completion.result);
            assert!(completion.slot.as_slice()[..bytes] == held[OFFSET..OFFSET + bytes], "{bytes}");
        }
    }

    #[test]
    fn as_many_threads_as_there_are_parts_read_and_no_more() {
        let mut reader = reader(MemorySource(numbers(OFFSET + SLOT_BYTES)));
        read(&mut reader, &[PART_BYTES; 8]);
        assert_eq!(reader.threads(), 1);
        read(&mut reader, &[2 * PART_BYTES; 8]);
        assert_eq!(reader.threads(), 2);
        read(&mut reader, &[SLOT_BYTES]);
        assert_eq!(reader.threads(), processors().clamp(2, READ_THREADS_MAX));
    }

    #[test]
    fn a_source_that_ends_in_any_part_has_given_the_bytes_before_its_end() {
        for held in [0, 1, PART_BYTES, 2 * PART_BYTES + 5, SLOT_BYTES - 1] {
            let bytes = numbers(OFFSET + held);
            let mut reader = faulty(bytes.clone(), &Faults::never());
            let ended = read(&mut reader, &[SLOT_BYTES]).remove(0);
            assert_eq!((ended.done, ended.result.is_ok()), (held, true));
            assert!(ended.slot.as_slice()[..held] == bytes[OFFSET..]);
        }
    }

    #[test]
    fn a_part_that_fails_ends_the_read_at_its_first_byte_that_is_missing() {
        let held = numbers(OFFSET + SLOT_BYTES);
        for (failing, mode) in [(1, Mode::Once), (30, Mode::Once), (50, Mode::FromThenOn)] {
            let faults = Faults::at(failing, mode);
            let ended = read(&mut faulty(held.clone(), &faults), &[SLOT_BYTES]).remove(0);
            let error = ended.result.expect_err("a part has failed");
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
            assert!(ended.done < SLOT_BYTES && faults.fired());
            let (got, wanted) = (&ended.slot.as_slice()[..ended.done], &held[OFFSET..]);
            assert!(got == &wanted[..ended.done], "{failing}: all before it has come");
        }
    }

    /// Panics from the fourth part on.
    #[derive(Debug)]
    struct Panicking;

    impl Source for Panicking {
        fn path(&self) -> &path::Path {
            path::Path::new("<panicking>")
        }

        fn len(&self) -> u64 {
            1 << 40
        }

        fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<usize> {
            if offset >= (OFFSET + 3 * PART_BYTES) as u64 {
                resume_unwind(Box::new("as it was told to")); // which tells nobody
            }
            Ok(target.len())
        }
    }

    #[test]
    fn a_part_that_panics_fails_the_read_and_the_slot_comes_back() {
        let ended = read(&mut reader(Panicking), &[2 * PART_BYTES, SLOT_BYTES, PART_BYTES]);
        assert!(ended[0].is_whole() && ended[2].is_whole());
        assert_eq!(ended[1].done, 3 * PART_BYTES);
        assert!(
            ended[1].result.as_ref().is_err_and(|error| error.to_string().contains("panicked"))
        );
    }
}
