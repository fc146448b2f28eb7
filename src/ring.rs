//! The process's slots. They are made as loads need them, kept for the next load, bounded in
//! number, and never shared with a forked child.

use std::io;
use std::sync::PoisonError;

// What threads hand slots over with: loom's own where it tries every order of them.
#[cfg(every_order)]
use ::loom::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    sync::{Arc, Mutex, MutexGuard},
    thread::{Builder, JoinHandle},
};
#[cfg(not(every_order))]
use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    sync::{Arc, Mutex, MutexGuard},
    thread::{Builder, JoinHandle},
};

use crate::config::{
    FAR_SLOTS_MAX, RING_SLOTS_MAX, SLOT_BYTES, SLOT_MAKERS_MAX, SLOTS_MIN, UNPINNED_SLOTS_MAX,
    memory_available_bytes, processors,
};
use crate::device::Slot;
use crate::process::PerProcess;

#[cfg(all(test, every_order))]
mod loom;

/// A bounded pool of slots.
#[derive(Debug)]
pub(crate) struct Ring {
    free: Mutex<Vec<Slot>>,
    made: AtomicUsize,
    slot_bytes: usize,
    slots_max: usize,
    /// Threads that make slots for one load.
    makers: usize,
}

/// Slots lent to one load; what it holds when dropped goes back.
pub(crate) struct Lease<'ring> {
    ring: &'ring Ring,
    /// Free slots, the one used last on top: it is the one most likely in the cache.
    free: Vec<Slot>,
    /// Slots of this lease, those that are still being made included.
    lent: usize,
    /// Slots that were there so far.
    received: usize,
    /// Slots that could not be pinned and are not used any more; unmapped only when the reader, which
    /// may know them by their address, is gone.
    parked: Vec<Slot>,
    making: Option<Making>,
    /// Whether the ring has made as many as it would.
    refused: bool,
}

/// Slots that threads make while the load is under way with the first: touching new memory is slower
/// than many a disk, and one thread touches a tenth of what a link of `PCIe` 5 carries.
struct Making {
    slots: Arc<Mutex<Vec<Slot>>>,
    cancelled: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Making {
    /// Begins as many slots, shared out among the threads. A thread that cannot be had makes none: fewer
    /// slots will do.
    fn begin(count: usize, slot_bytes: usize, threads: usize) -> Self {
        let slots = Arc::new(Mutex::new(Vec::new()));
        let cancelled = Arc::new(AtomicBool::new(false));
        let begin = |thread: usize| {
            let (made, stop) = (Arc::clone(&slots), Arc::clone(&cancelled));
            let share = count / threads + usize::from(thread < count % threads);
            Builder::new().name("sst-slots".to_owned()).spawn(move || {
                for _ in 0..share {
                    let Ok(slot) = Slot::new(slot_bytes) else { return };
                    locked(&made).push(slot);
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            })
        };
        let threads = (0..threads.min(count)).flat_map(begin).collect();
        Self { slots, cancelled, threads }
    }

    /// The slots that nobody took, once the threads have ended.
    fn end(self) -> Vec<Slot> {
        for thread in self.threads {
            // It never panics.
            let _ended = thread.join();
        }
        std::mem::take(&mut *locked(&self.slots))
    }
}

fn locked(slots: &Mutex<Vec<Slot>>) -> MutexGuard<'_, Vec<Slot>> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ring {
    /// An empty pool.
    pub(crate) fn new(slot_bytes: usize, slots_max: usize, makers: usize) -> Self {
        let (free, made) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
        Self { free, made, slot_bytes, slots_max, makers }
    }

    /// The ring of this process; a child of fork finds a new one, whoever held the parent's.
    pub(crate) fn of_process() -> &'static Self {
        static RINGS: PerProcess<Ring> = PerProcess::new();
        RINGS.get(|| {
            let makers = (processors() / 4).clamp(1, SLOT_MAKERS_MAX);
            Self::new(SLOT_BYTES, RING_SLOTS_MAX, makers)
        })
    }

    /// Lends up to `wanted` slots. A load never waits for another: when the ring is exhausted it
    /// gets one slot beyond the limit, which is freed as soon as it comes back. Of what others have
    /// left it gets no more than half, so that the next one gets something. New ones are made until it
    /// has `enough`, and up to so many `more` beyond those that idle.
    pub(crate) fn lend(
        &self,
        mut wanted: usize,
        enough: usize,
        more: usize,
    ) -> io::Result<Lease<'_>> {
        let mut free = {
            let mut kept = locked(&self.free);
            let others = self.made.load(Ordering::Relaxed).saturating_sub(kept.len());
            wanted = wanted.min((self.slots_max.saturating_sub(others) / 2).max(SLOTS_MIN));
            let left = kept.len().saturating_sub(wanted);
            kept.split_off(left)
        };
        if free.is_empty() && wanted > 0 {
            free.push(Slot::new(self.slot_bytes)?);
            self.made.fetch_add(1, Ordering::Relaxed);
        }
        let (lent, parked) = (free.len(), Vec::new());
        let (making, refused) = (None, false);
        let mut lease = Lease { ring: self, free, lent, received: lent, parked, making, refused };
        let all = wanted.min(enough.max(lent.saturating_add(more)));
        let more = self.reserve(all.saturating_sub(lent));
        if more > 0 {
            lease.lent += more; // what a thread does not make is given up with the lease
            lease.making = Some(Making::begin(more, self.slot_bytes, self.makers));
        }
        Ok(lease)
    }

    /// Room for new slots: as many as are wanted, as far as the limit allows.
    fn reserve(&self, wanted: usize) -> usize {
        let room = |made: usize| wanted.min(self.slots_max.saturating_sub(made));
        let grown = |made: usize| Some(made + room(made));
        let before = self.made.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown);
        room(before.unwrap_or_else(|made| made))
    }

    /// A new slot; none where there are as many as may be, or little memory: fewer will do.
    fn make(&self) -> Option<Slot> {
        let made = self.made.load(Ordering::Relaxed);
        let little = || memory_available_bytes() / 4 < (made * self.slot_bytes) as u64;
        let new = match made {
            _ if made < self.slots_max => Slot::new,
            _ if made < FAR_SLOTS_MAX && !little() => Slot::never_pinned,
            _ => return None,
        };
        let slot = new(self.slot_bytes).ok()?;
        self.made.fetch_add(1, Ordering::Relaxed);
        Some(slot)
    }

    /// Gives idle slots back to the system; tells how many bytes.
    pub(crate) fn release(&self) -> usize {
        let idle = std::mem::take(&mut *locked(&self.free));
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
        locked(&self.free).len()
    }

    fn give_back(&self, slot: Slot) {
        if !slot.pinned().may_be() || self.made.load(Ordering::Relaxed) > self.slots_max {
            self.made.fetch_sub(1, Ordering::Relaxed);
        } else {
            locked(&self.free).push(slot);
        }
    }
}

impl Lease<'_> {
    /// A free slot, if there is one by now.
    pub(crate) fn take(&mut self) -> Option<Slot> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        let made = locked(&self.making.as_ref()?.slots).pop()?;
        self.received += 1;
        Some(made)
    }

    /// The same, or one more as long as there are fewer than the load has use for: an idle one, or a new
    /// one. What goes beyond the ring's limit is never pinned, and freed with the lease.
    pub(crate) fn take_or_make(&mut self, worth: usize) -> Option<Slot> {
        if let Some(slot) = self.take() {
            return Some(slot);
        }
        if self.lent >= worth {
            return None;
        }
        let idle = locked(&self.ring.free).pop();
        let slot = idle.or_else(|| if self.refused { None } else { self.ring.make() });
        self.refused |= slot.is_none();
        let slot = slot?;
        self.lent += 1;
        self.received += 1;
        Some(slot)
    }

    /// A slot that was taken comes back. Of slots that could not be pinned only a pair is kept: what
    /// the driver refuses is short.
    pub(crate) fn put(&mut self, slot: Slot) {
        let in_use = self.received - self.parked.len();
        if slot.pinned().is_refused() && in_use > UNPINNED_SLOTS_MAX {
            self.parked.push(slot);
        } else {
            self.free.push(slot);
        }
    }

    /// Slots that were taken and have not come back.
    #[cfg(test)]
    pub(crate) fn missing(&self) -> usize {
        self.received - self.free.len() - self.parked.len()
    }

    /// Slots in this lease, once all are made.
    #[cfg(test)]
    pub(crate) fn complete(&mut self) -> usize {
        if let Some(making) = self.making.take() {
            self.free.extend(making.end());
        }
        self.lent
    }

    /// How many slots may be with the reader, which has use for so many if not for more: the others keep
    /// the device busy until a read ends. A disk that shares itself out among many reads ends them all
    /// late, and at the same time.
    pub(crate) fn slots_to_read(&self, worth: usize) -> usize {
        let slots = self.lent.max(worth);
        slots - slots / 4
    }

    /// Bytes in this lease.
    pub(crate) fn bytes(&self) -> usize {
        self.lent * self.ring.slot_bytes
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(making) = self.making.take() {
            making.cancelled.store(true, Ordering::Relaxed);
            // Each thread ends with the slot that it is making.
            self.free.extend(making.end());
        }
        self.free.append(&mut self.parked);
        // Those that nobody pins go first.
        self.free.sort_by_key(|slot| slot.pinned().may_be());
        let lost = self.lent - self.free.len();
        self.ring.made.fetch_sub(lost, Ordering::Relaxed);
        self.free.drain(..).for_each(|slot| self.ring.give_back(slot));
    }
}

#[cfg(all(test, not(every_order)))]
mod tests {
    use super::Ring;

    #[test]
    fn slots_are_kept_bounded_and_released() {
        let ring = Ring::new(4096, 3, 2);
        {
            let mut leases: Vec<_> = (0..3).map(|_| ring.lend(2, usize::MAX, 0).unwrap()).collect();
            let lengths: Vec<usize> = leases.iter_mut().map(super::Lease::complete).collect();
            assert_eq!(lengths, [2, 1, 1]);
            assert_eq!(ring.made(), 4);
        }
        assert_eq!((ring.made(), ring.idle()), (3, 3));
        assert_eq!(ring.release(), 3 * 4096);
        assert_eq!((ring.made(), ring.idle()), (0, 0));
    }

    #[test]
    fn a_lease_grows_by_idle_slots_then_by_new_ones_and_no_further_than_it_is_worth() {
        let ring = Ring::new(4096, 3, 1);
        drop(ring.lend(3, usize::MAX, 0).map(|mut lease| lease.complete()));
        let mut lease = ring.lend(1, 1, 0).unwrap();
        let mut slots: Vec<_> = std::iter::from_fn(|| lease.take_or_make(5)).collect();
        assert_eq!((slots.len(), ring.made(), ring.idle()), (5, 5, 0));
        assert_eq!(slots.iter().filter(|slot| slot.pinned().may_be()).count(), 3);
        slots.drain(..).for_each(|slot| lease.put(slot));
        drop(lease);
        assert_eq!((ring.made(), ring.idle()), (3, 3));
    }

    #[test]
    fn new_slots_are_made_until_there_are_enough_and_more_with_each_lease() {
        let ring = Ring::new(4096, 16, 1);
        let lent = |enough, more| ring.lend(8, enough, more).unwrap().complete();
        assert_eq!([lent(2, 0), lent(2, 0), lent(2, 1), lent(2, 3), lent(2, 9)], [2, 2, 3, 6, 8]);
    }

    #[test]
    fn a_lost_slot_is_not_counted_for_ever() {
        let ring = Ring::new(4096, 3, 2);
        let mut lease = ring.lend(2, usize::MAX, 0).unwrap();
        assert_eq!(lease.complete(), 2);
        drop(lease.take());
        drop(lease);
        assert_eq!((ring.made(), ring.idle()), (1, 1));
    }
}
