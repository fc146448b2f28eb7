//! Host memory of ours, and the threads that copy from slots into it.
#![expect(unsafe_code, reason = "threads write disjoint parts of one allocation")]

use std::alloc::{Layout, alloc, dealloc};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crossbeam::channel::{Receiver, Sender as Jobs, unbounded};

use crate::config::{COPY_THREADS_MAX, HOST_ALIGNMENT_BYTES, processors};
#[cfg(test)]
use crate::device::workers::Workers;
use crate::device::{Allocator, Buffer, Job, Placed, Placement, Slot, Worker, worker_panicked};
use crate::error::{Error, Result};
use crate::queue::Sender;

/// One tensor's memory; clones share it, and the last one frees it.
#[derive(Clone, Debug)]
pub(crate) struct HostBuffer(Arc<Allocation>);

#[derive(Debug)]
struct Allocation {
    address: *mut u8,
    bytes: usize,
    /// How it was allocated; none where it is somebody else's.
    layout: Option<Layout>,
    /// Whose it is, kept alive.
    _owner: Option<Box<dyn Any + Send + Sync>>,
}

// SAFETY: the memory belongs to no thread; who may write where is `HostBuffer::write`'s contract.
unsafe impl Send for Allocation {}
// SAFETY: as above; shared access never makes references into the memory.
unsafe impl Sync for Allocation {}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Some(layout) = self.layout {
            // SAFETY: `address` came from `alloc` with this very layout, and no clone is left.
            unsafe { dealloc(self.address, layout) }
        }
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
            let layout = Some(layout);
            Ok(Self(Arc::new(Allocation { address, bytes, layout, _owner: None })))
        }
    }

    /// Memory that an owner keeps.
    ///
    /// # Safety
    /// Callers must guarantee that there are so many bytes as long as the owner lives, and that
    /// nobody else reads or writes them until the last clone is dropped.
    pub(crate) unsafe fn borrowed(
        address: *mut u8,
        bytes: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Self {
        Self(Arc::new(Allocation { address, bytes, layout: None, _owner: Some(owner) }))
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
        assert!(end.is_some_and(|end| end <= self.0.bytes), "a piece outside its tensor");
        // SAFETY: the range was just checked to lie inside the allocation.
        let target = unsafe { self.0.address.add(offset) };
        // SAFETY: the target range is ours alone by this function's contract, and a slot's memory
        // is never part of a tensor's.
        unsafe { target.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// How many clones there are.
    #[cfg(test)]
    pub(crate) fn users(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// The bytes, copied out.
    #[cfg(test)]
    pub(crate) fn to_vec(&self, bytes: usize) -> Vec<u8> {
        assert!(bytes <= self.0.bytes);
        // SAFETY: tests look only at a tensor that was handed out, and every byte was written.
        unsafe { std::slice::from_raw_parts(self.0.address, bytes) }.to_vec()
    }
}

/// Copies slots into host memory on threads that live as long as it.
#[derive(Debug)]
pub(crate) struct HostWorker {
    jobs: Option<Jobs<Job>>,
    jobs_out: Receiver<Job>,
    done: Sender<Placed>,
    threads: Vec<JoinHandle<()>>,
    threads_max: usize,
}

impl HostWorker {
    /// A worker whose threads come with the first slots.
    pub(crate) fn new(done: &Sender<Placed>) -> Self {
        Self::with_threads_max(done, processors().min(COPY_THREADS_MAX))
    }

    /// A worker for a single small tensor, which its caller copies.
    pub(crate) fn without_threads(done: &Sender<Placed>) -> Self {
        Self::with_threads_max(done, 0)
    }

    /// The whole of a load into host memory.
    #[cfg(test)]
    pub(crate) fn alone() -> Workers {
        Workers::new(|done| Ok(vec![Box::new(Self::new(done))])).unwrap()
    }

    fn with_threads_max(done: &Sender<Placed>, threads_max: usize) -> Self {
        let (jobs, jobs_out) = unbounded();
        let (jobs, threads) = (Some(jobs), Vec::new());
        Self { jobs, jobs_out, done: done.clone(), threads, threads_max }
    }

    /// One more thread, where a job is waiting for one.
    fn grow(&mut self) {
        let busy = self.threads.is_empty() || !self.jobs_out.is_empty();
        if !busy || self.threads.len() >= self.threads_max {
            return;
        }
        let (jobs, done) = (self.jobs_out.clone(), self.done.clone());
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
        copied: None,
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

impl Worker for HostWorker {
    fn begin(&mut self, job: Job) {
        self.grow();
        match &self.jobs {
            Some(jobs) if !self.threads.is_empty() => {
                jobs.send(job).expect("the receiver lives as long as the worker");
            }
            // A single tensor, or a process that may not have another thread.
            _ => {
                let Job { tag, slot, placements } = job;
                // Nobody listens any more where the load is gone.
                let _sent = self.done.send(carry_out(tag, slot, &placements));
            }
        }
    }

    fn fills(&self, buffer: &Buffer) -> bool {
        matches!(buffer, Buffer::Host(_))
    }

    fn threads(&self) -> usize {
        self.threads.len()
    }

    fn name(&self) -> String {
        "cpu".to_owned()
    }
}

impl Drop for HostWorker {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A copy thread never panics: `carry_out` catches.
            let _ended = thread.join();
        }
    }
}
