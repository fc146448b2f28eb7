//! The environment variables, read once.

use std::fmt::Display;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

use crate::faults::Fault;

/// Everything that the environment decides; the table at the head of the crate explains each.
#[expect(clippy::struct_excessive_bools, reason = "each is a variable of its own")]
pub(crate) struct Settings {
    pub(crate) devices: usize,
    pub(crate) stub: bool,
    pub(crate) device_bytes: usize,
    pub(crate) compute_capability: i32,
    pub(crate) driver_version: i32,
    pub(crate) compiles: bool,
    pub(crate) to_device_gbps: f64,
    pub(crate) to_host_gbps: f64,
    pub(crate) copy_latency: Duration,
    pub(crate) kernel_duration: Duration,
    pub(crate) jitter_us: u64,
    pub(crate) poison: bool,
    pub(crate) guard: bool,
    pub(crate) racecheck: bool,
    pub(crate) pinned_bytes: usize,
    pub(crate) pin_ms_per_gib: f64,
    pub(crate) hidden: Vec<String>,
    pub(crate) kernels: Option<String>,
    pub(crate) statistics: Option<String>,
    pub(crate) abort: bool,
}

/// The largest number of devices that can be simulated.
pub(crate) const DEVICES_MAX: usize = 16;

/// Compute capabilities of GPUs that sit in one chip with a processor.
const INTEGRATED: [i32; 5] = [72, 87, 101, 110, 121];

impl Settings {
    /// Whether devices are of that kind.
    pub(crate) fn is_integrated(&self) -> bool {
        INTEGRATED.contains(&self.compute_capability)
    }
}

/// The settings of this process.
pub(crate) fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(|| Settings {
        devices: number("SIMCUDA_DEVICES", 1).min(DEVICES_MAX),
        stub: flag("SIMCUDA_STUB", false),
        device_bytes: number("SIMCUDA_MEM", 4 << 30),
        compute_capability: number("SIMCUDA_CC", 90),
        driver_version: number("SIMCUDA_DRIVER", 13000),
        compiles: !flag("CUDA_DISABLE_PTX_JIT", false),
        to_device_gbps: number("SIMCUDA_H2D_GBPS", 0.0),
        to_host_gbps: number("SIMCUDA_D2H_GBPS", 0.0),
        copy_latency: microseconds("SIMCUDA_COPY_US"),
        kernel_duration: microseconds("SIMCUDA_KERNEL_US"),
        jitter_us: number("SIMCUDA_JITTER_US", 0),
        poison: flag("SIMCUDA_POISON", true),
        guard: flag("SIMCUDA_GUARD", false),
        racecheck: flag("SIMCUDA_RACECHECK", false),
        pinned_bytes: number("SIMCUDA_PINNED_MAX", usize::MAX),
        pin_ms_per_gib: number("SIMCUDA_PIN_MS_PER_GIB", 0.0),
        hidden: text("SIMCUDA_HIDE").map_or_else(Vec::new, |names| list(&names)),
        kernels: text("SIMCUDA_KERNELS"),
        statistics: text("SIMCUDA_STATS"),
        abort: flag("SIMCUDA_ABORT", false),
    })
}

/// The faults planned by the environment.
pub(crate) fn planned_faults() -> Vec<Fault> {
    let plans = text("SIMCUDA_FAIL").unwrap_or_default();
    list(&plans)
        .iter()
        .map(|plan| Fault::parse(plan).unwrap_or_else(|| refuse("SIMCUDA_FAIL", plan)))
        .collect()
}

fn text(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn list(text: &str) -> Vec<String> {
    text.split(',').filter(|part| !part.is_empty()).map(String::from).collect()
}

fn number<T: FromStr>(name: &str, default: T) -> T {
    text(name).map_or(default, |value| value.parse().unwrap_or_else(|_| refuse(name, &value)))
}

fn flag(name: &str, default: bool) -> bool {
    number(name, u8::from(default)) != 0
}

fn microseconds(name: &str) -> Duration {
    Duration::from_secs_f64(number(name, 0.0f64).max(0.0) / 1e6)
}

/// A mistyped variable would silently test something else.
fn refuse<T>(name: &str, value: &dyn Display) -> T {
    eprintln!("simcuda: {name}={value} cannot be understood");
    std::process::abort()
}
