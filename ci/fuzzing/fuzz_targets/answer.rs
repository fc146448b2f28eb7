//! What a server answers.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|answer: &[u8]| fuzzing::answer::check(answer));
