//! The model of time.

use std::time::{Duration, Instant};

use crate::common::*;

const BYTES: usize = 4 << 20;
const COPIES: usize = 100;

/// Seconds that the fastest of some runs takes: other processes can only disturb.
fn fastest(run: impl Fn()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..8).map(time).fold(f64::INFINITY, f64::min)
}

/// Copies in turn in two streams.
fn copy_many() {
    enter(0);
    let (target, slot) = (allocate(BYTES), pinned(BYTES));
    let streams = [stream(NON_BLOCKING), stream(NON_BLOCKING)];
    for copy in 0..COPIES {
        upload(target, slot, BYTES, streams[copy % 2]);
        join(streams[(copy + 1) % 2], streams[copy % 2]);
    }
    streams.iter().for_each(|stream| synchronize(*stream));
}

scenario!(copies_have_the_rate_of_the_engine [H2D_GBPS = "2"] {
    let expected = (BYTES * COPIES) as f64 / 2e9;
    let taken = fastest(copy_many);
    assert!((0.99..1.03).contains(&(taken / expected)), "{taken} s, not {expected} s");
    assert_clean();
});

scenario!(small_copies_have_the_latency_of_the_engine [COPY_US = "10"] {
    enter(0);
    let (target, slot, stream) = (allocate(64), pinned(64), stream(NON_BLOCKING));
    let taken = fastest(|| {
        (0..10_000).for_each(|_| upload(target, slot, 64, stream));
        synchronize(stream);
    });
    assert!((0.099..0.11).contains(&taken), "{taken} s, not 0.1 s");
});

scenario!(directions_have_engines_of_their_own [H2D_GBPS = "1", D2H_GBPS = "1"] {
    enter(0);
    let streams = [stream(NON_BLOCKING), stream(NON_BLOCKING)];
    let (targets, slots) = ([allocate(BYTES), allocate(BYTES)], [pinned(BYTES), pinned(BYTES)]);
    let taken = fastest(|| {
        for _ in 0..25 {
            upload(targets[0], slots[0], BYTES, streams[0]);
            let back = slots[1].cast();
            ok(driver!(cuMemcpyDtoHAsync_v2(back, targets[1], BYTES, streams[1])));
        }
        streams.iter().for_each(|stream| synchronize(*stream));
    });
    let expected = (25 * BYTES) as f64 / 1e9;
    assert!((0.99..1.03).contains(&(taken / expected)), "{taken} s, not {expected} s");
});

scenario!(events_tell_the_modelled_time [H2D_GBPS = "1"] {
    enter(0);
    let (target, slot, stream) = (allocate(BYTES), pinned(BYTES), stream(NON_BLOCKING));
    let from = record(stream);
    (0..10).for_each(|_| upload(target, slot, BYTES, stream));
    let to = record(stream);
    synchronize(stream);
    let mut milliseconds = 0.0;
    ok(driver!(cuEventElapsedTime(&raw mut milliseconds, from, to)));
    let expected = (10 * BYTES) as f32 / 1e6;
    assert!((0.99..1.1).contains(&(milliseconds / expected)), "{milliseconds}, not {expected}");
});

scenario!(pinning_takes_time [PIN_MS_PER_GIB = "1024"] {
    enter(0);
    let start = Instant::now();
    pinned(64 << 20);
    assert!(start.elapsed() >= Duration::from_millis(64));
});

scenario!(streams_run_beside_each_other [COPY_US = "50000"] {
    enter(0);
    let (first, second) = (allocate(64), allocate(64));
    let taken = fastest(|| {
        copy(first + 32, first, 32, stream(NON_BLOCKING));
        copy(second + 32, second, 32, stream(NON_BLOCKING));
        ok(driver!(cuCtxSynchronize()));
    });
    assert!((0.05..0.09).contains(&taken), "{taken} s");
});
