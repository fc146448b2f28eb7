//! Streams, and their capture.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

use super::Handle;
use crate::capture::{self, Status};
use crate::clock::Stamp;
use crate::entry::{entry_points, put, put_if_wanted};
use crate::error::{Error, Outcome};
use crate::order::{self, Kind, Stream};
use crate::queue::Work;
use crate::{context, event};

/// A function that runs in a stream.
pub type HostFunction = extern "C" fn(argument: *mut c_void);
/// The older kind of it.
pub type Callback = extern "C" fn(stream: Handle, status: u32, argument: *mut c_void);

const NON_BLOCKING: c_uint = 1;
const PRIORITIES: std::ops::RangeInclusive<c_int> = -5..=0;
/// What captures give: nothing can be done with it but destroy it.
const EMPTY_GRAPH: usize = 0x6A00_0000;

fn create(stream: *mut Handle, flags: c_uint, priority: c_int) -> Outcome {
    let kind = match flags {
        0 => Kind::Blocking,
        NON_BLOCKING => Kind::NonBlocking,
        _ => return Err(Error::INVALID_VALUE),
    };
    let priority = priority.clamp(*PRIORITIES.start(), *PRIORITIES.end());
    put(stream, order::create(kind, priority)? as Handle)
}

/// Runs a function of the program in the stream: it knows what was done before.
fn enqueue_call(stream: &Stream, call: impl FnOnce() + Send + 'static) -> Outcome {
    let work = |stamp: &Stamp| -> Work {
        let mut before = stamp.clone();
        before.sequence -= 1;
        Box::new(move |_| {
            order::host_saw(&before);
            call();
            Ok(())
        })
    };
    order::submit_after(stream, None, |_, _| (), work).map(|_| ())
}

fn put_capture(stream: Handle, status: *mut c_uint, id: *mut u64) -> Outcome {
    let (code, number) = match capture::status(&*resolve(stream)?) {
        Status::None => (0, 0),
        Status::Active(number) => (1, number),
        Status::Invalidated(number) => (2, number),
    };
    put_if_wanted(id, number);
    put(status, code)
}

fn resolve(stream: Handle) -> Outcome<Arc<Stream>> {
    order::resolve(stream as usize)
}

entry_points! {
    /// Makes a stream.
    fn cuStreamCreate(stream: *mut Handle, flags: c_uint) { create(stream, flags, 0) }
    /// Makes a stream with a priority.
    fn cuStreamCreateWithPriority(stream: *mut Handle, flags: c_uint, priority: c_int) {
        create(stream, flags, priority)
    }
    /// Destroys a stream.
    fn cuStreamDestroy_v2(stream: Handle) { order::destroy(stream as usize) }
    /// Its priority.
    fn cuStreamGetPriority(stream: Handle, priority: *mut c_int) {
        put(priority, resolve(stream)?.priority)
    }
    /// Its flags.
    fn cuStreamGetFlags(stream: Handle, flags: *mut c_uint) {
        put(flags, c_uint::from(resolve(stream)?.kind == Kind::NonBlocking))
    }
    /// Its number.
    fn cuStreamGetId(stream: Handle, id: *mut u64) { put(id, resolve(stream)?.index as u64) }
    /// Its context.
    fn cuStreamGetCtx(stream: Handle, handle: *mut Handle) {
        put(handle, context::handle(resolve(stream)?.device) as Handle)
    }
    /// Its device.
    fn cuStreamGetDevice(stream: Handle, device: *mut c_int) {
        put(device, resolve(stream)?.device as c_int)
    }
    /// Waits for all its work.
    fn cuStreamSynchronize(stream: Handle) {
        let stream = resolve(stream)?;
        capture::allow_waiting(&stream)?;
        order::synchronize(&stream)
    }
    /// Is all its work done?
    fn cuStreamQuery(stream: Handle) {
        let stream = resolve(stream)?;
        capture::allow_waiting(&stream)?;
        context::check(stream.device)?;
        if order::is_idle(&stream)? { Ok(()) } else { Err(Error::NOT_READY) }
    }
    /// Its later work comes after an event.
    fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: c_uint) {
        event::resolve(event as usize)?.order_before(&*resolve(stream)?)
    }
    /// Runs a function of the host in it.
    fn cuLaunchHostFunc(stream: Handle, function: Option<HostFunction>, argument: *mut c_void) {
        let function = function.ok_or(Error::INVALID_VALUE)?;
        let argument = argument as usize;
        enqueue_call(&*resolve(stream)?, move || function(argument as *mut c_void))
    }
    /// Runs a function of the host in it, the older way.
    fn cuStreamAddCallback(
        stream: Handle, function: Option<Callback>, argument: *mut c_void, _flags: c_uint,
    ) {
        let function = function.ok_or(Error::INVALID_VALUE)?;
        let (handle, argument) = (stream as usize, argument as usize);
        let call = move || function(handle as Handle, 0, argument as *mut c_void);
        enqueue_call(&*resolve(stream)?, call)
    }
    /// Begins to capture it.
    fn cuStreamBeginCapture_v2(stream: Handle, mode: c_int) { capture::begin(&*resolve(stream)?, mode) }
    /// Ends the capture.
    fn cuStreamEndCapture(stream: Handle, graph: *mut Handle) {
        put(graph, std::ptr::null_mut())?;
        capture::end(&*resolve(stream)?)?;
        put(graph, EMPTY_GRAPH as Handle)
    }
    /// Is it being captured?
    fn cuStreamIsCapturing(stream: Handle, status: *mut c_uint) {
        put_capture(stream, status, std::ptr::null_mut())
    }
    /// Is it being captured, and as what?
    fn cuStreamGetCaptureInfo_v2(
        stream: Handle, status: *mut c_uint, id: *mut u64, graph: *mut Handle,
        dependencies: *mut *const Handle, count: *mut usize,
    ) {
        put_if_wanted(graph, EMPTY_GRAPH as Handle);
        put_if_wanted(dependencies, std::ptr::null());
        put_if_wanted(count, 0);
        put_capture(stream, status, id)
    }
    /// Is it being captured, and as what?
    fn cuStreamGetCaptureInfo_v3(
        stream: Handle, status: *mut c_uint, id: *mut u64, graph: *mut Handle,
        dependencies: *mut *const Handle, edges: *mut *const c_void, count: *mut usize,
    ) {
        put_if_wanted(graph, EMPTY_GRAPH as Handle);
        put_if_wanted(dependencies, std::ptr::null());
        put_if_wanted(edges, std::ptr::null());
        put_if_wanted(count, 0);
        put_capture(stream, status, id)
    }
    /// Exchanges how captures watch this thread.
    fn cuThreadExchangeStreamCaptureMode(mode: *mut c_int) {
        if mode.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: the caller vouches for its pointer.
        let wanted = unsafe { *mode };
        put(mode, capture::exchange_mode(wanted)?)
    }
    /// Destroys what a capture gave.
    fn cuGraphDestroy(graph: Handle) {
        if graph as usize == EMPTY_GRAPH { Ok(()) } else { Err(Error::INVALID_HANDLE) }
    }
}
