//! Memory of devices and of the host: limits, addresses, who may touch it.

use std::ffi::{c_int, c_uint};
use std::ptr::null_mut;

use cuda::Error;

use crate::common::*;

const MIB: usize = 1 << 20;

scenario!(a_device_has_so_much_memory [MEM = "4194304"] {
    enter(0);
    let first = allocate(3 * MIB);
    let mut address = 1;
    fails(driver!(cuMemAlloc_v2(&raw mut address, 2 * MIB)), Error::OUT_OF_MEMORY);
    assert_eq!(address, 0);
    let (mut free, mut total) = (0, 0);
    ok(driver!(cuMemGetInfo_v2(&raw mut free, &raw mut total)));
    assert_eq!((free, total), (MIB, 4 * MIB));
    ok(driver!(cuMemFree_v2(first)));
    fails(driver!(cuMemFree_v2(first)), Error::INVALID_VALUE);
    let stream = stream(NON_BLOCKING);
    let second = allocate_in(stream, 3 * MIB);
    assert_ne!(first, second);
    ok(driver!(cuMemFreeAsync(second, stream)));
    allocate_in(stream, 3 * MIB); // waits for what is being freed
    assert!(statistics().contains("\"peak_bytes\":3145728}]"));
    assert_clean();
});

scenario!(free_takes_memory_of_both_kinds [] {
    enter(0);
    let stream = stream(NON_BLOCKING);
    let target = allocate_in(stream, MIB);
    upload(target, pinned(MIB), MIB, stream);
    synchronize(stream);
    ok(driver!(cuMemFree_v2(target)));
    let target = allocate(MIB);
    upload(target, pinned(MIB), MIB, stream);
    ok(driver!(cuMemFree_v2(target))); // this kind waits for the device
    assert_clean();
});

scenario!(so_much_can_be_pinned [PINNED_MAX = "2097152"] {
    enter(0);
    let first = pinned(MIB);
    let mut address = null_mut();
    fails(driver!(cuMemHostAlloc(&raw mut address, 2 * MIB, 0)), Error::OUT_OF_MEMORY);
    let mut memory = vec![0u8; 2 * MIB];
    let start = memory.as_mut_ptr().cast();
    fails(driver!(cuMemHostRegister_v2(start, 2 * MIB, 0)), Error::OUT_OF_MEMORY);
    fails(driver!(cuMemHostRegister_v2(start, MIB, 8)), Error::NOT_SUPPORTED);
    ok(driver!(cuMemHostRegister_v2(start, MIB, 0)));
    let again = driver!(cuMemHostRegister_v2(start.wrapping_byte_add(MIB - 1), MIB, 0));
    fails(again, Error::HOST_MEMORY_ALREADY_REGISTERED);
    fails(driver!(cuMemFreeHost(start)), Error::INVALID_VALUE);
    ok(driver!(cuMemHostUnregister(start)));
    fails(driver!(cuMemHostUnregister(start)), Error::HOST_MEMORY_NOT_REGISTERED);
    ok(driver!(cuMemFreeHost(first.cast())));
    assert!(statistics().contains("\"pinned\":{\"live\":0,\"live_bytes\":0,\"peak_bytes\":2097152}"));
});

scenario!(fresh_memory_is_poison [] {
    enter(0);
    assert_eq!(download(allocate(MIB), MIB), vec![0xCB; MIB]);
});

scenario!(benchmarks_do_without_poison [POISON = "0"] {
    enter(0);
    assert_eq!(download(allocate(MIB), MIB), vec![0; MIB]);
});

/// Touches device memory as only a device may.
fn touch_device_memory() {
    enter(0);
    let target = allocate(MIB);
    // SAFETY: none; that is the point.
    unsafe { (target as *mut u8).write_volatile(1) };
}

scenario!(the_host_may_not_touch_device_memory [GUARD = "1"] ends End::Signal(libc::SIGSEGV), {
    touch_device_memory();
});

scenario!(freed_memory_is_gone [] ends End::Signal(libc::SIGSEGV), {
    enter(0);
    let target = allocate(MIB);
    ok(driver!(cuMemFree_v2(target)));
    // SAFETY: none; that is the point.
    unsafe { (target as *mut u8).write_volatile(1) };
});

scenario!(the_first_violation_can_abort [ABORT = "1"] ends End::Signal(libc::SIGABRT), {
    enter(0);
    upload(allocate(MIB), pinned(MIB), MIB, stream(NON_BLOCKING));
    let memory = allocate(MIB);
    copy(memory, memory + 1, MIB, LEGACY);
});

scenario!(a_copy_must_be_inside_an_allocation [] {
    enter(0);
    let (target, slot) = (allocate(MIB), pinned(2 * MIB));
    let code = driver!(cuMemcpyHtoDAsync_v2(target + 1, slot.cast(), MIB, LEGACY));
    fails(code, Error::INVALID_VALUE);
    assert_violation("is not inside a live allocation");
});

scenario!(copies_of_pageable_memory_are_counted [COPY_US = "1000"] {
    enter(0);
    let stream = stream(NON_BLOCKING);
    for bytes in [1000, MIB] {
        let (target, mut memory) = (allocate(bytes), vec![1u8; bytes]);
        upload(target, memory.as_ptr(), bytes, stream);
        memory.fill(2); // the source was read
        assert_eq!(download(target, bytes), vec![1; bytes]);
        ok(driver!(cuMemcpyDtoHAsync_v2(memory.as_mut_ptr().cast(), target, bytes, stream)));
        assert_eq!(memory, vec![1; bytes]); // and the target is there
    }
    assert!(statistics().contains("\"pageable\":{\"copies\":6,"), "{}", statistics());
    assert_clean();
});

scenario!(an_address_tells_what_it_is [DEVICES = "2"] {
    enter(1);
    let (target, slot, mut kind, mut device) = (allocate(MIB), pinned(MIB), 0 as c_uint, 0 as c_int);
    let kind_at = (&raw mut kind).cast();
    ok(driver!(cuPointerGetAttribute(kind_at, 2, target + 5)));
    ok(driver!(cuPointerGetAttribute((&raw mut device).cast(), 9, target)));
    assert_eq!((kind, device), (2, 1));
    ok(driver!(cuPointerGetAttribute(kind_at, 2, slot as u64)));
    assert_eq!(kind, 1);
    fails(driver!(cuPointerGetAttribute(kind_at, 2, kind_at as u64)), Error::INVALID_VALUE);
    ok(driver!(cuPointerGetAttributes(1, &raw const ATTRIBUTE, &raw const kind_at, kind_at as u64)));
    assert_eq!(kind, 0);
});

/// `CU_POINTER_ATTRIBUTE_MEMORY_TYPE`.
static ATTRIBUTE: c_int = 2;

scenario!(devices_have_memory_of_their_own [DEVICES = "2", MEM = "1048576"] {
    enter(0);
    let first = allocate(MIB);
    enter(1);
    let second = allocate(MIB);
    fails(driver!(cuMemAlloc_v2(&mut 0, 1)), Error::OUT_OF_MEMORY);
    copy(second, first, MIB, LEGACY);
    ok(driver!(cuCtxSynchronize()));
    let mut count = 0;
    ok(driver!(cuDeviceGetCount(&raw mut count)));
    assert_eq!(count, 2);
    fails(driver!(cuDeviceGet(&raw mut count, 2)), Error::INVALID_DEVICE);
    assert_clean();
});
