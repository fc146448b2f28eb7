//! Modules and kernels.

use std::env;
use std::ffi::{CString, c_void};
use std::fs;
use std::process::Command;
use std::ptr::null_mut;

use cuda::{Error, Handle};

use crate::common::*;

/// `add(target, value, count)` adds to each byte, and tells what it touches.
const SOURCE: &str = r#"
#include <cstddef>
#include <cstdint>
struct SimKernel {
    const char* name; size_t nargs; const size_t* sizes;
    void (*run)(const uint32_t*, uint32_t, void* const*);
};
extern "C" { void (*simcuda_touch)(const void*, size_t, int) = nullptr; }
static void add(const uint32_t*, uint32_t, void* const* args) {
    uint8_t* target = *(uint8_t**)args[0];
    uint32_t value = *(uint32_t*)args[1], count = *(uint32_t*)args[2];
    if (simcuda_touch) simcuda_touch(target, count, 1);
    for (uint32_t i = 0; i < count; i++) target[i] += value;
}
static const size_t sizes[] = {8, 4, 4};
extern "C" const SimKernel* simcuda_kernels(size_t* count) {
    static const SimKernel table[] = {{"add", 3, sizes, add}};
    *count = 1;
    return table;
}
"#;

const PTX: &str = "
.version 7.0
.target sm_75
.address_size 64
.visible .entry add( .param .u64 add_0, // where
    .param .u32 add_1, .param .align 4 .b8 add_2[4] )
{ ret; }
";

fn load(text: &str) -> (u32, Handle) {
    let (text, mut module) = (CString::new(text).unwrap(), null_mut());
    let code = driver!(cuModuleLoadData(&raw mut module, text.as_ptr().cast()));
    (code, module)
}

/// Builds the kernels and makes this process use them; before its first call of the driver.
fn use_kernels(name: &str) {
    let base = env::temp_dir().join(format!("simcuda-{}-{name}", std::process::id()));
    let (source, object) = (base.with_extension("cpp"), base.with_extension("so"));
    fs::write(&source, SOURCE).unwrap();
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++17", "-fPIC", "-shared", "-o"]).arg(&object).arg(&source);
    assert!(compiler.status().unwrap().success());
    // SAFETY: the only thread that reads the environment is this one.
    unsafe { env::set_var("SIMCUDA_KERNELS", &object) };
    enter(0);
    let function = find(load(PTX).1);
    launch(function, allocate(8), 0, 8, LEGACY); // loads the object
    ok(driver!(cuCtxSynchronize()));
    fs::remove_file(source).unwrap();
    fs::remove_file(object).unwrap();
}

fn find(module: Handle) -> Handle {
    let mut function = null_mut();
    ok(driver!(cuModuleGetFunction(&raw mut function, module, c"add".as_ptr())));
    function
}

fn launch(function: Handle, mut target: u64, mut value: u32, mut count: u32, stream: Handle) {
    let mut arguments: [*mut c_void; 3] =
        [(&raw mut target).cast(), (&raw mut value).cast(), (&raw mut count).cast()];
    let arguments = arguments.as_mut_ptr();
    ok(driver!(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, arguments, null_mut())));
}

scenario!(kernels_run_in_stream_order [GUARD = "1", JITTER_US = "500", KERNEL_US = "100"] {
    use_kernels("order");
    let function = find(load(PTX).1);
    let (stream, target, slot) = (stream(NON_BLOCKING), allocate(1000), pinned(1000));
    fill(slot, 1, 1000);
    upload(target, slot, 1000, stream);
    launch(function, target, 5, 999, stream);
    launch(function, target, 5, 998, stream);
    let read = download(target, 1000);
    assert_eq!(read[997..], [11, 6, 1]);
    assert_clean();
    assert!(statistics().contains("\"kernels\":{\"add\":3}"), "{}", statistics());
});

scenario!(what_kernels_touch_must_be_ordered [] {
    use_kernels("touch");
    let function = find(load(PTX).1);
    let streams = [stream(NON_BLOCKING), stream(NON_BLOCKING)];
    let (target, slot) = (allocate(1000), pinned(1000));
    upload(target, slot, 1000, streams[0]);
    launch(function, target, 5, 1000, streams[1]);
    ok(driver!(cuCtxSynchronize()));
    assert_violation("kernel add on stream");
});

scenario!(kernels_touch_only_what_a_device_sees [RACECHECK = "1"] {
    use_kernels("host");
    let function = find(load(PTX).1);
    let (stream, slot, mut memory) = (stream(NON_BLOCKING), pinned(1000), vec![0u8; 1000]);
    launch(function, slot as u64, 5, 1000, stream);
    synchronize(stream);
    assert_clean();
    launch(function, memory.as_mut_ptr() as u64, 5, 1000, stream);
    synchronize(stream);
    assert_violation("which no device sees");
});

scenario!(work_behind_a_kernel_may_be_enqueued_before_it_runs [JITTER_US = "2000"] {
    use_kernels("behind");
    let function = find(load(PTX).1);
    let streams = [stream(NON_BLOCKING), stream(NON_BLOCKING)];
    let (target, slot) = (allocate(1000), pinned(1000));
    for _ in 0..20 {
        launch(function, target, 5, 1000, streams[0]);
        join(streams[1], streams[0]);
        upload(target, slot, 1000, streams[1]);
        join(streams[0], streams[1]);
    }
    ok(driver!(cuCtxSynchronize()));
    assert_clean();
});

scenario!(a_kernel_without_a_host_build_breaks_the_context [] {
    enter(0);
    launch(find(load(PTX).1), allocate(8), 0, 8, LEGACY);
    fails(driver!(cuCtxSynchronize()), Error::LAUNCH_FAILED);
});

const CUBINS: [&[u8]; 5] = [
    include_bytes!("../../../../kernels/loader.sm_75.cubin"),
    include_bytes!("../../../../kernels/loader.sm_80.cubin"),
    include_bytes!("../../../../kernels/loader.sm_90.cubin"),
    include_bytes!("../../../../kernels/loader.sm_100.cubin"),
    include_bytes!("../../../../kernels/loader.sm_120.cubin"),
];

/// Which of the cubins this device and driver take, of 7.5, 8.0, 9.0, 10.0, 12.0.
fn taken() -> [bool; 5] {
    enter(0);
    CUBINS.map(|cubin| {
        let mut module = null_mut();
        let code = driver!(cuModuleLoadData(&raw mut module, cubin.as_ptr().cast()));
        if Error(code) == Error::NO_BINARY_FOR_GPU {
            return false;
        }
        ok(code);
        ok(driver!(cuModuleGetFunction(&mut null_mut(), module, c"scatter".as_ptr())));
        true
    })
}

/// What comes of the machine code for 9.0 with some of its bytes changed.
fn changed(at: usize, bytes: &[u8]) -> Error {
    let mut cubin = CUBINS[2].to_vec();
    assert_ne!(&cubin[at..at + bytes.len()], bytes);
    cubin[at..at + bytes.len()].copy_from_slice(bytes);
    Error(driver!(cuModuleLoadData(&mut null_mut(), cubin.as_ptr().cast())))
}

scenario!(machine_code_that_is_damaged [CC = "90"] {
    enter(0);
    let table = usize::try_from(u64::from_le_bytes(CUBINS[2][40..48].try_into().unwrap())).unwrap();
    for (at, bytes) in [
        (4, &[1][..]),                          // 32 bits
        (5, &[2]),                              // high bytes first
        (8, &[9]),                              // another ABI
        (16, &[1]),                             // to be linked
        (18, &[62]),                            // for a processor
        (40, &(1_u64 << 48).to_le_bytes()),     // where the sections' table is
        (40, &u64::MAX.to_le_bytes()),
        (58, &[1]),                             // a section's entry
        (62, &[0xFF, 0xFF]),                    // where the names are
        (table + 64 + 32, &[0xFF; 8]),          // bytes of the first section
    ] {
        assert_eq!(changed(at, bytes), Error::INVALID_IMAGE, "{at} {bytes:?}");
    }
    assert_eq!(changed(48, &[80]), Error::NO_BINARY_FOR_GPU);
});

scenario!(machine_code_with_features_of_one_architecture [CC = "91"] {
    enter(0);
    assert_eq!(changed(49, &[CUBINS[2][49] | 0x08]), Error::NO_BINARY_FOR_GPU);
    assert_eq!(taken(), [false, false, true, false, false]);
});

scenario!(machine_code_for_what_is_in_one_chip_with_a_processor [CC = "87"] {
    assert_eq!(taken(), [false; 5]);
});

scenario!(ptx_that_may_not_be_compiled [] {
    // SAFETY: the only thread that reads the environment is this one.
    unsafe { env::set_var("CUDA_DISABLE_PTX_JIT", "1") };
    enter(0);
    assert_eq!(Error(load(PTX).0), Error::JIT_COMPILATION_DISABLED);
    assert_eq!(taken(), [false, false, true, false, false]);
});

scenario!(machine_code_runs_on_its_own_major_architecture [CC = "89"] {
    assert_eq!(taken(), [false, true, false, false, false]);
    assert!(statistics().contains("\"modules\":{\"cubin\":1}"), "{}", statistics());
});

scenario!(machine_code_of_a_newer_architecture [CC = "120"] {
    assert_eq!(taken(), [false, false, false, false, true]);
});

scenario!(machine_code_is_not_for_lesser_devices [CC = "72"] {
    assert_eq!(taken(), [false; 5]);
});

scenario!(machine_code_can_be_too_new_for_a_driver [CC = "80", DRIVER = "11080"] {
    assert_eq!(taken(), [false; 5]);
});

scenario!(ptx_can_be_too_new [DRIVER = "12080", CC = "80"] {
    enter(0);
    let variant = |from: &str, to: &str| Error(load(&PTX.replace(from, to)).0);
    assert_eq!(variant("7.0", "8.7"), Error(0));
    assert_eq!(variant("7.0", "8.8"), Error::UNSUPPORTED_PTX_VERSION);
    assert_eq!(variant("sm_75", "sm_90a"), Error::NO_BINARY_FOR_GPU);
    assert_eq!(variant(".version", ".vers"), Error::INVALID_IMAGE);
    let (code, module) = load(PTX);
    ok(code);
    let code = driver!(cuModuleGetFunction(&mut null_mut(), module, c"other".as_ptr()));
    fails(code, Error::NOT_FOUND);
    ok(driver!(cuModuleUnload(module)));
    fails(driver!(cuModuleUnload(module)), Error::INVALID_HANDLE);
});
