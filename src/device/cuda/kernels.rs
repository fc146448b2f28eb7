//! The kernels that place small pieces and convert types, shipped as PTX that every driver since
//! CUDA 11 compiles for its GPU.
#![expect(unsafe_code, reason = "a kernel is called with untyped arguments")]

use std::ffi::{CStr, c_void};

use cudarc::driver::sys;

use crate::config::{PIECES_MAX, TABLE_BYTES};
use crate::device::cuda::driver::Gpu;
use crate::device::cuda::stream::Stream;
use crate::error::Result;

/// The text of `kernels/*.cu` as NVRTC made it, ended as C wants it.
const PTX: &str = concat!(include_str!("../../../kernels/loader.ptx"), "\0");

const THREADS: u32 = 128;
const BLOCKS_MAX: u32 = 1024;

/// One piece for `scatter`, as in `kernels/types.cuh`: target, source, bytes, 8 bytes each.
pub(super) const PIECE_BYTES: usize = 24;

const _: () = assert!(TABLE_BYTES / PIECE_BYTES == PIECES_MAX);

/// The kernels of one GPU.
#[derive(Debug)]
pub(super) struct Kernels {
    scatter: sys::CUfunction,
}

// SAFETY: a function of a loaded module is no thread's, and the module is never unloaded.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

impl Kernels {
    /// Gives the PTX to the driver, which compiles it (once; it keeps the result on disk).
    pub(super) fn load(gpu: &Gpu) -> Result<Self> {
        let _entered = gpu.enter()?;
        let mut module = std::ptr::null_mut();
        // SAFETY: the text ends with a zero byte and outlives the call; a context is current.
        let code = unsafe { sys::cuModuleLoadData(&raw mut module, PTX.as_ptr().cast()) };
        gpu.check("cuModuleLoadData", code)?;
        Ok(Self { scatter: function(gpu, module, c"scatter")? })
    }

    /// Begins to place pieces whose table lies at `table` in memory that the GPU can read.
    ///
    /// # Safety
    /// Callers must guarantee that table, sources and targets stay until the stream has come to
    /// what was recorded after this call.
    pub(super) unsafe fn scatter(
        &self,
        gpu: &Gpu,
        stream: &Stream,
        table: u64,
        pieces: usize,
    ) -> Result<()> {
        let (mut table, mut count) = (table, u32::try_from(pieces).unwrap_or(u32::MAX));
        let mut arguments: [*mut c_void; 2] = [(&raw mut table).cast(), (&raw mut count).cast()];
        let blocks = count.clamp(1, BLOCKS_MAX);
        // SAFETY: the arguments have the kernel's types and are copied by the call; the rest is
        // this function's contract.
        let code = unsafe {
            sys::cuLaunchKernel(
                self.scatter,
                blocks,
                1,
                1,
                THREADS,
                1,
                1,
                0,
                stream.raw(),
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        gpu.check("cuLaunchKernel", code)
    }
}

fn function(gpu: &Gpu, module: sys::CUmodule, name: &CStr) -> Result<sys::CUfunction> {
    let mut function = std::ptr::null_mut();
    // SAFETY: the module was just loaded, the name is a C string, the target outlives the call.
    let code = unsafe { sys::cuModuleGetFunction(&raw mut function, module, name.as_ptr()) };
    gpu.check("cuModuleGetFunction", code).map(|()| function)
}
