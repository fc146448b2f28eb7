//! The index of a checkpoint.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| fuzzing::index::check(text));
