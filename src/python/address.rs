//! Paths of local files, and addresses of remote ones, as callers name them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::checkpoint::Location;
use crate::python::errors::Result;
use crate::source::Address;
use crate::source::address::Access;
use crate::source::remote::cache;

/// A remote file's address, and what it is reached with: settings by the names of `object_store`, or
/// `token` for HTTP; the folder that keeps what is read; and whether all of it is read. It shows none
/// of them.
#[pyclass(frozen, name = "Address", module = "safetensors_streaming._native")]
pub(crate) struct PyAddress(Address);

#[pymethods]
impl PyAddress {
    #[new]
    #[pyo3(signature = (address, settings, cache=None, whole=true))]
    fn new(
        address: PathBuf,
        settings: BTreeMap<String, String>,
        cache: Option<PathBuf>,
        whole: bool,
    ) -> PyResult<Self> {
        let access = Access { options: Arc::new(settings), cache, whole, check: look_at_signals };
        let address = Address::new(address, access);
        let wrong = |why| PyValueError::new_err(format!("{}: {why}", address.shown().display()));
        address.parts().map_err(wrong)?;
        Ok(Self(address))
    }

    fn __repr__(&self) -> String {
        format!("Address({:?})", self.0)
    }
}

/// A signal that came while we wait ends the waiting.
pub(crate) fn look_at_signals() -> Result<()> {
    Python::attach(|py| {
        py.check_signals()?;
        Ok(())
    })
}

/// What a caller names: a path, or an address.
pub(crate) struct Named(pub(crate) Address);

impl FromPyObject<'_, '_> for Named {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        if let Ok(address) = object.cast::<PyAddress>() {
            return Ok(Self(address.get().0.clone()));
        }
        let access = Access { check: look_at_signals, ..Access::default() };
        Ok(Self(Address::new(object.extract()?, access)))
    }
}

/// The same, where a caller names it `filename`.
pub(crate) struct FileName(pub(crate) Address);

impl FromPyObject<'_, '_> for FileName {
    type Error = PyErr;

    /// Refuses as upstream's binding does, which names the argument in the text.
    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        let named = object.extract().map(|Named(address)| Self(address));
        named.map_err(|error: PyErr| {
            let text = error.value(object.py()).to_string();
            PyTypeError::new_err(format!("argument 'filename': {text}"))
        })
    }
}

/// One name is looked at for what it is; several are files.
pub(crate) fn location_of(named: Vec<Named>) -> Result<Location> {
    let addresses: Vec<Address> = named.into_iter().map(|Named(address)| address).collect();
    match addresses.as_slice() {
        [single] => Location::resolve(single),
        _ => Ok(Location::of_files(addresses)),
    }
}

/// Waits for files that a folder keeps and that are not named yet; before the process ends.
#[pyfunction]
pub(crate) fn settle(py: Python<'_>) {
    py.detach(cache::settle);
}
