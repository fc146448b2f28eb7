//! The same suite over a GPU, simulated or not, where there is one; and what only a GPU can get
//! wrong. `ci/planted` shows that these tests see the bugs they are there for.

use std::ffi::CStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::json;

use super::{
    Devices, Faults, Mode, SLOT_BYTES, Scene, To, a_stop_ends_it, an_early_end_is_told,
    every_byte_arrives, faulty, println_in_test, reader_for_sweep, tell_figure,
};
use crate::device::cuda::copy::CudaWorker;
use crate::device::cuda::driver::Gpu;
use crate::device::cuda::memory::SlabAllocator;
use crate::device::cuda::probe::{Simulator, UserMemory};
use crate::device::cuda::stream::Stream;
use crate::device::host::{HostAllocator, HostWorker};
use crate::device::workers::Workers;
use crate::device::{Allocator, Buffer, Worker};
use crate::error::{Error, Result};
use crate::plan::Wanted;

/// `CUDA_ERROR_UNKNOWN`.
const UNKNOWN: u32 = 999;

/// A driver, for one test at a time: planned failures are the whole process's.
struct Bench {
    gpu: &'static Gpu,
    simulator: Option<Simulator>,
    _alone: MutexGuard<'static, ()>,
}

impl Bench {
    /// None where there is no GPU, and says so.
    fn open() -> Option<Self> {
        static DRIVER: Mutex<()> = Mutex::new(());
        let alone = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
        match Gpu::open(0) {
            Ok(gpu) => Some(Self { gpu, simulator: Simulator::find(), _alone: alone }),
            Err(error) => {
                println_in_test(&format!("not run on a GPU: {error}"));
                None
            }
        }
    }

    /// What a simulated driver must not have seen.
    fn check_order(&self) {
        if let Some(simulator) = self.simulator {
            let violations = &simulator.statistics()["violations"];
            assert_eq!(violations["count"], 0, "{violations:#}");
        }
    }
}

/// Gives each tensor memory of its own in the order of a user's stream, as torch does.
struct OfUser(Arc<Stream>, Vec<UserMemory>);

impl Allocator for OfUser {
    fn allocate(&mut self, _target: usize, bytes: usize) -> Result<Buffer> {
        let memory = UserMemory::new(&self.0, bytes)?;
        let buffer = memory.buffer(self.0.gpu(), bytes);
        self.1.push(memory);
        Ok(Buffer::Cuda(buffer))
    }
}

/// Every second tensor on the GPU.
struct Mixed(SlabAllocator);

impl Allocator for Mixed {
    fn allocate(&mut self, target: usize, bytes: usize) -> Result<Buffer> {
        if target.is_multiple_of(2) {
            return self.0.allocate(target, bytes);
        }
        HostAllocator.allocate(target, bytes)
    }
}

fn devices(gpu: &'static Gpu, scene: &Scene) -> Result<Vec<To>> {
    let sizes: Vec<u64> = scene.wanted.iter().map(Wanted::bytes).collect();
    let (stream, user) = (Arc::new(Stream::new(gpu)?), Arc::new(Stream::new(gpu)?));
    let slabs = || SlabAllocator::new(gpu, &sizes);
    let threads = Workers::new(|done| {
        let worker: Box<dyn Worker> = Box::new(CudaWorker::new(&stream, None, done)?);
        Ok(vec![worker])
    })?;
    let for_user = Workers::new(|done| {
        let caller = Some(user.of_caller());
        let worker: Box<dyn Worker> = Box::new(CudaWorker::new(&stream, caller, done)?);
        Ok(vec![worker])
    })?;
    let in_turn = Workers::new(|done| {
        let stream = Arc::new(user.of_caller());
        Ok(vec![Box::new(CudaWorker::without_threads(&stream, done))])
    })?;
    let both = Workers::new(|done| {
        let worker: Box<dyn Worker> = Box::new(CudaWorker::new(&stream, None, done)?);
        Ok(vec![worker, Box::new(HostWorker::new(done))])
    })?;
    Ok(vec![
        (Box::new(threads), Box::new(slabs())),
        (Box::new(for_user), Box::new(OfUser(Arc::clone(&user), Vec::new()))),
        (Box::new(in_turn), Box::new(OfUser(user, Vec::new()))),
        (Box::new(both), Box::new(Mixed(slabs()))),
    ])
}

/// A suite of the host's on the GPU.
fn on_gpu(suite: fn(Devices<'_>)) {
    if let Some(bench) = Bench::open() {
        suite(&|scene: &Scene| devices(bench.gpu, scene).unwrap());
        bench.check_order();
    }
}

#[test]
fn every_reader_and_source_delivers_every_byte() {
    on_gpu(every_byte_arrives);
}

#[test]
fn a_source_that_ends_early_is_an_error_that_says_where() {
    on_gpu(an_early_end_is_told);
}

#[test]
fn a_caller_that_stops_ends_the_load_at_once() {
    on_gpu(a_stop_ends_it);
}

#[test]
fn a_tensor_that_a_users_stream_still_reads_is_not_freed() {
    let Some(bench) = Bench::open() else { return };
    let user = Arc::new(Stream::new(bench.gpu).unwrap());
    let tensor = || {
        let mut slabs = SlabAllocator::new(bench.gpu, &[SLOT_BYTES as u64]);
        match slabs.allocate(0, SLOT_BYTES) {
            Ok(Buffer::Cuda(tensor)) => tensor,
            other => panic!("{other:?}"),
        }
    };
    let (source, target) = (tensor(), tensor());
    user.copy_on_device(&target, &source);
    drop((source, target));
    bench.check_order();
}

/// One load that may fail by an error of its type, and must leave nothing behind.
fn load(bench: &Bench, number: usize, failing: &Arc<Faults>, before: impl FnOnce()) {
    let scene = faulty(failing, 0);
    let (mut device, mut allocator) =
        devices(bench.gpu, &scene).unwrap().into_iter().nth(number).unwrap();
    let mut reader = reader_for_sweep(false, &scene.sources, failing);
    before();
    let outcome = scene.run(reader.as_mut(), (&mut *device, &mut *allocator), failing);
    drop((device, allocator));
    if let Some(simulator) = bench.simulator {
        simulator.heal();
    }
    let typed = matches!(
        outcome,
        Ok(())
            | Err(Error::Read { .. }
                | Error::Stopped(_)
                | Error::Device { .. }
                | Error::DeviceMemory { .. })
    );
    assert!(typed, "{outcome:?}");
    bench.check_order();
}

#[test]
fn the_nth_operation_beside_the_gpu_fails_for_every_n() {
    let Some(bench) = Bench::open() else { return };
    let mut failed = 0;
    for number in 0..4 {
        for n in 1.. {
            let faults = Faults::at(n, Mode::FromThenOn);
            load(&bench, number, &faults, || ());
            if !faults.fired() {
                break;
            }
            failed += 1;
        }
    }
    println_in_test(&format!("failure sweep beside the GPU: {failed} operations failed"));
    tell_figure(&json!({ "beside_gpu": failed }));
}

#[test]
fn the_nth_call_of_the_driver_fails_for_every_n() {
    let Some(bench) = Bench::open() else { return };
    let Some(simulator) = bench.simulator else { return };
    let calls = || simulator.statistics()["calls_total"].as_u64().unwrap();
    let mut failed = 0;
    for number in 0..4 {
        let before = calls();
        load(&bench, number, &Faults::never(), || ());
        let all = calls() - before;
        for n in 1..=all {
            load(&bench, number, &Faults::never(), || simulator.fail(c"*", n, UNKNOWN));
        }
        failed += all;
    }
    println_in_test(&format!("failure sweep of the driver: {failed} calls failed"));
    tell_figure(&json!({ "driver_calls": failed }));
}

#[test]
fn a_slot_whose_copies_nobody_can_confirm_is_not_unmapped() {
    const WAITS: [&CStr; 2] = [c"cuEventSynchronize", c"cuStreamSynchronize"];
    let Some(bench) = Bench::open() else { return };
    let Some(simulator) = bench.simulator else { return };
    for number in 0..4 {
        load(&bench, number, &Faults::never(), || {
            for wait in WAITS {
                simulator.fail_always(wait, UNKNOWN);
            }
        });
    }
}
