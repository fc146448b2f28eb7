//! Virtual memory management, as torch's expandable segments use it.

use std::ffi::{c_int, c_ulonglong, c_void};

use super::DevicePointer;
use crate::entry::{entry_points, put};
use crate::error::{Error, Outcome};
use crate::{capture, context, memory, order, virtual_memory};

/// `CUmemAllocationProp`.
#[repr(C)]
pub struct AllocationProperties {
    kind: c_int,
    handle_types: c_int,
    location_kind: c_int,
    location: c_int,
    rest: [u64; 2],
}

/// `CU_MEM_ALLOCATION_TYPE_PINNED`, the only kind there is.
const PINNED: c_int = 1;
/// `CU_MEM_LOCATION_TYPE_DEVICE`.
const DEVICE: c_int = 1;
/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`: may be asked for, though exporting is refused.
const FILE_DESCRIPTOR: c_int = 1;

fn device_of(properties: *const AllocationProperties) -> Outcome<usize> {
    // SAFETY: the caller vouches for its pointer.
    let properties = unsafe { properties.as_ref() }.ok_or(Error::INVALID_VALUE)?;
    if properties.kind != PINNED || properties.location_kind != DEVICE {
        return Err(Error::INVALID_VALUE);
    }
    if properties.handle_types & !FILE_DESCRIPTOR != 0 {
        return Err(Error::NOT_SUPPORTED);
    }
    context::index(properties.location)
}

entry_points! {
    /// The unit of all sizes.
    fn cuMemGetAllocationGranularity(
        bytes: *mut usize, properties: *const AllocationProperties, _option: c_int,
    ) {
        device_of(properties)?;
        put(bytes, virtual_memory::GRANULARITY)
    }
    /// Reserves addresses.
    fn cuMemAddressReserve(
        address: *mut DevicePointer, bytes: usize, alignment: usize, _wanted: DevicePointer,
        _flags: c_ulonglong,
    ) {
        let start = virtual_memory::reserve_addresses(bytes, alignment)?;
        put(address, start as DevicePointer)
    }
    /// Gives them back; they are not given out again.
    fn cuMemAddressFree(address: DevicePointer, _bytes: usize) {
        memory::free_addresses(address as usize)
    }
    /// Makes physical memory.
    fn cuMemCreate(
        handle: *mut u64, bytes: usize, properties: *const AllocationProperties,
        _flags: c_ulonglong,
    ) {
        capture::allow_unsafe()?;
        put(handle, virtual_memory::create(device_of(properties)?, bytes)?)
    }
    /// Releases its handle.
    fn cuMemRelease(handle: u64) { virtual_memory::release(handle) }
    /// Maps it.
    fn cuMemMap(
        address: DevicePointer, bytes: usize, offset: usize, handle: u64, _flags: c_ulonglong,
    ) {
        if offset != 0 {
            return Err(Error::NOT_SUPPORTED);
        }
        virtual_memory::map(address as usize, bytes, handle)
    }
    /// Says who may use a mapping: its device may from the start.
    fn cuMemSetAccess(
        _address: DevicePointer, _bytes: usize, _descriptions: *const c_void, _count: usize,
    ) {
        Ok(())
    }
    /// Unmaps, after everything that the device has to do.
    fn cuMemUnmap(address: DevicePointer, bytes: usize) {
        capture::allow_unsafe()?;
        order::synchronize_device(context::current()?)?;
        virtual_memory::unmap(address as usize, bytes)
    }
}
