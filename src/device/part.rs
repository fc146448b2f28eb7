//! A slot that several threads fill at once.
#![expect(unsafe_code, reason = "each thread writes to a range of its own")]

use std::ops::Range;
use std::sync::Arc;

use crate::device::Slot;

/// A slot while it is filled, and where its bytes begin.
#[derive(Debug)]
struct Whole {
    slot: Slot,
    start: *mut u8,
}

// SAFETY: nothing refers to the slot until the last part is joined, and what is filled through the
// pointer belongs to one part each.
unsafe impl Send for Whole {}
// SAFETY: as above.
unsafe impl Sync for Whole {}

/// A part of a slot, for one thread to fill.
#[derive(Debug)]
pub(crate) struct Part {
    whole: Arc<Whole>,
    range: Range<usize>,
}

impl Part {
    /// The first bytes of a slot, in parts of so many or, the last one, fewer.
    pub(crate) fn of(mut slot: Slot, bytes: usize, part_bytes: usize) -> Vec<Self> {
        assert!(bytes > 0, "no part would give the slot back");
        let start = slot.as_mut_slice()[..bytes].as_mut_ptr();
        let whole = Arc::new(Whole { slot, start });
        let range = |start: usize| start..bytes.min(start + part_bytes);
        let part = |start| Self { whole: Arc::clone(&whole), range: range(start) };
        (0..bytes).step_by(part_bytes).map(part).collect()
    }

    /// Where in the slot it begins.
    pub(crate) fn start(&self) -> usize {
        self.range.start
    }

    /// Its memory, to be filled.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the range was checked against the slot's memory, which stays where it is.
        let start = unsafe { self.whole.start.add(self.range.start) };
        // SAFETY: it lives as long as this part, and no other one has any of these bytes.
        unsafe { std::slice::from_raw_parts_mut(start, self.range.len()) }
    }

    /// Gives it up. The last part to be given up gives the slot.
    pub(crate) fn join(self) -> Option<Slot> {
        Arc::into_inner(self.whole).map(|whole| whole.slot)
    }
}
