//! Streams and events of the driver as owned types.
#![expect(unsafe_code, reason = "the driver is a C library")]

use std::sync::PoisonError;

use cudarc::driver::sys::{self, CUresult};

use crate::config::IDLE_STREAMS_MAX;
use crate::device::cuda::driver::Gpu;
use crate::error::Result;

/// A stream of ours, or one that torch made and keeps.
#[derive(Debug)]
pub(crate) struct Stream {
    gpu: &'static Gpu,
    raw: sys::CUstream,
    ours: bool,
}

// SAFETY: streams are no thread's; the driver locks what it shares.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream that does not wait for the default stream: one that idles, or else a new one.
    pub(crate) fn new(gpu: &'static Gpu) -> Result<Self> {
        // Nobody has a GPU in a child of fork, where the lock may be held for ever.
        let idle = gpu.idle_streams.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(raw) = idle {
            return Ok(Self { gpu, raw, ours: true });
        }
        let _entered = gpu.enter()?;
        let mut raw = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the target outlives the call, and a context is current.
        gpu.check("cuStreamCreate", unsafe { sys::cuStreamCreate(&raw mut raw, flags) })?;
        Ok(Self { gpu, raw, ours: true })
    }

    /// Torch's stream of that handle, which torch never destroys.
    pub(crate) fn of_torch(gpu: &'static Gpu, handle: usize) -> Self {
        Self { gpu, raw: std::ptr::with_exposed_provenance_mut(handle), ours: false }
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// The GPU that it is on.
    pub(crate) fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    /// An error where a graph is being captured: copies would become part of it.
    pub(crate) fn check_not_capturing(&self) -> Result<()> {
        let _entered = self.gpu.enter()?;
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the stream is alive, the target outlives the call.
        let code = unsafe { sys::cuStreamIsCapturing(self.raw, &raw mut status) };
        self.gpu.check("cuStreamIsCapturing", code)?;
        if status == sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
            return Ok(());
        }
        self.gpu.check("load", CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
    }

    /// Makes what is put on the stream from now on wait for an event.
    pub(super) fn wait_for(&self, event: &Event) -> Result<()> {
        // SAFETY: both are alive.
        let code = unsafe { sys::cuStreamWaitEvent(self.raw, event.raw, 0) };
        self.gpu.check("cuStreamWaitEvent", code)
    }

    /// Waits until the stream is idle.
    pub(super) fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is alive.
        let code = unsafe { sys::cuStreamSynchronize(self.raw) };
        self.gpu.check("cuStreamSynchronize", code)
    }

    /// Begins to copy bytes to the GPU.
    ///
    /// # Safety
    /// Callers must guarantee that the bytes stay as they are, and the target's memory allocated,
    /// until an event recorded after this call was seen or the stream was synchronized.
    pub(super) unsafe fn copy(&self, target: u64, source: &[u8]) -> Result<()> {
        // SAFETY: by this function's contract.
        let code = unsafe {
            sys::cuMemcpyHtoDAsync_v2(target, source.as_ptr().cast(), source.len(), self.raw)
        };
        self.gpu.check("cuMemcpyHtoDAsync", code)
    }

    /// Begins to copy bytes from the GPU.
    ///
    /// # Safety
    /// Callers must guarantee that nobody looks at the target, and that it and the source's memory stay,
    /// until the stream was synchronized.
    pub(super) unsafe fn copy_back(&self, target: &mut [u8], source: u64) -> Result<()> {
        // SAFETY: by this function's contract.
        let code = unsafe {
            sys::cuMemcpyDtoHAsync_v2(target.as_mut_ptr().cast(), source, target.len(), self.raw)
        };
        self.gpu.check("cuMemcpyDtoHAsync", code)
    }

    /// Begins to fill memory of the GPU with zeros.
    ///
    /// # Safety
    /// Callers must guarantee that so many bytes are allocated there until the stream was synchronized.
    pub(super) unsafe fn clear(&self, target: u64, bytes: usize) -> Result<()> {
        // SAFETY: by this function's contract.
        let code = unsafe { sys::cuMemsetD8Async(target, 0, bytes, self.raw) };
        self.gpu.check("cuMemsetD8Async", code)
    }

    /// Device memory that is allocated in the order of this stream; none where the GPU has no pools of
    /// memory, as some virtual ones.
    pub(super) fn allocate(&self, bytes: usize) -> Result<Option<u64>> {
        let _entered = self.gpu.enter()?;
        let mut address = 0;
        // SAFETY: the stream is alive, the target outlives the call.
        let code = unsafe { sys::cuMemAllocAsync(&raw mut address, bytes, self.raw) };
        if code == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(self.gpu.no_room(bytes as u64));
        }
        if code == CUresult::CUDA_ERROR_NOT_SUPPORTED {
            return Ok(None);
        }
        self.gpu.check("cuMemAllocAsync", code).map(|()| Some(address))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.ours {
            return;
        }
        let Ok(_entered) = self.gpu.enter() else { return };
        // SAFETY: ours, and nobody else has it.
        let idles = unsafe { sys::cuStreamQuery(self.raw) } == CUresult::CUDA_SUCCESS;
        // In a child of fork the lock may be held for ever.
        if idles
            && let Ok(mut idle) = self.gpu.idle_streams.try_lock()
            && idle.len() < IDLE_STREAMS_MAX
        {
            idle.push(self.raw);
        } else {
            // SAFETY: as above; what is on it still runs.
            let _gone = unsafe { sys::cuStreamDestroy_v2(self.raw) };
        }
    }
}

/// A point in a stream that others can wait for.
#[derive(Debug)]
pub(super) struct Event {
    gpu: &'static Gpu,
    raw: sys::CUevent,
}

// SAFETY: events are no thread's; the driver locks what it shares.
unsafe impl Send for Event {}

impl Event {
    /// An event whose waiters sleep and that keeps no time.
    pub(super) fn new(gpu: &'static Gpu) -> Result<Self> {
        let flags = sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32
            | sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the target outlives the call; the caller's thread has a context.
        gpu.check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut raw, flags) })?;
        Ok(Self { gpu, raw })
    }

    /// Puts the event at the end of a stream.
    pub(super) fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive.
        let code = unsafe { sys::cuEventRecord(self.raw, stream.raw) };
        self.gpu.check("cuEventRecord", code)
    }

    /// Waits until the stream has come to where it was recorded.
    pub(super) fn synchronize(&self) -> Result<()> {
        // SAFETY: the event is alive.
        let code = unsafe { sys::cuEventSynchronize(self.raw) };
        self.gpu.check("cuEventSynchronize", code)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody else has it; one that is pending is freed when it is done.
        let _gone = unsafe { sys::cuEventDestroy_v2(self.raw) };
    }
}
