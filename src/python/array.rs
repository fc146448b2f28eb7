//! Device memory of ours without torch: arrays that other libraries' arrays take over by
//! `__cuda_array_interface__` (version 3) or by `DLPack`.

use std::time::Instant;

use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::checkpoint::engine::Options;
use crate::checkpoint::{Backend, Checkpoint};
use crate::device::cuda::driver::Gpu;
use crate::device::{Buffer, CudaBuffer};
use crate::error::Error;
use crate::format::Dtype;
use crate::python::address::{Named, location_of};
use crate::python::collector::Collector;
use crate::python::destination::{Goal, Goals, Memory};
use crate::python::fetch::{Manner, Ready, Targets};
use crate::python::load::{cache_of, select, sources_of, targets_of};
use crate::python::report::remember;
use crate::python::tensor::to_capsule;
use crate::tensor::{Form, Memory as TensorMemory, Tensor};

/// One tensor in memory of a GPU; other libraries' arrays over it keep it alive.
#[pyclass(frozen, module = "safetensors_streaming")]
pub(crate) struct DeviceArray {
    buffer: CudaBuffer,
    form: Form,
}

#[pymethods]
impl DeviceArray {
    /// The dimensions; of a four-bit type the last one counts bytes, two elements in each.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.form.torch_shape()?)
    }

    /// The element type by the format's name, such as "BF16".
    #[getter]
    fn dtype(&self) -> &'static str {
        self.form.dtype.name()
    }

    /// The size in bytes.
    #[getter]
    fn nbytes(&self) -> usize {
        self.buffer.bytes()
    }

    /// The number of the GPU.
    #[getter]
    fn device(&self) -> usize {
        self.buffer.ordinal()
    }

    /// The array for whoever knows this protocol. The bytes are there: no stream has to be waited for.
    /// Types that the protocol has no name for, such as BF16, are told as unsigned integers.
    #[getter]
    fn __cuda_array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let address = if self.buffer.bytes() == 0 { 0 } else { self.buffer.address() };
        let interface = PyDict::new(py);
        interface.set_item("shape", self.shape(py)?)?;
        interface.set_item("typestr", type_string(self.form.dtype))?;
        interface.set_item("data", (address, false))?;
        interface.set_item("strides", py.None())?;
        interface.set_item("stream", py.None())?;
        interface.set_item("version", 3)?;
        Ok(interface)
    }

    /// The array as a `DLPack` capsule; the bytes are there, so that no stream has to wait.
    #[expect(clippy::too_many_arguments, reason = "the protocol's keywords")]
    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<Bound<'py, PyAny>>,
        max_version: Option<Bound<'py, PyAny>>,
        dl_device: Option<(i32, usize)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _any_will_do = (stream, max_version);
        let elsewhere = dl_device.is_some_and(|wanted| wanted != self.__dlpack_device__());
        if elsewhere || copy == Some(true) {
            return Err(PyBufferError::new_err("only a view on the same device can be exported"));
        }
        let memory = TensorMemory::Owned(Buffer::Cuda(self.buffer.clone()));
        to_capsule(py, Tensor { memory, form: self.form.clone() })
    }

    /// The device by `DLPack`'s numbers: its kind (2 is CUDA), and which.
    fn __dlpack_device__(&self) -> (i32, usize) {
        (2, self.buffer.ordinal())
    }

    fn __repr__(&self) -> PyResult<String> {
        let (shape, ordinal) = (self.form.torch_shape()?, self.buffer.ordinal());
        Ok(format!("DeviceArray({}, {shape:?}, cuda:{ordinal})", self.form.dtype.name()))
    }
}

/// `NumPy`'s name for a type, or for unsigned integers of its width where it has none.
fn type_string(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bool => "|b1",
        Dtype::I8 => "|i1",
        Dtype::I16 => "<i2",
        Dtype::U16 | Dtype::Bf16 => "<u2",
        Dtype::F16 => "<f2",
        Dtype::I32 => "<i4",
        Dtype::U32 => "<u4",
        Dtype::F32 => "<f4",
        Dtype::C64 => "<c8",
        Dtype::F64 => "<f8",
        Dtype::I64 => "<i8",
        Dtype::U64 => "<u8",
        Dtype::U8
        | Dtype::F4
        | Dtype::F6E2M3
        | Dtype::F6E3M2
        | Dtype::F8E5M2
        | Dtype::F8E4M3
        | Dtype::F8E8M0
        | Dtype::F8E4M3Fnuz
        | Dtype::F8E5M2Fnuz => "|u1",
    }
}

/// All tensors of a checkpoint that the filter wants, in memory of ours on a GPU.
#[pyfunction]
pub(crate) fn load_arrays<'py>(
    py: Python<'py>,
    paths: Vec<Named>,
    device: usize,
    cache: &str,
    filter: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let began = Instant::now();
    let options = Options::with_cache(cache_of(cache)?);
    let checkpoint = py.detach(|| Checkpoint::open(&location_of(paths)?, Backend::Engine))?;
    let places = select(py, &checkpoint, filter)?;
    let mut targets = targets_of(&checkpoint, &places, None)?;
    let goals = Goals::one(Goal::Cuda(device, Memory::Driver));
    let manner = Manner::new(goals, options);
    let mut ready = Ready::new(py, &manner, &mut targets)?;
    ready.make_room(py)?;
    let Targets { wanted, forms, .. } = targets;
    let mut collector = Collector::new(&wanted, None);
    let sources = sources_of(&checkpoint);
    let mut report = py
        .detach(|| ready.run(&sources, wanted, options, &mut collector))
        .map_err(|error| error.named(|target| checkpoint.name(places[target]).to_owned()))?;
    let arrays = PyDict::new(py);
    for ((buffer, form), &place) in collector.take().into_iter().zip(forms).zip(&places) {
        let Some(Buffer::Cuda(buffer)) = buffer else {
            return Err(Error::Internal("a tensor of the plan is gone".to_owned()).into());
        };
        arrays.set_item(checkpoint.name(place), DeviceArray { buffer, form })?;
    }
    report.seconds.total = began.elapsed().as_secs_f64();
    remember(py, report);
    Ok(arrays)
}

/// What is known of a GPU and its place in the host, by name; None where something is not known.
#[pyfunction]
pub(crate) fn gpu_facts(py: Python<'_>, device: usize) -> PyResult<Bound<'_, PyDict>> {
    let facts = py.detach(|| Gpu::open(device)?.facts())?;
    let dict = PyDict::new(py);
    dict.set_item("pcie_generation", facts.pcie_generation)?;
    dict.set_item("pcie_generation_max", facts.pcie_generation_max)?;
    dict.set_item("pcie_width", facts.pcie_width)?;
    dict.set_item("pcie_width_max", facts.pcie_width_max)?;
    dict.set_item("numa_node", facts.numa_node)?;
    dict.set_item("memory_free", facts.memory_free)?;
    dict.set_item("memory_total", facts.memory_total)?;
    Ok(dict)
}
