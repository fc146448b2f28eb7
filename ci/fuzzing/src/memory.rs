//! How much memory a piece of work has allocated at once.

#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, its bytes counted by thread.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is the system's allocator's, with the same arguments.
unsafe impl GlobalAlloc for Counting {
    // `realloc` is left to its default, an allocation beside the old one: what growing costs at most.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.get().wrapping_add(layout.size());
        HELD.set(held);
        PEAK.set(PEAK.get().max(held));
        // SAFETY: as our caller guarantees.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get().wrapping_sub(layout.size()));
        // SAFETY: as our caller guarantees; all memory is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// The bytes that work held at most, above those that were held before it. What it gives is dropped
/// only then.
pub(crate) fn peak_of<T>(work: impl FnOnce() -> T) -> usize {
    HELD.set(0); // what is freed from here on was allocated from here on
    PEAK.set(0);
    drop(work());
    PEAK.get()
}
