//! Device memory.

use std::ffi::{c_int, c_uint};
use std::sync::atomic::Ordering;

use super::{DevicePointer, Handle};
use crate::entry::{entry_points, put, put_if_wanted};
use crate::error::{Error, Outcome};
use crate::queue::Work;
use crate::{capture, context, memory, order};

/// Handle of the default pool of device 0; the others follow.
const FIRST_POOL: usize = 0x5D00_0000;
/// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`.
const RELEASE_THRESHOLD: c_int = 4;

fn device_of_pool(pool: Handle) -> Outcome<usize> {
    let device = (pool as usize).checked_sub(FIRST_POOL).ok_or(Error::INVALID_VALUE)?;
    context::index(device as i32).map_err(|_| Error::INVALID_VALUE)
}

fn put_pool(pool: *mut Handle, device: c_int) -> Outcome {
    put(pool, (FIRST_POOL + context::index(device)?) as Handle)
}

/// Allocates in stream order: the memory is there for what comes after it.
fn allocate_in_stream(address: *mut DevicePointer, bytes: usize, stream: Handle) -> Outcome {
    let stream = order::resolve(stream as usize)?;
    put(address, 0)?;
    if let capture::Status::Active(_) = capture::status(&stream) {
        return Err(Error::STREAM_CAPTURE_UNSUPPORTED);
    }
    let (start, backing) = memory::allocate_or_drain(stream.device, bytes)?;
    let work: Work = Box::new(move |_| {
        backing.poison();
        Ok(())
    });
    if let Some(stamp) = order::submit(&stream, |_, _| (), work)? {
        memory::set_allocated(start, stamp);
    }
    put(address, start as DevicePointer)
}

entry_points! {
    /// Allocates.
    fn cuMemAlloc_v2(address: *mut DevicePointer, bytes: usize) {
        let device = context::current()?;
        capture::allow_unsafe()?;
        put(address, 0)?;
        let (start, backing) = memory::allocate_or_drain(device, bytes)?;
        backing.poison();
        put(address, start as DevicePointer)
    }
    /// Frees, after everything that the device has to do; of stream-ordered memory the caller must
    /// have seen to that.
    fn cuMemFree_v2(address: DevicePointer) {
        if address == 0 {
            return Ok(());
        }
        context::current()?;
        let device = memory::check_start(address as usize)?;
        capture::allow_unsafe()?;
        memory::release_by_host(address as usize, &order::host_clock());
        order::synchronize_device(device)?;
        memory::free(address as usize)
    }
    /// Allocates in stream order.
    fn cuMemAllocAsync(address: *mut DevicePointer, bytes: usize, stream: Handle) {
        allocate_in_stream(address, bytes, stream)
    }
    /// Allocates in stream order from a pool.
    fn cuMemAllocFromPoolAsync(
        address: *mut DevicePointer, bytes: usize, pool: Handle, stream: Handle,
    ) {
        device_of_pool(pool)?;
        allocate_in_stream(address, bytes, stream)
    }
    /// Frees in stream order.
    fn cuMemFreeAsync(address: DevicePointer, stream: Handle) {
        let (start, stream) = (address as usize, order::resolve(stream as usize)?);
        memory::check_start(start)?;
        let work: Work = Box::new(move |_| memory::free(start));
        order::submit(&stream, |stamp, host| memory::release(start, stamp, host), work).map(|_| ())
    }
    /// Start and size of the allocation around an address.
    fn cuMemGetAddressRange_v2(
        start: *mut DevicePointer, bytes: *mut usize, address: DevicePointer,
    ) {
        let (first, length, _) = memory::around(address as usize).ok_or(Error::NOT_FOUND)?;
        put_if_wanted(start, first as DevicePointer);
        put_if_wanted(bytes, length);
        Ok(())
    }
    /// The pool of a device.
    fn cuDeviceGetDefaultMemPool(pool: *mut Handle, device: c_int) { put_pool(pool, device) }
    /// The pool of a device that is in use.
    fn cuDeviceGetMemPool(pool: *mut Handle, device: c_int) { put_pool(pool, device) }
    /// Chooses the pool of a device: there is only the one.
    fn cuDeviceSetMemPool(device: c_int, pool: Handle) {
        let same = device_of_pool(pool)? == context::index(device)?;
        if same { Ok(()) } else { Err(Error::INVALID_VALUE) }
    }
    /// Sets what a pool keeps.
    fn cuMemPoolSetAttribute(pool: Handle, attribute: c_int, value: *mut u64) {
        let device = device_of_pool(pool)?;
        if value.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        if attribute == RELEASE_THRESHOLD {
            // SAFETY: this attribute is a number of 8 bytes.
            let kept = unsafe { value.read_unaligned() };
            context::device(device).pool_threshold.store(kept, Ordering::SeqCst);
        }
        Ok(())
    }
    /// Says what a pool keeps or has.
    fn cuMemPoolGetAttribute(pool: Handle, attribute: c_int, value: *mut u64) {
        let device = device_of_pool(pool)?;
        let usage = memory::usage(device);
        match attribute {
            1..=3 => put(value.cast::<c_int>(), 1), // how it may use memory again
            RELEASE_THRESHOLD => {
                put(value, context::device(device).pool_threshold.load(Ordering::SeqCst))
            }
            5 | 7 => put(value, usage.bytes as u64),
            6 | 8 => put(value, usage.peak as u64),
            _ => Err(Error::INVALID_VALUE),
        }
    }
    /// Gives back what a pool keeps: nothing.
    fn cuMemPoolTrimTo(pool: Handle, _bytes: usize) { device_of_pool(pool).map(|_| ()) }
    /// Says who may use a pool: its own device.
    fn cuMemPoolSetAccess(pool: Handle, _descriptions: *const c_uint, _count: usize) {
        device_of_pool(pool).map(|_| ())
    }
}
