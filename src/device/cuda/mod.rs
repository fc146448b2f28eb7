//! GPUs by the CUDA driver: slots are pinned, copied from by a stream of their own, and given back
//! when their copies are done.

pub(crate) mod checksum;
pub(crate) mod copy;
pub(crate) mod driver;
pub(crate) mod facts;
pub(crate) mod kernels;
pub(crate) mod memory;
mod pinned;
#[cfg(test)]
pub(crate) mod probe;
pub(crate) mod reservation;
pub(crate) mod stream;
mod tables;

pub(crate) use memory::CudaBuffer;
pub(crate) use pinned::Pin;
