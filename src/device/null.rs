//! A device that drops what it is given: what remains is the cost of reading.

use std::collections::VecDeque;

use crate::device::{Allocator, Buffer, Device, HostBuffer, Placed, Placement, Slot};
use crate::error::Result;
use crate::queue::Wakes;

/// Gives every slot back at once.
#[derive(Debug, Default)]
pub(crate) struct NullDevice {
    done: VecDeque<Placed>,
}

/// Gives nobody any memory.
#[derive(Debug)]
pub(crate) struct NullAllocator;

impl Allocator for NullAllocator {
    fn allocate(&mut self, _target: usize, _bytes: usize) -> Result<Buffer> {
        HostBuffer::new(0).map(Buffer::Host)
    }
}

impl Device for NullDevice {
    fn place(&mut self, tag: usize, slot: Slot, _placements: Vec<Placement>) {
        self.done.push_back(Placed { tag, slot: Some(slot), copied: None, result: Ok(()) });
    }

    fn poll(&mut self) -> Option<Placed> {
        self.done.pop_front()
    }

    /// What it has is there at once.
    fn add_to(&self, _wakes: &mut Wakes) {}

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn threads(&self) -> usize {
        0
    }

    fn name(&self) -> String {
        "none".to_owned()
    }
}
