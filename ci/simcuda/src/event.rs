//! Events: marks in streams that others can wait for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use crate::clock::Stamp;
use crate::error::{Error, Outcome};
use crate::order::{self, Stream};
use crate::{capture, context};

/// What an event marks.
#[derive(Clone, Default)]
enum Mark {
    /// Nothing yet: it counts as done.
    #[default]
    None,
    /// A place in a stream.
    Work(Arc<Stream>, Stamp),
    /// A place in a capture, by its id.
    Captured(u64),
}

/// An event.
pub(crate) struct Event {
    device: usize,
    /// Does it take the time?
    timing: bool,
    mark: Mutex<Mark>,
    /// When the last mark was passed, with its number.
    passed: Mutex<Option<(u64, Instant)>>,
}

const DISABLE_TIMING: u32 = 2;
const FIRST_HANDLE: usize = 0x6E00_0000;
const HANDLE_STEP: usize = 16;

fn events() -> MutexGuard<'static, HashMap<usize, Arc<Event>>> {
    static EVENTS: OnceLock<Mutex<HashMap<usize, Arc<Event>>>> = OnceLock::new();
    EVENTS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Events that were created and not destroyed.
pub(crate) fn live() -> usize {
    events().len()
}

/// Makes an event in the current context.
pub(crate) fn create(flags: u32) -> Outcome<usize> {
    static CREATED: AtomicUsize = AtomicUsize::new(0);
    let event = Event {
        device: context::current()?,
        timing: flags & DISABLE_TIMING == 0,
        mark: Mutex::default(),
        passed: Mutex::default(),
    };
    let handle = FIRST_HANDLE + HANDLE_STEP * CREATED.fetch_add(1, Ordering::SeqCst);
    events().insert(handle, Arc::new(event));
    Ok(handle)
}

/// Destroys an event; waits that were enqueued for it stay.
pub(crate) fn destroy(handle: usize) -> Outcome {
    events().remove(&handle).map(|_| ()).ok_or(Error::INVALID_HANDLE)
}

/// The event of a handle.
pub(crate) fn resolve(handle: usize) -> Outcome<Arc<Event>> {
    events().get(&handle).cloned().ok_or(Error::INVALID_HANDLE)
}

impl Event {
    fn mark(&self) -> Mark {
        self.mark.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn passed(&self) -> MutexGuard<'_, Option<(u64, Instant)>> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks what the stream has until now.
    pub(crate) fn record(self: &Arc<Self>, stream: &Arc<Stream>) -> Outcome {
        if self.device != stream.device {
            return Err(Error::INVALID_HANDLE);
        }
        let event = Arc::clone(self);
        let stamp = order::submit_after(
            stream,
            None,
            |_, _| (),
            |stamp| {
                let sequence = stamp.sequence;
                Box::new(move |timeline| {
                    *event.passed() = Some((sequence, timeline.at));
                    Ok(())
                })
            },
        )?;
        let mark = match (stamp, capture::status(stream)) {
            (Some(stamp), _) => Mark::Work(Arc::clone(stream), stamp),
            (None, capture::Status::Active(id)) => Mark::Captured(id),
            (None, _) => return Err(Error::STREAM_CAPTURE_INVALIDATED),
        };
        *self.mark.lock().unwrap_or_else(PoisonError::into_inner) = mark;
        Ok(())
    }

    /// Puts the mark before all later work of a stream.
    pub(crate) fn order_before(&self, stream: &Stream) -> Outcome {
        match (self.mark(), capture::status(stream)) {
            (Mark::None, _) => Ok(()),
            (Mark::Captured(id), _) => capture::join(stream, id),
            (Mark::Work(..), capture::Status::Active(_)) => Err(Error::STREAM_CAPTURE_ISOLATION),
            (Mark::Work(marked, stamp), _) => {
                let wanted = (marked.index != stream.index).then_some(stamp);
                let nothing = |_: &Stamp| -> crate::queue::Work { Box::new(|_| Ok(())) };
                order::submit_after(stream, wanted, |_, _| (), nothing).map(|_| ())
            }
        }
    }

    /// Waits until the mark is passed.
    pub(crate) fn synchronize(&self) -> Outcome {
        match self.mark() {
            Mark::None => context::check(self.device),
            Mark::Captured(_) => Err(Error::CAPTURED_EVENT),
            Mark::Work(stream, stamp) => {
                capture::allow_unsafe()?;
                order::wait_for(&stream, &stamp)
            }
        }
    }

    /// Is the mark passed?
    pub(crate) fn query(&self) -> Outcome {
        match self.mark() {
            Mark::None => context::check(self.device),
            Mark::Captured(_) => Err(Error::CAPTURED_EVENT),
            Mark::Work(stream, stamp) => {
                capture::allow_unsafe()?;
                if stream.queue.is_done(stamp.sequence) {
                    return order::wait_for(&stream, &stamp);
                }
                context::check(self.device).and(Err(Error::NOT_READY))
            }
        }
    }

    /// When the mark was passed.
    fn time(&self) -> Outcome<Instant> {
        self.query()?;
        let Mark::Work(..) = self.mark() else { return Err(Error::INVALID_HANDLE) };
        if !self.timing {
            return Err(Error::INVALID_HANDLE);
        }
        self.passed().map(|(_, time)| time).ok_or(Error::NOT_READY)
    }
}

/// Milliseconds from one mark to the other.
pub(crate) fn elapsed(from: usize, to: usize) -> Outcome<f32> {
    let (from, to) = (resolve(from)?.time()?, resolve(to)?.time()?);
    let forwards = to.saturating_duration_since(from).as_secs_f32();
    let backwards = from.saturating_duration_since(to).as_secs_f32();
    Ok((forwards - backwards) * 1e3)
}
