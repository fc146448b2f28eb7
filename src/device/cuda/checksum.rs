//! Sums of what lies in a GPU's memory, made there.
#![expect(unsafe_code, reason = "kernels read memory by its address")]

use std::sync::Arc;

use crate::device::CudaBuffer;
use crate::device::cuda::driver::Gpu;
use crate::device::cuda::kernels::Kernels;
use crate::device::cuda::memory::Staging;
use crate::device::cuda::stream::Stream;
use crate::error::{Error, Result};

const SUM_BYTES: usize = size_of::<u64>();

/// The sum of each buffer, as [`crate::digest::Sum`] makes it of bytes. Nothing may be under way to
/// them.
pub(crate) fn sums(gpu: &'static Gpu, buffers: &[&CudaBuffer]) -> Result<Vec<u64>> {
    let _entered = gpu.enter()?;
    let stream = Arc::new(Stream::new(gpu)?);
    let memory = Staging::new(&stream, buffers.len() * SUM_BYTES)?;
    let mut found = vec![0; buffers.len() * SUM_BYTES];
    let begun = begin(&stream, &memory, buffers, &mut found);
    // Whatever was begun reads the buffers and writes the answer.
    if let Err(error) = stream.synchronize() {
        found.leak(); // perhaps it is still written to
        return Err(error);
    }
    begun?;
    Ok(found.as_chunks().0.iter().map(|sum| u64::from_le_bytes(*sum)).collect())
}

/// The kernels of a GPU, without which nothing can be summed there.
pub(crate) fn kernels_of(gpu: &Gpu) -> Result<&Kernels> {
    gpu.kernels().map_err(|why| Error::Device {
        ordinal: gpu.ordinal(),
        what: "cuModuleLoadData",
        message: format!("{why}; without kernels of ours nothing can be summed there"),
    })
}

fn begin(
    stream: &Stream,
    memory: &Staging,
    buffers: &[&CudaBuffer],
    found: &mut [u8],
) -> Result<()> {
    let gpu = stream.gpu();
    let kernels = kernels_of(gpu)?;
    // SAFETY: the memory has this many bytes and lives until the stream was synchronized.
    unsafe { stream.clear(memory.address(), found.len())? };
    for (number, buffer) in buffers.iter().enumerate() {
        let sum = memory.address() + (number * SUM_BYTES) as u64;
        // SAFETY: both stay until the stream was synchronized.
        unsafe { kernels.sum(stream, buffer.address(), buffer.bytes() as u64, sum)? };
    }
    // SAFETY: as above, and so does what is filled.
    unsafe { stream.copy_back(found, memory.address()) }
}
