//! The entry points of the driver, as programs and runtimes call them.

mod device;
mod event;
mod memory;
mod misc;
mod module;
mod pinned;
mod refused;
mod stream;
mod transfer;
mod virtual_memory;

pub use device::*;
pub use event::*;
pub use memory::*;
pub use misc::*;
pub use module::*;
pub use pinned::*;
pub use refused::*;
pub use stream::*;
pub use transfer::*;
pub use virtual_memory::*;

use std::ffi::c_void;

/// A handle of the driver.
pub type Handle = *mut c_void;

/// An address in device memory.
pub type DevicePointer = u64;
