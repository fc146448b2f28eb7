//! The address range from which all device memory comes. Addresses are given out once.

use std::ffi::{CStr, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Outcome};

/// Reserved, not committed: costs nothing until it is used.
const ARENA_BYTES: usize = 4 << 40;
/// The unit in which memory is mapped.
pub(crate) const PAGE: usize = 4096;
/// Larger allocations begin on a border of huge pages.
const HUGE: usize = 2 << 20;
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Start of the arena; 0: the system refused.
fn start() -> usize {
    static START: OnceLock<usize> = OnceLock::new();
    *START.get_or_init(|| {
        map(0, ARENA_BYTES, libc::PROT_NONE, ANONYMOUS, -1)
            .map_or(0, |at| at.next_multiple_of(HUGE))
    })
}

/// Is this an address of device memory, live or not?
pub(crate) fn contains(address: usize) -> bool {
    start() != 0 && (start()..start() + ARENA_BYTES - HUGE).contains(&address)
}

/// Takes addresses for this many bytes, with a gap behind them.
pub(crate) fn take(bytes: usize, alignment: usize) -> Outcome<usize> {
    static TAKEN: AtomicUsize = AtomicUsize::new(0);
    let alignment = if bytes >= HUGE { alignment.max(HUGE) } else { alignment.max(PAGE) };
    let length = bytes.checked_next_multiple_of(PAGE).and_then(|length| length.checked_add(PAGE));
    let length = length.filter(|length| *length < ARENA_BYTES).ok_or(Error::OUT_OF_MEMORY)?;
    if start() == 0 {
        return Err(Error::OUT_OF_MEMORY);
    }
    let place = |taken: usize| taken.next_multiple_of(alignment);
    let fits = |taken: usize| {
        let end = place(taken) + length;
        (end <= ARENA_BYTES - HUGE).then_some(end)
    };
    let taken = TAKEN.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits);
    taken.map(|taken| start() + place(taken)).map_err(|_| Error::OUT_OF_MEMORY)
}

/// Fresh memory for a range that was taken, or anywhere (`address` 0).
pub(crate) fn map_anonymous(address: usize, bytes: usize) -> Outcome<usize> {
    let fixed = if address == 0 { 0 } else { libc::MAP_FIXED };
    let at = map(address, bytes, READ_WRITE, ANONYMOUS | fixed, -1)?;
    if bytes >= HUGE {
        // SAFETY: the range was just mapped.
        unsafe { libc::madvise(at as *mut c_void, bytes, libc::MADV_HUGEPAGE) };
    }
    Ok(at)
}

/// Gives memory back; the addresses stay reserved and fault from now on.
pub(crate) fn unmap(address: usize, bytes: usize) {
    let _ = map(address, bytes, libc::PROT_NONE, ANONYMOUS | libc::MAP_FIXED, -1);
}

/// Opens or closes memory for the host.
pub(crate) fn protect(address: usize, bytes: usize, open: bool) {
    let protection = if open { READ_WRITE } else { libc::PROT_NONE };
    // SAFETY: the range belongs to an allocation.
    unsafe { libc::mprotect(address as *mut c_void, bytes, protection) };
}

/// Memory that can be mapped in several places.
pub(crate) struct Shared {
    descriptor: i32,
}

impl Shared {
    /// This many bytes.
    pub(crate) fn new(bytes: usize) -> Outcome<Shared> {
        const NAME: &CStr = c"simcuda";
        // SAFETY: the name is a string.
        let descriptor = unsafe { libc::memfd_create(NAME.as_ptr(), libc::MFD_CLOEXEC) };
        let shared = Shared { descriptor };
        // SAFETY: a descriptor that was not made is refused.
        let sized = unsafe { libc::ftruncate(descriptor, bytes as i64) };
        if sized == 0 { Ok(shared) } else { Err(Error::OUT_OF_MEMORY) }
    }

    /// Maps it at a range that was taken, or anywhere (`address` 0).
    pub(crate) fn map(&self, address: usize, bytes: usize, open: bool) -> Outcome<usize> {
        let protection = if open { READ_WRITE } else { libc::PROT_NONE };
        let fixed = if address == 0 { 0 } else { libc::MAP_FIXED };
        map(address, bytes, protection, libc::MAP_SHARED | fixed, self.descriptor)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the descriptor is this object's own; mappings stay.
        unsafe { libc::close(self.descriptor) };
    }
}

/// Unmaps what was mapped anywhere.
pub(crate) fn discard(address: usize, bytes: usize) {
    // SAFETY: the range was mapped by this module and is not used any more.
    unsafe { libc::munmap(address as *mut c_void, bytes) };
}

fn map(
    address: usize,
    bytes: usize,
    protection: i32,
    flags: i32,
    descriptor: i32,
) -> Outcome<usize> {
    let hint = if address == 0 { null_mut() } else { address as *mut c_void };
    // SAFETY: a fixed address is always one that this module gave out.
    let at = unsafe { libc::mmap(hint, bytes, protection, flags, descriptor, 0) };
    if at == libc::MAP_FAILED { Err(Error::OUT_OF_MEMORY) } else { Ok(at as usize) }
}
