//! Tensors that torch makes without the interpreter: by the C interface that its compiled models are
//! linked with, which torch keeps stable (`torch/csrc/inductor/aoti_torch/c/shim.h`).
#![expect(unsafe_code, reason = "the functions are torch's, found by name")]

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::ptr::{NonNull, null_mut};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::format::Dtype;
use crate::python::tensor::{torch_module, torch_name};

type Number = unsafe extern "C" fn() -> i32;
type EmptyStrided = unsafe extern "C" fn(
    dimensions: i64,
    sizes: *const i64,
    strides: *const i64,
    dtype: i32,
    device: i32,
    ordinal: i32,
    made: *mut *mut c_void,
) -> i32;
type DataPointer = unsafe extern "C" fn(tensor: *mut c_void, address: *mut *mut c_void) -> i32;
type Delete = unsafe extern "C" fn(tensor: *mut c_void) -> i32;

/// The functions, as far as they are needed here.
pub(crate) struct Aten {
    /// The numbers of those element types that the interface has.
    dtypes: HashMap<Dtype, i32>,
    empty_strided: EmptyStrided,
    data_pointer: DataPointer,
    delete: Delete,
    cuda: i32,
    /// Torch's own, in Python: makes objects of tensors, which it takes over. (The one for a single
    /// tensor, of a similar name, was seen to keep it alive for ever in torch 2.11.)
    wrap: Py<PyAny>,
}

static ATEN: PyOnceLock<Option<Aten>> = PyOnceLock::new();

impl Aten {
    /// Looks for them once; torch before 2.4 has not all of them. The one that wraps is no part of what
    /// torch keeps stable: it is tried.
    pub(crate) fn find(py: Python<'_>) -> Option<&'static Self> {
        ATEN.get_or_init(py, || Self::look(py).ok().flatten()).as_ref()
    }

    fn look(py: Python<'_>) -> PyResult<Option<Self>> {
        let native = torch_module(py)?.getattr("_C")?;
        let between = native.getattr("_aoti")?;
        let wrap = between.getattr("alloc_tensors_by_stealing_from_void_ptrs")?;
        let tried = torch_module(py)?.getattr("empty")?.call1((0,))?;
        let handles = between.getattr("unsafe_alloc_void_ptrs_from_tensors")?.call1(([&tried],))?;
        if !wrap.call1((handles,))?.get_item(0)?.is(&tried) {
            return Ok(None);
        }
        let library = Library::loaded(native.getattr("__file__")?.extract()?);
        Ok(library.and_then(|library| Self::of(&library, wrap.unbind())))
    }

    fn of(library: &Library, wrap: Py<PyAny>) -> Option<Self> {
        // SAFETY: the header declares a function of this name so.
        let empty_strided =
            unsafe { library.function::<EmptyStrided>("aoti_torch_empty_strided")? };
        // SAFETY: the same.
        let data_pointer = unsafe { library.function::<DataPointer>("aoti_torch_get_data_ptr")? };
        // SAFETY: the same.
        let delete = unsafe { library.function::<Delete>("aoti_torch_delete_tensor_object")? };
        let number = |dtype: Dtype| {
            let symbol = format!("aoti_torch_dtype_{}", torch_name(dtype)?);
            // SAFETY: the header declares all functions of such names so.
            Some((dtype, unsafe { library.number(&symbol)? }))
        };
        let dtypes = Dtype::all().filter_map(number).collect();
        // SAFETY: the same.
        let cuda = unsafe { library.number("aoti_torch_device_type_cuda")? };
        Some(Self { dtypes, empty_strided, data_pointer, delete, cuda, wrap })
    }

    /// The number of an element type, if the interface has it.
    pub(crate) fn dtype(&self, dtype: Dtype) -> Option<i32> {
        self.dtypes.get(&dtype).copied()
    }

    /// A contiguous tensor on a GPU, and where its memory is; none if torch could not make it. Then an
    /// exception may be set, where Python had a say in it. No dimension may be zero.
    pub(crate) fn empty(
        &'static self,
        ordinal: usize,
        dtype: i32,
        shape: &[u64],
    ) -> Option<(AtenTensor, u64)> {
        let sizes: Vec<i64> =
            shape.iter().map(|&size| size.try_into().ok()).collect::<Option<_>>()?;
        let mut strides = vec![1_i64; sizes.len()];
        for place in (1..sizes.len()).rev() {
            strides[place - 1] = strides[place].checked_mul(sizes[place])?;
        }
        let (dimensions, ordinal) = (sizes.len().try_into().ok()?, ordinal.try_into().ok()?);
        let (mut made, mut address) = (null_mut(), null_mut());
        // SAFETY: both arrays hold as many numbers as it is told, and the last argument is written to.
        let status = unsafe {
            (self.empty_strided)(
                dimensions,
                sizes.as_ptr(),
                strides.as_ptr(),
                dtype,
                self.cuda,
                ordinal,
                &raw mut made,
            )
        };
        let pointer = NonNull::new(made).filter(|_| status == 0)?;
        let tensor = AtenTensor { aten: self, pointer };
        // SAFETY: the tensor lives, and the last argument is written to.
        let status = unsafe { (self.data_pointer)(pointer.as_ptr(), &raw mut address) };
        (status == 0).then_some((tensor, address.expose_provenance() as u64))
    }
}

/// A tensor of torch's that Python does not know of yet.
pub(crate) struct AtenTensor {
    aten: &'static Aten,
    pointer: NonNull<c_void>,
}

// SAFETY: torch counts a tensor's users atomically and frees it in whatever thread drops the last one.
unsafe impl Send for AtenTensor {}

impl AtenTensor {
    /// The same as objects of Python's, in their order.
    pub(crate) fn into_objects(
        py: Python<'_>,
        tensors: Vec<Self>,
    ) -> PyResult<Vec<Bound<'_, PyAny>>> {
        let Some(aten) = tensors.first().map(|tensor| tensor.aten) else { return Ok(Vec::new()) };
        let capsules = tensors.iter().map(|tensor| {
            // SAFETY: a capsule without name and destructor owns nothing.
            let capsule =
                unsafe { ffi::PyCapsule_New(tensor.pointer.as_ptr(), std::ptr::null(), None) };
            // SAFETY: a new reference, or null with an exception set.
            unsafe { Bound::from_owned_ptr_or_err(py, capsule) }
        });
        let capsules = capsules.collect::<PyResult<Vec<_>>>()?;
        for tensor in tensors {
            let _given = ManuallyDrop::new(tensor); // torch's from here on
        }
        aten.wrap.bind(py).call1((capsules,))?.try_iter()?.collect()
    }
}

impl Drop for AtenTensor {
    fn drop(&mut self) {
        // SAFETY: it was made by the same library and is dropped once: `into_objects` keeps this
        // from running where torch takes it over. It fails for no tensor that there is.
        unsafe { (self.aten.delete)(self.pointer.as_ptr()) };
    }
}

/// A shared library that the process has loaded, and what it was linked with.
struct Library(NonNull<c_void>);

impl Library {
    /// By its path; never loads it.
    fn loaded(path: PathBuf) -> Option<Self> {
        let path = CString::new(path.into_os_string().into_vec()).ok()?;
        // SAFETY: the path ends with a zero; nothing is loaded, so nothing runs.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        NonNull::new(handle).map(Self)
    }

    /// One of its functions.
    ///
    /// # Safety
    /// `F` must be the type of the function of that name.
    unsafe fn function<F: Copy>(&self, name: &str) -> Option<F> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        let name = CString::new(name).ok()?;
        // SAFETY: the handle was never closed, and the name ends with a zero.
        let address = NonNull::new(unsafe { libc::dlsym(self.0.as_ptr(), name.as_ptr()) })?;
        // SAFETY: a function's address, of the type that the caller vouches for, and as large.
        Some(unsafe { std::mem::transmute_copy(&address) })
    }

    /// What a function gives that stands for a number.
    ///
    /// # Safety
    /// The function of that name must have no arguments.
    unsafe fn number(&self, name: &str) -> Option<i32> {
        // SAFETY: the caller vouches for its type.
        let function: Number = unsafe { self.function(name)? };
        // SAFETY: the same.
        Some(unsafe { function() })
    }
}
