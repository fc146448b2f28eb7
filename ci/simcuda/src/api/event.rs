//! Events.

use std::ffi::c_uint;

use super::Handle;
use crate::entry::{entry_points, put};
use crate::error::Outcome;
use crate::{event, order};

fn record(event: Handle, stream: Handle) -> Outcome {
    event::resolve(event as usize)?.record(&order::resolve(stream as usize)?)
}

fn put_elapsed(milliseconds: *mut f32, from: Handle, to: Handle) -> Outcome {
    put(milliseconds, event::elapsed(from as usize, to as usize)?)
}

entry_points! {
    /// Makes an event.
    fn cuEventCreate(event: *mut Handle, flags: c_uint) { put(event, event::create(flags)? as Handle) }
    /// Destroys it.
    fn cuEventDestroy_v2(event: Handle) { event::destroy(event as usize) }
    /// Marks what a stream has until now.
    fn cuEventRecord(event: Handle, stream: Handle) { record(event, stream) }
    /// Marks what a stream has until now.
    fn cuEventRecordWithFlags(event: Handle, stream: Handle, _flags: c_uint) { record(event, stream) }
    /// Is that done?
    fn cuEventQuery(event: Handle) { event::resolve(event as usize)?.query() }
    /// Waits until it is.
    fn cuEventSynchronize(event: Handle) { event::resolve(event as usize)?.synchronize() }
    /// Time between two events.
    fn cuEventElapsedTime(milliseconds: *mut f32, from: Handle, to: Handle) {
        put_elapsed(milliseconds, from, to)
    }
    /// Time between two events.
    fn cuEventElapsedTime_v2(milliseconds: *mut f32, from: Handle, to: Handle) {
        put_elapsed(milliseconds, from, to)
    }
}
