//! Names of errors, and entry points by name.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{null, null_mut};

use crate::entry::{entry_points, put, put_if_wanted};
use crate::error::{self, Error, Outcome};
use crate::settings::settings;

const FOUND: c_int = 0;
const NOT_FOUND: c_int = 1;

fn put_string(target: *mut *const c_char, text: Option<&'static CStr>) -> Outcome {
    put(target, text.map_or_else(null, CStr::as_ptr))?;
    text.map(|_| ()).ok_or(Error::INVALID_VALUE)
}

/// Forms of entry points that differ from older ones and that programs built for CUDA 12 do not mean.
const SINCE_CUDA_13: [&str; 2] = ["cuMemcpyBatchAsync_v2", "cuStreamGetCaptureInfo_v3"];

/// The newest form of an entry point that a program for this version of CUDA can mean.
fn find(name: &str, version: c_int) -> *mut c_void {
    if settings().hidden.iter().any(|hidden| hidden == name) {
        return null_mut();
    }
    let object = this_object();
    ["_v3", "_v2", ""]
        .iter()
        .map(|suffix| format!("{name}{suffix}"))
        .filter(|symbol| version >= 13000 || !SINCE_CUDA_13.contains(&symbol.as_str()))
        .filter_map(|symbol| CString::new(symbol).ok())
        // SAFETY: the object stays loaded, the name is a string.
        .map(|symbol| unsafe { libc::dlsym(object, symbol.as_ptr()) })
        .find(|address| !address.is_null())
        .unwrap_or(null_mut())
}

/// The object that this code is in: other libraries may have symbols of the same names.
fn this_object() -> *mut c_void {
    let inside: unsafe extern "C" fn(*mut *const c_char, c_int) = marker;
    // SAFETY: the structure is plain data.
    let mut found: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: the address lies in a loaded object, which is not loaded again.
    unsafe {
        libc::dladdr(inside as *const c_void, &raw mut found);
        libc::dlopen(found.dli_fname, libc::RTLD_NOW | libc::RTLD_NOLOAD)
    }
}

unsafe extern "C" fn marker(_: *mut *const c_char, _: c_int) {}

entry_points! {
    /// The name of an error.
    fn cuGetErrorName(code: u32, text: *mut *const c_char) { put_string(text, error::name(code)) }
    /// What an error means.
    fn cuGetErrorString(code: u32, text: *mut *const c_char) {
        put_string(text, error::description(code))
    }
    /// An entry point by its name.
    fn cuGetProcAddress_v2(
        symbol: *const c_char, function: *mut *mut c_void, version: c_int, _flags: u64,
        status: *mut c_int,
    ) {
        if symbol.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: the caller passes a string.
        let address = find(&unsafe { CStr::from_ptr(symbol) }.to_string_lossy(), version);
        put(function, address)?;
        put_if_wanted(status, if address.is_null() { NOT_FOUND } else { FOUND });
        if address.is_null() { Err(Error::NOT_FOUND) } else { Ok(()) }
    }
    /// Profilers are not simulated: of no effect.
    fn cuProfilerStart() { Ok(()) }
    /// Profilers are not simulated: of no effect.
    fn cuProfilerStop() { Ok(()) }
}
