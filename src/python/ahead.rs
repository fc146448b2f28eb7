//! A load in the background that never has more memory of a GPU than its caller is about to take:
//! torch allocates it in the caller's thread, a little ahead.

use std::collections::HashSet;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, never, unbounded};
use pyo3::prelude::*;

use crate::checkpoint::engine::Options;
use crate::config::SIGNAL_INTERVAL;
use crate::error::{Error, Result};
use crate::plan::{Wanted, windows};
use crate::python::allocator::{Made, take};
use crate::python::background::{Background, Event, Provision};
use crate::python::errors::is_refusal;
use crate::python::fetch::{Ready, Sources, Targets};
use crate::queue::{self, queue};
use crate::reader::CachePolicy;
use crate::report::Report;

/// How far ahead it may be.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Targets, in their order, that are read in file order before the next ones: so many bytes.
    pub(crate) window_bytes: u64,
    /// Memory made and not taken yet, but for the window that is waited for.
    pub(crate) ahead_bytes: u64,
    /// How long what was read waits to be taken; for ever, if none.
    pub(crate) patience: Option<Duration>,
}

/// The load, seen from its caller.
pub(crate) struct Ahead {
    ready: Ready,
    made: Made,
    sources: Sources,
    wanted: Vec<Wanted>,
    windows: Vec<Range<usize>>,
    /// See [`Limits::ahead_bytes`].
    bytes_max: u64,
    /// For how many targets there is memory, and how many bytes of it were not taken yet.
    provided: usize,
    outstanding_bytes: u64,
    arrived: HashSet<usize>,
    /// How the load ended, once that is known and until it is told.
    outcome: Option<Result<Report>>,
    /// The thread ends when it is told that there will be no more.
    memory: Option<queue::Sender<Provision>>,
    events: Receiver<Event>,
    thread: Option<JoinHandle<()>>,
    /// Whether the thread is told what was taken, lest it lose patience.
    tells: bool,
    process: u32,
}

impl Ahead {
    /// Begins to read; nothing without bytes is among the targets.
    pub(crate) fn begin(
        ready: Ready,
        sources: Sources,
        targets: Targets,
        limits: Limits,
    ) -> Result<Self> {
        let ready = ready.with_interpreter();
        let Targets { wanted, .. } = targets;
        let (memory, provided) = queue();
        let (events_in, events) = unbounded();
        let mut options = Options::with_cache(CachePolicy::Auto);
        options.window_bytes = limits.window_bytes;
        let background = Background {
            sources: Sources::clone(&sources),
            wanted: wanted.clone(),
            options,
            hands: ready.hands(),
            provided,
            made: ready.made(),
            events: events_in,
            patience: limits.patience,
        };
        let thread = Builder::new().name("sst-loop".to_owned()).spawn(move || background.run());
        let thread = thread.map_err(|error| Error::no_thread("sst-loop", &error))?;
        Ok(Self {
            made: ready.made(),
            ready,
            sources,
            windows: windows(&wanted, limits.window_bytes),
            wanted,
            bytes_max: limits.ahead_bytes,
            provided: 0,
            outstanding_bytes: 0,
            arrived: HashSet::new(),
            outcome: None,
            memory: Some(memory),
            events,
            thread: Some(thread),
            tells: limits.patience.is_some(),
            process: std::process::id(),
        })
    }

    /// Whether it was begun in this process, not in the one that this was forked from.
    pub(crate) fn is_of_this_process(&self) -> bool {
        self.process == std::process::id()
    }

    /// Lets the load go on until a target is there.
    pub(crate) fn head_for(&mut self, py: Python<'_>, target: usize) {
        if self.outcome.is_none()
            && let Err(error) = self.provide(py, target)
        {
            self.end(); // the thread ends with what it has
            self.outcome = Some(Err(error));
        }
    }

    /// Waits for a target, which was not taken before; none where the load has ended without it:
    /// [`Self::outcome`] knows why.
    pub(crate) fn take<'py>(
        &mut self,
        py: Python<'py>,
        target: usize,
    ) -> Result<Option<Bound<'py, PyAny>>> {
        self.head_for(py, target);
        while !self.arrived.remove(&target) {
            if self.outcome.is_some() {
                return Ok(None);
            }
            match self.event(py)? {
                Event::Arrived(target) => {
                    self.arrived.insert(target);
                }
                Event::Ended(outcome) => self.outcome = Some(*outcome),
            }
        }
        let Wanted { shard, .. } = self.wanted[target];
        self.sources[shard].check_unchanged()?;
        self.outstanding_bytes -= self.wanted[target].bytes();
        if let Some(memory) = self.memory.as_ref().filter(|_| self.tells) {
            // A thread that has given up is found by its last word.
            let _sent = memory.send(Provision::Taken);
        }
        Ok(take(py, &self.made, target)?)
    }

    /// Ends the load, if it goes on yet, and tells how it ended; once, and only in its own process.
    pub(crate) fn finish(&mut self, py: Python<'_>) -> Option<Result<Report>> {
        if !self.is_of_this_process() {
            return None;
        }
        self.end();
        if let Some(thread) = self.thread.take() {
            // It waits for what is in flight; others may need the interpreter for that to end.
            let _ended = py.detach(|| thread.join());
            for event in self.events.try_iter() {
                if let Event::Ended(outcome) = event {
                    self.outcome.get_or_insert(*outcome);
                }
            }
        }
        self.outcome.take()
    }

    /// Lets the thread end.
    fn end(&mut self) {
        if let Some(memory) = self.memory.take() {
            // A thread that has ended before needs no telling.
            let _sent = memory.send(Provision::End);
        }
    }

    /// Has torch make memory for the next targets, in the thread that will have them: for all that
    /// are read together with the one that is waited for, and for more while there is room ahead.
    fn provide(&mut self, py: Python<'_>, target: usize) -> Result<()> {
        let Some(memory) = &self.memory else { return Ok(()) };
        let window = self.windows.partition_point(|window| window.end <= target);
        let needed = self.windows.get(window).map_or(0, |window| window.end);
        while let Some(wanted) = self.wanted.get(self.provided)
            && (self.provided < needed || self.outstanding_bytes + wanted.bytes() <= self.bytes_max)
        {
            let size = usize::try_from(wanted.bytes()).unwrap_or(usize::MAX);
            let buffer = match self.ready.provide(self.provided, size) {
                Err(error) if self.provided >= needed && is_refusal(py, &error) => {
                    self.bytes_max = 0; // no room ahead: go on without
                    break;
                }
                made => made?,
            };
            // A thread that has given up is found by its last word.
            let _sent = memory.send(Provision::Memory(buffer));
            self.provided += 1;
            self.outstanding_bytes += wanted.bytes();
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
                Err(RecvTimeoutError::Disconnected) => {
                    let lost = Error::Internal("the reading thread is gone".to_owned());
                    return Ok(Event::Ended(Box::new(Err(lost))));
                }
            }
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if !self.is_of_this_process() {
            // Its channels may be in the middle of something.
            let events = std::mem::replace(&mut self.events, never());
            let _left = ManuallyDrop::new((self.memory.take(), events));
            return;
        }
        self.end();
        // Without an interpreter, at its end, the thread ends with the process.
        let _outcome = Python::try_attach(|py| self.finish(py));
    }
}
