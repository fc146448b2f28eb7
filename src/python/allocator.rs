//! Tensors that torch makes, to be filled by the engine.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::config::{RESERVATION_BYTES_MIN, TORCH_SMALL_BYTES_MAX};
use crate::device::cuda::driver::Gpu;
use crate::device::cuda::reservation::{Block, Blocks, room_for};
use crate::device::{Allocator, Buffer, CudaBuffer};
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::python::aten::{Aten, AtenTensor};
use crate::python::errors::foreseen;
use crate::python::tensor::{torch_module, torch_type};
use crate::tensor::Form;

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
    blocks: Blocks,
    /// Whether a tensor has come out of a block.
    splits: bool,
    /// Memory of blocks and its addresses, by the first target, until its tensors are made.
    held: HashMap<usize, (Py<PyAny>, u64)>,
    /// The addresses of tensors that were made before their first bytes came.
    early: HashMap<usize, u64>,
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
        Ok(Self {
            gpu,
            aten,
            empty,
            keywords,
            forms,
            made,
            blocks: Blocks::default(),
            splits: false,
            held: HashMap::new(),
            early: HashMap::new(),
        })
    }

    /// Refuses a load of tensors of those sizes for which the GPU has no room, before anything is
    /// read. Otherwise large tensors get their memory by the block.
    pub(crate) fn make_room(&mut self, py: Python<'_>, sizes: &[u64]) -> Result<()> {
        let wanted = room_for(sizes.iter());
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
        self.blocks = Blocks::new(sizes, cached);
        Ok(())
    }

    /// Memory of that size, of torch's, and its address; none where there is none.
    fn allocate_block(&self, py: Python<'_>, bytes: u64) -> Result<Option<(Py<PyAny>, u64)>> {
        let keywords = PyDict::new(py);
        keywords.set_item("dtype", torch_module(py)?.getattr("uint8")?)?;
        keywords.set_item("device", format!("cuda:{}", self.gpu.ordinal()))?;
        let block = self.empty.bind(py).call((bytes,), Some(&keywords));
        let Some(block) = foreseen::<PyRuntimeError, _>(py, block)? else { return Ok(None) };
        let address = block.call_method0(intern!(py, "data_ptr"))?.extract()?;
        Ok(Some((block.unbind(), address)))
    }

    /// Takes from torch's cache the blocks that are there, before tensors are made of parts of them. Where
    /// it is there in smaller pieces, torch gives those back when memory runs short.
    fn hold_idle(&mut self, py: Python<'_>) -> Result<()> {
        for (first, bytes) in self.blocks.take_idle() {
            let Some(block) = self.allocate_block(py, bytes)? else { break };
            self.held.insert(first, block);
        }
        Ok(())
    }

    /// Has torch put a block into its cache, from where each tensor gets its part without another call to
    /// the driver. Reads are under way meanwhile. Gives its address, where that was done.
    fn reserve(&mut self, py: Python<'_>, block: &Block) -> Result<Option<u64>> {
        let held = block.first().and_then(|first| self.held.remove(&first));
        let memory =
            held.map_or_else(|| self.allocate_block(py, block.bytes), |held| Ok(Some(held)));
        match memory? {
            Some((_to_the_cache, address)) => Ok(Some(address)),
            // In pieces it may fit yet, once what lies idle in torch's cache is given back.
            None => self.give_up_blocks(py).map(|()| None),
        }
    }

    /// Gives what is reserved, and everything else that lies idle in torch's cache, back to the driver.
    fn give_up_blocks(&mut self, py: Python<'_>) -> Result<()> {
        self.blocks = Blocks::default();
        self.held.clear();
        torch_module(py)?.getattr("cuda")?.call_method0("empty_cache")?;
        Ok(())
    }

    /// Makes a large target, and the others of its block: those that come out of turn would take the
    /// places of larger ones.
    fn make_large(&mut self, py: Python<'_>, target: usize) -> Result<u64> {
        self.hold_idle(py)?;
        let Some(block) = self.blocks.take(target) else { return self.make(py, target) };
        let Some(start) = self.reserve(py, &block)? else { return self.make(py, target) };
        let reserved = if self.splits { None } else { self.count(py, "memory_reserved")? };
        let address = self.make(py, target)?;
        self.splits |= (start..start + block.bytes).contains(&address);
        if !self.splits && self.count(py, "memory_reserved")? > reserved {
            // Torch can be told to keep large blocks in one piece (`max_split_size_mb`).
            return self.give_up_blocks(py).map(|()| address);
        }
        for other in block.targets.into_iter().filter(|&other| other != target) {
            let address = self.make(py, other)?;
            self.early.insert(other, address);
        }
        Ok(address)
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
    fn make_natively(&mut self, target: usize) -> Result<Option<u64>> {
        let form = &self.forms[target];
        if form.bytes() == 0 {
            return Ok(None);
        }
        let known = self.aten.and_then(|aten| Some((aten, aten.dtype(form.dtype)?)));
        let Some((aten, dtype)) = known else { return Ok(None) };
        if let Some((tensor, address)) = aten.empty(self.gpu.ordinal(), dtype, &form.torch_shape()?)
        {
            lock(&self.made)[target] = Some(Unfilled::Native(tensor));
            return Ok(Some(address));
        }
        self.aten = None;
        Python::attach(PyErr::take).map_or(Ok(None), |raised| Err(raised.into()))
    }

    /// By what torch's users call, which tells what is wrong.
    fn make(&self, py: Python<'_>, target: usize) -> Result<u64> {
        let form = &self.forms[target];
        let shape = PyTuple::new(py, form.torch_shape()?)?;
        let keywords = self.keywords.get(&form.dtype).map(|keywords| keywords.bind(py));
        let tensor = self.empty.bind(py).call((shape,), keywords)?;
        let address = tensor.call_method0(intern!(py, "data_ptr"))?.extract()?;
        lock(&self.made)[target] = Some(Unfilled::Object(tensor.unbind()));
        Ok(address)
    }
}

impl Allocator for TorchAllocator {
    fn allocate(&mut self, target: usize, bytes: usize) -> Result<Buffer> {
        let address = if let Some(address) = self.early.remove(&target) {
            address
        } else if self.forms[target].bytes() > TORCH_SMALL_BYTES_MAX {
            Python::attach(|py| self.make_large(py, target))?
        } else {
            let native = self.make_natively(target)?;
            native.map_or_else(|| Python::attach(|py| self.make(py, target)), Ok)?
        };
        if address == 0 && bytes > 0 {
            return Err(Error::Internal("torch made a tensor without memory".to_owned()));
        }
        Ok(Buffer::Cuda(CudaBuffer::borrowed(self.gpu.ordinal(), address, bytes)))
    }
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

/// Gives the memory of all of them back to torch; with the interpreter attached.
pub(crate) fn forget_all(made: &Made) {
    let left: Vec<_> = lock(made).iter_mut().map(Option::take).collect();
    drop(left); // without the lock: others may have the interpreter meanwhile
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
