//! Loading many tensors at once: one file, bytes, or a checkpoint.

use std::sync::Arc;
use std::time::Instant;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::checkpoint::engine::{Options, run};
use crate::checkpoint::{Backend, Checkpoint, Location, Place, Shard, Storage};
use crate::device::Destination;
use crate::device::null::{NullAllocator, NullDevice};
use crate::error::Error;
use crate::format::Dtype;
use crate::format::dtype::FLOATING;
use crate::plan::Wanted;
use crate::python::address::{FileName, Named, location_of};
use crate::python::check::Check;
use crate::python::collector::{Collector, CollectorPause};
use crate::python::destination::{Goal, Goals, Memory};
use crate::python::errors::Result;
use crate::python::fetch::{Manner, Targets, fetch, of_types};
use crate::python::report::{PyReport, remember};
use crate::python::tensor::{import_torch, to_torch, torch_type};
use crate::reader::CachePolicy;
use crate::report::{Report, Seconds};
use crate::ring::Ring;
use crate::source::memory::MemorySource;
use crate::source::{Source, open_all};

/// The backend of a name that Python has checked.
pub(crate) fn backend_of(name: &str) -> Backend {
    if name == "pread" { Backend::Engine } else { Backend::Mapped }
}

/// The backend for a goal: only host memory can be a mapping.
pub(crate) fn backend_for(goal: Goal, name: &str) -> Backend {
    match goal {
        Goal::Host => backend_of(name),
        Goal::Cuda(..) => Backend::Engine,
    }
}

/// The type that numbers shall have, by torch's object.
pub(crate) fn dtype_of(py: Python<'_>, dtype: Option<Py<PyAny>>) -> PyResult<Option<Dtype>> {
    let Some(wanted) = dtype else { return Ok(None) };
    match floating_type(wanted.bind(py))? {
        None => Err(PyValueError::new_err(format!(
            "dtype {wanted} is invalid (expected a floating-point type of torch)"
        ))),
        known => Ok(known),
    }
}

/// Torch's object for a type of plain numbers, as ours.
pub(crate) fn floating_type(object: &Bound<'_, PyAny>) -> PyResult<Option<Dtype>> {
    for dtype in FLOATING {
        if object.is(&torch_type(object.py(), dtype)?) {
            return Ok(Some(dtype));
        }
    }
    Ok(None)
}

/// The policy of a name.
pub(crate) fn cache_of(name: &str) -> PyResult<CachePolicy> {
    match name {
        "auto" => Ok(CachePolicy::Auto),
        "keep" => Ok(CachePolicy::Keep),
        "bypass" => Ok(CachePolicy::Bypass),
        _ => Err(PyValueError::new_err(format!(
            "cache {name:?} is invalid (expected one of: \"auto\", \"keep\", \"bypass\")"
        ))),
    }
}

/// The sources of shards that the engine reads; none of shards that are mapped.
pub(crate) fn sources_of(checkpoint: &Checkpoint) -> Arc<[Arc<dyn Source>]> {
    let source = |shard: &Shard| match &shard.storage {
        Storage::Engine(source) => Some(Arc::clone(source)),
        Storage::Mapped(..) => None,
    };
    checkpoint.shards.iter().filter_map(source).collect()
}

/// Loads the places of a checkpoint into a dict, in their order.
pub(crate) fn to_dict<'py>(
    py: Python<'py>,
    checkpoint: &Checkpoint,
    places: &[Place],
    manner: &Manner,
    progress: Option<Py<PyAny>>,
) -> PyResult<(Bound<'py, PyDict>, Report)> {
    let sources = sources_of(checkpoint);
    let targets = targets_of(checkpoint, places, manner.dtype)?;
    let (tensors, report) = if sources.is_empty() {
        let began = Instant::now();
        let told = progress.as_ref().map(|progress| progress.clone_ref(py));
        let read_bytes = manner.check.run_mapped(py, checkpoint, told)?;
        let seconds = if read_bytes > 0 { began.elapsed().as_secs_f64() } else { 0.0 };
        let report = mapped_report(checkpoint, &targets.wanted, read_bytes, seconds);
        let pause = CollectorPause::begin(py)?;
        let mut collector = Collector::new(&targets.wanted, progress.filter(|_| read_bytes == 0));
        let tensor = |place: &Place| {
            let mapped = checkpoint.shards[place.shard].mapped(place.tensor)?;
            let dtype = mapped.form.dtype;
            Ok((to_torch(py, mapped)?, dtype))
        };
        let tensors = places.iter().map(tensor).collect::<PyResult<Vec<_>>>()?;
        drop(pause);
        collector.finish(py)?;
        (of_types(tensors, &targets.dtypes)?, report)
    } else {
        fetch(py, &sources, targets, manner, progress)
            .map_err(|error| error.named(|target| checkpoint.name(places[target]).to_owned()))?
    };
    let _pause = CollectorPause::begin(py)?;
    let dict = PyDict::new(py);
    for (&place, tensor) in places.iter().zip(tensors) {
        dict.set_item(checkpoint.name(place), tensor)?;
    }
    Ok((dict, report))
}

/// What the engine has to read for places of a checkpoint.
pub(crate) fn targets_of(
    checkpoint: &Checkpoint,
    places: &[Place],
    dtype: Option<Dtype>,
) -> Result<Targets> {
    let all: Result<Vec<_>> = places.iter().map(|&place| checkpoint.wanted(place)).collect();
    Ok(Targets::new(all?, dtype))
}

/// Of mapped files, of which so many bytes were read for their digests, in such a time.
fn mapped_report(checkpoint: &Checkpoint, wanted: &[Wanted], read_bytes: u64, load: f64) -> Report {
    let reason = match read_bytes {
        0 => "cpu tensors are mapped from the file, nothing is copied",
        _ => "cpu tensors are mapped from the file, every byte of which was digested",
    };
    Report {
        read_bytes,
        seconds: Seconds { load, ..Seconds::default() },
        files: checkpoint.shards.len(),
        tensors: wanted.len(),
        bytes: wanted.iter().map(Wanted::bytes).sum(),
        device: "cpu".to_owned(),
        reader: "mmap".to_owned(),
        reason: reason.to_owned(),
        ..Report::default()
    }
}

/// Completes a report whose load began at a time and had its files open at another.
pub(crate) fn close(mut report: Report, began: Instant, opened: Instant) -> Report {
    let total = began.elapsed().as_secs_f64();
    let open = (opened - began).as_secs_f64();
    let Seconds { plan, load, .. } = report.seconds;
    report.seconds = Seconds { open, plan, load, tensors: total - open - plan - load, total };
    report
}

/// What a caller asks of a load.
struct Wish {
    backend: Backend,
    manner: Manner,
    filter: Option<Py<PyAny>>,
    /// Called with a name, gives the number of a GPU or none for the host; instead of one goal.
    place: Option<(Py<PyAny>, Memory)>,
    progress: Option<Py<PyAny>>,
    /// What the bytes are compared with, see [`Check::new`].
    verify: Option<Py<PyAny>>,
    /// Whether what is mapped, and cold, shall be read in the background.
    read_ahead: bool,
}

impl Wish {
    /// For all tensors, and one goal.
    fn new(goal: Goal, backend: &str, cache: CachePolicy, dtype: Option<Dtype>) -> Self {
        let goals = Goals::one(goal);
        let manner = Manner { dtype, ..Manner::new(goals, Options::with_cache(cache)) };
        let backend = backend_for(goal, backend);
        Self {
            backend,
            manner,
            filter: None,
            place: None,
            progress: None,
            verify: None,
            read_ahead: true,
        }
    }
}

/// Loads what a location holds, as far as the filter wants it.
fn load(
    py: Python<'_>,
    location: impl FnOnce() -> Result<Location> + Send,
    wish: Wish,
) -> PyResult<Bound<'_, PyDict>> {
    let began = Instant::now();
    let Wish { backend, mut manner, filter, place, progress, verify, read_ahead } = wish;
    let checkpoint = py.detach(|| Checkpoint::open(&location()?, backend))?;
    import_torch(py)?;
    let opened = Instant::now();
    manner.check = Check::new(verify.as_ref().map(|verify| verify.bind(py)), &checkpoint)?;
    let places = select(py, &checkpoint, filter)?;
    if let Some((place, memory)) = place {
        let goal_of = |name: &str| {
            let ordinal: Option<usize> = place.bind(py).call1((name,))?.extract()?;
            Ok(Goal::new(ordinal, memory))
        };
        let goals = places.iter().map(|&place| goal_of(checkpoint.name(place)));
        manner.goals = Goals::each(goals.collect::<PyResult<Vec<_>>>()?);
    }
    let (dict, report) = to_dict(py, &checkpoint, &places, &manner, progress)?;
    remember(py, close(report, began, opened));
    if read_ahead {
        py.detach(|| checkpoint.shards.iter().for_each(Shard::read_ahead_if_cold));
    }
    Ok(dict)
}

/// The places whose names a filter accepts.
pub(crate) fn select(
    py: Python<'_>,
    checkpoint: &Checkpoint,
    filter: Option<Py<PyAny>>,
) -> PyResult<Vec<Place>> {
    let Some(filter) = filter else { return Ok(checkpoint.places().collect()) };
    let mut places = Vec::new();
    for place in checkpoint.places() {
        if filter.bind(py).call1((checkpoint.name(place),))?.is_truthy()? {
            places.push(place);
        }
    }
    Ok(places)
}

/// All tensors of one file, in file order.
#[pyfunction]
#[pyo3(signature = (
    filename, backend, device=None, allocator="torch", dtype=None, read_ahead=true, verify=None
))]
#[expect(clippy::too_many_arguments, reason = "one for each keyword of Python's function")]
pub(crate) fn load_file<'py>(
    py: Python<'py>,
    filename: FileName,
    backend: &str,
    device: Option<usize>,
    allocator: &str,
    dtype: Option<Py<PyAny>>,
    read_ahead: bool,
    verify: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let goal = Goal::new(device, Memory::new(allocator)?);
    let wish = Wish::new(goal, backend, CachePolicy::Auto, dtype_of(py, dtype)?);
    load(py, || Ok(Location::of_files(vec![filename.0])), Wish { verify, read_ahead, ..wish })
}

/// All tensors of a checkpoint that the filter wants, on one device or where `place` says.
#[pyfunction]
#[pyo3(signature = (
    paths, backend, cache, filter, progress, device=None, allocator="torch", dtype=None, place=None,
    verify=None
))]
#[expect(clippy::too_many_arguments, reason = "one for each keyword of Python's function")]
pub(crate) fn load_checkpoint<'py>(
    py: Python<'py>,
    paths: Vec<Named>,
    backend: &str,
    cache: &str,
    filter: Option<Py<PyAny>>,
    progress: Option<Py<PyAny>>,
    device: Option<usize>,
    allocator: &str,
    dtype: Option<Py<PyAny>>,
    place: Option<Py<PyAny>>,
    verify: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let memory = Memory::new(allocator)?;
    let goal = Goal::new(device, memory);
    let wish = Wish::new(goal, backend, cache_of(cache)?, dtype_of(py, dtype)?);
    let place = place.map(|place| (place, memory));
    load(py, || location_of(paths), Wish { filter, place, progress, verify, ..wish })
}

/// All tensors of a file's bytes, in memory of their own.
#[pyfunction]
pub(crate) fn load_bytes<'py>(
    py: Python<'py>,
    data: &Bound<'py, PyBytes>,
) -> PyResult<Bound<'py, PyDict>> {
    let source: Arc<dyn Source> = Arc::new(MemorySource(data.as_bytes().to_vec()));
    let shard = py.detach(|| Shard::of_source(source, "Error while deserializing"))?;
    import_torch(py)?;
    let began = Instant::now();
    let checkpoint = Checkpoint { shards: vec![shard] };
    let places: Vec<Place> = checkpoint.places().collect();
    let options = Options::with_cache(CachePolicy::Keep);
    let manner = Manner::new(Goals::one(Goal::Host), options);
    let (dict, report) = to_dict(py, &checkpoint, &places, &manner, None)?;
    remember(py, close(report, began, began));
    Ok(dict)
}

/// Reads every byte of the files through the slots and drops it: what the engine can read here.
#[pyfunction]
#[pyo3(signature = (paths, cache="auto"))]
pub(crate) fn read_through(py: Python<'_>, paths: Vec<Named>, cache: &str) -> PyResult<PyReport> {
    let options = Options::with_cache(cache_of(cache)?);
    let report = py.detach(|| {
        let began = Instant::now();
        let addresses: Vec<_> = paths.into_iter().map(|Named(address)| address).collect();
        let sources: Arc<[_]> = open_all(&addresses)?.into();
        let opened = Instant::now();
        let whole =
            |(shard, source): (usize, &Arc<dyn Source>)| Wanted::range(shard, 0, source.len());
        let wanted: Vec<Wanted> = sources.iter().enumerate().map(whole).collect();
        let mut collector = Collector::new(&wanted, None);
        let mut device = NullDevice::default();
        let to = Destination { device: &mut device, allocator: &mut NullAllocator };
        let report = run(&sources, wanted, options, to, &mut collector)?;
        Ok::<_, Error>(close(report, began, opened))
    })?;
    Ok(PyReport(report))
}

/// Gives idle slots back to the system; returns how many bytes.
#[pyfunction]
pub(crate) fn release(py: Python<'_>) -> usize {
    py.detach(|| Ring::of_process().release())
}
