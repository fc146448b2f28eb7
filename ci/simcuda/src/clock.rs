//! Vector clocks: which work is ordered before which.

use std::sync::Arc;

/// For each stream the number of its last piece of work that is known to come before.
#[derive(Clone, Default)]
pub(crate) struct Clock(Vec<u64>);

impl Clock {
    /// The last known piece of work of a stream; 0: none.
    pub(crate) fn of(&self, stream: usize) -> u64 {
        self.0.get(stream).copied().unwrap_or(0)
    }

    /// Knows this piece of work of a stream, too.
    pub(crate) fn raise(&mut self, stream: usize, sequence: u64) {
        if self.0.len() <= stream {
            self.0.resize(stream + 1, 0);
        }
        self.0[stream] = self.0[stream].max(sequence);
    }

    /// Knows everything that the other clock knows.
    pub(crate) fn join(&mut self, other: &Clock) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).max(*theirs);
        }
    }

    /// Is this piece of work known?
    pub(crate) fn covers(&self, stamp: &Stamp) -> bool {
        self.of(stamp.stream) >= stamp.sequence
    }
}

/// One piece of work: its place in its stream, and what was ordered before it.
#[derive(Clone)]
pub(crate) struct Stamp {
    /// Index of the stream in clocks.
    pub(crate) stream: usize,
    /// Number within the stream, from 1.
    pub(crate) sequence: u64,
    /// What other streams did before.
    pub(crate) seen: Arc<Clock>,
    /// The stream's handle, for texts.
    pub(crate) handle: usize,
}

impl Stamp {
    /// Does this work come after the other, or is it the same?
    pub(crate) fn is_after(&self, other: &Stamp) -> bool {
        if self.stream == other.stream {
            self.sequence >= other.sequence
        } else {
            self.seen.covers(other)
        }
    }

    /// Is one of the two ordered after the other?
    pub(crate) fn is_ordered_with(&self, other: &Stamp) -> bool {
        self.is_after(other) || other.is_after(self)
    }

    /// The same piece of work?
    pub(crate) fn is(&self, other: &Stamp) -> bool {
        self.stream == other.stream && self.sequence == other.sequence
    }

    /// Makes a clock know this work and all before it.
    pub(crate) fn join_into(&self, clock: &mut Clock) {
        clock.join(&self.seen);
        clock.raise(self.stream, self.sequence);
    }
}
