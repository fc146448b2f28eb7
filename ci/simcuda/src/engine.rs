//! The copy engines of the devices: one a direction, each with a rate and a latency.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::queue::{Timeline, sleep_until};
use crate::settings::{DEVICES_MAX, settings};

/// Where a copy goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the host to a device.
    ToDevice,
    /// From a device to the host.
    ToHost,
    /// Within a device, between devices, or on the host: no engine, only the latency.
    Elsewhere,
}

/// When an engine is free; `None`: it was never used.
type Engine = Mutex<Option<Instant>>;
static ENGINES: [[Engine; 2]; DEVICES_MAX] =
    [const { [const { Mutex::new(None) }; 2] }; DEVICES_MAX];

/// Copies in modelled time. The bytes move in the second half of it, so that who touches them too
/// early is caught; and what the move itself takes is part of it.
pub(crate) fn copy(
    timeline: &mut Timeline,
    device: usize,
    direction: Direction,
    bytes: usize,
    move_bytes: impl FnOnce(),
) {
    let duration = duration(direction, bytes);
    if duration.is_zero() {
        move_bytes();
        return;
    }
    let mut engine = match direction {
        Direction::ToDevice => Some(&ENGINES[device][0]),
        Direction::ToHost => Some(&ENGINES[device][1]),
        Direction::Elsewhere => None,
    }
    .map(|engine| engine.lock().unwrap_or_else(PoisonError::into_inner));
    let free_at = engine.as_ref().and_then(|engine| **engine);
    let begin = free_at.map_or(timeline.at, |free_at| free_at.max(timeline.at));
    sleep_until(begin + duration / 2);
    let moving = Instant::now();
    move_bytes();
    let end = begin + duration.max(moving.elapsed());
    if let Some(engine) = &mut engine {
        **engine = Some(end);
    }
    sleep_until(end);
    timeline.at = end;
}

fn duration(direction: Direction, bytes: usize) -> Duration {
    let rate = match direction {
        Direction::ToDevice => settings().to_device_gbps,
        Direction::ToHost => settings().to_host_gbps,
        Direction::Elsewhere => 0.0,
    };
    let transfer = if rate > 0.0 { bytes as f64 / (rate * 1e9) } else { 0.0 };
    settings().copy_latency + Duration::from_secs_f64(transfer)
}
