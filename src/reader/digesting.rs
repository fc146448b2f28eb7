//! Digests what is read, as it passes from the reader to the device.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use crossbeam::channel::{self, RecvTimeoutError, unbounded};

use crate::config::SIGNAL_INTERVAL;
use crate::device::{Slot, worker_panicked};
use crate::digest::{Digests, Hasher};
use crate::error::{Error, Result};
use crate::queue::{Receiver, Sender, Wakes, queue};
use crate::reader::{ChoosingReader, Completion, Reader, Request};
use crate::source::Source;

/// A reader whose slots go through a digesting thread, one for each file, in the order in which the
/// reads were begun; that has to be the order of the file.
pub(crate) struct DigestingReader<'load, H: Hasher> {
    inner: ChoosingReader,
    sources: &'load [Arc<dyn Source>],
    /// What was not begun yet, by source.
    waiting: Vec<Option<Digests<H>>>,
    lanes: Vec<Option<Lane<H::Figure>>>,
    /// Reads that ended before those in front of them.
    early: BTreeMap<usize, Completion>,
    next: usize,
    failed: bool,
    /// Whether the load was given up, so that what is left of the files is not to be read.
    stopped: Arc<AtomicBool>,
    /// Nothing is sent: it is closed when the last thread has ended.
    ended: (channel::Sender<Infallible>, channel::Receiver<Infallible>),
    passed: (Sender<Completion>, Receiver<Completion>),
    passing: usize,
}

/// The thread of one file.
struct Lane<F> {
    slots: Option<channel::Sender<Completion>>,
    thread: JoinHandle<io::Result<Vec<F>>>,
}

impl<'load, H: Hasher> DigestingReader<'load, H> {
    /// Digests of each source, made of what a reader reads of it; without any, the reader as it is.
    pub(crate) fn new(
        inner: ChoosingReader,
        sources: &'load [Arc<dyn Source>],
        digests: Vec<Digests<H>>,
    ) -> Self {
        Self {
            inner,
            sources,
            lanes: digests.iter().map(|_| None).collect(),
            waiting: digests.into_iter().map(Some).collect(),
            early: BTreeMap::new(),
            next: 0,
            failed: false,
            stopped: Arc::default(),
            ended: unbounded(),
            passed: queue(),
            passing: 0,
        }
    }

    /// The digests of each source, what was never read of it read now. Who waits looks at `check`
    /// meanwhile; after an error of it nobody waits for the threads, which end with the piece that they
    /// read. A reader that is dropped before reads nothing more.
    pub(crate) fn finish(
        &mut self,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Vec<H::Figure>>> {
        for shard in 0..self.lanes.len() {
            self.lane(shard)?;
        }
        self.ended.0 = unbounded().0;
        self.lanes.iter_mut().flatten().for_each(|lane| lane.slots = None);
        while self.ended.1.recv_timeout(SIGNAL_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            if let Err(error) = check() {
                self.stopped.store(true, Ordering::Relaxed);
                self.lanes.clear();
                return Err(error);
            }
        }
        self.end()
    }

    /// The reader behind it.
    pub(crate) fn inner(&self) -> &ChoosingReader {
        &self.inner
    }

    fn end(&mut self) -> Result<Vec<Vec<H::Figure>>> {
        let lanes = std::mem::take(&mut self.lanes);
        let mut lanes: Vec<Lane<H::Figure>> = lanes.into_iter().flatten().collect();
        for lane in &mut lanes {
            lane.slots = None;
        }
        let ended = |(lane, source): (Lane<H::Figure>, &Arc<dyn Source>)| {
            let digests = lane.thread.join().map_err(|_| worker_panicked("digest"))?;
            digests.map_err(|error| Error::io(source.path(), error))
        };
        lanes.into_iter().zip(self.sources).map(ended).collect()
    }

    fn lane(&mut self, shard: usize) -> Result<&mut Lane<H::Figure>> {
        if let Some(digests) = self.waiting[shard].take() {
            let (slots, slots_out) = unbounded();
            let (source, passed) = (Arc::clone(&self.sources[shard]), self.passed.0.clone());
            let (stopped, ended) = (Arc::clone(&self.stopped), self.ended.0.clone());
            let work = move || {
                let _ended = ended;
                digest(digests, source.as_ref(), &slots_out, &passed, &stopped)
            };
            let thread = Builder::new().name("sst-digest".to_owned()).spawn(work);
            let thread = thread.map_err(|error| Error::no_thread("sst-digest", &error))?;
            self.lanes[shard] = Some(Lane { slots: Some(slots), thread });
        }
        let gone = || Error::Internal("a file that is not digested".to_owned());
        self.lanes[shard].as_mut().ok_or_else(gone)
    }

    /// Hands on what has its turn.
    fn pass(&mut self) {
        while let Some(completion) = self.early.remove(&self.next) {
            self.next += 1;
            let shard = completion.request.shard;
            self.passing += 1;
            let lane = self.lane(shard).ok().and_then(|lane| lane.slots.as_ref());
            let left = match lane {
                Some(slots) => slots.send(completion).err().map(channel::SendError::into_inner),
                None => Some(completion),
            };
            if let Some(completion) = left {
                self.failed = true; // it has ended, and `finish` tells why
                let _sent = self.passed.0.send(completion);
            }
        }
    }
}

/// Digests slots as they come, and passes them on.
fn digest<H: Hasher>(
    mut digests: Digests<H>,
    source: &dyn Source,
    slots: &channel::Receiver<Completion>,
    passed: &Sender<Completion>,
    stopped: &AtomicBool,
) -> io::Result<Vec<H::Figure>> {
    let mut outcome = Ok(());
    for completion in slots {
        if outcome.is_ok() && completion.result.is_ok() {
            let Completion { request: Request { offset, .. }, slot, done, .. } = &completion;
            outcome = digests.take(source, *offset, &slot.as_slice()[..*done], stopped);
        }
        // Nobody waits for it where the load is gone.
        let _sent = passed.send(completion);
    }
    outcome?;
    digests.finish(source, stopped)
}

impl<H: Hasher> Drop for DigestingReader<'_, H> {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // A load that failed has told why.
        let _digests = self.end();
    }
}

impl<H: Hasher> Reader for DigestingReader<'_, H> {
    fn submit(&mut self, request: Request, slot: Slot) {
        self.inner.submit(request, slot);
    }

    fn poll(&mut self) -> Option<Completion> {
        if self.lanes.is_empty() {
            return self.inner.poll();
        }
        while let Some(completion) = self.inner.poll() {
            if self.failed || !completion.is_whole() {
                self.failed = true;
                return Some(completion);
            }
            self.early.insert(completion.request.tag, completion);
            self.pass();
        }
        if let Some(completion) = self.passed.1.take() {
            self.passing -= 1;
            return Some(completion);
        }
        // After a failure nothing has a turn any more.
        let given_up = if self.failed { self.early.pop_first() } else { None };
        given_up.map(|(_, completion)| completion)
    }

    fn add_to(&self, wakes: &mut Wakes) {
        self.inner.add_to(wakes);
        // Also while nothing passes: the look that comes with this may begin it.
        self.passed.1.add_to(wakes);
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.early.len() + self.passing
    }

    fn with_source(&self) -> usize {
        self.inner.in_flight()
    }

    fn is_full(&self) -> bool {
        self.inner.is_full()
    }

    fn slots_worth(&self) -> usize {
        self.inner.slots_worth()
    }

    fn stop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.inner.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;
    use std::sync::Arc;

    use sha2::Sha256;

    use super::DigestingReader;
    use crate::config::{
        DIGESTED_FILES_MAX, LOAD_SLOTS_MAX, RING_SLOTS_MAX, ReaderChoice, SLOTS_MIN,
    };
    use crate::digest::Digests;
    use crate::error::Error;
    use crate::reader::choice::Outlook;
    use crate::reader::{CachePolicy, ChoosingReader};
    use crate::ring::Ring;
    use crate::source::Source;

    /// A file that nobody could read to its end.
    #[derive(Debug)]
    struct Endless;

    impl Source for Endless {
        fn path(&self) -> &Path {
            Path::new("<endless>")
        }

        fn len(&self) -> u64 {
            1 << 60
        }

        fn read_at(&self, _offset: u64, target: &mut [u8]) -> io::Result<usize> {
            Ok(target.len())
        }
    }

    #[test]
    fn who_waits_for_the_rest_of_a_file_can_be_stopped() {
        let sources: Arc<[Arc<dyn Source>]> = Arc::new([Arc::new(Endless)]);
        let outlook = Outlook { bytes: 0, reads: 0 };
        let (choice, policy) = (ReaderChoice::Pread, CachePolicy::Keep);
        let inner = ChoosingReader::new(Arc::clone(&sources), choice, policy, outlook);
        let all = 0..1_u64 << 60;
        let digests = vec![Digests::<Sha256>::new(vec![all])];
        let mut reader = DigestingReader::new(inner, &sources, digests);
        let mut looks = 0;
        let outcome = reader.finish(&mut || {
            looks += 1;
            if looks < 3 { Ok(()) } else { Err(Error::Request("stopped".to_owned())) }
        });
        assert!(matches!(outcome, Err(Error::Request(_))));
        assert_eq!(looks, 3);
    }

    #[test]
    fn every_file_that_is_digested_has_its_slots() {
        let ring = Ring::new(4096, RING_SLOTS_MAX, 1);
        let lend = |_| ring.lend(LOAD_SLOTS_MAX, usize::MAX, 0).unwrap();
        let mut leases: Vec<_> = (0..DIGESTED_FILES_MAX).map(lend).collect();
        // As one ends, the next begins, in whatever order.
        for ended in [0, 2, 1, 3, 0, 0, 3] {
            assert!(leases.iter_mut().all(|lease| lease.complete() >= SLOTS_MIN));
            drop(leases.remove(ended));
            leases.push(lend(0));
        }
        assert!(leases.iter_mut().all(|lease| lease.complete() >= SLOTS_MIN));
    }
}
