//! Calls that fail: because a test wants it, because of the state of the driver.

use std::ptr::null_mut;

use cuda::Error;
use cuda::control::{simcuda_fail, simcuda_fail_from, simcuda_reset};

use crate::common::*;

scenario!(the_nth_call_fails [FAIL = "cuMemAlloc_v2:2:2,cuEventCreate:1:999"] {
    enter(0);
    allocate(1);
    fails(driver!(cuMemAlloc_v2(&mut 0, 1)), Error::OUT_OF_MEMORY);
    allocate(1);
    fails(driver!(cuEventCreate(&mut null_mut(), 0)), Error::UNKNOWN);
    record(LEGACY);
});

scenario!(a_crash_stays [FAIL = "cuMemcpyHtoDAsync_v2:1:700:sticky", DEVICES = "2"] {
    enter(0);
    let (target, slot, stream) = (allocate(8), pinned(8), stream(NON_BLOCKING));
    let code = driver!(cuMemcpyHtoDAsync_v2(target, slot.cast(), 8, stream));
    fails(code, Error::ILLEGAL_ADDRESS);
    fails(driver!(cuStreamSynchronize(stream)), Error::ILLEGAL_ADDRESS);
    fails(driver!(cuCtxSynchronize()), Error::ILLEGAL_ADDRESS);
    fails(driver!(cuMemFree_v2(target)), Error::ILLEGAL_ADDRESS);
    enter(1); // the other device works
    allocate(8);
    // SAFETY: the symbol is a string.
    unsafe { simcuda_fail(c"*".as_ptr(), 0, 0, 0) };
    enter(0);
    ok(driver!(cuMemFree_v2(target)));
});

scenario!(any_call_can_fail [] {
    enter(0);
    // SAFETY: the symbol is a string.
    unsafe { simcuda_fail(c"*".as_ptr(), 2, 719, 0) };
    ok(driver!(cuDriverGetVersion(&mut 0)));
    ok(driver!(cuInit(0)));
    let target = allocate(8);
    fails(driver!(cuMemFree_v2(target)), Error::LAUNCH_FAILED);
    ok(driver!(cuMemFree_v2(target)));
    // SAFETY: the symbol is a string.
    unsafe { simcuda_fail_from(c"cuMemAlloc_v2".as_ptr(), 2, 2) };
    allocate(8);
    for _ in 0..3 {
        fails(driver!(cuMemAlloc_v2(&mut 0, 8)), Error::OUT_OF_MEMORY);
    }
    assert!(statistics().contains("\"cuMemAlloc_v2\":5"));
    simcuda_reset();
    assert!(statistics().starts_with("{\"calls\":{},\"calls_total\":0,"), "{}", statistics());
    assert!(statistics().contains("\"devices\":[{\"live_allocations\":1,\"live_bytes\":8,\"peak_bytes\":8}]"));
});

scenario!(there_can_be_no_device [DEVICES = "0"] {
    fails(driver!(cuInit(0)), Error::NO_DEVICE);
    fails(driver!(cuCtxSynchronize()), Error::NOT_INITIALIZED);
});

scenario!(the_library_can_be_a_stub [STUB = "1"] {
    fails(driver!(cuInit(0)), Error::STUB_LIBRARY);
});

scenario!(a_call_needs_a_context [] {
    ok(driver!(cuInit(0)));
    fails(driver!(cuMemAlloc_v2(&mut 0, 1)), Error::INVALID_CONTEXT);
    enter(0);
    allocate(1);
    ok(driver!(cuDevicePrimaryCtxRelease_v2(0)));
    fails(driver!(cuMemAlloc_v2(&mut 0, 1)), Error::CONTEXT_IS_DESTROYED);
    fails(driver!(cuDevicePrimaryCtxRelease_v2(0)), Error::INVALID_CONTEXT);
});

scenario!(contexts_are_a_stack_of_the_thread [DEVICES = "2"] {
    enter(0);
    let (mut first, mut second, mut popped) = (null_mut(), null_mut(), null_mut());
    ok(driver!(cuCtxGetCurrent(&raw mut first)));
    ok(driver!(cuDevicePrimaryCtxRetain(&raw mut second, 1)));
    ok(driver!(cuCtxPushCurrent_v2(second)));
    let mut device = 0;
    ok(driver!(cuCtxGetDevice(&raw mut device)));
    assert_eq!(device, 1);
    std::thread::spawn(|| {
        fails(driver!(cuCtxSynchronize()), Error::INVALID_CONTEXT);
    })
    .join()
    .unwrap();
    ok(driver!(cuCtxPopCurrent_v2(&raw mut popped)));
    assert_eq!(popped, second);
    ok(driver!(cuCtxGetCurrent(&raw mut popped)));
    assert_eq!(popped, first);
});

/// Forks; the child ends with what it is asked to find out.
fn in_fork(child: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child does nothing but ask and end.
    let process = unsafe { libc::fork() };
    if process == 0 {
        let code = i32::from(!child());
        // SAFETY: as above.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: the process is a child.
    unsafe { libc::waitpid(process, &raw mut status, 0) };
    status == 0
}

scenario!(a_fork_cannot_go_on [] {
    assert!(in_fork(|| driver!(cuInit(0)) == 0));
    enter(0);
    let target = allocate(8);
    assert!(in_fork(|| driver!(cuInit(0)) == 3 && driver!(cuMemFree_v2(target)) == 3));
    ok(driver!(cuMemFree_v2(target)));
});

scenario!(errors_have_names [] {
    let mut text = std::ptr::null();
    ok(driver!(cuGetErrorName(222, &raw mut text)));
    // SAFETY: the driver gives a string.
    let name = unsafe { std::ffi::CStr::from_ptr(text) };
    assert_eq!(name, c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION");
    ok(driver!(cuGetErrorString(2, &raw mut text)));
    // SAFETY: likewise.
    assert_eq!(unsafe { std::ffi::CStr::from_ptr(text) }, c"out of memory");
    fails(driver!(cuGetErrorString(12345, &raw mut text)), Error::INVALID_VALUE);
    assert!(text.is_null());
});
