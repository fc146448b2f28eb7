//! What every entry point does before its own work.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Outcome};
use crate::{context, faults, statistics};

static INITIALIZED: AtomicBool = AtomicBool::new(false);
/// Set in a child of a process that had initialized the driver: nothing works there any more.
static FORKED: AtomicBool = AtomicBool::new(false);

/// Writes a result where the caller wants it.
pub(crate) fn put<T>(target: *mut T, value: T) -> Outcome {
    if target.is_null() {
        return Err(Error::INVALID_VALUE);
    }
    // SAFETY: the caller of the driver vouches for its pointers.
    unsafe { target.write(value) };
    Ok(())
}

/// Writes a result that the caller may leave out.
pub(crate) fn put_if_wanted<T>(target: *mut T, value: T) {
    let _ = put(target, value);
}

/// Runs one call: counts it, lets a planned fault strike, refuses what the driver's state forbids.
pub(crate) fn call(symbol: &'static str, body: impl FnOnce() -> Outcome) -> u32 {
    match admit(symbol).and_then(|()| body()) {
        Ok(()) => 0,
        Err(Error(code)) => code,
    }
}

fn admit(symbol: &'static str) -> Outcome {
    if is_forked() {
        return Err(Error::NOT_INITIALIZED);
    }
    statistics::count_call(symbol);
    let free = symbol.starts_with("cuGetError")
        || symbol.starts_with("cuGetProcAddress")
        || matches!(symbol, "cuDriverGetVersion" | "cuInit");
    faults::strike(symbol, !free)?;
    if free {
        return Ok(());
    }
    if !INITIALIZED.load(Ordering::SeqCst) {
        return Err(Error::NOT_INITIALIZED);
    }
    let survives_a_crash = symbol.starts_with("cuDevice")
        || (symbol.starts_with("cuCtx") && symbol != "cuCtxSynchronize");
    if survives_a_crash { Ok(()) } else { context::check_current() }
}

/// Is this a child of a process that used the driver?
pub(crate) fn is_forked() -> bool {
    FORKED.load(Ordering::SeqCst)
}

/// The driver is initialized from now on, and lost to children made by fork.
pub(crate) fn initialize() {
    extern "C" fn in_child() {
        FORKED.store(true, Ordering::SeqCst);
    }
    if !INITIALIZED.swap(true, Ordering::SeqCst) {
        // SAFETY: the handler only stores to an atomic.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    }
}

/// Defines entry points of the driver: each body gives an `Outcome` and runs inside [`call`].
macro_rules! entry_points {
    ($($(#[$attribute:meta])* fn $name:ident($($argument:ident : $type:ty),* $(,)?) $body:block)*) => {$(
        $(#[$attribute])*
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> u32 {
            $crate::entry::call(stringify!($name), || $body)
        }
    )*};
}
pub(crate) use entry_points;
