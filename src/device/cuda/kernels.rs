//! The kernels that place small pieces and convert types, shipped as machine code for most GPUs, and as
//! PTX, which every driver since CUDA 11 compiles for the others.
#![expect(unsafe_code, reason = "a kernel is called with untyped arguments")]

use std::ffi::{CStr, c_void};

use cudarc::driver::sys;

use crate::config::{PIECES_MAX, TABLE_BYTES};
use crate::device::cuda::driver::{Capability, Gpu};
use crate::device::cuda::stream::Stream;
use crate::error::Result;
use crate::format::Dtype;

/// The text of `kernels/*.cu` as NVRTC made it, ended as C wants it.
const PTX: &str = concat!(include_str!("../../../kernels/loader.ptx"), "\0");

/// Machine code, aligned as an ELF file is.
#[repr(C, align(16))]
struct Cubin<Bytes: ?Sized>(Bytes);

macro_rules! cubin {
    ($name:literal) => {
        &Cubin(*include_bytes!(concat!("../../../kernels/loader.", $name, ".cubin")))
    };
}

/// The text assembled by `ci/kernels`, each for the GPUs of one major number whose minor one is no
/// smaller; such code is promised to run on cards, not on what sits in one chip with the processor.
static CUBINS: [(Capability, &Cubin<[u8]>); 5] = [
    (Capability { major: 7, minor: 5 }, cubin!("sm_75")),
    (Capability { major: 8, minor: 0 }, cubin!("sm_80")),
    (Capability { major: 9, minor: 0 }, cubin!("sm_90")),
    (Capability { major: 10, minor: 0 }, cubin!("sm_100")),
    (Capability { major: 12, minor: 0 }, cubin!("sm_120")),
];

/// The first driver of the assembler's major version; what an older one makes of its code is not
/// promised.
const CUBINS_DRIVER_MIN: i32 = 12_000;

const THREADS: u32 = 128;
const BLOCKS_MAX: u32 = 1024;

/// Blocks for pieces that may be as large as a slot: several share one where there are few.
const CAST_BLOCKS: u32 = 2048;

/// One piece for `scatter`, as in `kernels/types.cuh`: target, source, bytes, 8 bytes each.
pub(super) const PIECE_BYTES: usize = 24;

/// One piece for `cast`, as there: target, source, elements, kind, 8 bytes each.
pub(super) const CAST_BYTES: usize = 32;

const _: () = assert!(PIECES_MAX * CAST_BYTES <= TABLE_BYTES && PIECE_BYTES < CAST_BYTES);

/// A conversion that a kernel does, on the way into a tensor; the result has two bytes an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conversion {
    F32ToBf16,
    F32ToF16,
    F16ToBf16,
    Bf16ToF16,
}

impl Conversion {
    /// The conversion from one type to another, where there is a kernel for it.
    pub(crate) fn new(from: Dtype, to: Dtype) -> Option<Self> {
        match (from, to) {
            (Dtype::F32, Dtype::Bf16) => Some(Self::F32ToBf16),
            (Dtype::F32, Dtype::F16) => Some(Self::F32ToF16),
            (Dtype::F16, Dtype::Bf16) => Some(Self::F16ToBf16),
            (Dtype::Bf16, Dtype::F16) => Some(Self::Bf16ToF16),
            _ => None,
        }
    }

    /// Bytes of one element before it; after it they are two.
    pub(crate) fn width(self) -> usize {
        match self {
            Self::F32ToBf16 | Self::F32ToF16 => 4,
            Self::F16ToBf16 | Self::Bf16ToF16 => 2,
        }
    }

    /// Its number in `kernels/types.cuh`.
    pub(super) fn kind(self) -> u64 {
        match self {
            Self::F32ToBf16 => 0,
            Self::F32ToF16 => 1,
            Self::F16ToBf16 => 2,
            Self::Bf16ToF16 => 3,
        }
    }
}

/// A kernel that takes a table of pieces.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kernel {
    /// Copies each piece.
    Scatter,
    /// Converts each piece.
    Cast,
}

/// The kernels of one GPU.
#[derive(Debug)]
pub(crate) struct Kernels {
    scatter: sys::CUfunction,
    cast: sys::CUfunction,
    checksum: sys::CUfunction,
}

// SAFETY: a function of a loaded module is no thread's, and the module is never unloaded.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

impl Kernels {
    /// Gives the driver machine code or, where there is none for this GPU and this driver or it is
    /// refused, the PTX, which the driver compiles (once; it keeps the result on disk).
    pub(super) fn load(gpu: &Gpu) -> Result<Self> {
        let _entered = gpu.enter()?;
        let assembled = machine_code(gpu).ok().flatten();
        let loaded = assembled.and_then(|code| Self::of(gpu, code).ok());
        loaded.map_or_else(|| Self::of(gpu, PTX.as_bytes()), Ok)
    }

    /// Of an image, one of those above. A module that lacks a kernel stays loaded.
    fn of(gpu: &Gpu, image: &'static [u8]) -> Result<Self> {
        let mut module = std::ptr::null_mut();
        // SAFETY: machine code says how long it is, the text ends with a zero byte, and both outlive
        // the call; a context is current.
        let code = unsafe { sys::cuModuleLoadData(&raw mut module, image.as_ptr().cast()) };
        gpu.check("cuModuleLoadData", code)?;
        let named = |name| function(gpu, module, name);
        let (scatter, cast) = (named(c"scatter")?, named(c"cast")?);
        Ok(Self { scatter, cast, checksum: named(c"checksum")? })
    }

    /// Begins to place pieces whose table lies at `table` in memory that the GPU can read.
    ///
    /// # Safety
    /// Callers must guarantee that the table is one for this kernel, and that table, sources and
    /// targets stay until the stream has come to what was recorded after this call.
    pub(super) unsafe fn launch(
        &self,
        kernel: Kernel,
        stream: &Stream,
        table: u64,
        pieces: usize,
    ) -> Result<()> {
        let (mut table, mut count) = (table, u32::try_from(pieces).unwrap_or(u32::MAX));
        let mut arguments: [*mut c_void; 2] = [(&raw mut table).cast(), (&raw mut count).cast()];
        let blocks = count.clamp(1, BLOCKS_MAX);
        let (function, sharing) = match kernel {
            Kernel::Scatter => (self.scatter, 1),
            Kernel::Cast => (self.cast, CAST_BLOCKS.div_ceil(blocks)),
        };
        // SAFETY: the arguments have the kernel's types; the rest is this function's contract.
        unsafe { start(function, [blocks, sharing], stream, &mut arguments) }
    }

    /// Begins to add the sum of memory to a number in memory, both the GPU's.
    ///
    /// # Safety
    /// Callers must guarantee that the memory of both stays until the stream has come to what was
    /// recorded after this call.
    pub(super) unsafe fn sum(
        &self,
        stream: &Stream,
        mut address: u64,
        mut bytes: u64,
        mut sum: u64,
    ) -> Result<()> {
        let bytes_per_block = 16 * u64::from(THREADS);
        let blocks = u32::try_from(bytes.div_ceil(bytes_per_block)).unwrap_or(BLOCKS_MAX);
        let blocks = [blocks.clamp(1, BLOCKS_MAX), 1];
        let mut arguments: [*mut c_void; 3] =
            [(&raw mut address).cast(), (&raw mut bytes).cast(), (&raw mut sum).cast()];
        // SAFETY: the arguments have the kernel's types; the rest is this function's contract.
        unsafe { start(self.checksum, blocks, stream, &mut arguments) }
    }
}

/// Begins to run a kernel on so many blocks side by side and so many rows of them.
///
/// # Safety
/// Callers must guarantee that the arguments, which are copied, are of the kernel's types, and what the
/// kernel asks of them.
unsafe fn start(
    kernel: sys::CUfunction,
    [blocks, rows]: [u32; 2],
    stream: &Stream,
    arguments: &mut [*mut c_void],
) -> Result<()> {
    // SAFETY: the kernel is of a module that is never unloaded; the rest is this function's contract.
    let code = unsafe {
        sys::cuLaunchKernel(
            kernel,
            blocks,
            rows,
            1,
            THREADS,
            1,
            1,
            0,
            stream.raw(),
            arguments.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    };
    stream.gpu().check("cuLaunchKernel", code)
}

/// The machine code that a GPU and its driver are promised to take.
fn machine_code(gpu: &Gpu) -> Result<Option<&'static [u8]>> {
    if gpu.is_integrated()? || gpu.driver_version()? < CUBINS_DRIVER_MIN {
        return Ok(None);
    }
    let capability = gpu.capability()?;
    let fitting = CUBINS.iter().find(|(lowest, _)| capability.runs_code_of(*lowest));
    Ok(fitting.map(|(_, code)| &code.0))
}

fn function(gpu: &Gpu, module: sys::CUmodule, name: &CStr) -> Result<sys::CUfunction> {
    let mut function = std::ptr::null_mut();
    // SAFETY: the module was just loaded, the name is a C string, the target outlives the call.
    let code = unsafe { sys::cuModuleGetFunction(&raw mut function, module, name.as_ptr()) };
    gpu.check("cuModuleGetFunction", code).map(|()| function)
}
