//! Our header reader against upstream's.

#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(|file: &[u8]| fuzzing::header::check(file));

fuzz_mutator!(|file: &mut [u8], len: usize, len_max: usize, seed: u32| {
    fuzzing::header::mutate(file, (len, len_max), seed, fuzzer_mutate)
});
