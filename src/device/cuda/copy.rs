//! Slots to device memory. One thread gives the driver its work, another waits for it to be done; of
//! a single small tensor the caller does both. Its thread never has another current device than before.
#![expect(unsafe_code, reason = "copies run on after the call that begins them")]

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use crossbeam::channel::{self, Receiver, unbounded};

use crate::config::{PIECES_TOGETHER_MIN, SLOT_BYTES, SMALL_PIECE_BYTES, TABLE_BYTES};
use crate::device::cuda::driver::Gpu;
use crate::device::cuda::memory::Staging;
use crate::device::cuda::stream::{Event, Stream};
use crate::device::cuda::tables::{Tables, address_of, conversion_of, runs};
use crate::device::{Buffer, Job, Placed, Placement, Slot, Worker, worker_panicked};
use crate::error::{Error, Result};
use crate::queue::Sender;
use crate::source::system::stay_on_node;

/// A job that was given to the driver.
struct Begun {
    job: Job,
    marks: Result<Marks>,
}

/// Points of the stream.
struct Marks {
    /// Behind the copies, where kernels follow.
    copied: Option<Event>,
    /// Behind all.
    done: Event,
}

/// Copies slots to one GPU, by a stream of its own.
pub(crate) struct CudaWorker {
    hands: Hands,
    done: Sender<Placed>,
    ordinal: usize,
}

/// Who does the work.
enum Hands {
    /// A thread that begins copies, and one that waits for them.
    Threads(Option<channel::Sender<Job>>, Vec<JoinHandle<()>>),
    /// The caller's.
    None(Box<Inline>),
}

impl CudaWorker {
    /// Two threads for a stream. Copies wait for what `user` (a stream of torch's) was given before
    /// them: the memory that torch hands out may still be in use there.
    pub(crate) fn new(
        stream: &Arc<Stream>,
        user: Option<Stream>,
        done: &Sender<Placed>,
    ) -> Result<Self> {
        let gpu = stream.gpu();
        let (jobs, jobs_out) = unbounded();
        let (begun_in, begun) = unbounded();
        let (events_in, events) = unbounded();
        let issuer = Issuer::new(stream, user, events);
        let issuing = spawn("sst-cuda-copy", move || {
            gpu.node().into_iter().for_each(stay_on_node);
            issuer.run(&jobs_out, &begun_in);
        })?;
        let waiter = Waiter { stream: Arc::clone(stream), events: events_in };
        let results = done.clone();
        let waiting = spawn("sst-cuda-wait", move || {
            gpu.node().into_iter().for_each(stay_on_node);
            // Where this fails, so does all that follows, and says so.
            let _current = gpu.make_current();
            for job in begun {
                if results.send(waiter.wait(job)).is_err() {
                    break;
                }
            }
        })?;
        let hands = Hands::Threads(Some(jobs), vec![issuing, waiting]);
        Ok(Self { hands, done: done.clone(), ordinal: gpu.ordinal() })
    }

    /// For a single small tensor, which its caller copies by the stream that its memory belongs to:
    /// threads, and streams that wait for each other, would cost more than they gain.
    pub(crate) fn without_threads(stream: &Arc<Stream>, done: &Sender<Placed>) -> Self {
        let (events_in, events) = unbounded();
        let waiter = Waiter { stream: Arc::clone(stream), events: events_in };
        let issuer = Issuer::new(stream, None, events);
        let hands = Hands::None(Box::new(Inline { issuer, waiter, begun: VecDeque::new() }));
        Self { hands, done: done.clone(), ordinal: stream.gpu().ordinal() }
    }
}

fn spawn(name: &'static str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = Builder::new().name(name.to_owned()).spawn(work);
    thread.map_err(|error| Error::no_thread(name, &error))
}

/// What a caller does itself: it begins copies, and waits for them when it has nothing else to do.
struct Inline {
    issuer: Issuer,
    waiter: Waiter,
    /// What it has begun and not waited for.
    begun: VecDeque<Begun>,
}

impl Inline {
    fn begin(&mut self, mut job: Job) {
        let entered = self.issuer.gpu.enter();
        let marks = entered.and_then(|_entered| self.issuer.issue_caught(&mut job));
        self.begun.push_back(Begun { job, marks });
    }

    fn finish(&mut self) -> Option<Placed> {
        let begun = self.begun.pop_front()?;
        // Where this fails, so does all that follows, and says so.
        let _entered = self.issuer.gpu.enter();
        Some(self.waiter.wait(begun))
    }
}

impl Drop for Inline {
    fn drop(&mut self) {
        while self.finish().is_some() {}
    }
}

/// What waits for copies.
struct Waiter {
    stream: Arc<Stream>,
    /// Where events go that were waited for.
    events: channel::Sender<Event>,
}

impl Waiter {
    /// A job's slot back, once the driver has let go of it.
    fn wait(&self, Begun { job: Job { tag, slot, .. }, marks }: Begun) -> Placed {
        let mut copied_at = None;
        let result = marks.and_then(|Marks { copied, done }| {
            if let Some(copied) = copied {
                copied.synchronize()?;
                copied_at = Some(Instant::now());
                let _kept = self.events.send(copied);
            }
            let seen = done.synchronize();
            // The issuer may have ended; then the event ends here.
            let _kept = self.events.send(done);
            seen
        });
        let mut slot = Some(slot);
        if result.is_err() && self.stream.synchronize().is_err() {
            // The GPU may read it yet, for all that is known: it stays mapped for ever.
            Box::leak(Box::new(slot.take()));
        }
        Placed { tag, slot, copied: copied_at, result }
    }
}

impl Worker for CudaWorker {
    fn begin(&mut self, job: Job) {
        match &mut self.hands {
            Hands::Threads(jobs, _) => {
                if let Some(jobs) = jobs {
                    jobs.send(job).expect("the issuer outlives the worker");
                }
            }
            Hands::None(inline) => inline.begin(job),
        }
    }

    fn finish(&mut self) {
        if let Hands::None(inline) = &mut self.hands
            && let Some(placed) = inline.finish()
        {
            // Nobody listens any more where the load is gone.
            let _sent = self.done.send(placed);
        }
    }

    fn fills(&self, buffer: &Buffer) -> bool {
        matches!(buffer, Buffer::Cuda(buffer) if buffer.ordinal() == self.ordinal)
    }

    fn threads(&self) -> usize {
        match &self.hands {
            Hands::Threads(_, threads) => threads.len(),
            Hands::None(_) => 0,
        }
    }

    fn name(&self) -> String {
        format!("cuda:{}", self.ordinal)
    }
}

impl Drop for CudaWorker {
    fn drop(&mut self) {
        if let Hands::Threads(jobs, threads) = &mut self.hands {
            *jobs = None;
            for thread in threads.drain(..) {
                // Neither thread panics: `issue` is caught, and the waiter only passes on.
                let _ended = thread.join();
            }
        }
    }
}

/// What begins copies.
struct Issuer {
    gpu: &'static Gpu,
    stream: Arc<Stream>,
    user: Option<Stream>,
    ready: Option<Event>,
    /// Or why there is none.
    staging: OnceCell<Result<Staging>>,
    /// Events that were waited for.
    events: Receiver<Event>,
}

impl Issuer {
    fn new(stream: &Arc<Stream>, user: Option<Stream>, events: Receiver<Event>) -> Self {
        let (stream, staging) = (Arc::clone(stream), OnceCell::new());
        Self { gpu: stream.gpu(), stream, user, ready: None, staging, events }
    }

    /// Begins jobs, in a thread of its own.
    fn run(mut self, jobs: &Receiver<Job>, begun_in: &channel::Sender<Begun>) {
        let mut current = false;
        for mut job in jobs {
            let ready = if current { Ok(()) } else { self.gpu.make_current() };
            current = ready.is_ok();
            let marks = ready.and_then(|()| self.issue_caught(&mut job));
            if begun_in.send(Begun { job, marks }).is_err() {
                break;
            }
        }
    }

    fn issue_caught(&mut self, job: &mut Job) -> Result<Marks> {
        let begun = catch_unwind(AssertUnwindSafe(|| self.issue(job)));
        begun.unwrap_or_else(|_| Err(worker_panicked("copy")))
    }

    /// Gives a job's copies to the driver.
    fn issue(&mut self, job: &mut Job) -> Result<Marks> {
        job.slot.pin(self.gpu);
        self.wait_for_user()?;
        let (staged, direct) = self.sorted(&job.placements);
        for piece in direct {
            self.copy(address_of(piece)?, &job.slot, piece.slot_offset, piece.bytes)?;
        }
        let mut copied = None;
        if !staged.is_empty() {
            copied = Some(self.place_staged(&mut job.slot, &staged)?);
        }
        let event = self.event()?;
        event.record(&self.stream)?;
        Ok(Marks { copied, done: event })
    }

    /// An event, one that was waited for if there is any.
    fn event(&self) -> Result<Event> {
        self.events.try_recv().or_else(|_| Event::new(self.gpu))
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

    /// Pieces that a kernel places, and pieces with a copy of their own.
    fn sorted<'job>(
        &self,
        placements: &'job [Placement],
    ) -> (Vec<&'job Placement>, Vec<&'job Placement>) {
        let small = |piece: &Placement| piece.bytes <= SMALL_PIECE_BYTES;
        let many = placements.iter().filter(|piece| small(piece)).count() >= PIECES_TOGETHER_MIN;
        let together = many && self.gpu.kernels().is_ok() && self.staging().is_some();
        placements
            .iter()
            .partition(|piece| conversion_of(piece).is_some() || (together && small(piece)))
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
        let make = || Staging::new(&self.stream, SLOT_BYTES + TABLE_BYTES);
        self.staging.get_or_init(make).as_ref().ok().map(Staging::address)
    }

    /// Copies runs of pieces to staging memory, from where kernels place them all. The next job's
    /// copies stand behind the kernels in the stream, so the staging memory is free. Gives the point
    /// between the two.
    fn place_staged(&mut self, slot: &mut Slot, pieces: &[&Placement]) -> Result<Event> {
        let Some(staging) = self.staging() else {
            let lost = || Error::Internal("staging memory that is not there".to_owned());
            return Err(self.staging.take().and_then(Result::err).unwrap_or_else(lost));
        };
        for run in runs(pieces) {
            self.copy(staging + run.0 as u64, slot, run.0, run.1 - run.0)?;
        }
        let tables = Tables::write(slot.table_mut(), staging, pieces)?;
        let table = if let Some(address) = slot.table_address() {
            address
        } else {
            let address = staging + SLOT_BYTES as u64;
            // SAFETY: as in `copy`.
            unsafe { self.stream.copy(address, &slot.table()[..tables.bytes])? }
            address
        };
        let kernels = self.gpu.kernels().map_err(|text| Error::Internal(text.to_owned()))?;
        let copied = self.event()?;
        copied.record(&self.stream)?;
        for (kernel, offset, count) in tables.launches() {
            // SAFETY: as for `copy`; the table is part of the slot or of the staging memory, which
            // is freed in the order of the stream, behind the kernels.
            unsafe { kernels.launch(kernel, &self.stream, table + offset, count)? }
        }
        Ok(copied)
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        // What the caller's thread drops needs a context as well.
        let _entered = self.gpu.enter();
        self.ready = None;
        self.staging.take();
        self.events.try_iter().for_each(drop);
    }
}
