//! A load whose whole plan is known before the first tensor is asked for.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use crate::checkpoint::engine::Options;
use crate::checkpoint::{Shard, Storage};
use crate::config::PLANNED_WINDOW_BYTES;
use crate::device::cuda::kernels::Conversion;
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::plan::Wanted;
use crate::python::ahead::{Ahead, Limits};
use crate::python::destination::{Goal, Goals, Memory, TorchGpu};
use crate::python::errors::foreseen;
use crate::python::fetch::{Manner, Ready, Sources, Targets};
use crate::python::handle::TensorSlice;
use crate::python::load::floating_type;
use crate::python::report::remember;
use crate::python::tensor::torch_type;
use crate::reader::CachePolicy;
use crate::source::{LocalFile, Source};
use crate::tensor::Form;

/// Tensors of open files, on GPUs, read in the order in which they will be taken, and a little ahead.
#[pyclass(frozen, module = "safetensors_streaming._native")]
pub(crate) struct PlannedLoad {
    state: Mutex<State>,
}

enum State {
    /// Tensors are added.
    Planning(Box<Plan>),
    /// They are read.
    Running(Box<Running>),
    /// It has ended; or somebody else waits for one of its tensors.
    Ended,
}

struct Running {
    ahead: Ahead,
    /// Where its memory is made, on whose streams.
    gpus: Vec<TorchGpu>,
    slices: Vec<Py<TensorSlice>>,
    /// The target of each number that was not taken yet.
    waiting: Vec<Option<usize>>,
    began: Instant,
}

#[pymethods]
impl PlannedLoad {
    #[new]
    fn new() -> Self {
        Self { state: Mutex::new(State::Planning(Box::default())) }
    }

    /// Adds a slice, or what an index gives of it, to be on the GPU of that number, in that type of
    /// torch's or, for None, in its own; returns its number, or None where it is not to be read here: it
    /// has no bytes, no kernel makes that type, or it lies in the file in another way than as equal rows.
    #[pyo3(signature = (slice, device, dtype, index=None))]
    fn add(
        &self,
        slice: Bound<'_, TensorSlice>,
        device: usize,
        dtype: Option<Bound<'_, PyAny>>,
        index: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Option<usize>> {
        let part = index.map(|index| slice.get().part(&index)).transpose()?;
        let ranges = match &part {
            Some(part) if !part.is_result()? => return Ok(None),
            Some(part) => part.ranges.as_slice(),
            None => &[],
        };
        let mut state = std::mem::replace(&mut *self.state(), State::Ended);
        let added = match &mut state {
            State::Planning(plan) => plan.add(&slice, ranges, device, dtype.as_ref()),
            State::Running(_) | State::Ended => Ok(None),
        };
        *self.state() = state;
        Ok(added?)
    }

    /// Begins to read, in that order of the numbers, at most so many bytes ahead of who takes tensors.
    fn begin(&self, py: Python<'_>, order: Vec<usize>, ahead_bytes: u64) -> PyResult<()> {
        let planned = std::mem::replace(&mut *self.state(), State::Ended);
        let State::Planning(plan) = planned else { return Ok(()) };
        if !plan.slices.is_empty() {
            let running = Box::new(plan.begin(py, &order, ahead_bytes)?);
            *self.state() = State::Running(running);
        }
        Ok(())
    }

    /// The tensor of a number, waited for; None where it was taken before, the load has ended, or torch's
    /// current stream is another one than where it began: memory that torch makes belongs to that one.
    fn take<'py>(&self, py: Python<'py>, number: usize) -> PyResult<Option<Bound<'py, PyAny>>> {
        let state = std::mem::replace(&mut *self.state(), State::Ended);
        let State::Running(mut running) = state else {
            *self.state() = state;
            return Ok(None);
        };
        let here = match running.is_here(py) {
            Ok(here) => here,
            Err(error) => {
                *self.state() = State::Running(running);
                return Err(error.into());
            }
        };
        let target = running.waiting.get_mut(number).filter(|_| here).and_then(Option::take);
        let Some(target) = target else {
            *self.state() = State::Running(running);
            return Ok(None);
        };
        let tensor = running.ahead.take(py, target);
        if let Ok(Some(tensor)) = tensor {
            *self.state() = State::Running(running);
            return Ok(Some(tensor));
        }
        let outcome = running.ahead.finish(py);
        tensor.map_err(|error| running.named(py, error))?;
        match outcome {
            Some(Err(error)) => Err(running.named(py, error).into()),
            _ => Ok(None),
        }
    }

    /// Ends it, and frees what was not taken.
    fn close(&self, py: Python<'_>) {
        let state = std::mem::replace(&mut *self.state(), State::Ended);
        let State::Running(mut running) = state else { return };
        if let Some(Ok(mut report)) = running.ahead.finish(py) {
            report.seconds.total = running.began.elapsed().as_secs_f64();
            remember(py, report);
        }
    }
}

impl PlannedLoad {
    /// Never held while the interpreter is given up.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// Whether this is its process, and the streams are those with which it began.
    fn is_here(&self, py: Python<'_>) -> Result<bool> {
        if !self.ahead.is_of_this_process() {
            return Ok(false);
        }
        for gpu in &self.gpus {
            if !TorchGpu::open(py, gpu.gpu.ordinal())?.is(gpu) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn named(&self, py: Python<'_>, error: Error) -> Error {
        error.named(|target| self.slices[target].borrow(py).name().to_owned())
    }
}

/// What is to be read, by number.
#[derive(Default)]
struct Plan {
    slices: Vec<Py<TensorSlice>>,
    goals: Vec<Goal>,
    wanted: Vec<(Wanted, Form)>,
    dtypes: Vec<Dtype>,
    files: Files,
}

impl Plan {
    /// The number of a slice; none where it is not to be read here.
    fn add(
        &mut self,
        slice: &Bound<'_, TensorSlice>,
        part: &[Range<u64>],
        ordinal: usize,
        dtype: Option<&Bound<'_, PyAny>>,
    ) -> Result<Option<usize>> {
        let (shard, index) = slice.get().place();
        let goal = Goal::Cuda(ordinal, Memory::Torch);
        let (mut wanted, form) = shard.wanted(index, part)?;
        let Some(dtype) = made_type(slice.py(), &form, wanted, dtype)? else { return Ok(None) };
        if dtype != form.dtype && !goal.has_kernels()? {
            return Ok(None);
        }
        let Some(number) = self.files.number(shard)? else { return Ok(None) };
        wanted.shard = number;
        self.slices.push(slice.clone().unbind());
        self.goals.push(goal);
        self.wanted.push((wanted, form));
        self.dtypes.push(dtype);
        Ok(Some(self.wanted.len() - 1))
    }

    fn begin(self, py: Python<'_>, order: &[usize], ahead_bytes: u64) -> Result<Running> {
        let began = Instant::now();
        let targets_of_numbers = inverse(order, self.slices.len())?;
        let wanted = order.iter().map(|&number| self.wanted[number].clone()).collect();
        let mut targets = Targets::new(wanted, None);
        targets.dtypes = order.iter().map(|&number| self.dtypes[number]).collect();
        let goals = Goals::each(order.iter().map(|&number| self.goals[number]).collect());
        let options = Options::with_cache(CachePolicy::Auto);
        let ordinals = goals.all.iter().filter_map(|goal| goal.ordinal());
        let gpus = ordinals.map(|ordinal| TorchGpu::open(py, ordinal)).collect::<Result<_>>()?;
        let ready = Ready::new(py, &Manner::new(goals, options), &mut targets)?;
        let limits = Limits { window_bytes: PLANNED_WINDOW_BYTES, ahead_bytes, patience: None };
        let sources: Sources = self.files.sources.into();
        let mut ahead = Ahead::begin(ready, sources, targets, limits)?;
        ahead.head_for(py, 0);
        let slices = order.iter().map(|&number| self.slices[number].clone_ref(py)).collect();
        let waiting = targets_of_numbers.into_iter().map(Some).collect();
        Ok(Running { ahead, gpus, slices, waiting, began })
    }
}

/// The place of each number in an order of all of them.
fn inverse(order: &[usize], count: usize) -> Result<Vec<usize>> {
    let mut places = vec![usize::MAX; count];
    for (place, &number) in order.iter().enumerate() {
        if places.get(number) != Some(&usize::MAX) {
            return Err(Error::Request(format!("an order with the number {number} in it twice")));
        }
        places[number] = place;
    }
    if places.contains(&usize::MAX) {
        return Err(Error::Request("an order that leaves tensors out".to_owned()));
    }
    Ok(places)
}

/// The type that a tensor shall have, if it has bytes and kernels can make that type.
fn made_type(
    py: Python<'_>,
    form: &Form,
    wanted: Wanted,
    dtype: Option<&Bound<'_, PyAny>>,
) -> Result<Option<Dtype>> {
    let known = foreseen::<PyException, _>(py, torch_type(py, form.dtype))?;
    let Some(own) = known else { return Ok(None) };
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
    /// Where the shards lie in memory; the slices keep them there.
    shards: Vec<usize>,
    numbers: Vec<Option<usize>>,
    sources: Vec<Arc<dyn Source>>,
}

impl Files {
    /// The number of a shard's source; none where its name is another file's by now.
    fn number(&mut self, shard: &Shard) -> Result<Option<usize>> {
        let place = std::ptr::from_ref(shard).addr();
        if let Some(known) = self.shards.iter().position(|&known| known == place) {
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
        self.shards.push(place);
        self.numbers.push(number);
        Ok(number)
    }
}
