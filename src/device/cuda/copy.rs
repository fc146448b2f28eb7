//! Slots to device memory. One thread gives the driver its work, another waits for it to be done;
//! the caller's thread never has another current device than before.
#![expect(unsafe_code, reason = "copies run on after the call that begins them")]

use std::cell::OnceCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, unbounded};

use crate::config::{PIECES_MAX, SLOT_BYTES, SMALL_PIECE_BYTES};
use crate::device::cuda::driver::Gpu;
use crate::device::cuda::kernels::PIECE_BYTES;
use crate::device::cuda::memory::Staging;
use crate::device::cuda::stream::{Event, Stream};
use crate::device::{Buffer, Device, Placed, Placement, Slot, worker_panicked};
use crate::error::{Error, Result};

struct Job {
    tag: usize,
    slot: Slot,
    placements: Vec<Placement>,
}

/// A job whose copies were given to the driver, and the event after them.
struct Begun {
    job: Job,
    event: Result<Event>,
}

/// One GPU as the destination of one load.
#[derive(Debug)]
pub(crate) struct CudaDevice {
    jobs: Option<Sender<Job>>,
    done: Receiver<Placed>,
    threads: Vec<JoinHandle<()>>,
    stream: Arc<Stream>,
    ordinal: usize,
    in_flight: usize,
}

impl CudaDevice {
    /// A stream and two threads. Copies wait for what `user` (a stream of torch's) was given before
    /// them: the memory that torch hands out may still be in use there.
    pub(crate) fn new(gpu: &'static Gpu, user: Option<Stream>) -> Result<Self> {
        let stream = Arc::new(Stream::new(gpu)?);
        let (jobs, jobs_out) = unbounded();
        let (begun_in, begun) = unbounded();
        let (events_in, events) = unbounded();
        let (done_in, done) = unbounded();
        let copies = Arc::clone(&stream);
        let issuing = spawn("sst-cuda-copy", move || {
            let issuer = Issuer {
                gpu,
                stream: copies,
                user,
                ready: None,
                staging: OnceCell::new(),
                current: false,
                events,
            };
            issuer.run(&jobs_out, &begun_in);
        })?;
        let copies = Arc::clone(&stream);
        let waiting = spawn("sst-cuda-wait", move || {
            // Where this fails, so does all that follows, and says so.
            let _current = gpu.make_current();
            for Begun { job, event } in begun {
                let result = event.and_then(|event| {
                    let seen = event.synchronize();
                    // The issuer may have ended; then the event ends here.
                    let _kept = events_in.send(event);
                    seen
                });
                let slot = if result.is_ok() || copies.synchronize().is_ok() {
                    Some(job.slot)
                } else {
                    // The GPU may read it yet, for all that is known: it stays mapped for ever.
                    Box::leak(Box::new(job.slot));
                    None
                };
                if done_in.send(Placed { tag: job.tag, slot, result }).is_err() {
                    break;
                }
            }
        })?;
        let (jobs, threads) = (Some(jobs), vec![issuing, waiting]);
        Ok(Self { jobs, done, threads, stream, ordinal: gpu.ordinal(), in_flight: 0 })
    }

    /// The stream of the copies, for memory that is allocated in its order.
    pub(crate) fn stream(&self) -> Arc<Stream> {
        Arc::clone(&self.stream)
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = Builder::new().name(name.to_owned()).spawn(work);
    thread.map_err(|error| Error::Internal(format!("no thread for {name}: {error}")))
}

impl Device for CudaDevice {
    fn place(&mut self, tag: usize, slot: Slot, placements: Vec<Placement>) {
        self.in_flight += 1;
        if let Some(jobs) = &self.jobs {
            jobs.send(Job { tag, slot, placements }).expect("the issuer outlives the device");
        }
    }

    fn wait(&mut self, timeout: Duration) -> Option<Placed> {
        let placed = self.done.recv_timeout(timeout).ok()?;
        self.in_flight -= 1;
        Some(placed)
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn threads(&self) -> usize {
        self.threads.len()
    }

    fn name(&self) -> String {
        format!("cuda:{}", self.ordinal)
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // Neither thread panics: `issue` is caught, and the waiter only passes on.
            let _ended = thread.join();
        }
    }
}

/// What the issuing thread works with.
struct Issuer {
    gpu: &'static Gpu,
    stream: Arc<Stream>,
    user: Option<Stream>,
    ready: Option<Event>,
    /// None where there was no room for it.
    staging: OnceCell<Option<Staging>>,
    current: bool,
    events: Receiver<Event>,
}

impl Issuer {
    fn run(mut self, jobs: &Receiver<Job>, begun_in: &Sender<Begun>) {
        for mut job in jobs {
            let begun = catch_unwind(AssertUnwindSafe(|| self.issue(&mut job)));
            let event = begun.unwrap_or_else(|_| Err(worker_panicked("copy")));
            if begun_in.send(Begun { job, event }).is_err() {
                break;
            }
        }
    }

    /// Gives a job's copies to the driver.
    fn issue(&mut self, job: &mut Job) -> Result<Event> {
        if !self.current {
            self.gpu.make_current()?;
            self.current = true;
        }
        job.slot.pin(self.gpu);
        self.wait_for_user()?;
        let rides = |piece: &Placement| piece.bytes <= SMALL_PIECE_BYTES;
        let small = job.placements.iter().filter(|piece| rides(piece)).count();
        let together = (2..=PIECES_MAX).contains(&small)
            && job.slot.pinned().device_address().is_some()
            && self.gpu.kernels().is_ok()
            && self.staging().is_some();
        for piece in job.placements.iter().filter(|piece| !(together && rides(piece))) {
            self.copy(target_of(piece)?, &job.slot, piece.slot_offset, piece.bytes)?;
        }
        if together {
            let pieces: Vec<&Placement> =
                job.placements.iter().filter(|piece| rides(piece)).collect();
            self.scatter(&mut job.slot, &pieces)?;
        }
        let event = match self.events.try_recv() {
            Ok(used) => used,
            Err(_) => Event::new(self.gpu)?,
        };
        event.record(&self.stream)?;
        Ok(event)
    }

    fn wait_for_user(&mut self) -> Result<()> {
        let Some(user) = &self.user else { return Ok(()) };
        let ready = match self.ready.take() {
            Some(ready) => ready,
            None => Event::new(self.gpu)?,
        };
        ready.record(user)?;
        self.stream.wait_for(&ready)?;
        self.ready = Some(ready);
        Ok(())
    }

    fn copy(&self, target: u64, slot: &Slot, offset: usize, bytes: usize) -> Result<()> {
        let source = &slot.as_slice()[offset..offset + bytes];
        // SAFETY: the slot is this job's until the waiter has seen the event after its copies (or
        // has synchronized), and the pipeline keeps a target's memory until its slots are back.
        unsafe { self.stream.copy(target, source) }
    }

    /// The address of the staging memory, made when it is first wanted; none where there is no room:
    /// then each piece has a copy of its own.
    fn staging(&self) -> Option<u64> {
        let made = self.staging.get_or_init(|| Staging::new(&self.stream, SLOT_BYTES).ok());
        made.as_ref().map(Staging::address)
    }

    /// Copies runs of small pieces to staging memory, from where one kernel places them all. The
    /// next job's copies stand behind the kernel in the stream, so the staging memory is free.
    fn scatter(&mut self, slot: &mut Slot, pieces: &[&Placement]) -> Result<()> {
        let lost = || Error::Internal("staging memory that is not there".to_owned());
        let staging = self.staging().ok_or_else(lost)?;
        for run in runs(pieces) {
            self.copy(staging + run.0 as u64, slot, run.0, run.1 - run.0)?;
        }
        let table = slot.table_mut();
        for (entry, piece) in table.chunks_exact_mut(PIECE_BYTES).zip(pieces) {
            let words = [target_of(piece)?, staging + piece.slot_offset as u64, piece.bytes as u64];
            for (bytes, word) in entry.chunks_exact_mut(8).zip(words) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
        let lost = || Error::Internal("a table of pieces that the GPU cannot read".to_owned());
        let table = slot.table_address().ok_or_else(lost)?;
        let kernels = self.gpu.kernels().map_err(|text| Error::Internal(text.to_owned()))?;
        // SAFETY: as for `copy`; the table is part of the slot, and the staging memory is freed in the
        // order of the stream, behind the kernel.
        unsafe { kernels.scatter(self.gpu, &self.stream, table, pieces.len()) }
    }
}

/// Stretches of a slot, from and to, that hold small pieces side by side.
fn runs(pieces: &[&Placement]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for piece in pieces {
        let end = piece.slot_offset + piece.bytes;
        match runs.last_mut() {
            Some(run) if run.1 == piece.slot_offset => run.1 = end,
            _ => runs.push((piece.slot_offset, end)),
        }
    }
    runs
}

/// The device address of a piece's place in its tensor.
fn target_of(piece: &Placement) -> Result<u64> {
    match &piece.buffer {
        Buffer::Cuda(buffer) if piece.buffer_offset + piece.bytes <= buffer.bytes() => {
            Ok(buffer.address() + piece.buffer_offset as u64)
        }
        _ => Err(Error::Internal("a piece outside its tensor's device memory".to_owned())),
    }
}
