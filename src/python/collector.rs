//! The caller of a load, seen from Python: signals, progress, and what arrives.

use std::time::Instant;

use pyo3::prelude::*;

use crate::config::SIGNAL_INTERVAL;
use crate::device::Buffer;
use crate::error::Result;
use crate::pipeline::Caller;
use crate::plan::Wanted;

/// Looks at signals, tells progress, and keeps what arrives.
pub(crate) struct Collector {
    progress: Option<Py<PyAny>>,
    total: u64,
    told: u64,
    looked: Option<Instant>,
    buffers: Vec<Option<Buffer>>,
}

impl Collector {
    /// For a load of so many targets and bytes.
    pub(crate) fn new(wanted: &[Wanted], progress: Option<Py<PyAny>>) -> Self {
        let total = wanted.iter().map(Wanted::bytes).fold(0, u64::saturating_add);
        let buffers = wanted.iter().map(|_| None).collect();
        Self { progress, total, told: 0, looked: None, buffers }
    }

    /// What has arrived so far.
    pub(crate) fn arrived(&self) -> &[Option<Buffer>] {
        &self.buffers
    }

    /// The same, handed over.
    pub(crate) fn take(&mut self) -> Vec<Option<Buffer>> {
        std::mem::take(&mut self.buffers)
    }

    /// Tells that all is done.
    pub(crate) fn finish(&mut self, py: Python<'_>) -> PyResult<()> {
        self.tell(py, self.total)
    }

    fn tell(&mut self, py: Python<'_>, done: u64) -> PyResult<()> {
        if let Some(progress) = &self.progress
            && done > self.told
        {
            self.told = done;
            progress.call1(py, (done, self.total))?;
        }
        Ok(())
    }
}

impl Caller for Collector {
    fn deliver(&mut self, target: usize, buffer: Buffer) -> Result<()> {
        self.buffers[target] = Some(buffer);
        Ok(())
    }

    fn check(&mut self, bytes_done: u64) -> Result<()> {
        if self.looked.is_some_and(|looked| looked.elapsed() < SIGNAL_INTERVAL) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        Python::attach(|py| {
            py.check_signals()?;
            self.tell(py, bytes_done)
        })?;
        Ok(())
    }
}

/// Python's garbage collector, paused while many tensors are made: their number would make it walk
/// the whole heap (90 ms after `import torch`), and none of them can be garbage yet.
pub(crate) struct CollectorPause<'py> {
    enable: Option<Bound<'py, PyAny>>,
}

impl<'py> CollectorPause<'py> {
    /// Pauses it, if it runs.
    pub(crate) fn begin(py: Python<'py>) -> PyResult<Self> {
        let module = py.import("gc")?;
        if !module.call_method0("isenabled")?.is_truthy()? {
            return Ok(Self { enable: None });
        }
        let enable = Some(module.getattr("enable")?);
        module.call_method0("disable")?;
        Ok(Self { enable })
    }
}

impl Drop for CollectorPause<'_> {
    fn drop(&mut self) {
        // `gc.enable` takes nothing and cannot fail.
        let _enabled = self.enable.as_ref().map(PyAnyMethods::call0);
    }
}
