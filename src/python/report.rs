//! `last_report()`.

use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::report::Report;

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

    /// Seconds by phase: open, plan, load, total.
    #[getter]
    fn seconds<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let seconds = PyDict::new(py);
        seconds.set_item("open", self.0.seconds.open)?;
        seconds.set_item("plan", self.0.seconds.plan)?;
        seconds.set_item("load", self.0.seconds.load)?;
        seconds.set_item("total", self.0.seconds.total)?;
        Ok(seconds)
    }

    /// Where the tensors are: `cpu` or `cuda:N`.
    #[getter]
    fn device(&self) -> &str {
        &self.0.device
    }

    /// How the bytes were read: `mmap`, `io_uring`, `pread`, `pread-direct`, or several joined by `+`.
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

    /// All numbers as one line of JSON.
    fn to_json(&self) -> PyResult<String> {
        serde_json::to_string(&self.0).map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// All numbers as a dict.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        py.import("json")?.call_method1("loads", (self.to_json()?,))
    }

    fn __repr__(&self) -> PyResult<String> {
        Ok(format!("Report({})", self.to_json()?))
    }
}

/// What the last load of this process did, or None before the first.
#[pyfunction]
pub(crate) fn last_report() -> Option<PyReport> {
    LAST.lock().unwrap_or_else(PoisonError::into_inner).clone().map(PyReport)
}
