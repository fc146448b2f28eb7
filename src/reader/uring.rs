//! Direct reads through `io_uring`: a deep queue, one system call for many, almost no CPU.
#![expect(unsafe_code, reason = "the kernel writes into slots while their reads are in flight")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::Fd;
use io_uring::{IoUring, opcode};

use crate::config::LOAD_SLOTS_MAX;
use crate::device::Slot;
use crate::queue::Wakes;
use crate::reader::blocks::Blocks;
use crate::reader::{Completion, Reader, Request, wait};
use crate::source::Source;

/// Reads in flight at once; never more than a load has slots.
const QUEUE_ENTRIES: u32 = 16;

const _: () = assert!(QUEUE_ENTRIES as usize == LOAD_SLOTS_MAX);

/// A read the kernel is doing. The slot stays here until the kernel says that it is done.
#[derive(Debug)]
struct Pending {
    request: Request,
    slot: Slot,
    blocks: Blocks,
}

/// A ring that was seen to work, and the reads in it.
pub(crate) struct UringReader {
    ring: IoUring,
    sources: Arc<[Arc<dyn Source>]>,
    registered: Vec<usize>,
    registered_max: u32,
    pending: Vec<Option<Pending>>,
    ended: VecDeque<Completion>,
    in_flight: usize,
}

impl UringReader {
    /// Tries the kernel; in case of refusal says why, in words that a person can act on.
    pub(crate) fn probe(sources: Arc<[Arc<dyn Source>]>) -> Result<Self, String> {
        let mut ring = IoUring::new(QUEUE_ENTRIES).map_err(|error| refusal(&error))?;
        if !ring.params().is_feature_rw_cur_pos() {
            return Err("io_uring of this kernel is too old: it has no plain reads".to_owned());
        }
        do_nothing(&mut ring).map_err(|error| refusal(&error))?;
        let table = ring.submitter().register_buffers_sparse(QUEUE_ENTRIES);
        let registered_max = if table.is_ok() { QUEUE_ENTRIES } else { 0 };
        let (registered, pending, ended) = (Vec::new(), Vec::new(), VecDeque::new());
        Ok(Self { ring, sources, registered, registered_max, pending, ended, in_flight: 0 })
    }

    /// The number by which the kernel knows a slot, so that it need not pin it for every read. A
    /// slot is registered when it is first used; where the limit on locked memory forbids it, it is
    /// read into all the same.
    fn registration(&mut self, memory: &mut [u8]) -> Option<u16> {
        let start = memory.as_mut_ptr();
        let known = self.registered.iter().position(|&known| known == start.addr());
        let number = known.unwrap_or(self.registered.len());
        if known.is_none() {
            if number >= self.registered_max as usize {
                return None;
            }
            let vector = libc::iovec { iov_base: start.cast(), iov_len: memory.len() };
            let offset = u32::try_from(number).ok()?;
            // SAFETY: registering pins the pages: the kernel keeps them even if the slot were
            // unmapped, and it writes into them only for a read whose slot `pending` owns.
            let taken =
                unsafe { self.ring.submitter().register_buffers_update(offset, &[vector], None) };
            if taken.is_err() {
                self.registered_max = offset;
                return None;
            }
            self.registered.push(start.addr());
        }
        u16::try_from(number).ok()
    }

    /// Queues the rest of a read; fails only while the kernel knows nothing of it.
    fn push(&mut self, index: usize) -> io::Result<()> {
        let missing = || io::Error::from_raw_os_error(libc::EINVAL);
        let mut pending = self.pending[index].take().ok_or_else(missing)?;
        let buffer = self.registration(pending.slot.as_mut_slice());
        let pending = self.pending[index].insert(pending);
        let file = self.sources[pending.request.shard].local().and_then(|local| local.direct());
        let file = file.ok_or_else(missing)?;
        let (part, offset) = pending.blocks.next();
        let target = &mut pending.slot.as_mut_slice()[part];
        let asked = u32::try_from(target.len()).map_err(io::Error::other)?;
        let (address, descriptor) = (target.as_mut_ptr(), Fd(file.as_raw_fd()));
        let entry = match buffer {
            Some(buffer) => {
                opcode::ReadFixed::new(descriptor, address, asked, buffer).offset(offset).build()
            }
            None => opcode::Read::new(descriptor, address, asked).offset(offset).build(),
        };
        // SAFETY: the target lies in a slot that `pending` owns until its completion was seen, and
        // the source that owns the descriptor lives as long as this reader.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(index as u64)) };
        pushed.map_err(io::Error::other)?;
        // An entry that is not taken now stays queued, and `poll` takes it along.
        let _taken = self.ring.submit();
        Ok(())
    }

    /// Looks at what the kernel says of a read: whole, ended early, failed, or to be continued.
    fn advance(&mut self, index: usize, outcome: i32) {
        let Some(pending) = self.pending[index].as_mut() else { return };
        match usize::try_from(outcome) {
            Ok(count) => {
                if pending.blocks.take(count) {
                    return self.end(index, Ok(()));
                }
            }
            Err(_) if [libc::EINTR, libc::EAGAIN].contains(&-outcome) => {}
            Err(_) => return self.end(index, Err(io::Error::from_raw_os_error(-outcome))),
        }
        if let Err(error) = self.push(index) {
            self.end(index, Err(error));
        }
    }

    fn end(&mut self, index: usize, result: io::Result<()>) {
        if let Some(Pending { request, slot, blocks }) = self.pending[index].take() {
            let done = blocks.done();
            self.ended.push_back(Completion { request, slot, done, result });
        }
    }
}

impl Reader for UringReader {
    fn submit(&mut self, request: Request, slot: Slot) {
        self.in_flight += 1;
        let index = self.pending.iter().position(Option::is_none).unwrap_or_else(|| {
            self.pending.push(None);
            self.pending.len() - 1
        });
        self.pending[index] = Some(Pending { request, slot, blocks: Blocks::new(&request) });
        if let Err(error) = self.push(index) {
            self.end(index, Err(error));
        }
    }

    fn poll(&mut self) -> Option<Completion> {
        if !self.ring.submission().is_empty() {
            let _taken = self.ring.submit();
        }
        loop {
            if let Some(completion) = self.ended.pop_front() {
                self.in_flight -= 1;
                return Some(completion);
            }
            let entry = self.ring.completion().next()?;
            let index = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            self.advance(index, entry.result());
        }
    }

    fn add_to(&self, wakes: &mut Wakes) {
        wakes.add(self.ring.as_raw_fd()); // readable while it has a completion
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for UringReader {
    /// Closing a ring does not stop its reads: the kernel would go on writing into freed slots.
    fn drop(&mut self) {
        while self.in_flight > 0 {
            drop(wait(self, Duration::from_secs(1)));
        }
    }
}

/// Has the kernel do nothing once: some filters let rings be made, and refuse to look into them.
fn do_nothing(ring: &mut IoUring) -> io::Result<()> {
    // SAFETY: the entry names no memory.
    unsafe { ring.submission().push(&opcode::Nop::new().build()) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    ring.completion().next().map(|_done| ()).ok_or_else(|| io::ErrorKind::WouldBlock.into())
}

fn refusal(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "io_uring is forbidden here (a container's seccomp filter, or the sysctl \
             kernel.io_uring_disabled)"
                .to_owned()
        }
        Some(libc::ENOSYS) => "this kernel has no io_uring".to_owned(),
        Some(libc::ENOMEM) => "io_uring got no memory (ulimit -l)".to_owned(),
        _ => format!("io_uring cannot be set up: {error}"),
    }
}
