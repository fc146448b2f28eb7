//! Copies and fills.

use std::ffi::{c_int, c_uchar, c_uint, c_ushort, c_void};

use super::{DevicePointer, Handle};
use crate::entry::entry_points;
use crate::error::{Error, Outcome};
use crate::order;
use crate::transfer::{Wait, copy, fill};

/// `CUDA_MEMCPY2D`.
#[repr(C)]
pub struct Copy2D {
    source_x: usize,
    source_y: usize,
    source_type: c_int,
    source_host: usize,
    source_device: usize,
    source_array: usize,
    source_pitch: usize,
    destination_x: usize,
    destination_y: usize,
    destination_type: c_int,
    destination_host: usize,
    destination_device: usize,
    destination_array: usize,
    destination_pitch: usize,
    width: usize,
    height: usize,
}

/// `CU_MEMORYTYPE_HOST`.
const HOST: c_int = 1;
/// `CU_MEMORYTYPE_ARRAY`.
const ARRAY: c_int = 3;

fn copy_now(destination: usize, source: usize, bytes: usize) -> Outcome {
    copy(destination, source, bytes, &*order::resolve(0)?, Wait::ForHost)
}

fn copy_in_stream(destination: usize, source: usize, bytes: usize, stream: Handle) -> Outcome {
    copy(destination, source, bytes, &*order::resolve(stream as usize)?, Wait::Never)
}

fn copy_rows(plan: *const Copy2D, stream: Handle, wait: Wait) -> Outcome {
    // SAFETY: the caller vouches for its pointer.
    let plan = unsafe { plan.as_ref() }.ok_or(Error::INVALID_VALUE)?;
    let stream = order::resolve(stream as usize)?;
    if plan.source_type == ARRAY || plan.destination_type == ARRAY {
        return Err(Error::NOT_SUPPORTED);
    }
    let pick = |kind, host, device| if kind == HOST { host } else { device };
    let source = pick(plan.source_type, plan.source_host, plan.source_device);
    let destination = pick(plan.destination_type, plan.destination_host, plan.destination_device);
    for row in 0..plan.height {
        let from = source + (plan.source_y + row) * plan.source_pitch + plan.source_x;
        let to =
            destination + (plan.destination_y + row) * plan.destination_pitch + plan.destination_x;
        copy(to, from, plan.width, &stream, wait)?;
    }
    Ok(())
}

/// Many copies; the default streams are refused, as by the driver.
fn copy_batch(
    destinations: *const DevicePointer,
    sources: *const DevicePointer,
    sizes: *const usize,
    count: usize,
    stream: Handle,
) -> Outcome {
    if stream as usize <= 2 || destinations.is_null() || sources.is_null() || sizes.is_null() {
        return Err(Error::INVALID_VALUE);
    }
    let stream = order::resolve(stream as usize)?;
    for index in 0..count {
        // SAFETY: the caller gives that many of each.
        let (to, from, bytes) =
            unsafe { (*destinations.add(index), *sources.add(index), *sizes.add(index)) };
        copy(to as usize, from as usize, bytes, &stream, Wait::Never)?;
    }
    Ok(())
}

fn fill_in_stream(address: DevicePointer, pattern: &[u8], count: usize, stream: Handle) -> Outcome {
    fill(address as usize, pattern, count, &*order::resolve(stream as usize)?)
}

entry_points! {
    /// Copies from the host.
    fn cuMemcpyHtoD_v2(to: DevicePointer, from: *const c_void, bytes: usize) {
        copy_now(to as usize, from as usize, bytes)
    }
    /// Copies to the host.
    fn cuMemcpyDtoH_v2(to: *mut c_void, from: DevicePointer, bytes: usize) {
        copy_now(to as usize, from as usize, bytes)
    }
    /// Copies on the device; the host does not wait.
    fn cuMemcpyDtoD_v2(to: DevicePointer, from: DevicePointer, bytes: usize) {
        copy_now(to as usize, from as usize, bytes)
    }
    /// Copies between any places.
    fn cuMemcpy(to: DevicePointer, from: DevicePointer, bytes: usize) {
        copy_now(to as usize, from as usize, bytes)
    }
    /// Copies from the host.
    fn cuMemcpyHtoDAsync_v2(to: DevicePointer, from: *const c_void, bytes: usize, stream: Handle) {
        copy_in_stream(to as usize, from as usize, bytes, stream)
    }
    /// Copies to the host.
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: DevicePointer, bytes: usize, stream: Handle) {
        copy_in_stream(to as usize, from as usize, bytes, stream)
    }
    /// Copies on the device.
    fn cuMemcpyDtoDAsync_v2(to: DevicePointer, from: DevicePointer, bytes: usize, stream: Handle) {
        copy_in_stream(to as usize, from as usize, bytes, stream)
    }
    /// Copies between any places.
    fn cuMemcpyAsync(to: DevicePointer, from: DevicePointer, bytes: usize, stream: Handle) {
        copy_in_stream(to as usize, from as usize, bytes, stream)
    }
    /// Copies between devices.
    fn cuMemcpyPeerAsync(
        to: DevicePointer, _to_context: Handle, from: DevicePointer, _from_context: Handle,
        bytes: usize, stream: Handle,
    ) {
        copy_in_stream(to as usize, from as usize, bytes, stream)
    }
    /// Copies rows.
    fn cuMemcpy2DAsync_v2(plan: *const Copy2D, stream: Handle) {
        copy_rows(plan, stream, Wait::Never)
    }
    /// Copies rows.
    fn cuMemcpy2D_v2(plan: *const Copy2D) {
        copy_rows(plan, std::ptr::null_mut(), Wait::ForHost)
    }
    /// Copies many pieces, as of CUDA 12.8.
    fn cuMemcpyBatchAsync(
        to: *mut DevicePointer, from: *mut DevicePointer, sizes: *mut usize, count: usize,
        _attributes: *mut c_void, _indices: *mut usize, _attribute_count: usize,
        _failed: *mut usize, stream: Handle,
    ) {
        copy_batch(to, from, sizes, count, stream)
    }
    /// Copies many pieces, as of CUDA 13.0.
    fn cuMemcpyBatchAsync_v2(
        to: *mut DevicePointer, from: *mut DevicePointer, sizes: *mut usize, count: usize,
        _attributes: *mut c_void, _indices: *mut usize, _attribute_count: usize, stream: Handle,
    ) {
        copy_batch(to, from, sizes, count, stream)
    }
    /// Fills with a byte; the host does not wait.
    fn cuMemsetD8_v2(to: DevicePointer, value: c_uchar, count: usize) {
        fill_in_stream(to, &value.to_ne_bytes(), count, std::ptr::null_mut())
    }
    /// Fills with a byte.
    fn cuMemsetD8Async(to: DevicePointer, value: c_uchar, count: usize, stream: Handle) {
        fill_in_stream(to, &value.to_ne_bytes(), count, stream)
    }
    /// Fills with two bytes.
    fn cuMemsetD16Async(to: DevicePointer, value: c_ushort, count: usize, stream: Handle) {
        fill_in_stream(to, &value.to_ne_bytes(), count, stream)
    }
    /// Fills with four bytes.
    fn cuMemsetD32Async(to: DevicePointer, value: c_uint, count: usize, stream: Handle) {
        fill_in_stream(to, &value.to_ne_bytes(), count, stream)
    }
}
