//! A load whose whole plan is known before the first tensor is asked for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use pyo3::prelude::*;

use crate::checkpoint::engine::Options;
use crate::checkpoint::{Shard, Storage};
use crate::config::PLANNED_WINDOW_BYTES;
use crate::device::cuda::kernels::Conversion;
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::plan::Wanted;
use crate::python::ahead::{Ahead, Limits};
use crate::python::destination::{Goal, Goals, Memory};
use crate::python::fetch::{Manner, Ready, Sources, Targets};
use crate::python::handle::TensorSlice;
use crate::python::load::floating_type;
use crate::python::report::remember;
use crate::python::tensor::torch_type;
use crate::reader::CachePolicy;
use crate::source::{LocalFile, Source};
use crate::tensor::Form;

/// A slice of an open file that is wanted whole, the number of the GPU that it shall be on, and the
/// type that it shall have; none leaves it.
type Request<'py> = (Bound<'py, TensorSlice>, usize, Option<Bound<'py, PyAny>>);

/// Tensors of open files, on GPUs, read in the order of the requests and a little ahead of who takes
/// them.
#[pyclass(frozen, module = "safetensors_streaming._native")]
pub(crate) struct PlannedLoad {
    /// The target of each request that is read here.
    targets: Vec<Option<usize>>,
    slices: Vec<Py<TensorSlice>>,
    running: Mutex<Option<Running>>,
}

struct Running {
    ahead: Ahead,
    taken: Vec<bool>,
    began: Instant,
}

#[pymethods]
impl PlannedLoad {
    /// Begins to read. Not read are tensors without bytes, and those whose type no kernel can make.
    #[new]
    fn new(py: Python<'_>, requests: Vec<Request<'_>>, ahead_bytes: u64) -> PyResult<Self> {
        let began = Instant::now();
        let mut files = Files::default();
        let mut plan = Plan::default();
        let mut targets = Vec::with_capacity(requests.len());
        for (slice, ordinal, dtype) in &requests {
            targets.push(plan.add(&mut files, slice, *ordinal, dtype.as_ref())?);
        }
        let Plan { slices, goals, wanted, dtypes } = plan;
        let mut wanted = Targets::new(wanted, None);
        wanted.dtypes = dtypes;
        let options = Options::with_cache(CachePolicy::Auto);
        let goals = Goals::each(goals);
        let running = if slices.is_empty() {
            None
        } else {
            let ready = Ready::new(py, &Manner { goals, options, dtype: None }, &mut wanted)?;
            let limits = Limits { window_bytes: PLANNED_WINDOW_BYTES, ahead_bytes, patience: None };
            let taken = vec![false; slices.len()];
            let sources: Sources = files.sources.into();
            let ahead = Ahead::begin(ready, sources, wanted, limits)?;
            Some(Running { ahead, taken, began })
        };
        Ok(Self { targets, slices, running: Mutex::new(running) })
    }

    /// How many requests are read here.
    fn __len__(&self) -> usize {
        self.slices.len()
    }

    /// The tensor of a request, waited for; None where it is not read here or was taken before.
    fn take<'py>(&self, py: Python<'py>, request: usize) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(target) = self.targets.get(request).copied().flatten() else { return Ok(None) };
        let running = || self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever comes meanwhile from another thread finds nothing.
        let Some(mut own) = running().take() else { return Ok(None) };
        if !own.ahead.is_of_this_process() || own.taken[target] {
            *running() = Some(own);
            return Ok(None);
        }
        own.taken[target] = true;
        let tensor = own.ahead.take(py, target);
        if let Ok(Some(tensor)) = tensor {
            *running() = Some(own);
            return Ok(Some(tensor));
        }
        let outcome = own.ahead.finish(py);
        tensor.map_err(|error| self.named(py, error))?;
        match outcome {
            Some(Err(error)) => Err(self.named(py, error).into()),
            _ => Ok(None),
        }
    }

    /// Ends it, and frees what was not taken.
    fn close(&self, py: Python<'_>) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { mut ahead, began, .. }) = running else { return };
        if let Some(Ok(mut report)) = ahead.finish(py) {
            report.seconds.total = began.elapsed().as_secs_f64();
            report.seconds.load = report.seconds.total - report.seconds.plan;
            remember(py, report);
        }
    }
}

impl PlannedLoad {
    fn named(&self, py: Python<'_>, error: Error) -> Error {
        error.named(|target| self.slices[target].borrow(py).name().to_owned())
    }
}

/// What is read, by target.
#[derive(Default)]
struct Plan {
    slices: Vec<Py<TensorSlice>>,
    goals: Vec<Goal>,
    wanted: Vec<(Wanted, Form)>,
    dtypes: Vec<Dtype>,
}

impl Plan {
    /// The target of a request; none where it is not to be read here.
    fn add(
        &mut self,
        files: &mut Files,
        slice: &Bound<'_, TensorSlice>,
        ordinal: usize,
        dtype: Option<&Bound<'_, PyAny>>,
    ) -> Result<Option<usize>> {
        let (shard, index) = slice.get().place();
        let (mut wanted, form) = shard.wanted(index, None)?;
        let Some(dtype) = made_type(slice.py(), &form, wanted, dtype)? else { return Ok(None) };
        let Some(number) = files.number(shard)? else { return Ok(None) };
        wanted.shard = number;
        self.slices.push(slice.clone().unbind());
        self.goals.push(Goal::Cuda(ordinal, Memory::Torch));
        self.wanted.push((wanted, form));
        self.dtypes.push(dtype);
        Ok(Some(self.wanted.len() - 1))
    }
}

/// The type that a tensor shall have, if it has bytes and kernels can make that type.
fn made_type(
    py: Python<'_>,
    form: &Form,
    wanted: Wanted,
    dtype: Option<&Bound<'_, PyAny>>,
) -> Result<Option<Dtype>> {
    let Ok(own) = torch_type(py, form.dtype) else { return Ok(None) };
    if wanted.bytes() == 0 || form.torch_shape().is_err() {
        return Ok(None);
    }
    let Some(dtype) = dtype.filter(|dtype| !dtype.is(&own)) else { return Ok(Some(form.dtype)) };
    let Some(made) = floating_type(dtype)? else { return Ok(None) };
    let known = Conversion::new(form.dtype, made);
    let whole = known.is_some_and(|known| wanted.begin.is_multiple_of(known.width() as u64));
    Ok(whole.then_some(made))
}

/// The files of the slices, opened again where they are mapped.
#[derive(Default)]
struct Files {
    shards: Vec<*const Shard>,
    numbers: Vec<Option<usize>>,
    sources: Vec<Arc<dyn Source>>,
}

impl Files {
    /// The number of a shard's source; none where its name is another file's by now.
    fn number(&mut self, shard: &Shard) -> Result<Option<usize>> {
        let known = self.shards.iter().position(|&known| std::ptr::eq(known, shard));
        if let Some(known) = known {
            return Ok(self.numbers[known]);
        }
        let source: Option<Arc<dyn Source>> = match &shard.storage {
            Storage::Engine(source) => Some(Arc::clone(source)),
            Storage::Mapped(_, identity) => {
                let file = LocalFile::open_again(&shard.path, *identity)?;
                file.map(|file| Arc::new(file) as Arc<dyn Source>)
            }
        };
        let number = source.map(|source| {
            self.sources.push(source);
            self.sources.len() - 1
        });
        self.shards.push(std::ptr::from_ref(shard));
        self.numbers.push(number);
        Ok(number)
    }
}
