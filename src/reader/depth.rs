//! How many bytes of direct reads, or of ranges asked for, to have in flight: as few as the source needs.
//! More of them end all late, and on many a virtual disk the sum is slower; a source far away needs more.

use std::time::{Duration, Instant};

use crate::config::{
    CONNECTIONS_MAX, DEPTH_BYTES, DEPTH_BYTES_MAX, FIRST_CHUNK_BYTES, REMOTE_READS, SLOT_BYTES,
};

/// A window is so many times what is in flight.
const WINDOW: u64 = 4;

/// Twice as much in flight has to be faster by so much to be kept.
const GAIN: f64 = 1.1;

/// Where the first, small read of a load takes so much of what later ones take, it is the way to the source
/// that takes time, and more at once may pay. Those of a disk that is near only wait for each other.
const FAR: f64 = 0.25;

/// Doubles what may be in flight where the source is far, as long as that pays.
#[derive(Debug)]
pub(crate) struct Depth {
    bytes_max: u64,
    /// What it never goes beyond.
    limit: u64,
    /// The source is on a network, and known to be far.
    remote: bool,
    in_flight: u64,
    /// Bytes that were begun at another depth, and do not count.
    skipped: u64,
    /// What the first small read took; none where there was none.
    first: Option<Duration>,
    window_bytes: u64,
    window_began: Option<Instant>,
    /// Reads of the window, and what they took together.
    reads: u32,
    took: Duration,
    /// Bytes per second at half of this depth.
    before: Option<f64>,
    settled: bool,
}

impl Depth {
    /// Of a load's beginning, whose first reads are small and do not count.
    pub(crate) fn new() -> Self {
        Self {
            bytes_max: DEPTH_BYTES,
            limit: DEPTH_BYTES_MAX,
            remote: false,
            in_flight: 0,
            skipped: 2 * DEPTH_BYTES,
            first: None,
            window_bytes: 0,
            window_began: None,
            reads: 0,
            took: Duration::ZERO,
            before: None,
            settled: false,
        }
    }

    /// Of requests over a network: the first ones set connections up, and do not count.
    pub(crate) fn of_requests() -> Self {
        let bytes_max = (REMOTE_READS * SLOT_BYTES) as u64;
        let limit = (CONNECTIONS_MAX * SLOT_BYTES) as u64;
        let skipped = bytes_max;
        Self { bytes_max, limit, remote: true, skipped, ..Self::new() }
    }

    /// How many reads of such a size may be in flight.
    pub(crate) fn reads(&self, bytes: u64) -> usize {
        usize::try_from(self.bytes_max.div_ceil(bytes)).unwrap_or(usize::MAX)
    }

    /// The source could not keep up: half as much, and no more experiments.
    pub(crate) fn halve(&mut self) {
        self.bytes_max = (self.bytes_max / 2).max(SLOT_BYTES as u64);
        self.settled = true;
    }

    /// Whether another read would only wait.
    pub(crate) fn is_full(&self) -> bool {
        self.in_flight >= self.bytes_max
    }

    /// A read begins.
    pub(crate) fn begin(&mut self, bytes: u64) {
        self.in_flight += bytes;
    }

    /// A read that was begun at that time has ended.
    pub(crate) fn end(&mut self, bytes: u64, since: Instant, now: Instant) {
        self.in_flight -= bytes;
        let took = now.duration_since(since);
        if bytes <= FIRST_CHUNK_BYTES {
            self.first.get_or_insert(took);
        }
        if self.settled {
            return;
        }
        if self.skipped > 0 {
            self.skipped = self.skipped.saturating_sub(bytes);
            self.window_began = Some(now);
            return;
        }
        self.window_bytes += bytes;
        self.reads += 1;
        self.took += took;
        let Some(began) = self.window_began else { return };
        if self.window_bytes >= WINDOW * self.bytes_max {
            self.judge(self.window_bytes as f64 / now.duration_since(began).as_secs_f64());
        }
    }

    /// Goes on from what this depth has brought.
    fn judge(&mut self, rate: f64) {
        let pays = match self.before {
            None => self.is_far(),
            Some(before) => rate > before * GAIN,
        };
        if self.before.is_some() && !pays {
            self.bytes_max /= 2;
        }
        self.settled = !pays || self.bytes_max >= self.limit;
        if !self.settled {
            self.before = Some(rate);
            self.skipped = self.bytes_max;
            self.bytes_max *= 2;
            self.window_bytes = 0;
        }
    }

    fn is_far(&self) -> bool {
        if self.remote {
            return true;
        }
        let mean = self.took / self.reads.max(1);
        self.first.is_some_and(|first| first.as_secs_f64() > mean.as_secs_f64() * FAR)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::{Duration, Instant};

    use super::{DEPTH_BYTES, DEPTH_BYTES_MAX, Depth, FIRST_CHUNK_BYTES};
    use crate::config::SLOT_BYTES;

    /// What a depth comes to where reads are begun `latency` seconds after they were asked for and
    /// done one after the other, at a rate that depends on the bytes in flight.
    fn settled(latency: f64, rate: impl Fn(u64) -> f64) -> u64 {
        settled_with(4, latency, rate)
    }

    /// The same for a load whose first reads, so many of them, are small.
    fn settled_with(small_reads: usize, latency: f64, rate: impl Fn(u64) -> f64) -> u64 {
        settle(&mut Depth::new(), small_reads, latency, rate)
    }

    /// The same of a given beginning.
    fn settle(
        depth: &mut Depth,
        small_reads: usize,
        latency: f64,
        rate: impl Fn(u64) -> f64,
    ) -> u64 {
        let mut now = Instant::now();
        let (mut reads, mut in_flight) = (VecDeque::new(), 0);
        for number in 0..1000 {
            while !depth.is_full() {
                let small = number == 0 && reads.len() < small_reads;
                let bytes = if small { FIRST_CHUNK_BYTES } else { SLOT_BYTES as u64 };
                depth.begin(bytes);
                reads.push_back((bytes, now));
                in_flight += bytes;
            }
            let (bytes, since): (u64, Instant) = reads.pop_front().unwrap();
            let begun = now.max(since + Duration::from_secs_f64(latency));
            now = begun + Duration::from_secs_f64(bytes as f64 / rate(in_flight));
            depth.end(bytes, since, now);
            in_flight -= bytes;
        }
        assert!(depth.settled);
        depth.bytes_max
    }

    #[test]
    fn a_disk_that_is_near_is_left_in_peace() {
        assert_eq!(settled(1e-4, |_| 2e9), DEPTH_BYTES);
        assert_eq!(settled(1e-4, |in_flight| 3e9 - in_flight as f64 * 10.0), DEPTH_BYTES);
    }

    #[test]
    fn who_has_seen_no_small_read_takes_the_disk_for_near() {
        assert_eq!(settled_with(0, 1e-4, |_| 2e9), DEPTH_BYTES);
    }

    #[test]
    fn a_source_far_away_is_asked_for_more_while_that_pays() {
        assert_eq!(settled(0.05, |_| 1e10), DEPTH_BYTES_MAX);
        assert_eq!(settled(0.05, |_| 3e8), 2 * DEPTH_BYTES);
        assert_eq!(settled(0.05, |_| 8e8), 4 * DEPTH_BYTES);
        assert_eq!(settled(0.05, |in_flight| 3e9 - in_flight as f64 * 20.0), 4 * DEPTH_BYTES);
    }

    #[test]
    fn requests_are_more_while_that_pays_and_fewer_after_a_failure() {
        let slot = SLOT_BYTES as u64;
        let settled = |rate: f64| settle(&mut Depth::of_requests(), 0, 0.08, |_| rate);
        assert_eq!(settled(2e8), 8 * slot);
        assert_eq!(settled(1e9), 16 * slot);
        assert_eq!(settled(1e11), 64 * slot);
        let mut depth = Depth::of_requests();
        for reads in [4, 2, 1, 1] {
            depth.halve();
            assert_eq!(depth.reads(slot), reads);
        }
    }

    #[test]
    fn small_reads_are_many() {
        let mut depth = Depth::new();
        let mut begun = 0;
        while !depth.is_full() {
            depth.begin(64 << 10);
            begun += 1;
        }
        assert_eq!(begun, DEPTH_BYTES / (64 << 10));
    }
}
