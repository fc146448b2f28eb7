//! The simulator simulates: what is right passes, and every planted bug is caught, by no luck.

#![expect(clippy::unwrap_used, reason = "that is how a test fails")]
#![expect(clippy::needless_for_each, reason = "one line a step keeps scenarios short")]

mod capture;
mod common;
mod engine;
mod faults;
mod kernels;
mod legacy;
mod memory;
mod order;
