//! A reader for tests: reads late and in any order, by a seed, and fails on cue.

use std::io;
use std::sync::Arc;

use crate::device::Slot;
use crate::queue::Wakes;
use crate::reader::{Completion, Reader, Request};
use crate::source::faulty::Faults;
use crate::source::{Source, read_full};

/// A small generator of numbers that are the same in every run.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A number below a bound.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound.max(1)
    }
}

/// Holds reads until they are waited for. The slot is poisoned meanwhile.
#[derive(Debug)]
pub(crate) struct FakeReader {
    /// What it reads from.
    pub(crate) sources: Arc<[Arc<dyn Source>]>,
    /// Which reads fail.
    pub(crate) faults: Arc<Faults>,
    /// In which order they end.
    pub(crate) random: Random,
    /// What it holds.
    pub(crate) held: Vec<(Request, Slot)>,
}

impl Reader for FakeReader {
    fn submit(&mut self, request: Request, mut slot: Slot) {
        slot.as_mut_slice()[..request.bytes].fill(0xDE);
        self.held.push((request, slot));
    }

    fn poll(&mut self) -> Option<Completion> {
        if self.held.is_empty() || self.random.below(4) == 0 {
            return None;
        }
        let index = self.random.below(self.held.len());
        let (request, mut slot) = self.held.swap_remove(index);
        let source = self.sources[request.shard].as_ref();
        let read = |slot: &mut Slot| -> io::Result<usize> {
            self.faults.step()?;
            read_full(source, request.offset, &mut slot.as_mut_slice()[..request.bytes])
        };
        let result = read(&mut slot);
        Some(Completion { request, slot, result })
    }

    /// What it holds may end whenever it is looked at.
    fn add_to(&self, wakes: &mut Wakes) {
        wakes.add_awake();
    }

    fn in_flight(&self) -> usize {
        self.held.len()
    }
}
