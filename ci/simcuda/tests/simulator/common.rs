//! Scenarios in processes of their own, and the driver's calls with less to write.

use std::env;
use std::ffi::c_void;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::ptr::null_mut;

use cuda::{Error, Handle};

/// `CU_STREAM_NON_BLOCKING`.
pub const NON_BLOCKING: u32 = 1;
/// The default stream.
pub const LEGACY: Handle = null_mut();

/// Set in the process of a scenario.
const CHILD: &str = "SIMULATOR_SCENARIO";

/// How a scenario ends.
pub enum End {
    /// As a test that passes.
    Well,
    /// By this signal.
    Signal(i32),
}

/// Defines a test that runs in a process of its own, with the simulator set as it says.
macro_rules! scenario {
    ($name:ident [$($key:ident = $value:literal),*] $body:block) => {
        scenario!($name [$($key = $value),*] ends $crate::common::End::Well, $body);
    };
    ($name:ident [$($key:ident = $value:literal),*] ends $end:expr, $body:block) => {
        #[test]
        fn $name() {
            let name = concat!(module_path!(), "::", stringify!($name));
            let set = [$((concat!("SIMCUDA_", stringify!($key)), $value)),*];
            $crate::common::in_child(name, &set, &$end, || $body);
        }
    };
}
pub(crate) use scenario;

/// Runs the body in a child of this test binary; see [`scenario`].
pub fn in_child(name: &str, set: &[(&str, &str)], end: &End, body: impl FnOnce()) {
    let (_, name) = name.split_once("::").unwrap();
    if env::var_os(CHILD).is_some() {
        return body();
    }
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(CHILD, name);
    for (key, _) in env::vars().filter(|(key, _)| key.starts_with("SIMCUDA_")) {
        command.env_remove(key);
    }
    let output = command.envs(set.iter().copied()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let as_meant = match end {
        End::Well => output.status.success() && said.contains("1 passed"),
        End::Signal(number) => output.status.signal() == Some(*number),
    };
    assert!(as_meant, "{name}: {:?}\n{said}", output.status);
}

/// A call that must succeed.
pub fn ok(code: u32) {
    assert_eq!(code, 0);
}

/// A call that must fail.
pub fn fails(code: u32, error: Error) {
    assert_eq!(Error(code), error);
}

/// Calls entry points: `driver!(cuInit(0))`.
macro_rules! driver {
    ($name:ident($($argument:expr),* $(,)?)) => {
        // SAFETY: the tests pass what the driver's documentation asks for.
        unsafe { cuda::$name($($argument),*) }
    };
}
pub(crate) use driver;

/// Initializes the driver and makes the context of a device current.
pub fn enter(device: i32) {
    ok(driver!(cuInit(0)));
    let mut context = null_mut();
    ok(driver!(cuDevicePrimaryCtxRetain(&raw mut context, device)));
    ok(driver!(cuCtxSetCurrent(context)));
}

/// A new stream.
pub fn stream(flags: u32) -> Handle {
    let mut stream = null_mut();
    ok(driver!(cuStreamCreate(&raw mut stream, flags)));
    stream
}

/// Device memory.
pub fn allocate(bytes: usize) -> u64 {
    let mut address = 0;
    ok(driver!(cuMemAlloc_v2(&raw mut address, bytes)));
    address
}

/// Device memory in stream order.
pub fn allocate_in(stream: Handle, bytes: usize) -> u64 {
    let mut address = 0;
    ok(driver!(cuMemAllocAsync(&raw mut address, bytes, stream)));
    address
}

/// Pinned memory.
pub fn pinned(bytes: usize) -> *mut u8 {
    let mut address = null_mut();
    ok(driver!(cuMemHostAlloc(&raw mut address, bytes, 0)));
    address.cast()
}

/// Fills memory of the host.
pub fn fill(address: *mut u8, value: u8, bytes: usize) {
    // SAFETY: the tests fill what they allocated.
    unsafe { address.write_bytes(value, bytes) };
}

/// Copies from the host.
pub fn upload(to: u64, from: *const u8, bytes: usize, stream: Handle) {
    ok(driver!(cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, stream)));
}

/// Copies on the device.
pub fn copy(to: u64, from: u64, bytes: usize, stream: Handle) {
    ok(driver!(cuMemcpyDtoDAsync_v2(to, from, bytes, stream)));
}

/// Reads device memory when everything is done.
pub fn download(from: u64, bytes: usize) -> Vec<u8> {
    let mut read = vec![0u8; bytes];
    ok(driver!(cuCtxSynchronize()));
    ok(driver!(cuMemcpyDtoH_v2(read.as_mut_ptr().cast::<c_void>(), from, bytes)));
    read
}

/// A new event, recorded.
pub fn record(stream: Handle) -> Handle {
    let mut event = null_mut();
    ok(driver!(cuEventCreate(&raw mut event, 0)));
    ok(driver!(cuEventRecord(event, stream)));
    event
}

/// What a stream does from now on comes after what the other has until now.
pub fn join(stream: Handle, other: Handle) {
    let event = record(other);
    ok(driver!(cuStreamWaitEvent(stream, event, 0)));
    ok(driver!(cuEventDestroy_v2(event)));
}

/// Waits for a stream.
pub fn synchronize(stream: Handle) {
    ok(driver!(cuStreamSynchronize(stream)));
}

/// The statistics as text.
pub fn statistics() -> String {
    // SAFETY: a size of 0 writes nothing.
    let size = unsafe { cuda::control::simcuda_statistics(null_mut(), 0) };
    let mut text = vec![0u8; size + 64];
    // SAFETY: that many bytes can be written.
    let size = unsafe { cuda::control::simcuda_statistics(text.as_mut_ptr().cast(), text.len()) };
    text.truncate(size - 1);
    String::from_utf8(text).unwrap()
}

/// Nothing was out of order.
pub fn assert_clean() {
    let statistics = statistics();
    assert!(statistics.contains("\"violations\":{\"count\":0,"), "{statistics}");
}

/// Exactly one thing was out of order, and the text says this of it.
pub fn assert_violation(text: &str) {
    let statistics = statistics();
    let (_, violations) = statistics.split_once("\"violations\":").unwrap();
    assert!(violations.starts_with("{\"count\":1,"), "{violations}");
    assert!(violations.contains(text), "{violations}");
}
