//! Pinned memory, and what an address is.

use std::ffi::{c_int, c_uint, c_void};

use super::DevicePointer;
use crate::entry::{entry_points, put};
use crate::error::{Error, Outcome};
use crate::{capture, context, memory, pinned};

/// `CU_MEMORYTYPE_HOST`.
const HOST: c_uint = 1;
/// `CU_MEMORYTYPE_DEVICE`.
const DEVICE: c_uint = 2;

/// What an address belongs to.
struct Place {
    kind: c_uint,
    start: usize,
    bytes: usize,
    device: usize,
}

fn place(address: usize) -> Option<Place> {
    if let Some((start, bytes, device)) = memory::around(address) {
        return Some(Place { kind: DEVICE, start, bytes, device });
    }
    let (start, bytes, _) = pinned::around(address)?;
    Some(Place { kind: HOST, start, bytes, device: context::current().unwrap_or(0) })
}

/// Writes one attribute; of memory that is not known, what `cuPointerGetAttributes` says.
fn put_attribute(value: *mut c_void, attribute: c_int, address: usize) -> Outcome {
    let place = place(address);
    let known = place.as_ref();
    match attribute {
        1 => put(value.cast(), known.map_or(0, |place| context::handle(place.device))),
        2 => put(value.cast::<c_uint>(), known.map_or(0, |place| place.kind)),
        3 => put(value.cast::<usize>(), known.map_or(0, |_| address)),
        4 => {
            let host = known.is_some_and(|place| place.kind == HOST);
            put(value.cast::<usize>(), if host { address } else { 0 })
        }
        7 => put(value.cast::<u64>(), known.map_or(0, |place| place.start as u64)),
        9 => put(value.cast::<c_int>(), known.map_or(-2, |place| place.device as c_int)),
        11 => put(value.cast::<usize>(), known.map_or(0, |place| place.start)),
        12 => put(value.cast::<usize>(), known.map_or(0, |place| place.bytes)),
        13 => put(value.cast::<c_int>(), c_int::from(known.is_some())),
        8 | 10 | 14 | 15 => put(value.cast::<c_int>(), 0), // managed, shared with processes, RDMA
        16 => put(value.cast::<c_int>(), 3),               // read and write
        17 => put(value.cast::<usize>(), 0),               // pool
        _ => Err(Error::INVALID_VALUE),
    }
}

fn allocate(address: *mut *mut c_void, bytes: usize, flags: c_uint) -> Outcome {
    context::current()?;
    capture::allow_unsafe()?;
    put(address, std::ptr::null_mut())?;
    put(address, pinned::allocate(bytes, flags)? as *mut c_void)
}

entry_points! {
    /// Allocates pinned memory.
    fn cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, flags: c_uint) {
        if flags > 7 {
            return Err(Error::INVALID_VALUE);
        }
        allocate(address, bytes, flags)
    }
    /// Allocates pinned memory.
    fn cuMemAllocHost_v2(address: *mut *mut c_void, bytes: usize) { allocate(address, bytes, 0) }
    /// Frees it.
    fn cuMemFreeHost(address: *mut c_void) {
        capture::allow_unsafe()?;
        pinned::free(address as usize)
    }
    /// Pins memory of the program.
    fn cuMemHostRegister_v2(address: *mut c_void, bytes: usize, flags: c_uint) {
        context::current()?;
        capture::allow_unsafe()?;
        pinned::register(address as usize, bytes, flags)
    }
    /// Ends that.
    fn cuMemHostUnregister(address: *mut c_void) {
        capture::allow_unsafe()?;
        pinned::unregister(address as usize)
    }
    /// Where a device sees pinned memory: at the same address.
    fn cuMemHostGetDevicePointer_v2(device: *mut DevicePointer, address: *mut c_void, flags: c_uint) {
        if flags != 0 || pinned::around(address as usize).is_none() {
            return Err(Error::INVALID_VALUE);
        }
        put(device, address as DevicePointer)
    }
    /// The flags that pinned memory was made with.
    fn cuMemHostGetFlags(flags: *mut c_uint, address: *mut c_void) {
        let (_, _, found) = pinned::around(address as usize).ok_or(Error::INVALID_VALUE)?;
        put(flags, found)
    }
    /// What an address is.
    fn cuPointerGetAttribute(value: *mut c_void, attribute: c_int, address: DevicePointer) {
        place(address as usize).ok_or(Error::INVALID_VALUE)?;
        put_attribute(value, attribute, address as usize)
    }
    /// What an address is, several answers at once; memory that is not known is no error.
    fn cuPointerGetAttributes(
        count: c_uint, attributes: *const c_int, values: *const *mut c_void, address: DevicePointer,
    ) {
        if attributes.is_null() || values.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        for index in 0..count as usize {
            // SAFETY: the caller gives that many of both.
            let (attribute, value) = unsafe { (*attributes.add(index), *values.add(index)) };
            put_attribute(value, attribute, address as usize)?;
        }
        Ok(())
    }
    /// Sets an attribute of memory: of no effect.
    fn cuPointerSetAttribute(_value: *const c_void, _attribute: c_int, address: DevicePointer) {
        place(address as usize).map(|_| ()).ok_or(Error::INVALID_VALUE)
    }
}
