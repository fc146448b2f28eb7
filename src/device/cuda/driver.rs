//! The CUDA driver: looked for when it is first wanted, its refusal kept in words; and its objects
//! as owned types. A GPU's context is its primary one, which torch uses as well.
#![expect(unsafe_code, reason = "the driver is a C library")]

use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::sync::{Mutex, OnceLock};

use cudarc::driver::sys::{
    self, CUdevice_attribute as Attribute, CUresult, CUstreamCaptureMode as CaptureMode,
};

use crate::device::cuda::facts::{Facts, node_of};
use crate::device::cuda::kernels::Kernels;
use crate::error::{Error, Result};

/// What the driver writes as a bus address, and its end.
const BUS_ID_BYTES: i32 = 16;

/// More GPUs than any host has.
const GPUS_MAX: usize = 64;

/// Every function that is called. A driver that lacks one would make the binding panic.
const SYMBOLS: [&str; 36] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetAttribute",
    "cuDeviceGetPCIBusId",
    "cuDevicePrimaryCtxRetain",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuCtxSetCurrent",
    "cuGetErrorString",
    "cuMemGetInfo_v2",
    "cuThreadExchangeStreamCaptureMode",
    "cuMemAlloc_v2",
    "cuMemAllocAsync",
    "cuMemFree_v2",
    "cuMemFreeAsync",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuMemHostGetDevicePointer_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemsetD8Async",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamQuery",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuStreamIsCapturing",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventDestroy_v2",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuLaunchKernel",
];

/// A GPU of this process, its context retained for the life of the process.
#[derive(Debug)]
pub(crate) struct Gpu {
    ordinal: usize,
    device: sys::CUdevice,
    context: sys::CUcontext,
    process: u32,
    node: OnceLock<Option<u32>>,
    kernels: OnceLock<std::result::Result<Kernels, String>>,
    /// Streams of ours that nobody has.
    pub(super) idle_streams: Mutex<Vec<sys::CUstream>>,
}

// SAFETY: a context is no thread's; the driver locks what it shares.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// The GPU of that number, which must not have been in use before this process was forked.
    pub(crate) fn open(ordinal: usize) -> Result<&'static Self> {
        static GPUS: [OnceLock<Gpu>; GPUS_MAX] = [const { OnceLock::new() }; GPUS_MAX];
        let Some(place) = GPUS.get(ordinal) else {
            return Err(no_such_gpu(ordinal, count(ordinal)?));
        };
        if place.get().is_none() {
            let opened = Self::retain(ordinal)?;
            let _first_or_another_thread_was = place.set(opened);
        }
        let gpu = place.get().ok_or_else(|| no_such_gpu(ordinal, 0))?;
        if gpu.process == std::process::id() { Ok(gpu) } else { Err(forked(ordinal)) }
    }

    fn retain(ordinal: usize) -> Result<Self> {
        let count = count(ordinal)?;
        let check = |what, code| check(ordinal, what, code);
        let number = i32::try_from(ordinal).ok().filter(|_| ordinal < count);
        let number = number.ok_or_else(|| no_such_gpu(ordinal, count))?;
        let mut device = 0;
        // SAFETY: the target outlives the call.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut device, number) })?;
        let mut context = std::ptr::null_mut();
        // SAFETY: the device was just given by the driver, the target outlives the call.
        let code = unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, device) };
        check("cuDevicePrimaryCtxRetain", code)?;
        Ok(Self {
            ordinal,
            device,
            context,
            process: std::process::id(),
            node: OnceLock::new(),
            kernels: OnceLock::new(),
            idle_streams: Mutex::default(),
        })
    }

    /// Its number.
    pub(crate) fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Makes its context the calling thread's, for good: for threads of ours.
    pub(super) fn make_current(&self) -> Result<()> {
        // SAFETY: the context is retained.
        self.check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })?;
        exchange_capture_mode(CaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED);
        Ok(())
    }

    /// Makes its context the calling thread's, until the guard is dropped.
    pub(super) fn enter(&self) -> Result<Entered> {
        // SAFETY: the context is retained.
        self.check("cuCtxPushCurrent", unsafe { sys::cuCtxPushCurrent_v2(self.context) })?;
        let before = exchange_capture_mode(CaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED);
        Ok(Entered(before, PhantomData))
    }

    /// Memory of the GPU; freeing it waits for all work that was given to the GPU before.
    pub(super) fn allocate(&self, bytes: usize) -> Result<u64> {
        let _entered = self.enter()?;
        let mut address = 0;
        // SAFETY: the target outlives the call, and a context is current.
        let code = unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes) };
        if code == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(self.no_room(bytes as u64));
        }
        self.check("cuMemAlloc", code).map(|()| address)
    }

    /// Bytes of its memory that are free, and all of them.
    pub(super) fn memory(&self) -> Result<(u64, u64)> {
        let _entered = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both targets outlive the call, and a context is current.
        let code = unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
        self.check("cuMemGetInfo", code)?;
        Ok((free as u64, total as u64))
    }

    /// Where it sits, looked up anew.
    pub(crate) fn facts(&self) -> Result<Facts> {
        let (free, total) = self.memory()?;
        let facts = Facts::of(&self.bus_id()?);
        Ok(Facts {
            memory_free: facts.memory_free.or(Some(free)),
            memory_total: facts.memory_total.or(Some(total)),
            ..facts
        })
    }

    /// The NUMA node that it is attached to, where the kernel tells one.
    pub(super) fn node(&self) -> Option<u32> {
        *self.node.get_or_init(|| node_of(&self.bus_id().ok()?))
    }

    fn bus_id(&self) -> Result<String> {
        let mut text = [0_u8; BUS_ID_BYTES as usize];
        let target = text.as_mut_ptr().cast(); // C's char is signed on some machines
        // SAFETY: the target has the size that is told, and outlives the call.
        let code = unsafe { sys::cuDeviceGetPCIBusId(target, BUS_ID_BYTES, self.device) };
        self.check("cuDeviceGetPCIBusId", code)?;
        let text = CStr::from_bytes_until_nul(&text);
        Ok(text.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default())
    }

    /// An error where there is no room for so many bytes; some may lie idle in a cache.
    pub(crate) fn check_room(&self, wanted: u64, cached: u64) -> Result<()> {
        let (free, total) = self.memory()?;
        let free = free + cached;
        if wanted <= free || self.is_integrated()? {
            return Ok(());
        }
        Err(Error::DeviceMemory { ordinal: self.ordinal, wanted, free, total })
    }

    /// The error where so many bytes could not be had.
    pub(super) fn no_room(&self, wanted: u64) -> Error {
        let (free, total) = self.memory().unwrap_or((0, 0));
        Error::DeviceMemory { ordinal: self.ordinal, wanted, free, total }
    }

    /// Whether it sits in one chip with the processor. Then its memory is the host's, and what the driver
    /// calls free says little.
    pub(super) fn is_integrated(&self) -> Result<bool> {
        Ok(self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED)? != 0)
    }

    /// The driver's version of CUDA: a thousand times the major number, ten times the minor one.
    pub(super) fn driver_version(&self) -> Result<i32> {
        let mut version = 0;
        // SAFETY: the target outlives the call.
        let code = unsafe { sys::cuDriverGetVersion(&raw mut version) };
        self.check("cuDriverGetVersion", code).map(|()| version)
    }

    /// What code it runs.
    pub(super) fn capability(&self) -> Result<Capability> {
        let major = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Ok(Capability { major, minor })
    }

    fn attribute(&self, attribute: Attribute) -> Result<i32> {
        let mut value = 0;
        // SAFETY: the device is the driver's, the target outlives the call.
        let code = unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, self.device) };
        self.check("cuDeviceGetAttribute", code).map(|()| value)
    }

    /// The kernels, loaded when they are first wanted, or why this driver does not take them.
    pub(crate) fn kernels(&self) -> std::result::Result<&Kernels, &str> {
        let load = || Kernels::load(self).map_err(|error| error.to_string());
        self.kernels.get_or_init(load).as_ref().map_err(String::as_str)
    }

    pub(super) fn check(&self, what: &'static str, code: CUresult) -> Result<()> {
        check(self.ordinal, what, code)
    }
}

/// The compute capability of a GPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capability {
    pub(super) major: i32,
    pub(super) minor: i32,
}

impl Capability {
    /// Whether machine code for another one runs here, as far as these numbers tell.
    pub(super) fn runs_code_of(self, other: Self) -> bool {
        self.major == other.major && self.minor >= other.minor
    }
}

/// A context made current; the one before comes back when this is dropped, and so does the way in
/// which graph captures watch this thread: what is done here is part of none, and may spoil none.
pub(super) struct Entered(CaptureMode, PhantomData<*const ()>);

impl Drop for Entered {
    fn drop(&mut self) {
        exchange_capture_mode(self.0);
        let mut context = std::ptr::null_mut();
        // SAFETY: this thread pushed a context when this guard was made (it is not `Send`).
        let _popped = unsafe { sys::cuCtxPopCurrent_v2(&raw mut context) };
    }
}

/// Changes how captures watch this thread; gives how they did.
fn exchange_capture_mode(mut mode: CaptureMode) -> CaptureMode {
    // SAFETY: the target outlives the call, which fails for no mode that there is.
    let _never = unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut mode) };
    mode
}

/// How many GPUs there are, the driver initialised.
fn count(ordinal: usize) -> Result<usize> {
    driver_is_complete(ordinal)?;
    // SAFETY: the function is there, as are all others: `driver_is_complete` has seen them.
    check(ordinal, "cuInit", unsafe { sys::cuInit(0) })?;
    let mut count = 0;
    // SAFETY: the target outlives the call.
    check(ordinal, "cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

fn driver_is_complete(ordinal: usize) -> Result<()> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    let missing = MISSING.get_or_init(|| {
        // SAFETY: loading the driver's library runs its initialisers, as using it will.
        if !unsafe { sys::is_culib_present() } {
            return Some(
                "no NVIDIA driver was found (libcuda.so.1); install one, or start the container \
                 with access to the GPU (docker: --gpus all)"
                    .to_owned(),
            );
        }
        // SAFETY: the library was just seen to be there.
        let library = unsafe { sys::culib() };
        let lacks = |name: &&&str| {
            // SAFETY: the symbol is looked up, not called.
            unsafe { library.get::<*const c_void>(name.as_bytes()) }.is_err()
        };
        let lacking = SYMBOLS.iter().find(lacks)?;
        Some(format!(
            "the NVIDIA driver is too old: it has no {lacking}; update it (CUDA 11.2 or newer)"
        ))
    });
    match missing {
        None => Ok(()),
        Some(message) => Err(Error::Device { ordinal, what: "driver", message: message.clone() }),
    }
}

fn no_such_gpu(ordinal: usize, count: usize) -> Error {
    let devices = if count == 1 { "device" } else { "devices" };
    let message = format!("invalid device ordinal: this host has {count} CUDA {devices}");
    Error::Device { ordinal, what: "device", message }
}

fn forked(ordinal: usize) -> Error {
    let message = "CUDA was initialised before this process was forked; start processes that use \
                   a GPU with the 'spawn' method"
        .to_owned();
    Error::Device { ordinal, what: "fork", message }
}

/// The driver's answer in words, with what to do.
fn check(ordinal: usize, what: &'static str, code: CUresult) -> Result<()> {
    let advice = match code {
        CUresult::CUDA_SUCCESS => return Ok(()),
        CUresult::CUDA_ERROR_NOT_INITIALIZED => return Err(forked(ordinal)),
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            "; the library found is the toolkit's stub, not a driver: take its folder off \
             LD_LIBRARY_PATH"
        }
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED => {
            "; a CUDA graph is being captured: load before or after"
        }
        CUresult::CUDA_ERROR_NO_DEVICE => {
            "; see what nvidia-smi tells, and whether CUDA_VISIBLE_DEVICES hides the GPU"
        }
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_LAUNCH_FAILED
        | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
        | CUresult::CUDA_ERROR_ASSERT
        | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUresult::CUDA_ERROR_INVALID_PC
        | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | CUresult::CUDA_ERROR_UNKNOWN
        | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE => {
            "; this process can no longer use the GPU (an earlier kernel failed?): start a new one"
        }
        _ => "",
    };
    let mut text = std::ptr::null();
    // SAFETY: the target outlives the call; the text is the driver's and lives for ever.
    let known = unsafe { sys::cuGetErrorString(code, &raw mut text) } == CUresult::CUDA_SUCCESS;
    let text = if known && !text.is_null() {
        // SAFETY: a C string of the driver's, as just said.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    } else {
        String::new()
    };
    let message = format!("{code:?} ({}): {text}{advice}", code as u32);
    Err(Error::Device { ordinal, what, message })
}
