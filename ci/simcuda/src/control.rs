//! Functions for tests inside the process: statistics and planned faults.

use std::ffi::{CStr, c_char};

use crate::faults::{self, Fault};
use crate::{context, entry, memory, statistics};

/// Writes the statistics as JSON, with a final zero, if `size` is enough; gives the size needed.
/// A child made by fork gets 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn simcuda_statistics(buffer: *mut c_char, size: usize) -> usize {
    if entry::is_forked() {
        return 0;
    }
    let mut text = statistics::json().into_bytes();
    text.push(0);
    if !buffer.is_null() && size >= text.len() {
        // SAFETY: the caller says that `size` bytes can be written.
        unsafe { buffer.copy_from_nonoverlapping(text.as_ptr().cast(), text.len()) };
    }
    text.len()
}

/// Sets the counters to 0, the violations too, and the peaks to what is live.
#[unsafe(no_mangle)]
pub extern "C" fn simcuda_reset() {
    statistics::clear();
}

/// From now on the `n`-th call of `symbol` (`*`: of any) fails with `code`; `sticky`: and the
/// context is broken then. `n` = 0 forgets all plans and heals the contexts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn simcuda_fail(symbol: *const c_char, n: u64, code: u32, sticky: i32) {
    if n == 0 {
        faults::clear();
        context::heal();
        return;
    }
    // SAFETY: the caller passes a string.
    let symbol = unsafe { text(symbol) };
    faults::plan(Fault { symbol, remaining: n, code, sticky: sticky != 0, onwards: false });
}

/// From now on the `n`-th and all later calls of `symbol` (`*`: of any) fail with `code`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn simcuda_fail_from(symbol: *const c_char, n: u64, code: u32) {
    // SAFETY: the caller passes a string.
    let symbol = unsafe { text(symbol) };
    faults::plan(Fault { symbol, remaining: n.max(1), code, sticky: false, onwards: true });
}

/// Free and total bytes of a device, without a context; for the simulated NVML.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn simcuda_memory(device: usize, free: *mut usize, total: *mut usize) {
    let (free_bytes, total_bytes) = memory::free_and_total(device);
    entry::put_if_wanted(free, free_bytes);
    entry::put_if_wanted(total, total_bytes);
}

/// # Safety
/// `symbol` must be a string that ends with a zero.
unsafe fn text(symbol: *const c_char) -> String {
    // SAFETY: as above.
    unsafe { CStr::from_ptr(symbol) }.to_string_lossy().into_owned()
}
