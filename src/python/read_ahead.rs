//! Loops over `get_tensor` on a GPU: once two tensors were asked for in their order, the next ones are
//! read in the background into memory that torch allocates in the caller's thread, a little ahead.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, unbounded};
use pyo3::exceptions::PyInterruptedError;
use pyo3::prelude::*;

use crate::checkpoint::engine::{Options, run};
use crate::checkpoint::{Shard, Storage};
use crate::config::{AHEAD_BYTES_MAX, AHEAD_PATIENCE, SIGNAL_INTERVAL, SLOT_BYTES};
use crate::device::cuda::copy::CudaWorker;
use crate::device::cuda::stream::Stream;
use crate::device::workers::Workers;
use crate::device::{Allocator, Buffer, Destination, Worker};
use crate::error::{Error, Result};
use crate::format::Header;
use crate::pipeline::Caller;
use crate::plan::{Read, Wanted};
use crate::python::destination::{Made, TorchAllocator, TorchGpu, take};
use crate::python::fetch::Targets;
use crate::python::tensor::torch_type;
use crate::reader::CachePolicy;
use crate::source::Source;
use crate::tensor::Form;

/// What the last calls asked for, and what is read ahead because of it.
#[derive(Default)]
pub(crate) struct Habit {
    last: Option<usize>,
    /// How many calls in a row were in order, the first one not counted.
    steps: usize,
    /// How many loops that were read ahead broke off: each doubles the steps that make a loop.
    broken: u32,
    ahead: Option<Ahead>,
}

impl Habit {
    /// The tensor at a place of the file, if it was read ahead or is the next of a loop.
    pub(crate) fn tensor<'py>(
        &mut self,
        py: Python<'py>,
        shard: &Shard,
        ordinal: usize,
        place: usize,
    ) -> Result<Option<Bound<'py, PyAny>>> {
        let before = self.last.replace(place);
        let gpu = TorchGpu::open(py, ordinal)?;
        if self.ahead.as_ref().is_some_and(|ahead| !ahead.goes_on(&gpu, place)) {
            self.ahead = None;
            self.broken = (self.broken + 1).min(BROKEN_MAX);
        }
        if self.ahead.is_none() {
            let order = before.and_then(|before| order_from(&shard.header, before, place));
            self.steps = if order.is_some() { self.steps + 1 } else { 0 };
            let Some(order) = order.filter(|_| self.steps >= 1 << self.broken) else {
                return Ok(None);
            };
            // What hinders it does not hinder reading one tensor alone.
            self.ahead = Ahead::begin(py, shard, gpu, order).unwrap_or(None);
        }
        let Some(ahead) = &mut self.ahead else { return Ok(None) };
        if ahead.places.front() != Some(&place) {
            return Ok(None); // one that is too large, or lies where the loop has been
        }
        let tensor = ahead.next(py)?;
        if tensor.is_none() || ahead.places.is_empty() {
            self.ahead = None;
        }
        Ok(tensor)
    }
}

/// The most that broken loops count.
const BROKEN_MAX: u32 = 8;

type Order<'header> = Box<dyn Iterator<Item = usize> + 'header>;

/// The places that a loop will come to, if two calls make one: by name, or as in the file.
fn order_from(header: &Header, before: usize, place: usize) -> Option<Order<'_>> {
    let by_name = header.places_by_name();
    let rank = header.rank(place)?;
    if rank > 0 && by_name[rank - 1] as usize == before {
        return Some(Box::new(by_name[rank..].iter().map(|&place| place as usize)));
    }
    let as_in_file: Order<'_> = Box::new(place..header.len());
    (place == before + 1).then_some(as_in_file)
}

/// A load in the background that never has more memory than the loop is about to take.
struct Ahead {
    /// Of the tensors that are read ahead, those not taken yet, in the order of the loop.
    places: VecDeque<usize>,
    waiting: HashSet<usize>,
    sizes: Vec<u64>,
    /// How many were taken, and for how many there is memory.
    taken: usize,
    provided: usize,
    gpu: TorchGpu,
    source: Arc<dyn Source>,
    allocator: TorchAllocator,
    made: Made,
    /// The thread ends when this is gone.
    memory: Option<Sender<Buffer>>,
    events: Receiver<Event>,
    arrived: HashSet<usize>,
    thread: Option<JoinHandle<()>>,
    process: u32,
}

/// What the thread tells: a target is whole, or there will be no more.
enum Event {
    Arrived(usize),
    Ended,
}

impl Ahead {
    /// Begins to read the tensors of a loop, where there are several that are worth it.
    fn begin(
        py: Python<'_>,
        shard: &Shard,
        gpu: TorchGpu,
        order: Order<'_>,
    ) -> Result<Option<Self>> {
        let Storage::Engine(source) = &shard.storage else { return Ok(None) };
        let (places, targets) = worth_it(py, shard, order)?;
        if places.len() < 2 {
            return Ok(None);
        }
        let Targets { wanted, forms, .. } = Targets::new(targets, None);
        let sizes = wanted.iter().map(Wanted::bytes).collect();
        let made: Made = Arc::new(Mutex::new(forms.iter().map(|_| None).collect()));
        let allocator = TorchAllocator::new(py, gpu.gpu, &forms.into(), &made)?;
        let (memory, provided) = unbounded();
        let (events_in, events) = unbounded();
        let background = Background {
            sources: Arc::from([Arc::clone(source)]),
            wanted,
            stream: Arc::new(Stream::new(gpu.gpu)?),
            user: gpu.stream(),
            provided,
            events: events_in,
        };
        let thread = Builder::new().name("sst-loop".to_owned()).spawn(move || background.run());
        let thread = thread.map_err(|error| Error::Internal(format!("no thread: {error}")))?;
        Ok(Some(Self {
            waiting: places.iter().copied().collect(),
            places,
            sizes,
            taken: 0,
            provided: 0,
            gpu,
            source: Arc::clone(source),
            allocator,
            made,
            memory: Some(memory),
            events,
            arrived: HashSet::new(),
            thread: Some(thread),
            process: std::process::id(),
        }))
    }

    /// Whether a call is as expected: on the same stream of torch's, and not out of order.
    fn goes_on(&self, gpu: &TorchGpu, place: usize) -> bool {
        self.process == std::process::id()
            && self.gpu.is(gpu)
            && (self.places.front() == Some(&place) || !self.waiting.contains(&place))
    }

    /// Waits for the next tensor; none where the thread has given up, for whatever reason: who then
    /// reads it alone will see.
    fn next<'py>(&mut self, py: Python<'py>) -> Result<Option<Bound<'py, PyAny>>> {
        if self.memory.is_some() && self.provide().is_err() {
            self.memory = None; // the thread ends with what it has
        }
        let target = self.taken;
        while !self.arrived.remove(&target) {
            match self.event(py)? {
                Event::Arrived(target) => self.arrived.insert(target),
                Event::Ended => return Ok(None),
            };
        }
        self.source.check_unchanged()?;
        self.taken += 1;
        if let Some(place) = self.places.pop_front() {
            self.waiting.remove(&place);
        }
        Ok(take(py, &self.made, target))
    }

    /// Has torch make memory for the next tensors, in the thread that will have them: for all that
    /// begin in the read in which the next one ends, or that read could not begin.
    fn provide(&mut self) -> Result<()> {
        let bytes_of = |sizes: Option<&[u64]>| sizes.unwrap_or_default().iter().sum::<u64>();
        let mut ahead = bytes_of(self.sizes.get(self.taken..self.provided));
        let next = self.sizes.get(self.taken).copied().unwrap_or(0);
        let enough = |ahead: u64| ahead >= AHEAD_BYTES_MAX && ahead >= next + SLOT_BYTES as u64;
        while self.provided < self.sizes.len() && !enough(ahead) {
            let bytes = self.sizes[self.provided];
            let size = usize::try_from(bytes).unwrap_or(usize::MAX);
            let buffer = self.allocator.allocate(self.provided, size)?;
            if let Some(memory) = &self.memory {
                // A thread that has given up is found by its last word.
                let _sent = memory.send(buffer);
            }
            self.provided += 1;
            ahead += bytes;
        }
        Ok(())
    }

    fn event(&self, py: Python<'_>) -> Result<Event> {
        if let Ok(event) = self.events.try_recv() {
            return Ok(event);
        }
        loop {
            match py.detach(|| self.events.recv_timeout(SIGNAL_INTERVAL)) {
                Ok(event) => return Ok(event),
                Err(RecvTimeoutError::Timeout) => py.check_signals()?,
                Err(RecvTimeoutError::Disconnected) => return Ok(Event::Ended),
            }
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.memory = None;
        let thread = self.thread.take().filter(|_| self.process == std::process::id());
        if let Some(thread) = thread {
            // It waits for what is in flight; others may need the interpreter for that to end.
            let _ended = Python::try_attach(|py| py.detach(|| thread.join()));
        }
    }
}

/// Places in the file, and what is to be read of each.
type Worthwhile = (VecDeque<usize>, Vec<(Wanted, Form)>);

/// Of an order, the tensors that one pass over the file brings and that fit into what is read ahead.
fn worth_it(py: Python<'_>, shard: &Shard, order: Order<'_>) -> Result<Worthwhile> {
    let mut places = VecDeque::new();
    let mut targets = Vec::new();
    for place in order {
        let (wanted, form) = shard.wanted(place, None)?;
        let forward = places.back().is_none_or(|&last| place > last);
        let known = || torch_type(py, form.dtype).is_ok() && form.torch_shape().is_ok();
        if forward && (1..=AHEAD_BYTES_MAX).contains(&wanted.bytes()) && known() {
            places.push_back(place);
            targets.push((wanted, form));
        }
    }
    Ok((places, targets))
}

/// What the thread works with.
struct Background {
    sources: Arc<[Arc<dyn Source>]>,
    wanted: Vec<Wanted>,
    stream: Arc<Stream>,
    user: Stream,
    provided: Receiver<Buffer>,
    events: Sender<Event>,
}

impl Background {
    fn run(self) {
        let Self { sources, wanted, stream, user, provided, events } = self;
        let buffers = Rc::new(RefCell::new(Vec::new()));
        let mut memory = Provided(Rc::clone(&buffers));
        let (told, idle) = (events.clone(), None);
        let mut pace = Pace { provided, buffers, events: told, closed: false, idle };
        let workers = Workers::new(|done| {
            let worker: Box<dyn Worker> = Box::new(CudaWorker::new(&stream, Some(user), done)?);
            Ok(vec![worker])
        });
        // Why it ends is told to who reads the tensor alone.
        let _outcome = workers.and_then(|mut workers| {
            let to = Destination { device: &mut workers, allocator: &mut memory };
            run(&sources, wanted, Options::with_cache(CachePolicy::Auto), to, &mut pace)
        });
        let _sent = events.send(Event::Ended);
    }
}

/// Memory that the loop's thread has made, in the order of the targets.
struct Provided(Rc<RefCell<Vec<Buffer>>>);

impl Allocator for Provided {
    fn allocate(&mut self, target: usize, _bytes: usize) -> Result<Buffer> {
        let lost = || Error::Internal("a read without memory to go to".to_owned());
        self.0.borrow().get(target).cloned().ok_or_else(lost)
    }
}

/// Begins no read for which there is no memory yet, and tells what has arrived.
struct Pace {
    provided: Receiver<Buffer>,
    buffers: Rc<RefCell<Vec<Buffer>>>,
    events: Sender<Event>,
    closed: bool,
    idle: Option<Instant>,
}

impl Pace {
    fn take(&mut self) {
        loop {
            match self.provided.try_recv() {
                Ok(buffer) => self.buffers.borrow_mut().push(buffer),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.closed = true;
                    return;
                }
            }
            self.idle = None;
        }
    }
}

impl Caller for Pace {
    fn deliver(&mut self, target: usize, _buffer: Buffer) -> Result<()> {
        // A loop that nobody goes on with is found by the next check.
        let _sent = self.events.send(Event::Arrived(target));
        Ok(())
    }

    fn check(&mut self, _bytes_done: u64) -> Result<()> {
        self.take();
        if self.closed {
            let ended = PyInterruptedError::new_err("the loop ended");
            return Err(Error::Stopped(Box::new(ended)));
        }
        Ok(())
    }

    fn admits(&mut self, read: &Read) -> bool {
        self.take();
        let last = read.pieces.iter().map(|piece| piece.target).max();
        last.is_none_or(|last| last < self.buffers.borrow().len())
    }

    fn wait(&mut self) {
        match self.provided.recv_timeout(SIGNAL_INTERVAL) {
            Ok(buffer) => {
                self.buffers.borrow_mut().push(buffer);
                self.idle = None;
            }
            Err(RecvTimeoutError::Timeout) => {
                let since = *self.idle.get_or_insert_with(Instant::now);
                self.closed |= since.elapsed() > AHEAD_PATIENCE;
            }
            Err(RecvTimeoutError::Disconnected) => self.closed = true,
        }
    }
}
