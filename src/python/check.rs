//! What the bytes of a load are compared with, before any of it is handed out.

use std::ops::Range;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use sha2::Sha256;

use crate::checkpoint::engine::Task;
use crate::checkpoint::{Checkpoint, Shard};
use crate::device::cuda::checksum::{kernels_of, sums};
use crate::device::cuda::driver::Gpu;
use crate::device::{Buffer, CudaBuffer};
use crate::digest::{Digest, Digests, Sum, hex};
use crate::error::{Error, Result};
use crate::plan::Wanted;
use crate::python::collector::Collector;
use crate::python::destination::Goals;
use crate::python::digests::digest_all;
use crate::python::fetch::{Ready, Sources};
use crate::reader::CachePolicy;
use crate::report::Report;

/// What has to be true of a load.
#[derive(Clone, Debug)]
pub(crate) enum Check {
    /// Nothing that the bytes themselves do not say.
    Nothing,
    /// Each file has this SHA-256.
    Files(Arc<[Digest]>),
    /// What lies in a GPU's memory has the sums of what was read.
    Device,
}

impl Check {
    /// Of Python's: none, "device", or what gives the digest of each file, called with their paths.
    pub(crate) fn new(
        verify: Option<&Bound<'_, PyAny>>,
        checkpoint: &Checkpoint,
    ) -> PyResult<Self> {
        let Some(verify) = verify else { return Ok(Self::Nothing) };
        if !verify.is_callable() {
            return Ok(Self::Device);
        }
        let paths: Vec<_> = checkpoint.shards.iter().map(|shard| shard.path.as_os_str()).collect();
        let known: Vec<String> = verify.call1((paths,))?.extract()?;
        if known.len() != checkpoint.shards.len() {
            return Err(PyValueError::new_err("one SHA-256 for each file is wanted"));
        }
        let parsed: PyResult<Vec<Digest>> = known.iter().map(|digits| digest_of(digits)).collect();
        Ok(Self::Files(parsed?.into()))
    }

    /// An error where what is to be compared cannot be had for these goals.
    pub(crate) fn prepare(&self, goals: &Goals) -> Result<()> {
        if !matches!(self, Self::Device) {
            return Ok(());
        }
        let ordinals: Vec<usize> = goals.all.iter().filter_map(|goal| goal.ordinal()).collect();
        if ordinals.is_empty() {
            let text = "verify=\"device\" is for a GPU's memory, and no tensor goes to a GPU";
            return Err(Error::Request(text.to_owned()));
        }
        ordinals.into_iter().try_for_each(|ordinal| kernels_of(Gpu::open(ordinal)?).map(drop))
    }

    /// Reads what is wanted, and compares.
    pub(crate) fn run(
        &self,
        ready: &mut Ready,
        task: Task<'_>,
        collector: &mut Collector,
    ) -> Result<Report> {
        let sources = task.sources;
        match self {
            Self::Nothing => Ok(ready.run_digesting(task, collector)?.0),
            Self::Files(known) => {
                let digests = whole(sources).into_iter().map(Digests::<Sha256>::new).collect();
                let (report, digests) = ready.run_digesting(task.digesting(digests), collector)?;
                compare(sources, digests, known)?;
                Ok(report)
            }
            Self::Device => {
                let order = order(&task.wanted, sources.len());
                let sum = |own: &Vec<usize>| Digests::<Sum>::new(ranges(&task.wanted, own));
                let digests = order.iter().map(sum).collect();
                let task = task.digesting(digests);
                let (report, read) = ready.run_digesting(task, collector)?;
                compare_memory(sources, &order, &read, collector.arrived())?;
                Ok(report)
            }
        }
    }

    /// Reads whole files that will be mapped, into the page cache, and compares; tells how many
    /// bytes those were.
    pub(crate) fn run_mapped(
        &self,
        py: Python<'_>,
        checkpoint: &Checkpoint,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<u64> {
        let Self::Files(known) = self else { return Ok(0) };
        let sources = checkpoint.shards.iter().map(Shard::source);
        let sources: Sources = sources.collect::<Result<_>>()?;
        let digests = digest_all(py, &sources, whole(&sources), CachePolicy::Keep, progress)?;
        compare(&sources, digests, known)?;
        Ok(sources.iter().map(|source| source.len()).fold(0, u64::saturating_add))
    }
}

/// The digest that 64 hexadecimal digits are.
fn digest_of(digits: &str) -> PyResult<Digest> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16).ok()
    });
    let bytes: Option<Vec<u8>> = pairs.collect();
    let digest = bytes.and_then(|bytes| bytes.try_into().ok());
    digest.ok_or_else(|| PyValueError::new_err(format!("{digits:?} is no SHA-256")))
}

/// One stretch of each file: all of it.
fn whole(sources: &Sources) -> Vec<Vec<Range<u64>>> {
    sources.iter().map(|source| std::iter::once(0..source.len()).collect()).collect()
}

fn compare(sources: &Sources, digests: Vec<Vec<Digest>>, known: &[Digest]) -> Result<()> {
    if digests.len() != sources.len() || known.len() != sources.len() {
        return Err(unverified());
    }
    for ((source, own), wanted) in sources.iter().zip(digests).zip(known) {
        let [got] = own[..] else { return Err(unverified()) };
        if got != *wanted {
            return Err(Error::Mismatch {
                path: source.path().to_owned(),
                target: None,
                tensor: None,
                difference: format!("sha256 is {}, and should be {}", hex(&got), hex(wanted)),
            });
        }
    }
    Ok(())
}

/// A guard that has nothing to compare must not let anything pass.
fn unverified() -> Error {
    Error::Internal("not everything was verified".to_owned())
}

/// The targets of each source, in the order of the file.
fn order(wanted: &[Wanted], sources: usize) -> Vec<Vec<usize>> {
    let mut order = vec![Vec::new(); sources];
    for (target, range) in wanted.iter().enumerate() {
        order[range.shard].push(target);
    }
    for own in &mut order {
        own.sort_by_key(|&target| (wanted[target].begin, wanted[target].end));
    }
    order
}

/// Where they stand in the file.
fn ranges(wanted: &[Wanted], own: &[usize]) -> Vec<Range<u64>> {
    own.iter().map(|&target| wanted[target].begin..wanted[target].end).collect()
}

/// Has the GPUs sum what lies in their memory; memory of the host is what was read.
fn compare_memory(
    sources: &Sources,
    order: &[Vec<usize>],
    read: &[Vec<u64>],
    arrived: &[Option<Buffer>],
) -> Result<()> {
    let mut on_gpu: Vec<((usize, usize, u64), &CudaBuffer)> = Vec::new();
    for (shard, targets) in order.iter().enumerate() {
        let sums = read.get(shard).filter(|sums| sums.len() == targets.len());
        for (&target, &sum) in targets.iter().zip(sums.ok_or_else(unverified)?) {
            match &arrived[target] {
                Some(Buffer::Cuda(buffer)) => on_gpu.push(((shard, target, sum), buffer)),
                Some(Buffer::Host(_)) => {}
                None => return Err(unverified()),
            }
        }
    }
    on_gpu.sort_by_key(|(_, buffer)| buffer.ordinal());
    for own in on_gpu.chunk_by(|(_, one), (_, other)| one.ordinal() == other.ordinal()) {
        let buffers: Vec<&CudaBuffer> = own.iter().map(|(_, buffer)| *buffer).collect();
        let found = sums(Gpu::open(buffers[0].ordinal())?, &buffers)?;
        for (((shard, target, wanted), _), got) in own.iter().zip(found) {
            if got != *wanted {
                return Err(Error::Mismatch {
                    path: sources[*shard].path().to_owned(),
                    target: Some(*target),
                    tensor: None,
                    difference: format!(
                        "what lies in the GPU's memory sums to {got:016x}, what was read to {wanted:016x}"
                    ),
                });
            }
        }
    }
    Ok(())
}
