//! `load_into()`: bytes to where a model has its tensors already.

use std::time::Instant;

use pyo3::prelude::*;

use crate::checkpoint::engine::Options;
use crate::checkpoint::{Backend, Checkpoint, Place};
use crate::error::Error;
use crate::format::dtype::FLOATING;
use crate::python::address::{Named, location_of};
use crate::python::allocator::take;
use crate::python::collector::Collector;
use crate::python::destination::{Goal, Goals, Memory};
use crate::python::fetch::{Manner, Ready, Targets, to_tensor};
use crate::python::load::{cache_of, close, floating_type, sources_of, targets_of};
use crate::python::report::remember;
use crate::python::tensor::{import_torch, memory_of, torch_type};

/// The tensor that a tensor of the file is for, and whether its memory may be written as it lies.
type Choice<'py> = (Bound<'py, PyAny>, bool);

/// Reads tensors of a checkpoint into others. `choose` is called once, before anything is read, with
/// name, type and shape of each; it gives the tensor that takes it, on the CPU or a GPU, and whether
/// that one's memory may be written as it lies, or None. Returned is what still has to be copied, in
/// pairs: because its memory may not be, or because it has another type.
#[pyfunction]
pub(crate) fn load_into<'py>(
    py: Python<'py>,
    paths: Vec<Named>,
    cache: &str,
    choose: &Bound<'py, PyAny>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)>> {
    let began = Instant::now();
    let options = Options::with_cache(cache_of(cache)?);
    let checkpoint = py.detach(|| Checkpoint::open(&location_of(paths)?, Backend::Engine))?;
    import_torch(py)?;
    let opened = Instant::now();
    let (places, choices) = chosen(&checkpoint, choose)?;
    let goals = choices.iter().map(|(tensor, _)| goal_of(tensor)).collect::<PyResult<_>>()?;
    let manner = Manner::new(Goals::each(goals), options);
    let mut targets = targets_of(&checkpoint, &places, None)?;
    for (dtype, (tensor, _)) in targets.dtypes.iter_mut().zip(&choices) {
        if FLOATING.contains(dtype) {
            *dtype = floating_type(&tensor.getattr("dtype")?)?.unwrap_or(*dtype);
        }
    }
    let ready = Ready::new(py, &manner, &mut targets)?;
    let mut given = Vec::with_capacity(choices.len());
    for ((tensor, plain), form) in choices.iter().zip(&targets.forms) {
        let same = *plain && tensor.getattr("dtype")?.is(&torch_type(py, form.dtype)?);
        given.push(if same { Some(memory_of(tensor, form)?) } else { None });
    }
    let direct: Vec<bool> = given.iter().map(Option::is_some).collect();
    let mut ready = ready.with_given(given);
    ready.make_room(py)?;
    let Targets { wanted, forms, .. } = targets;
    let (made, sources) = (ready.made(), sources_of(&checkpoint));
    let mut collector = Collector::new(&wanted, progress);
    let report = py
        .detach(|| ready.run(&sources, wanted, options, &mut collector))
        .map_err(|error| error.named(|target| checkpoint.name(places[target]).to_owned()))?;
    let mut left = Vec::new();
    let arrived = collector.take().into_iter().zip(forms).zip(choices).zip(direct);
    for (target, (((buffer, form), (tensor, _)), direct)) in arrived.enumerate() {
        let buffer =
            buffer.ok_or_else(|| Error::Internal("a tensor of the plan is gone".to_owned()))?;
        if !direct {
            left.push((tensor, to_tensor(py, take(py, &made, target)?, buffer, form)?));
        }
    }
    collector.finish(py)?;
    remember(py, close(report, began, opened));
    Ok(left)
}

/// The places that are wanted, and what for.
fn chosen<'py>(
    checkpoint: &Checkpoint,
    choose: &Bound<'py, PyAny>,
) -> PyResult<(Vec<Place>, Vec<Choice<'py>>)> {
    let places: Vec<Place> = checkpoint.places().collect();
    let mut facts = Vec::with_capacity(places.len());
    for &place in &places {
        let (_, form) = checkpoint.wanted(place)?;
        facts.push((checkpoint.name(place), form.dtype.name(), form.torch_shape()?));
    }
    let choices: Vec<Option<Choice<'py>>> = choose.call1((facts,))?.extract()?;
    let both = places.into_iter().zip(choices);
    Ok(both.filter_map(|(place, choice)| Some((place, choice?))).unzip())
}

fn goal_of(tensor: &Bound<'_, PyAny>) -> PyResult<Goal> {
    let on_gpu = tensor.getattr("is_cuda")?.is_truthy()?;
    let ordinal = if on_gpu { Some(tensor.call_method0("get_device")?.extract()?) } else { None };
    Ok(Goal::new(ordinal, Memory::Torch))
}
