//! What must hold for any bytes at all: `ci/fuzz` tries it against inputs of a fuzzer, and
//! `tests/replay.rs` against those that it kept. The product's sources are compiled in, because what
//! is looked at is private there.

#![expect(dead_code, reason = "a few functions of the product are looked at, not all")]

pub mod answer;
pub mod header;
pub mod index;
mod memory;

#[path = "../../../src/format/agreement.rs"]
mod agreement;
mod checkpoint;
#[path = "../../../src/config.rs"]
mod config;
#[path = "../../../src/error.rs"]
mod error;
#[path = "../../../src/format/mod.rs"]
mod format;
#[path = "../../../src/source/mod.rs"]
mod source;
