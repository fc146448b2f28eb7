//! How many bytes of direct reads, or of ranges asked for, to have in flight: as few as the source needs.
//! More of them end all late, and on many a virtual disk the sum is slower; a source far away needs more.

use std::time::{Duration, Instant};

use crate::config::{
    CONNECTIONS_MAX, DEPTH_WINDOW_BYTES, DIRECT_READS, DIRECT_READS_MAX, FIRST_CHUNK_BYTES,
    REMOTE_READS, SLOT_BYTES,
};

/// A window is so many times what is in flight, and `DEPTH_WINDOW_BYTES` at least.
const WINDOW: u64 = 4;

/// Twice as much in flight has to be faster by so much to be kept.
const GAIN: f64 = 1.1;

/// Doubles what may be in flight where the source is far, as long as that pays.
#[derive(Debug)]
pub(crate) struct Depth {
    bytes_max: u64,
    /// How large most reads are.
    read_bytes: u64,
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
    /// Of a load whose first reads are small and do not count; most are of so many bytes.
    pub(crate) fn new(read_bytes: usize) -> Self {
        Self::of_reads(read_bytes, DIRECT_READS, DIRECT_READS_MAX)
    }

    /// Of requests over a network: the first ones set connections up, and do not count.
    pub(crate) fn of_requests() -> Self {
        let requests = Self::of_reads(SLOT_BYTES, REMOTE_READS, CONNECTIONS_MAX);
        Self { remote: true, skipped: requests.bytes_max, ..requests }
    }

    fn of_reads(read_bytes: usize, reads: usize, reads_max: usize) -> Self {
        let bytes_max = (reads * read_bytes) as u64;
        Self {
            bytes_max,
            read_bytes: read_bytes as u64,
            limit: (reads_max * read_bytes) as u64,
            remote: false,
            in_flight: 0,
            skipped: 2 * bytes_max,
            first: None,
            window_bytes: 0,
            window_began: None,
            reads: 0,
            took: Duration::ZERO,
            before: None,
            settled: false,
        }
    }

    /// Slots for what may be in flight, a quarter of which is with the device; none for no more direct reads
    /// than every load begins with.
    pub(crate) fn slots_worth(&self) -> usize {
        let reads = self.reads(self.read_bytes);
        let more = self.remote || reads > DIRECT_READS;
        if more { reads + reads.div_ceil(3) } else { 0 }
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
        if self.window_bytes >= (WINDOW * self.bytes_max).max(DEPTH_WINDOW_BYTES) {
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

    /// Where the first, small read of a load takes nearly as long as later ones, it is the way to the source
    /// that takes time, and more at once may pay. Those of a disk that is near only wait for each other, and
    /// it for its share of what is in flight. Between the two is their geometric mean. Where no read was
    /// small, trying tells.
    fn is_far(&self) -> bool {
        let mean = self.took / self.reads.max(1);
        let near = FIRST_CHUNK_BYTES as f64 / self.bytes_max as f64;
        let far = |first: Duration| first.as_secs_f64() > mean.as_secs_f64() * near.sqrt();
        self.remote || self.first.is_none_or(far)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::{Duration, Instant};

    use super::{DIRECT_READS, DIRECT_READS_MAX, Depth, FIRST_CHUNK_BYTES};
    use crate::config::{
        CONNECTIONS_MAX, DIRECT_CHUNK_BYTES, REMOTE_READS, RING_SLOTS_MAX, SLOT_BYTES,
    };

    /// Reads in flight in the end, and the most that were tried, where reads are begun `latency` seconds
    /// after they were asked for and done one after the other, at a rate that depends on the bytes in flight.
    fn settled(latency: f64, rate: impl Fn(u64) -> f64) -> (usize, usize) {
        settle(&mut Depth::new(DIRECT_CHUNK_BYTES), 4, latency, rate)
    }

    /// The same of a given beginning, for a load whose first reads, so many of them, are small.
    fn settle(
        depth: &mut Depth,
        small_reads: usize,
        latency: f64,
        rate: impl Fn(u64) -> f64,
    ) -> (usize, usize) {
        let mut now = Instant::now();
        let (mut reads, mut in_flight, mut most) = (VecDeque::new(), 0, 0);
        for number in 0..1000 {
            while !depth.is_full() {
                let small = number == 0 && reads.len() < small_reads;
                let bytes = if small { FIRST_CHUNK_BYTES } else { depth.read_bytes };
                depth.begin(bytes);
                reads.push_back((bytes, now));
                in_flight += bytes;
            }
            most = most.max(depth.reads(depth.read_bytes));
            let (bytes, since): (u64, Instant) = reads.pop_front().unwrap();
            let begun = now.max(since + Duration::from_secs_f64(latency));
            now = begun + Duration::from_secs_f64(bytes as f64 / rate(in_flight));
            depth.end(bytes, since, now);
            in_flight -= bytes;
        }
        assert!(depth.settled);
        (depth.reads(depth.read_bytes), most)
    }

    #[test]
    fn a_disk_that_is_near_is_left_in_peace() {
        let in_peace = (DIRECT_READS, DIRECT_READS);
        assert_eq!(settled(1e-4, |_| 2e9), in_peace);
        assert_eq!(settled(1e-4, |in_flight| 3e9 - in_flight as f64 * 10.0), in_peace);
        assert_eq!(settle(&mut Depth::new(SLOT_BYTES), 4, 1e-3, |_| 2e9), in_peace);
    }

    #[test]
    fn where_no_read_was_small_one_trial_tells() {
        let once_more = (DIRECT_READS, 2 * DIRECT_READS);
        assert_eq!(settle(&mut Depth::new(DIRECT_CHUNK_BYTES), 0, 1e-4, |_| 2e9), once_more);
    }

    #[test]
    fn a_source_far_away_is_asked_for_more_while_that_pays() {
        assert_eq!(settled(0.05, |_| 1e10).0, DIRECT_READS_MAX);
        assert_eq!(settled(0.004, |_| 1e9), (4, 8));
        assert_eq!(settled(0.01, |_| 1e9), (8, 16));
        assert_eq!(settled(0.01, |in_flight| 2e9 - in_flight as f64 * 40.0), (8, 16));
        assert_eq!(settle(&mut Depth::new(SLOT_BYTES), 4, 0.05, |_| 8e8), (8, 16));
    }

    #[test]
    fn slots_are_asked_for_where_more_reads_have_paid() {
        let mut depth = Depth::new(DIRECT_CHUNK_BYTES);
        assert_eq!(depth.slots_worth(), 0);
        settle(&mut depth, 4, 0.05, |_| 1e10);
        let slots = depth.slots_worth();
        assert!(slots - slots / 4 >= DIRECT_READS_MAX && slots <= RING_SLOTS_MAX, "{slots}");
    }

    #[test]
    fn requests_are_more_while_that_pays_and_fewer_after_a_failure() {
        let settled = |rate: f64| settle(&mut Depth::of_requests(), 0, 0.08, |_| rate).0;
        assert_eq!(settled(2e8), REMOTE_READS);
        assert_eq!(settled(1e9), 16);
        assert_eq!(settled(1e11), CONNECTIONS_MAX);
        let mut depth = Depth::of_requests();
        for reads in [4, 2, 1, 1] {
            depth.halve();
            assert_eq!(depth.reads(SLOT_BYTES as u64), reads);
        }
    }

    #[test]
    fn small_reads_are_many() {
        let mut depth = Depth::new(DIRECT_CHUNK_BYTES);
        let mut begun = 0;
        while !depth.is_full() {
            depth.begin(64 << 10);
            begun += 1;
        }
        assert_eq!(begun, DIRECT_READS * DIRECT_CHUNK_BYTES / (64 << 10));
    }
}
