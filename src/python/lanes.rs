//! A load's way to one memory: who allocates there, and who copies to it.

use std::sync::Arc;

use pyo3::prelude::*;

use crate::device::cuda::copy::CudaWorker;
use crate::device::cuda::driver::Gpu;
use crate::device::cuda::memory::SlabAllocator;
use crate::device::cuda::reservation::room_for;
use crate::device::cuda::stream::Stream;
use crate::device::host::{HostAllocator, HostWorker};
use crate::device::{Allocator, Placed, Worker};
use crate::error::Result;
use crate::python::allocator::{Made, TorchAllocator};
use crate::python::destination::{Goal, Memory, TorchGpu};
use crate::queue::Sender;
use crate::tensor::Form;

/// One memory, as the goals name it.
pub(crate) enum Lane {
    /// The host's.
    Host,
    /// Slabs on a GPU.
    Slabs(&'static Gpu),
    /// Tensors of torch's.
    Torch(Box<TorchLane>),
}

/// What it takes to fill tensors of torch's.
pub(crate) struct TorchLane {
    gpu: TorchGpu,
    allocator: TorchAllocator,
}

impl Lane {
    /// Looks for the GPU.
    pub(crate) fn new(
        py: Python<'_>,
        goal: Goal,
        forms: &Arc<[Form]>,
        made: &Made,
    ) -> Result<Self> {
        Ok(match goal {
            Goal::Host => Self::Host,
            Goal::Cuda(ordinal, Memory::Driver) => Self::Slabs(Gpu::open(ordinal)?),
            Goal::Cuda(ordinal, Memory::Torch) => {
                let gpu = TorchGpu::open(py, ordinal)?;
                let allocator = TorchAllocator::new(py, gpu.gpu, forms, made)?;
                Self::Torch(Box::new(TorchLane { gpu, allocator }))
            }
        })
    }

    /// Looks for room for tensors of those sizes, which torch reserves by the block.
    pub(crate) fn make_room(&mut self, py: Python<'_>, sizes: &[u64]) -> Result<()> {
        match self {
            Self::Host => Ok(()),
            Self::Slabs(gpu) => gpu.check_room(room_for(sizes.iter()), 0),
            Self::Torch(lane) => lane.allocator.make_room(py, sizes),
        }
    }

    /// For memory that is made by threads that hold the interpreter.
    pub(crate) fn use_interpreter(&mut self) {
        if let Self::Torch(lane) = self {
            lane.allocator.use_interpreter();
        }
    }

    /// For a thread of ours: what torch allocates in it belongs to the stream of the thread that
    /// asked.
    pub(crate) fn adopt_thread(&self) -> Result<()> {
        match self {
            Self::Host | Self::Slabs(_) => Ok(()),
            Self::Torch(lane) => lane.gpu.adopt_thread(),
        }
    }

    /// What starts who copies.
    pub(crate) fn hand(&self) -> Hand {
        match self {
            Self::Host => Hand::Host,
            Self::Slabs(gpu) => Hand::Cuda(gpu, None),
            Self::Torch(lane) => Hand::Cuda(lane.gpu.gpu, Some(lane.gpu.stream())),
        }
    }

    /// Who allocates tensors of those sizes, by target.
    pub(crate) fn allocator(&mut self, sizes: &[u64]) -> Box<dyn Allocator + '_> {
        match self {
            Self::Host => Box::new(HostAllocator),
            Self::Slabs(gpu) => Box::new(SlabAllocator::new(gpu, sizes)),
            Self::Torch(lane) => Box::new(&mut lane.allocator),
        }
    }
}

/// Starts who copies on a lane, in whatever thread.
pub(crate) enum Hand {
    /// To memory of the host.
    Host,
    /// To a GPU, behind what a stream of torch's was given.
    Cuda(&'static Gpu, Option<Stream>),
}

impl Hand {
    /// With threads or, where there is but one small tensor, without.
    pub(crate) fn worker(self, few: bool, done: &Sender<Placed>) -> Result<Box<dyn Worker>> {
        Ok(match self {
            Self::Host if few => Box::new(HostWorker::without_threads(done)),
            Self::Host => Box::new(HostWorker::new(done)),
            Self::Cuda(gpu, user) if few => {
                let stream = user.map_or_else(|| Stream::new(gpu), Ok)?;
                Box::new(CudaWorker::without_threads(&Arc::new(stream), done))
            }
            Self::Cuda(gpu, user) => {
                Box::new(CudaWorker::new(&Arc::new(Stream::new(gpu)?), user, done)?)
            }
        })
    }
}
