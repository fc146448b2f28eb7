//! The order that streams, events and waits establish, and work that is outside of it.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::thread;

use cuda::{Error, Handle};

use crate::common::*;

const SLOT: usize = 256 << 10;
const SLOTS: usize = 4;
const CHUNKS: usize = 32;

/// A ring of pinned slots, two streams that take turns, and what comes out. `waits`: a slot is used
/// again only when its copy is done.
fn run_pipeline(waits: bool) -> Vec<u8> {
    enter(0);
    let streams = [stream(NON_BLOCKING), stream(NON_BLOCKING)];
    let ring: Vec<*mut u8> = (0..SLOTS).map(|_| pinned(SLOT)).collect();
    let target = allocate_in(streams[0], SLOT * CHUNKS);
    join(streams[1], streams[0]);
    let mut done = [null_mut(); SLOTS];
    for chunk in 0..CHUNKS {
        let slot = chunk % SLOTS;
        if waits && chunk >= SLOTS {
            ok(driver!(cuEventSynchronize(done[slot])));
        }
        fill(ring[slot], chunk as u8, SLOT);
        upload(target + (chunk * SLOT) as u64, ring[slot], SLOT, streams[chunk % 2]);
        done[slot] = record(streams[chunk % 2]);
    }
    join(streams[0], streams[1]);
    synchronize(streams[0]);
    let read = download(target, SLOT * CHUNKS);
    ok(driver!(cuMemFreeAsync(target, streams[0])));
    synchronize(streams[0]);
    ring.iter().for_each(|slot| ok(driver!(cuMemFreeHost(slot.cast()))));
    read
}

fn wrong_chunks(read: &[u8]) -> usize {
    let wrong = |(chunk, bytes): &(usize, &[u8])| bytes.iter().any(|byte| *byte != *chunk as u8);
    read.chunks(SLOT).enumerate().filter(wrong).count()
}

scenario!(a_pipeline_is_right [H2D_GBPS = "4", JITTER_US = "200", RACECHECK = "1", GUARD = "1"] {
    assert_eq!(wrong_chunks(&run_pipeline(true)), 0);
    assert_clean();
    let statistics = statistics();
    for part in ["\"live_allocations\":0,", "\"live\":0,", "\"h2d\":{\"copies\":32,\"bytes\":8388608}"] {
        assert!(statistics.contains(part), "{part}: {statistics}");
    }
});

scenario!(a_slot_used_too_early_gives_wrong_bytes [H2D_GBPS = "1"] {
    assert!(wrong_chunks(&run_pipeline(false)) > 0);
});

scenario!(a_slot_used_too_early_is_caught [RACECHECK = "1"] {
    enter(0);
    let (target, slot, stream) = (allocate(SLOT), pinned(SLOT), stream(NON_BLOCKING));
    fill(slot, 1, SLOT);
    upload(target, slot, SLOT, stream);
    // However fast the copy was: the host does not know that it is done.
    while !is_done(target) {
        thread::yield_now();
    }
    fill(slot, 2, SLOT);
    synchronize(stream);
    assert_violation("changed before the copy was known to be done");
});

/// Did the copy run? Asked by looking into the memory, as no program can.
fn is_done(target: u64) -> bool {
    // SAFETY: without `SIMCUDA_GUARD` device memory is memory of this process.
    unsafe { (target as *const u8).add(SLOT - 1).read_volatile() == 1 }
}

scenario!(memory_handed_over_too_early_is_caught [] {
    enter(0);
    let (producer, consumer) = (stream(NON_BLOCKING), stream(NON_BLOCKING));
    let (target, result, slot) = (allocate(SLOT), allocate(SLOT), pinned(SLOT));
    upload(target, slot, SLOT, producer);
    copy(result, target, SLOT, consumer);
    assert_violation("reads");
    ok(driver!(cuCtxSynchronize()));
});

scenario!(memory_handed_over_too_early_is_poison [COPY_US = "100000"] {
    enter(0);
    let (target, slot, stream) = (allocate(SLOT), pinned(SLOT), stream(NON_BLOCKING));
    fill(slot, 1, SLOT);
    upload(target, slot, SLOT, stream);
    // SAFETY: without `SIMCUDA_GUARD` device memory is memory of this process.
    assert_eq!(unsafe { (target as *const u8).read_volatile() }, 0xCB);
    synchronize(stream);
    assert_eq!(download(target, 1), [1]);
    assert_clean();
});

scenario!(two_writers_without_a_join_are_caught [] {
    enter(0);
    let streams = [stream(NON_BLOCKING), stream(NON_BLOCKING)];
    let (target, slot) = (allocate(SLOT), pinned(SLOT));
    upload(target, slot, SLOT / 2, streams[0]);
    upload(target + SLOT as u64 / 2, slot, SLOT / 2, streams[1]);
    assert_clean(); // they touch, but do not overlap
    upload(target + SLOT as u64 / 2 - 1, slot, 1, streams[1]);
    assert_violation("not ordered after a write");
});

scenario!(a_write_under_a_read_is_caught [] {
    enter(0);
    let streams = [stream(NON_BLOCKING), stream(NON_BLOCKING)];
    let (target, result, slot) = (allocate(SLOT), allocate(SLOT), pinned(SLOT));
    copy(result, target, SLOT, streams[0]);
    upload(target, slot, 1, streams[1]);
    assert_violation("not ordered after a read");
});

scenario!(an_allocation_of_another_stream_needs_a_join [] {
    enter(0);
    let streams = [stream(NON_BLOCKING), stream(NON_BLOCKING)];
    let slot = pinned(SLOT);
    let joined = allocate_in(streams[0], SLOT);
    join(streams[1], streams[0]);
    upload(joined, slot, SLOT, streams[1]);
    assert_clean();
    let target = allocate_in(streams[0], SLOT);
    upload(target, slot, SLOT, streams[1]);
    assert_violation("not ordered after the allocation");
});

scenario!(memory_freed_too_early_is_caught [] {
    enter(0);
    let streams = [stream(NON_BLOCKING), stream(NON_BLOCKING)];
    let (slot, target) = (pinned(SLOT), allocate_in(streams[0], SLOT));
    upload(target, slot, SLOT, streams[0]);
    ok(driver!(cuMemFreeAsync(target, streams[1])));
    let statistics = statistics();
    assert!(statistics.contains("is not ordered after its allocation"), "{statistics}");
    assert!(statistics.contains("is not ordered after a write"), "{statistics}");
});

scenario!(stream_ordered_memory_freed_by_the_host_under_a_copy_is_caught [] {
    enter(0);
    let stream = stream(NON_BLOCKING);
    let (slot, target) = (pinned(SLOT), allocate_in(stream, SLOT));
    upload(target, slot, SLOT, stream);
    ok(driver!(cuMemFree_v2(target)));
    assert_violation("does not know that a write");
});

scenario!(stream_ordered_memory_freed_by_the_host_after_a_wait_is_right [] {
    enter(0);
    let stream = stream(NON_BLOCKING);
    let (slot, target) = (pinned(SLOT), allocate_in(stream, SLOT));
    upload(target, slot, SLOT, stream);
    ok(driver!(cuCtxSynchronize()));
    ok(driver!(cuMemFree_v2(target)));
    assert_clean();
});

scenario!(memory_used_after_its_release_is_caught [] {
    enter(0);
    let (first, second) = (stream(NON_BLOCKING), stream(NON_BLOCKING));
    let (slot, target) = (pinned(SLOT), allocate_in(first, SLOT));
    synchronize(first);
    // The release waits behind a function, so that the addresses are still there.
    ok(driver!(cuLaunchHostFunc(first, Some(wait_for_gate), null_mut())));
    ok(driver!(cuMemFreeAsync(target, first)));
    upload(target, slot, SLOT, second);
    assert_violation("which was released");
    GATE.store(true, std::sync::atomic::Ordering::SeqCst);
});

static GATE: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

extern "C" fn wait_for_gate(_: *mut c_void) {
    while !GATE.load(std::sync::atomic::Ordering::SeqCst) {
        thread::yield_now();
    }
}

scenario!(pinned_memory_freed_too_early_is_caught [] {
    enter(0);
    let (target, slot, stream) = (allocate(SLOT), pinned(SLOT), stream(NON_BLOCKING));
    upload(target, slot, SLOT, stream);
    ok(driver!(cuMemFreeHost(slot.cast())));
    assert_violation("was freed with a read pending");
    synchronize(stream);
});

scenario!(memory_unpinned_too_early_is_caught [] {
    enter(0);
    let (target, stream) = (allocate(SLOT), stream(NON_BLOCKING));
    let mut memory = vec![0u8; SLOT];
    ok(driver!(cuMemHostRegister_v2(memory.as_mut_ptr().cast(), SLOT, 0)));
    ok(driver!(cuMemcpyDtoHAsync_v2(memory.as_mut_ptr().cast(), target, SLOT, stream)));
    ok(driver!(cuMemHostUnregister(memory.as_mut_ptr().cast())));
    assert_violation("was unregistered with a write pending");
    synchronize(stream);
});

scenario!(the_host_orders_by_waiting [RACECHECK = "1"] {
    enter(0);
    let streams = [stream(NON_BLOCKING), stream(NON_BLOCKING)];
    let (target, slot) = (allocate(SLOT), pinned(SLOT));
    upload(target, slot, SLOT, streams[0]);
    synchronize(streams[0]);
    fill(slot, 2, SLOT);
    upload(target, slot, SLOT, streams[1]);
    let event = record(streams[1]);
    loop {
        match driver!(cuEventQuery(event)) {
            600 => thread::yield_now(),
            code => break ok(code),
        }
    }
    fill(slot, 3, SLOT);
    upload(target, slot, SLOT, streams[0]);
    while driver!(cuStreamQuery(streams[0])) == 600 {
        thread::yield_now();
    }
    upload(target, slot, SLOT, streams[1]);
    ok(driver!(cuCtxSynchronize()));
    ok(driver!(cuMemFreeHost(slot.cast())));
    assert_clean();
});

scenario!(a_function_of_the_host_knows_what_was_done [RACECHECK = "1"] {
    extern "C" fn overwrite(slot: *mut c_void) {
        fill(slot.cast(), 9, SLOT);
    }
    enter(0);
    let (target, slot, stream) = (allocate(SLOT), pinned(SLOT), stream(NON_BLOCKING));
    upload(target, slot, SLOT, stream);
    ok(driver!(cuLaunchHostFunc(stream, Some(overwrite), slot.cast())));
    synchronize(stream);
    assert_clean();
});

scenario!(an_event_marks_what_was_there_when_it_was_recorded [] {
    enter(0);
    let streams = [stream(NON_BLOCKING), stream(NON_BLOCKING)];
    let (target, slot) = (allocate(SLOT), pinned(SLOT));
    let event = record(streams[0]);
    upload(target, slot, SLOT, streams[0]);
    ok(driver!(cuStreamWaitEvent(streams[1], event, 0)));
    upload(target, slot, SLOT, streams[1]);
    assert_violation("not ordered after a write");
});

scenario!(destroyed_streams_and_events_keep_their_order [] {
    enter(0);
    let (target, slot) = (allocate(SLOT), pinned(SLOT));
    let other = stream(NON_BLOCKING);
    for _ in 0..100 {
        let writer: Handle = stream(NON_BLOCKING);
        join(writer, other);
        upload(target, slot, SLOT, writer);
        join(other, writer);
        ok(driver!(cuStreamDestroy_v2(writer)));
    }
    synchronize(other);
    assert_clean();
    let writer = stream(NON_BLOCKING);
    upload(target, slot, SLOT, writer);
    ok(driver!(cuStreamDestroy_v2(writer)));
    fails(driver!(cuStreamSynchronize(writer)), Error::INVALID_HANDLE);
    upload(target, slot, SLOT, stream(NON_BLOCKING));
    assert_violation("not ordered after a write");
});
