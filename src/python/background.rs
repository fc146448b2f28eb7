//! The thread of a load that runs ahead of its caller: it reads into memory that the caller's thread has
//! made, and keeps little of what has no memory yet.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;
use pyo3::exceptions::PyInterruptedError;
use pyo3::prelude::*;

use crate::checkpoint::engine::{Options, run};
use crate::config::{EARLY_BYTES_MAX, SIGNAL_INTERVAL};
use crate::device::workers::Workers;
use crate::device::{Allocator, Buffer, Destination};
use crate::error::{Error, Result};
use crate::pipeline::Caller;
use crate::plan::{Read, Wanted};
use crate::python::allocator::{Made, forget_all};
use crate::python::fetch::Sources;
use crate::python::lanes::Hand;
use crate::queue::{self, Wakes, wait_for};
use crate::report::Report;

/// What the thread is told: the memory of the next target, that its caller has taken one, or that there
/// will be no more.
pub(crate) enum Provision {
    Memory(Buffer),
    Taken,
    End,
}

/// What the thread tells: a target is whole, or there will be no more.
pub(crate) enum Event {
    Arrived(usize),
    Ended(Box<Result<Report>>),
}

/// What the thread works with.
pub(crate) struct Background {
    /// The files.
    pub(crate) sources: Sources,
    /// The targets, in the order in which they will be taken.
    pub(crate) wanted: Vec<Wanted>,
    /// How they are read.
    pub(crate) options: Options,
    /// Who copies.
    pub(crate) hands: Vec<Hand>,
    /// What it is told.
    pub(crate) provided: queue::Receiver<Provision>,
    /// What torch has made for it.
    pub(crate) made: Made,
    /// What it tells.
    pub(crate) events: Sender<Event>,
    /// How long what was read waits to be taken; for ever, if none.
    pub(crate) patience: Option<Duration>,
}

impl Background {
    /// Reads until all has arrived, and waits until it was taken, or it is told to end, or loses patience.
    pub(crate) fn run(self) {
        let Self { sources, wanted, options, hands, provided, made, events, patience } = self;
        let buffers = Rc::new(RefCell::new(Vec::new()));
        let mut memory = Provided(Rc::clone(&buffers));
        let mut pace = Pace {
            provided,
            buffers,
            early: VecDeque::new(),
            early_bytes: 0,
            events: events.clone(),
            missing: wanted.len(),
            untaken: wanted.len(),
            closed: false,
            idle: None,
            patience,
        };
        let workers =
            Workers::new(|done| hands.into_iter().map(|hand| hand.worker(false, done)).collect());
        let outcome = workers.and_then(|mut workers| {
            let to = Destination { device: &mut workers, allocator: &mut memory };
            run(&sources, wanted, options, to, &mut pace)
        });
        if patience.is_some() {
            while outcome.is_ok() && pace.untaken > 0 && !pace.closed {
                pace.wait();
            }
            // Nobody has come for what is there yet: who does will read it alone.
            let _forgotten = Python::try_attach(|_py| forget_all(&made));
        }
        // Nobody listens any more where the load was dropped.
        let _sent = events.send(Event::Ended(Box::new(outcome)));
    }
}

/// Memory that the caller's thread has made, in the order of the targets.
struct Provided(Rc<RefCell<Vec<Buffer>>>);

impl Allocator for Provided {
    fn allocate(&mut self, target: usize, _bytes: usize) -> Result<Buffer> {
        let lost = || Error::Internal("a read without memory to go to".to_owned());
        self.0.borrow().get(target).cloned().ok_or_else(lost)
    }
}

/// Begins few reads for which there is no memory yet, places none, and tells what has arrived.
struct Pace {
    provided: queue::Receiver<Provision>,
    buffers: Rc<RefCell<Vec<Buffer>>>,
    /// Reads begun without memory: the last target of each, and its bytes.
    early: VecDeque<(usize, u64)>,
    early_bytes: u64,
    events: Sender<Event>,
    /// Targets that are yet to come.
    missing: usize,
    /// Targets that nobody has taken yet, where it is told.
    untaken: usize,
    closed: bool,
    idle: Option<Instant>,
    patience: Option<Duration>,
}

impl Pace {
    fn take(&mut self, provision: Provision) {
        match provision {
            Provision::Memory(buffer) => self.buffers.borrow_mut().push(buffer),
            Provision::Taken => self.untaken -= 1,
            Provision::End => self.closed = true,
        }
        self.idle = None;
    }

    /// Takes all that was provided; tells whether there was anything.
    fn take_all(&mut self) -> bool {
        let mut any = false;
        while let Some(provision) = self.provided.take() {
            self.take(provision);
            any = true;
        }
        any
    }

    fn is_provided(&self, target: usize) -> bool {
        target < self.buffers.borrow().len()
    }
}

fn last_target(read: &Read) -> usize {
    read.pieces.iter().map(|piece| piece.target).max().unwrap_or_default()
}

impl Caller for Pace {
    fn deliver(&mut self, target: usize, _buffer: Buffer) -> Result<()> {
        self.missing -= 1;
        // A caller who has gone is found by the next check.
        let _sent = self.events.send(Event::Arrived(target));
        Ok(())
    }

    fn check(&mut self, _bytes_done: u64) -> Result<()> {
        self.take_all();
        if self.closed && self.missing > 0 {
            let ended = PyInterruptedError::new_err("the load was given up");
            return Err(Error::Stopped(Box::new(ended)));
        }
        Ok(())
    }

    fn admits(&mut self, read: &Read) -> bool {
        while let Some(&(target, bytes)) = self.early.front()
            && self.is_provided(target)
        {
            self.early.pop_front();
            self.early_bytes -= bytes;
        }
        let (target, bytes) = (last_target(read), read.bytes as u64);
        if self.is_provided(target) {
            return true;
        }
        let admitted = self.early_bytes + bytes <= EARLY_BYTES_MAX;
        if admitted {
            self.early.push_back((target, bytes));
            self.early_bytes += bytes;
        }
        admitted
    }

    fn receives(&mut self, read: &Read) -> bool {
        self.is_provided(last_target(read))
    }

    fn has_news(&mut self, wakes: &mut Wakes) -> bool {
        self.provided.add_to(wakes);
        self.take_all()
    }

    fn wait(&mut self) {
        let provision = wait_for(SIGNAL_INTERVAL, |wakes| {
            self.provided.add_to(wakes);
            self.provided.take()
        });
        if let Some(provision) = provision {
            return self.take(provision);
        }
        let since = *self.idle.get_or_insert_with(Instant::now);
        self.closed |= self.patience.is_some_and(|patience| since.elapsed() > patience);
    }
}
