//! Streams that are being captured.

use std::ptr::null_mut;

use cuda::Error;

use crate::common::*;

const GLOBAL: i32 = 0;
const RELAXED: i32 = 2;

scenario!(captured_work_is_not_done [] {
    enter(0);
    let (target, slot, stream) = (allocate(8), pinned(8), stream(NON_BLOCKING));
    ok(driver!(cuStreamBeginCapture_v2(stream, GLOBAL)));
    upload(target, slot, 8, stream);
    let (mut status, mut graph) = (0, null_mut());
    ok(driver!(cuStreamIsCapturing(stream, &raw mut status)));
    assert_eq!(status, 1);
    ok(driver!(cuStreamEndCapture(stream, &raw mut graph)));
    ok(driver!(cuGraphDestroy(graph)));
    ok(driver!(cuStreamIsCapturing(stream, &raw mut status)));
    assert_eq!(status, 0);
    assert_eq!(download(target, 8), [0xCB; 8]);
    assert_clean();
});

scenario!(waiting_spoils_a_capture [] {
    enter(0);
    let captured = stream(NON_BLOCKING);
    let other = record(stream(NON_BLOCKING));
    ok(driver!(cuStreamBeginCapture_v2(captured, GLOBAL)));
    let event = record(captured);
    fails(driver!(cuEventSynchronize(event)), Error::CAPTURED_EVENT);
    fails(driver!(cuStreamWaitEvent(captured, other, 0)), Error::STREAM_CAPTURE_ISOLATION);
    fails(driver!(cuEventSynchronize(other)), Error::STREAM_CAPTURE_UNSUPPORTED);
    fails(driver!(cuMemAlloc_v2(&mut 0, 8)), Error::STREAM_CAPTURE_UNSUPPORTED);
    fails(driver!(cuStreamSynchronize(captured)), Error::STREAM_CAPTURE_UNSUPPORTED);
    fails(driver!(cuCtxSynchronize()), Error::STREAM_CAPTURE_UNSUPPORTED);
    let mut graph = null_mut();
    let end = driver!(cuStreamEndCapture(captured, &raw mut graph));
    fails(end, Error::STREAM_CAPTURE_INVALIDATED);
    assert!(graph.is_null());
    synchronize(captured);
});

scenario!(a_relaxed_capture_minds_only_itself [] {
    enter(0);
    let (captured, joined) = (stream(NON_BLOCKING), stream(NON_BLOCKING));
    ok(driver!(cuStreamBeginCapture_v2(captured, RELAXED)));
    allocate(8);
    ok(driver!(cuCtxSynchronize()));
    join(joined, captured); // it is captured, too, from now on
    fails(driver!(cuStreamQuery(joined)), Error::STREAM_CAPTURE_UNSUPPORTED);
});

scenario!(the_legacy_stream_cannot_wait_for_a_capture [] {
    enter(0);
    let (target, slot, captured) = (allocate(8), pinned(8), stream(0));
    fails(driver!(cuStreamBeginCapture_v2(LEGACY, GLOBAL)), Error::STREAM_CAPTURE_UNSUPPORTED);
    ok(driver!(cuStreamBeginCapture_v2(captured, GLOBAL)));
    let code = driver!(cuMemcpyHtoDAsync_v2(target, slot.cast(), 8, LEGACY));
    fails(code, Error::STREAM_CAPTURE_IMPLICIT);
});
