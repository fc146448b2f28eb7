//! `last_report()`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::device::cuda::driver::Gpu;
use crate::report::{Bound as BoundBy, Report};

static LAST: Mutex<Option<Report>> = Mutex::new(None);

/// Keeps a load's numbers. Called with the interpreter attached, so no fork finds the lock held.
pub(crate) fn remember(_py: Python<'_>, report: Report) {
    *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
}

/// The numbers of one load.
#[pyclass(frozen, name = "Report", module = "safetensors_streaming")]
pub(crate) struct PyReport(pub(crate) Report);

#[pymethods]
impl PyReport {
    /// Files read.
    #[getter]
    fn files(&self) -> usize {
        self.0.files
    }

    /// Tensors delivered.
    #[getter]
    fn tensors(&self) -> usize {
        self.0.tensors
    }

    /// Bytes of these tensors.
    #[getter]
    fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// Bytes read for them: what lies close between two of them is read as well; 0 where the files are
    /// mapped.
    #[getter]
    fn read_bytes(&self) -> u64 {
        self.0.read_bytes
    }

    /// Seconds by phase: open, plan, load, tensors, total.
    #[getter]
    fn seconds<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let seconds = PyDict::new(py);
        seconds.set_item("open", self.0.seconds.open)?;
        seconds.set_item("plan", self.0.seconds.plan)?;
        seconds.set_item("load", self.0.seconds.load)?;
        seconds.set_item("tensors", self.0.seconds.tensors)?;
        seconds.set_item("total", self.0.seconds.total)?;
        Ok(seconds)
    }

    /// Seconds of the load in which something was under way: reading, placing, allocating, delivering,
    /// `held_back`. Several things are at once.
    #[getter]
    fn busy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let busy = PyDict::new(py);
        busy.set_item("reading", self.0.busy.reading)?;
        busy.set_item("placing", self.0.busy.placing)?;
        busy.set_item("allocating", self.0.busy.allocating)?;
        busy.set_item("delivering", self.0.busy.delivering)?;
        busy.set_item("held_back", self.0.busy.held_back)?;
        Ok(busy)
    }

    /// What was under way longest: network, disk, page cache, link, CPU copy, Python, caller; mapping where tensors
    /// are mapped, nothing where none has bytes to read.
    #[getter]
    fn bound(&self) -> &'static str {
        self.0.bound().0.name()
    }

    /// The time line of the load, as JSON in the trace event format that Chrome and Perfetto show; None where nothing was read.
    fn trace(&self) -> Option<String> {
        self.0.trace().map(|trace| trace.to_string())
    }

    /// Where the tensors are: `cpu` or `cuda:N`.
    #[getter]
    fn device(&self) -> &str {
        &self.0.device
    }

    /// How the bytes were read: `mmap`, `io_uring`, `pread`, `pread-direct`, `network`, or several joined by
    /// `+`.
    #[getter]
    fn reader(&self) -> &str {
        &self.0.reader
    }

    /// Why so.
    #[getter]
    fn reason(&self) -> &str {
        &self.0.reason
    }

    /// The share of the bytes that the page cache held, 0 to 1.
    #[getter]
    fn cached_fraction(&self) -> f64 {
        self.0.cached_fraction
    }

    /// Threads that worked beside the caller's.
    #[getter]
    fn threads(&self) -> usize {
        self.0.threads
    }

    /// Slot memory lent to the load, in bytes.
    #[getter]
    fn ring_bytes_peak(&self) -> usize {
        self.0.ring_bytes_peak
    }

    /// What bound the load, in one line: the part that was under way longest, its share of the time,
    /// the rate of the whole load, and that rate's share of a ceiling. `ceilings` are bytes per second by
    /// the names of `bound`; without one for the link, the rate that
    /// its PCI Express generation and width allow is taken.
    #[pyo3(signature = (ceilings=None))]
    fn explain(&self, py: Python<'_>, ceilings: Option<HashMap<String, f64>>) -> String {
        let Report { bytes, tensors, seconds, .. } = self.0;
        let (bound, busy) = self.0.bound();
        let total = seconds.total;
        let what = match bound {
            BoundBy::Mapping => {
                let read_bytes = self.0.read_bytes as f64;
                let read = match self.0.read_bytes {
                    0 => "nothing read".to_owned(),
                    _ => {
                        format!("every byte digested, {:.2} GB/s", read_bytes / seconds.load / 1e9)
                    }
                };
                return format!("mapping: {tensors} tensors in {total:.3} s, {read}");
            }
            BoundBy::Nothing => {
                return format!("nothing to read: {tensors} tensors in {total:.3} s");
            }
            BoundBy::Python => format!("Python: {tensors} tensors"),
            BoundBy::Caller => "caller: waited for tensors to be taken".to_owned(),
            BoundBy::Network
            | BoundBy::Disk
            | BoundBy::PageCache
            | BoundBy::Link
            | BoundBy::HostCopy => bound.name().to_owned(),
        };
        let (rate, share) = (bytes as f64 / total, busy / total * 100.0);
        let known = ceilings.and_then(|ceilings| ceilings.get(bound.name()).copied());
        let known = known.map(|ceiling| ("the ceiling".to_owned(), ceiling));
        let known = known.or_else(|| py.detach(|| self.nominal(bound)));
        let of_ceiling = known.map_or_else(String::new, |(name, ceiling)| {
            format!(", {:.0} % of {name}, {:.2} GB/s", rate / ceiling * 100.0, ceiling / 1e9)
        });
        format!("{what}, {share:.0} % of {total:.3} s, {:.2} GB/s{of_ceiling}", rate / 1e9)
    }

    /// All numbers as one line of JSON.
    fn to_json(&self) -> PyResult<String> {
        let told = serde_json::to_value(&self.0).map(|mut told| {
            told["bound"] = self.bound().into();
            told.to_string()
        });
        told.map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// All numbers as a dict.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        py.import("json")?.call_method1("loads", (self.to_json()?,))
    }

    fn __repr__(&self) -> PyResult<String> {
        Ok(format!("Report({})", self.to_json()?))
    }
}

impl PyReport {
    /// The rate that the standard names for the link to the GPU, if that is known and what bound it.
    fn nominal(&self, bound: BoundBy) -> Option<(String, f64)> {
        let ordinal = self.0.device.strip_prefix("cuda:")?.parse().ok()?;
        let facts = Gpu::open(ordinal).ok().filter(|_| bound == BoundBy::Link)?.facts().ok()?;
        let (generation, width) = (facts.pcie_generation_max?, facts.pcie_width_max?);
        let link = format!("PCIe {generation} x{width}");
        Some((link, pcie_bytes_per_second(generation)? * f64::from(width)))
    }
}

/// What one lane of PCI Express carries, its line coding taken off.
fn pcie_bytes_per_second(generation: u32) -> Option<f64> {
    match generation {
        1 => Some(0.250e9),
        2 => Some(0.500e9),
        3 => Some(0.985e9),
        4 => Some(1.969e9),
        5 => Some(3.938e9),
        6 => Some(7.563e9),
        _ => None,
    }
}

/// What the last load of this process did, or None before the first.
#[pyfunction]
pub(crate) fn last_report() -> Option<PyReport> {
    LAST.lock().unwrap_or_else(PoisonError::into_inner).clone().map(PyReport)
}
