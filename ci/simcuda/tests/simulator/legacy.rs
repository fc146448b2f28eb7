//! The default streams.

use std::thread;

use cuda::Handle;

use crate::common::*;

const BYTES: usize = 64 << 10;
const PER_THREAD: Handle = 2 as Handle;

/// Writes in one stream, then in the other.
fn write_in(first: Handle, second: Handle) {
    let (target, slot) = (allocate(BYTES), pinned(BYTES));
    fill(slot, 1, BYTES);
    upload(target, slot, BYTES, first);
    let other = pinned(BYTES);
    fill(other, 2, BYTES);
    upload(target, other, BYTES, second);
    assert_eq!(download(target, BYTES), vec![2; BYTES]);
}

scenario!(the_legacy_stream_waits_for_blocking_ones [COPY_US = "2000", JITTER_US = "500"] {
    enter(0);
    write_in(stream(0), LEGACY);
    assert_clean();
});

scenario!(blocking_streams_wait_for_the_legacy_one [COPY_US = "2000", JITTER_US = "500"] {
    enter(0);
    write_in(LEGACY, stream(0));
    assert_clean();
});

scenario!(the_legacy_stream_joins_blocking_ones [COPY_US = "2000", JITTER_US = "500"] {
    enter(0);
    let (target, slot) = (allocate(BYTES), pinned(BYTES));
    upload(target, slot, BYTES, stream(0));
    ok(driver!(cuMemsetD8Async(allocate(1), 0, 1, LEGACY)));
    upload(target, slot, BYTES, stream(0));
    ok(driver!(cuCtxSynchronize()));
    assert_clean();
});

scenario!(the_legacy_stream_does_not_wait_for_others [] {
    enter(0);
    let (target, slot) = (allocate(BYTES), pinned(BYTES));
    upload(target, slot, BYTES, stream(NON_BLOCKING));
    upload(target, slot, BYTES, LEGACY);
    assert_violation("not ordered after a write");
});

scenario!(others_do_not_wait_for_the_legacy_stream [] {
    enter(0);
    let (target, slot) = (allocate(BYTES), pinned(BYTES));
    upload(target, slot, BYTES, LEGACY);
    upload(target, slot, BYTES, stream(NON_BLOCKING));
    assert_violation("not ordered after a write");
});

scenario!(threads_have_streams_of_their_own [] {
    enter(0);
    let (target, slot) = (allocate(BYTES), pinned(BYTES));
    upload(target, slot, BYTES, PER_THREAD);
    upload(target, slot, BYTES, LEGACY);
    upload(target, slot, BYTES, PER_THREAD);
    assert_clean();
    let slot = slot as usize;
    thread::spawn(move || {
        enter(0);
        upload(target, slot as *const u8, BYTES, PER_THREAD);
    })
    .join()
    .unwrap();
    assert_violation("not ordered after a write");
});
