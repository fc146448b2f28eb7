//! Every tunable with its default, limit and unit. Nothing else reads the environment.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// One slot: 98 % of a `PCIe` 5 link, and a full queue at eight of them.
pub(crate) const SLOT_BYTES: usize = 8 << 20;

/// Bytes a read takes at least when the page cache holds them.
pub(crate) const WARM_CHUNK_BYTES: usize = 2 << 20;

/// What one thread copies of a larger read. Tests have small slots, which several threads fill all the same.
pub(crate) const PART_BYTES: usize = if cfg!(test) { 4 << 10 } else { WARM_CHUNK_BYTES };

/// And at most: what is in flight then hides the 0.2 ms that a slot waits for threads to wake on its way,
/// at the rate of a `PCIe` 5 link.
pub(crate) const WARM_CHUNK_BYTES_MAX: usize = SLOT_BYTES;

/// Slots lent to one load, or less where it has less to read.
pub(crate) const LOAD_SLOTS: usize = 8;

/// The most slots lent to one load, as `LOAD_RING_SHARE` allows.
pub(crate) const LOAD_SLOTS_MAX: usize = 16;

/// The same where the page cache holds what is to be read: 96 MiB. With more the copies took a fifth longer,
/// as slots fell out of a last-level cache of 300 MiB before they were filled again.
pub(crate) const CACHED_SLOTS_MAX: usize = 12;

/// The most of a load's bytes that more than `LOAD_SLOTS` have under way: one in so many.
pub(crate) const LOAD_RING_SHARE: u64 = 8;

/// Slots kept by the process between loads: 256 MiB.
pub(crate) const RING_SLOTS_MAX: usize = 32;

/// Threads that make the slots of one load, a quarter of the processors at most: one touches new memory at
/// 2 to 3 GB/s.
pub(crate) const SLOT_MAKERS_MAX: usize = 4;

/// Bytes in the page cache that are worth one more new slot, whose making takes as long as a fourth of
/// their copying.
pub(crate) const NEW_SLOT_WORTH_BYTES: u64 = 4 * SLOT_BYTES as u64;

/// Up to so many processors, threads of a load that is small take them from each other.
pub(crate) const FEW_PROCESSORS: usize = 2;

/// Slots' worth of bytes that a load's own thread reads alone with so few processors; one with more.
pub(crate) const ALONE_SLOTS_OF_FEW: usize = 2;

/// Fewest slots that keep reader and device busy at once.
pub(crate) const SLOTS_MIN: usize = 4;

/// Files that are digested at once, each by a load of its own. A load is lent half of what the others
/// have left: a fifth would be lent a single slot, and go on with that when the others have ended.
pub(crate) const DIGESTED_FILES_MAX: usize = 4;

/// Slots of a load that go on in use where memory cannot be pinned.
pub(crate) const UNPINNED_SLOTS_MAX: usize = 2;

/// Streams that a GPU keeps for the next loads: making one costs as much as the copy of a small tensor.
pub(crate) const IDLE_STREAMS_MAX: usize = 8;

/// The most bytes of one load, 16 TiB: its plan then takes some hundred MiB.
pub(crate) const LOAD_BYTES_MAX: u64 = 16 << 40;

/// The most stretches of one load that are apart from each other: rows of a slice, and whole tensors.
pub(crate) const LOAD_RUNS_MAX: u64 = 16 << 20;

/// Unwanted bytes that are read rather than skipped between two wanted tensors.
pub(crate) const GAP_BYTES_MAX: u64 = 64 << 10;

/// The same of a remote file, where a request costs the way there and back.
pub(crate) const REMOTE_GAP_BYTES_MAX: u64 = 1 << 20;

/// The shortest pieces of rows that are read one by one: of shorter ones the whole rows are.
pub(crate) const COLUMN_BYTES_MIN: u64 = 4 << 10;

/// Every read begins on this boundary of its file, whatever the file system asks (512 or 4096).
pub(crate) const ALIGNMENT_BYTES: usize = 4096;

/// Tensors in memory of ours begin on this boundary: a cache line, and `AVX-512`'s width.
pub(crate) const HOST_ALIGNMENT_BYTES: usize = 64;

/// Tensors in memory of a GPU begin on this boundary, as torch's own do.
pub(crate) const DEVICE_ALIGNMENT_BYTES: u64 = 512;

/// The largest allocation that several tensors share: what one survivor can keep from being freed.
pub(crate) const SLAB_BYTES_MAX: u64 = 64 << 20;

/// Pieces up to this size are placed by a kernel, many at once: a copy of its own costs each as
/// much as the link needs for some hundred KiB.
pub(crate) const SMALL_PIECE_BYTES: usize = 64 << 10;

/// Of how many such pieces in a chunk one kernel places them. A copy of its own costs each a few
/// microseconds; what a first kernel costs is the loading of its module, and staging memory.
pub(crate) const PIECES_TOGETHER_MIN: usize = 6;

/// Loads from this size on have torch reserve the memory of their tensors by the block.
pub(crate) const RESERVATION_BYTES_MIN: u64 = 64 << 20;

/// How many such blocks a load has, where these have the sizes below; one of several GiB has more.
pub(crate) const BLOCKS_MAX: u64 = 8;

/// Bytes that such a block may have, however small the load.
pub(crate) const BLOCK_BYTES_MIN: u64 = 128 << 20;

/// Bytes that it has at most, however large the load: while one tensor in it lives, the driver gets none
/// of it back.
pub(crate) const BLOCK_BYTES_MAX: u64 = 1 << 30;

/// Allocations up to this size are cut from small blocks of torch's, which no reservation helps.
pub(crate) const TORCH_SMALL_BYTES_MAX: u64 = 1 << 20;

/// Bytes at the end of a slot for the tables of its pieces.
pub(crate) const TABLE_BYTES: usize = 192 << 10;

/// Pieces of one read, as many as the tables hold; more than a block of `ALIGNMENT_BYTES` can have.
pub(crate) const PIECES_MAX: usize = TABLE_BYTES / 32;

/// Loads up to this size are read through the page cache: it hardly fills by them, and the next
/// load of the same adapter or tensor finds them there.
pub(crate) const SMALL_LOAD_BYTES: u64 = 64 << 20;

/// Fewest reads that pay for setting up a queue of the kernel's.
pub(crate) const URING_READS_MIN: usize = 4;

/// The size of a load's first reads.
pub(crate) const FIRST_CHUNK_BYTES: u64 = 1 << 20;

/// The size of the first reads of a single small tensor that the page cache holds.
pub(crate) const SMALL_FIRST_CHUNK_BYTES: u64 = 256 << 10;

/// The most of its later ones.
pub(crate) const SMALL_CHUNK_BYTES_MAX: u64 = 1 << 20;

/// Bytes of direct reads in flight at first: two slots keep a disk busy that is near.
pub(crate) const DEPTH_BYTES: u64 = 2 * SLOT_BYTES as u64;

/// The most bytes of direct reads in flight, where more have paid.
pub(crate) const DEPTH_BYTES_MAX: u64 = 16 * SLOT_BYTES as u64;

/// Threads that read with pread. Twelve keep a `PCIe` 5 link busy where processors copy fast; two more
/// helped where they do not.
pub(crate) const READ_THREADS_MAX: usize = 14;

/// Threads that copy from slots to host memory.
pub(crate) const COPY_THREADS_MAX: usize = 8;

/// Bytes of a remote file that are asked for to open it: most headers are shorter.
pub(crate) const REMOTE_HEAD_BYTES: u64 = 256 << 10;

/// Ranges of remote files that are under way at first: what one connection brings is a fraction of a link.
pub(crate) const REMOTE_READS: usize = 8;

/// Connections that a load has at most, each for one range at a time; more were seen to collapse.
pub(crate) const CONNECTIONS_MAX: usize = 64;

/// Slots of all loads at most, those beyond `RING_SLOTS_MAX` never pinned and not kept: 1 GiB, for sources
/// whose distance times their rate is more than the ring.
pub(crate) const FAR_SLOTS_MAX: usize = 128;

/// Threads that carry requests.
pub(crate) const NETWORK_THREADS_MAX: usize = 8;

/// How long the usual places are asked for credentials of object stores.
pub(crate) const CREDENTIALS_PATIENCE: Duration = Duration::from_secs(2);

/// Below this rate, over `network_patience`, a range is asked for anew: its connection is as good as dead.
pub(crate) const STALL_BYTES_PER_SECOND: f64 = 1024.0;

/// How often in a row a range is asked for in vain.
pub(crate) const FRUITLESS_TRIES_MAX: u32 = 6;

/// How often the ranges of one load are asked for again, all together.
pub(crate) const LOAD_RETRIES_MAX: u32 = 256;

/// The longest pause that a server is granted.
pub(crate) const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// The longest time between two looks at signals.
pub(crate) const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// Bytes that a stream reads ahead of the caller who takes its tensors.
pub(crate) const STREAM_BYTES_MAX: u64 = 256 << 20;

/// Memory of a GPU that a loop over `get_tensor` fills ahead of what was asked for, half as much more
/// at most.
pub(crate) const AHEAD_BYTES_MAX: u64 = 32 << 20;

/// Bytes that wait in slots for the memory of the tensor after that: a `PCIe` 5 link moves them while its
/// caller asks for the next one.
pub(crate) const EARLY_BYTES_MAX: u64 = 32 << 20;

/// Bytes of a planned load, in the order in which they will be asked for, that are read in file order
/// before the next ones are.
pub(crate) const PLANNED_WINDOW_BYTES: u64 = 64 << 20;

/// How long what was read ahead on a GPU waits to be asked for.
pub(crate) const AHEAD_PATIENCE: Duration = Duration::from_secs(2);

/// Bytes that the read-ahead of a cold mapping asks for at a time.
pub(crate) const READ_AHEAD_BYTES: u64 = 4 << 20;

/// Below this rate a disk counts as slow, and what is read from it is worth keeping in the cache.
pub(crate) const SLOW_DISK_BYTES_PER_SECOND: u64 = 1 << 30;

/// How long a load watches the disk before it calls it slow.
pub(crate) const DISK_TRIAL: Duration = Duration::from_millis(500);

const _: () = assert!(SLOT_BYTES.is_multiple_of(ALIGNMENT_BYTES));
const _: () = assert!(SLOT_BYTES.is_multiple_of(WARM_CHUNK_BYTES));
const _: () = assert!(SMALL_FIRST_CHUNK_BYTES.is_multiple_of(ALIGNMENT_BYTES as u64));
const _: () = assert!(SMALL_FIRST_CHUNK_BYTES <= SMALL_CHUNK_BYTES_MAX);
const _: () = assert!(SMALL_CHUNK_BYTES_MAX.is_multiple_of(ALIGNMENT_BYTES as u64));
const _: () = assert!(SMALL_CHUNK_BYTES_MAX <= SLOT_BYTES as u64);
const _: () = assert!(PIECES_MAX > ALIGNMENT_BYTES + 1);
const _: () = assert!(SLOTS_MIN <= LOAD_SLOTS && LOAD_SLOTS_MAX <= RING_SLOTS_MAX);

/// Which reader the user wants; `Auto` decides by chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReaderChoice {
    /// `io_uring` for direct reads where the kernel allows it, pread threads otherwise.
    Auto,
    /// As `Auto`, and `io_uring` also for loads of very few reads.
    Uring,
    /// Pread threads only.
    Pread,
}

/// Sets `network_patience`.
pub(crate) const PATIENCE_VARIABLE: &str = "SAFETENSORS_STREAMING_NETWORK_PATIENCE";

/// What the environment says, read once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    /// `SAFETENSORS_STREAMING_READER`: `auto`, `io_uring` or `pread`.
    pub(crate) reader: ReaderChoice,
    /// `SAFETENSORS_STREAMING_NETWORK_PATIENCE`, in seconds: how long a server may say nothing, or next
    /// to nothing.
    pub(crate) network_patience: Duration,
    /// `LOCAL_WORLD_SIZE`: ranks on this host that will read the same files.
    pub(crate) local_ranks: usize,
}

/// The settings of this process.
pub(crate) fn config() -> Config {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    *CONFIG.get_or_init(|| Config {
        reader: match variable("SAFETENSORS_STREAMING_READER").as_deref() {
            Some("io_uring") => ReaderChoice::Uring,
            Some("pread") => ReaderChoice::Pread,
            _ => ReaderChoice::Auto,
        },
        network_patience: variable(PATIENCE_VARIABLE)
            .and_then(|text| Duration::try_from_secs_f64(text.parse().ok()?).ok())
            .filter(|patience| !patience.is_zero())
            .unwrap_or(Duration::from_secs(30)),
        local_ranks: variable("LOCAL_WORLD_SIZE").and_then(|text| text.parse().ok()).unwrap_or(1),
    })
}

/// What seeds tests simulate loads of: the one of `SIMULATION_SEED`, or as many as `SIMULATION_SEEDS` says.
#[cfg(test)]
pub(crate) fn simulation_seeds() -> std::ops::Range<u64> {
    let number = |name| variable(name).and_then(|text| text.parse::<u64>().ok());
    match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIMULATION_SEEDS").unwrap_or(3_000),
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Processors that the thread that asked first may use, counted once in each process: a dozen of the
/// kernel's files are opened for it, read and closed.
pub(crate) fn processors() -> usize {
    static KNOWN: AtomicU64 = AtomicU64::new(0); // the process above, its processors below
    let process = u64::from(std::process::id());
    let known = KNOWN.load(Ordering::Relaxed);
    if known >> 32 == process {
        return usize::try_from(known & u64::from(u32::MAX)).unwrap_or(1);
    }
    let count = std::thread::available_parallelism().map_or(2, usize::from);
    KNOWN.store(process << 32 | count as u64, Ordering::Relaxed);
    count
}

/// A load of so many cached bytes is read by its own thread, and a single tensor of so many is copied by it
/// as well.
pub(crate) fn alone_bytes_max() -> u64 {
    let slots = if processors() <= FEW_PROCESSORS { ALONE_SLOTS_OF_FEW } else { 1 };
    slots as u64 * SLOT_BYTES as u64
}

/// Bytes of memory that can be had without swapping, the limits of its container counted.
pub(crate) fn memory_available_bytes() -> u64 {
    let host = small_file("/proc/meminfo")
        .and_then(|text| Some(number_of(&text, "MemAvailable:")? * 1024));
    host.unwrap_or(u64::MAX).min(group_available_bytes(Path::new("/sys/fs/cgroup")))
}

/// What the control groups that this process sees leave it. What they hold of files in the page cache
/// counts as left: the kernel drops that first.
fn group_available_bytes(root: &Path) -> u64 {
    let left = |folder: &Path, limit: &str, usage: &str, files: [&str; 2]| -> Option<u64> {
        let number = |name: &str| small_file(folder.join(name))?.trim().parse::<u64>().ok();
        let (limit, usage) = (number(limit)?, number(usage)?);
        let counted = small_file(folder.join("memory.stat")).unwrap_or_default();
        let cached: u64 = files.into_iter().filter_map(|name| number_of(&counted, name)).sum();
        Some(limit.saturating_sub(usage.saturating_sub(cached)))
    };
    let (new, old) =
        (["inactive_file", "active_file"], ["total_inactive_file", "total_active_file"]);
    let own = small_file("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let groups = Path::new(own).ancestors().map(|group| root.join(group));
    let limits = groups.filter_map(|group| left(&group, "memory.max", "memory.current", new));
    let (limit, usage) = ("memory.limit_in_bytes", "memory.usage_in_bytes");
    limits.chain(left(&root.join("memory"), limit, usage, old)).min().unwrap_or(u64::MAX)
}

/// The number behind a name in one of the kernel's lists.
fn number_of(list: &str, name: &str) -> Option<u64> {
    let line = list.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Bytes of the last-level caches of as many processors as this process may use, or a common size where
/// the kernel does not tell.
pub(crate) fn last_level_cache_bytes() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let told =
            |name: &str| small_file(format!("/sys/devices/system/cpu/cpu0/cache/index3/{name}"));
        let size = told("size").and_then(|text| text.trim().strip_suffix('K')?.parse().ok());
        let sharing = told("shared_cpu_list").map_or(0, |list| processors_listed(&list));
        let caches = if sharing > 0 { processors().div_ceil(sharing) } else { 1 };
        size.map_or(16 << 20, |kibibytes: usize| (kibibytes << 10) * caches)
    })
}

/// How many processors a list of the kernel's names, such as `0-7,16`.
fn processors_listed(ranges: &str) -> usize {
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(last.checked_sub(first)? + 1)
    };
    ranges.trim().split(',').filter_map(count).sum()
}

fn small_file(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::group_available_bytes;

    const STATISTICS: &str = "anon 700\nfile 250\ninactive_file 200\nactive_file 50\n\
                              total_inactive_file 400\ntotal_active_file 100\n";

    #[test]
    fn what_a_group_holds_of_files_is_left_to_it() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(root.path().join(name), text).unwrap();
        assert_eq!(group_available_bytes(root.path()), u64::MAX);
        write("memory.max", "max\n");
        write("memory.current", "950\n");
        assert_eq!(group_available_bytes(root.path()), u64::MAX);
        write("memory.max", "1000\n");
        assert_eq!(group_available_bytes(root.path()), 50);
        write("memory.stat", STATISTICS);
        assert_eq!(group_available_bytes(root.path()), 300);

        std::fs::create_dir(root.path().join("memory")).unwrap();
        write("memory/memory.limit_in_bytes", "900\n");
        write("memory/memory.usage_in_bytes", "1200\n");
        write("memory/memory.stat", STATISTICS);
        assert_eq!(group_available_bytes(root.path()), 200);
    }
}
