//! The native half of `safe_open`, and the slice object.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::checkpoint::engine::Options;
use crate::checkpoint::{Checkpoint, Location, Place, Shard, Storage};
use crate::error::Error;
use crate::format::Dtype;
use crate::python::address::FileName;
use crate::python::destination::{Goal, Goals, Memory};
use crate::python::fetch::{Manner, Targets, fetch};
use crate::python::index::Part;
use crate::python::load::{backend_for, to_dict};
use crate::python::read_ahead::Habit;
use crate::python::report::remember;
use crate::python::tensor::{import_torch, to_torch};
use crate::reader::CachePolicy;

/// An open file. Methods may be called from several threads; closing while others are inside lets
/// them finish.
#[pyclass(frozen, subclass, module = "safetensors_streaming._native")]
pub(crate) struct Handle {
    opened: Mutex<Option<Arc<Checkpoint>>>,
    goal: Goal,
    manner: Manner,
    habit: Mutex<Habit>,
}

impl Handle {
    fn opened(&self) -> PyResult<Arc<Checkpoint>> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(opened.ok_or_else(|| Error::Request("File is closed".to_owned()))?)
    }

    /// A tensor that was read ahead for a loop on a GPU. Whoever comes meanwhile from another thread
    /// finds no habit.
    fn read_ahead<'py>(
        &self,
        py: Python<'py>,
        shard: &Shard,
        place: usize,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Goal::Cuda(ordinal, _) = self.goal else { return Ok(None) };
        let habit = || self.habit.lock().unwrap_or_else(PoisonError::into_inner);
        let mut own = std::mem::take(&mut *habit());
        let tensor = own.tensor(py, shard, ordinal, place)?;
        let replaced = std::mem::replace(&mut *habit(), own);
        drop(replaced);
        Ok(tensor)
    }
}

fn one_tensor<'py>(
    py: Python<'py>,
    shard: &Shard,
    index: usize,
    part: &[Range<u64>],
    manner: &Manner,
) -> PyResult<Bound<'py, PyAny>> {
    let Storage::Engine(source) = &shard.storage else {
        return to_torch(py, shard.mapped(index)?);
    };
    let targets = Targets::new(vec![shard.wanted(index, part)?], None);
    let fetched = fetch(py, &Arc::from([Arc::clone(source)]), targets, manner, None);
    let name = |_| shard.header.tensor(index).map_or("", |info| info.name).to_owned();
    let (tensors, _) = fetched.map_err(|error| error.named(name))?;
    let lost = || Error::Internal("no tensor came".to_owned());
    Ok(tensors.into_iter().next().ok_or_else(lost)?)
}

#[pymethods]
impl Handle {
    #[new]
    #[pyo3(signature = (filename, backend, device=None))]
    fn new(
        py: Python<'_>,
        filename: FileName,
        backend: &str,
        device: Option<usize>,
    ) -> PyResult<Self> {
        let goal = Goal::new(device, Memory::Torch);
        let backend = backend_for(goal, backend);
        let location = Location::of_files(vec![filename.0]);
        let checkpoint = py.detach(|| Checkpoint::open(&location, backend))?;
        import_torch(py)?;
        let options = Options::with_cache(CachePolicy::Auto);
        let manner = Manner::new(Goals::one(goal), options);
        let (opened, habit) = (Mutex::new(Some(Arc::new(checkpoint))), Mutex::default());
        Ok(Self { opened, goal, manner, habit })
    }

    /// The names of all tensors, sorted.
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.opened()?.shards[0].header.sorted_names())
    }

    /// The names of all tensors, in file order.
    fn offset_keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.opened()?.shards[0].header.tensors().map(|info| info.name))
    }

    /// The free text of the header, or None where it has none.
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let checkpoint = self.opened()?;
        let Some(pairs) = checkpoint.shards[0].header.metadata() else { return Ok(None) };
        let dict = PyDict::new(py);
        for (key, value) in pairs {
            dict.set_item(key, value)?;
        }
        Ok(Some(dict))
    }

    /// One tensor by name.
    fn get_tensor<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        let checkpoint = self.opened()?;
        let shard = &checkpoint.shards[0];
        let place = shard.find(name)?;
        match self.read_ahead(py, shard, place)? {
            Some(tensor) => Ok(tensor),
            None => one_tensor(py, shard, place, &[], &self.manner),
        }
    }

    /// All tensors by name, in file order.
    fn get_tensors<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let began = Instant::now();
        let checkpoint = self.opened()?;
        let places: Vec<Place> = checkpoint.places().collect();
        let (dict, mut report) = to_dict(py, &checkpoint, &places, &self.manner, None)?;
        report.seconds.total = began.elapsed().as_secs_f64();
        report.seconds.load = report.seconds.total - report.seconds.plan;
        remember(py, report);
        py.detach(|| checkpoint.shards[0].read_ahead_if_cold());
        Ok(dict)
    }

    /// A tensor to be indexed before it is loaded.
    fn get_slice(&self, name: &str) -> PyResult<TensorSlice> {
        let checkpoint = self.opened()?;
        let index = checkpoint.shards[0].find(name)?;
        Ok(TensorSlice { checkpoint, index, manner: self.manner.clone() })
    }

    /// Raises where the path names another file by now: who opens it once more would read that one.
    #[pyo3(name = "_check_current")]
    fn check_current(&self) -> PyResult<()> {
        Ok(self.opened()?.shards[0].check_current()?)
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(
        &self,
        _type: Option<Bound<'_, PyAny>>,
        _value: Option<Bound<'_, PyAny>>,
        _traceback: Option<Bound<'_, PyAny>>,
    ) {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner).take();
        let habit = std::mem::take(&mut *self.habit.lock().unwrap_or_else(PoisonError::into_inner));
        drop((opened, habit));
    }
}

/// A tensor of an open file that is loaded on indexing, as torch indexes.
#[pyclass(frozen, module = "safetensors_streaming._native")]
pub(crate) struct TensorSlice {
    checkpoint: Arc<Checkpoint>,
    index: usize,
    manner: Manner,
}

#[pymethods]
impl TensorSlice {
    /// The dimensions, in elements of the format.
    fn get_shape(&self) -> PyResult<Vec<u64>> {
        let (shape, _) = self.facts()?;
        Ok(shape.to_vec())
    }

    /// The element type by the format's name, such as "BF16".
    fn get_dtype(&self) -> PyResult<&'static str> {
        let (_, dtype) = self.facts()?;
        Ok(dtype.name())
    }

    fn __getitem__<'py>(
        &self,
        py: Python<'py>,
        index: Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let shard = &self.checkpoint.shards[0];
        let part = match &shard.storage {
            Storage::Engine(_) => self.part(&index)?,
            Storage::Mapped(..) => Part::whole(index),
        };
        let get = |manner| one_tensor(py, shard, self.index, &part.ranges, manner);
        match self.manner.gpu() {
            // As upstream, which indexes on the host.
            Some(gpu) if !part.is_view => {
                let there = get(&self.manner.on_host())?.get_item(part.rest)?;
                there.call_method1("to", (format!("cuda:{gpu}"),))
            }
            _ => get(&self.manner)?.get_item(part.rest),
        }
    }
}

impl TensorSlice {
    /// The shard, and the place in its file order.
    pub(crate) fn place(&self) -> (&Shard, usize) {
        (&self.checkpoint.shards[0], self.index)
    }

    /// The tensor's name.
    pub(crate) fn name(&self) -> &str {
        self.checkpoint.name(Place { shard: 0, tensor: self.index })
    }

    /// What an index needs.
    pub(crate) fn part<'py>(&self, index: &Bound<'py, PyAny>) -> PyResult<Part<'py>> {
        let (shape, dtype) = self.facts()?;
        Part::of(index, shape, dtype)
    }

    fn facts(&self) -> PyResult<(&[u64], Dtype)> {
        let gone = || Error::Internal("a slice of no tensor".to_owned());
        let info = self.checkpoint.shards[0].header.tensor(self.index).ok_or_else(gone)?;
        Ok((info.shape, info.dtype))
    }
}
