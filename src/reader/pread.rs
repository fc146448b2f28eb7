//! Threads that read with pread: through the page cache, past it, or from any other source.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crossbeam::channel::{self, unbounded};

use crate::config::{READ_THREADS_MAX, processors};
use crate::device::Slot;
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

struct Job {
    request: Request,
    path: Path,
    slot: Slot,
}

/// A pool of reading threads that lives as long as one load; it grows with the reads in flight.
#[derive(Debug)]
pub(crate) struct PreadReader {
    sources: Arc<[Arc<dyn Source>]>,
    jobs: Option<channel::Sender<Job>>,
    jobs_out: channel::Receiver<Job>,
    done: Receiver<Completion>,
    done_in: Sender<Completion>,
    threads: Vec<JoinHandle<()>>,
    /// None as long as there was nothing for a thread to do.
    threads_max: Option<usize>,
    alone: bool,
    /// What its caller has read.
    read: Option<Completion>,
    in_flight: usize,
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
        }
    }

    /// Reads as the source does, in the caller's thread, what is in memory already.
    pub(crate) fn read_here(&mut self, request: Request, slot: Slot) {
        self.in_flight += 1;
        let job = Job { request, path: Path::Buffered, slot };
        self.read = Some(carry_out(&self.sources, job));
    }

    /// Begins a read on the given path.
    pub(crate) fn submit_on(&mut self, path: Path, request: Request, slot: Slot) {
        self.in_flight += 1;
        self.grow();
        let job = Job { request, path, slot };
        match &self.jobs {
            Some(jobs) if !self.threads.is_empty() => {
                jobs.send(job).expect("the receiver lives as long as the pool");
            }
            // A single read, or a process that may not have another thread.
            _ => {
                let completion = carry_out(&self.sources, job);
                let sent = self.done_in.send(completion);
                assert!(sent.is_ok(), "the receiver lives as long as the pool");
            }
        }
    }

    /// Threads that were needed.
    pub(crate) fn threads(&self) -> usize {
        self.threads.len()
    }

    fn grow(&mut self) {
        if self.alone || self.threads.len() >= self.in_flight {
            return;
        }
        let most = || processors().clamp(2, READ_THREADS_MAX);
        if self.threads.len() >= *self.threads_max.get_or_insert_with(most) {
            return;
        }
        let sources = Arc::clone(&self.sources);
        let (jobs, done) = (self.jobs_out.clone(), self.done_in.clone());
        let name = format!("sst-read-{}", self.threads.len());
        let thread = Builder::new().name(name).spawn(move || {
            for job in jobs {
                if done.send(carry_out(&sources, job)).is_err() {
                    break;
                }
            }
        });
        self.threads.extend(thread);
    }
}

/// Reads. A panic becomes the result, and the slot comes back all the same.
fn carry_out(sources: &[Arc<dyn Source>], job: Job) -> Completion {
    let Job { request, path, mut slot } = job;
    let read = catch_unwind(AssertUnwindSafe(|| {
        let source = sources[request.shard].as_ref();
        // Nobody else opens the file a second time.
        let direct = source.local().filter(|_| path == Path::Direct);
        match direct.and_then(|local| local.direct()) {
            Some(file) => read_direct(file, &request, &mut slot),
            None => read_on(source, request.offset, &mut slot.as_mut_slice()[..request.bytes]),
        }
    }));
    let (done, result) =
        read.unwrap_or_else(|_| (0, Err(io::Error::other("a read thread panicked"))));
    Completion { request, slot, done, result }
}

/// Reads whole aligned blocks; gives the bytes that came, and why no more did.
fn read_direct(file: &File, request: &Request, slot: &mut Slot) -> (usize, io::Result<()>) {
    let mut blocks = Blocks::new(request);
    loop {
        let (part, offset) = blocks.next();
        match file.read_at(&mut slot.as_mut_slice()[part], offset) {
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
    fn submit(&mut self, request: Request, slot: Slot) {
        self.submit_on(Path::Buffered, request, slot);
    }

    fn poll(&mut self) -> Option<Completion> {
        let completion = self.read.take().or_else(|| self.done.take())?;
        self.in_flight -= 1;
        Some(completion)
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
