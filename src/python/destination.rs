//! Where a caller wants tensors: on the host, or on a GPU in torch's memory or in ours.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::config::{DEVICE_ALIGNMENT_BYTES, RESERVATION_BYTES_MIN, TORCH_SMALL_BYTES_MAX};
use crate::device::cuda::driver::Gpu;
use crate::device::cuda::stream::Stream;
use crate::device::{Allocator, Buffer, CudaBuffer};
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::python::aten::{Aten, AtenTensor};
use crate::python::errors::foreseen;
use crate::python::tensor::{torch_module, torch_type};
use crate::tensor::Form;

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

/// A tensor that torch has made and that is being filled.
pub(crate) enum Unfilled {
    /// Python does not know of it yet.
    Native(AtenTensor),
    /// An object of Python's.
    Object(Py<PyAny>),
}

/// Those of a load, by target.
pub(crate) type Made = Arc<Mutex<Vec<Option<Unfilled>>>>;

/// Lets torch allocate each tensor just before its first bytes are copied.
pub(crate) struct TorchAllocator {
    gpu: &'static Gpu,
    /// What makes small tensors without the interpreter, as long as it can.
    aten: Option<&'static Aten>,
    empty: Py<PyAny>,
    keywords: HashMap<Dtype, Py<PyDict>>,
    forms: Arc<[Form]>,
    made: Made,
    /// What torch shall reserve before it makes the first large tensor.
    unreserved_bytes: u64,
}

impl TorchAllocator {
    /// For tensors of those forms.
    pub(crate) fn new(
        py: Python<'_>,
        gpu: &'static Gpu,
        forms: &Arc<[Form]>,
        made: &Made,
    ) -> Result<Self> {
        let torch = torch_module(py)?;
        let device = torch.getattr("device")?.call1(("cuda", gpu.ordinal()))?;
        let mut keywords = HashMap::new();
        for form in forms.iter() {
            if let Entry::Vacant(place) = keywords.entry(form.dtype) {
                let dict = PyDict::new(py);
                dict.set_item("dtype", torch_type(py, form.dtype)?)?;
                dict.set_item("device", &device)?;
                place.insert(dict.unbind());
            }
        }
        let small = forms.iter().any(|form| form.bytes() <= TORCH_SMALL_BYTES_MAX);
        let aten = if small { Aten::find(py) } else { None };
        let empty = torch.getattr("empty")?.unbind();
        let (forms, made) = (Arc::clone(forms), Arc::clone(made));
        Ok(Self { gpu, aten, empty, keywords, forms, made, unreserved_bytes: 0 })
    }

    /// Refuses a load of tensors of those sizes for which the GPU has no room, before anything is
    /// read. Otherwise one block for all large tensors is reserved before the first of them is made.
    pub(crate) fn make_room(&mut self, py: Python<'_>, sizes: &[u64]) -> Result<()> {
        let wanted = room_for(sizes.iter());
        let large = room_for(sizes.iter().filter(|&&bytes| bytes > TORCH_SMALL_BYTES_MAX));
        if wanted < RESERVATION_BYTES_MIN {
            return Ok(());
        }
        let (Some(reserved), Some(allocated)) =
            (self.count(py, "memory_reserved")?, self.count(py, "memory_allocated")?)
        else {
            return Ok(()); // an allocator of somebody else's in torch, which does not count
        };
        let cached = reserved.saturating_sub(allocated);
        self.gpu.check_room(wanted, cached)?;
        self.unreserved_bytes = if large > cached { large } else { 0 };
        Ok(())
    }

    /// Has torch allocate that block and put it into its cache, from where each tensor gets its part
    /// without another call to the driver. The first reads are under way meanwhile. Gives what torch has
    /// reserved then, where that was done.
    fn reserve(&mut self) -> Result<Option<u64>> {
        let bytes = std::mem::take(&mut self.unreserved_bytes);
        if bytes == 0 {
            return Ok(None);
        }
        Python::attach(|py| {
            let torch = torch_module(py)?;
            let keywords = PyDict::new(py);
            keywords.set_item("dtype", torch.getattr("uint8")?)?;
            keywords.set_item("device", format!("cuda:{}", self.gpu.ordinal()))?;
            let block = self.empty.bind(py).call((bytes,), Some(&keywords));
            if foreseen::<PyRuntimeError, _>(py, block)?.is_none() {
                // In pieces it may fit yet, once what lies idle in torch's cache is given back.
                empty_cache(py)?;
                return Ok(None);
            }
            self.count(py, "memory_reserved")
        })
    }

    /// Gives the block back to the driver where the tensor that was made next did not come out of it:
    /// torch can be told to keep large blocks in one piece (`max_split_size_mb`).
    fn check_reservation(&self, reserved: u64) -> Result<()> {
        Python::attach(|py| {
            let unused = self.count(py, "memory_reserved")?.is_some_and(|now| now > reserved);
            if unused { empty_cache(py) } else { Ok(()) }
        })
    }

    /// What torch counts of this GPU's memory under that name; none where it counts nothing.
    fn count(&self, py: Python<'_>, name: &str) -> Result<Option<u64>> {
        let cuda = torch_module(py)?.getattr("cuda")?;
        let counted = cuda.call_method1(name, (self.gpu.ordinal(),));
        Ok(foreseen::<PyRuntimeError, _>(py, counted.and_then(|number| number.extract()))?)
    }

    /// For threads that hold the interpreter: torch's own function lets go of it while it waits for
    /// memory.
    pub(crate) fn use_interpreter(&mut self) {
        self.aten = None;
    }

    /// Without the interpreter, which takes half of the time, and there is no object yet for Python's
    /// collector to look at again and again. Small tensors only: of others there are never so many,
    /// and where there is no memory torch writes about it to the standard error stream, once a load.
    fn make_natively(&mut self, target: usize) -> Result<Option<(Unfilled, u64)>> {
        let form = &self.forms[target];
        if form.bytes() == 0 || form.bytes() > TORCH_SMALL_BYTES_MAX {
            return Ok(None);
        }
        let known = self.aten.and_then(|aten| Some((aten, aten.dtype(form.dtype)?)));
        let Some((aten, dtype)) = known else { return Ok(None) };
        if let Some((tensor, address)) = aten.empty(self.gpu.ordinal(), dtype, &form.torch_shape()?)
        {
            return Ok(Some((Unfilled::Native(tensor), address)));
        }
        self.aten = None;
        Python::attach(PyErr::take).map_or(Ok(None), |raised| Err(raised.into()))
    }

    /// By what torch's users call, which tells what is wrong.
    fn make(&self, target: usize) -> Result<(Unfilled, u64)> {
        let form = &self.forms[target];
        Python::attach(|py| {
            let shape = PyTuple::new(py, form.torch_shape()?)?;
            let keywords = self.keywords.get(&form.dtype).map(|keywords| keywords.bind(py));
            let tensor = self.empty.bind(py).call((shape,), keywords)?;
            let address = tensor.call_method0(intern!(py, "data_ptr"))?.extract::<u64>()?;
            Ok((Unfilled::Object(tensor.unbind()), address))
        })
    }
}

impl Allocator for TorchAllocator {
    fn allocate(&mut self, target: usize, bytes: usize) -> Result<Buffer> {
        let large = self.forms[target].bytes() > TORCH_SMALL_BYTES_MAX;
        let reserved = if large { self.reserve()? } else { None };
        let native = self.make_natively(target)?;
        let (tensor, address) = native.map_or_else(|| self.make(target), Ok)?;
        if address == 0 && bytes > 0 {
            return Err(Error::Internal("torch made a tensor without memory".to_owned()));
        }
        lock(&self.made)[target] = Some(tensor);
        reserved.map_or(Ok(()), |reserved| self.check_reservation(reserved))?;
        Ok(Buffer::Cuda(CudaBuffer::borrowed(self.gpu.ordinal(), address, bytes)))
    }
}

/// Has torch give back to the driver what lies idle in its cache.
fn empty_cache(py: Python<'_>) -> Result<()> {
    torch_module(py)?.getattr("cuda")?.call_method0("empty_cache")?;
    Ok(())
}

/// Takes a tensor that torch made and that was delivered; none where its memory is ours.
pub(crate) fn take<'py>(
    py: Python<'py>,
    made: &Made,
    target: usize,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let taken = lock(made).get_mut(target).and_then(Option::take);
    Ok(into_objects(py, vec![taken])?.pop().flatten())
}

/// The same of all targets, in one go.
pub(crate) fn take_all<'py>(
    py: Python<'py>,
    made: &Made,
) -> PyResult<Vec<Option<Bound<'py, PyAny>>>> {
    let taken = std::mem::take(&mut *lock(made));
    into_objects(py, taken)
}

fn into_objects(
    py: Python<'_>,
    made: Vec<Option<Unfilled>>,
) -> PyResult<Vec<Option<Bound<'_, PyAny>>>> {
    let mut objects: Vec<_> = made.iter().map(|_| None).collect();
    let (mut targets, mut tensors) = (Vec::new(), Vec::new());
    for (target, unfilled) in made.into_iter().enumerate() {
        match unfilled {
            None => {}
            Some(Unfilled::Object(object)) => objects[target] = Some(object.into_bound(py)),
            Some(Unfilled::Native(tensor)) => {
                targets.push(target);
                tensors.push(tensor);
            }
        }
    }
    for (target, object) in targets.into_iter().zip(AtenTensor::into_objects(py, tensors)?) {
        objects[target] = Some(object);
    }
    Ok(objects)
}

fn lock(made: &Made) -> MutexGuard<'_, Vec<Option<Unfilled>>> {
    made.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The error that torch's users catch when a GPU's memory runs out.
pub(crate) fn out_of_memory(text: String) -> PyErr {
    Python::attach(|py| {
        let modules = py.import("sys").and_then(|sys| sys.getattr("modules"));
        let torch = modules.and_then(|modules| modules.get_item("torch"));
        let class = torch.and_then(|torch| torch.getattr("OutOfMemoryError"));
        match class.and_then(|class| class.call1((&text,))) {
            Ok(error) => PyErr::from_value(error),
            Err(_no_torch) => PyRuntimeError::new_err(text),
        }
    })
}

/// The bytes of a GPU that tensors of those sizes take; no file is so large that more than a number can
/// hold are wanted, but headers may say so.
pub(crate) fn room_for<'size>(sizes: impl Iterator<Item = &'size u64>) -> u64 {
    let rounded = |bytes: &u64| bytes.checked_next_multiple_of(DEVICE_ALIGNMENT_BYTES);
    sizes.map(|bytes| rounded(bytes).unwrap_or(u64::MAX)).fold(0, u64::saturating_add)
}
