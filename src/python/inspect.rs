//! What files hold, without loading it: their tables, and digests of their bytes.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use pyo3::exceptions::PyInterruptedError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::checkpoint::engine::{Options, Task, run_digesting};
use crate::checkpoint::{Backend, Checkpoint, Shard};
use crate::config::{DIGESTED_FILES_MAX, SIGNAL_INTERVAL, processors};
use crate::device::null::{NullAllocator, NullDevice};
use crate::device::{Buffer, Destination};
use crate::digest::{Digest, Digests, hex};
use crate::error::{Error, Result};
use crate::pipeline::Caller;
use crate::plan::Wanted;
use crate::python::load::{location_of, sources_of};
use crate::reader::CachePolicy;
use crate::source::Source;

/// A tensor in the table of a file: name, dtype, shape, first byte and the byte after the last, from
/// the start of the file.
type TensorFacts = (String, &'static str, Vec<u64>, u64, u64);

/// A file: path, size, first byte of its data, metadata, tensors in file order.
type FileFacts<'py> = (PathBuf, u64, u64, Option<Bound<'py, PyDict>>, Vec<TensorFacts>);

/// The tables of all shards of a checkpoint, checked as for a load.
#[pyfunction]
pub(crate) fn describe(py: Python<'_>, paths: Vec<PathBuf>) -> PyResult<Vec<FileFacts<'_>>> {
    let checkpoint = py.detach(|| Checkpoint::open(&location_of(paths)?, Backend::Engine))?;
    let sources = sources_of(&checkpoint);
    let shards = checkpoint.shards.iter().zip(sources.iter());
    shards.map(|(shard, source)| facts_of(py, shard, source.len())).collect()
}

fn facts_of<'py>(py: Python<'py>, shard: &Shard, bytes: u64) -> PyResult<FileFacts<'py>> {
    let metadata = match shard.header.metadata() {
        None => None,
        Some(pairs) => {
            let dict = PyDict::new(py);
            for (key, value) in pairs {
                dict.set_item(key, value)?;
            }
            Some(dict)
        }
    };
    let tensors = shard.header.tensors().map(|info| {
        (info.name.to_owned(), info.dtype.name(), info.shape.to_vec(), info.begin, info.end)
    });
    Ok((shard.path.clone(), bytes, shard.header.data_start(), metadata, tensors.collect()))
}

/// A file's digests: its path, then names with SHA-256 in hexadecimal.
type FileDigests = (PathBuf, Vec<(String, String)>);

/// SHA-256 of each file of a checkpoint, named "", or with `tensors`, of its header, named "", and of
/// each tensor. Files are read past the page cache unless it holds them, several at once.
#[pyfunction]
#[pyo3(signature = (paths, tensors=false, progress=None))]
pub(crate) fn digest_checkpoint(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    tensors: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<FileDigests>> {
    let checkpoint = py.detach(|| Checkpoint::open(&location_of(paths)?, Backend::Engine))?;
    let sources = sources_of(&checkpoint);
    let shards = checkpoint.shards.iter().zip(sources.iter());
    let parts: Vec<_> = shards
        .map(|(shard, source)| stretches(shard, source.len(), tensors).into_iter().unzip())
        .collect();
    let (names, stretches): (Vec<Vec<String>>, Vec<_>) = parts.into_iter().unzip();
    let digests = digest_all(py, &sources, stretches, progress)?;
    let files = checkpoint.shards.iter().zip(names.into_iter().zip(digests));
    let file = |(shard, (names, digests)): (&Shard, (Vec<String>, Vec<Digest>))| {
        let pairs = names.into_iter().zip(digests.iter().map(hex)).collect();
        (shard.path.clone(), pairs)
    };
    Ok(files.map(file).collect())
}

fn stretches(shard: &Shard, bytes: u64, tensors: bool) -> Vec<(String, std::ops::Range<u64>)> {
    if !tensors {
        return vec![(String::new(), 0..bytes)];
    }
    let own = shard.header.tensors().map(|info| (info.name.to_owned(), info.begin..info.end));
    std::iter::once((String::new(), 0..shard.header.data_start())).chain(own).collect()
}

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

type Sources = Arc<[Arc<dyn Source>]>;

/// The digests of each source, as many sources at once as there are processors and slots for.
fn digest_all(
    py: Python<'_>,
    sources: &Sources,
    stretches: Vec<Vec<std::ops::Range<u64>>>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<Vec<Digest>>> {
    let total: u64 = sources.iter().map(|source| source.len()).sum();
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
            let outcome = digest_one(&sources[number], own.clone(), &shared);
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
    stretches: Vec<std::ops::Range<u64>>,
    shared: &Shared,
) -> Result<Vec<Digest>> {
    let sources: Sources = Arc::new([Arc::clone(source)]);
    let wanted = vec![Wanted::range(0, 0, source.len())];
    let digests = vec![Digests::new(stretches)];
    let options = Options::with_cache(CachePolicy::Bypass);
    let mut device = NullDevice::default();
    let to = Destination { device: &mut device, allocator: &mut NullAllocator };
    let mut part = Part { shared, told: 0 };
    let task = Task { sources: &sources, wanted, options, digests };
    let (_report, digests) = run_digesting(task, to, &mut part)?;
    let none = || Error::Internal("a file without digests".to_owned());
    digests.into_iter().next().ok_or_else(none)
}
