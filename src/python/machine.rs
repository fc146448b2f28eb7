//! What this machine has, allows and can do, for `safetensors-streaming doctor`.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::ceilings::{Ceilings, Copies};
use crate::checkpoint::{Backend, Checkpoint};
use crate::config::{
    LOAD_SLOTS_MAX, RING_SLOTS_MAX, SLOT_BYTES, last_level_cache_bytes, memory_available_bytes,
    processors,
};
use crate::python::address::{Named, location_of};
use crate::python::errors::Result;
use crate::python::load::sources_of;
use crate::reader::uring::UringReader;
use crate::report::Bound as BoundBy;
use crate::source::{LocalFile, Source, system};

/// What the machine has and allows, by name: `processors`, `memory_available_bytes`,
/// `last_level_cache_bytes`, `io_uring_refusal` (None where the kernel allows it), and of this package
/// `load_ring_bytes` and `ring_bytes`: the most slot memory of a load, and of the process.
#[pyfunction]
pub(crate) fn machine_facts(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let refusal = py.detach(|| UringReader::probe(Arc::new([])).err());
    let facts = PyDict::new(py);
    facts.set_item("processors", processors())?;
    facts.set_item("memory_available_bytes", memory_available_bytes())?;
    facts.set_item("last_level_cache_bytes", last_level_cache_bytes())?;
    facts.set_item("io_uring_refusal", refusal)?;
    facts.set_item("load_ring_bytes", LOAD_SLOTS_MAX * SLOT_BYTES)?;
    facts.set_item("ring_bytes", RING_SLOTS_MAX * SLOT_BYTES)?;
    Ok(facts)
}

/// Of a file: what direct reads must keep to in bytes, None where there are none that serve; and how
/// many of its pages the page cache holds, None where the kernel cannot tell.
#[pyfunction]
pub(crate) fn file_facts(py: Python<'_>, path: PathBuf) -> PyResult<(Option<u32>, Option<u64>)> {
    let facts = || {
        let file = LocalFile::open(&path)?;
        let alignment = file.direct().and_then(|_| system::direct_alignment_bytes(file.buffered()));
        Ok((alignment, system::cached_pages(file.buffered(), 0, file.len())))
    };
    Ok(py.detach(|| -> Result<_> { facts() })?)
}

/// A dict of rates, and one of predictions: seconds, and what bounds the load.
type Measured<'py> = (Bound<'py, PyDict>, Bound<'py, PyDict>);

/// Measures what bounds loads of these files to a GPU, or without its number to memory of the host;
/// about a second, at most 256 MiB a part. The first dict has bytes per second by the names of
/// `Report.bound`, as far as they were measured, and with a GPU `pin_seconds`, what pinning a slot
/// takes; the second has what the first load of a process will take, `cold` and `warm`, as far as that can be told.
#[pyfunction]
#[pyo3(signature = (paths, device=None))]
pub(crate) fn measure_ceilings(
    py: Python<'_>,
    paths: Vec<Named>,
    device: Option<usize>,
) -> PyResult<Measured<'_>> {
    let measure = || -> Result<_> {
        let sources = match paths.as_slice() {
            [] => Arc::new([]),
            _ => sources_of(&Checkpoint::open(&location_of(paths)?, Backend::Engine)?),
        };
        let bytes = sources.iter().map(|source| source.len()).fold(0, u64::saturating_add);
        Ok((Ceilings::measure(&sources, device)?, bytes))
    };
    let (ceilings, bytes) = py.detach(measure)?;
    let (rates, predictions) = (PyDict::new(py), PyDict::new(py));
    for (bound, rate) in [(BoundBy::Disk, ceilings.disk), (BoundBy::PageCache, ceilings.page_cache)]
    {
        if let Some(rate) = rate {
            rates.set_item(bound.name(), rate)?;
        }
    }
    match ceilings.copies {
        Copies::Host { rate } => rates.set_item(BoundBy::HostCopy.name(), rate)?,
        Copies::Link { rate, pin_seconds } => {
            rates.set_item(BoundBy::Link.name(), rate)?;
            rates.set_item("pin_seconds", pin_seconds)?;
        }
    }
    for (name, told) in [("cold", ceilings.cold(bytes)), ("warm", ceilings.warm(bytes))] {
        if let Some((seconds, bound)) = told {
            predictions.set_item(name, (seconds, bound.name()))?;
        }
    }
    Ok((rates, predictions))
}
