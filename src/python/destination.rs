//! Where a caller wants tensors: on the host, or on a GPU in torch's memory or in ours.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::device::cuda::driver::Gpu;
use crate::device::cuda::stream::Stream;
use crate::error::Result;
use crate::python::tensor::torch_module;

/// Whose memory tensors on a GPU are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Each is an allocation of torch's own.
    Torch,
    /// Slabs that this package asks the driver for.
    Driver,
}

impl Memory {
    /// By the name of an allocator.
    pub(crate) fn new(allocator: &str) -> PyResult<Self> {
        match allocator {
            "torch" => Ok(Self::Torch),
            "driver" => Ok(Self::Driver),
            _ => Err(PyValueError::new_err(format!(
                "allocator {allocator:?} is invalid (expected one of: \"torch\", \"driver\")"
            ))),
        }
    }
}

/// Where tensors shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// In memory of the host.
    Host,
    /// On a GPU.
    Cuda(usize, Memory),
}

impl Goal {
    /// By the number of a GPU, or none for the host.
    pub(crate) fn new(ordinal: Option<usize>, memory: Memory) -> Self {
        ordinal.map_or(Self::Host, |ordinal| Self::Cuda(ordinal, memory))
    }

    /// The number of its GPU, or none for the host.
    pub(crate) fn ordinal(self) -> Option<usize> {
        match self {
            Self::Host => None,
            Self::Cuda(ordinal, _) => Some(ordinal),
        }
    }

    /// Whether kernels can work on the way there.
    pub(crate) fn has_kernels(self) -> Result<bool> {
        match self {
            Self::Host => Ok(false),
            Self::Cuda(ordinal, _) => Ok(Gpu::open(ordinal)?.kernels().is_ok()),
        }
    }
}

/// Where each target shall be.
#[derive(Clone, Debug)]
pub(crate) struct Goals {
    /// The different goals.
    pub(crate) all: Vec<Goal>,
    /// Which of them is whose, by target; empty where there is but one.
    of: Vec<usize>,
}

impl Goals {
    /// One goal for all.
    pub(crate) fn one(goal: Goal) -> Self {
        Self { all: vec![goal], of: Vec::new() }
    }

    /// A goal for each target.
    pub(crate) fn each(goals: Vec<Goal>) -> Self {
        let mut all: Vec<Goal> = Vec::new();
        let mut number = |goal| {
            all.iter().position(|known| *known == goal).unwrap_or_else(|| {
                all.push(goal);
                all.len() - 1
            })
        };
        let of = goals.into_iter().map(&mut number).collect();
        Self { all, of }
    }

    /// The number of a target's goal.
    pub(crate) fn number(&self, target: usize) -> usize {
        self.of.get(target).copied().unwrap_or(0)
    }
}

/// A GPU that torch has initialised, and the stream that it uses there in the thread that asked.
pub(crate) struct TorchGpu {
    /// The GPU.
    pub(crate) gpu: &'static Gpu,
    user: Py<PyAny>,
    handle: usize,
}

impl TorchGpu {
    /// Has torch initialise CUDA, so that what is wrong with it is told in torch's words; refuses
    /// while a graph is being captured.
    pub(crate) fn open(py: Python<'_>, ordinal: usize) -> Result<Self> {
        let cuda = torch_module(py)?.getattr("cuda")?;
        let user = cuda.call_method1("current_stream", (ordinal,))?;
        let handle = user.getattr("cuda_stream")?.extract()?;
        let opened = Self { gpu: Gpu::open(ordinal)?, user: user.unbind(), handle };
        opened.stream().check_not_capturing()?;
        Ok(opened)
    }

    /// Whether another is the same GPU and stream.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.gpu.ordinal() == other.gpu.ordinal() && self.handle == other.handle
    }

    /// That stream.
    pub(crate) fn stream(&self) -> Stream {
        Stream::of_torch(self.gpu, self.handle)
    }

    /// Makes it the calling thread's as well, which is one of ours.
    pub(crate) fn adopt_thread(&self) -> Result<()> {
        Python::attach(|py| {
            torch_module(py)?.getattr("cuda")?.call_method1("set_stream", (&self.user,))?;
            Ok(())
        })
    }
}
