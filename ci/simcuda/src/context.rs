//! Devices, their primary contexts, and the stack of current contexts of each thread.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::error::{Error, Outcome};
use crate::settings::{DEVICES_MAX, settings};

/// A device and its primary context.
pub(crate) struct Device {
    /// How often the primary context is retained.
    pub(crate) retained: AtomicUsize,
    /// Flags of the primary context.
    pub(crate) flags: AtomicU32,
    /// The error that a crash left behind; 0: none.
    broken: AtomicU32,
    /// Bytes that the default pool keeps; told back, of no effect.
    pub(crate) pool_threshold: AtomicU64,
}

static DEVICES: [Device; DEVICES_MAX] = [const {
    Device {
        retained: AtomicUsize::new(0),
        flags: AtomicU32::new(0),
        broken: AtomicU32::new(0),
        pool_threshold: AtomicU64::new(0),
    }
}; DEVICES_MAX];

/// Handle of the primary context of device 0; the others follow.
const FIRST_HANDLE: usize = 0x5C00_0000;
const HANDLE_STEP: usize = 16;

thread_local! {
    static STACK: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// A device by its number.
pub(crate) fn device(index: usize) -> &'static Device {
    &DEVICES[index]
}

/// Checks the number of a device.
pub(crate) fn index(ordinal: i32) -> Outcome<usize> {
    usize::try_from(ordinal)
        .ok()
        .filter(|index| *index < settings().devices)
        .ok_or(Error::INVALID_DEVICE)
}

/// The handle of a device's primary context.
pub(crate) fn handle(device: usize) -> usize {
    FIRST_HANDLE + HANDLE_STEP * device
}

/// The device of a context.
pub(crate) fn device_of(handle: usize) -> Outcome<usize> {
    let offset = handle.checked_sub(FIRST_HANDLE).ok_or(Error::INVALID_CONTEXT)?;
    let index = offset / HANDLE_STEP;
    if offset % HANDLE_STEP != 0 || index >= settings().devices {
        return Err(Error::INVALID_CONTEXT);
    }
    if device(index).retained.load(Ordering::SeqCst) == 0 {
        return Err(Error::CONTEXT_IS_DESTROYED);
    }
    Ok(index)
}

/// Works on this thread's stack; a thread that is ending has none.
pub(crate) fn with_stack<T: Default>(work: impl FnOnce(&mut Vec<usize>) -> T) -> T {
    STACK.try_with(|stack| work(&mut stack.borrow_mut())).unwrap_or_default()
}

/// Handle of this thread's current context; 0: none.
pub(crate) fn current_handle() -> usize {
    with_stack(|stack| stack.last().copied().unwrap_or(0))
}

/// Device of this thread's current context.
pub(crate) fn current() -> Outcome<usize> {
    match current_handle() {
        0 => Err(Error::INVALID_CONTEXT),
        handle => device_of(handle),
    }
}

/// The error that stays with the context of a device.
pub(crate) fn check(device_index: usize) -> Outcome {
    match device(device_index).broken.load(Ordering::SeqCst) {
        0 => Ok(()),
        code => Err(Error(code)),
    }
}

/// The error that stays with the current context.
pub(crate) fn check_current() -> Outcome {
    current().map_or(Ok(()), check)
}

/// From now on everything in this device's context fails; the first error stays.
pub(crate) fn break_device(device_index: usize, error: Error) {
    let broken = &device(device_index).broken;
    let _ = broken.compare_exchange(0, error.0, Ordering::SeqCst, Ordering::SeqCst);
}

/// Breaks the current context, or the first one where none is current.
pub(crate) fn break_current(error: Error) {
    break_device(current().unwrap_or(0), error);
}

/// Heals all contexts.
pub(crate) fn heal() {
    for device in &DEVICES {
        device.broken.store(0, Ordering::SeqCst);
    }
}
