//! Weights from where they lie to where they are wanted, as fast as the hardware allows.
//!
//! Bytes travel one way: source → header → plan → reader → ring → device → tensor → caller.
//! The modules stand in the order in which the bytes meet them, and each uses only those above
//! it (`ci/tidy.py` checks that).

#![cfg_attr(
    not(feature = "python"),
    expect(dead_code, reason = "only the extension module uses all of it")
)]

/// What can go wrong, by what the caller can do about it.
pub(crate) mod error;

/// Every tunable with its unit and limit; the only reader of the environment.
pub(crate) mod config;

/// What each process in a line of forks has for itself.
pub(crate) mod process;

/// The file format as pure data: untrusted bytes to a checked table of tensors.
pub(crate) mod format;

/// Where bytes live: a local file, or bytes in memory.
pub(crate) mod source;

/// Channels to the thread that carries a load, all of them waited for at once.
pub(crate) mod queue;

/// Digests of stretches of files, made of their bytes as they pass.
pub(crate) mod digest;

/// Wanted tensors to few large reads in file order; pure arithmetic.
pub(crate) mod plan;

/// Who holds the result: host memory, and the slots that carry bytes to it.
pub(crate) mod device;

/// A loaded tensor: shared memory, offset, dtype, shape.
pub(crate) mod tensor;

/// The process's slots: few, large, kept, lent to one load at a time.
pub(crate) mod ring;

/// When each read of a load was where.
pub(crate) mod timeline;

/// What a load did, in numbers.
pub(crate) mod report;

/// Fills slots: `io_uring`, pread threads, and the choice between them.
pub(crate) mod reader;

/// The only loop: plan → reader → slots → device; control flow, errors, shutdown.
pub(crate) mod pipeline;

/// What a caller opens: shards, headers, names, one tensor, a slice, everything.
pub(crate) mod checkpoint;

/// What bounds a load on this machine, each part measured alone; what a load will take.
pub(crate) mod ceilings;

/// One suite of behaviours over every reader, source and device, and the failure sweep.
#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of tests")]
mod conformance;

/// The extension module: converts, detaches, calls, converts.
#[cfg(feature = "python")]
mod python;
