//! Device memory: slabs of ours that hold the tensors of a load, and what is somebody else's.
#![expect(unsafe_code, reason = "an address is freed once, by its owner")]

use std::sync::Arc;

use cudarc::driver::sys;

use crate::config::{DEVICE_ALIGNMENT_BYTES, SLAB_BYTES_MAX};
use crate::device::cuda::driver::Gpu;
use crate::device::cuda::kernels::Conversion;
use crate::device::cuda::stream::Stream;
use crate::device::{Allocator, Buffer};
use crate::error::{Error, Result};

/// One tensor's device memory; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct CudaBuffer {
    address: u64,
    bytes: usize,
    ordinal: usize,
    /// How what is placed in it is converted on the way.
    conversion: Option<Conversion>,
    /// The slab that it is part of; none where the memory is somebody else's, who keeps it.
    _slab: Option<Arc<Slab>>,
}

impl CudaBuffer {
    /// Memory that its owner keeps for as long as anybody here uses it.
    pub(crate) fn borrowed(ordinal: usize, address: u64, bytes: usize) -> Self {
        Self { address, bytes, ordinal, conversion: None, _slab: None }
    }

    /// The same memory, for what is to be converted on the way into it.
    pub(crate) fn converting(self, conversion: Conversion) -> Self {
        Self { conversion: Some(conversion), ..self }
    }

    /// How what is placed in it is converted on the way.
    pub(super) fn conversion(&self) -> Option<Conversion> {
        self.conversion
    }

    /// The address of its first byte.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Its size.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number of its GPU.
    pub(crate) fn ordinal(&self) -> usize {
        self.ordinal
    }
}

/// One allocation of the driver's; freed with the last buffer in it.
#[derive(Debug)]
pub(crate) struct Slab {
    gpu: &'static Gpu,
    address: u64,
}

impl Slab {
    pub(super) fn new(gpu: &'static Gpu, bytes: usize) -> Result<Self> {
        Ok(Self { gpu, address: gpu.allocate(bytes)? })
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        if let Ok(_entered) = self.gpu.enter() {
            // SAFETY: the address came from `Gpu::allocate` and nobody is left who knows it; work that
            // the GPU was given, on whatever stream, is waited for by this call. A context that is
            // lost has freed it already.
            let _freed = unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

/// Memory that one stream alone uses.
#[derive(Debug)]
pub(super) enum Staging {
    /// Freed in the order of the stream: nobody has to wait.
    Ordered(Arc<Stream>, u64),
    /// As any other, where the GPU has no memory pools.
    Slab(Slab),
}

impl Staging {
    pub(super) fn new(stream: &Arc<Stream>, bytes: usize) -> Result<Self> {
        match stream.allocate(bytes)? {
            Some(address) => Ok(Self::Ordered(Arc::clone(stream), address)),
            None => Slab::new(stream.gpu(), bytes).map(Self::Slab),
        }
    }

    pub(super) fn address(&self) -> u64 {
        match self {
            Self::Ordered(_, address) => *address,
            Self::Slab(slab) => slab.address(),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Self::Ordered(stream, address) = self {
            // SAFETY: the address came from this stream's `allocate`, and only work on this stream,
            // all of it before this call, uses the memory.
            let _freed = unsafe { sys::cuMemFreeAsync(*address, stream.raw()) };
        }
    }
}

/// Where a target lies: which slab, and how far in it.
#[derive(Clone, Copy, Debug)]
struct Share {
    slab: usize,
    offset: u64,
}

/// Puts the tensors of one load into slabs of exactly their size: small tensors share one, a large
/// one has its own, so that one survivor never keeps gigabytes.
#[derive(Debug)]
pub(crate) struct SlabAllocator {
    gpu: &'static Gpu,
    shares: Vec<Share>,
    slab_bytes: Vec<u64>,
    slabs: Vec<Option<Arc<Slab>>>,
    /// Targets of each slab that have no memory yet.
    waiting: Vec<usize>,
}

impl SlabAllocator {
    /// For targets of those sizes, in the order in which they will be filled.
    pub(crate) fn new(gpu: &'static Gpu, target_bytes: &[u64]) -> Self {
        let (shares, slab_bytes) = share(target_bytes);
        let slabs = slab_bytes.iter().map(|_| None).collect();
        let mut waiting = vec![0; slab_bytes.len()];
        for share in &shares {
            waiting[share.slab] += 1;
        }
        Self { gpu, shares, slab_bytes, slabs, waiting }
    }
}

impl Allocator for SlabAllocator {
    fn allocate(&mut self, target: usize, bytes: usize) -> Result<Buffer> {
        let Share { slab: number, offset } = self.shares[target];
        let slab = if let Some(known) = self.slabs[number].take() {
            known
        } else {
            let size = usize::try_from(self.slab_bytes[number].max(1));
            let size = size.map_err(|_| Error::Internal("a slab larger than memory".to_owned()))?;
            Arc::new(Slab::new(self.gpu, size)?)
        };
        self.waiting[number] -= 1;
        if self.waiting[number] > 0 {
            // Kept for the others only: who has a tensor decides how long its memory lives.
            self.slabs[number] = Some(Arc::clone(&slab));
        }
        let (address, ordinal) = (slab.address() + offset, self.gpu.ordinal());
        let (conversion, slab) = (None, Some(slab));
        Ok(Buffer::Cuda(CudaBuffer { address, bytes, ordinal, conversion, _slab: slab }))
    }
}

/// The place of each target, and the size of each slab.
fn share(target_bytes: &[u64]) -> (Vec<Share>, Vec<u64>) {
    let mut slab_bytes: Vec<u64> = Vec::new();
    let mut open: Option<usize> = None;
    let shares = target_bytes.iter().map(|&bytes| {
        let rounded = bytes.next_multiple_of(DEVICE_ALIGNMENT_BYTES);
        if rounded > SLAB_BYTES_MAX {
            slab_bytes.push(rounded);
            return Share { slab: slab_bytes.len() - 1, offset: 0 };
        }
        let fits = |slab: &usize| slab_bytes[*slab] + rounded <= SLAB_BYTES_MAX;
        let slab = open.filter(fits).unwrap_or_else(|| {
            slab_bytes.push(0);
            slab_bytes.len() - 1
        });
        open = Some(slab);
        let offset = slab_bytes[slab];
        slab_bytes[slab] += rounded;
        Share { slab, offset }
    });
    (shares.collect(), slab_bytes)
}

#[cfg(test)]
mod tests {
    use super::{DEVICE_ALIGNMENT_BYTES, SLAB_BYTES_MAX, share};

    #[test]
    fn targets_are_aligned_apart_and_no_slab_is_larger_than_it_need_be() {
        let sizes = [1, 0, 511, 512, 513, SLAB_BYTES_MAX, 7, SLAB_BYTES_MAX + 1, 9, 40 << 20];
        let (shares, slabs) = share(&sizes);
        let mut end = vec![0; slabs.len()];
        for (share, bytes) in shares.iter().zip(sizes) {
            assert!(share.offset.is_multiple_of(DEVICE_ALIGNMENT_BYTES));
            assert!(share.offset >= end[share.slab]);
            end[share.slab] = share.offset + bytes;
        }
        for (slab, end) in slabs.iter().zip(end) {
            assert_eq!(*slab, end.next_multiple_of(DEVICE_ALIGNMENT_BYTES));
        }
        assert_eq!(slabs.iter().filter(|&&bytes| bytes > SLAB_BYTES_MAX).count(), 1);
    }
}
