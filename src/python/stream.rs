//! `stream()`: tensors as they arrive, read by one thread that ends with the iterator.

use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder, JoinHandle};
use std::time::Instant;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use pyo3::exceptions::PyInterruptedError;
use pyo3::prelude::*;

use crate::checkpoint::engine::Options;
use crate::checkpoint::{Backend, Checkpoint, Place};
use crate::config::{SIGNAL_INTERVAL, STREAM_BYTES_MAX};
use crate::device::Buffer;
use crate::error::Error;
use crate::pipeline::Caller;
use crate::plan::{Read, Wanted};
use crate::python::address::{Named, location_of, look_at_signals};
use crate::python::allocator::{Made, take};
use crate::python::destination::{Goal, Goals, Memory};
use crate::python::errors::Result;
use crate::python::fetch::{Manner, Ready, Targets, to_tensor};
use crate::python::load::{cache_of, select, sources_of, targets_of};
use crate::python::report::remember;
use crate::python::tensor::import_torch;
use crate::queue::{self, Wakes, queue, wait_for};
use crate::report::Report;
use crate::tensor::Form;

/// What the reading thread sends: a target that is whole, or how the load ended.
enum Event {
    Arrived(usize, Buffer),
    Ended(Result<Report>),
}

/// What was read ahead, and what the reading thread is told.
struct Waiting {
    held: Mutex<Held>,
    cancelled: AtomicBool,
    /// Something was taken, or the stream is closed.
    news: queue::Sender<()>,
    /// The one that the thread is of.
    process: u32,
}

/// Memory of tensors that were not taken yet, and how many of them are whole.
#[derive(Default)]
struct Held {
    bytes: u64,
    whole: usize,
}

impl Waiting {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for new tensors, if there is any. As long as there is nothing to take there is, however
    /// large they are: what would make it may be in them.
    fn admit(&self, bytes: u64) -> bool {
        let mut held = self.held();
        if held.whole > 0 && held.bytes + bytes > STREAM_BYTES_MAX {
            return false;
        }
        held.bytes += bytes;
        true
    }

    fn take(&self, bytes: u64) {
        let mut held = self.held();
        held.bytes -= bytes;
        held.whole -= 1;
        drop(held);
        self.tell();
    }

    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.tell();
    }

    /// A child of fork tells nobody: its parent's thread may have held the queue's lock.
    fn tell(&self) {
        if self.process == std::process::id() {
            // Nobody listens any more: the load has ended.
            let _told = self.news.send(());
        }
    }
}

/// The caller of the reading thread's load.
struct Forward {
    events: Sender<Event>,
    waiting: Arc<Waiting>,
    news: queue::Receiver<()>,
    sizes: Vec<u64>,
    /// For which targets there is memory.
    admitted: Vec<bool>,
}

impl Caller for Forward {
    fn deliver(&mut self, target: usize, buffer: Buffer) -> Result<()> {
        self.waiting.held().whole += 1;
        // A closed stream is found by the next check.
        let _sent = self.events.send(Event::Arrived(target, buffer));
        Ok(())
    }

    fn check(&mut self, _bytes_done: u64) -> Result<()> {
        if self.waiting.cancelled.load(Ordering::Relaxed) {
            let closed = PyInterruptedError::new_err("the stream was closed");
            return Err(Error::Stopped(Box::new(closed)));
        }
        Ok(())
    }

    fn receives(&mut self, read: &Read) -> bool {
        let targets = || read.pieces.iter().map(|piece| piece.target);
        let mut new: Vec<usize> = targets().filter(|&target| !self.admitted[target]).collect();
        new.dedup(); // the pieces of a target stand together
        let bytes: u64 = new.iter().map(|&target| self.sizes[target]).sum();
        let admitted = new.is_empty() || self.waiting.admit(bytes);
        for target in new.into_iter().filter(|_| admitted) {
            self.admitted[target] = true;
        }
        admitted
    }

    fn has_news(&mut self, wakes: &mut Wakes) -> bool {
        self.news.add_to(wakes);
        std::iter::from_fn(|| self.news.take()).count() > 0
    }

    fn wait(&mut self) {
        wait_for(SIGNAL_INTERVAL, |wakes| self.has_news(wakes).then_some(()));
    }
}

/// The parts of a stream that is not closed.
struct Running {
    checkpoint: Arc<Checkpoint>,
    places: Vec<Place>,
    forms: Vec<Form>,
    made: Made,
    events: Receiver<Event>,
    thread: JoinHandle<()>,
    process: u32,
    began: Instant,
}

/// An iterator over (name, tensor) in the order of arrival.
#[pyclass(frozen, weakref, module = "safetensors_streaming._native")]
pub(crate) struct Stream {
    running: Mutex<Option<Running>>,
    waiting: Arc<Waiting>,
}

#[pymethods]
impl Stream {
    #[new]
    #[pyo3(signature = (paths, cache, filter=None, device=None, allocator="torch"))]
    #[expect(clippy::too_many_arguments, reason = "one for each keyword of Python's function")]
    fn new(
        py: Python<'_>,
        paths: Vec<Named>,
        cache: &str,
        filter: Option<Py<PyAny>>,
        device: Option<usize>,
        allocator: &str,
    ) -> PyResult<Self> {
        let began = Instant::now();
        let goals = Goals::one(Goal::new(device, Memory::new(allocator)?));
        let options = Options::with_cache(cache_of(cache)?);
        let manner = Manner::new(goals, options);
        let checkpoint =
            py.detach(|| Checkpoint::open(&location_of(paths)?, Backend::Engine).map(Arc::new))?;
        import_torch(py)?;
        let places = select(py, &checkpoint, filter)?;
        let (news, news_out) = queue();
        let (held, cancelled) = (Mutex::default(), AtomicBool::new(false));
        let process = std::process::id();
        let waiting = Arc::new(Waiting { held, cancelled, news, process });
        let (events_in, events) = unbounded();
        let mut targets = targets_of(&checkpoint, &places, None)?;
        let mut ready = Ready::new(py, &manner, &mut targets)?;
        let Targets { wanted, forms, .. } = targets;
        let made = ready.made();
        let sizes: Vec<u64> = wanted.iter().map(Wanted::bytes).collect();
        let sources = sources_of(&checkpoint);
        let ended = events_in.clone();
        let mut forward = Forward {
            events: events_in,
            waiting: Arc::clone(&waiting),
            news: news_out,
            admitted: vec![false; sizes.len()],
            sizes,
        };
        let thread = Builder::new().name("sst-stream".to_owned()).spawn(move || {
            let outcome = ready
                .adopt_thread()
                .and_then(|()| ready.run(&sources, wanted, options, &mut forward));
            // Nobody listens any more: the stream was closed.
            let _sent = ended.send(Event::Ended(outcome));
        });
        let thread = thread.map_err(|error| Error::no_thread("sst-stream", &error))?;
        let running = Running { checkpoint, places, forms, made, events, thread, process, began };
        Ok(Self { running: Mutex::new(Some(running)), waiting })
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<(String, Bound<'py, PyAny>)>> {
        let event = py.detach(|| self.next_event())?;
        match event {
            None => Ok(None),
            Some(Event::Arrived(target, buffer)) => self.deliver(py, target, buffer).map(Some),
            Some(Event::Ended(outcome)) => self.finish(py, outcome).map(|()| None),
        }
    }

    /// Stops reading and frees what was not taken; the iterator is at its end.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.stop());
    }
}

impl Stream {
    fn with_running<T>(&self, look: impl FnOnce(&Running) -> T) -> Option<T> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(look)
    }

    /// The next event; looks at signals while it waits.
    fn next_event(&self) -> PyResult<Option<Event>> {
        let Some(events) = self.with_running(|running| running.events.clone()) else {
            return Ok(None);
        };
        loop {
            match events.recv_timeout(SIGNAL_INTERVAL) {
                Ok(event) => return Ok(Some(event)),
                Err(RecvTimeoutError::Timeout) => look_at_signals()?,
                Err(RecvTimeoutError::Disconnected) => {
                    let died = "the reading thread ended without a word".to_owned();
                    return Err(Error::Internal(died).into());
                }
            }
        }
    }

    fn deliver<'py>(
        &self,
        py: Python<'py>,
        target: usize,
        buffer: Buffer,
    ) -> PyResult<(String, Bound<'py, PyAny>)> {
        let parts = self.with_running(|running| {
            let place = running.places[target];
            let checkpoint = &running.checkpoint;
            let form = running.forms[target].clone();
            (checkpoint.name(place).to_owned(), form, Arc::clone(&running.made))
        });
        let gone = || Error::Internal("a stream was closed while it was being read".to_owned());
        let (name, form, made) = parts.ok_or_else(gone)?;
        self.waiting.take(form.bytes());
        Ok((name, to_tensor(py, take(py, &made, target)?, buffer, form)?))
    }

    fn finish(&self, py: Python<'_>, outcome: Result<Report>) -> PyResult<()> {
        let facts = self.with_running(|running| {
            let names = running.places.iter().map(|&place| running.checkpoint.name(place));
            let names: Vec<String> = names.map(str::to_owned).collect();
            (names, running.began)
        });
        py.detach(|| self.stop());
        let (names, began) = facts.unwrap_or_else(|| (Vec::new(), Instant::now()));
        let mut report = outcome.map_err(|error| {
            error.named(|target| names.get(target).cloned().unwrap_or_default())
        })?;
        report.seconds.total = began.elapsed().as_secs_f64();
        remember(py, report);
        Ok(())
    }

    /// Ends the thread. In a child of fork there is none, and what it had is left alone.
    fn stop(&self) {
        self.waiting.cancel();
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(running) = running else { return };
        if running.process == std::process::id() {
            drop(running.events);
            // Python's collector may find a stream that nobody has any more in its own thread.
            if running.thread.thread().id() != thread::current().id() {
                // A panic in it was told as the end of its channel.
                let _ended = running.thread.join();
            }
        } else {
            let _left = ManuallyDrop::new(running); // its channel may be in the middle of something
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // The thread may be waiting for the interpreter, which this one has.
        let stopped = Python::try_attach(|py| py.detach(|| self.stop()));
        if stopped.is_none() {
            self.waiting.cancel();
        }
    }
}
