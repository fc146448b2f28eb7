//! The calls to the kernel that the standard library does not have, each as a safe function.
#![expect(unsafe_code, reason = "statx, cachestat and sendfile have no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// What direct reads of a file must keep to, in bytes; none where the file system has none.
pub(crate) fn direct_alignment_bytes(file: &File) -> Option<u32> {
    let mut facts = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the descriptor is open for as long as `file` is borrowed, the path is a valid C
    // string, and `facts` is a writable `statx`.
    let status = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            facts.as_mut_ptr(),
        )
    };
    // SAFETY: zeroes are a valid `statx`, and the kernel only wrote over them.
    let facts = unsafe { facts.assume_init() };
    let known = status == 0 && facts.stx_mask & libc::STATX_DIOALIGN != 0;
    let alignment = facts.stx_dio_offset_align.max(facts.stx_dio_mem_align);
    (known && facts.stx_dio_offset_align > 0).then_some(alignment)
}

/// Whether the page cache holds the page at an offset; none where the kernel cannot tell.
pub(crate) fn is_cached(file: &File, offset: u64) -> Option<bool> {
    #[repr(C)]
    struct Range {
        offset: u64,
        len: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Counts {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    /// The same number on every architecture since Linux 6.5.
    const CACHESTAT: libc::c_long = 451;
    let range = Range { offset: offset & !4095, len: 4096 };
    let mut counts = Counts::default();
    // SAFETY: both structures have the kernel's layout (linux/mman.h) and outlive the call.
    let status = unsafe {
        libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut counts, 0_u32)
    };
    (status == 0).then_some(counts.cached > 0)
}

/// Sends bytes of a file to another inside the kernel; tells how many.
pub(crate) fn send(from: &File, offset: u64, to: &File, bytes: usize) -> io::Result<usize> {
    let mut offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: both descriptors are open for as long as the files are borrowed, and `offset`
    // outlives the call.
    let sent = unsafe { libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), &raw mut offset, bytes) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Drops a file's clean pages from the page cache.
#[cfg(test)]
pub(crate) fn drop_cache(file: &File) {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the call touches no memory.
    let status = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(status, 0);
}
