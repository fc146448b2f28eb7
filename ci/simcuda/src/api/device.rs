//! Devices and contexts.

use std::ffi::{c_char, c_int, c_uint};
use std::sync::atomic::Ordering;

use super::Handle;
use crate::entry::{entry_points, initialize, put};
use crate::error::{Error, Outcome};
use crate::settings::settings;
use crate::{capture, context, memory, order};

/// What `cuDeviceGetAttribute` says, where it does not depend on the settings; all else is 0.
const ATTRIBUTES: [(c_int, c_int); 31] = [
    (1, 1024),        // threads of a block
    (2, 1024),        // block, x
    (3, 1024),        // block, y
    (4, 64),          // block, z
    (5, 0x7FFF_FFFF), // grid, x
    (6, 0xFFFF),      // grid, y
    (7, 0xFFFF),      // grid, z
    (8, 48 << 10),    // shared memory of a block
    (9, 64 << 10),    // constant memory
    (10, 32),         // threads of a warp
    (12, 65536),      // registers of a block
    (13, 1_500_000),  // clock, kHz
    (14, 512),        // alignment of textures
    (16, 8),          // multiprocessors
    (19, 1),          // maps host memory
    (31, 1),          // concurrent kernels
    (36, 2_000_000),  // clock of the memory, kHz
    (37, 5120),       // width of its bus
    (38, 50 << 20),   // second-level cache
    (39, 2048),       // threads of a multiprocessor
    (40, 3),          // copy engines
    (41, 1),          // one address space
    (78, 1),          // priorities of streams
    (81, 64 << 10),   // shared memory of a multiprocessor
    (82, 65536),      // registers of a multiprocessor
    (97, 48 << 10),   // shared memory of a block that asks for more
    (99, 1),          // registers memory of the host
    (102, 1),         // virtual memory management
    (106, 32),        // blocks of a multiprocessor
    (115, 1),         // pools
    (134, 0),         // NUMA node of the host
];

fn attribute(number: c_int, device: usize) -> c_int {
    match number {
        18 => c_int::from(settings().is_integrated()),
        33 => device as c_int + 1, // PCI bus
        75 => settings().compute_capability / 10,
        76 => settings().compute_capability % 10,
        _ => ATTRIBUTES.iter().find(|(known, _)| *known == number).map_or(0, |(_, value)| *value),
    }
}

fn put_text(target: *mut c_char, size: c_int, text: &str) -> Outcome {
    let size = usize::try_from(size).ok().filter(|size| *size > 0).ok_or(Error::INVALID_VALUE)?;
    let shown = text.len().min(size - 1);
    for (offset, byte) in text.bytes().take(shown).chain([0]).enumerate() {
        put(target.wrapping_add(offset), byte as c_char)?;
    }
    Ok(())
}

fn put_uuid(target: *mut [u8; 16], device: c_int) -> Outcome {
    let index = context::index(device)?;
    put(target, [index as u8 + 1; 16])
}

entry_points! {
    /// Initializes the driver.
    fn cuInit(flags: c_uint) {
        match settings() {
            _ if flags != 0 => Err(Error::INVALID_VALUE),
            settings if settings.stub => Err(Error::STUB_LIBRARY),
            settings if settings.devices == 0 => Err(Error::NO_DEVICE),
            _ => { initialize(); Ok(()) }
        }
    }
    /// The CUDA version of the driver.
    fn cuDriverGetVersion(version: *mut c_int) { put(version, settings().driver_version) }
    /// Number of devices.
    fn cuDeviceGetCount(count: *mut c_int) { put(count, settings().devices as c_int) }
    /// A device by its number.
    fn cuDeviceGet(device: *mut c_int, ordinal: c_int) {
        context::index(ordinal)?;
        put(device, ordinal)
    }
    /// Its name.
    fn cuDeviceGetName(name: *mut c_char, size: c_int, device: c_int) {
        context::index(device)?;
        put_text(name, size, "Simulated CUDA device")
    }
    /// Its memory.
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) {
        context::index(device)?;
        put(bytes, settings().device_bytes)
    }
    /// Its identity.
    fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: c_int) { put_uuid(uuid, device) }
    /// Its identity.
    fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) { put_uuid(uuid, device) }
    /// Where it is.
    fn cuDeviceGetPCIBusId(text: *mut c_char, size: c_int, device: c_int) {
        let index = context::index(device)?;
        put_text(text, size, &format!("0000:{:02X}:00.0", index + 1))
    }
    /// The device at a place.
    fn cuDeviceGetByPCIBusId(device: *mut c_int, text: *const c_char) {
        // SAFETY: the caller passes a string.
        let text = unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy();
        let bus = text.rsplit(':').nth(1).and_then(|bus| i32::from_str_radix(bus, 16).ok());
        let ordinal = bus.ok_or(Error::INVALID_VALUE)? - 1;
        context::index(ordinal)?;
        put(device, ordinal)
    }
    /// A number that says something of it.
    fn cuDeviceGetAttribute(value: *mut c_int, number: c_int, device: c_int) {
        let index = context::index(device)?;
        put(value, attribute(number, index))
    }
    /// Compute capability, by the old call.
    fn cuDeviceComputeCapability(major: *mut c_int, minor: *mut c_int, device: c_int) {
        let index = context::index(device)?;
        put(major, attribute(75, index))?;
        put(minor, attribute(76, index))
    }
    /// Devices do not see each other's memory.
    fn cuDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int) {
        context::index(device)?;
        context::index(peer)?;
        put(can, 0)
    }
    /// Takes part in the primary context.
    fn cuDevicePrimaryCtxRetain(handle: *mut Handle, device: c_int) {
        let index = context::index(device)?;
        put(handle, context::handle(index) as Handle)?;
        context::device(index).retained.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    /// Ends that.
    fn cuDevicePrimaryCtxRelease_v2(device: c_int) {
        let retained = &context::device(context::index(device)?).retained;
        let less = |count: usize| count.checked_sub(1);
        let released = retained.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        released.map(|_| ()).map_err(|_| Error::INVALID_CONTEXT)
    }
    /// Is the primary context in use, and with which flags?
    fn cuDevicePrimaryCtxGetState(device: c_int, flags: *mut c_uint, active: *mut c_int) {
        let device = context::device(context::index(device)?);
        put(flags, device.flags.load(Ordering::SeqCst))?;
        put(active, c_int::from(device.retained.load(Ordering::SeqCst) > 0))
    }
    /// Sets its flags.
    fn cuDevicePrimaryCtxSetFlags_v2(device: c_int, flags: c_uint) {
        context::device(context::index(device)?).flags.store(flags, Ordering::SeqCst);
        Ok(())
    }
    /// The current context; null: none.
    fn cuCtxGetCurrent(handle: *mut Handle) { put(handle, context::current_handle() as Handle) }
    /// Replaces it.
    fn cuCtxSetCurrent(handle: Handle) {
        if !handle.is_null() {
            context::device_of(handle as usize)?;
        }
        context::with_stack(|stack| {
            stack.pop();
            if !handle.is_null() {
                stack.push(handle as usize);
            }
        });
        Ok(())
    }
    /// Puts one on top of it.
    fn cuCtxPushCurrent_v2(handle: Handle) {
        context::device_of(handle as usize)?;
        context::with_stack(|stack| stack.push(handle as usize));
        Ok(())
    }
    /// Takes it away.
    fn cuCtxPopCurrent_v2(handle: *mut Handle) {
        let popped = context::with_stack(Vec::pop).ok_or(Error::INVALID_CONTEXT)?;
        crate::entry::put_if_wanted(handle, popped as Handle);
        Ok(())
    }
    /// Its device.
    fn cuCtxGetDevice(device: *mut c_int) { put(device, context::current()? as c_int) }
    /// Its flags.
    fn cuCtxGetFlags(flags: *mut c_uint) {
        put(flags, context::device(context::current()?).flags.load(Ordering::SeqCst))
    }
    /// Sets its flags.
    fn cuCtxSetFlags(flags: c_uint) {
        context::device(context::current()?).flags.store(flags, Ordering::SeqCst);
        Ok(())
    }
    /// The interface version of a context.
    fn cuCtxGetApiVersion(handle: Handle, version: *mut c_uint) {
        context::device_of(handle as usize)?;
        put(version, 3020)
    }
    /// Priorities that streams can have.
    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) {
        context::current()?;
        put(least, 0)?;
        put(greatest, -5)
    }
    /// Waits for everything that the context has.
    fn cuCtxSynchronize() {
        let device = context::current()?;
        capture::allow_unsafe()?;
        order::synchronize_device(device)
    }
    /// Free and total memory of the device.
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let (free_bytes, total_bytes) = memory::free_and_total(context::current()?);
        put(free, free_bytes)?;
        put(total, total_bytes)
    }
}
