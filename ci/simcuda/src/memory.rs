//! Device memory: allocations, who may use them, and the history of their bytes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::arena::{self, PAGE, Shared};
use crate::clock::{Clock, Stamp};
use crate::context;
use crate::error::{Error, Outcome};
use crate::ranges::{Ranges, Use};
use crate::settings::{DEVICES_MAX, settings};
use crate::statistics::Usage;
use crate::violations;

/// What fresh device memory contains.
const POISON: u8 = 0xCB;

/// The pages behind an allocation; copies that run keep them.
pub(crate) struct Backing {
    /// Where programs see it.
    address: usize,
    /// Where the simulator reads and writes it; another place if the host must not touch it.
    alias: usize,
    mapped: usize,
}

impl Backing {
    fn new(bytes: usize) -> Outcome<Backing> {
        let mapped = bytes.next_multiple_of(PAGE);
        let address = arena::take(bytes, PAGE)?;
        let alias = if settings().guard {
            let shared = Shared::new(mapped)?;
            shared.map(address, mapped, false)?;
            shared.map(arena::take(bytes, PAGE)?, mapped, true)?
        } else {
            arena::map_anonymous(address, mapped)?
        };
        Ok(Backing { address, alias, mapped })
    }

    /// Fills it with the pattern of fresh memory.
    pub(crate) fn poison(&self) {
        poison(self.alias, self.mapped);
    }
}

/// Fills mapped memory with the pattern of fresh device memory.
pub(crate) fn poison(address: usize, bytes: usize) {
    if settings().poison {
        // SAFETY: the caller has it mapped for writing.
        unsafe { (address as *mut u8).write_bytes(POISON, bytes) };
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        arena::unmap(self.address, self.mapped);
        if self.alias != self.address {
            arena::unmap(self.alias, self.mapped);
        }
    }
}

/// An allocation that was not freed.
struct Allocation {
    bytes: usize,
    device: usize,
    backing: Arc<Backing>,
    /// Reserved addresses, of which only these ranges (end by start) have memory: not freed as
    /// others are.
    mappings: Option<BTreeMap<usize, usize>>,
    /// The stream-ordered allocation; earlier work must not touch it.
    allocated: Option<Stamp>,
    /// The stream-ordered release; later work must not touch it.
    released: Option<Stamp>,
    ranges: Ranges,
}

/// All allocations by address, and what each device has.
struct Memory {
    allocations: BTreeMap<usize, Allocation>,
    usage: [Usage; DEVICES_MAX],
}

fn memory() -> MutexGuard<'static, Memory> {
    static MEMORY: Mutex<Memory> = Mutex::new(Memory {
        allocations: BTreeMap::new(),
        usage: [Usage { count: 0, bytes: 0, peak: 0 }; DEVICES_MAX],
    });
    MEMORY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Allocation {
    /// Is there memory behind all of a range that begins here?
    fn has_memory(&self, address: usize, end: usize) -> bool {
        let Some(mappings) = &self.mappings else { return true };
        let mut at = address;
        loop {
            match mappings.range(..=at).next_back() {
                Some((_, mapped_until)) if *mapped_until > at => at = *mapped_until,
                _ => return false,
            }
            if at >= end {
                return true;
            }
        }
    }
}

impl Memory {
    /// The allocation that contains all of a range.
    fn find(&mut self, address: usize, bytes: usize) -> Option<(usize, &mut Allocation)> {
        self.within(address, bytes)
            .filter(|(_, allocation)| allocation.has_memory(address, address + bytes))
    }

    /// The same, where there may be addresses without memory.
    fn within(&mut self, address: usize, bytes: usize) -> Option<(usize, &mut Allocation)> {
        let (start, allocation) = self.allocations.range_mut(..=address).next_back()?;
        let end = address.checked_add(bytes)?;
        let inside = address < start + allocation.bytes && end <= start + allocation.bytes;
        inside.then_some((*start, allocation))
    }

    fn reserve(&mut self, device: usize, bytes: usize) -> Outcome {
        let limit = settings().device_bytes;
        match self.usage[device].bytes.checked_add(bytes) {
            Some(total) if total <= limit => {
                self.usage[device].grow(bytes);
                Ok(())
            }
            _ => Err(Error::OUT_OF_MEMORY),
        }
    }
}

/// Takes bytes from a device's memory, for physical memory that is mapped later.
pub(crate) fn reserve(device: usize, bytes: usize) -> Outcome {
    memory().reserve(device, bytes)
}

/// Gives such bytes back.
pub(crate) fn unreserve(device: usize, bytes: usize) {
    memory().usage[device].shrink(bytes);
}

/// Allocates; gives the address and the pages, which the caller poisons when it is time.
pub(crate) fn allocate(device: usize, bytes: usize) -> Outcome<(usize, Arc<Backing>)> {
    if bytes == 0 {
        return Err(Error::INVALID_VALUE);
    }
    memory().reserve(device, bytes)?;
    let backing = Backing::new(bytes).inspect_err(|_| unreserve(device, bytes))?;
    let backing = Arc::new(backing);
    enter(device, bytes, &backing, None);
    Ok((backing.address, backing))
}

fn enter(
    device: usize,
    bytes: usize,
    backing: &Arc<Backing>,
    mappings: Option<BTreeMap<usize, usize>>,
) {
    let allocation = Allocation {
        bytes,
        device,
        backing: Arc::clone(backing),
        mappings,
        allocated: None,
        released: None,
        ranges: Ranges::default(),
    };
    memory().allocations.insert(backing.address, allocation);
}

/// Reserves addresses, to which memory is mapped later.
pub(crate) fn reserve_addresses(bytes: usize, alignment: usize) -> Outcome<usize> {
    let address = arena::take(bytes, alignment)?;
    let alias = if settings().guard { arena::take(bytes, alignment)? } else { address };
    enter(0, bytes, &Arc::new(Backing { address, alias, mapped: bytes }), Some(BTreeMap::new()));
    Ok(address)
}

/// Gives them back; there must be no memory behind them.
pub(crate) fn free_addresses(address: usize) -> Outcome {
    let mut memory = memory();
    let found = memory.allocations.get(&address).and_then(|found| found.mappings.as_ref());
    if found.is_none_or(|mappings| !mappings.is_empty()) {
        return Err(Error::INVALID_VALUE);
    }
    memory.allocations.remove(&address);
    Ok(())
}

/// Maps memory of a device at reserved addresses.
pub(crate) fn map(address: usize, bytes: usize, device: usize, shared: &Shared) -> Outcome {
    let mut memory = memory();
    let (start, reserved) = memory.within(address, bytes).ok_or(Error::INVALID_VALUE)?;
    let mappings = reserved.mappings.as_mut().ok_or(Error::INVALID_VALUE)?;
    let before = mappings.range(..address + bytes).next_back();
    if before.is_some_and(|(_, mapped_until)| *mapped_until > address) {
        return Err(Error::INVALID_VALUE);
    }
    let alias = reserved.backing.alias + (address - start);
    shared.map(alias, bytes, true)?;
    if alias != address {
        shared.map(address, bytes, false)?;
    }
    mappings.insert(address, address + bytes);
    reserved.device = device;
    Ok(())
}

/// Takes memory away from reserved addresses; gives the bytes of the mapping that began here.
pub(crate) fn unmap(address: usize) -> Outcome<usize> {
    let mut memory = memory();
    let (start, reserved) = memory.within(address, 0).ok_or(Error::INVALID_VALUE)?;
    let mappings = reserved.mappings.as_mut().ok_or(Error::INVALID_VALUE)?;
    let bytes = mappings.remove(&address).ok_or(Error::INVALID_VALUE)? - address;
    let alias = reserved.backing.alias + (address - start);
    arena::unmap(address, bytes);
    arena::unmap(alias, bytes);
    Ok(bytes)
}

/// Says which piece of work allocates.
pub(crate) fn set_allocated(address: usize, stamp: Stamp) {
    if let Some(allocation) = memory().allocations.get_mut(&address) {
        allocation.allocated = Some(stamp);
    }
}

/// The device of the allocation that begins here and was not freed.
pub(crate) fn check_start(address: usize) -> Outcome<usize> {
    match memory().allocations.get(&address) {
        Some(found) if found.mappings.is_none() && found.released.is_none() => Ok(found.device),
        _ => Err(Error::INVALID_VALUE),
    }
}

/// Frees at once.
pub(crate) fn free(address: usize) -> Outcome {
    let mut memory = memory();
    let allocation = memory.allocations.remove(&address).ok_or(Error::INVALID_VALUE)?;
    memory.usage[allocation.device].shrink(allocation.bytes);
    Ok(())
}

/// A piece of work frees: later work must not touch the memory, earlier work must be ordered.
pub(crate) fn release(address: usize, stamp: &Stamp, host: &Clock) {
    let mut memory = memory();
    let Some(allocation) = memory.allocations.get_mut(&address) else { return };
    let bytes = allocation.bytes;
    let here = format!("the release on stream {:#x} of {address:#x}+{bytes}", stamp.handle);
    if let Some(other) = allocation.allocated.as_ref().filter(|other| !stamp.is_after(other)) {
        violations::report(format!(
            "{here} is not ordered after its allocation on stream {:#x}",
            other.handle
        ));
    }
    if let Some((usage, other)) = allocation.ranges.pending(Some(stamp), host) {
        violations::report(format!(
            "{here} is not ordered after a {} on stream {:#x}",
            usage.noun(),
            other.handle
        ));
    }
    allocation.released = Some(stamp.clone());
}

/// The host frees: of memory that was allocated in the order of a stream the driver takes for granted
/// that nobody uses it any more, and does not wait.
pub(crate) fn release_by_host(address: usize, host: &Clock) {
    let memory = memory();
    let Some(allocation) = memory.allocations.get(&address) else { return };
    if allocation.allocated.is_none() {
        return;
    }
    if let Some((usage, other)) = allocation.ranges.pending(None, host) {
        violations::report(format!(
            "the host frees {address:#x}+{} of stream-ordered memory and does not know that a {} on \
             stream {:#x} is done",
            allocation.bytes,
            usage.noun(),
            other.handle
        ));
    }
}

/// The device of live memory at an address; `None`: it is not device memory at all.
pub(crate) fn device_of(address: usize, bytes: usize) -> Outcome<Option<usize>> {
    if !arena::contains(address) {
        return Ok(None);
    }
    if let Some((_, allocation)) = memory().find(address, bytes) {
        return Ok(Some(allocation.device));
    }
    violations::report(format!(
        "{address:#x}+{bytes} is not inside a live allocation of device memory"
    ));
    Err(Error::INVALID_VALUE)
}

/// Start, bytes and device of the allocation around an address.
pub(crate) fn around(address: usize) -> Option<(usize, usize, usize)> {
    let mut memory = memory();
    memory.find(address, 0).map(|(start, found)| (start, found.bytes, found.device))
}

/// Enters what a piece of work does with device memory.
pub(crate) fn touch(range: (usize, usize), usage: Use, what: &str, stamp: &Stamp, host: &Clock) {
    let (address, bytes) = range;
    let mut memory = memory();
    let here = || {
        let verb = usage.verb();
        format!("{what} on stream {:#x} {verb} {address:#x}+{bytes}", stamp.handle)
    };
    let Some((start, allocation)) = memory.find(address, bytes) else {
        violations::report(format!("{}, which is not inside a live allocation", here()));
        return;
    };
    if let Some(other) = allocation.allocated.as_ref().filter(|other| !stamp.is_after(other)) {
        violations::report(format!(
            "{}, not ordered after the allocation on stream {:#x}",
            here(),
            other.handle
        ));
    }
    if let Some(other) = allocation.released.as_ref().filter(|other| !other.is_after(stamp)) {
        violations::report(format!("{}, which was released on stream {:#x}", here(), other.handle));
    }
    let offset = address - start;
    let conflict = allocation.ranges.enter(offset..offset + bytes, usage, stamp, host);
    if let Some((earlier, other)) = conflict {
        violations::report(format!(
            "{}, not ordered after a {} on stream {:#x}",
            here(),
            earlier.noun(),
            other.handle
        ));
    }
}

/// A place that can be read and written, with what keeps it.
pub(crate) struct Opened {
    /// Where.
    pub(crate) address: usize,
    _backing: Arc<Backing>,
}

/// Device memory for the work that runs now.
pub(crate) fn open(address: usize, bytes: usize) -> Outcome<Opened> {
    let mut memory = memory();
    let (start, allocation) = memory.find(address, bytes).ok_or(Error::ILLEGAL_ADDRESS)?;
    let backing = Arc::clone(&allocation.backing);
    Ok(Opened { address: backing.alias + (address - start), _backing: backing })
}

/// Opens all device memory for kernels, which use the addresses of programs, or closes it.
pub(crate) fn open_for_kernel(open: bool) {
    if settings().guard {
        for (address, allocation) in &memory().allocations {
            match &allocation.mappings {
                None => arena::protect(*address, allocation.backing.mapped, open),
                Some(mappings) => mappings
                    .iter()
                    .for_each(|(start, end)| arena::protect(*start, end - start, open)),
            }
        }
    }
}

/// Free and total bytes of a device.
pub(crate) fn free_and_total(device: usize) -> (usize, usize) {
    let total = settings().device_bytes;
    (total - usage(device).bytes, total)
}

/// What a device has.
pub(crate) fn usage(device: usize) -> Usage {
    memory().usage.get(device).copied().unwrap_or_default()
}

/// Forgets the peaks.
pub(crate) fn restart_peaks() {
    memory().usage.iter_mut().for_each(Usage::restart);
}

/// Allocates for a call: what frees are waiting for may be all that is missing.
pub(crate) fn allocate_or_drain(device: usize, bytes: usize) -> Outcome<(usize, Arc<Backing>)> {
    match allocate(device, bytes) {
        Err(Error::OUT_OF_MEMORY) => {
            context::check(device)?;
            crate::order::synchronize_device(device)?;
            allocate(device, bytes)
        }
        other => other,
    }
}
