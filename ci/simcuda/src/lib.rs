//! A simulated CUDA driver (`libcuda.so.1`) in host memory, for tests on machines without a GPU.
//!
//! At least as strict as hardware: work is asynchronous, device memory is poisoned, freed addresses
//! are never given out again, and every copy is checked against the order that streams, events and
//! waits establish. What that order does not cover is a *violation*, whatever the timing was.
//!
//! Built and put in the way of programs by `ci/sim`. Programs need no hook: everything is set by the
//! environment.
//!
//! | variable | meaning (default) |
//! | --- | --- |
//! | `SIMCUDA_DEVICES` | number of devices (1); 0: `cuInit` gives 100 |
//! | `SIMCUDA_STUB` | 1: `cuInit` gives 34, as a toolkit's stub library does (0) |
//! | `SIMCUDA_MEM` | bytes of memory a device has (4 GiB); more gives error 2 |
//! | `SIMCUDA_CC` | compute capability times ten (90); also decides whether devices are integrated |
//! | `SIMCUDA_DRIVER` | CUDA version of the driver (13000); decides which PTX it takes, and whether machine code |
//! | `CUDA_DISABLE_PTX_JIT` | 1: PTX is refused, as by a real driver (0) |
//! | `SIMCUDA_H2D_GBPS`, `SIMCUDA_D2H_GBPS` | rate of the copy engine of a direction, 10⁹ bytes/s (0: infinite) |
//! | `SIMCUDA_COPY_US` | latency of each copy (0) |
//! | `SIMCUDA_KERNEL_US` | duration of each kernel (0) |
//! | `SIMCUDA_JITTER_US` | each piece of work starts 0 to this many µs late (0) |
//! | `SIMCUDA_POISON` | 0: fresh memory is not filled with a pattern (1) |
//! | `SIMCUDA_GUARD` | 1: the host faults when it touches device memory (0) |
//! | `SIMCUDA_RACECHECK` | 1: a pinned source that changes before its copy is known to be done is a violation (0) |
//! | `SIMCUDA_PINNED_MAX` | bytes that can be pinned (no limit); more gives error 2 |
//! | `SIMCUDA_PIN_MS_PER_GIB` | time that pinning takes (0) |
//! | `SIMCUDA_FAIL` | `symbol:n:code[:sticky],…`: the n-th call of it fails; `*` is any symbol |
//! | `SIMCUDA_HIDE` | `symbol,…`: not found by `cuGetProcAddress`, as on an older driver |
//! | `SIMCUDA_KERNELS` | shared object with the host build of the kernels |
//! | `SIMCUDA_STATS` | file that gets the statistics at exit, as JSON |
//! | `SIMCUDA_ABORT` | 1: the first violation aborts the process (0) |
//!
//! Tests inside the process use the functions of [`control`]. Not simulated: graphs beyond the state
//! of a capture, managed memory, arrays, memory shared between processes, contexts other than the
//! primary ones.
//!
//! The simulator's own tests:
//! `CARGO_TARGET_DIR=.cache/sim/target cargo test --manifest-path ci/simcuda/Cargo.toml`.

mod api;
mod arena;
mod capture;
mod clock;
mod context;
pub mod control;
mod cubin;
mod engine;
mod entry;
mod error;
mod event;
mod faults;
mod kernel;
mod memory;
mod module;
mod order;
mod pinned;
mod queue;
mod ranges;
mod settings;
mod statistics;
mod transfer;
mod violations;
mod virtual_memory;

pub use api::*;
pub use error::Error;
