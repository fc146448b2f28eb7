//! Host memory that the GPU reads by itself.
#![expect(unsafe_code, reason = "the driver must be told before the memory goes")]

use std::ffi::c_void;

use cudarc::driver::sys;

use crate::device::Slot;
use crate::device::cuda::driver::Gpu;
use crate::error::Result;
use crate::source::system::move_to_node;

/// Whether a slot's memory is pinned.
#[derive(Debug, Default)]
pub(crate) enum Pin {
    /// Nobody asked yet.
    #[default]
    Untried,
    /// Yes.
    Pinned(Pinned),
    /// The driver refused: copies go through its own staging memory, slower.
    Refused,
    /// Nobody shall ask: it is one of more than there may be pinned.
    Unwanted,
}

/// Memory that is pinned for as long as this lives; whoever has it drops it before the memory.
#[derive(Debug)]
pub(crate) struct Pinned {
    gpu: &'static Gpu,
    host_address: *mut u8,
    device_address: u64,
}

// SAFETY: the addresses are told to the driver, never followed here.
unsafe impl Send for Pinned {}

impl Slot {
    /// Asks the driver for the whole slot, once.
    pub(super) fn pin(&mut self, gpu: &'static Gpu) {
        let (pin_state, memory) = self.pin_and_memory();
        if matches!(pin_state, Pin::Untried) {
            if let Some(node) = gpu.node() {
                move_to_node(memory, node);
            }
            let host_address = memory.as_mut_ptr();
            // SAFETY: a slot's memory never moves, and its `Pin` is dropped before it.
            *pin_state = match unsafe { pin(gpu, host_address, memory.len()) } {
                Ok(device_address) => Pin::Pinned(Pinned { gpu, host_address, device_address }),
                Err(_slower_without) => Pin::Refused,
            };
        }
    }
}

impl Pin {
    /// The address of the memory's first byte as the GPU sees it, where it is pinned.
    pub(crate) fn device_address(&self) -> Option<u64> {
        match self {
            Self::Pinned(pinned) => Some(pinned.device_address),
            Self::Untried | Self::Refused | Self::Unwanted => None,
        }
    }

    /// Whether it is pinned, or can be.
    pub(crate) fn may_be(&self) -> bool {
        matches!(self, Self::Untried | Self::Pinned(_))
    }

    /// Whether the driver would not have the memory.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self, Self::Refused)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: pinned in `Slot::pin`, and a slot that is dropped is in nobody's hands any more.
        unsafe { unpin(self.gpu, self.host_address) }
    }
}

/// Lets the GPU read host memory itself; gives the address by which it does.
///
/// # Safety
/// Callers must guarantee that the memory stays mapped until `unpin`.
unsafe fn pin(gpu: &Gpu, address: *mut u8, bytes: usize) -> Result<u64> {
    let _entered = gpu.enter()?;
    let flags = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP;
    let start: *mut c_void = address.cast();
    // SAFETY: by this function's contract.
    let code = unsafe { sys::cuMemHostRegister_v2(start, bytes, flags) };
    gpu.check("cuMemHostRegister", code)?;
    let mut device_address = 0;
    // SAFETY: the memory was just registered, the target outlives the call.
    let code = unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut device_address, start, 0) };
    let known = gpu.check("cuMemHostGetDevicePointer", code);
    if known.is_err() {
        // SAFETY: registered above, and nobody uses it yet.
        unsafe { unpin(gpu, address) };
    }
    known.map(|()| device_address)
}

/// Takes back what `pin` gave.
///
/// # Safety
/// Callers must guarantee that the memory is pinned and that no copy from it is under way.
unsafe fn unpin(gpu: &Gpu, address: *mut u8) {
    if let Ok(_entered) = gpu.enter() {
        // SAFETY: by this function's contract.
        let _done = unsafe { sys::cuMemHostUnregister(address.cast()) };
    }
}
