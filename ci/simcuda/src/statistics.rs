//! Counters, and the JSON text that tells them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use crate::settings::settings;
use crate::violations::{self, Violations};
use crate::{entry, event, memory, order, pinned};

/// Copies of one kind.
pub(crate) struct Copies {
    copies: AtomicU64,
    bytes: AtomicU64,
}

impl Copies {
    const fn new() -> Self {
        Copies { copies: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// Counts one.
    pub(crate) fn add(&self, bytes: usize) {
        self.copies.fetch_add(1, Ordering::SeqCst);
        self.bytes.fetch_add(bytes as u64, Ordering::SeqCst);
    }

    fn clear(&self) {
        self.copies.store(0, Ordering::SeqCst);
        self.bytes.store(0, Ordering::SeqCst);
    }

    fn json(&self) -> String {
        let (copies, bytes) =
            (self.copies.load(Ordering::SeqCst), self.bytes.load(Ordering::SeqCst));
        format!("{{\"copies\":{copies},\"bytes\":{bytes}}}")
    }
}

/// Host to device.
pub(crate) static TO_DEVICE: Copies = Copies::new();
/// Device to host.
pub(crate) static TO_HOST: Copies = Copies::new();
/// Within and between devices.
pub(crate) static ON_DEVICE: Copies = Copies::new();
/// Those with an unpinned host side; counted in their direction, too.
pub(crate) static PAGEABLE: Copies = Copies::new();

/// What is allocated, and how much was at most.
#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Live allocations.
    pub(crate) count: usize,
    /// Their bytes.
    pub(crate) bytes: usize,
    /// The most bytes at one time.
    pub(crate) peak: usize,
}

impl Usage {
    /// One more allocation.
    pub(crate) fn grow(&mut self, bytes: usize) {
        self.count += 1;
        self.bytes += bytes;
        self.peak = self.peak.max(self.bytes);
    }

    /// One allocation less.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        self.count -= 1;
        self.bytes -= bytes;
    }

    /// Forgets the peak.
    pub(crate) fn restart(&mut self) {
        self.peak = self.bytes;
    }

    fn json(&self, count: &str) -> String {
        let Usage { count: live, bytes, peak } = self;
        format!("{{\"{count}\":{live},\"live_bytes\":{bytes},\"peak_bytes\":{peak}}}")
    }
}

type Counts<K> = Mutex<BTreeMap<K, u64>>;
static CALLS: Counts<&'static str> = Mutex::new(BTreeMap::new());
static KERNELS: Counts<String> = Mutex::new(BTreeMap::new());
static MODULES: Counts<&'static str> = Mutex::new(BTreeMap::new());

fn locked<K>(counts: &Counts<K>) -> MutexGuard<'_, BTreeMap<K, u64>> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a call; with the first one, the file at exit is arranged.
pub(crate) fn count_call(symbol: &'static str) {
    static AT_EXIT: Once = Once::new();
    AT_EXIT.call_once(|| {
        if settings().statistics.is_some() {
            // SAFETY: the handler may run at any time after this.
            unsafe { libc::atexit(write_file) };
        }
    });
    *locked(&CALLS).entry(symbol).or_default() += 1;
}

/// Counts a launch.
pub(crate) fn count_kernel(name: &str) {
    let mut kernels = locked(&KERNELS);
    if let Some(count) = kernels.get_mut(name) {
        *count += 1;
    } else {
        kernels.insert(name.to_string(), 1);
    }
}

/// Counts a module that was loaded, of that format.
pub(crate) fn count_module(format: &'static str) {
    *locked(&MODULES).entry(format).or_default() += 1;
}

/// All counters to zero, all peaks to what is live.
pub(crate) fn clear() {
    locked(&CALLS).clear();
    locked(&KERNELS).clear();
    locked(&MODULES).clear();
    [&TO_DEVICE, &TO_HOST, &ON_DEVICE, &PAGEABLE].into_iter().for_each(Copies::clear);
    violations::clear();
    memory::restart_peaks();
    pinned::restart_peak();
}

/// Everything as one JSON object.
pub(crate) fn json() -> String {
    let calls = locked(&CALLS).clone();
    let devices: Vec<String> = (0..settings().devices)
        .map(|device| memory::usage(device).json("live_allocations"))
        .collect();
    let mut text = String::from("{");
    let _ = write!(text, "\"calls\":{},", object(&calls));
    let _ = write!(text, "\"calls_total\":{},", calls.values().sum::<u64>());
    let _ = write!(text, "\"devices\":[{}],", devices.join(","));
    let _ = write!(text, "\"pinned\":{},", pinned::usage().json("live"));
    let _ = write!(text, "\"streams\":{},\"events\":{},", order::live_streams(), event::live());
    let _ = write!(text, "\"h2d\":{},\"d2h\":{},", TO_DEVICE.json(), TO_HOST.json());
    let _ = write!(text, "\"d2d\":{},\"pageable\":{},", ON_DEVICE.json(), PAGEABLE.json());
    let _ = write!(text, "\"kernels\":{},", object(&locked(&KERNELS)));
    let _ = write!(text, "\"modules\":{},", object(&locked(&MODULES)));
    let Violations { count, texts } = violations::found();
    let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
    let _ = write!(text, "\"violations\":{{\"count\":{count},\"texts\":[{}]}}}}", texts.join(","));
    text
}

fn object<K: AsRef<str>>(counts: &BTreeMap<K, u64>) -> String {
    let members: Vec<String> =
        counts.iter().map(|(name, count)| format!("{}:{count}", quoted(name.as_ref()))).collect();
    format!("{{{}}}", members.join(","))
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control < ' ' => quoted.push(' '),
            plain => quoted.push(plain),
        }
    }
    quoted.push('"');
    quoted
}

extern "C" fn write_file() {
    let Some(path) = settings().statistics.as_ref().filter(|_| !entry::is_forked()) else { return };
    if let Err(error) = std::fs::write(path, json() + "\n") {
        eprintln!("simcuda: SIMCUDA_STATS={path}: {error}");
    }
}
