//! Who holds the result. A device takes a filled slot by value, places its pieces, gives it back.

use std::time::{Duration, Instant};

pub(crate) mod cuda;
pub(crate) mod host;
pub(crate) mod mapping;
pub(crate) mod null;
pub(crate) mod part;
pub(crate) mod slot;
pub(crate) mod workers;

#[cfg(test)]
pub(crate) mod fake;

pub(crate) use cuda::CudaBuffer;
pub(crate) use host::HostBuffer;
pub(crate) use mapping::Mapping;
pub(crate) use part::Part;
pub(crate) use slot::Slot;
pub(crate) use workers::{Job, Worker};

use crate::error::{Error, Result};
use crate::queue::{Wakes, wait_for};

/// Memory for one tensor; clones share it.
#[derive(Clone, Debug)]
pub(crate) enum Buffer {
    /// Memory of the host.
    Host(HostBuffer),
    /// Memory of a GPU.
    Cuda(CudaBuffer),
}

impl Buffer {
    /// The address of its first byte, as its device counts.
    pub(crate) fn address(&self) -> *mut u8 {
        match self {
            Self::Host(buffer) => buffer.address(),
            Self::Cuda(buffer) => {
                let address = usize::try_from(buffer.address()).unwrap_or_default();
                std::ptr::without_provenance_mut(address)
            }
        }
    }
}

/// A piece of a slot and where it goes.
#[derive(Debug)]
pub(crate) struct Placement {
    /// The destination.
    pub(crate) buffer: Buffer,
    /// Where in the destination, in bytes.
    pub(crate) buffer_offset: usize,
    /// Where in the slot, in bytes.
    pub(crate) slot_offset: usize,
    /// How many bytes.
    pub(crate) bytes: usize,
}

/// A slot whose pieces are placed, or were given up.
#[derive(Debug)]
pub(crate) struct Placed {
    /// The number that was given with the slot.
    pub(crate) tag: usize,
    /// The slot, free again; none where the device cannot say that it has let go of it.
    pub(crate) slot: Option<Slot>,
    /// When the copies before the kernels were done, where kernels placed some of it.
    pub(crate) copied: Option<Instant>,
    /// Whether every piece arrived.
    pub(crate) result: Result<()>,
}

/// Takes slots and places what is in them. Pieces of one load never overlap in a destination.
pub(crate) trait Device {
    /// Begins to place the pieces of a slot; `poll` gives the slot back under the same tag.
    fn place(&mut self, tag: usize, slot: Slot, placements: Vec<Placement>);

    /// The next slot that is done, if there is one.
    fn poll(&mut self) -> Option<Placed>;

    /// Waits for a slot where no thread does that would tell of it.
    fn finish(&mut self) -> Option<Placed> {
        None
    }

    /// Adds what tells that a slot may be done.
    fn add_to(&self, wakes: &mut Wakes);

    /// Slots taken and not given back.
    fn in_flight(&self) -> usize;

    /// Threads in use.
    fn threads(&self) -> usize;

    /// What callers call it: `cpu` or `cuda:N`.
    fn name(&self) -> String;
}

/// Makes the memory of tensors, each ahead of its bytes, on the thread that carries the load.
pub(crate) trait Allocator {
    /// Memory for the target of that number.
    fn allocate(&mut self, target: usize, bytes: usize) -> Result<Buffer>;
}

impl<A: Allocator> Allocator for &mut A {
    fn allocate(&mut self, target: usize, bytes: usize) -> Result<Buffer> {
        (**self).allocate(target, bytes)
    }
}

/// Where the bytes of a load go.
pub(crate) struct Destination<'parts> {
    /// Who places them.
    pub(crate) device: &'parts mut dyn Device,
    /// In whose memory.
    pub(crate) allocator: &'parts mut dyn Allocator,
}

/// The next slot that is done, if one is within the time.
pub(crate) fn wait(device: &mut dyn Device, timeout: Duration) -> Option<Placed> {
    wait_for(timeout, |wakes| {
        device.add_to(wakes);
        device.poll().or_else(|| device.finish())
    })
}

/// The error of a worker that died.
pub(crate) fn worker_panicked(what: &str) -> Error {
    Error::Internal(format!("a {what} thread panicked"))
}
