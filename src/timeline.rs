//! When each read of a load was where, as the thread that carries the load saw it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

use crate::device::Slot;
use crate::plan::{Plan, Read};

/// What a read goes through, in this order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// The reader has it.
    Begun,
    /// Its bytes are in the slot.
    Read,
    /// The caller has the memory for it that was missing till then.
    Received,
    /// The memory that they go to is made, and the device has the slot.
    Handed,
    /// They are where they go.
    Placed,
    /// The caller has the tensors that became whole by them.
    Delivered,
}

const STEPS: usize = Step::Delivered as usize + 1;

/// The way of one read; times since the load began.
#[derive(Clone, Debug, Default)]
struct Passage {
    at: [Duration; STEPS],
    /// The copies before its kernels were done; none where no kernel placed anything.
    copied: Option<Duration>,
    slot: usize,
    shard: usize,
    offset: u64,
    bytes: usize,
    pieces: usize,
}

impl Passage {
    fn at(&self, step: Step) -> Duration {
        match step {
            Step::Received => self.at[step as usize].max(self.at(Step::Read)),
            _ => self.at[step as usize],
        }
    }

    fn between(&self, from: Step, to: Step) -> Duration {
        self.at(to).saturating_sub(self.at(from))
    }

    /// Its spans in the lanes of its slot and of the load's own thread.
    fn trace(&self, files: &[PathBuf], events: &mut Vec<Value>) {
        let Passage { shard, offset, bytes, pieces, .. } = *self;
        let file = files.get(shard).map(|path| path.display().to_string());
        let about = json!({
            "file": file, "offset": offset, "bytes": bytes, "pieces": pieces,
        });
        let steps = [
            ("read", Step::Begun, Step::Read),
            ("wait for memory", Step::Read, Step::Received),
            ("allocate", Step::Received, Step::Handed),
            ("place", Step::Handed, Step::Placed),
        ];
        let slot = lane_of_slot(self.slot);
        for (what, from, to) in steps {
            if matches!(to, Step::Received) && self.between(from, to).is_zero() {
                continue;
            }
            events.push(span(what, slot, self.at(from), self.at(to), &about));
        }
        let own = [
            ("allocate", Step::Received, Step::Handed),
            ("deliver", Step::Placed, Step::Delivered),
        ];
        for (what, from, to) in own {
            events.push(span(what, LOOP_LANE, self.at(from), self.at(to), &about));
        }
    }
}

/// Seconds in which something was under way; several things are at once.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Busy {
    /// At least one read was with the reader.
    pub(crate) reading: f64,
    /// At least one slot was with the device, its copies and kernels under way or next.
    pub(crate) placing: f64,
    /// Memory of tensors was made.
    pub(crate) allocating: f64,
    /// Tensors were handed to the caller.
    pub(crate) delivering: f64,
    /// Nothing was to be done before the caller had taken tensors.
    pub(crate) held_back: f64,
}

/// The ways of all reads of a load.
#[derive(Debug)]
pub(crate) struct Timeline {
    began: Instant,
    passages: Vec<Passage>,
    /// The addresses of the slots, by number.
    slots: Vec<usize>,
    held_back: Duration,
}

impl Timeline {
    /// Of a load that begins now.
    pub(crate) fn new(plan: &Plan) -> Self {
        let passages = vec![Passage::default(); plan.reads.len()];
        Self { began: Instant::now(), passages, slots: Vec::new(), held_back: Duration::ZERO }
    }

    /// A read is given to the reader.
    pub(crate) fn begin(&mut self, number: usize, read: &Read, slot: &Slot) {
        let address = slot.as_slice().as_ptr().addr();
        let known = self.slots.iter().position(|&known| known == address);
        let slot = known.unwrap_or(self.slots.len());
        if known.is_none() {
            self.slots.push(address);
        }
        let Read { shard, offset, bytes, ref pieces } = *read;
        let pieces = pieces.len();
        self.passages[number] =
            Passage { slot, shard, offset, bytes, pieces, ..Passage::default() };
        self.mark(number, Step::Begun);
    }

    /// A read has come to a step.
    pub(crate) fn mark(&mut self, number: usize, step: Step) {
        self.passages[number].at[step as usize] = self.began.elapsed();
    }

    /// A device has placed a read, and had done the copies before its kernels at that time.
    pub(crate) fn placed(&mut self, number: usize, copied: Option<Instant>) {
        let since = |time: Instant| time.saturating_duration_since(self.began);
        self.passages[number].copied = copied.map(since);
        self.mark(number, Step::Placed);
    }

    /// The load waited for its caller since that time.
    pub(crate) fn held_back(&mut self, since: Instant) {
        self.held_back += since.elapsed();
    }

    /// What was under way for how long.
    pub(crate) fn busy(&self) -> Busy {
        let sum = |from, to| -> f64 {
            let spans = self.passages.iter().map(|passage| passage.between(from, to));
            spans.sum::<Duration>().as_secs_f64()
        };
        Busy {
            reading: self.union(Step::Begun, Step::Read),
            placing: self.union(Step::Handed, Step::Placed),
            allocating: sum(Step::Received, Step::Handed),
            delivering: sum(Step::Placed, Step::Delivered),
            held_back: self.held_back.as_secs_f64(),
        }
    }

    /// How long at least one read was between two steps.
    fn union(&self, from: Step, to: Step) -> f64 {
        let spans = self.passages.iter().map(|passage| (passage.at(from), passage.at(to)));
        let mut spans: Vec<_> = spans.collect();
        spans.sort_unstable();
        let (mut covered, mut end) = (Duration::ZERO, Duration::ZERO);
        for (begin, until) in spans {
            covered += until.saturating_sub(begin.max(end));
            end = end.max(until);
        }
        covered.as_secs_f64()
    }

    /// The time line in the trace event format of Chrome: a lane for each slot, one for what the load's
    /// own thread does, and for one GPU, whose stream does one thing after the other, one for its copies
    /// and one for its kernels.
    pub(crate) fn trace(&self, files: &[PathBuf], device: &str) -> Value {
        let on_gpu = device.starts_with("cuda:") && !device.contains('+');
        let mut events = vec![name("process_name", 0, &format!("load to {device}"))];
        events.extend(
            (0..self.slots.len())
                .map(|slot| name("thread_name", lane_of_slot(slot), &format!("slot {slot}"))),
        );
        events.push(name("thread_name", LOOP_LANE, "loop: allocate, deliver"));
        if on_gpu {
            events.push(name("thread_name", COPY_LANE, &format!("copies to {device}")));
            events.push(name("thread_name", KERNEL_LANE, &format!("kernels on {device}")));
        }
        for passage in &self.passages {
            passage.trace(files, &mut events);
        }
        if on_gpu {
            self.trace_stream(&mut events);
        }
        json!({ "traceEvents": events, "displayTimeUnit": "ms" })
    }

    /// What the stream did: it begins a slot's copies when the one before is done.
    fn trace_stream(&self, events: &mut Vec<Value>) {
        let mut passages: Vec<&Passage> = self.passages.iter().collect();
        passages.sort_unstable_by_key(|passage| passage.at(Step::Handed));
        let mut free = Duration::ZERO;
        for passage in passages {
            let (begin, end) = (passage.at(Step::Handed).max(free), passage.at(Step::Placed));
            let copied = passage.copied.unwrap_or(end).clamp(begin, end.max(begin));
            let about = json!({ "bytes": passage.bytes, "pieces": passage.pieces });
            events.push(span("copy", COPY_LANE, begin, copied, &about));
            if passage.copied.is_some() {
                events.push(span("kernels", KERNEL_LANE, copied, end, &about));
            }
            free = end;
        }
    }
}

const LOOP_LANE: usize = 0;
const COPY_LANE: usize = 1;
const KERNEL_LANE: usize = 2;

fn lane_of_slot(slot: usize) -> usize {
    KERNEL_LANE + 1 + slot
}

fn name(what: &str, lane: usize, name: &str) -> Value {
    json!({ "name": what, "ph": "M", "pid": 0, "tid": lane, "args": { "name": name } })
}

fn span(what: &str, lane: usize, begin: Duration, end: Duration, about: &Value) -> Value {
    let microseconds = |time: Duration| time.as_secs_f64() * 1e6;
    let took = microseconds(end.saturating_sub(begin));
    json!({
        "name": what, "ph": "X", "pid": 0, "tid": lane,
        "ts": microseconds(begin), "dur": took, "args": about,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Passage, Step, Timeline};

    fn timeline(spans: &[(u64, u64)]) -> Timeline {
        let passage = |&(begun, read): &(u64, u64)| {
            let mut passage = Passage::default();
            passage.at[Step::Begun as usize] = Duration::from_secs(begun);
            passage.at[Step::Read as usize] = Duration::from_secs(read);
            passage
        };
        Timeline {
            began: std::time::Instant::now(),
            passages: spans.iter().map(passage).collect(),
            slots: Vec::new(),
            held_back: Duration::ZERO,
        }
    }

    #[test]
    fn what_overlaps_counts_once() {
        let reading = |spans: &[(u64, u64)]| timeline(spans).union(Step::Begun, Step::Read);
        let expected: [(&[(u64, u64)], f64); 4] = [
            (&[], 0.0),
            (&[(0, 2), (1, 3), (5, 6)], 4.0),
            (&[(5, 6), (0, 10), (2, 3)], 10.0),
            (&[(1, 2), (2, 4)], 3.0),
        ];
        for (spans, seconds) in expected {
            assert!((reading(spans) - seconds).abs() < 1e-9, "{spans:?}");
        }
    }
}
