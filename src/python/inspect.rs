//! What files hold, without loading it: their tables, and digests of their bytes.

use std::ffi::OsString;
use std::ops::Range;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::checkpoint::{Backend, Checkpoint, Shard};
use crate::digest::{Digest, hex};
use crate::python::address::{Named, location_of};
use crate::python::digests::digest_all;
use crate::python::load::sources_of;
use crate::reader::CachePolicy;

/// A tensor in the table of a file: name, dtype, shape, first byte and the byte after the last, from
/// the start of the file.
type TensorFacts = (String, &'static str, Vec<u64>, u64, u64);

/// A file: path, size, first byte of its data, metadata, tensors in file order.
type FileFacts<'py> = (OsString, u64, u64, Option<Bound<'py, PyDict>>, Vec<TensorFacts>);

/// The tables of all shards of a checkpoint, checked as for a load.
#[pyfunction]
pub(crate) fn describe(py: Python<'_>, paths: Vec<Named>) -> PyResult<Vec<FileFacts<'_>>> {
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
    Ok((shard.path.clone().into(), bytes, shard.header.data_start(), metadata, tensors.collect()))
}

/// A file's digests: its path, then names with SHA-256 in hexadecimal.
type FileDigests = (OsString, Vec<(String, String)>);

/// SHA-256 of each file of a checkpoint, named "", or with `tensors`, of its header, named "", and of
/// each tensor. Files are read past the page cache unless it holds them, several at once.
#[pyfunction]
#[pyo3(signature = (paths, tensors=false, progress=None))]
pub(crate) fn digest_checkpoint(
    py: Python<'_>,
    paths: Vec<Named>,
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
    let digests = digest_all(py, &sources, stretches, CachePolicy::Bypass, progress)?;
    let files = checkpoint.shards.iter().zip(names.into_iter().zip(digests));
    let file = |(shard, (names, digests)): (&Shard, (Vec<String>, Vec<Digest>))| {
        let pairs = names.into_iter().zip(digests.iter().map(hex)).collect();
        (shard.path.clone().into(), pairs)
    };
    Ok(files.map(file).collect())
}

fn stretches(shard: &Shard, bytes: u64, tensors: bool) -> Vec<(String, Range<u64>)> {
    if !tensors {
        return vec![(String::new(), 0..bytes)];
    }
    let own = shard.header.tensors().map(|info| (info.name.to_owned(), info.begin..info.end));
    std::iter::once((String::new(), 0..shard.header.data_start())).chain(own).collect()
}
