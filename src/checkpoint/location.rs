//! What a path means: a file, a folder, or an index that names shards.

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};
use crate::format::index::Index;

const INDEX_ENDING: &str = ".safetensors.index.json";

/// The files of a checkpoint.
#[derive(Debug)]
pub(crate) struct Location {
    /// The shards, in the order in which they will be read.
    pub(crate) shards: Vec<PathBuf>,
    /// The index that named them, with its path.
    pub(crate) index: Option<(PathBuf, Index)>,
}

impl Location {
    /// Files that the caller named one by one.
    pub(crate) fn of_files(shards: Vec<PathBuf>) -> Self {
        Self { shards, index: None }
    }

    /// A file, a folder or an index.
    pub(crate) fn resolve(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::of_folder(path);
        }
        let is_index = path.to_string_lossy().ends_with(".json");
        if is_index { Self::of_index(path) } else { Ok(Self::of_files(vec![path.to_owned()])) }
    }

    fn of_folder(folder: &Path) -> Result<Self> {
        let entries = fs::read_dir(folder).map_err(|error| Error::io(folder, error))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        let ends = |path: &&PathBuf, ending| path.to_string_lossy().ends_with(ending);
        let indexes: Vec<&PathBuf> = files.iter().filter(|path| ends(path, INDEX_ENDING)).collect();
        match indexes.as_slice() {
            [index] => return Self::of_index(index),
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
        let shards: Vec<PathBuf> =
            files.iter().filter(|path| ends(path, ".safetensors")).cloned().collect();
        if shards.is_empty() {
            return Err(Error::refused(folder, libc::ENOENT, "No .safetensors file in folder"));
        }
        Ok(Self::of_files(shards))
    }

    fn of_index(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|error| Error::io(path, error))?;
        let index = Index::parse(text.as_bytes())
            .map_err(|error| Error::Format(format!("invalid index {}: {error}", path.display())))?;
        if let Some(name) = index.shards().into_iter().find(|name| !is_below(name)) {
            let path = path.display();
            let text =
                format!("invalid index {path}: the shard `{name}` is no file below its folder");
            return Err(Error::Format(text));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let shards: Vec<PathBuf> = index.shards().iter().map(|name| folder.join(name)).collect();
        for shard in &shards {
            if !shard.exists() {
                let message = format!("missing shard, named by {}", path.display());
                return Err(Error::refused(shard, libc::ENOENT, &message));
            }
        }
        Ok(Self { shards, index: Some((path.to_owned(), index)) })
    }
}

/// Whether a shard's name stays in the index's folder: others could reach files of anybody's.
fn is_below(name: &str) -> bool {
    let mut parts = Path::new(name).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}
