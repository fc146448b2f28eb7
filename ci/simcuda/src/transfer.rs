//! Copies and fills: the places where bytes move.

use crate::clock::{Clock, Stamp};
use crate::engine::{self, Direction};
use crate::error::{Error, Outcome};
use crate::order::{self, Stream};
use crate::pinned::{self, Hold};
use crate::queue::{Timeline, Work};
use crate::ranges::Use;
use crate::settings::settings;
use crate::{capture, memory, statistics};

/// What memory an address means; pinned memory is kept as long as this lives.
#[derive(Clone)]
enum Side {
    Device,
    Pinned { _pages: Hold },
    Pageable,
}

impl Side {
    fn of(address: usize, bytes: usize) -> Outcome<Side> {
        if memory::device_of(address, bytes)?.is_some() {
            return Ok(Side::Device);
        }
        Ok(pinned::hold(address, bytes)
            .map_or(Side::Pageable, |pages| Side::Pinned { _pages: pages }))
    }

    fn is_device(&self) -> bool {
        matches!(self, Side::Device)
    }

    fn is_pageable(&self) -> bool {
        matches!(self, Side::Pageable)
    }

    /// Enters what a copy does with this side.
    fn touch(&self, range: (usize, usize), usage: Use, stamp: &Stamp, host: &Clock) {
        match self {
            Side::Device => memory::touch(range, usage, "a copy", stamp, host),
            Side::Pinned { .. } => {
                pinned::touch(range, usage, "a copy", stamp, host);
            }
            Side::Pageable => {}
        }
    }
}

/// Larger pageable sources are not copied aside: the call returns when they were read.
const STAGED_MAX: usize = 64 << 10;

/// Who waits for a copy besides those whom its memory makes wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Nobody.
    Never,
    /// The caller, as in the calls without `Async`; not for copies on the device.
    ForHost,
}

/// Copies `bytes` between any two places. A pinned source is read when the copy runs, so that a
/// buffer used again too early gives wrong bytes; a pageable one is read before the call returns.
pub(crate) fn copy(
    destination: usize,
    source: usize,
    bytes: usize,
    stream: &Stream,
    wait: Wait,
) -> Outcome {
    if bytes == 0 {
        return Ok(());
    }
    let (to, from) = (Side::of(destination, bytes)?, Side::of(source, bytes)?);
    let on_device = from.is_device() && to.is_device();
    let returns_when_done = to.is_pageable() || (wait == Wait::ForHost && !on_device);
    if returns_when_done {
        capture::allow_waiting(stream)?;
    }
    let mut copy = Copy { destination, source, bytes, to, from, staged: None };
    let returns_when_read = copy.from.is_pageable() && bytes > STAGED_MAX;
    if copy.from.is_pageable() && bytes <= STAGED_MAX {
        copy.stage();
    }
    let watch = settings().racecheck && matches!(copy.from, Side::Pinned { .. });
    let digest = watch.then(|| pinned::digest_of(source, bytes));
    let (direction, pageable) =
        (copy.direction(), copy.from.is_pageable() || copy.to.is_pageable());
    let (from, to, device) = (copy.from.clone(), copy.to.clone(), stream.device);
    let stamp = order::submit_after(
        stream,
        None,
        |stamp, host| {
            from.touch((source, bytes), Use::Read, stamp, host);
            to.touch((destination, bytes), Use::Write, stamp, host);
            if let Some(digest) = digest {
                pinned::watch_source(source, bytes, digest, stamp);
            }
        },
        |stamp| {
            let stamp = stamp.clone();
            Box::new(move |timeline| copy.run(timeline, device, watch.then_some(&stamp)))
        },
    )?;
    let Some(stamp) = stamp else { return Ok(()) };
    count(direction, bytes, pageable);
    if returns_when_done {
        return order::wait_for(stream, &stamp);
    }
    if returns_when_read {
        // That the bytes arrived is not promised, so the host learns nothing.
        stream.queue.wait(stamp.sequence);
    }
    Ok(())
}

/// A copy that is enqueued.
struct Copy {
    destination: usize,
    source: usize,
    bytes: usize,
    to: Side,
    from: Side,
    /// The bytes of a small pageable source.
    staged: Option<Vec<u8>>,
}

impl Copy {
    fn direction(&self) -> Direction {
        match (self.from.is_device(), self.to.is_device()) {
            (false, true) => Direction::ToDevice,
            (true, false) => Direction::ToHost,
            _ => Direction::Elsewhere,
        }
    }

    /// Copies the source aside.
    fn stage(&mut self) {
        // SAFETY: the caller of the driver says that the source can be read.
        let source = unsafe { std::slice::from_raw_parts(self.source as *const u8, self.bytes) };
        self.staged = Some(source.to_vec());
    }

    /// Its turn has come. `watched`: its source must not have changed since it was enqueued.
    fn run(&self, timeline: &mut Timeline, device: usize, watched: Option<&Stamp>) -> Outcome {
        let target = Place::open(self.destination, self.bytes, self.to.is_device())?;
        let origin = match &self.staged {
            Some(staged) => Place::Host(staged.as_ptr() as usize),
            None => Place::open(self.source, self.bytes, self.from.is_device())?,
        };
        engine::copy(timeline, device, self.direction(), self.bytes, || {
            watched.into_iter().for_each(pinned::verify_source);
            let (origin, target) = (origin.address() as *const u8, target.address() as *mut u8);
            // SAFETY: both sides were checked, and are kept while this runs.
            unsafe { std::ptr::copy(origin, target, self.bytes) };
        });
        Ok(())
    }
}

/// One side of a copy that runs.
enum Place {
    Host(usize),
    Device(memory::Opened),
}

impl Place {
    fn open(address: usize, bytes: usize, on_device: bool) -> Outcome<Place> {
        if on_device {
            memory::open(address, bytes).map(Place::Device)
        } else {
            Ok(Place::Host(address))
        }
    }

    fn address(&self) -> usize {
        match self {
            Place::Host(address) => *address,
            Place::Device(opened) => opened.address,
        }
    }
}

fn count(direction: Direction, bytes: usize, pageable: bool) {
    match direction {
        Direction::ToDevice => statistics::TO_DEVICE.add(bytes),
        Direction::ToHost => statistics::TO_HOST.add(bytes),
        Direction::Elsewhere => statistics::ON_DEVICE.add(bytes),
    }
    if pageable {
        statistics::PAGEABLE.add(bytes);
    }
}

/// Fills device or pinned memory with a pattern of 1, 2 or 4 bytes, `count` times.
pub(crate) fn fill(address: usize, pattern: &[u8], count: usize, stream: &Stream) -> Outcome {
    let bytes = count.checked_mul(pattern.len()).ok_or(Error::INVALID_VALUE)?;
    if bytes == 0 {
        return Ok(());
    }
    if !address.is_multiple_of(pattern.len()) {
        return Err(Error::INVALID_VALUE);
    }
    let side = Side::of(address, bytes)?;
    if side.is_pageable() {
        return Err(Error::INVALID_VALUE);
    }
    let (on_device, pattern) = (side.is_device(), pattern.to_vec());
    let work: Work = Box::new(move |_| {
        let place = Place::open(address, bytes, on_device)?;
        // SAFETY: the place was checked, and is kept while this runs.
        let target = unsafe { std::slice::from_raw_parts_mut(place.address() as *mut u8, bytes) };
        for part in target.chunks_exact_mut(pattern.len()) {
            part.copy_from_slice(&pattern);
        }
        Ok(())
    });
    let range = (address, bytes);
    order::submit(stream, |stamp, host| side.touch(range, Use::Write, stamp, host), work)
        .map(|_| ())
}
