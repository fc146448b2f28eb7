//! How many bytes of direct reads to have in flight: as few as the disk needs. More of them end all late,
//! and on many a virtual disk the sum is slower; a source far away needs more.

use std::time::Instant;

use crate::config::{DEPTH_BYTES, DEPTH_BYTES_MAX};

/// A window is so many times what is in flight.
const WINDOW: u64 = 4;

/// Twice as much in flight has to be faster by so much to be kept.
const GAIN: f64 = 1.1;

/// Doubles what may be in flight as long as that pays.
#[derive(Debug)]
pub(crate) struct Depth {
    bytes_max: u64,
    in_flight: u64,
    /// Bytes that were begun at another depth, and do not count.
    skipped: u64,
    window_bytes: u64,
    window_began: Option<Instant>,
    /// Bytes per second at half of this depth.
    before: Option<f64>,
    settled: bool,
}

impl Depth {
    /// Of a load's beginning, whose first reads are small and do not count.
    pub(crate) fn new() -> Self {
        Self {
            bytes_max: DEPTH_BYTES,
            in_flight: 0,
            skipped: 2 * DEPTH_BYTES,
            window_bytes: 0,
            window_began: None,
            before: None,
            settled: false,
        }
    }

    /// Whether another read would only wait.
    pub(crate) fn is_full(&self) -> bool {
        self.in_flight >= self.bytes_max
    }

    /// A read begins.
    pub(crate) fn begin(&mut self, bytes: usize) {
        self.in_flight += bytes as u64;
    }

    /// A read has ended.
    pub(crate) fn end(&mut self, bytes: usize, now: Instant) {
        self.in_flight -= bytes as u64;
        if self.settled {
            return;
        }
        if self.skipped > 0 {
            self.skipped = self.skipped.saturating_sub(bytes as u64);
            self.window_began = Some(now);
            return;
        }
        self.window_bytes += bytes as u64;
        let Some(began) = self.window_began else { return };
        if self.window_bytes >= WINDOW * self.bytes_max {
            self.judge(self.window_bytes as f64 / now.duration_since(began).as_secs_f64());
        }
    }

    /// Goes on from what this depth has brought.
    fn judge(&mut self, rate: f64) {
        let paid = self.before.is_none_or(|before| rate > before * GAIN);
        if !paid {
            self.bytes_max /= 2;
        }
        self.settled = !paid || self.bytes_max >= DEPTH_BYTES_MAX;
        if !self.settled {
            self.before = Some(rate);
            self.skipped = self.bytes_max;
            self.bytes_max *= 2;
            self.window_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Depth;
    use crate::config::{DEPTH_BYTES, DEPTH_BYTES_MAX, SLOT_BYTES};

    /// Where a depth comes to on a disk that reads so many bytes a second with so many in flight.
    fn settled(rate: impl Fn(u64) -> f64) -> u64 {
        let (mut depth, mut now) = (Depth::new(), Instant::now());
        let mut in_flight = 0;
        for _ in 0..1000 {
            while !depth.is_full() {
                depth.begin(SLOT_BYTES);
                in_flight += SLOT_BYTES as u64;
            }
            now += Duration::from_secs_f64(SLOT_BYTES as f64 / rate(in_flight));
            depth.end(SLOT_BYTES, now);
            in_flight -= SLOT_BYTES as u64;
        }
        assert!(depth.settled);
        depth.bytes_max
    }

    #[test]
    fn a_disk_that_gains_nothing_is_left_in_peace() {
        assert_eq!(settled(|_| 2e9), DEPTH_BYTES);
        assert_eq!(settled(|in_flight| 3e9 - in_flight as f64 * 10.0), DEPTH_BYTES);
        assert_eq!(settled(|in_flight| 2e9 + in_flight as f64), DEPTH_BYTES);
    }

    #[test]
    fn a_source_far_away_is_asked_for_more() {
        let far = |in_flight: u64| in_flight as f64 / 0.05;
        assert_eq!(settled(far), DEPTH_BYTES_MAX);
        let limit = 3.0 * DEPTH_BYTES as f64 / 0.05;
        assert_eq!(settled(|in_flight| far(in_flight).min(limit)), 4 * DEPTH_BYTES);
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
