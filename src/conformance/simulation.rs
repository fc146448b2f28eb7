//! Loads simulated: files, plans, ring, delays, what fails and when, who stops, and which loads run at
//! once, all drawn from one seed. `SIMULATION_SEEDS` says how many seeds, `SIMULATION_SEED` takes one again.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::{content, println_in_test, tell_figure};
use crate::config::{SLOTS_MIN, simulation_seeds};
use crate::device::fake::FakeDevice;
use crate::device::{Allocator, Buffer, Destination, HostBuffer};
use crate::error::{Error, Result};
use crate::pipeline::{Caller, Load};
use crate::plan::{Chunks, Plan, Read, Wanted};
use crate::reader::Reader;
use crate::reader::fake::FakeReader;
use crate::ring::Ring;
use crate::source::Source;
use crate::source::faulty::{Fate, Faults, Mode};

/// Never.
const NEVER: u64 = u64::MAX;

/// What the seeds came to.
#[derive(Default)]
struct Tally {
    right: usize,
    refused: BTreeMap<&'static str, usize>,
    at_once: usize,
    slots: usize,
}

/// What loads of one seed share.
struct World<'tally> {
    fate: Arc<Fate>,
    ring: Ring,
    slot_bytes: usize,
    slots_max: usize,
    /// Loads that may still begin, and those that run.
    left: Cell<usize>,
    running: Cell<usize>,
    /// Slots that their readers have use for, beyond the ring's.
    worth: Cell<usize>,
    tally: &'tally RefCell<Tally>,
}

/// A file in memory, read in pieces of any length; interrupted, and changed on cue.
#[derive(Debug)]
struct File {
    bytes: Vec<u8>,
    promised: u64,
    fate: Arc<Fate>,
    faults: Arc<Faults>,
}

impl Source for File {
    fn path(&self) -> &Path {
        Path::new("<simulated>")
    }

    fn len(&self) -> u64 {
        self.promised
    }

    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<usize> {
        if self.fate.below(8) == 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.faults.step()?;
        let rest = self.bytes.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        let most = if self.fate.below(2) == 0 { target.len() } else { 1 + self.fate.below(20_000) };
        let count = target.len().min(rest.len()).min(most);
        target[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn check_unchanged(&self) -> Result<()> {
        self.faults.step().map_err(|error| Error::io(self.path(), error))
    }
}

/// Memory that runs out on cue, and is looked after.
struct Memory {
    faults: Arc<Faults>,
    made: Vec<HostBuffer>,
}

impl Allocator for Memory {
    fn allocate(&mut self, _target: usize, bytes: usize) -> Result<Buffer> {
        let refused = |_| Error::Memory { bytes: bytes as u64, purpose: "a tensor" };
        self.faults.step().map_err(refused)?;
        let made = HostBuffer::new(bytes)?;
        self.made.push(made.clone());
        Ok(Buffer::Host(made))
    }
}

/// Takes what arrives; has no memory for some of it at first, stops at some time, begins other loads.
struct Person<'world> {
    world: &'world World<'world>,
    faults: Arc<Faults>,
    stops: u64,
    /// When a read may begin, and when there is memory for it, by its offset.
    admits: HashMap<u64, u64>,
    receives: HashMap<u64, u64>,
    arrived: Vec<Option<Vec<u8>>>,
    sizes: Vec<usize>,
}

impl Person<'_> {
    fn in_time(fate: &Fate, times: &mut HashMap<u64, u64>, read: &Read) -> bool {
        let patient = || if fate.below(4) == 0 { fate.later() } else { 0 };
        let when = *times.entry(read.offset ^ ((read.shard as u64) << 48)).or_insert_with(patient);
        when <= fate.look()
    }
}

impl Caller for Person<'_> {
    fn deliver(&mut self, target: usize, buffer: Buffer) -> Result<()> {
        self.faults.step().map_err(|error| Error::Stopped(Box::new(error)))?;
        let Buffer::Host(buffer) = buffer else { panic!("host memory was made") };
        let bytes = buffer.to_vec(self.sizes[target]);
        assert!(self.arrived[target].replace(bytes).is_none(), "delivered twice");
        if self.world.left.get() > 0 && self.world.fate.below(4) == 0 {
            self.world.load();
        }
        Ok(())
    }

    fn check(&mut self, _bytes_done: u64) -> Result<()> {
        if self.world.fate.now() < self.stops {
            return Ok(());
        }
        Err(Error::Stopped("somebody stopped it".into()))
    }

    fn admits(&mut self, read: &Read) -> bool {
        Self::in_time(&self.world.fate, &mut self.admits, read)
    }

    fn receives(&mut self, read: &Read) -> bool {
        Self::in_time(&self.world.fate, &mut self.receives, read)
    }
}

/// A drawn range of a file, or columns of one, and the bytes that it holds.
fn draw_wanted(fate: &Fate, shard: usize, content: &[u8]) -> (Wanted, Vec<u8>) {
    let begin = fate.below(content.len() + 1);
    let end = begin + fate.below(content.len() - begin + 1);
    let whole = Wanted::range(shard, begin as u64, end as u64);
    let rows = 1 + fate.below(30);
    let stride = (end - begin) / rows;
    if stride == 0 || fate.below(3) > 0 {
        return (whole, content[begin..end].to_vec());
    }
    let (first, last) = (fate.below(stride), fate.below(stride));
    let columns = first.min(last)..first.max(last) + 1;
    let matrix = Wanted::range(shard, begin as u64, (begin + rows * stride) as u64);
    let rows = content[begin..begin + rows * stride].chunks_exact(stride);
    let bytes = rows.flat_map(|row| row[columns.clone()].iter().copied()).collect();
    (matrix.columns(stride as u64, columns.start as u64..columns.end as u64), bytes)
}

impl<'tally> World<'tally> {
    fn new(seed: u64, tally: &'tally RefCell<Tally>) -> Self {
        let fate = Fate::new(seed);
        let slot_bytes = [4 << 10, 16 << 10, 64 << 10][fate.below(3)];
        let slots_max = SLOTS_MIN + fate.below(8);
        let ring = Ring::new(slot_bytes, slots_max, 1);
        // Made ahead: threads that make them are ready at no time that a seed could say.
        ring.lend(fate.below(slots_max + 1), usize::MAX, 0).unwrap().complete();
        let left = Cell::new(1 + fate.below(4));
        let (running, worth) = (Cell::new(0), Cell::new(0));
        Self { fate, ring, slot_bytes, slots_max, left, running, worth, tally }
    }

    /// One load of the seed, and what must hold whatever happens to it.
    fn load(&self) {
        self.left.set(self.left.get() - 1);
        self.running.set(self.running.get() + 1);
        let fate = &self.fate;
        let failing = if fate.below(2) == 0 { usize::MAX } else { 1 + fate.below(100) };
        let mode = if fate.below(2) == 0 { Mode::Once } else { Mode::FromThenOn };
        let faults = Faults::at(failing, mode);
        let contents: Vec<Vec<u8>> = (0..=fate.below(3))
            .map(|salt| content([0, 1, 4096, fate.below(200_000)][fate.below(4)], salt))
            .collect();
        let missing = if fate.below(16) == 0 { 1 + fate.below(9000) as u64 } else { 0 };
        let file = |bytes: &Vec<u8>| -> Arc<dyn Source> {
            let (fate, faults) = (Arc::clone(fate), Arc::clone(&faults));
            let promised = bytes.len() as u64 + missing;
            Arc::new(File { bytes: bytes.clone(), promised, fate, faults })
        };
        let sources: Arc<[Arc<dyn Source>]> = contents.iter().map(file).collect();
        let mut all: Vec<(Wanted, Vec<u8>)> = (0..=fate.below(9))
            .map(|_| fate.below(contents.len()))
            .map(|shard| draw_wanted(fate, shard, &contents[shard]))
            .collect();
        if missing > 0 {
            let end = contents[0].len() as u64;
            all.push((Wanted::range(0, end, end + missing), Vec::new()));
        }
        let stops = if fate.below(8) == 0 { fate.later() + fate.below(2000) as u64 } else { NEVER };
        let outcome = self.run(&sources, &faults, &all, stops);
        self.running.set(self.running.get() - 1);
        let told = matches!(outcome, Err(Error::Stopped(_))) && stops < NEVER;
        if missing > 0 || faults.fired() {
            assert!(outcome.is_err(), "what failed is told to nobody");
        } else if !told {
            assert!(outcome.is_ok(), "{outcome:?} without a fault");
        }
        self.count(&outcome);
    }

    fn run(
        &self,
        sources: &Arc<[Arc<dyn Source>]>,
        faults: &Arc<Faults>,
        all: &[(Wanted, Vec<u8>)],
        stops: u64,
    ) -> Result<()> {
        let fate = &self.fate;
        let wanted: Vec<Wanted> = all.iter().map(|(wanted, _)| *wanted).collect();
        let lengths: Vec<u64> = sources.iter().map(|source| source.len()).collect();
        let chunks = [Chunks::growing, Chunks::equal][fate.below(2)](self.slot_bytes);
        let window = [u64::MAX, 1 + fate.below(100_000) as u64][fate.below(2)];
        let plan = Plan::new(wanted, &lengths, chunks, window);
        let worth = if fate.below(4) == 0 { fate.below(24) } else { 0 };
        self.worth.set(self.worth.get() + worth);
        let mut reader = FakeReader::new(sources, faults, fate).worth(worth);
        let mut device = FakeDevice::new(faults, fate);
        let mut memory = Memory { faults: Arc::clone(faults), made: Vec::new() };
        let mut person = Person {
            world: self,
            faults: Arc::clone(faults),
            stops,
            admits: HashMap::new(),
            receives: HashMap::new(),
            arrived: vec![None; all.len()],
            sizes: all.iter().map(|(wanted, _)| usize::try_from(wanted.bytes()).unwrap()).collect(),
        };
        let mut lease = self.ring.lend(1 + fate.below(self.slots_max), 0, 0).unwrap();
        let outcome = Load {
            plan: &plan,
            sources,
            reader: &mut reader,
            to: Destination { device: &mut device, allocator: &mut memory },
            lease: &mut lease,
            caller: &mut person,
        }
        .run();
        assert_eq!((reader.in_flight(), crate::device::Device::in_flight(&device)), (0, 0));
        assert_eq!(lease.missing(), 0, "slots are lost");
        self.check_slots();
        drop(lease);
        self.worth.set(self.worth.get() - worth);
        assert!(memory.made.iter().all(|buffer| buffer.users() == 1), "memory is left");
        for ((_, expected), arrived) in all.iter().zip(&person.arrived) {
            let right = arrived.as_ref().map_or(outcome.is_err(), |bytes| bytes == expected);
            assert!(right, "other bytes, or none");
        }
        outcome.map(drop)
    }

    /// Each load that finds the ring exhausted has one slot beyond it.
    fn check_slots(&self) {
        let most = self.slots_max + self.running.get() + self.worth.get();
        assert!(self.ring.made() <= most, "{} slots, {most} are the most", self.ring.made());
        let mut tally = self.tally.borrow_mut();
        tally.slots = tally.slots.max(self.ring.made());
        tally.at_once = tally.at_once.max(self.running.get());
    }

    fn count(&self, outcome: &Result<()>) {
        let mut tally = self.tally.borrow_mut();
        let kind = match outcome {
            Ok(()) => return tally.right += 1,
            Err(Error::Read { got, wanted, .. }) if got < wanted => "read",
            Err(Error::Memory { .. } | Error::HostMemory { .. }) => "memory",
            Err(Error::Stopped(_)) => "stopped",
            Err(Error::Io { .. }) => "changed",
            Err(Error::Internal(text)) if text.contains("on cue") => "copy",
            Err(other) => panic!("an error of another type: {other:?}"),
        };
        *tally.refused.entry(kind).or_default() += 1;
    }
}

/// A seed's number is told where one of its assertions fails.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println_in_test(&format!("again: SIMULATION_SEED={} cargo test --lib seeds", self.0));
        }
    }
}

#[test]
fn seeds_end_in_right_bytes_or_a_typed_error() {
    let seeds = simulation_seeds();
    let tally = RefCell::new(Tally::default());
    for seed in seeds.clone() {
        let _named = Named(seed);
        let world = World::new(seed, &tally);
        while world.left.get() > 0 {
            world.load();
        }
        assert_eq!(world.ring.made(), world.ring.idle(), "a slot is lost");
        assert!(world.ring.made() <= world.slots_max);
    }
    let Tally { right, refused, at_once, slots } = tally.into_inner();
    let seeds = seeds.count();
    println_in_test(&format!(
        "simulation: {seeds} seeds, {right} loads right, typed errors {refused:?}, up to {at_once} loads \
         at once, up to {slots} slots"
    ));
    let all_refused: usize = refused.values().sum();
    tell_figure(&json!({ "seeds": seeds, "right": right, "refused": all_refused }));
    assert!(seeds > 0);
    assert!(seeds < 1_000 || (right > seeds / 2 && refused.len() == 5 && at_once > 2));
}
