//! One error type, its variants chosen by what the caller can do.

use std::io;
use std::path::{Path, PathBuf};

/// The result of everything that can fail here.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// What went wrong; every variant that concerns a file names it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The file is not a valid safetensors file; the text begins with upstream's words.
    #[error("{0}")]
    Format(String),

    /// The caller asked for something that is not there: a name, a closed handle, a shard.
    #[error("{0}")]
    Request(String),

    /// The system refused: the true cause, with the path.
    #[error("{message}: {}", path.display())]
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// What the system says, in words.
        message: String,
        /// The error number that decides the Python exception class.
        source: io::Error,
    },

    /// Bytes that the header promises could not be read.
    #[error(
        "{}: wanted {wanted} bytes at offset {offset}{}, got {got}: {cause}",
        path.display(),
        tensor.as_ref().map(|name| format!(" (tensor `{name}`)")).unwrap_or_default()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Where the read began, in bytes from the start of the file.
        offset: u64,
        /// How many bytes were asked for.
        wanted: u64,
        /// How many came.
        got: u64,
        /// The index of the first wanted tensor of the read that is not whole, until its name is known.
        target: Option<usize>,
        /// That tensor.
        tensor: Option<String>,
        /// Why, and what to do.
        cause: String,
        /// The error number of the system, where there is one.
        errno: Option<i32>,
    },

    /// Bytes that arrived are not those that they should be.
    #[error(
        "{}{}: {difference}; nothing was loaded: load it again, or fetch it again",
        path.display(),
        tensor.as_ref().map(|name| format!(": tensor `{name}`")).unwrap_or_default()
    )]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The index of the tensor that differs, until its name is known; none for the whole file.
        target: Option<usize>,
        /// That tensor.
        tensor: Option<String>,
        /// What was compared, what came of the bytes, and what should have.
        difference: String,
    },

    /// Host memory ran out.
    #[error("out of host memory: wanted {bytes} bytes for {purpose}")]
    Memory {
        /// The size of the allocation that failed.
        bytes: u64,
        /// What it was for.
        purpose: &'static str,
    },

    /// Host memory for a tensor ran out.
    #[error(
        "{}: out of host memory: wanted {bytes} bytes{}; load fewer tensors at once, or map the file \
         (backend=\"mmap\")",
        path.display(),
        tensor.as_ref().map(|name| format!(" for tensor `{name}`")).unwrap_or_default()
    )]
    HostMemory {
        /// The file.
        path: PathBuf,
        /// The bytes of the tensor.
        bytes: u64,
        /// The index of the tensor, until its name is known.
        target: Option<usize>,
        /// That tensor.
        tensor: Option<String>,
    },

    /// The system refused a thread.
    #[error(
        "can't start a thread ({name}): {message}; let there be more of them (ulimit -u, or the \
         container's limit on pids)"
    )]
    Thread {
        /// What it would have been called.
        name: &'static str,
        /// The system's words.
        message: String,
    },

    /// A GPU or its driver refused.
    #[error("cuda:{ordinal}: {what}: {message}")]
    Device {
        /// The number of the GPU.
        ordinal: usize,
        /// The driver's function, or what was looked at.
        what: &'static str,
        /// The driver's words, and what to do.
        message: String,
    },

    /// The memory of a GPU ran out.
    #[error(
        "CUDA out of memory: cuda:{ordinal} has {free} of {total} bytes free, {wanted} are wanted; \
         free some there, or load fewer tensors, or narrower ones (dtype=)"
    )]
    DeviceMemory {
        /// The number of the GPU.
        ordinal: usize,
        /// The bytes that were wanted.
        wanted: u64,
        /// The bytes that were free.
        free: u64,
        /// The bytes of the GPU's memory.
        total: u64,
    },

    /// The caller's own code stopped the load: a signal, or its callback raised.
    #[error("{0}")]
    Stopped(Box<dyn std::error::Error + Send + Sync>),

    /// A fault of ours: a thread died, or the number of tensors does not match the plan.
    #[error("internal error, please report it: {0}")]
    Internal(String),
}

/// A refusal that is not the system's own, and counts as the one of its numbers that comes closest.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refusal {
    /// The error number.
    pub(crate) errno: i32,
    /// What happened.
    pub(crate) message: String,
}

/// The number of an error of the system's, or of one that counts as such.
pub(crate) fn errno_of(error: &io::Error) -> Option<i32> {
    let refusal = || error.get_ref()?.downcast_ref::<Refusal>();
    error.raw_os_error().or_else(|| Some(refusal()?.errno))
}

impl Error {
    /// The system's refusal to do something with `path`; an error of ours that came by its way.
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        let source = match source.downcast::<Self>() {
            Ok(own) => return own,
            Err(source) => source,
        };
        if let Some(Refusal { errno, message }) =
            source.get_ref().and_then(|source| source.downcast_ref())
        {
            return Self::refused(path, *errno, message);
        }
        match source.kind() {
            // A name that no file can have, such as one with a NUL in it, is a missing file's.
            io::ErrorKind::NotFound | io::ErrorKind::InvalidInput
                if source.raw_os_error().is_none_or(|errno| errno == libc::ENOENT) =>
            {
                Self::refused(path, libc::ENOENT, "No such file or directory")
            }
            _ => {
                let text = source.to_string();
                let message = text.split(" (os error").next().unwrap_or_default();
                let advice = match source.raw_os_error() {
                    Some(libc::EMFILE) => "; close some, or let there be more (ulimit -n)",
                    _ => "",
                };
                let message = format!("{message}{advice}");
                Self::Io { path: path.to_owned(), message, source }
            }
        }
    }

    /// The system's refusal by error number, in our own words.
    pub(crate) fn refused(path: &Path, errno: i32, message: &str) -> Self {
        let source = io::Error::from_raw_os_error(errno);
        Self::Io { path: path.to_owned(), message: message.to_owned(), source }
    }

    /// The system's refusal to start a thread.
    pub(crate) fn no_thread(name: &'static str, error: &io::Error) -> Self {
        Self::Thread { name, message: error.to_string() }
    }

    /// Says of which file the tensor is that memory was wanted for.
    #[must_use]
    pub(crate) fn wanted_by(self, path: &Path, target: usize) -> Self {
        match self {
            Self::Memory { bytes, .. } => {
                let (path, target) = (path.to_owned(), Some(target));
                Self::HostMemory { path, bytes, target, tensor: None }
            }
            other => other,
        }
    }

    /// Puts the tensor's name into an error that knows only its index.
    #[must_use]
    pub(crate) fn named(mut self, name_of: impl Fn(usize) -> String) -> Self {
        if let Self::Read { target: Some(target), tensor, .. }
        | Self::Mismatch { target: Some(target), tensor, .. }
        | Self::HostMemory { target: Some(target), tensor, .. } = &mut self
        {
            *tensor = Some(name_of(*target));
        }
        self
    }
}
