//! How fast a disk is, by the reads that were asked of it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::config::{DISK_TRIAL, SLOW_DISK_BYTES_PER_SECOND};
use crate::reader::pread::Path;

/// The reads of a load that the page cache could not answer. Only the time counts in which one was in
/// flight: a load may wait for who takes its tensors, or for a link.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// On which path, and since when, by the numbers of the reads.
    in_flight: HashMap<usize, (Path, Instant)>,
    /// Since when one or another was.
    busy_since: Option<Instant>,
    busy: Duration,
    bytes: u64,
}

impl Disk {
    /// A read begins.
    pub(crate) fn begin(&mut self, tag: usize, path: Path, now: Instant) {
        self.in_flight.insert(tag, (path, now));
        self.busy_since.get_or_insert(now);
    }

    /// A read has ended; on which path, and when it was begun, if it was one of these.
    pub(crate) fn end(&mut self, tag: usize, bytes: u64, now: Instant) -> Option<(Path, Instant)> {
        let (path, since) = self.in_flight.remove(&tag)?;
        self.bytes += bytes;
        if self.in_flight.is_empty() {
            self.busy = self.busy_for(now);
            self.busy_since = None;
        }
        Some((path, since))
    }

    /// A slow disk makes the cache worth filling: the next load gains more than this one loses.
    pub(crate) fn is_slow(&self, now: Instant) -> bool {
        let busy = self.busy_for(now);
        let rate = self.bytes as f64 / busy.as_secs_f64();
        busy > DISK_TRIAL && rate < SLOW_DISK_BYTES_PER_SECOND as f64
    }

    fn busy_for(&self, now: Instant) -> Duration {
        self.busy + self.busy_since.map_or(Duration::ZERO, |since| now.duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Disk;
    use crate::reader::pread::Path;

    const READ_BYTES: u64 = 8 << 20;

    /// Two reads at a time that take so many milliseconds, and a pause after them.
    fn is_slow(took: u64, pause: u64) -> bool {
        let (mut disk, mut now) = (Disk::default(), Instant::now());
        for turn in 0..200 {
            let tags = [2 * turn, 2 * turn + 1];
            for tag in tags {
                disk.begin(tag, Path::Direct, now);
            }
            now += Duration::from_millis(took);
            assert!(tags.iter().all(|&tag| disk.end(tag, READ_BYTES, now).is_some()));
            now += Duration::from_millis(pause);
        }
        disk.is_slow(now)
    }

    #[test]
    fn who_waits_for_its_caller_does_not_wait_for_the_disk() {
        assert!(!is_slow(8, 0));
        assert!(!is_slow(8, 1000));
        assert!(is_slow(30, 0));
        assert!(is_slow(30, 1000));
    }

    #[test]
    fn nothing_is_said_of_a_disk_that_was_hardly_asked() {
        let (mut disk, began) = (Disk::default(), Instant::now());
        disk.begin(0, Path::Buffered, began);
        assert!(!disk.is_slow(began + Duration::from_millis(100)));
        assert!(disk.is_slow(began + Duration::from_secs(2)));
        assert!(disk.end(1, READ_BYTES, began).is_none());
    }
}
