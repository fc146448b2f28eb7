//! A device for tests: copies late and in any order, by a seed, and fails on cue.

use std::sync::Arc;

use crate::device::host::carry_out;
use crate::device::{Allocator, Buffer, Device, HostBuffer, Placed, Placement, Slot};
use crate::error::{Error, Result};
use crate::queue::Wakes;
use crate::source::faulty::{Fate, Faults};

/// Holds slots until their time has come, and reads them only then.
#[derive(Debug)]
pub(crate) struct FakeDevice {
    faults: Arc<Faults>,
    fate: Arc<Fate>,
    held: Vec<(u64, usize, Slot, Vec<Placement>)>,
}

impl FakeDevice {
    /// Which of its operations fail, and how late it is.
    pub(crate) fn new(faults: &Arc<Faults>, fate: &Arc<Fate>) -> Self {
        Self { faults: Arc::clone(faults), fate: Arc::clone(fate), held: Vec::new() }
    }
}

/// Host memory that runs out on cue.
#[derive(Debug)]
pub(crate) struct FakeAllocator {
    /// Which operations fail.
    pub(crate) faults: Arc<Faults>,
}

impl Allocator for FakeAllocator {
    fn allocate(&mut self, _target: usize, bytes: usize) -> Result<Buffer> {
        self.faults
            .step()
            .map_err(|_| Error::Memory { bytes: bytes as u64, purpose: "a tensor" })?;
        HostBuffer::new(bytes).map(Buffer::Host)
    }
}

impl Device for FakeDevice {
    fn place(&mut self, tag: usize, slot: Slot, placements: Vec<Placement>) {
        self.held.push((self.fate.later(), tag, slot, placements));
    }

    fn poll(&mut self) -> Option<Placed> {
        let now = self.fate.look();
        let index = self.held.iter().position(|(when, ..)| *when <= now)?;
        let (_, tag, slot, placements) = self.held.swap_remove(index);
        let mut placed = carry_out(tag, slot, &placements);
        if self.faults.step().is_err() {
            placed.result = Err(Error::Internal("the copy failed on cue".to_owned()));
        }
        Some(placed)
    }

    /// What it holds may be done whenever it is looked at.
    fn add_to(&self, wakes: &mut Wakes) {
        wakes.add_awake();
    }

    fn in_flight(&self) -> usize {
        self.held.len()
    }

    fn threads(&self) -> usize {
        0
    }

    fn name(&self) -> String {
        "fake".to_owned()
    }
}
