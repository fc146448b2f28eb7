//! What tests want of a driver: bytes read back, work on a user's stream, calls that fail.
#![expect(unsafe_code, reason = "the driver is a C library")]

use std::ffi::{CStr, c_char};
use std::sync::Arc;

use cudarc::driver::sys;

use crate::device::cuda::CudaBuffer;
use crate::device::cuda::driver::Gpu;
use crate::device::cuda::memory::Staging;
use crate::device::cuda::stream::Stream;
use crate::error::Result;

type Statistics = unsafe extern "C" fn(*mut c_char, usize) -> usize;
type Fail = unsafe extern "C" fn(*const c_char, u64, u32, i32);
type FailFrom = unsafe extern "C" fn(*const c_char, u64, u32);

impl CudaBuffer {
    /// The bytes, copied out as a user would: on a stream that waits for none of ours.
    pub(crate) fn to_vec(&self, bytes: usize) -> Result<Vec<u8>> {
        assert!(bytes <= self.bytes());
        let mut read = vec![0; bytes];
        if bytes > 0 {
            let gpu = Gpu::open(self.ordinal())?;
            let _entered = gpu.enter()?;
            // SAFETY: both sides have so many bytes and outlive the call.
            let code =
                unsafe { sys::cuMemcpyDtoH_v2(read.as_mut_ptr().cast(), self.address(), bytes) };
            gpu.check("cuMemcpyDtoH", code)?;
        }
        Ok(read)
    }
}

impl Stream {
    /// The same stream, as a load knows that of its caller; this one must outlive it.
    pub(crate) fn of_caller(&self) -> Self {
        Self::of_torch(self.gpu(), self.raw().expose_provenance())
    }

    /// Begins to copy one tensor over another, as a user may.
    pub(crate) fn copy_on_device(&self, target: &CudaBuffer, source: &CudaBuffer) {
        assert_eq!(target.bytes(), source.bytes());
        let _entered = self.gpu().enter().unwrap();
        let (to, from) = (target.address(), source.address());
        // SAFETY: memory of a slab is freed only when all that the GPU was given is done.
        let code = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, source.bytes(), self.raw()) };
        self.gpu().check("cuMemcpyDtoDAsync", code).unwrap();
    }
}

/// Memory as torch gives it: allocated and freed in the order of its user's stream.
pub(crate) struct UserMemory(Staging);

impl UserMemory {
    /// So many bytes.
    pub(crate) fn new(stream: &Arc<Stream>, bytes: usize) -> Result<Self> {
        Staging::new(stream, bytes.max(1)).map(Self)
    }

    /// The bytes, while this lives.
    pub(crate) fn buffer(&self, gpu: &Gpu, bytes: usize) -> CudaBuffer {
        CudaBuffer::borrowed(gpu.ordinal(), self.0.address(), bytes)
    }
}

/// The functions that a simulated driver has for tests.
#[derive(Clone, Copy)]
pub(crate) struct Simulator {
    statistics: Statistics,
    fail: Fail,
    fail_from: FailFrom,
}

impl Simulator {
    /// None where the driver, which must be loaded, is a real one.
    pub(crate) fn find() -> Option<Self> {
        // SAFETY: the driver is loaded already.
        let library = unsafe { sys::culib() };
        // SAFETY: the simulator exports a function of this type.
        let statistics = *unsafe { library.get::<Statistics>(b"simcuda_statistics\0") }.ok()?;
        // SAFETY: as above.
        let fail = *unsafe { library.get::<Fail>(b"simcuda_fail\0") }.ok()?;
        // SAFETY: as above.
        let fail_from = *unsafe { library.get::<FailFrom>(b"simcuda_fail_from\0") }.ok()?;
        Some(Self { statistics, fail, fail_from })
    }

    /// From now on the `n`-th call of a function fails, once; `*` is any function.
    pub(crate) fn fail(self, symbol: &CStr, n: u64, code: u32) {
        // SAFETY: the text outlives the call.
        unsafe { (self.fail)(symbol.as_ptr(), n, code, 0) }
    }

    /// From now on every call of a function fails.
    pub(crate) fn fail_always(self, symbol: &CStr, code: u32) {
        // SAFETY: the text outlives the call.
        unsafe { (self.fail_from)(symbol.as_ptr(), 1, code) }
    }

    /// No call fails any more.
    pub(crate) fn heal(self) {
        self.fail(c"*", 0, 0);
    }

    /// What the driver has counted.
    pub(crate) fn statistics(self) -> serde_json::Value {
        let mut text = vec![0; 1 << 20];
        // SAFETY: so many bytes can be written.
        let size = unsafe { (self.statistics)(text.as_mut_ptr().cast(), text.len()) };
        assert!((1..=text.len()).contains(&size));
        serde_json::from_slice(&text[..size - 1]).unwrap()
    }
}
