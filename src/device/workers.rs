//! Worker threads behind the one `Device` that a load sees: of one memory, or of several GPUs and
//! the host, where the pieces of a slot are placed in one memory after the other.

use std::collections::HashMap;

use crate::device::{Buffer, Device, Placed, Placement, Slot};
use crate::error::Result;
use crate::queue::{Receiver, Sender, Wakes, queue};

/// A slot to be placed.
#[derive(Debug)]
pub(crate) struct Job {
    /// The number that goes with it.
    pub(crate) tag: usize,
    /// What the pieces are in.
    pub(crate) slot: Slot,
    /// The pieces.
    pub(crate) placements: Vec<Placement>,
}

/// Places slots in one memory, and sends each that is done.
pub(crate) trait Worker {
    /// Begins to place a slot; a piece that is not of its memory is an error.
    fn begin(&mut self, job: Job);

    /// Waits for the slot that was begun first, where no thread does, and sends it.
    fn finish(&mut self) {}

    /// Whether a tensor's memory is the one that it fills.
    fn fills(&self, buffer: &Buffer) -> bool;

    /// Threads in use.
    fn threads(&self) -> usize;

    /// What callers call the memory: `cpu` or `cuda:N`.
    fn name(&self) -> String;
}

/// The workers of one load.
pub(crate) struct Workers {
    all: Vec<Box<dyn Worker>>,
    done: Receiver<Placed>,
    /// Pieces of slots in flight that belong to a memory whose turn has not come.
    later: HashMap<usize, Vec<Placement>>,
    in_flight: usize,
}

impl Workers {
    /// Workers that were made to send to the channel that this listens to; one at least.
    pub(crate) fn new(
        make: impl FnOnce(&Sender<Placed>) -> Result<Vec<Box<dyn Worker>>>,
    ) -> Result<Self> {
        let (done_in, done) = queue();
        let all = make(&done_in)?;
        Ok(Self { all, done, later: HashMap::new(), in_flight: 0 })
    }

    /// Gives a slot to the worker of its first piece, with all pieces for the same memory.
    fn begin(&mut self, tag: usize, slot: Slot, mut placements: Vec<Placement>) {
        let whose = |piece: &Placement| self.all.iter().position(|w| w.fills(&piece.buffer));
        let found = placements.first().filter(|_| self.all.len() > 1).and_then(whose);
        if let Some(number) = found {
            let worker = &self.all[number];
            let (now, later) =
                placements.into_iter().partition(|piece| worker.fills(&piece.buffer));
            placements = now;
            let later: Vec<Placement> = later;
            if !later.is_empty() {
                self.later.insert(tag, later);
            }
        }
        self.all[found.unwrap_or(0)].begin(Job { tag, slot, placements });
    }
}

impl Device for Workers {
    fn place(&mut self, tag: usize, slot: Slot, placements: Vec<Placement>) {
        self.in_flight += 1;
        self.begin(tag, slot, placements);
    }

    fn poll(&mut self) -> Option<Placed> {
        loop {
            let placed = self.done.take()?;
            match (self.later.remove(&placed.tag), placed) {
                (Some(later), Placed { tag, slot: Some(slot), result: Ok(()), .. }) => {
                    self.begin(tag, slot, later);
                }
                (_, placed) => {
                    self.in_flight -= 1;
                    return Some(placed);
                }
            }
        }
    }

    fn finish(&mut self) -> Option<Placed> {
        self.all.iter_mut().for_each(|worker| worker.finish());
        self.poll()
    }

    fn add_to(&self, wakes: &mut Wakes) {
        if self.in_flight > 0 {
            self.done.add_to(wakes);
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn threads(&self) -> usize {
        self.all.iter().map(|worker| worker.threads()).sum()
    }

    fn name(&self) -> String {
        let names: Vec<String> = self.all.iter().map(|worker| worker.name()).collect();
        names.join("+")
    }
}
