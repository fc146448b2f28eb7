//! Who last wrote and who since read which bytes of one allocation.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::clock::{Clock, Stamp};

/// What a piece of work does with a range of bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Reads it.
    Read,
    /// Writes it.
    Write,
}

impl Use {
    /// For texts: "a … on stream".
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Use::Read => "read",
            Use::Write => "write",
        }
    }

    /// For texts: "the copy …".
    pub(crate) fn verb(self) -> &'static str {
        match self {
            Use::Read => "reads",
            Use::Write => "writes",
        }
    }
}

/// Bytes with one history.
#[derive(Clone, Default)]
struct Segment {
    end: usize,
    write: Option<Stamp>,
    /// Reads since the write, the last one of each stream.
    reads: Vec<Stamp>,
}

/// The history of an allocation, as far as it can still conflict.
#[derive(Default)]
pub(crate) struct Ranges {
    /// By first byte; they do not overlap.
    segments: BTreeMap<usize, Segment>,
    /// Number of segments at which those that the host knows to be done are dropped.
    sweep_at: usize,
}

const SWEEP_MIN: usize = 64;

impl Ranges {
    /// Enters one access; gives an earlier one that it is not ordered with, if there is one.
    pub(crate) fn enter(
        &mut self,
        range: Range<usize>,
        usage: Use,
        stamp: &Stamp,
        host: &Clock,
    ) -> Option<(Use, Stamp)> {
        self.sweep(host);
        let mut conflict = None;
        let mut last: Option<(usize, Segment)> = None;
        for (start, mut segment) in self.cut(range) {
            conflict = conflict.or_else(|| segment.conflict(usage, stamp));
            segment.note(usage, stamp, host);
            last = match last {
                Some((first, before)) if before.has_the_history_of(&segment) => {
                    Some((first, Segment { end: segment.end, ..before }))
                }
                before => {
                    self.segments.extend(before);
                    Some((start, segment))
                }
            };
        }
        self.segments.extend(last);
        conflict
    }

    /// An access that is neither before `stamp` nor, without a stamp, known to the host.
    pub(crate) fn pending(&self, stamp: Option<&Stamp>, host: &Clock) -> Option<(Use, Stamp)> {
        let open = |other: &Stamp| match stamp {
            Some(stamp) => !stamp.is_ordered_with(other),
            None => !host.covers(other),
        };
        self.segments.values().find_map(|segment| {
            let write = segment.write.iter().map(|stamp| (Use::Write, stamp));
            let reads = segment.reads.iter().map(|stamp| (Use::Read, stamp));
            write
                .chain(reads)
                .find(|(_, other)| open(other))
                .map(|(usage, other)| (usage, other.clone()))
        })
    }

    /// Everything enqueued from now on comes after what the host knows to be done.
    fn sweep(&mut self, host: &Clock) {
        if self.segments.len() < self.sweep_at.max(SWEEP_MIN) {
            return;
        }
        self.segments.retain(|_, segment| {
            !(segment.write.iter().all(|stamp| host.covers(stamp))
                && segment.reads.iter().all(|stamp| host.covers(stamp)))
        });
        self.sweep_at = (self.segments.len() * 2).max(SWEEP_MIN);
    }

    /// Takes the segments of a range out, cut to it, with empty ones where nothing was known.
    fn cut(&mut self, range: Range<usize>) -> Vec<(usize, Segment)> {
        self.split(range.start);
        self.split(range.end);
        let starts: Vec<usize> =
            self.segments.range(range.clone()).map(|(start, _)| *start).collect();
        let mut pieces = Vec::with_capacity(starts.len() + 1);
        let mut at = range.start;
        for start in starts {
            if at < start {
                pieces.push((at, Segment { end: start, ..Segment::default() }));
            }
            if let Some(segment) = self.segments.remove(&start) {
                at = segment.end;
                pieces.push((start, segment));
            }
        }
        if at < range.end {
            pieces.push((at, Segment { end: range.end, ..Segment::default() }));
        }
        pieces
    }

    /// Makes `at` a border of segments.
    fn split(&mut self, at: usize) {
        let Some((_, left)) = self.segments.range_mut(..at).next_back() else { return };
        if left.end > at {
            let right = left.clone();
            left.end = at;
            self.segments.insert(at, right);
        }
    }
}

impl Segment {
    fn conflict(&self, usage: Use, stamp: &Stamp) -> Option<(Use, Stamp)> {
        let unordered = |other: &&Stamp| !stamp.is_ordered_with(other);
        if let Some(write) = self.write.as_ref().filter(unordered) {
            return Some((Use::Write, write.clone()));
        }
        let read = self.reads.iter().filter(|_| usage == Use::Write).find(unordered)?;
        Some((Use::Read, read.clone()))
    }

    /// A kernel tells what it touches when it runs: work enqueued behind it may be entered already.
    fn note(&mut self, usage: Use, stamp: &Stamp, host: &Clock) {
        let superseded =
            |other: &Stamp| !other.is(stamp) && other.is_after(stamp) && !stamp.is_after(other);
        if self.write.as_ref().is_some_and(superseded) {
            return;
        }
        match usage {
            Use::Write => {
                self.write = Some(stamp.clone());
                self.reads.retain(superseded);
            }
            Use::Read => {
                self.reads.retain(|read| {
                    let replaced = read.stream == stamp.stream && stamp.is_after(read);
                    !replaced && !host.covers(read)
                });
                self.reads.push(stamp.clone());
            }
        }
    }

    fn has_the_history_of(&self, other: &Segment) -> bool {
        let same_write = match (&self.write, &other.write) {
            (Some(mine), Some(theirs)) => mine.is(theirs),
            (None, None) => true,
            _ => false,
        };
        same_write
            && self.reads.len() == other.reads.len()
            && self.reads.iter().zip(&other.reads).all(|(mine, theirs)| mine.is(theirs))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const STREAMS: usize = 3;
    const BYTES: u64 = 24;

    /// xorshift64: any generator does.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: u64) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % end) as usize
        }
    }

    /// Streams that work, join each other and are waited for by the host, at random.
    struct Streams {
        last: Vec<Stamp>,
        host: Clock,
    }

    impl Streams {
        fn new() -> Self {
            let stamp =
                |stream| Stamp { stream, sequence: 0, seen: Arc::default(), handle: stream };
            Streams { last: (0..STREAMS).map(stamp).collect(), host: Clock::default() }
        }

        fn step(&mut self, random: &mut Random) -> Stamp {
            let (stream, other) = (random.below(STREAMS as u64), random.below(STREAMS as u64));
            if random.below(8) == 0 {
                self.last[other].join_into(&mut self.host);
            }
            let joined = (random.below(2) == 0).then(|| self.last[other].clone());
            let next = &mut self.last[stream];
            let seen = Arc::make_mut(&mut next.seen);
            seen.join(&self.host);
            if let Some(stamp) = joined {
                stamp.join_into(seen);
            }
            next.sequence += 1;
            next.clone()
        }
    }

    /// Runs until the first conflict, beside a list of all accesses; gives their number.
    fn run(seed: u64) -> usize {
        let mut random = Random(seed * 0x9E37_79B9 + 1);
        let (mut streams, mut ranges) = (Streams::new(), Ranges::default());
        let mut all: Vec<(Range<usize>, Use, Stamp)> = Vec::new();
        for step in 0..400 {
            let stamp = streams.step(&mut random);
            let start = random.below(BYTES - 1);
            let range = start..start + 1 + random.below(BYTES - start as u64);
            let usage = if random.below(3) == 0 { Use::Write } else { Use::Read };
            let expected = all.iter().any(|(other, other_usage, other_stamp)| {
                let overlap = other.start < range.end && range.start < other.end;
                let conflict = usage == Use::Write || *other_usage == Use::Write;
                overlap && conflict && !stamp.is_after(other_stamp)
            });
            let found = ranges.enter(range.clone(), usage, &stamp, &streams.host);
            assert_eq!(found.is_some(), expected, "seed {seed}, step {step}");
            if expected {
                return step;
            }
            all.push((range, usage, stamp));
        }
        400
    }

    #[test]
    fn conflicts_are_those_of_a_list_of_all_accesses() {
        let steps: usize = (1..3000).map(run).sum();
        assert!(steps > 9000, "{steps}: too few accesses before the first conflict");
    }

    #[test]
    fn many_small_accesses_stay_cheap() {
        let (mut ranges, mut host) = (Ranges::default(), Clock::default());
        let stamp = |sequence| Stamp { stream: 0, sequence, seen: Arc::default(), handle: 0 };
        for sequence in 1..=100_000 {
            let start = sequence as usize * 64;
            assert!(ranges.enter(start..start + 32, Use::Write, &stamp(sequence), &host).is_none());
            if sequence % 1000 == 0 {
                host.raise(0, sequence);
            }
        }
        assert!(ranges.segments.len() <= 4000, "{}", ranges.segments.len());
    }
}
