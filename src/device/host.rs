//! Host memory of ours, and the threads that copy from slots into it.
#![expect(unsafe_code, reason = "threads write disjoint parts of one allocation")]

use std::alloc::{Layout, alloc, dealloc};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, unbounded};

use crate::config::{COPY_THREADS_MAX, HOST_ALIGNMENT_BYTES, processors};
use crate::device::{Allocator, Buffer, Device, Placed, Placement, Slot, worker_panicked};
use crate::error::{Error, Result};

/// One tensor's memory; clones share it, and the last one frees it.
#[derive(Clone, Debug)]
pub(crate) struct HostBuffer(Arc<Allocation>);

#[derive(Debug)]
struct Allocation {
    address: *mut u8,
    layout: Layout,
}

// SAFETY: the memory belongs to no thread; who may write where is `HostBuffer::write`'s contract.
unsafe impl Send for Allocation {}
// SAFETY: as above; shared access never makes references into the memory.
unsafe impl Sync for Allocation {}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: `address` came from `alloc` with this very layout, and no clone is left.
        unsafe { dealloc(self.address, self.layout) }
    }
}

impl HostBuffer {
    /// Aligned memory whose content is whatever was there.
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        let out_of_memory = || Error::Memory { bytes: bytes as u64, purpose: "a tensor" };
        let layout = Layout::from_size_align(bytes.max(1), HOST_ALIGNMENT_BYTES);
        let layout = layout.map_err(|_| out_of_memory())?;
        // SAFETY: the layout's size is at least one.
        let address = unsafe { alloc(layout) };
        if address.is_null() {
            Err(out_of_memory())
        } else {
            Ok(Self(Arc::new(Allocation { address, layout })))
        }
    }

    /// The address of its first byte.
    pub(crate) fn address(&self) -> *mut u8 {
        self.0.address
    }

    /// Copies bytes to an offset.
    ///
    /// # Safety
    /// Callers must guarantee that no other thread reads or writes the same range meanwhile.
    unsafe fn write(&self, offset: usize, bytes: &[u8]) {
        let end = offset.checked_add(bytes.len());
        assert!(end.is_some_and(|end| end <= self.0.layout.size()), "a piece outside its tensor");
        // SAFETY: the range was just checked to lie inside the allocation.
        let target = unsafe { self.0.address.add(offset) };
        // SAFETY: the target range is ours alone by this function's contract, and a slot's memory
        // is never part of a tensor's.
        unsafe { target.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// The bytes, copied out.
    #[cfg(test)]
    pub(crate) fn to_vec(&self, bytes: usize) -> Vec<u8> {
        assert!(bytes <= self.0.layout.size());
        // SAFETY: tests look only when the load has ended, and every byte was written.
        unsafe { std::slice::from_raw_parts(self.0.address, bytes) }.to_vec()
    }
}

struct Job {
    tag: usize,
    slot: Slot,
    placements: Vec<Placement>,
}

/// Copies slots into host memory on threads that live as long as it.
#[derive(Debug)]
pub(crate) struct HostDevice {
    jobs: Option<Sender<Job>>,
    jobs_out: Receiver<Job>,
    done: Receiver<Placed>,
    done_in: Sender<Placed>,
    threads: Vec<JoinHandle<()>>,
    threads_max: usize,
    in_flight: usize,
}

impl HostDevice {
    /// A device without threads yet; they come with the first slots.
    pub(crate) fn new() -> Self {
        Self::with_threads_max(processors().min(COPY_THREADS_MAX))
    }

    /// A device for a single small tensor, which its caller copies.
    pub(crate) fn without_threads() -> Self {
        Self::with_threads_max(0)
    }

    fn with_threads_max(threads_max: usize) -> Self {
        let (jobs, jobs_out) = unbounded();
        let (done_in, done) = unbounded();
        let (jobs, threads) = (Some(jobs), Vec::new());
        Self { jobs, jobs_out, done, done_in, threads, threads_max, in_flight: 0 }
    }

    fn grow(&mut self) {
        if self.threads.len() >= self.in_flight.min(self.threads_max) {
            return;
        }
        let (jobs, done) = (self.jobs_out.clone(), self.done_in.clone());
        let name = format!("sst-copy-{}", self.threads.len());
        let thread = Builder::new().name(name).spawn(move || {
            for Job { tag, slot, placements } in jobs {
                if done.send(carry_out(tag, slot, &placements)).is_err() {
                    break;
                }
            }
        });
        self.threads.extend(thread);
    }
}

/// Copies every piece. A panic becomes the result, and the slot comes back all the same.
pub(crate) fn carry_out(tag: usize, slot: Slot, placements: &[Placement]) -> Placed {
    let copied = catch_unwind(AssertUnwindSafe(|| {
        for piece in placements {
            let bytes = &slot.as_slice()[piece.slot_offset..piece.slot_offset + piece.bytes];
            let Buffer::Host(buffer) = &piece.buffer else {
                return Err(Error::Internal("a piece for a GPU came to the host".to_owned()));
            };
            // SAFETY: pieces of one load never overlap in a destination (the plan's property),
            // and nobody reads a tensor before its last piece is placed.
            unsafe { buffer.write(piece.buffer_offset, bytes) }
        }
        Ok(())
    }));
    Placed {
        tag,
        slot: Some(slot),
        result: copied.unwrap_or_else(|_| Err(worker_panicked("copy"))),
    }
}

/// Gives each tensor host memory of its own.
#[derive(Debug)]
pub(crate) struct HostAllocator;

impl Allocator for HostAllocator {
    fn allocate(&mut self, _target: usize, bytes: usize) -> Result<Buffer> {
        HostBuffer::new(bytes).map(Buffer::Host)
    }
}

impl Device for HostDevice {
    fn place(&mut self, tag: usize, slot: Slot, placements: Vec<Placement>) {
        self.in_flight += 1;
        self.grow();
        match &self.jobs {
            Some(jobs) if !self.threads.is_empty() => {
                let job = Job { tag, slot, placements };
                jobs.send(job).expect("the receiver lives as long as the device");
            }
            // A single tensor, or a process that may not have another thread.
            _ => {
                let placed = carry_out(tag, slot, &placements);
                self.done_in.send(placed).expect("the receiver lives as long as the device");
            }
        }
    }

    fn wait(&mut self, timeout: Duration) -> Option<Placed> {
        let placed = self.done.recv_timeout(timeout).ok()?;
        self.in_flight -= 1;
        Some(placed)
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn threads(&self) -> usize {
        self.threads.len()
    }

    fn name(&self) -> String {
        "cpu".to_owned()
    }
}

impl Drop for HostDevice {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A copy thread never panics: `carry_out` catches.
            let _ended = thread.join();
        }
    }
}
