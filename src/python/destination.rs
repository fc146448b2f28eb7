//! Where a caller wants tensors: on the host, or on a GPU in torch's memory or in ours.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

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

/// Where tensors shall be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// In memory of the host.
    Host,
    /// On a GPU.
    Cuda(usize, Memory),
}

impl Goal {
    /// By the number of a GPU, or none for the host, and the name of an allocator.
    pub(crate) fn new(ordinal: Option<usize>, allocator: &str) -> PyResult<Self> {
        let memory = match allocator {
            "torch" => Memory::Torch,
            "driver" => Memory::Driver,
            _ => {
                return Err(PyValueError::new_err(format!(
                    "allocator {allocator:?} is invalid (expected one of: \"torch\", \"driver\")"
                )));
            }
        };
        Ok(ordinal.map_or(Self::Host, |ordinal| Self::Cuda(ordinal, memory)))
    }
}

/// Tensors that torch has made and that are being filled, by target.
pub(crate) type Made = Arc<Mutex<Vec<Option<Py<PyAny>>>>>;

/// Lets torch allocate each tensor just before its first bytes are copied.
pub(crate) struct TorchAllocator {
    gpu: &'static Gpu,
    /// The stream that torch uses in the thread that asked, and its handle.
    user: Py<PyAny>,
    user_handle: usize,
    empty: Py<PyAny>,
    keywords: HashMap<Dtype, Py<PyDict>>,
    forms: Vec<Form>,
    made: Made,
}

impl TorchAllocator {
    /// Initialises CUDA by torch, so that what is wrong with it is told in torch's words; checks
    /// that there is room, and has torch reserve it in one piece.
    pub(crate) fn new(py: Python<'_>, ordinal: usize, forms: &[Form]) -> Result<Self> {
        let torch = torch_module(py)?;
        let user = torch.getattr("cuda")?.call_method1("current_stream", (ordinal,))?;
        let user_handle = user.getattr("cuda_stream")?.extract()?;
        let gpu = Gpu::open(ordinal)?;
        Stream::of_torch(gpu, user_handle).check_not_capturing()?;
        let device = torch.getattr("device").and_then(|class| class.call1(("cuda", ordinal)))?;
        let mut keywords = HashMap::new();
        for form in forms {
            if let Entry::Vacant(place) = keywords.entry(form.dtype) {
                let dict = PyDict::new(py);
                dict.set_item("dtype", torch_type(py, form.dtype)?)?;
                dict.set_item("device", &device)?;
                place.insert(dict.unbind());
            }
        }
        let empty = torch.getattr("empty")?.unbind();
        let made = Arc::new(Mutex::new(forms.iter().map(|_| None).collect()));
        let (user, forms) = (user.unbind(), forms.to_vec());
        Ok(Self { gpu, user, user_handle, empty, keywords, forms, made })
    }

    /// Refuses a load for which the GPU has no room, before anything is read. Otherwise has torch
    /// allocate one block for all large tensors and put it into its cache, from where each gets its
    /// part without another call to the driver.
    pub(crate) fn make_room(&self, py: Python<'_>) -> Result<()> {
        let rounded = |bytes: u64| bytes.next_multiple_of(DEVICE_ALIGNMENT_BYTES);
        let sizes = || self.forms.iter().map(Form::bytes);
        let wanted: u64 = sizes().map(rounded).sum();
        let large: u64 = sizes().filter(|&bytes| bytes > TORCH_SMALL_BYTES_MAX).map(rounded).sum();
        if wanted < RESERVATION_BYTES_MIN {
            return Ok(());
        }
        let torch = torch_module(py)?;
        let cuda = torch.getattr("cuda")?;
        let count = |name: &str| cuda.call_method1(name, (self.gpu.ordinal(),))?.extract::<u64>();
        let (Ok(reserved), Ok(allocated)) = (count("memory_reserved"), count("memory_allocated"))
        else {
            return Ok(()); // an allocator of somebody else's in torch, which does not count
        };
        let cached = reserved.saturating_sub(allocated);
        self.gpu.check_room(wanted, cached)?;
        if large > cached {
            let keywords = PyDict::new(py);
            keywords.set_item("dtype", torch.getattr("uint8")?)?;
            keywords.set_item("device", format!("cuda:{}", self.gpu.ordinal()))?;
            let block = self.empty.bind(py).call((large,), Some(&keywords));
            if block.is_err() {
                // In pieces it may fit yet, once what lies idle in torch's cache is given back.
                cuda.call_method0("empty_cache")?;
            }
        }
        Ok(())
    }

    /// The GPU.
    pub(crate) fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    /// The stream that torch uses in the thread that asked.
    pub(crate) fn user_stream(&self) -> Stream {
        Stream::of_torch(self.gpu, self.user_handle)
    }

    /// Makes that stream the calling thread's as well, which is one of ours.
    pub(crate) fn adopt_thread(&self) -> Result<()> {
        Python::attach(|py| {
            torch_module(py)?.getattr("cuda")?.call_method1("set_stream", (&self.user,))?;
            Ok(())
        })
    }

    /// The tensors, to be taken when they are delivered.
    pub(crate) fn made(&self) -> Made {
        Arc::clone(&self.made)
    }

    fn make<'py>(&self, py: Python<'py>, target: usize) -> PyResult<Bound<'py, PyAny>> {
        let form = &self.forms[target];
        let shape = PyTuple::new(py, form.torch_shape()?)?;
        let keywords = self.keywords.get(&form.dtype).map(|keywords| keywords.bind(py));
        self.empty.bind(py).call((shape,), keywords)
    }
}

impl Allocator for TorchAllocator {
    fn allocate(&mut self, target: usize, bytes: usize) -> Result<Buffer> {
        Python::attach(|py| {
            let tensor = self.make(py, target)?;
            let address = tensor.call_method0(intern!(py, "data_ptr"))?.extract::<u64>()?;
            if address == 0 && bytes > 0 {
                return Err(Error::Internal("torch made a tensor without memory".to_owned()));
            }
            let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            made[target] = Some(tensor.unbind());
            Ok(Buffer::Cuda(CudaBuffer::borrowed(self.gpu, address, bytes)))
        })
    }
}

/// Takes a tensor that was delivered.
pub(crate) fn take<'py>(
    py: Python<'py>,
    made: &Made,
    target: usize,
) -> PyResult<Bound<'py, PyAny>> {
    let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
    let tensor = made.get_mut(target).and_then(Option::take);
    let lost = || Error::Internal("a tensor was delivered that was never made".to_owned());
    Ok(tensor.ok_or_else(lost)?.into_bound(py))
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
