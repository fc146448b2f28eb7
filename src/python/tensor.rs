//! Tensors to torch through `DLPack`: each with a storage of its own of exactly its bytes, no copy,
//! no Python in between. The layout is that of dlpack.h, version 0.8.
#![expect(unsafe_code, reason = "a DLPack capsule is a C structure that torch frees")]

use std::ffi::{CStr, c_void};

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;

use crate::device::{Buffer, CudaBuffer, HostBuffer};
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::python::errors::safetensor_error;
use crate::tensor::{Form, Memory, Tensor};

const CAPSULE_NAME: &CStr = c"dltensor";
const CPU: i32 = 1;
const CUDA: i32 = 2;

#[repr(C)]
struct DlDevice {
    kind: i32,
    ordinal: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct DlDataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device: DlDevice,
    dimensions: i32,
    dtype: DlDataType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

/// What the capsule points to; torch knows the first three fields, the rest keeps them valid.
#[repr(C)]
struct Export {
    tensor: DlTensor,
    manager: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Export)>,
    shape: Vec<i64>,
    memory: Memory,
}

/// Frees an export; needs no interpreter, torch calls it from any thread.
unsafe extern "C" fn delete(export: *mut Export) {
    // SAFETY: the pointer came from `Box::into_raw` in `capsule`, and DLPack calls this once.
    drop(unsafe { Box::from_raw(export) });
}

/// Frees an export that nobody took; who takes one renames its capsule.
unsafe extern "C" fn delete_capsule(capsule: *mut ffi::PyObject) {
    // SAFETY: the interpreter passes the capsule that is being freed.
    if unsafe { ffi::PyCapsule_IsValid(capsule, CAPSULE_NAME.as_ptr()) } == 0 {
        return;
    }
    // SAFETY: it was just seen to carry this name, and so the pointer that `capsule` put there.
    let export = unsafe { ffi::PyCapsule_GetPointer(capsule, CAPSULE_NAME.as_ptr()) };
    // SAFETY: still named so, nobody took it.
    unsafe { delete(export.cast()) }
}

/// The code and the bits of a type in dlpack.h (`DLDataTypeCode`), and its name in torch.
fn layout(dtype: Dtype) -> Option<(u8, u8, &'static str)> {
    Some(match dtype {
        Dtype::Bool => (6, 8, "bool"),
        Dtype::U8 => (1, 8, "uint8"),
        Dtype::I8 => (0, 8, "int8"),
        Dtype::I16 => (0, 16, "int16"),
        Dtype::U16 => (1, 16, "uint16"),
        Dtype::F16 => (2, 16, "float16"),
        Dtype::Bf16 => (4, 16, "bfloat16"),
        Dtype::I32 => (0, 32, "int32"),
        Dtype::U32 => (1, 32, "uint32"),
        Dtype::F32 => (2, 32, "float32"),
        Dtype::C64 => (5, 64, "complex64"),
        Dtype::F64 => (2, 64, "float64"),
        Dtype::I64 => (0, 64, "int64"),
        Dtype::U64 => (1, 64, "uint64"),
        Dtype::F8E4M3 => (10, 8, "float8_e4m3fn"),
        Dtype::F8E4M3Fnuz => (11, 8, "float8_e4m3fnuz"),
        Dtype::F8E5M2 => (12, 8, "float8_e5m2"),
        Dtype::F8E5M2Fnuz => (13, 8, "float8_e5m2fnuz"),
        Dtype::F8E8M0 => (14, 8, "float8_e8m0fnu"),
        Dtype::F4 => (17, 4, "float4_e2m1fn_x2"),
        Dtype::F6E2M3 | Dtype::F6E3M2 => return None,
    })
}

/// torch, once it was imported.
struct Torch {
    module: Py<PyModule>,
    from_dlpack: Py<PyAny>,
}

static TORCH: PyOnceLock<Torch> = PyOnceLock::new();

fn torch(py: Python<'_>) -> PyResult<&Torch> {
    TORCH.get_or_try_init(py, || {
        let module = py.import("torch")?;
        // The function behind `torch.utils.dlpack.from_dlpack`, which takes a capsule as it is.
        let from_dlpack = match module.getattr("_C")?.getattr("_from_dlpack") {
            Ok(direct) => direct,
            Err(_) => py.import("torch.utils.dlpack")?.getattr("from_dlpack")?,
        };
        Ok(Torch { module: module.unbind(), from_dlpack: from_dlpack.unbind() })
    })
}

/// The module, imported when it is first asked for.
pub(crate) fn torch_module(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    Ok(torch(py)?.module.bind(py))
}

/// Torch's name for an element type, or upstream's refusal.
fn torch_layout(dtype: Dtype) -> PyResult<(u8, u8, &'static str)> {
    layout(dtype).ok_or_else(|| safetensor_error(format!("Dtype not understood: {}", dtype.name())))
}

/// Torch's name for an element type, where it has one.
pub(crate) fn torch_name(dtype: Dtype) -> Option<&'static str> {
    layout(dtype).map(|(_, _, name)| name)
}

/// Torch's own object for an element type.
pub(crate) fn torch_type(py: Python<'_>, dtype: Dtype) -> PyResult<Bound<'_, PyAny>> {
    let (_, _, name) = torch_layout(dtype)?;
    torch_module(py)?.getattr(name)
}

impl Form {
    /// The dimensions as torch counts them.
    pub(crate) fn torch_shape(&self) -> Result<Vec<u64>> {
        let mut shape = self.shape.clone();
        if self.dtype == Dtype::F4 {
            halve_last(&mut shape)?;
        }
        Ok(shape)
    }
}

/// Imports torch, as upstream does on opening a file for it.
pub(crate) fn import_torch(py: Python<'_>) -> PyResult<()> {
    torch(py).map(|_| ())
}

/// A torch tensor over the same memory.
pub(crate) fn to_torch(py: Python<'_>, tensor: Tensor) -> PyResult<Bound<'_, PyAny>> {
    let torch = torch(py)?;
    let Tensor { memory, form } = tensor;
    let dtype = form.dtype;
    let (code, bits, name) = torch_layout(dtype)?;
    let shape = form.torch_shape()?;
    let lanes = if dtype == Dtype::F4 { 2 } else { 1 };
    let code = DlDataType { code, bits, lanes };
    let signed: Option<Vec<i64>> =
        shape.iter().map(|&dimension| i64::try_from(dimension).ok()).collect();
    let empty = shape.contains(&0);
    let plain = signed.filter(|_| !empty).unwrap_or_else(|| vec![0]);
    let take =
        |code, memory| torch.from_dlpack.bind(py).call1((capsule(py, code, &plain, memory)?,));
    let made = match take(code, memory.clone()) {
        Ok(made) => made,
        Err(_) if code.bits <= 8 => {
            // A torch older than this type's code in DLPack: as bytes, and then as what they are.
            let bytes = take(DlDataType { code: 1, bits: 8, lanes: 1 }, memory)?;
            bytes.call_method1("view", (torch.module.bind(py).getattr(name)?,))?
        }
        Err(error) => return Err(error),
    };
    // Torch itself judges shapes without elements, which may be larger than it can address.
    if empty { made.call_method1("reshape", (PyTuple::new(py, &shape)?,)) } else { Ok(made) }
}

/// The memory of a contiguous tensor of torch's, to be filled. Who else uses it meanwhile is its
/// user's to know, as with `Tensor.copy_`.
pub(crate) fn memory_of(tensor: &Bound<'_, PyAny>, form: &Form) -> Result<Buffer> {
    let contiguous = tensor.call_method0("is_contiguous")?.is_truthy()?;
    let bytes: usize = tensor.getattr("nbytes")?.extract()?;
    if !contiguous || bytes as u64 != form.bytes() {
        return Err(Error::Internal("a tensor that cannot be filled as it lies".to_owned()));
    }
    let address: usize = tensor.call_method0("data_ptr")?.extract()?;
    if tensor.getattr("is_cuda")?.is_truthy()? {
        let ordinal = tensor.call_method0("get_device")?.extract()?;
        return Ok(Buffer::Cuda(CudaBuffer::borrowed(ordinal, address as u64, bytes)));
    }
    let address = std::ptr::with_exposed_provenance_mut(address);
    let owner = Box::new(tensor.clone().unbind());
    // SAFETY: torch keeps so many bytes there as long as the tensor lives; that nobody else uses them
    // is what a caller promises who has a tensor filled in place.
    Ok(Buffer::Host(unsafe { HostBuffer::borrowed(address, bytes, owner) }))
}

/// Torch packs two four-bit elements in one of its own.
fn halve_last(shape: &mut [u64]) -> PyResult<()> {
    let whole = shape.to_vec();
    match shape.last_mut() {
        Some(last) if last.is_multiple_of(2) => {
            *last /= 2;
            Ok(())
        }
        _ => Err(safetensor_error(format!(
            "f4_x2 dtype requires that the last dim be divisible by 2 in torch: got {whole:?}"
        ))),
    }
}

/// A `DLPack` capsule over the same memory, for whoever takes such.
pub(crate) fn to_capsule(py: Python<'_>, tensor: Tensor) -> PyResult<Bound<'_, PyAny>> {
    let Tensor { memory, form } = tensor;
    let (code, bits, _) = torch_layout(form.dtype)?;
    let lanes = if form.dtype == Dtype::F4 { 2 } else { 1 };
    let shape = form.torch_shape()?.into_iter().map(i64::try_from);
    let shape: Vec<i64> = shape.collect::<std::result::Result<_, _>>()?;
    capsule(py, DlDataType { code, bits, lanes }, &shape, memory)
}

fn device_of(memory: &Memory) -> DlDevice {
    match memory {
        Memory::Owned(Buffer::Cuda(buffer)) => {
            DlDevice { kind: CUDA, ordinal: i32::try_from(buffer.ordinal()).unwrap_or(i32::MAX) }
        }
        Memory::Owned(Buffer::Host(_)) | Memory::Mapped(..) => DlDevice { kind: CPU, ordinal: 0 },
    }
}

fn capsule<'py>(
    py: Python<'py>,
    dtype: DlDataType,
    shape: &[i64],
    memory: Memory,
) -> PyResult<Bound<'py, PyAny>> {
    let mut shape = shape.to_vec();
    let dimensions = i32::try_from(shape.len())
        .map_err(|_| PyRuntimeError::new_err(format!("a tensor of {} dimensions", shape.len())))?;
    let tensor = DlTensor {
        data: memory.address().cast(),
        device: device_of(&memory),
        dimensions,
        dtype,
        shape: shape.as_mut_ptr(),
        strides: std::ptr::null_mut(),
        byte_offset: 0,
    };
    let manager = std::ptr::null_mut();
    let export = Box::new(Export { tensor, manager, deleter: Some(delete), shape, memory });
    let export = Box::into_raw(export);
    // SAFETY: the name lives for ever and the destructor fits what the pointer is.
    let object =
        unsafe { ffi::PyCapsule_New(export.cast(), CAPSULE_NAME.as_ptr(), Some(delete_capsule)) };
    if object.is_null() {
        // SAFETY: no capsule was made, so the export is still ours alone.
        unsafe { delete(export) };
    }
    // SAFETY: a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, object) }
}
