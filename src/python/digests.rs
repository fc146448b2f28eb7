//! Digests of whole files, several at once.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use pyo3::exceptions::PyInterruptedError;
use pyo3::prelude::*;
use sha2::Sha256;

use crate::checkpoint::engine::{Options, Task, run_digesting};
use crate::config::{DIGESTED_FILES_MAX, SIGNAL_INTERVAL, processors};
use crate::device::null::{NullAllocator, NullDevice};
use crate::device::{Buffer, Destination};
use crate::digest::{Digest, Digests};
use crate::error::{Error, Result};
use crate::pipeline::Caller;
use crate::plan::Wanted;
use crate::python::fetch::Sources;
use crate::reader::CachePolicy;
use crate::source::Source;

/// What the threads share.
#[derive(Default)]
struct Shared {
    next: AtomicUsize,
    bytes_done: AtomicU64,
    stopped: AtomicBool,
}

/// The caller of one file's load.
struct Part<'all> {
    shared: &'all Shared,
    told: u64,
}

impl Caller for Part<'_> {
    fn deliver(&mut self, _target: usize, _buffer: Buffer) -> Result<()> {
        Ok(())
    }

    fn check(&mut self, bytes_done: u64) -> Result<()> {
        self.shared.bytes_done.fetch_add(bytes_done - self.told, Ordering::Relaxed);
        self.told = bytes_done;
        if self.shared.stopped.load(Ordering::Relaxed) {
            return Err(Error::Stopped(Box::new(PyInterruptedError::new_err("given up"))));
        }
        Ok(())
    }
}

/// The digests of each source, as many sources at once as there are processors and slots for.
pub(crate) fn digest_all(
    py: Python<'_>,
    sources: &Sources,
    stretches: Vec<Vec<Range<u64>>>,
    cache: CachePolicy,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<Vec<Digest>>> {
    let total = sources.iter().map(|source| source.len()).fold(0, u64::saturating_add);
    let shared = Shared::default();
    let results: Mutex<Vec<Option<Result<Vec<Digest>>>>> =
        Mutex::new(stretches.iter().map(|_| None).collect());
    let work = || {
        loop {
            let number = shared.next.fetch_add(1, Ordering::Relaxed);
            let Some(own) =
                stretches.get(number).filter(|_| !shared.stopped.load(Ordering::Relaxed))
            else {
                return;
            };
            let outcome = digest_one(&sources[number], own.clone(), cache, &shared);
            shared.stopped.fetch_or(outcome.is_err(), Ordering::Relaxed);
            results.lock().unwrap_or_else(PoisonError::into_inner)[number] = Some(outcome);
        }
    };
    let look = || {
        Python::attach(|py| {
            py.check_signals()?;
            let done = shared.bytes_done.load(Ordering::Relaxed);
            progress.as_ref().map_or(Ok(()), |tell| tell.call1(py, (done, total)).map(drop))
        })
    };
    let looked: PyResult<()> = py.detach(|| {
        thread::scope(|scope| {
            let count = processors().min(stretches.len()).min(DIGESTED_FILES_MAX);
            let threads: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
            let mut looked = Ok(());
            while threads.iter().any(|thread| !thread.is_finished()) {
                thread::park_timeout(PAUSE);
                if looked.is_ok() {
                    looked = look();
                    shared.stopped.fetch_or(looked.is_err(), Ordering::Relaxed);
                }
            }
            looked.and_then(|()| look())
        })
    });
    looked?;
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut given_up = None;
    let mut digests = Vec::with_capacity(results.len());
    for outcome in results {
        match outcome {
            Some(Ok(own)) => digests.push(own),
            Some(Err(error @ Error::Stopped(_))) => given_up = Some(error),
            Some(Err(error)) => return Err(error.into()),
            None => {}
        }
    }
    given_up.map_or(Ok(digests), |error| Err(error.into()))
}

/// Between two looks at the threads: none waits for them for long.
const PAUSE: Duration = Duration::from_millis(5);

const _: () = assert!(PAUSE.as_millis() < SIGNAL_INTERVAL.as_millis());

fn digest_one(
    source: &Arc<dyn Source>,
    stretches: Vec<Range<u64>>,
    cache: CachePolicy,
    shared: &Shared,
) -> Result<Vec<Digest>> {
    let sources: Sources = Arc::new([Arc::clone(source)]);
    let wanted = vec![Wanted::range(0, 0, source.len())];
    let digests = vec![Digests::<Sha256>::new(stretches)];
    let options = Options::with_cache(cache);
    let mut device = NullDevice::default();
    let to = Destination { device: &mut device, allocator: &mut NullAllocator };
    let mut part = Part { shared, told: 0 };
    let task = Task::new(&sources, wanted, options).digesting(digests);
    let (_report, digests) = run_digesting(task, to, &mut part)?;
    let none = || Error::Internal("a file without digests".to_owned());
    digests.into_iter().next().ok_or_else(none)
}
