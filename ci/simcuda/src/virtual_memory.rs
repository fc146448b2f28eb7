//! Virtual memory management: reserved addresses, physical memory, and mapping one to the other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::arena::{self, Shared};
use crate::error::{Error, Outcome};
use crate::memory;

/// Sizes and addresses are multiples of this.
pub(crate) const GRANULARITY: usize = 2 << 20;
const FIRST_HANDLE: u64 = 0x7E00_0000;

/// Physical memory; its bytes are the device's again when nobody has it.
struct Physical {
    shared: Shared,
    bytes: usize,
    device: usize,
}

impl Drop for Physical {
    fn drop(&mut self) {
        memory::unreserve(self.device, self.bytes);
    }
}

#[derive(Default)]
struct Pool {
    created: u64,
    handles: HashMap<u64, Arc<Physical>>,
    /// By the address to which it is mapped; mapped memory lives on when its handle is released.
    mapped: HashMap<usize, Arc<Physical>>,
}

fn pool() -> MutexGuard<'static, Pool> {
    static POOL: OnceLock<Mutex<Pool>> = OnceLock::new();
    POOL.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

fn check_size(bytes: usize) -> Outcome {
    let fits = bytes > 0 && bytes.is_multiple_of(GRANULARITY);
    if fits { Ok(()) } else { Err(Error::INVALID_VALUE) }
}

/// Reserves addresses.
pub(crate) fn reserve_addresses(bytes: usize, alignment: usize) -> Outcome<usize> {
    check_size(bytes)?;
    memory::reserve_addresses(bytes, alignment.max(GRANULARITY))
}

fn fresh(bytes: usize) -> Outcome<Shared> {
    let shared = Shared::new(bytes)?;
    let address = shared.map(0, bytes, true)?;
    memory::poison(address, bytes);
    arena::discard(address, bytes);
    Ok(shared)
}

/// Makes physical memory.
pub(crate) fn create(device: usize, bytes: usize) -> Outcome<u64> {
    check_size(bytes)?;
    memory::reserve(device, bytes)?;
    let shared = fresh(bytes).inspect_err(|_| memory::unreserve(device, bytes))?;
    let mut pool = pool();
    pool.created += 1;
    let handle = FIRST_HANDLE + pool.created;
    pool.handles.insert(handle, Arc::new(Physical { shared, bytes, device }));
    Ok(handle)
}

/// Releases a handle.
pub(crate) fn release(handle: u64) -> Outcome {
    let released = pool().handles.remove(&handle);
    released.map(|_| ()).ok_or(Error::INVALID_VALUE)
}

/// Maps physical memory at reserved addresses.
pub(crate) fn map(address: usize, bytes: usize, handle: u64) -> Outcome {
    check_size(bytes)?;
    let physical = pool().handles.get(&handle).cloned().ok_or(Error::INVALID_VALUE)?;
    if bytes != physical.bytes {
        return Err(Error::INVALID_VALUE);
    }
    memory::map(address, bytes, physical.device, &physical.shared)?;
    pool().mapped.insert(address, physical);
    Ok(())
}

/// Unmaps a range, which may contain several mappings.
pub(crate) fn unmap(address: usize, bytes: usize) -> Outcome {
    check_size(bytes)?;
    let mut at = address;
    while at < address + bytes {
        let length = memory::unmap(at)?;
        pool().mapped.remove(&at);
        at += length;
    }
    Ok(())
}
