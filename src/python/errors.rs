//! Our errors to the exceptions that callers of upstream already catch.

use pyo3::PyTypeInfo;
use pyo3::exceptions::{PyMemoryError, PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use crate::error::Error;
use crate::python::allocator::out_of_memory;

/// The result of a load.
pub(crate) type Result<T> = crate::error::Result<T>;

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Format(_) | Error::Request(_) | Error::Mismatch { .. } => safetensor_error(text),
            Error::Io { source, .. } => os_error(source.raw_os_error(), text),
            Error::Read { errno, .. } => os_error(errno, text),
            Error::Memory { .. } | Error::HostMemory { .. } => PyMemoryError::new_err(text),
            // As Python's own where no thread is to be had.
            Error::Thread { .. } | Error::Internal(_) | Error::Device { .. } => {
                PyRuntimeError::new_err(text)
            }
            Error::DeviceMemory { .. } => out_of_memory(text),
            Error::Stopped(cause) => match cause.downcast::<PyErr>() {
                Ok(raised) => *raised,
                Err(other) => PyRuntimeError::new_err(other.to_string()),
            },
        }
    }
}

impl From<PyErr> for Error {
    fn from(raised: PyErr) -> Self {
        Self::Stopped(Box::new(raised))
    }
}

/// What a call into Python gave, or nothing where it raised what was foreseen. Anything else is passed
/// on: a signal's handler runs, and raises, in whatever Python code is being run.
pub(crate) fn foreseen<Foreseen: PyTypeInfo, T>(
    py: Python<'_>,
    outcome: PyResult<T>,
) -> PyResult<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(raised) if raised.is_instance_of::<Foreseen>(py) => Ok(None),
        Err(raised) => Err(raised),
    }
}

/// Whether something was refused, by torch too, rather than a signal's handler having raised.
pub(crate) fn is_refusal(py: Python<'_>, error: &Error) -> bool {
    let Error::Stopped(cause) = error else { return true };
    cause.downcast_ref::<PyErr>().is_none_or(|raised| raised.is_instance_of::<PyRuntimeError>(py))
}

/// Upstream's own class, so that every `except` clause there is keeps working.
pub(crate) fn safetensor_error(text: String) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    Python::attach(|py| {
        let class = CLASS.get_or_try_init(py, || {
            let module = py.import("safetensors")?;
            Ok::<_, PyErr>(module.getattr("SafetensorError")?.cast_into::<PyType>()?.unbind())
        });
        match class {
            Ok(class) => PyErr::from_type(class.bind(py).clone(), text),
            Err(error) => error,
        }
    })
}

/// The subclass of `OSError` that belongs to an error number, with a text of our own.
fn os_error(errno: Option<i32>, text: String) -> PyErr {
    let Some(errno) = errno else { return PyOSError::new_err(text) };
    Python::attach(|py| {
        // OSError itself knows which of its subclasses belongs to a number.
        let class = match py.get_type::<PyOSError>().call1((errno, "")) {
            Ok(instance) => instance.get_type(),
            Err(error) => return error,
        };
        let error = PyErr::from_type(class, text);
        // The text already says all; the number is for callers that look at it.
        let _told = error.value(py).setattr("errno", errno);
        error
    })
}
