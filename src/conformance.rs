//! One suite of behaviours, run over every reader × source × device; a seeded simulation of loads; and
//! the sweep that fails operation 1, 2, 3 … until a load completes.

use std::io::Write;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::config::{PIECES_TOGETHER_MIN, ReaderChoice};
use crate::device::fake::{FakeAllocator, FakeDevice};
use crate::device::host::{HostAllocator, HostWorker};
use crate::device::{Allocator, Buffer, Destination, Device};
use crate::error::{Error, Result};
use crate::pipeline::{Caller, Load};
use crate::plan::{Chunks, Plan, Wanted};
use crate::reader::fake::FakeReader;
use crate::reader::uring::UringReader;
use crate::reader::{CachePolicy, ChoosingReader, Outlook, Reader};
use crate::ring::Ring;
use crate::source::faulty::{Fate, Faults, FaultySource, Mode, SpoiltSource};
use crate::source::memory::MemorySource;
use crate::source::{Source, open};

mod cuda;
mod replay;
mod simulation;

const SLOT_BYTES: usize = 16 << 10;
const SLOTS: usize = 4;

type Sources = Arc<[Arc<dyn Source>]>;

/// Who places, and whose memory it is.
type To = (Box<dyn Device>, Box<dyn Allocator>);

/// Makes each device that there is, for the targets of a scene.
type Devices<'made> = &'made dyn Fn(&Scene) -> Vec<To>;

/// Bytes that tell their place.
fn content(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|place| (place.wrapping_mul(131) >> 3).wrapping_add(salt * 17) as u8).collect()
}

/// Keeps what arrives, and the bytes that were in it then; fails on cue.
struct Recorder<'scene> {
    faults: Arc<Faults>,
    wanted: &'scene [Wanted],
    arrived: Vec<Option<(Buffer, Vec<u8>)>>,
}

impl<'scene> Recorder<'scene> {
    fn new(wanted: &'scene [Wanted], faults: &Arc<Faults>) -> Self {
        Self { faults: Arc::clone(faults), wanted, arrived: vec![None; wanted.len()] }
    }
}

impl Caller for Recorder<'_> {
    fn deliver(&mut self, target: usize, buffer: Buffer) -> Result<()> {
        self.faults.step().map_err(|error| Error::Stopped(Box::new(error)))?;
        let bytes = self.wanted[target].bytes() as usize;
        let read = match &buffer {
            Buffer::Host(buffer) => buffer.to_vec(bytes),
            Buffer::Cuda(buffer) => buffer.to_vec(bytes)?,
        };
        assert!(self.arrived[target].replace((buffer, read)).is_none(), "delivered twice");
        Ok(())
    }

    fn check(&mut self, _bytes_done: u64) -> Result<()> {
        self.faults.step().map_err(|error| Error::Stopped(Box::new(error)))
    }
}

/// What a load is made of.
struct Scene {
    sources: Sources,
    contents: Vec<Vec<u8>>,
    wanted: Vec<Wanted>,
}

impl Scene {
    /// Runs a load and checks what must hold whatever happens: nothing in flight, every slot back,
    /// and on success every byte right.
    fn run(
        &self,
        reader: &mut dyn Reader,
        to: (&mut dyn Device, &mut dyn Allocator),
        faults: &Arc<Faults>,
    ) -> Result<()> {
        let (device, allocator) = to;
        let ring = Ring::new(SLOT_BYTES, SLOTS, 1);
        let lengths: Vec<u64> = self.sources.iter().map(|source| source.len()).collect();
        let plan = Plan::new(self.wanted.clone(), &lengths, Chunks::growing(SLOT_BYTES), u64::MAX);
        let mut recorder = Recorder::new(&self.wanted, faults);
        let mut lease = ring.lend(SLOTS, usize::MAX, 0).unwrap();
        let outcome = Load {
            plan: &plan,
            sources: &self.sources,
            reader: &mut *reader,
            to: Destination { device: &mut *device, allocator: &mut *allocator },
            lease: &mut lease,
            caller: &mut recorder,
        }
        .run();
        assert_eq!((reader.in_flight(), device.in_flight()), (0, 0), "left in flight");
        drop(lease);
        assert!(ring.made() <= SLOTS);
        assert_eq!(ring.made(), ring.idle(), "a slot is lost");
        outcome?;
        for (wanted, arrived) in self.wanted.iter().zip(recorder.arrived) {
            let range = wanted.begin as usize..wanted.end as usize;
            let expected = &self.contents[wanted.shard][range];
            let Some((_, arrived)) = arrived else { panic!("a tensor is missing") };
            assert!(arrived == expected);
        }
        Ok(())
    }
}

/// Ranges of two sources: small, large, empty, overlapping, far apart, up to the last byte; and rows of
/// small ones, as many in a chunk as a kernel is asked for.
fn wanted(lengths: &[usize]) -> Vec<Wanted> {
    let mut all = Vec::new();
    for (shard, &len) in lengths.iter().enumerate() {
        let len = len as u64;
        for (begin, end) in [(8, 9), (9, 9), (100, 40_001), (40_001, 40_001), (300_000, len)] {
            all.push(Wanted::range(shard, begin.min(len), end.min(len)));
        }
        for row in [50_000, 110_000] {
            let begins = (0..PIECES_TOGETHER_MIN as u64).map(|place| row + 700 * place);
            all.extend(begins.map(|begin| Wanted::range(shard, begin, begin + 301)));
        }
        all.push(Wanted::range(shard, 0, len));
    }
    all
}

const LENGTHS: [usize; 2] = [400_123, 131_072];

fn contents() -> Vec<Vec<u8>> {
    LENGTHS.iter().enumerate().map(|(salt, &len)| content(len, salt)).collect()
}

fn scene(sources: Vec<Arc<dyn Source>>) -> Scene {
    Scene { sources: sources.into(), contents: contents(), wanted: wanted(&LENGTHS) }
}

/// Files on the disk the project lies on: a temporary folder may be memory, which has no direct I/O.
fn files() -> (tempfile::TempDir, Scene) {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let write = |(index, bytes): (usize, Vec<u8>)| -> Arc<dyn Source> {
        let path = folder.path().join(format!("shard-{index}"));
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(&bytes).unwrap();
        file.sync_all().unwrap();
        open(&path.into()).unwrap()
    };
    let sources = contents().into_iter().enumerate().map(write).collect();
    (folder, scene(sources))
}

fn in_memory() -> Scene {
    let source = |bytes| -> Arc<dyn Source> { Arc::new(MemorySource(bytes)) };
    scene(contents().into_iter().map(source).collect())
}

fn faulty(faults: &Arc<Faults>, promised_more: u64) -> Scene {
    let source = |bytes: Vec<u8>| -> Arc<dyn Source> {
        let promised = bytes.len() as u64 + promised_more;
        Arc::new(FaultySource { bytes, promised, faults: Arc::clone(faults) })
    };
    scene(contents().into_iter().map(source).collect())
}

/// Of a large load, or of one so small that what is cached is read by its caller.
fn outlook(small: bool) -> Outlook {
    Outlook { bytes: if small { 1 << 20 } else { 1 << 32 }, reads: 100 }
}

/// Every reader that a source can be read by.
fn readers(sources: &Sources) -> Vec<(String, Box<dyn Reader>)> {
    let choosing = |choice, policy, small| -> Box<dyn Reader> {
        Box::new(ChoosingReader::new(Arc::clone(sources), choice, policy, outlook(small)))
    };
    let fake = FakeReader::new(sources, &Faults::never(), &Fate::new(7));
    let mut readers: Vec<(String, Box<dyn Reader>)> = vec![("fake".to_owned(), Box::new(fake))];
    for choice in [ReaderChoice::Uring, ReaderChoice::Pread] {
        for policy in [CachePolicy::Auto, CachePolicy::Keep, CachePolicy::Bypass] {
            for small in [false, true] {
                let name = format!("{choice:?} {policy:?}, small: {small}");
                readers.push((name, choosing(choice, policy, small)));
            }
        }
    }
    readers
}

fn devices(_scene: &Scene) -> Vec<To> {
    let fake = FakeDevice::new(&Faults::never(), &Fate::new(3));
    let host = HostWorker::alone();
    vec![(Box::new(host), Box::new(HostAllocator)), (Box::new(fake), Box::new(HostAllocator))]
}

/// Drops a file's pages, so that the next read is from the disk.
fn make_cold(scene: &Scene) {
    for source in scene.sources.iter() {
        crate::source::system::drop_cache(source.local().unwrap().buffered());
    }
}

#[test]
fn every_reader_source_and_device_delivers_every_byte() {
    every_byte_arrives(&devices);
}

fn every_byte_arrives(devices: Devices<'_>) {
    let (_folder, on_disk) = files();
    let mut combinations = 0;
    for (name, scene) in [
        ("file", &on_disk),
        ("memory", &in_memory()),
        ("short reads", &faulty(&Faults::never(), 0)),
    ] {
        for cold in [false, true] {
            if name == "file" && cold {
                make_cold(scene);
            }
            for (reader_name, mut reader) in readers(&scene.sources) {
                for (mut device, mut allocator) in devices(scene) {
                    let outcome = scene.run(
                        reader.as_mut(),
                        (&mut *device, &mut *allocator),
                        &Faults::never(),
                    );
                    assert!(outcome.is_ok(), "{name} {reader_name}: {outcome:?}");
                    combinations += 1;
                }
            }
        }
    }
    let uring = match UringReader::probe(Arc::clone(&on_disk.sources)) {
        Ok(_) => "among them io_uring".to_owned(),
        Err(refusal) => format!("without io_uring: {refusal}"),
    };
    println_in_test(&format!("conformance: {combinations} combinations, {uring}"));
    tell_figure(&json!({ "combinations": combinations }));
}

#[test]
fn a_source_that_ends_early_is_an_error_that_says_where() {
    an_early_end_is_told(&devices);
}

fn an_early_end_is_told(devices: Devices<'_>) {
    let scene = faulty(&Faults::never(), 5_000);
    let (_folder, on_disk) = files();
    let grown = |wanted: &Wanted| Wanted::range(wanted.shard, wanted.begin, wanted.end + 5_000);
    for scene in [scene, on_disk] {
        let last = *scene.wanted.last().unwrap();
        let wanted = vec![grown(&last)];
        let scene = Scene { wanted, ..scene };
        let truncated: Vec<Arc<dyn Source>> = scene.sources.iter().map(promising).collect();
        let scene = Scene { sources: truncated.into(), ..scene };
        for (name, mut reader) in readers(&scene.sources) {
            for (mut device, mut allocator) in devices(&scene) {
                let outcome =
                    scene.run(reader.as_mut(), (&mut *device, &mut *allocator), &Faults::never());
                match outcome.unwrap_err() {
                    Error::Read { offset, wanted, got, target: Some(0), .. } => {
                        assert!(got < wanted && offset + got == LENGTHS[1] as u64, "{name}");
                    }
                    other => panic!("{name}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn an_error_names_the_tensor_that_is_not_whole() {
    let spoilt = |bytes| -> Arc<dyn Source> { Arc::new(SpoiltSource { bytes, from: 10_000 }) };
    let wanted = vec![Wanted::range(0, 0, 9_000), Wanted::range(0, 9_000, 16_000)];
    let scene = Scene { wanted, ..scene(contents().into_iter().map(spoilt).collect()) };
    let mut reader = reader_for_sweep(true, &scene.sources, &Faults::never());
    let to: (&mut dyn Device, &mut dyn Allocator) = (&mut HostWorker::alone(), &mut HostAllocator);
    let outcome = scene.run(reader.as_mut(), to, &Faults::never());
    let Err(Error::Read { got, target, errno, .. }) = outcome else { panic!("{outcome:?}") };
    assert_eq!((got, target, errno), (10_000, Some(1), Some(libc::EIO)));
}

/// The same source, saying that it is longer than it is: what a file is that was truncated.
fn promising(source: &Arc<dyn Source>) -> Arc<dyn Source> {
    #[derive(Debug)]
    struct Promising(Arc<dyn Source>);
    impl Source for Promising {
        fn path(&self) -> &std::path::Path {
            self.0.path()
        }
        fn len(&self) -> u64 {
            self.0.len().max(LENGTHS[1] as u64) + 5_000
        }
        fn read_at(&self, offset: u64, target: &mut [u8]) -> std::io::Result<usize> {
            self.0.read_at(offset, target)
        }
        fn local(&self) -> Option<&crate::source::LocalFile> {
            self.0.local()
        }
    }
    Arc::new(Promising(Arc::clone(source)))
}

#[test]
fn a_caller_that_stops_ends_the_load_at_once() {
    a_stop_ends_it(&devices);
}

fn a_stop_ends_it(devices: Devices<'_>) {
    let (_folder, scene) = files();
    for (_, mut reader) in readers(&scene.sources) {
        for (mut device, mut allocator) in devices(&scene) {
            let faults = Faults::at(3, Mode::FromThenOn);
            let outcome = scene.run(reader.as_mut(), (&mut *device, &mut *allocator), &faults);
            assert!(matches!(outcome, Err(Error::Stopped(_))));
        }
    }
}

#[test]
fn the_nth_operation_fails_for_every_n() {
    let (mut failed, mut survived) = (0, 0);
    for mode in [Mode::Once, Mode::FromThenOn] {
        for real_reader in [false, true] {
            for n in 1.. {
                let faults = Faults::at(n, mode);
                let scene = faulty(&faults, 0);
                let mut reader = reader_for_sweep(real_reader, &scene.sources, &faults);
                let mut device = FakeDevice::new(&faults, &Fate::new(1));
                let mut allocator = FakeAllocator { faults: Arc::clone(&faults) };
                let to: (&mut dyn Device, &mut dyn Allocator) = (&mut device, &mut allocator);
                let outcome = scene.run(reader.as_mut(), to, &faults);
                if !faults.fired() {
                    assert!(outcome.is_ok(), "no fault, and yet {outcome:?}");
                    break;
                }
                failed += 1;
                survived += usize::from(outcome.is_ok());
                let typed = matches!(
                    outcome,
                    Ok(())
                        | Err(Error::Read { .. }
                            | Error::Memory { .. }
                            | Error::HostMemory { .. }
                            | Error::Stopped(_))
                ) || matches!(&outcome, Err(Error::Internal(text)) if text.contains("on cue"));
                assert!(typed, "operation {n}: {outcome:?}");
                let healthy = faulty(&Faults::never(), 0);
                let mut next = reader_for_sweep(real_reader, &healthy.sources, &Faults::never());
                let again = healthy.run(
                    next.as_mut(),
                    (&mut HostWorker::alone(), &mut HostAllocator),
                    &Faults::never(),
                );
                assert!(again.is_ok(), "the load after operation {n} failed: {again:?}");
            }
        }
    }
    println_in_test(&format!(
        "failure sweep: {failed} operations failed, {survived} loads survived by a second try, \
         {} ended in a typed error; nothing leaked, every next load worked",
        failed - survived
    ));
    tell_figure(&json!({ "operations": failed }));
    assert!(failed > 400 && survived > 0);
}

fn reader_for_sweep(real: bool, sources: &Sources, faults: &Arc<Faults>) -> Box<dyn Reader> {
    let sources = Arc::clone(sources);
    if real {
        let (choice, policy) = (ReaderChoice::Auto, CachePolicy::Auto);
        return Box::new(ChoosingReader::new(sources, choice, policy, outlook(false)));
    }
    Box::new(FakeReader::new(&sources, faults, &Fate::new(5)))
}

/// What `ci/scoreboard` reads.
fn tell_figure(numbers: &Value) {
    println_in_test(&format!("figure {numbers}"));
}

#[expect(clippy::print_stdout, reason = "the figures of a test run are for people to read")]
fn println_in_test(line: &str) {
    println!("{line}");
}
