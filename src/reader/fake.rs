//! A reader for tests: reads late and in any order, by a seed, and fails on cue.

use std::sync::Arc;

use crate::device::Slot;
use crate::queue::Wakes;
use crate::reader::{Completion, Reader, Request};
use crate::source::faulty::{Fate, Faults};
use crate::source::{Source, read_on};

/// Holds reads until their time has come. The slot is poisoned meanwhile.
#[derive(Debug)]
pub(crate) struct FakeReader {
    sources: Arc<[Arc<dyn Source>]>,
    faults: Arc<Faults>,
    fate: Arc<Fate>,
    held: Vec<(u64, Request, Slot)>,
    slots_worth: usize,
}

impl FakeReader {
    /// Which of its operations fail, and how late it is.
    pub(crate) fn new(
        sources: &Arc<[Arc<dyn Source>]>,
        faults: &Arc<Faults>,
        fate: &Arc<Fate>,
    ) -> Self {
        let (sources, faults, fate) = (Arc::clone(sources), Arc::clone(faults), Arc::clone(fate));
        Self { sources, faults, fate, held: Vec::new(), slots_worth: 0 }
    }

    /// The same, with use for so many slots.
    pub(crate) fn worth(self, slots_worth: usize) -> Self {
        Self { slots_worth, ..self }
    }
}

impl Reader for FakeReader {
    fn submit(&mut self, request: Request, mut slot: Slot) {
        slot.as_mut_slice()[..request.bytes].fill(0xDE);
        self.held.push((self.fate.later(), request, slot));
    }

    fn poll(&mut self) -> Option<Completion> {
        let now = self.fate.look();
        let index = self.held.iter().position(|(when, ..)| *when <= now)?;
        let (_, request, mut slot) = self.held.swap_remove(index);
        let source = self.sources[request.shard].as_ref();
        let (done, result) = match self.faults.step() {
            Ok(()) => read_on(source, request.offset, &mut slot.as_mut_slice()[..request.bytes]),
            Err(error) => (0, Err(error)),
        };
        Some(Completion { request, slot, done, result })
    }

    /// What it holds may end whenever it is looked at.
    fn add_to(&self, wakes: &mut Wakes) {
        wakes.add_awake();
    }

    fn in_flight(&self) -> usize {
        self.held.len()
    }

    fn slots_worth(&self) -> usize {
        self.slots_worth
    }
}
