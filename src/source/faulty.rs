//! For tests: faults on cue, by one counter over every operation of a load; and numbers and time that are
//! the same in every run.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::source::Source;

/// Which operations fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Only the n-th.
    Once,
    /// The n-th and all that follow.
    FromThenOn,
}

/// Counts operations and says which fail.
#[derive(Debug)]
pub(crate) struct Faults {
    count: AtomicUsize,
    failing: usize,
    mode: Mode,
}

impl Faults {
    /// The `failing`-th operation fails, counted from one.
    pub(crate) fn at(failing: usize, mode: Mode) -> Arc<Self> {
        Arc::new(Self { count: AtomicUsize::new(0), failing, mode })
    }

    /// No operation fails.
    pub(crate) fn never() -> Arc<Self> {
        Self::at(usize::MAX, Mode::Once)
    }

    /// One more operation; an error if it is to fail.
    pub(crate) fn step(&self) -> io::Result<()> {
        let now = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        let fails = match self.mode {
            Mode::Once => now == self.failing,
            Mode::FromThenOn => now >= self.failing,
        };
        if fails { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }

    /// Whether an operation has failed.
    pub(crate) fn fired(&self) -> bool {
        self.count.load(Ordering::SeqCst) >= self.failing
    }
}

/// Numbers drawn from a seed, and a clock that goes on by one whenever somebody looks whether something is
/// done.
#[derive(Debug)]
pub(crate) struct Fate {
    seed: u64,
    drawn: AtomicU64,
    looks: AtomicU64,
}

impl Fate {
    /// Of a seed.
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self { seed, drawn: AtomicU64::new(seed), looks: AtomicU64::new(0) })
    }

    /// A number below a bound.
    pub(crate) fn below(&self, bound: usize) -> usize {
        let next = |state: u64| {
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
        };
        let drawn = next(self.drawn.load(Ordering::SeqCst));
        self.drawn.store(drawn, Ordering::SeqCst);
        (drawn >> 33) as usize % bound.max(1)
    }

    /// What the clock says when it is looked at.
    pub(crate) fn look(&self) -> u64 {
        const LOOKS_MAX: u64 = 10_000_000;
        let now = self.looks.fetch_add(1, Ordering::SeqCst);
        assert!(now < LOOKS_MAX, "seed {}: a load does not end", self.seed);
        now
    }

    /// What the clock says to somebody who does not wait.
    pub(crate) fn now(&self) -> u64 {
        self.looks.load(Ordering::SeqCst)
    }

    /// A time to come, or now.
    pub(crate) fn later(&self) -> u64 {
        const LATE: usize = 40;
        self.now() + self.below(LATE) as u64
    }
}

/// Bytes in memory whose reads fail on cue, and that end early on cue.
#[derive(Debug)]
pub(crate) struct FaultySource {
    /// What it holds.
    pub(crate) bytes: Vec<u8>,
    /// How long it says it is.
    pub(crate) promised: u64,
    /// Which reads fail.
    pub(crate) faults: Arc<Faults>,
}

impl Source for FaultySource {
    fn path(&self) -> &Path {
        Path::new("<faulty>")
    }

    fn len(&self) -> u64 {
        self.promised
    }

    /// Gives at most 10,000 bytes at a time: short reads are the rule, not the exception.
    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<usize> {
        self.faults.step()?;
        let start = usize::try_from(offset).unwrap().min(self.bytes.len());
        let count = target.len().min(self.bytes.len() - start).min(10_000);
        target[..count].copy_from_slice(&self.bytes[start..start + count]);
        Ok(count)
    }
}

/// Bytes in memory that cannot be read from a place on, as those behind a bad sector.
#[derive(Debug)]
pub(crate) struct SpoiltSource {
    /// What it holds.
    pub(crate) bytes: Vec<u8>,
    /// The place.
    pub(crate) from: usize,
}

impl Source for SpoiltSource {
    fn path(&self) -> &Path {
        Path::new("<spoilt>")
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap().min(self.bytes.len());
        let end = self.from.min(start.saturating_add(target.len()));
        let good = self.bytes.get(start..end).filter(|good| !good.is_empty());
        let good = good.ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))?;
        target[..good.len()].copy_from_slice(good);
        Ok(good.len())
    }
}
