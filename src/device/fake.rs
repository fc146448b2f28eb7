//! A device for tests: copies late and in any order, by a seed, and fails on cue.

use std::sync::Arc;

use crate::device::host::carry_out;
use crate::device::{Allocator, Buffer, Device, HostBuffer, Placed, Placement, Slot};
use crate::error::{Error, Result};
use crate::queue::Wakes;
use crate::source::faulty::Faults;

/// Holds slots until they are waited for.
#[derive(Debug)]
pub(crate) struct FakeDevice {
    /// Which operations fail.
    pub(crate) faults: Arc<Faults>,
    /// The state of the order's generator.
    pub(crate) seed: u64,
    /// What it holds.
    pub(crate) held: Vec<(usize, Slot, Vec<Placement>)>,
}

impl FakeDevice {
    fn random(&mut self, bound: usize) -> usize {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(7);
        (self.seed >> 33) as usize % bound.max(1)
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
        self.held.push((tag, slot, placements));
    }

    fn poll(&mut self) -> Option<Placed> {
        if self.held.is_empty() || self.random(3) == 0 {
            return None;
        }
        let index = self.random(self.held.len());
        let (tag, slot, placements) = self.held.swap_remove(index);
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
