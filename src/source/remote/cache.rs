//! A folder that keeps remote files: each is written while it is loaded, and has its name when it is
//! whole. Of several processes that load a file at once one writes it; the others wait, and read that.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle, park_timeout};
use std::time::Instant;

use sha2::{Digest, Sha256};

use crate::config::{SIGNAL_INTERVAL, config};
use crate::error::{Error, Refusal, Result};
use crate::source::remote::answer::Known;
use crate::source::{Address, LocalFile, Source};

/// What a lock file says once the writer has everything and only has to name it.
const FINISHING: &str = "finishing";

/// Who has a file.
pub(super) enum Claim {
    /// The folder, whole.
    Kept(LocalFile),
    /// Nobody yet: we write it.
    Ours(Writer),
    /// It is not ours: another load of this process has it, which may be waiting for us, or one that
    /// does not go on; or we do not read all of it.
    NotOurs,
}

/// Where a state of a file is kept; none where the server does not tell one state from another.
pub(super) fn entry(address: &Address, known: &Known) -> Option<PathBuf> {
    const NAME_BYTES_MAX: usize = 200;
    let (folder, validator) = (address.access.cache.as_deref()?, &known.validator);
    if validator.etag.is_none() && validator.modified.is_none() {
        return None;
    }
    let mut digest = Sha256::new();
    for part in [address.identity(), format!("{validator:?}"), known.bytes.to_string()] {
        digest.update(part.as_bytes());
        digest.update([0]);
    }
    let digest = digest.finalize();
    let digest = digest.iter().take(16).fold(0, |sum, &byte| (sum << 8) | u128::from(byte));
    let shown = address.shown();
    let name = shown.to_string_lossy().rsplit('/').next().unwrap_or_default().to_owned();
    let least = name.len().saturating_sub(NAME_BYTES_MAX);
    let begins = (least..name.len()).find(|&at| name.is_char_boundary(at));
    let name = &name[begins.unwrap_or_default()..];
    Some(folder.join(format!("{digest:032x}")).join(name))
}

/// Looks for a kept file, waits for another process that is writing it, or begins to write it, if the
/// load reads the whole of it.
pub(super) fn claim(
    entry: &Path,
    known: &Known,
    whole: bool,
    check: fn() -> Result<()>,
) -> Result<Claim> {
    let refuse = |error| Error::io(entry, error);
    if let Some(file) = kept(entry, known) {
        return Ok(Claim::Kept(file));
    }
    if !whole {
        return Ok(Claim::NotOurs);
    }
    if let Some(folder) = entry.parent() {
        fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
    }
    let (path, part) = (beside(entry, "lock"), beside(entry, "part"));
    let own = own_name();
    let (lock, began) = (open_lock(&path).map_err(refuse)?, Instant::now());
    loop {
        if let Some(file) = kept(entry, known) {
            return Ok(Claim::Kept(file));
        }
        match lock.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(error)) => return Err(refuse(error)),
            Err(TryLockError::WouldBlock) => {
                let holder = holder(&path);
                if holder == own || (holder != FINISHING && is_idle(&part, began)) {
                    return Ok(Claim::NotOurs);
                }
                check()?;
                park_timeout(SIGNAL_INTERVAL);
            }
        }
    }
    // Its writer may have ended between the two looks.
    if let Some(file) = kept(entry, known) {
        return Ok(Claim::Kept(file));
    }
    tell(&lock, &own).map_err(refuse)?;
    let file = begin(&part).map_err(refuse)?;
    let state = State { written: Vec::new(), given_up: false };
    let entry = entry.to_owned();
    let (bytes, process, state) = (known.bytes, std::process::id(), Mutex::new(state));
    Ok(Claim::Ours(Writer { entry, part, file, lock, process, bytes, state }))
}

/// Opens a lock file, and nothing that somebody has put in its place: a link to another file, or what
/// would have to be waited for.
fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true);
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let facts = file.metadata()?;
    if facts.is_file() && facts.nlink() <= 1 {
        return Ok(file);
    }
    let message = "The lock file is a link, or no file; remove it".to_owned();
    Err(io::Error::other(Refusal { errno: libc::EPERM, message }))
}

/// Begins a file anew, in place of what a killed process has left, or somebody has put there.
fn begin(part: &Path) -> io::Result<File> {
    match fs::remove_file(part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().create_new(true).write(true).open(part)
}

fn kept(entry: &Path, known: &Known) -> Option<LocalFile> {
    LocalFile::open(entry).ok().filter(|file| file.len() == known.bytes)
}

/// What this process writes into a lock file: the first process of every container has one number.
fn own_name() -> String {
    static DRAWN: OnceLock<u64> = OnceLock::new();
    let drawn = DRAWN.get_or_init(|| RandomState::new().hash_one(()));
    format!("{} {drawn:016x}", std::process::id())
}

/// Waits for files that are being named; before the process ends.
pub(crate) fn settle() {
    // Held meanwhile: who comes then waits as well.
    for (process, thread) in finishing().drain(..) {
        // A child of fork has none of its parent's threads.
        if process == std::process::id() {
            let _ended = thread.join();
        }
    }
}

fn finishing() -> MutexGuard<'static, Vec<(u32, JoinHandle<()>)>> {
    static FINISHING: Mutex<Vec<(u32, JoinHandle<()>)>> = Mutex::new(Vec::new());
    FINISHING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether nothing was written for longer than a server may say nothing, since we wait.
fn is_idle(part: &Path, began: Instant) -> bool {
    let since = fs::metadata(part).and_then(|facts| facts.modified());
    let idle = since.ok().and_then(|since| since.elapsed().ok());
    let waited = began.elapsed();
    waited.min(idle.unwrap_or(waited)) > 2 * config().network_patience
}

fn holder(lock: &Path) -> String {
    let mut text = String::new();
    let read = File::open(lock).and_then(|mut file| file.read_to_string(&mut text));
    read.map(|_| text).unwrap_or_default()
}

fn tell(mut lock: &File, text: &str) -> io::Result<()> {
    lock.set_len(0)?;
    io::Seek::rewind(&mut lock)?;
    lock.write_all(text.as_bytes())
}

fn beside(entry: &Path, ending: &str) -> PathBuf {
    let mut name = entry.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

/// A file that is being written; without the rest of its bytes it vanishes.
#[derive(Debug)]
pub(super) struct Writer {
    entry: PathBuf,
    part: PathBuf,
    file: File,
    /// Locked by the process that began.
    lock: File,
    process: u32,
    bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Ranges that are written, apart from each other and in order.
    written: Vec<(u64, u64)>,
    given_up: bool,
}

impl Writer {
    /// Writes bytes that have come. Where that fails, the disk being full, say, the load goes on without.
    pub(super) fn write(self: &Arc<Self>, offset: u64, bytes: &[u8]) {
        if self.state().given_up {
            return;
        }
        let written = self.file.write_all_at(bytes, offset);
        let mut state = self.state();
        if written.is_err() {
            state.given_up = true;
            // What it took is somebody else's again, as far as the disk can still do that.
            let _freed = self.file.set_len(0);
            return;
        }
        insert(&mut state.written, offset, offset + bytes.len() as u64);
        if state.given_up || state.written != [(0, self.bytes)] {
            return;
        }
        state.given_up = true; // nothing more is to be written
        drop(state);
        // Who comes from now on waits for the name.
        let told = tell(&self.lock, FINISHING);
        let writer = Arc::clone(self);
        let thread = Builder::new().name("sst-cache".to_owned());
        let thread = thread.spawn(move || writer.finish(told));
        let mut threads = finishing();
        threads.retain(|(_, thread)| !thread.is_finished());
        threads.extend(thread.map(|thread| (std::process::id(), thread)));
    }

    /// Gives the file its name, once the disk has all of it.
    fn finish(&self, told: io::Result<()>) {
        let named = told
            .and_then(|()| self.file.sync_all())
            .and_then(|()| fs::rename(&self.part, &self.entry))
            .and_then(|()| File::open(self.entry.parent().unwrap_or(Path::new("/")))?.sync_all());
        if named.is_err() {
            // It is no file of the folder's, and who waits need not wait for it.
            let _told = tell(&self.lock, &own_name());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return; // a child of fork: all of it is its parent's
        }
        // It has another name by now, or nobody wants it.
        let _gone = fs::remove_file(&self.part);
        // Else a child that has it open would keep it locked.
        let _unlocked = self.lock.unlock();
    }
}

/// Adds a range to those that are apart and in order.
fn insert(ranges: &mut Vec<(u64, u64)>, mut begin: u64, mut end: u64) {
    ranges.retain(|&(other_begin, other_end)| {
        let apart = other_end < begin || end < other_begin;
        if !apart {
            (begin, end) = (begin.min(other_begin), end.max(other_end));
        }
        apart
    });
    let place = ranges.partition_point(|&(other_begin, _)| other_begin < begin);
    ranges.insert(place, (begin, end));
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;

    use super::{Claim, Known, claim, entry, insert, settle};
    use crate::source::Address;
    use crate::source::address::Access;
    use crate::source::remote::answer::Validator;

    fn known(etag: &str) -> Known {
        let validator = Validator { etag: Some(etag.to_owned()), modified: None };
        Known { bytes: 10, validator }
    }

    fn claimed(place: &Path) -> Claim {
        claim(place, &known("\"1\""), true, || Ok(())).unwrap()
    }

    #[test]
    fn ranges_grow_together_in_any_order() {
        let mut ranges = Vec::new();
        for (begin, end) in [(4, 6), (8, 9), (0, 2), (6, 8), (5, 7), (2, 4)] {
            insert(&mut ranges, begin, end);
        }
        assert_eq!(ranges, [(0, 9)]);
    }

    #[test]
    fn a_file_is_kept_when_it_is_whole_and_by_its_state() {
        let folder = tempfile::tempdir().unwrap();
        let address = |text: &str| {
            let access = Access { cache: Some(folder.path().to_owned()), ..Access::default() };
            Address::new(text.into(), access)
        };
        let of = |text: &str, etag: &str| entry(&address(text), &known(etag)).unwrap();
        let place = of("https://h/m/a.safetensors?id=1&sig=x", "\"1\"");
        assert_eq!(place, of("https://h/m/a.safetensors?id=1&sig=y", "\"1\""));
        assert_ne!(place, of("https://h/m/a.safetensors?id=1&sig=x", "\"2\""));
        assert_ne!(place, of("https://h/m/a.safetensors?id=2&sig=x", "\"1\""));
        assert_ne!(place, of("https://u@h/m/a.safetensors?id=1&sig=x", "\"1\""));
        let Claim::Ours(writer) = claimed(&place) else {
            panic!("nobody has it");
        };
        let writer = Arc::new(writer);
        assert!(matches!(claimed(&place), Claim::NotOurs));
        writer.write(5, b"world");
        drop(writer);
        assert!(!place.exists());
        let partly = claim(&place, &known("\"1\""), false, || Ok(())).unwrap();
        assert!(matches!(partly, Claim::NotOurs));
        let Claim::Ours(writer) = claimed(&place) else {
            panic!("nobody has it any more");
        };
        let writer = Arc::new(writer);
        writer.write(5, b"world");
        writer.write(0, b"hello");
        settle();
        drop(writer);
        assert_eq!(fs::read_to_string(&place).unwrap(), "helloworld");
        assert!(matches!(claimed(&place), Claim::Kept(_)));
        assert_eq!(fs::read_dir(place.parent().unwrap()).unwrap().count(), 2);
    }

    #[test]
    fn what_a_killed_process_left_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("a");
        fs::write(folder.path().join("a.part"), "left over").unwrap();
        fs::write(folder.path().join("a.lock"), "1").unwrap();
        let Claim::Ours(writer) = claimed(&place) else {
            panic!("nobody has it");
        };
        let writer = Arc::new(writer);
        writer.write(0, b"helloworld");
        settle();
        assert_eq!(fs::read_to_string(&place).unwrap(), "helloworld");
    }
}
