//! The calls to the kernel that the standard library does not have, each as a safe function.
#![expect(unsafe_code, reason = "these calls have no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// What direct reads of a file must keep to, in bytes; none where the file system has none.
pub(crate) fn direct_alignment_bytes(file: &File) -> Option<u32> {
    match direct_alignment_told(file) {
        Some(bytes) => (bytes > 0).then_some(bytes),
        None => {
            file_system(file).filter(|kind| DIRECT_BY_BLOCKS.contains(kind)).map(|_| BLOCK_BYTES)
        }
    }
}

/// File systems that read past the page cache by whole blocks, also before Linux 6.1 told so.
const DIRECT_BY_BLOCKS: [libc::c_long; 2] = [libc::EXT4_SUPER_MAGIC, libc::XFS_SUPER_MAGIC];

/// No disk has larger blocks.
const BLOCK_BYTES: u32 = 4096;

/// The kind of a file's file system.
fn file_system(file: &File) -> Option<libc::c_long> {
    let mut facts = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and `facts` is a writable `statfs`.
    let status = unsafe { libc::fstatfs(file.as_raw_fd(), facts.as_mut_ptr()) };
    // SAFETY: zeroes are a valid `statfs`, and the kernel only wrote over them.
    let facts = unsafe { facts.assume_init() };
    (status == 0).then_some(facts.f_type)
}

/// The same by what the kernel tells, zero where there are no direct reads; none where it tells nothing.
fn direct_alignment_told(file: &File) -> Option<u32> {
    let mut facts = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // By its number: the function came with glibc 2.28, and wheels ask for 2.17 (ci/wheel).
    // SAFETY: the descriptor is open for as long as `file` is borrowed, the path is a valid C
    // string, and `facts` is a writable `statx`.
    let status = unsafe {
        libc::syscall(
            libc::SYS_statx,
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
    known.then_some(if facts.stx_dio_offset_align > 0 { alignment } else { 0 })
}

/// How many of the pages of a range the page cache holds; none where the kernel cannot tell, or does
/// not: newer ones tell it to who owns the file or may write to it.
pub(crate) fn cached_pages(file: &File, offset: u64, bytes: u64) -> Option<u64> {
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
    let range = Range { offset, len: bytes };
    let mut counts = Counts::default();
    // SAFETY: both structures have the kernel's layout (linux/mman.h) and outlive the call.
    let status = unsafe {
        libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut counts, 0_u32)
    };
    (status == 0).then_some(counts.cached)
}

/// Keeps the kernel from reading more of a file than is asked for through this descriptor.
pub(crate) fn expect_random_reads(file: &File) -> io::Result<()> {
    advise(file, libc::POSIX_FADV_RANDOM)
}

/// Has the kernel read twice as far ahead as it does by itself, of reads through this descriptor.
pub(crate) fn expect_reads_in_order(file: &File) -> io::Result<()> {
    advise(file, libc::POSIX_FADV_SEQUENTIAL)
}

fn advise(file: &File, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, advice) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Whether a byte of a file can be read without waiting for a disk; none where the kernel or the
/// file system cannot tell. The page of one that cannot is read meanwhile.
pub(crate) fn is_read_at_once(file: &File, offset: u64) -> Option<bool> {
    let mut byte = 0_u8;
    let target = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // By its number: the function came with glibc 2.26. Of the offset's two halves the kernel takes
    // all 64 bits from the first.
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and the one byte that is
    // written outlives the call.
    let count = unsafe {
        libc::syscall(
            libc::SYS_preadv2,
            file.as_raw_fd(),
            &raw const target,
            1_usize,
            offset,
            0_usize,
            libc::RWF_NOWAIT,
        )
    };
    match count {
        0.. => Some(true),
        _ if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => Some(false),
        _ => None,
    }
}

/// Sends bytes of a file to another inside the kernel; tells how many.
pub(crate) fn send(from: &File, offset: u64, to: &File, bytes: u64) -> io::Result<usize> {
    let mut offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: both descriptors are open for as long as the files are borrowed, and `offset`
    // outlives the call.
    let sent = unsafe { libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), &raw mut offset, bytes) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// A counter of the kernel's that threads add to: readable while it is not zero, read without waiting.
pub(crate) fn event_descriptor() -> io::Result<File> {
    // SAFETY: the call touches no memory of ours.
    let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }.into())
}

/// Waits until one of the descriptors is readable, at most so long; a signal ends it early.
pub(crate) fn wait_readable(descriptors: &[RawFd], timeout: Duration) {
    let one = |&fd: &RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut polled: Vec<libc::pollfd> = descriptors.iter().map(one).collect();
    let limit = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    let count = polled.len() as libc::nfds_t;
    // SAFETY: the descriptors' structures and the limit outlive the call.
    let _woken =
        unsafe { libc::ppoll(polled.as_mut_ptr(), count, &raw const limit, std::ptr::null()) };
}

/// Moves memory to a NUMA node, where the kernel lets it be moved; a whole number of pages.
pub(crate) fn move_to_node(memory: &mut [u8], node: u32) {
    const PREFERRED: i32 = 1;
    const MOVE: u32 = 2;
    let Some(mask) = 1_u64.checked_shl(node) else { return };
    // SAFETY: the memory and the mask outlive the call, which changes neither; refused, it costs speed.
    let _moved = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            memory.as_mut_ptr(),
            memory.len(),
            PREFERRED,
            &raw const mask,
            u64::BITS,
            MOVE,
        )
    };
}

/// Keeps the calling thread on the processors of a NUMA node, those that it may use anyway.
pub(crate) fn stay_on_node(node: u32) {
    let path = format!("/sys/devices/system/node/node{node}/cpulist");
    let Ok(list) = std::fs::read_to_string(path) else { return };
    // SAFETY: a set of processors is plain bits, and all zero is the empty set.
    let (mut allowed, mut wanted): (libc::cpu_set_t, libc::cpu_set_t) =
        unsafe { std::mem::zeroed() };
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: the target has the size that is told.
    if unsafe { libc::sched_getaffinity(0, size, &raw mut allowed) } != 0 {
        return;
    }
    for processor in processors(&list) {
        // SAFETY: `processors` gives numbers that a set has.
        if unsafe { libc::CPU_ISSET(processor, &allowed) } {
            // SAFETY: as above.
            unsafe { libc::CPU_SET(processor, &mut wanted) };
        }
    }
    // SAFETY: the set has the size that is told. An empty one is refused, and nothing changes.
    let _kept = unsafe { libc::sched_setaffinity(0, size, &raw const wanted) };
}

/// The numbers in a list as `0-3,8`, as far as a set of processors has them.
fn processors(list: &str) -> impl Iterator<Item = usize> {
    let max = libc::CPU_SETSIZE.unsigned_abs() as usize;
    let range = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some(from.trim().parse::<usize>().ok()?..=to.trim().parse::<usize>().ok()?)
    };
    let ranges: Vec<_> = list.split(',').filter_map(range).collect();
    ranges.into_iter().flatten().take_while(move |&processor| processor < max)
}

/// Drops a file's clean pages from the page cache.
#[cfg(test)]
pub(crate) fn drop_cache(file: &File) {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the call touches no memory.
    let status = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(status, 0);
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::{
        BLOCK_BYTES, DIRECT_BY_BLOCKS, cached_pages, direct_alignment_told, drop_cache,
        expect_random_reads, file_system, is_read_at_once, move_to_node, processors, stay_on_node,
    };

    #[test]
    fn blocks_are_enough_where_the_kernel_tells_nothing() {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        if file_system(&file).is_some_and(|kind| DIRECT_BY_BLOCKS.contains(&kind)) {
            let told = direct_alignment_told(&file).unwrap_or(BLOCK_BYTES);
            assert!(told == 0 || BLOCK_BYTES.is_multiple_of(told));
        }
    }

    #[test]
    fn what_is_cached_is_read_at_once_and_the_rest_is_not() {
        // On the disk the project lies on: a temporary folder may be memory.
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.write_all(&vec![7; 1 << 20]).unwrap();
        file.sync_all().unwrap();
        expect_random_reads(&file).unwrap();
        let Some(at_once) = is_read_at_once(&file, 5000) else {
            return; // the file system has no reads that do not wait
        };
        assert!(at_once);
        drop_cache(&file);
        assert_eq!(cached_pages(&file, 0, 1 << 20), Some(0));
        assert_eq!(is_read_at_once(&file, 700_000), Some(false));
        assert_eq!(
            is_read_at_once(&file, 100_000),
            Some(false),
            "the look read more than its page"
        );
    }

    #[test]
    fn lists_of_processors() {
        assert_eq!(processors("0-3,8,10-11\n").collect::<Vec<_>>(), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(processors("\n").count(), 0);
        assert_eq!(processors("1-4000000000").count(), 1023);
    }

    #[test]
    fn a_thread_and_its_memory_stay_what_they_are_on_a_node_and_on_none() {
        let allowed = || std::thread::available_parallelism().unwrap().get();
        let before = allowed();
        for node in [0, 63, 64, 4000] {
            let mut memory = memmap2::MmapMut::map_anon(1 << 16).unwrap();
            memory.fill(7);
            move_to_node(&mut memory, node);
            assert!(memory.iter().all(|&byte| byte == 7));
            std::thread::Builder::new()
                .spawn(move || {
                    stay_on_node(node);
                    assert!((1..=before).contains(&allowed()));
                })
                .unwrap()
                .join()
                .unwrap();
        }
    }
}
