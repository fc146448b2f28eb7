//! Modules: PTX text or machine code, read for its entries and the sizes of their parameters.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CStr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::cubin;
use crate::error::{Error, Outcome};
use crate::kernel::{self, Kernel};
use crate::settings::settings;
use crate::statistics;

/// A function of a module.
pub(crate) struct Function {
    /// The name of its entry.
    pub(crate) name: String,
    /// Bytes of each parameter.
    pub(crate) sizes: Vec<usize>,
    /// The host build of it, if there is one.
    pub(crate) kernel: Option<Kernel>,
}

#[derive(Default)]
struct Modules {
    created: usize,
    entries: BTreeMap<usize, HashMap<String, Vec<usize>>>,
    /// By handle, with the module.
    functions: HashMap<usize, (usize, Arc<Function>)>,
}

const FIRST_HANDLE: usize = 0x7A00_0000;
const HANDLE_STEP: usize = 16;
const FAT_BINARY: [u8; 4] = [0x50, 0xED, 0x55, 0xBA];

fn modules() -> MutexGuard<'static, Modules> {
    static MODULES: OnceLock<Mutex<Modules>> = OnceLock::new();
    MODULES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

impl Modules {
    fn handle(&mut self) -> usize {
        self.created += 1;
        FIRST_HANDLE + HANDLE_STEP * self.created
    }
}

/// Loads an image.
///
/// # Safety
/// `image` must point to an ELF file, to another binary of at least four bytes, or to a string that ends
/// with a zero.
pub(crate) unsafe fn load(image: *const u8) -> Outcome<usize> {
    if image.is_null() {
        return Err(Error::INVALID_VALUE);
    }
    // SAFETY: as above.
    let first = unsafe { CStr::from_ptr(image.cast()) };
    let entries = if first.to_bytes().starts_with(&cubin::MAGIC) {
        // SAFETY: as above.
        let file = unsafe { cubin::file(image) }?;
        let entries = cubin::entries(file)?;
        statistics::count_module("cubin");
        entries
    } else if first.to_bytes().starts_with(&FAT_BINARY) {
        return Err(Error::NO_BINARY_FOR_GPU);
    } else {
        let text = first.to_str().map_err(|_| Error::INVALID_IMAGE)?;
        check_header(text)?;
        statistics::count_module("ptx");
        entries(text)
    };
    let mut modules = modules();
    let handle = modules.handle();
    modules.entries.insert(handle, entries);
    Ok(handle)
}

/// Unloads a module; its functions go with it.
pub(crate) fn unload(module: usize) -> Outcome {
    let mut modules = modules();
    modules.entries.remove(&module).ok_or(Error::INVALID_HANDLE)?;
    modules.functions.retain(|_, (owner, _)| *owner != module);
    Ok(())
}

/// A function by its name.
pub(crate) fn find(module: usize, name: &str) -> Outcome<usize> {
    let mut modules = modules();
    let entries = modules.entries.get(&module).ok_or(Error::INVALID_HANDLE)?;
    let sizes = entries.get(name).cloned().ok_or(Error::NOT_FOUND)?;
    let kernel = kernel::find(name);
    if let Some(kernel) = &kernel
        && kernel.sizes() != sizes
    {
        let built = kernel.sizes();
        eprintln!("simcuda: parameters of {name}: module {sizes:?}, host build {built:?}");
        std::process::abort();
    }
    let handle = modules.handle();
    let function = Arc::new(Function { name: name.to_string(), sizes, kernel });
    modules.functions.insert(handle, (module, function));
    Ok(handle)
}

/// The function of a handle.
pub(crate) fn function(handle: usize) -> Outcome<Arc<Function>> {
    let modules = modules();
    modules
        .functions
        .get(&handle)
        .map(|(_, function)| Arc::clone(function))
        .ok_or(Error::INVALID_HANDLE)
}

/// Version and target must be such that driver and device take them.
fn check_header(text: &str) -> Outcome {
    let directive = |name: &str| {
        let lines = text.lines().map(str::trim);
        lines.filter_map(|line| line.strip_prefix(name)).map(str::trim).next()
    };
    if !settings().compiles {
        return Err(Error::JIT_COMPILATION_DISABLED);
    }
    let version = directive(".version ").ok_or(Error::INVALID_IMAGE)?;
    let (major, minor) = version.split_once('.').ok_or(Error::INVALID_PTX)?;
    let version = (number(major)?, number(minor)?);
    if version > newest_version(settings().driver_version) {
        return Err(Error::UNSUPPORTED_PTX_VERSION);
    }
    let target = directive(".target ").ok_or(Error::INVALID_PTX)?;
    let target = target.split(',').next().unwrap_or_default().trim();
    let digits = target.strip_prefix("sm_").ok_or(Error::INVALID_PTX)?;
    let capability = number(digits.trim_end_matches(|last: char| last.is_ascii_alphabetic()))?;
    if capability > settings().compute_capability {
        return Err(Error::NO_BINARY_FOR_GPU);
    }
    Ok(())
}

fn number(text: &str) -> Outcome<i32> {
    let digits: String = text.trim().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().map_err(|_| Error::INVALID_PTX)
}

/// The newest PTX that a driver of this CUDA version takes.
fn newest_version(driver: i32) -> (i32, i32) {
    match (driver / 1000, driver % 1000 / 10) {
        (11, minor) => (7, minor),
        (12, minor @ 0..=4) => (8, minor),
        (12, 5 | 6) => (8, 5),
        (12, minor) => (8, minor - 1),
        (_, minor) => (9, minor),
    }
}

/// `.entry NAME(.param .u64 x, .param .align 8 .b8 y[24])` gives NAME: 8, 24.
fn entries(text: &str) -> HashMap<String, Vec<usize>> {
    let without_comments: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .fold(String::with_capacity(text.len()), |text, line| text + line + "\n");
    let heads = without_comments.split(".entry").skip(1);
    let heads = heads.filter_map(|entry| entry.split_once('{').map(|(head, _)| head));
    heads
        .map(|head| {
            let (name, parameters) = head.split_once('(').unwrap_or((head, ""));
            let parameters = parameters.rsplit_once(')').map_or("", |(inside, _)| inside);
            let sizes = parameters.split(".param").skip(1).map(size_of_parameter).collect();
            (name.trim().to_string(), sizes)
        })
        .collect()
}

/// Bytes of `.u64 x`, `.align 8 .b8 y[24]` and the like.
fn size_of_parameter(text: &str) -> usize {
    let count = text.split_once('[').and_then(|(_, rest)| rest.split(']').next());
    let count = count.and_then(|count| count.trim().parse().ok()).unwrap_or(1);
    let bits = text
        .split_whitespace()
        .filter_map(|word| word.strip_prefix('.')?.strip_prefix(['u', 'b', 's', 'f']))
        .find_map(|bits| bits.parse::<usize>().ok())
        .unwrap_or(64);
    bits / 8 * count
}
