//! Fills slots. Whoever is reading owns the slot, and gives it back with the outcome.

use std::io;
use std::time::Duration;

pub(crate) mod ahead;
pub(crate) mod blocks;
pub(crate) mod choice;
pub(crate) mod depth;
pub(crate) mod digesting;
pub(crate) mod disk;
pub(crate) mod pread;
pub(crate) mod remote;
pub(crate) mod uring;

#[cfg(test)]
pub(crate) mod fake;

pub(crate) use choice::{CachePolicy, ChoosingReader, Outlook};

use crate::device::Slot;
use crate::queue::{Wakes, wait_for};

/// A read to be done: `bytes` of a source, from an aligned offset, to the start of a slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    /// The caller's number for it.
    pub(crate) tag: usize,
    /// Which source.
    pub(crate) shard: usize,
    /// Where it begins.
    pub(crate) offset: u64,
    /// How many bytes; the source has them all.
    pub(crate) bytes: usize,
}

/// A read that ended.
#[derive(Debug)]
pub(crate) struct Completion {
    /// What was asked.
    pub(crate) request: Request,
    /// The slot, nobody else's again.
    pub(crate) slot: Slot,
    /// How many bytes have come, as far as is known: none where a network's request or a thread failed.
    pub(crate) done: usize,
    /// Why no more, unless the source has ended or all have come.
    pub(crate) result: io::Result<()>,
}

impl Completion {
    /// Whether all that was asked for has come.
    pub(crate) fn is_whole(&self) -> bool {
        self.result.is_ok() && self.done == self.request.bytes
    }
}

/// Reads into slots. Dropping a reader waits for what is in flight: a slot is never freed under a
/// read.
pub(crate) trait Reader {
    /// Begins a read; `poll` gives the slot back.
    fn submit(&mut self, request: Request, slot: Slot);

    /// The next read that ended, if there is one.
    fn poll(&mut self) -> Option<Completion>;

    /// Adds what tells that a read may have ended.
    fn add_to(&self, wakes: &mut Wakes);

    /// Reads begun and not given back.
    fn in_flight(&self) -> usize;

    /// Of these, those that the source has not finished; the rest is being digested.
    fn with_source(&self) -> usize {
        self.in_flight()
    }

    /// Whether another read would only wait for those in flight.
    fn is_full(&self) -> bool {
        false
    }

    /// How many slots it has use for, where that is known only as the load goes on.
    fn slots_worth(&self) -> usize {
        0
    }

    /// Nothing that is in flight is wanted any more: it may end at once.
    fn stop(&mut self) {}
}

/// The next read that ended, if one ends within the time.
pub(crate) fn wait(reader: &mut dyn Reader, timeout: Duration) -> Option<Completion> {
    wait_for(timeout, |wakes| {
        reader.add_to(wakes);
        reader.poll()
    })
}
