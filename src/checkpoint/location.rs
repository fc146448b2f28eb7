//! What a path means: a file, a folder, or an index that names shards.

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};
use crate::format::index::Index;
use crate::source::{self, Address};

const INDEX_ENDING: &str = ".safetensors.index.json";

/// The largest index that is read, in bytes: a hundred times those of the largest models.
const INDEX_BYTES_MAX: usize = 64 << 20;

/// The files of a checkpoint.
#[derive(Debug)]
pub(crate) struct Location {
    /// The shards, in the order in which they will be read.
    pub(crate) shards: Vec<Address>,
    /// The index that named them, with its path.
    pub(crate) index: Option<(PathBuf, Index)>,
}

impl Location {
    /// Files that the caller named one by one.
    pub(crate) fn of_files(shards: Vec<Address>) -> Self {
        Self { shards, index: None }
    }

    /// A file, a folder or an index.
    pub(crate) fn resolve(address: &Address) -> Result<Self> {
        let remote = address.is_remote();
        if !remote && address.path().is_dir() {
            return Self::of_folder(address.path());
        }
        if address.ends_with(".json") {
            return Self::of_index(address);
        }
        Ok(Self::of_files(vec![address.clone()]))
    }

    fn of_folder(folder: &Path) -> Result<Self> {
        let entries = fs::read_dir(folder).map_err(|error| Error::io(folder, error))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        let ends = |path: &&PathBuf, ending| path.to_string_lossy().ends_with(ending);
        let indexes: Vec<&PathBuf> = files.iter().filter(|path| ends(path, INDEX_ENDING)).collect();
        match indexes.as_slice() {
            [index] => return Self::of_index(&Address::from(PathBuf::clone(index))),
            [first, second, ..] => {
                return Err(Error::Request(format!(
                    "{} holds several indexes ({}, {}): name one",
                    folder.display(),
                    first.display(),
                    second.display()
                )));
            }
            [] => {}
        }
        let shards = files.iter().filter(|path| ends(path, ".safetensors"));
        let shards: Vec<Address> = shards.cloned().map(Address::from).collect();
        if shards.is_empty() {
            return Err(Error::refused(folder, libc::ENOENT, "No .safetensors file in folder"));
        }
        Ok(Self::of_files(shards))
    }

    fn of_index(address: &Address) -> Result<Self> {
        let path = address.shown();
        let text = source::read_all(source::open(address)?.as_ref(), INDEX_BYTES_MAX)?;
        let index = Index::parse(&text).map_err(|error| {
            Error::Format(format!("invalid index {}: {error}; fetch it again", path.display()))
        })?;
        if let Some(name) = index.shards().into_iter().find(|name| !is_below(name)) {
            let path = path.display();
            let text =
                format!("invalid index {path}: the shard `{name}` is no file below its folder");
            return Err(Error::Format(text));
        }
        let shards = index.shards();
        let shards: Vec<Address> = shards.iter().map(|name| address.beside(name)).collect();
        let missing = |shard: &&Address| !shard.is_remote() && !shard.path().exists();
        if let Some(shard) = shards.iter().find(missing) {
            let message = format!("missing shard, named by {}; fetch it again", path.display());
            return Err(Error::refused(shard.path(), libc::ENOENT, &message));
        }
        Ok(Self { shards, index: Some((path, index)) })
    }
}

/// Whether a shard's name stays in the index's folder: others could reach files of anybody's.
pub(crate) fn is_below(name: &str) -> bool {
    let mut parts = Path::new(name).components().peekable();
    // An address is read without some of these: what they stand in could become another name.
    let plain = !name.contains(|character: char| character.is_control() || character == '\\');
    // In the folder that a process is in, a shard's path is its name: it may not be an address.
    let plain = plain && !name.contains("://");
    plain && parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}
