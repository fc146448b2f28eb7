//! What a caller opens: one file, or the shards of a checkpoint, their headers checked before any
//! weight byte moves.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) mod engine;
pub(crate) mod location;

pub(crate) use location::Location;

use crate::device::Mapping;
use crate::error::{Error, Result};
use crate::format::Header;
use crate::format::header::{LENGTH_BYTES, TensorInfo, header_bytes};
use crate::format::index::Index;
use crate::format::sniff::{SNIFF_BYTES, hint};
use crate::plan::Wanted;
use crate::reader::ahead::read_ahead_if_cold;
use crate::source::file::Identity;
use crate::source::{self, Address, LocalFile, Source, read_full};
use crate::tensor::{Form, Memory, Tensor};

/// Upstream's first words on a bad header of a file.
pub(crate) const FILE_WORDS: &str = "Error while deserializing header";

/// Where a shard's tensors come from.
#[derive(Clone, Debug)]
pub(crate) enum Storage {
    /// A mapping of the whole file; no descriptor is kept.
    Mapped(Arc<Mapping>, Identity),
    /// A source that the engine reads.
    Engine(Arc<dyn Source>),
}

/// One safetensors file, its header checked.
#[derive(Debug)]
pub(crate) struct Shard {
    /// Its path, for messages.
    pub(crate) path: PathBuf,
    /// Its table.
    pub(crate) header: Header,
    /// Its bytes.
    pub(crate) storage: Storage,
}

impl Shard {
    /// Opens a file to be mapped.
    pub(crate) fn open_mapped(path: &Path) -> Result<Self> {
        let file = LocalFile::open(path)?;
        let header = read_header(&file, FILE_WORDS)?;
        let mapping = Mapping::new(file.buffered(), file.len());
        let mapping = Arc::new(mapping.map_err(|error| Error::io(path, error))?);
        let storage = Storage::Mapped(mapping, file.identity());
        Ok(Self { path: path.to_owned(), header, storage })
    }

    /// Takes a source to be read by the engine; `words` begin the message on a bad header.
    pub(crate) fn of_source(source: Arc<dyn Source>, words: &str) -> Result<Self> {
        let header = read_header(source.as_ref(), words)?;
        Ok(Self { path: source.path().to_owned(), header, storage: Storage::Engine(source) })
    }

    /// Its bytes as a source. A mapped file is opened by its name again.
    pub(crate) fn source(&self) -> Result<Arc<dyn Source>> {
        let identity = match &self.storage {
            Storage::Engine(source) => return Ok(Arc::clone(source)),
            Storage::Mapped(_, identity) => *identity,
        };
        Ok(Arc::new(self.opened_again(identity)?))
    }

    /// An error where its path names another file by now.
    pub(crate) fn check_current(&self) -> Result<()> {
        let identity = match &self.storage {
            Storage::Engine(source) => source.local().map(LocalFile::identity),
            Storage::Mapped(_, identity) => Some(*identity),
        };
        identity.map_or(Ok(()), |identity| self.opened_again(identity).map(drop))
    }

    fn opened_again(&self, identity: Identity) -> Result<LocalFile> {
        let message = "Another file has its name by now; open it again";
        LocalFile::open_again(&self.path, identity)?
            .ok_or_else(|| Error::refused(&self.path, libc::ESTALE, message))
    }

    /// One tensor of a mapped file; nothing is copied.
    pub(crate) fn mapped(&self, index: usize) -> Result<Tensor> {
        let info = self.info(index)?;
        let Storage::Mapped(mapping, _) = &self.storage else {
            return Err(Error::Internal("a file that is not mapped".to_owned()));
        };
        let offset = usize::try_from(info.begin).unwrap_or(usize::MAX);
        let memory = Memory::Mapped(Arc::clone(mapping), offset);
        Ok(Tensor { memory, form: Form { dtype: info.dtype, shape: info.shape.to_vec() } })
    }

    /// What the engine has to read for one tensor, or for a part of it, and what that is. The part
    /// is a range of each of the first dimensions; of the second and later ones at most one is not
    /// whole.
    pub(crate) fn wanted(&self, index: usize, ranges: &[Range<u64>]) -> Result<(Wanted, Form)> {
        let info = self.info(index)?;
        let mut form = Form { dtype: info.dtype, shape: info.shape.to_vec() };
        let mut wanted = Wanted::range(0, info.begin, info.end);
        let mut row_bytes = wanted.bytes();
        for (dimension, (range, length)) in ranges.iter().zip(&mut form.shape).enumerate() {
            let stride = row_bytes;
            row_bytes /= (*length).max(1);
            let bytes = range.start * row_bytes..range.end * row_bytes;
            wanted = match dimension {
                0 => Wanted::range(0, info.begin + bytes.start, info.begin + bytes.end),
                _ => wanted.columns(stride, bytes),
            };
            *length = range.end - range.start;
        }
        Ok((wanted, form))
    }

    fn missing(&self, name: &str) -> Error {
        Error::Request(format!("File does not contain tensor {name}; {}", self.path.display()))
    }

    fn info(&self, index: usize) -> Result<TensorInfo<'_>> {
        self.header.tensor(index).ok_or_else(|| self.missing(&index.to_string()))
    }

    /// The place of a name, or upstream's error.
    pub(crate) fn find(&self, name: &str) -> Result<usize> {
        self.header.find(name).ok_or_else(|| self.missing(name))
    }

    /// Has a mapped file that is not in the page cache read in the background.
    pub(crate) fn read_ahead_if_cold(&self) {
        if let Storage::Mapped(mapping, identity) = &self.storage {
            read_ahead_if_cold(&self.path, *identity, mapping);
        }
    }
}

/// Reads and checks a header. The first read is large enough for the headers of small files, and
/// small enough to be nothing beside a system call.
fn read_header(source: &dyn Source, words: &str) -> Result<Header> {
    const FIRST_BYTES: usize = 16 << 10;
    let read = |offset: u64, target: &mut [u8]| {
        read_full(source, offset, target).map_err(|error| Error::io(source.path(), error))
    };
    let file_bytes = source.len();
    let mut first = vec![0; FIRST_BYTES.min(usize::try_from(file_bytes).unwrap_or(FIRST_BYTES))];
    let count = read(0, &mut first)?;
    first.truncate(count);
    let refuse = |fault| {
        let start = &first[..first.len().min(SNIFF_BYTES)];
        let hint = hint(start, file_bytes, &fault);
        Error::Format(format!("{words}: {fault}; {}: {hint}", source.path().display()))
    };
    let length = header_bytes(&first, file_bytes).map_err(&refuse)?;
    let start = LENGTH_BYTES;
    if let Some(header) = first.get(start..start + length) {
        return Header::parse(header, file_bytes).map_err(&refuse);
    }
    let mut header = vec![0; length];
    let known = &first[start..];
    header[..known.len()].copy_from_slice(known);
    let rest = length - known.len();
    let count = read(first.len() as u64, &mut header[known.len()..])?;
    if count < rest {
        return Err(Error::Read {
            path: source.path().to_owned(),
            offset: first.len() as u64,
            wanted: rest as u64,
            got: count as u64,
            target: None,
            tensor: None,
            cause: "the file has become shorter while its header was read; load it again"
                .to_owned(),
            errno: None,
        });
    }
    Header::parse(&header, file_bytes).map_err(&refuse)
}

/// How the shards' bytes are to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Mapped files, nothing copied.
    Mapped,
    /// Read by the engine into memory of ours.
    Engine,
}

/// All shards of a checkpoint, headers checked, every name in one place only.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// The shards, in the order in which they were named.
    pub(crate) shards: Vec<Shard>,
}

/// A tensor of a checkpoint: the shard and its place in the shard's file order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Which shard.
    pub(crate) shard: usize,
    /// Which tensor of it.
    pub(crate) tensor: usize,
}

impl Checkpoint {
    /// Opens every shard, where one is remote by the engine; an index that disagrees with the headers, or a name in two shards, is an
    /// error.
    pub(crate) fn open(location: &Location, backend: Backend) -> Result<Self> {
        let remote = location.shards.iter().any(Address::is_remote);
        let shards: Vec<Shard> = match backend {
            Backend::Mapped if !remote => {
                let open = |address: &Address| Shard::open_mapped(address.path());
                location.shards.iter().map(open).collect::<Result<_>>()?
            }
            _ => {
                let sources = source::open_all(&location.shards)?;
                let kept = sources.iter().all(|source| source.local().is_some());
                let open = |source: Arc<dyn Source>| match backend {
                    Backend::Mapped if kept => Shard::open_mapped(source.path()),
                    _ => Shard::of_source(source, FILE_WORDS),
                };
                sources.into_iter().map(open).collect::<Result<_>>()?
            }
        };
        let checkpoint = Self { shards };
        checkpoint.check_names()?;
        if let Some((path, index)) = &location.index {
            checkpoint.check_index(path, index)?;
        }
        Ok(checkpoint)
    }

    /// Every tensor in the order of shards and of their files.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        self.shards.iter().enumerate().flat_map(|(shard, opened)| {
            (0..opened.header.len()).map(move |tensor| Place { shard, tensor })
        })
    }

    /// A tensor's name.
    pub(crate) fn name(&self, place: Place) -> &str {
        let header = &self.shards[place.shard].header;
        header.tensor(place.tensor).map_or("", |info| info.name)
    }

    /// What the engine has to read for a tensor, and what that is.
    pub(crate) fn wanted(&self, place: Place) -> Result<(Wanted, Form)> {
        let (mut wanted, form) = self.shards[place.shard].wanted(place.tensor, &[])?;
        wanted.shard = place.shard;
        Ok((wanted, form))
    }

    fn check_names(&self) -> Result<()> {
        if self.shards.len() < 2 {
            return Ok(());
        }
        let mut owner = BTreeMap::new();
        for shard in &self.shards {
            for name in shard.header.sorted_names() {
                if let Some(other) = owner.insert(name, &shard.path) {
                    return Err(Error::Format(format!(
                        "{FILE_WORDS}: duplicate key: tensor `{name}` stands in {} and in {}; name the \
                         files that belong together, or their index",
                        other.display(),
                        shard.path.display()
                    )));
                }
            }
        }
        Ok(())
    }

    fn check_index(&self, path: &Path, index: &Index) -> Result<()> {
        let disagree = |text: String| {
            Error::Format(format!(
                "{FILE_WORDS}: the index and the shards disagree; {}: {text}; fetch both again",
                path.display()
            ))
        };
        let by_file: BTreeMap<&str, &Shard> =
            index.shards().into_iter().zip(&self.shards).collect();
        for (name, file) in index.tensors() {
            let shard = by_file.get(file);
            if shard.is_none_or(|shard| shard.header.find(name).is_none()) {
                return Err(disagree(format!(
                    "tensor `{name}` is not in {file}, as the index says"
                )));
            }
        }
        for shard in &self.shards {
            let stranger = shard.header.sorted_names().find(|name| index.shard_of(name).is_none());
            if let Some(name) = stranger {
                let shard = shard.path.display();
                return Err(disagree(format!("tensor `{name}` of {shard} is not in the index")));
            }
        }
        Ok(())
    }
}
