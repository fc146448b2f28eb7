//! The process's slots. They are made as loads need them, kept for the next load, bounded in
//! number, and never shared with a forked child.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::config::{RING_SLOTS_MAX, SLOT_BYTES};
use crate::device::Slot;

/// A bounded pool of slots.
#[derive(Debug)]
pub(crate) struct Ring {
    free: Mutex<Vec<Slot>>,
    made: AtomicUsize,
    slot_bytes: usize,
    slots_max: usize,
}

/// Slots lent to one load; what it holds when dropped goes back.
#[derive(Debug)]
pub(crate) struct Lease<'ring> {
    ring: &'ring Ring,
    /// Free slots, the one used last on top: it is the one most likely in the cache.
    free: Vec<Slot>,
    lent: usize,
}

impl Ring {
    /// An empty pool.
    pub(crate) const fn new(slot_bytes: usize, slots_max: usize) -> Self {
        Self { free: Mutex::new(Vec::new()), made: AtomicUsize::new(0), slot_bytes, slots_max }
    }

    /// The ring of this process; a child of fork finds a new one, whoever held the parent's.
    pub(crate) fn of_process() -> &'static Self {
        static FIRST: OnceLock<Generation> = OnceLock::new();
        let process = std::process::id();
        let mut generation = FIRST.get_or_init(|| Generation::new(process));
        while generation.process != process {
            generation = generation.next.get_or_init(|| Box::new(Generation::new(process)));
        }
        &generation.ring
    }

    /// Lends up to `wanted` slots. A load never waits for another: when the ring is exhausted it
    /// gets one slot beyond the limit, which is freed as soon as it comes back.
    pub(crate) fn lend(&self, wanted: usize) -> io::Result<Lease<'_>> {
        let mut lease = Lease { ring: self, free: Vec::new(), lent: 0 };
        while lease.lent < wanted {
            let kept = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let room = self.made.load(Ordering::Relaxed) < self.slots_max;
            let slot = match kept {
                Some(slot) => slot,
                None if lease.lent == 0 => self.make()?,
                None if room => match self.make() {
                    Ok(slot) => slot,
                    Err(_fewer_will_do) => break,
                },
                None => break,
            };
            lease.free.push(slot);
            lease.lent += 1;
        }
        Ok(lease)
    }

    /// Gives idle slots back to the system; tells how many bytes.
    pub(crate) fn release(&self) -> usize {
        let idle = std::mem::take(&mut *self.free.lock().unwrap_or_else(PoisonError::into_inner));
        self.made.fetch_sub(idle.len(), Ordering::Relaxed);
        idle.iter().map(Slot::bytes).sum()
    }

    /// Slots that exist, lent or idle.
    #[cfg(test)]
    pub(crate) fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    /// Slots that nobody holds.
    #[cfg(test)]
    pub(crate) fn idle(&self) -> usize {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn make(&self) -> io::Result<Slot> {
        let slot = Slot::new(self.slot_bytes)?;
        self.made.fetch_add(1, Ordering::Relaxed);
        Ok(slot)
    }

    fn give_back(&self, slot: Slot) {
        if self.made.load(Ordering::Relaxed) > self.slots_max {
            self.made.fetch_sub(1, Ordering::Relaxed);
        } else {
            self.free.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
        }
    }
}

impl Lease<'_> {
    /// A free slot, if one is left.
    pub(crate) fn take(&mut self) -> Option<Slot> {
        self.free.pop()
    }

    /// A slot that was taken comes back.
    pub(crate) fn put(&mut self, slot: Slot) {
        self.free.push(slot);
    }

    /// Where the free slots are, for a reader that wants to register them.
    pub(crate) fn addresses(&self) -> Vec<Range<usize>> {
        self.free.iter().map(Slot::addresses).collect()
    }

    /// Slots in this lease.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lent
    }

    /// Bytes in this lease.
    pub(crate) fn bytes(&self) -> usize {
        self.lent * self.ring.slot_bytes
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let lost = self.lent - self.free.len();
        self.ring.made.fetch_sub(lost, Ordering::Relaxed);
        self.free.drain(..).for_each(|slot| self.ring.give_back(slot));
    }
}

/// The ring of one process in a line of forks. The line only grows, so that no lock is needed that
/// a fork could leave held.
struct Generation {
    process: u32,
    ring: Ring,
    next: OnceLock<Box<Generation>>,
}

impl Generation {
    fn new(process: u32) -> Self {
        Self { process, ring: Ring::new(SLOT_BYTES, RING_SLOTS_MAX), next: OnceLock::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::Ring;

    #[test]
    fn slots_are_kept_bounded_and_released() {
        let ring = Ring::new(4096, 3);
        {
            let first = ring.lend(2).unwrap();
            let second = ring.lend(2).unwrap();
            let third = ring.lend(2).unwrap();
            assert_eq!((first.len(), second.len(), third.len()), (2, 1, 1));
            assert_eq!(ring.made(), 4);
        }
        assert_eq!((ring.made(), ring.idle()), (3, 3));
        assert_eq!(ring.release(), 3 * 4096);
        assert_eq!((ring.made(), ring.idle()), (0, 0));
    }

    #[test]
    fn a_lost_slot_is_not_counted_for_ever() {
        let ring = Ring::new(4096, 3);
        let mut lease = ring.lend(2).unwrap();
        drop(lease.take());
        drop(lease);
        assert_eq!((ring.made(), ring.idle()), (1, 1));
    }
}
