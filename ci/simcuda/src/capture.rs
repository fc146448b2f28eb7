//! Streams that are being captured: their work is dropped, and calls that capture forbids fail.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};

use crate::error::{Error, Outcome};
use crate::order::{Kind, Stream};

/// `CU_STREAM_CAPTURE_MODE_GLOBAL`: calls of all threads are watched.
const GLOBAL: i32 = 0;
/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`: only calls of the capturing thread.
const THREAD_LOCAL: i32 = 1;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`: none.
const RELAXED: i32 = 2;

/// A capture in progress.
struct Capture {
    mode: i32,
    thread: ThreadId,
    /// Index of the stream in which it began.
    origin: usize,
    device: usize,
    /// Something forbidden happened: it can only be ended.
    invalid: bool,
}

#[derive(Default)]
struct Captures {
    /// By id.
    running: HashMap<u64, Capture>,
    /// The captures of streams, by their index.
    streams: HashMap<usize, u64>,
    begun: u64,
}

/// `CUstreamCaptureStatus`, with the id while there is one.
pub(crate) enum Status {
    /// Not capturing.
    None,
    /// Capturing.
    Active(u64),
    /// Capturing, but something forbidden happened.
    Invalidated(u64),
}

/// Spares calls the lock while nothing is captured.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static THREAD_MODE: Cell<i32> = const { Cell::new(GLOBAL) };
}

fn captures() -> MutexGuard<'static, Captures> {
    static CAPTURES: OnceLock<Mutex<Captures>> = OnceLock::new();
    CAPTURES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

fn nothing_runs() -> bool {
    RUNNING.load(Ordering::SeqCst) == 0
}

/// Begins one.
pub(crate) fn begin(stream: &Stream, mode: i32) -> Outcome {
    if !(GLOBAL..=RELAXED).contains(&mode) {
        return Err(Error::INVALID_VALUE);
    }
    if stream.kind == Kind::Legacy {
        return Err(Error::STREAM_CAPTURE_UNSUPPORTED);
    }
    let mut captures = captures();
    if captures.streams.contains_key(&stream.index) {
        return Err(Error::ILLEGAL_STATE);
    }
    captures.begun += 1;
    let id = captures.begun;
    let thread = thread::current().id();
    let capture =
        Capture { mode, thread, origin: stream.index, device: stream.device, invalid: false };
    captures.running.insert(id, capture);
    captures.streams.insert(stream.index, id);
    RUNNING.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

/// Ends the one that began in this stream.
pub(crate) fn end(stream: &Stream) -> Outcome {
    let mut captures = captures();
    let id = *captures.streams.get(&stream.index).ok_or(Error::ILLEGAL_STATE)?;
    let capture = captures.running.get(&id).ok_or(Error::ILLEGAL_STATE)?;
    if capture.origin != stream.index {
        return Err(Error::STREAM_CAPTURE_UNMATCHED);
    }
    if capture.mode != RELAXED && capture.thread != thread::current().id() {
        return Err(Error::STREAM_CAPTURE_WRONG_THREAD);
    }
    let invalid = capture.invalid;
    captures.running.remove(&id);
    captures.streams.retain(|_, other| *other != id);
    RUNNING.fetch_sub(1, Ordering::SeqCst);
    if invalid { Err(Error::STREAM_CAPTURE_INVALIDATED) } else { Ok(()) }
}

/// How it stands with a stream.
pub(crate) fn status(stream: &Stream) -> Status {
    if nothing_runs() {
        return Status::None;
    }
    let captures = captures();
    match captures.streams.get(&stream.index) {
        None => Status::None,
        Some(id) if captures.running.get(id).is_some_and(|capture| capture.invalid) => {
            Status::Invalidated(*id)
        }
        Some(id) => Status::Active(*id),
    }
}

/// Does a capture take the work of this stream?
pub(crate) fn takes(stream: &Stream) -> Outcome<bool> {
    match status(stream) {
        Status::Active(_) => Ok(true),
        Status::Invalidated(_) => Err(Error::STREAM_CAPTURE_INVALIDATED),
        Status::None if stream.kind == Kind::Legacy && !nothing_runs() => {
            // It would have to wait for streams that do no work now.
            invalidate(|capture| capture.device == stream.device && capture.mode != RELAXED)
                .map_or(Ok(false), |()| Err(Error::STREAM_CAPTURE_IMPLICIT))
        }
        Status::None => Ok(false),
    }
}

/// A stream waits for an event that was recorded in a capture: it joins.
pub(crate) fn join(stream: &Stream, id: u64) -> Outcome {
    let mut captures = captures();
    if !captures.running.contains_key(&id) {
        return Err(Error::STREAM_CAPTURE_ISOLATION);
    }
    match captures.streams.insert(stream.index, id) {
        Some(other) if other != id => Err(Error::STREAM_CAPTURE_MERGE),
        _ => Ok(()),
    }
}

/// Refuses waiting for a stream that is being captured.
pub(crate) fn allow_waiting(stream: &Stream) -> Outcome {
    match status(stream) {
        Status::None => allow_unsafe(),
        Status::Active(id) | Status::Invalidated(id) => {
            if let Some(capture) = captures().running.get_mut(&id) {
                capture.invalid = true;
            }
            Err(Error::STREAM_CAPTURE_UNSUPPORTED)
        }
    }
}

/// Refuses calls that could wait for a capture: allocating, freeing, waiting for the device.
pub(crate) fn allow_unsafe() -> Outcome {
    if nothing_runs() || THREAD_MODE.get() == RELAXED {
        return Ok(());
    }
    let thread = thread::current().id();
    invalidate(|capture| {
        capture.mode == GLOBAL || (capture.mode == THREAD_LOCAL && capture.thread == thread)
    })
    .map_or(Ok(()), |()| Err(Error::STREAM_CAPTURE_UNSUPPORTED))
}

/// Exchanges how this thread's calls are watched.
pub(crate) fn exchange_mode(mode: i32) -> Outcome<i32> {
    if !(GLOBAL..=RELAXED).contains(&mode) {
        return Err(Error::INVALID_VALUE);
    }
    Ok(THREAD_MODE.replace(mode))
}

/// Spoils the captures meant; were there any?
fn invalidate(meant: impl Fn(&Capture) -> bool) -> Option<()> {
    let mut captures = captures();
    let mut found = None;
    for capture in captures.running.values_mut().filter(|capture| meant(capture)) {
        capture.invalid = true;
        found = Some(());
    }
    found
}
