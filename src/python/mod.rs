//! The extension module as a list. Functions here convert, detach, call, convert.
#![expect(clippy::needless_pass_by_value, reason = "pyo3 hands over owned arguments")]

mod address;
mod ahead;
mod allocator;
mod array;
mod aten;
mod background;
mod check;
mod collector;
mod destination;
mod digests;
mod errors;
mod fetch;
mod handle;
mod index;
mod inspect;
mod into;
mod lanes;
mod load;
mod machine;
mod planned;
mod read_ahead;
mod report;
mod stream;
mod tensor;

use pyo3::prelude::*;

/// The native half of `safetensors_streaming`.
#[pymodule(gil_used = false)]
mod _native {
    #[pymodule_export]
    use super::address::{PyAddress, settle};
    #[pymodule_export]
    use super::array::{DeviceArray, gpu_facts, load_arrays};
    #[pymodule_export]
    use super::handle::{Handle, TensorSlice};
    #[pymodule_export]
    use super::inspect::{describe, digest_checkpoint};
    #[pymodule_export]
    use super::into::load_into;
    #[pymodule_export]
    use super::load::{load_bytes, load_checkpoint, load_file, read_through, release};
    #[pymodule_export]
    use super::machine::{file_facts, machine_facts, measure_ceilings};
    #[pymodule_export]
    use super::planned::PlannedLoad;
    #[pymodule_export]
    use super::report::{PyReport, last_report};
    #[pymodule_export]
    use super::stream::Stream;

    #[pymodule_init]
    fn init(module: &super::Bound<'_, super::PyModule>) -> super::PyResult<()> {
        use super::PyModuleMethods;
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("DEBUG_BUILD", cfg!(debug_assertions))
    }
}
