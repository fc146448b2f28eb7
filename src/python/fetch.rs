//! What the engine reads, as torch tensors: the one place that puts reader, device and allocator
//! together for a caller in Python.

use std::sync::Arc;

use pyo3::prelude::*;

use crate::checkpoint::engine::{Options, run};
use crate::config::{DEVICE_ALIGNMENT_BYTES, SLOT_BYTES};
use crate::device::cuda::copy::CudaDevice;
use crate::device::cuda::driver::Gpu;
use crate::device::cuda::memory::SlabAllocator;
use crate::device::host::{HostAllocator, HostDevice};
use crate::device::{Buffer, Destination};
use crate::error::{Error, Result};
use crate::pipeline::Caller;
use crate::plan::Wanted;
use crate::python::collector::{Collector, CollectorPause};
use crate::python::destination::{Goal, Made, Memory, TorchAllocator, take};
use crate::python::tensor::to_torch;
use crate::report::Report;
use crate::source::Source;
use crate::tensor::{Form, Memory as TensorMemory, Tensor};

/// The sources of a load, by the shards' numbers.
pub(crate) type Sources = Arc<[Arc<dyn Source>]>;

/// What is wanted, and what it will be.
pub(crate) struct Targets {
    /// The ranges to read.
    pub(crate) wanted: Vec<Wanted>,
    /// The tensors that they make.
    pub(crate) forms: Vec<Form>,
}

/// How it is to be done.
#[derive(Clone, Copy)]
pub(crate) struct Manner {
    /// Where the tensors shall be.
    pub(crate) goal: Goal,
    /// How the bytes are read.
    pub(crate) options: Options,
}

/// A destination, made ready with the interpreter attached, and used without it.
pub(crate) enum Ready {
    /// Host memory.
    Host,
    /// Slabs on the GPU of that number.
    Slabs(usize),
    /// Tensors of torch's.
    Torch(Box<TorchAllocator>),
}

impl Ready {
    /// For tensors that will all be there at once: looks for the GPU, and for room on it.
    pub(crate) fn new(py: Python<'_>, goal: Goal, forms: &[Form]) -> Result<Self> {
        let ready = Self::piecemeal(py, goal, forms)?;
        match &ready {
            Self::Host => {}
            Self::Slabs(ordinal) => {
                let rounded = |form: &Form| form.bytes().next_multiple_of(DEVICE_ALIGNMENT_BYTES);
                Gpu::open(*ordinal)?.check_room(forms.iter().map(rounded).sum(), 0)?;
            }
            Self::Torch(allocator) => allocator.make_room(py)?,
        }
        Ok(ready)
    }

    /// For tensors that are taken as they come, and may be gone before the last one is there.
    pub(crate) fn piecemeal(py: Python<'_>, goal: Goal, forms: &[Form]) -> Result<Self> {
        Ok(match goal {
            Goal::Host => Self::Host,
            Goal::Cuda(ordinal, Memory::Driver) => Self::Slabs(ordinal),
            Goal::Cuda(ordinal, Memory::Torch) => {
                Self::Torch(Box::new(TorchAllocator::new(py, ordinal, forms)?))
            }
        })
    }

    /// The tensors that torch makes, where it makes them.
    pub(crate) fn made(&self) -> Option<Made> {
        match self {
            Self::Torch(allocator) => Some(allocator.made()),
            Self::Host | Self::Slabs(_) => None,
        }
    }

    /// For a thread of ours: what torch allocates in it belongs to the stream of the thread that
    /// asked.
    pub(crate) fn adopt_thread(&self) -> Result<()> {
        match self {
            Self::Torch(allocator) => allocator.adopt_thread(),
            Self::Host | Self::Slabs(_) => Ok(()),
        }
    }

    /// Reads what is wanted.
    pub(crate) fn run(
        &mut self,
        sources: &Sources,
        wanted: Vec<Wanted>,
        options: Options,
        caller: &mut dyn Caller,
    ) -> Result<Report> {
        match self {
            Self::Host => {
                let few = wanted.len() == 1 && wanted[0].bytes() <= SLOT_BYTES as u64;
                let mut device =
                    if few { HostDevice::without_threads() } else { HostDevice::new() };
                let to = Destination { device: &mut device, allocator: &mut HostAllocator };
                run(sources, wanted, options, to, caller)
            }
            Self::Slabs(ordinal) => {
                let gpu = Gpu::open(*ordinal)?;
                let sizes: Vec<u64> = wanted.iter().map(Wanted::bytes).collect();
                let mut device = CudaDevice::new(gpu, None)?;
                let mut allocator = SlabAllocator::new(gpu, device.stream(), &sizes);
                let to = Destination { device: &mut device, allocator: &mut allocator };
                run(sources, wanted, options, to, caller)
            }
            Self::Torch(allocator) => {
                let mut device = CudaDevice::new(allocator.gpu(), Some(allocator.user_stream()))?;
                let to = Destination { device: &mut device, allocator: allocator.as_mut() };
                run(sources, wanted, options, to, caller)
            }
        }
    }
}

/// The tensor of a target that was delivered.
pub(crate) fn to_tensor<'py>(
    py: Python<'py>,
    made: Option<&Made>,
    target: usize,
    buffer: Buffer,
    form: Form,
) -> PyResult<Bound<'py, PyAny>> {
    match made {
        Some(made) => take(py, made, target),
        None => to_torch(py, Tensor { memory: TensorMemory::Owned(buffer), form }),
    }
}

/// Reads the targets; gives them in their order.
pub(crate) fn fetch<'py>(
    py: Python<'py>,
    sources: &Sources,
    targets: Targets,
    manner: Manner,
    progress: Option<Py<PyAny>>,
) -> Result<(Vec<Bound<'py, PyAny>>, Report)> {
    let Targets { wanted, forms } = targets;
    let mut collector = Collector::new(&wanted, progress);
    let mut ready = Ready::new(py, manner.goal, &forms)?;
    let made = ready.made();
    let report = py.detach(|| ready.run(sources, wanted, manner.options, &mut collector))?;
    let gone = || Error::Internal("a tensor of the plan is gone".to_owned());
    let _pause = CollectorPause::begin(py)?;
    let mut tensors = Vec::with_capacity(forms.len());
    for (target, (buffer, form)) in collector.take().into_iter().zip(forms).enumerate() {
        tensors.push(to_tensor(py, made.as_ref(), target, buffer.ok_or_else(gone)?, form)?);
    }
    collector.finish(py)?;
    Ok((tensors, report))
}
