//! Streams, and the order that streams, events and waits establish between pieces of work.
//!
//! Each piece of work gets a stamp when it is enqueued. All enqueueing happens under one lock, so a
//! piece of work can only depend on earlier ones and nothing can wait in a circle.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::clock::{Clock, Stamp};
use crate::error::{Error, Outcome};
use crate::queue::{Dependency, Queue, Work};
use crate::settings::DEVICES_MAX;
use crate::{capture, context, pinned};

/// How a stream stands to the legacy default stream of its context.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It is the legacy default stream.
    Legacy,
    /// Its work and that of the legacy stream wait for each other.
    Blocking,
    /// Independent of the legacy stream.
    NonBlocking,
}

/// A stream.
pub(crate) struct Stream {
    /// What programs call it.
    pub(crate) handle: usize,
    /// The device of its context.
    pub(crate) device: usize,
    /// Its index in clocks.
    pub(crate) index: usize,
    /// How it stands to the legacy stream.
    pub(crate) kind: Kind,
    /// Told back, of no effect.
    pub(crate) priority: i32,
    /// Its work.
    pub(crate) queue: Arc<Queue>,
}

/// What the clocks know of a stream, also after it was destroyed.
struct Lane {
    stream: Arc<Stream>,
    /// Number of the last piece of work.
    sequence: u64,
    /// What comes before the next piece of work, the stream's own work aside.
    seen: Arc<Clock>,
    /// The version of the host's clock that `seen` contains.
    host_version: u64,
    destroyed: bool,
}

#[derive(Default)]
struct Order {
    lanes: Vec<Lane>,
    handles: HashMap<usize, Arc<Stream>>,
    legacy: [Option<Arc<Stream>>; DEVICES_MAX],
    /// Work that the host knows to be done.
    host: Arc<Clock>,
    host_version: u64,
    created: usize,
}

const HANDLE_LEGACY: usize = 1;
const HANDLE_PER_THREAD: usize = 2;
const FIRST_HANDLE: usize = 0x5E00_0000;
const HANDLE_STEP: usize = 16;

fn order() -> MutexGuard<'static, Order> {
    static ORDER: OnceLock<Mutex<Order>> = OnceLock::new();
    ORDER.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// The per-thread default streams of one thread, by device; they end with it.
#[derive(Default)]
struct ThreadStreams(HashMap<usize, Arc<Stream>>);

impl Drop for ThreadStreams {
    fn drop(&mut self) {
        self.0.values().for_each(|stream| retire(stream));
    }
}

thread_local! {
    static THREAD_STREAMS: RefCell<ThreadStreams> = RefCell::default();
}

/// The stream that a handle means in the current context.
pub(crate) fn resolve(handle: usize) -> Outcome<Arc<Stream>> {
    let device = context::current()?;
    match handle {
        0 | HANDLE_LEGACY => {
            let mut order = order();
            let known = order.legacy[device].clone();
            let stream = known.unwrap_or_else(|| order.open(device, Kind::Legacy, 0, Some(0)));
            order.legacy[device] = Some(Arc::clone(&stream));
            Ok(stream)
        }
        HANDLE_PER_THREAD => THREAD_STREAMS.with_borrow_mut(|streams| {
            let stream = streams.0.entry(device).or_insert_with(|| {
                order().open(device, Kind::Blocking, 0, Some(HANDLE_PER_THREAD))
            });
            Ok(Arc::clone(stream))
        }),
        _ => order().handles.get(&handle).cloned().ok_or(Error::INVALID_HANDLE),
    }
}

/// Makes a stream in the current context.
pub(crate) fn create(kind: Kind, priority: i32) -> Outcome<usize> {
    let device = context::current()?;
    let mut order = order();
    let stream = order.open(device, kind, priority, None);
    order.handles.insert(stream.handle, Arc::clone(&stream));
    Ok(stream.handle)
}

/// Destroys a stream; what waits in it is still done.
pub(crate) fn destroy(handle: usize) -> Outcome {
    let stream = order().handles.remove(&handle).ok_or(Error::INVALID_HANDLE)?;
    retire(&stream);
    Ok(())
}

fn retire(stream: &Stream) {
    order().lanes[stream.index].destroyed = true;
    stream.queue.close();
}

/// Streams that were created and not destroyed.
pub(crate) fn live_streams() -> usize {
    order().handles.len()
}

impl Order {
    fn open(
        &mut self,
        device: usize,
        kind: Kind,
        priority: i32,
        handle: Option<usize>,
    ) -> Arc<Stream> {
        self.created += 1;
        let handle = handle.unwrap_or(FIRST_HANDLE + HANDLE_STEP * self.created);
        // A place in the clocks can be used again when all later work comes after that of its stream.
        let host = &self.host;
        let free = self
            .lanes
            .iter()
            .position(|lane| lane.destroyed && host.of(lane.stream.index) >= lane.sequence);
        let index = free.unwrap_or(self.lanes.len());
        let sequence = self.lanes.get(index).map_or(0, |lane| lane.sequence);
        let queue = Queue::new(device, sequence);
        let stream = Arc::new(Stream { handle, device, index, kind, priority, queue });
        let lane = Lane {
            stream: Arc::clone(&stream),
            sequence,
            seen: Arc::clone(&self.host),
            host_version: self.host_version,
            destroyed: false,
        };
        if index == self.lanes.len() {
            self.lanes.push(lane);
        } else {
            self.lanes[index] = lane;
        }
        stream
    }

    /// The stamp of the last piece of work of a stream.
    fn last(&self, index: usize) -> Stamp {
        let lane = &self.lanes[index];
        Stamp {
            stream: index,
            sequence: lane.sequence,
            seen: Arc::clone(&lane.seen),
            handle: lane.stream.handle,
        }
    }

    /// Work of other streams that the rules of the legacy stream put before the next of this one.
    fn implied(&self, stream: &Stream) -> Vec<Stamp> {
        let before = |other: Kind| match stream.kind {
            Kind::Legacy => other == Kind::Blocking,
            Kind::Blocking => other == Kind::Legacy,
            Kind::NonBlocking => false,
        };
        let seen = &self.lanes[stream.index].seen;
        self.lanes
            .iter()
            .filter(|lane| lane.stream.device == stream.device && before(lane.stream.kind))
            .filter(|lane| lane.sequence > seen.of(lane.stream.index))
            .map(|lane| self.last(lane.stream.index))
            .collect()
    }

    /// The stamp of the next piece of work, and the work that has to be waited for.
    fn advance(&mut self, stream: &Stream, wanted: Option<Stamp>) -> (Stamp, Vec<Dependency>) {
        let mut before = match stream.kind {
            Kind::NonBlocking => Vec::new(),
            _ => self.implied(stream),
        };
        before.extend(wanted);
        let after = before
            .iter()
            .map(|stamp| Dependency {
                queue: Arc::clone(&self.lanes[stamp.stream].stream.queue),
                sequence: stamp.sequence,
            })
            .collect();
        let lane = &mut self.lanes[stream.index];
        if lane.host_version != self.host_version {
            lane.host_version = self.host_version;
            Arc::make_mut(&mut lane.seen).join(&self.host);
        }
        for stamp in &before {
            stamp.join_into(Arc::make_mut(&mut lane.seen));
        }
        lane.sequence += 1;
        (self.last(stream.index), after)
    }
}

/// Enqueues a piece of work after `wanted` (work of another stream). `enter` sees its stamp and the
/// host's clock before it can run. Gives `None` where the stream is being captured: then the work
/// is not done.
pub(crate) fn submit_after(
    stream: &Stream,
    wanted: Option<Stamp>,
    enter: impl FnOnce(&Stamp, &Clock),
    work: impl FnOnce(&Stamp) -> Work,
) -> Outcome<Option<Stamp>> {
    if capture::takes(stream)? {
        return Ok(None);
    }
    let mut order = order();
    let (stamp, after) = order.advance(stream, wanted);
    enter(&stamp, &order.host);
    stream.queue.push(after, work(&stamp));
    Ok(Some(stamp))
}

/// Enqueues a piece of work; see [`submit_after`].
pub(crate) fn submit(
    stream: &Stream,
    enter: impl FnOnce(&Stamp, &Clock),
    work: Work,
) -> Outcome<Option<Stamp>> {
    submit_after(stream, None, enter, |_| work)
}

/// What the host knows to be done.
pub(crate) fn host_clock() -> Arc<Clock> {
    Arc::clone(&order().host)
}

/// The host learns that a piece of work is done.
pub(crate) fn host_saw(stamp: &Stamp) {
    let mut known = host_clock();
    if known.covers(stamp) {
        return;
    }
    stamp.join_into(Arc::make_mut(&mut known));
    // Before other threads learn of it: they may use the sources again from then on.
    pinned::verify_sources(&known);
    let mut order = order();
    stamp.join_into(Arc::make_mut(&mut order.host));
    order.host_version += 1;
}

/// Waits for a piece of work and gives the error of its context.
pub(crate) fn wait_for(stream: &Stream, stamp: &Stamp) -> Outcome {
    stream.queue.wait(stamp.sequence);
    host_saw(stamp);
    context::check(stream.device)
}

/// Waits for everything that a stream has.
pub(crate) fn synchronize(stream: &Stream) -> Outcome {
    let last = order().last(stream.index);
    wait_for(stream, &last)
}

/// Is everything done that a stream has?
pub(crate) fn is_idle(stream: &Stream) -> Outcome<bool> {
    let last = order().last(stream.index);
    if !stream.queue.is_done(last.sequence) {
        return Ok(false);
    }
    wait_for(stream, &last).map(|()| true)
}

/// Waits for everything that a device has.
pub(crate) fn synchronize_device(device: usize) -> Outcome {
    let last: Vec<(Arc<Stream>, Stamp)> = {
        let order = order();
        let lanes = order.lanes.iter().filter(|lane| lane.stream.device == device);
        lanes.map(|lane| (Arc::clone(&lane.stream), order.last(lane.stream.index))).collect()
    };
    for (stream, stamp) in &last {
        stream.queue.wait(stamp.sequence);
        host_saw(stamp);
    }
    context::check(device)
}
