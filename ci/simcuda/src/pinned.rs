//! Pinned host memory, and the copies that still need it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::arena::{self, PAGE};
use crate::clock::{Clock, Stamp};
use crate::error::{Error, Outcome};
use crate::ranges::{Ranges, Use};
use crate::settings::settings;
use crate::statistics::Usage;
use crate::{order, violations};

/// What fresh pinned memory contains.
const POISON: u8 = 0x34;
/// `CU_MEMHOSTREGISTER_READ_ONLY`: no device takes it here.
const READ_ONLY: u32 = 8;

/// The pages of an allocation; copies that run keep them.
struct Pages {
    address: usize,
    mapped: usize,
}

impl Drop for Pages {
    fn drop(&mut self) {
        arena::discard(self.address, self.mapped);
    }
}

/// A pinned range.
struct Pin {
    bytes: usize,
    flags: u32,
    /// `None`: the memory is the program's own and was registered.
    pages: Option<Arc<Pages>>,
    ranges: Ranges,
}

/// A source that must keep its bytes until the host knows that they were copied.
struct Source {
    stamp: Stamp,
    address: usize,
    bytes: usize,
    digest: u64,
}

/// All pinned ranges by address, and what they come to.
struct Pinned {
    pins: BTreeMap<usize, Pin>,
    usage: Usage,
    /// Only with `SIMCUDA_RACECHECK`.
    sources: Vec<Source>,
}

fn pinned() -> MutexGuard<'static, Pinned> {
    static PINNED: Mutex<Pinned> = Mutex::new(Pinned {
        pins: BTreeMap::new(),
        usage: Usage { count: 0, bytes: 0, peak: 0 },
        sources: Vec::new(),
    });
    PINNED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pinned {
    fn find(&mut self, address: usize, bytes: usize) -> Option<(usize, &mut Pin)> {
        let (start, pin) = self.pins.range_mut(..=address).next_back()?;
        let end = address.checked_add(bytes)?;
        (address < start + pin.bytes && end <= start + pin.bytes).then_some((*start, pin))
    }

    fn enter(&mut self, address: usize, bytes: usize, flags: u32, pages: Option<Arc<Pages>>) {
        self.usage.grow(bytes);
        self.pins.insert(address, Pin { bytes, flags, pages, ranges: Ranges::default() });
    }

    fn check_limit(&self, bytes: usize) -> Outcome {
        let total = self.usage.bytes.checked_add(bytes);
        let fits = total.is_some_and(|total| total <= settings().pinned_bytes);
        if fits { Ok(()) } else { Err(Error::OUT_OF_MEMORY) }
    }

    /// Takes a pin away; copies that the host does not know to be done still need it.
    fn remove(&mut self, address: usize, host: &Clock, how: &str) {
        let Some(pin) = self.pins.remove(&address) else { return };
        self.usage.shrink(pin.bytes);
        let inside = address..address + pin.bytes;
        self.sources.retain(|source| !inside.contains(&source.address));
        if let Some((usage, stamp)) = pin.ranges.pending(None, host) {
            violations::report(format!(
                "pinned memory {address:#x}+{} was {how} with a {} pending on stream {:#x}",
                pin.bytes,
                usage.noun(),
                stamp.handle
            ));
        }
    }
}

/// Pinning takes its time.
fn delay(bytes: usize) {
    let milliseconds = settings().pin_ms_per_gib * bytes as f64 / f64::from(1 << 30);
    if milliseconds > 0.0 {
        thread::sleep(Duration::from_secs_f64(milliseconds / 1e3));
    }
}

/// Allocates.
pub(crate) fn allocate(bytes: usize, flags: u32) -> Outcome<usize> {
    if bytes == 0 {
        return Err(Error::INVALID_VALUE);
    }
    pinned().check_limit(bytes)?;
    delay(bytes);
    let mapped = bytes.next_multiple_of(PAGE);
    let address = arena::map_anonymous(0, mapped)?;
    if settings().poison {
        // SAFETY: the range was just mapped for writing.
        unsafe { (address as *mut u8).write_bytes(POISON, mapped) };
    }
    let pages = Arc::new(Pages { address, mapped });
    let mut pinned = pinned();
    pinned.check_limit(bytes)?; // again: others may have pinned meanwhile
    pinned.enter(address, bytes, flags, Some(pages));
    Ok(address)
}

/// Frees what was allocated.
pub(crate) fn free(address: usize) -> Outcome {
    let host = order::host_clock();
    let mut pinned = pinned();
    match pinned.pins.get(&address) {
        Some(Pin { pages: Some(_), .. }) => {
            pinned.remove(address, &host, "freed");
            Ok(())
        }
        _ => Err(Error::INVALID_VALUE),
    }
}

/// Pins memory of the program.
pub(crate) fn register(address: usize, bytes: usize, flags: u32) -> Outcome {
    let end = address.checked_add(bytes).ok_or(Error::INVALID_VALUE)?;
    if bytes == 0 || address == 0 {
        return Err(Error::INVALID_VALUE);
    }
    if flags & READ_ONLY != 0 {
        return Err(Error::NOT_SUPPORTED);
    }
    delay(bytes);
    let mut pinned = pinned();
    let last = pinned.pins.range(..end).next_back();
    if last.is_some_and(|(start, pin)| start + pin.bytes > address) {
        return Err(Error::HOST_MEMORY_ALREADY_REGISTERED);
    }
    pinned.check_limit(bytes)?;
    pinned.enter(address, bytes, flags, None);
    Ok(())
}

/// Ends that.
pub(crate) fn unregister(address: usize) -> Outcome {
    let host = order::host_clock();
    let mut pinned = pinned();
    match pinned.pins.get(&address) {
        Some(Pin { pages: None, .. }) => {
            pinned.remove(address, &host, "unregistered");
            Ok(())
        }
        _ => Err(Error::HOST_MEMORY_NOT_REGISTERED),
    }
}

/// Keeps the pages of a pinned range; registered memory has none to keep.
#[derive(Clone)]
pub(crate) struct Hold {
    _pages: Option<Arc<Pages>>,
}

/// Holds a range; `None`: it is not pinned.
pub(crate) fn hold(address: usize, bytes: usize) -> Option<Hold> {
    pinned().find(address, bytes).map(|(_, pin)| Hold { _pages: pin.pages.clone() })
}

/// Start, bytes and flags of the pinned range around an address.
pub(crate) fn around(address: usize) -> Option<(usize, usize, u32)> {
    pinned().find(address, 0).map(|(start, pin)| (start, pin.bytes, pin.flags))
}

/// Enters what a piece of work does with pinned memory; is it pinned?
pub(crate) fn touch(
    range: (usize, usize),
    usage: Use,
    what: &str,
    stamp: &Stamp,
    host: &Clock,
) -> bool {
    let (address, bytes) = range;
    let mut pinned = pinned();
    let Some((start, pin)) = pinned.find(address, bytes) else { return false };
    let offset = address - start;
    if let Some((earlier, other)) = pin.ranges.enter(offset..offset + bytes, usage, stamp, host) {
        violations::report(format!(
            "{what} on stream {:#x} {} pinned {address:#x}+{bytes}, not ordered after a {} on \
             stream {:#x}",
            stamp.handle,
            usage.verb(),
            earlier.noun(),
            other.handle
        ));
    }
    true
}

/// Watches a source until the host knows that it was copied. Gives its digest.
pub(crate) fn watch_source(address: usize, bytes: usize, digest: u64, stamp: &Stamp) {
    pinned().sources.push(Source { stamp: stamp.clone(), address, bytes, digest });
}

/// The host learns that copies are done: until now it must not have changed what they read.
pub(crate) fn verify_sources(host: &Clock) {
    if !settings().racecheck {
        return;
    }
    let mut pinned = pinned();
    let known = |source: &Source| host.covers(&source.stamp);
    let sources = std::mem::take(&mut pinned.sources);
    let (done, open): (Vec<Source>, Vec<Source>) = sources.into_iter().partition(known);
    pinned.sources = open;
    for source in done {
        source.is_as_it_was();
    }
}

/// A copy runs: until now nobody must have changed what it reads.
pub(crate) fn verify_source(stamp: &Stamp) {
    let mut pinned = pinned();
    let Some(at) = pinned.sources.iter().position(|source| source.stamp.is(stamp)) else { return };
    if !pinned.sources[at].is_as_it_was() {
        pinned.sources.swap_remove(at);
    }
}

impl Source {
    /// Is it what it was when its copy was enqueued? If not, that is reported.
    fn is_as_it_was(&self) -> bool {
        let Source { address, bytes, digest, stamp } = self;
        if digest_of(*address, *bytes) == *digest {
            return true;
        }
        violations::report(format!(
            "pinned source {address:#x}+{bytes} of a copy on stream {:#x} changed before the copy \
             was known to be done",
            stamp.handle
        ));
        false
    }
}

/// A digest that differs when bytes differ, but for bad luck.
pub(crate) fn digest_of(address: usize, bytes: usize) -> u64 {
    const PRIME: u64 = 0x9E37_79B9_7F4A_7C15;
    // SAFETY: a pinned range is readable; that another thread writes to it is what this looks for.
    let bytes = unsafe { std::slice::from_raw_parts(address as *const u8, bytes) };
    let mut lanes = [1u64, 2, 3, 4];
    let mut blocks = bytes.chunks_exact(32);
    for block in &mut blocks {
        for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(8)) {
            let word = word.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            *lane = (*lane ^ word).wrapping_mul(PRIME).rotate_left(29);
        }
    }
    let tail = blocks.remainder().iter().fold(bytes.len() as u64, |digest, byte| {
        (digest ^ u64::from(*byte)).wrapping_mul(PRIME).rotate_left(29)
    });
    lanes.iter().fold(tail, |digest, lane| (digest ^ lane).wrapping_mul(PRIME).rotate_left(31))
}

/// What is pinned.
pub(crate) fn usage() -> Usage {
    pinned().usage
}

/// Forgets the peak.
pub(crate) fn restart_peak() {
    pinned().usage.restart();
}
