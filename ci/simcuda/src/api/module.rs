//! Modules and kernels.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::Handle;
use crate::entry::{entry_points, put};
use crate::error::{Error, Outcome};
use crate::kernel::{self, Launch};
use crate::{capture, context, module, order};

fn load(target: *mut Handle, image: *const c_void) -> Outcome {
    context::current()?;
    capture::allow_unsafe()?;
    // SAFETY: the caller passes an image that the driver could read, too.
    put(target, unsafe { module::load(image.cast()) }? as Handle)
}

entry_points! {
    /// Loads an image.
    fn cuModuleLoadData(module: *mut Handle, image: *const c_void) { load(module, image) }
    /// Loads an image; the options are of no effect.
    fn cuModuleLoadDataEx(
        module: *mut Handle, image: *const c_void, _count: c_uint, _options: *mut c_int,
        _values: *mut *mut c_void,
    ) {
        load(module, image)
    }
    /// Unloads it.
    fn cuModuleUnload(module: Handle) { module::unload(module as usize) }
    /// A function of it.
    fn cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char) {
        if name.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: the caller passes a string.
        let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| Error::NOT_FOUND)?;
        put(function, module::find(module as usize, name)? as Handle)
    }
    /// A number that says something of a function.
    fn cuFuncGetAttribute(value: *mut c_int, attribute: c_int, function: Handle) {
        module::function(function as usize)?;
        put(value, if attribute == 0 { 1024 } else { 0 }) // threads of a block
    }
    /// Sets such a number: of no effect.
    fn cuFuncSetAttribute(function: Handle, _attribute: c_int, _value: c_int) {
        module::function(function as usize).map(|_| ())
    }
    /// Launches a kernel.
    fn cuLaunchKernel(
        function: Handle, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint,
        block_y: c_uint, block_z: c_uint, shared_bytes: c_uint, stream: Handle,
        arguments: *mut *mut c_void, extra: *mut *mut c_void,
    ) {
        if !extra.is_null() {
            return Err(Error::NOT_SUPPORTED);
        }
        let stream = order::resolve(stream as usize)?;
        if stream.device != context::current()? {
            return Err(Error::INVALID_HANDLE);
        }
        let dimensions = [grid_x, grid_y, grid_z, block_x, block_y, block_z];
        let arguments = arguments.cast_const().cast();
        let launch = Launch { dimensions, shared_bytes, arguments };
        kernel::launch(&module::function(function as usize)?, &launch, &stream)
    }
}
