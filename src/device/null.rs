//! A device that drops what it is given: what remains is the cost of reading.

use std::collections::VecDeque;
use std::time::Duration;

use crate::device::{Allocator, Buffer, Device, HostBuffer, Placed, Placement, Slot};
use crate::error::Result;

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
        self.done.push_back(Placed { tag, slot: Some(slot), result: Ok(()) });
    }

    fn wait(&mut self, _timeout: Duration) -> Option<Placed> {
        self.done.pop_front()
    }

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
