//! Kernels: their host builds from `SIMCUDA_KERNELS`, and launching them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::clock::Stamp;
use crate::error::{Error, Outcome};
use crate::module::Function;
use crate::order::{self, Stream};
use crate::queue::{Work, sleep_until};
use crate::ranges::Use;
use crate::settings::settings;
use crate::{arena, memory, pinned, statistics, violations};

/// `struct SimKernel` of the shared object.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    name: *const c_char,
    parameters: usize,
    sizes: *const usize,
    run: extern "C" fn(dimensions: *const u32, shared_bytes: u32, arguments: *const *mut c_void),
}

// SAFETY: its pointers are constants of a shared object that is never unloaded.
unsafe impl Send for Kernel {}
// SAFETY: likewise.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// Bytes of each parameter.
    pub(crate) fn sizes(&self) -> &'static [usize] {
        // SAFETY: the shared object says how many there are.
        unsafe { std::slice::from_raw_parts(self.sizes, self.parameters) }
    }
}

type Table = extern "C" fn(count: *mut usize) -> *const Kernel;
type Touch = extern "C" fn(address: *const c_void, bytes: usize, write: c_int);

/// The host build of a kernel.
pub(crate) fn find(name: &str) -> Option<Kernel> {
    static KERNELS: OnceLock<HashMap<String, Kernel>> = OnceLock::new();
    let open = || settings().kernels.as_deref().map_or_else(HashMap::new, open);
    KERNELS.get_or_init(open).get(name).copied()
}

fn open(path: &str) -> HashMap<String, Kernel> {
    let object = CString::new(path).unwrap_or_default();
    // SAFETY: the object is ours to load.
    let object = unsafe { libc::dlopen(object.as_ptr(), libc::RTLD_NOW) };
    // SAFETY: symbols of an object that did not load are not found.
    let table = unsafe { libc::dlsym(object, c"simcuda_kernels".as_ptr()) };
    if object.is_null() || table.is_null() {
        eprintln!("simcuda: SIMCUDA_KERNELS={path} cannot be loaded or has no simcuda_kernels");
        std::process::abort();
    }
    // SAFETY: likewise.
    let touch = unsafe { libc::dlsym(object, c"simcuda_touch".as_ptr()) }.cast::<Option<Touch>>();
    if !touch.is_null() {
        // SAFETY: the object exports a variable of this type.
        unsafe { touch.write(Some(on_touch)) };
    }
    // SAFETY: the object exports a function of this type.
    let table: Table = unsafe { std::mem::transmute(table) };
    let mut count = 0;
    let first = table(&raw mut count);
    // SAFETY: the function gives a table of that many kernels.
    let kernels = unsafe { std::slice::from_raw_parts(first, count) };
    // SAFETY: names are strings.
    let name = |kernel: &Kernel| unsafe { CStr::from_ptr(kernel.name) };
    kernels.iter().map(|kernel| (name(kernel).to_string_lossy().into_owned(), *kernel)).collect()
}

/// The launch that this thread runs.
struct Running {
    stamp: Stamp,
    what: String,
}

thread_local! {
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
}

/// A kernel tells what it reads or writes.
extern "C" fn on_touch(address: *const c_void, bytes: usize, write: c_int) {
    if bytes == 0 {
        return;
    }
    let (range, usage) =
        ((address as usize, bytes), if write != 0 { Use::Write } else { Use::Read });
    RUNNING.with_borrow(|running| {
        let Some(Running { stamp, what }) = running else { return };
        let host = order::host_clock();
        if arena::contains(range.0) {
            memory::touch(range, usage, what, stamp, &host);
        } else if !pinned::touch(range, usage, what, stamp, &host) {
            violations::report(format!(
                "{what} on stream {:#x} {} {:#x}+{bytes}, which no device sees",
                stamp.handle,
                usage.verb(),
                range.0
            ));
        } else if settings().racecheck && usage == Use::Read {
            pinned::watch_source(range.0, bytes, pinned::digest_of(range.0, bytes), stamp);
        }
    });
}

/// Where and how a kernel is launched.
pub(crate) struct Launch {
    /// Blocks of the grid, then threads of a block.
    pub(crate) dimensions: [u32; 6],
    /// Bytes of shared memory.
    pub(crate) shared_bytes: u32,
    /// Pointers to the arguments.
    pub(crate) arguments: *const *const c_void,
}

impl Launch {
    fn check(&self) -> Outcome {
        let [grid_x, grid_y, grid_z, block_x, block_y, block_z] = self.dimensions;
        let threads = u64::from(block_x) * u64::from(block_y) * u64::from(block_z);
        let fits = (1..=1024).contains(&threads)
            && block_z <= 64
            && (1..=0x7FFF_FFFF).contains(&grid_x)
            && (1..=0xFFFF).contains(&grid_y)
            && (1..=0xFFFF).contains(&grid_z)
            && self.shared_bytes <= 48 << 10;
        if fits { Ok(()) } else { Err(Error::INVALID_VALUE) }
    }

    /// Copies the arguments, as the driver does: the caller's may change after the launch.
    fn copy_arguments(&self, sizes: &[usize]) -> Outcome<Vec<Vec<u64>>> {
        if self.arguments.is_null() && !sizes.is_empty() {
            return Err(Error::INVALID_VALUE);
        }
        let copy = |(index, size): (usize, &usize)| {
            let mut words = vec![0u64; size.div_ceil(8)];
            // SAFETY: the caller gives a pointer for each parameter, to that many bytes.
            unsafe {
                let argument = *self.arguments.add(index);
                words.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(argument.cast(), *size);
            }
            words
        };
        Ok(sizes.iter().enumerate().map(copy).collect())
    }
}

/// Launches.
pub(crate) fn launch(function: &Arc<Function>, launch: &Launch, stream: &Stream) -> Outcome {
    launch.check()?;
    let arguments = launch.copy_arguments(&function.sizes)?;
    let (dimensions, shared_bytes) = (launch.dimensions, launch.shared_bytes);
    let function = Arc::clone(function);
    statistics::count_kernel(&function.name);
    let work = |stamp: &Stamp| -> Work {
        let stamp = stamp.clone();
        Box::new(move |timeline| {
            run(&function, dimensions, shared_bytes, &arguments, stamp)?;
            timeline.at += settings().kernel_duration;
            sleep_until(timeline.at);
            Ok(())
        })
    };
    order::submit_after(stream, None, |_, _| (), work).map(|_| ())
}

fn run(
    function: &Function,
    dimensions: [u32; 6],
    shared_bytes: u32,
    arguments: &[Vec<u64>],
    stamp: Stamp,
) -> Outcome {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let Some(kernel) = function.kernel else {
        eprintln!("simcuda: there is no host build of kernel {}", function.name);
        return Err(Error::LAUNCH_FAILED);
    };
    let pointers: Vec<*mut c_void> =
        arguments.iter().map(|words| words.as_ptr().cast_mut().cast()).collect();
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let what = format!("kernel {}", function.name);
    RUNNING.set(Some(Running { stamp, what }));
    memory::open_for_kernel(true);
    (kernel.run)(dimensions.as_ptr(), shared_bytes, pointers.as_ptr());
    memory::open_for_kernel(false);
    RUNNING.set(None);
    Ok(())
}
